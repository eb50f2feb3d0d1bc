"""The record of a bundle, which a build makes, and which every later step reads back from the bundle on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeres.bundle import FP32, REPORT, Bundle
from edgeres.data.pixels import Pixels
from edgeres.data.record import CalibrationRecord
from edgeres.files import sha256
from edgeres.graph.forms import FORMS
from edgeres.records import EngineRecord, Manifest, ModelSpec, QuantPlan
from edgeres.signing import BUILT_HERE, NOBODY, Permit

ARTEFACTS = (".onnx", ".engine")


@dataclass(frozen=True)
class Making:
    """How a run made a bundle.

    Attributes:
        export: ``max_error``, the largest difference of the FP32 graph to the original model as a share of the largest
            output, and ``notes``.
        calibration: None where ranges were imported.
        plans: quantization plans by style.
        refinement: each refinement step, kept or not; see :class:`edgeres.refine.recipe.Step`.
        residual: precision of each block's skip and its cost; see :class:`edgeres.refine.residual.SkipCost`.
        timings: wall seconds by stage.
        reasons: why something is missing, by its path in the report.
    """

    export: Mapping[str, Any]
    calibration: CalibrationRecord | None
    plans: Mapping[str, QuantPlan]
    refinement: tuple[Mapping[str, Any], ...] = ()
    residual: tuple[Mapping[str, Any], ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Made:
    """A bundle during its build, or read back.

    Attributes:
        folder: the directory with its files.
        manifest: its ``files`` are empty during the build.
        files: SHA-256 of graphs and engines by path, as they are now.
        sizes: bytes of the ONNX graphs, ``fp32`` and the INT8 forms by name.
        facts: how it was made, as one flat mapping, so that builds can be compared by name.
        calibration_pixels: mean colours of the calibration images; None where they were not recorded.
        files_when_built: ``files`` at the time of the build; None during the build.
        making: how this run made it; None where an earlier run made it.
        permit: which of its engines may run.
    """

    folder: Path
    manifest: Manifest
    files: Mapping[str, str]
    sizes: Mapping[str, int]
    facts: Mapping[str, Any]
    calibration_pixels: Pixels | None = None
    files_when_built: Mapping[str, str] | None = None
    making: Making | None = None
    permit: Permit = BUILT_HERE

    @property
    def model(self) -> ModelSpec:
        return self.manifest.model

    @property
    def engines(self) -> tuple[EngineRecord, ...]:
        return self.manifest.engines


def read_made(bundle: Bundle, permit: Permit = NOBODY) -> Made:
    """Read a bundle back, after checking every file.

    Raises:
        BundleError: a file is missing or was changed.
    """
    bundle.check()
    manifest, built = bundle.manifest, bundle.report() if bundle.has(REPORT) else {}
    pixels = ((built.get("data") or {}).get("calibration") or {}).get("pixels")
    return Made(
        bundle.path,
        manifest,
        artefacts_of(manifest.files),
        graph_sizes(bundle.path),
        built.get("facts", {}),
        Pixels(**pixels | {"mean": tuple(pixels["mean"])}) if pixels else None,
        built.get("files", {}),
        permit=permit,
    )


def graph_files(folder: Path) -> dict[str, Path]:
    """The ONNX graphs in a bundle's directory: ``fp32`` and the INT8 forms by name."""
    named = {"fp32": FP32, **{name: form.file for name, form in FORMS.items()}}
    return {name: folder / file for name, file in named.items() if (folder / file).is_file()}


def graph_sizes(folder: Path) -> dict[str, int]:
    """Bytes of each of :func:`graph_files`."""
    return {name: path.stat().st_size for name, path in graph_files(folder).items()}


def artefacts(folder: Path) -> dict[str, str]:
    """SHA-256 of the graphs and engines in a bundle's directory, by path."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in ARTEFACTS)
    return {path.relative_to(folder).as_posix(): sha256(path) for path in paths}


def artefacts_of(files: Mapping[str, str]) -> dict[str, str]:
    """The graphs and engines among the files of a manifest."""
    return {name: digest for name, digest in files.items() if name.endswith(ARTEFACTS)}
