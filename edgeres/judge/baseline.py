"""Writes and reads baseline.json, the file with the answers, latency and facts of the last accepted build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeres import reports
from edgeres._version import __version__
from edgeres.device.environment import recorded_time
from edgeres.errors import InputError
from edgeres.judge.build_figures import BuildFigures, figures_of
from edgeres.judge.document import Json
from edgeres.words import shown_path

_LATENCY = ("backend", "scope", "batch", "speedup", "speedup_ci95", "fp32", "int8", "noise")
_CPU = ("cpu_speedup", "cpu_speedup_ci95", "measurable")
_GRAPH = ("correct", "total", "lost", "gained", "drop_pp", "logit_sqnr_db", "logit_sqnr_db_ci95", "agreement")


@dataclass(frozen=True)
class Baseline:
    """An accepted build.

    Attributes:
        where: the file, relative to the working directory or by name.
        document: the content of the file.
        any_machine: compare latency with that of another machine, too.
    """

    where: str
    document: Mapping[str, Any]
    any_machine: bool = False

    @property
    def figures(self) -> BuildFigures:
        return figures_of(self.document, "the baseline")


def refuse_other_task(report: Mapping[str, Any], where: str | Path) -> None:
    """Raise an InputError where the answers are no classes: builds are compared by these alone."""
    if task := report.get("task"):
        what = f"is a build of {task['name']}, and only builds of classification are compared yet"
        raise InputError(what, where=where, hint="edgeres verify BUNDLE judges it against its FP32 reference")


def accept(report: Mapping[str, Any], where: str | Path) -> Json:
    """The content of baseline.json for an accepted report.

    Args:
        where: where the report came from, for messages.

    Raises:
        InputError: the report has no answers.
    """
    accuracy, latency = report["accuracy"], report["latency"]
    refuse_other_task(report, where)
    if accuracy["answers"] is None:
        raise InputError("its report has no answers to accept", where=where, hint="verify the bundle, then accept it")
    content = {
        "schema": reports.BASELINE_FORMAT,
        "kind": "edgeres baseline",
        "accepted": recorded_time(),
        "edgeres": __version__,
        "measured": report["created"],
        "outcome": report["outcome"],
        "validation": report["data"]["validation"],
        "environment": report["environment"],
        "facts": report["facts"],
        "files": report["files"],
        "sizes": report["sizes"],
        "accuracy": {
            "fp32": {key: accuracy["fp32"][key] for key in ("correct", "total")},
            "graphs": {name: {key: graph[key] for key in _GRAPH} for name, graph in accuracy["graphs"].items()},
            "answers": accuracy["answers"],
            "power": accuracy.get("power"),
        },
        "latency": {key: latency[key] for key in _LATENCY} | {key: latency.get(key) for key in _CPU},
    }
    kind = reports.baseline_kind()
    document: Json = kind.content(kind.decode(content, where))
    return document


def read_baseline(path: str | Path, *, any_machine: bool = False) -> Baseline:
    """Read a baseline.json.

    Raises:
        InputError: it is missing, damaged, no baseline, or from a newer edgeres.
    """
    baseline = Baseline(shown_path(path), reports.read_baseline(Path(path)), any_machine)
    try:
        baseline.figures  # noqa: B018  raises where the answers cannot be unpacked
    except InputError as error:
        raise InputError(error.what, where=path, hint="accept the bundle again") from error
    return baseline
