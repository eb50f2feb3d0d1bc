"""Reads a build to compare: a bundle, or a report.json alone."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgeres.bundle import CALIBRATION, REPORT, Bundle, steady
from edgeres.calibrate.ranges_file import read_calibration
from edgeres.errors import BundleError, InputError
from edgeres.graph.forms import PLANNED
from edgeres.judge.baseline import refuse_other_task
from edgeres.judge.build_figures import figures_of
from edgeres.judge.document import Json
from edgeres.made import artefacts_of
from edgeres.reports import read_report


@dataclass(frozen=True)
class GraphScales:
    """The quantization of one INT8 graph.

    Attributes:
        scales: scale of every activation with a Q/DQ pair, by tensor.
        skipped: why a node or tensor stays in float, by name.
    """

    scales: Mapping[str, float]
    skipped: Mapping[str, str]


@dataclass(frozen=True)
class Side:
    """One of the builds in a comparison.

    Attributes:
        name: as the user named it.
        report: content of report.json.
        files: SHA-256 of graphs and engines by path, as they are now.
        ranges: low and high from calibration.json, by style and tensor; None where there is none.
        graphs: by style; None where the graphs cannot be read.
        reasons: why ``ranges`` or ``graphs`` is None, by its name.
    """

    name: str
    report: Json
    files: Mapping[str, str]
    ranges: Mapping[str, Mapping[str, tuple[float, float]]] | None = None
    graphs: Mapping[str, GraphScales] | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)


def read_side(path: Path) -> Side:
    """Read a bundle or a report.json.

    Raises:
        BundleError: the bundle is incomplete or was changed.
        InputError: the file is not a report, or is damaged.
    """
    if path.is_file():
        why = f"{path} is a report alone; give the bundle"
        report = _checked(read_report(path), path)
        return Side(str(path), report, report["files"], reasons={"ranges": why, "graphs": why})
    return steady(path, _side_of)


def _side_of(bundle: Bundle) -> Side:
    path = bundle.path
    if not bundle.has(REPORT):
        raise BundleError("has no report.json, so there are no figures to compare", where=path, hint="build it again")
    reasons: dict[str, str] = {}
    ranges, graphs = _ranges(bundle, reasons), _graphs(bundle, reasons)
    files = artefacts_of(bundle.manifest.files)
    return Side(str(path), _checked(bundle.report(), path), files, ranges, graphs, reasons)


def _checked(report: Json, where: Path) -> Json:
    """The report, after checking that its answers can be unpacked."""
    refuse_other_task(report, where)
    try:
        figures_of(report, "")
    except InputError as error:
        raise InputError(error.what, where=where, hint="edgeres verify BUNDLE -o DIR writes a report") from None
    return report


def _ranges(bundle: Bundle, reasons: dict[str, str]) -> dict[str, dict[str, tuple[float, float]]] | None:
    if not bundle.has(CALIBRATION):
        reasons["ranges"] = f"{bundle.path} has no {CALIBRATION}"
        return None
    return read_calibration(bundle.file(CALIBRATION)).limits()


def _graphs(bundle: Bundle, reasons: dict[str, str]) -> dict[str, GraphScales] | None:
    if importlib.util.find_spec("onnx") is None:
        reasons["graphs"] = "it needs onnx; pip install 'edgeres[export]'"
        return None
    from edgeres.quantize.inspect import inspect

    graphs = {}
    for form in PLANNED:
        if bundle.has(form.file):
            (graph,) = inspect(bundle.file(form.file))
            graphs[form.name] = GraphScales({q.tensor: q.scale for q in graph.quantized}, dict(graph.skipped))
    return graphs
