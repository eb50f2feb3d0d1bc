"""The last accepted build, in a file to commit: what it answered on every image, how fast it was, how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgeres._version import __version__
from edgeres.errors import InputError
from edgeres.judge.document import Json
from edgeres.judge.standing import Standing, standing_of

SCHEMA = 1
KIND = "edgeres baseline"
FILE = "baseline.json"
_LATENCY = ("backend", "scope", "batch", "speedup", "speedup_ci95", "fp32", "int8", "noise")
_GRAPH = ("correct", "total", "lost", "gained", "drop_pp", "logit_sqnr_db", "logit_sqnr_db_ci95", "agreement")


@dataclass(frozen=True)
class Baseline:
    """An accepted build.

    Attributes:
        where: the file, as it was named.
        any_machine: compare latency with that of another machine, too.
    """

    where: str
    document: Mapping[str, Any]
    any_machine: bool = False

    @property
    def standing(self) -> Standing:
        return standing_of(self.document, "the baseline")


def accept(report: Mapping[str, Any], where: str | Path) -> Json:
    """The content of baseline.json for a report that was accepted.

    Args:
        where: the report came from, for messages.

    Raises:
        InputError: the report holds no answers, or is from an older edgeres.
    """
    if "answers" not in report.get("accuracy", {}):
        raise InputError(
            "its report is from an older edgeres", where=where, hint="edgeres verify -o DIR writes a new one"
        )
    accuracy, latency = report["accuracy"], report["latency"]
    if accuracy["answers"] is None:
        raise InputError("its report compares nothing, so there is nothing to accept", where=where, hint="verify it")
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "accepted": datetime.now(timezone.utc).isoformat(timespec="seconds"),
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
        },
        "latency": {key: latency[key] for key in _LATENCY},
    }


def read_baseline(path: str | Path, *, any_machine: bool = False) -> Baseline:
    """Open a baseline.json.

    Raises:
        InputError: it is missing, something else, or from a newer edgeres.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        kind, schema = document["kind"], int(document["schema"])
    except OSError as error:
        hint = "edgeres baseline accept BUNDLE writes one"
        raise InputError(f"no baseline can be read ({error.strerror})", where=path, hint=hint) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("not a baseline", where=path, hint="edgeres baseline accept BUNDLE writes one") from error
    if kind != KIND:
        raise InputError(f"not a baseline but {kind!r}", where=path, hint="edgeres baseline accept BUNDLE writes one")
    if schema > SCHEMA:
        raise InputError(f"written in format {schema}, this edgeres reads {SCHEMA}", where=path, hint="upgrade edgeres")
    try:
        _check(document)
    except (KeyError, TypeError, AttributeError, InputError) as error:
        raise InputError(
            f"is incomplete or was edited ({error})", where=path, hint="accept the bundle again"
        ) from error
    return Baseline(str(path), document, any_machine)


def _check(document: Mapping[str, Any]) -> None:
    """Whether everything is there that a comparison reads.

    Raises:
        KeyError, TypeError, AttributeError, InputError: something is not.
    """
    for part in ("accepted", "outcome", "validation", "environment", "facts", "files", "sizes", "latency"):
        document[part]
    for part in _LATENCY:
        document["latency"][part]
    table = standing_of(document, "the baseline").table
    for name, graph in document["accuracy"]["graphs"].items():
        for part in _GRAPH:
            graph[part]
        if table is None or name not in table.answers:
            raise KeyError(f"accuracy.answers.{name}")
