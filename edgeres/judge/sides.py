"""One of several builds to compare: a bundle, or a report.json alone."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgeres.bundle import CALIBRATION, REPORT, Bundle
from edgeres.calibrate.ranges_file import read_calibration
from edgeres.errors import BundleError, InputError
from edgeres.graph.forms import PLANNED
from edgeres.judge.document import Json
from edgeres.judge.standing import standing_of
from edgeres.made import artefacts_of
from edgeres.reports import read_report


@dataclass(frozen=True)
class Code:
    """How one tensor of an INT8 graph becomes codes.

    Attributes:
        scale: in the tensor's own units per code.
    """

    scale: float
    zero_point: int
    dtype: str


@dataclass(frozen=True)
class Codes:
    """What is quantized in one INT8 graph.

    Attributes:
        tensors: every activation with a Q/DQ pair.
        skipped: why something stays in float.
    """

    tensors: Mapping[str, Code]
    skipped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Side:
    """A build as far as it can be read.

    Attributes:
        name: as the user named it.
        report: content of report.json.
        files: SHA-256 of graphs and engines by path, as they are now.
        ranges: low and high by style and tensor, of calibration.json; None where there is none.
        graphs: by style; None where nobody can look, ``reasons`` then says why, under ``ranges`` and ``graphs``.
    """

    name: str
    report: Json
    files: Mapping[str, str]
    ranges: Mapping[str, Mapping[str, tuple[float, float]]] | None = None
    graphs: Mapping[str, Codes] | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)


def read_side(path: Path) -> Side:
    """Open a bundle or a report.json.

    Raises:
        BundleError: the bundle is incomplete or was changed.
        InputError: a file is not a report, or a damaged one.
    """
    if path.is_file():
        why = f"{path} is a report alone; give the bundle"
        report = _whole(read_report(path), path)
        return Side(str(path), report, report["files"], reasons={"ranges": why, "graphs": why})
    bundle = Bundle(path)
    if not bundle.has(REPORT):
        raise BundleError("has no report.json, so there are no figures to compare", where=path, hint="build it again")
    reasons: dict[str, str] = {}
    ranges, graphs = _ranges(bundle, reasons), _graphs(bundle, reasons)
    files = artefacts_of(bundle.manifest.files)
    return Side(str(path), _whole(bundle.report(), path), files, ranges, graphs, reasons)


def _whole(report: Json, where: Path) -> Json:
    """A report whose answers can be unpacked."""
    try:
        standing_of(report, "")
    except InputError as error:
        raise InputError(error.what, where=where, hint="edgeres verify BUNDLE -o DIR writes a report") from None
    return report


def _ranges(bundle: Bundle, reasons: dict[str, str]) -> dict[str, dict[str, tuple[float, float]]] | None:
    if not bundle.has(CALIBRATION):
        reasons["ranges"] = f"{bundle.path} has no {CALIBRATION}"
        return None
    return read_calibration(bundle.file(CALIBRATION)).limits()


def _graphs(bundle: Bundle, reasons: dict[str, str]) -> dict[str, Codes] | None:
    if importlib.util.find_spec("onnx") is None:
        reasons["graphs"] = "it needs onnx; pip install 'edgeres[export]'"
        return None
    from edgeres.quantize.inspect import inspect

    found = {}
    for form in PLANNED:
        if bundle.has(form.file):
            (graph,) = inspect(bundle.file(form.file))
            tensors = {q.tensor: Code(q.scale, q.zero_point, q.dtype) for q in graph.quantized}
            found[form.name] = Codes(tensors, dict(graph.skipped))
    return found
