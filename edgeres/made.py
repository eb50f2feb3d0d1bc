"""What a build made. A bundle is this record on disk: a build writes it, every later step reads it back."""

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

ARTEFACTS = (".onnx", ".engine")


@dataclass(frozen=True)
class Making:
    """What one run did to make a bundle.

    Attributes:
        export: ``max_error`` of the FP32 graph to where it came from, as a share of the largest output, and ``notes``.
        calibration: None where ranges were imported.
        plans: quantization plans by style.
        refinement: each refinement step, kept or not: see :class:`edgeres.refine.recipe.Step`.
        residual: precision of each block's skip and its cost: see :class:`edgeres.refine.residual.SkipCost`.
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
    """A bundle, in the making or read back.

    Attributes:
        folder: where its files are.
        manifest: with the digests of its files where it was read back.
        files: SHA-256 of graphs and engines by path, as they are now.
        sizes: bytes of the ONNX graphs, ``fp32`` and the INT8 forms by name.
        facts: how it was made, flat, for comparing builds by name.
        calibration_pixels: what the calibration images look like; None where that was not recorded.
        files_when_built: ``files`` at the time of the build; None while it is built.
        making: what this run did; None where an earlier run made it.
    """

    folder: Path
    manifest: Manifest
    files: Mapping[str, str]
    sizes: Mapping[str, int]
    facts: Mapping[str, Any]
    calibration_pixels: Pixels | None = None
    files_when_built: Mapping[str, str] | None = None
    making: Making | None = None

    @property
    def model(self) -> ModelSpec:
        return self.manifest.model

    @property
    def engines(self) -> tuple[EngineRecord, ...]:
        return self.manifest.engines


def read_made(bundle: Bundle) -> Made:
    """A bundle read back, after checking every file.

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
    found = sorted(path for path in folder.rglob("*") if path.suffix in ARTEFACTS)
    return {path.relative_to(folder).as_posix(): sha256(path) for path in found}


def artefacts_of(files: Mapping[str, str]) -> dict[str, str]:
    """Those of a manifest's files that are graphs or engines."""
    return {name: digest for name, digest in files.items() if name.endswith(ARTEFACTS)}
