"""Limits on figures, judged on the figures as they stand in report.json.

A metric is one line of :data:`METRICS`: which side of the limit is good, the unit, and the path of the figure. A ``*``
in the path means that every graph in the bundle has to pass, and the worst one is named.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edgeres.errors import UsageError
from edgeres.records import Gate, Verdict


@dataclass(frozen=True)
class Metric:
    """What a gate can limit.

    Attributes:
        title: the figure's name for people.
        bound: a ceiling passes at or below the limit, a floor at or above it.
        path: of the figure in report.json; its interval stands beside it under the same name with ``_ci95``.
    """

    name: str
    title: str
    bound: Literal["ceiling", "floor"]
    unit: str
    path: str

    def meets(self, value: float, limit: float) -> bool:
        return value <= limit if self.bound == "ceiling" else value >= limit

    def words(self, limit: float) -> str:
        return f"{'at most' if self.bound == 'ceiling' else 'at least'} {limit:g} {self.unit}"


METRICS = {
    metric.name: metric
    for metric in (
        Metric("drop_pp", "top-1 drop", "ceiling", "pp", "accuracy.graphs.*.drop_pp"),
        Metric("speedup", "speedup", "floor", "x", "latency.speedup"),
    )
}


def gate(metric: str, limit: float) -> Gate:
    """A gate on one of :data:`METRICS`.

    Raises:
        UsageError: there is no such metric, or the limit is not a number.
    """
    if metric not in METRICS:
        raise UsageError(f"there is no metric {metric!r} to limit", hint=f"choose one of {', '.join(METRICS)}")
    if not math.isfinite(limit):
        raise UsageError(f"{limit} is not a limit for {metric}")
    return Gate(metric, float(limit), METRICS[metric].unit)


def judge(gates: Iterable[Gate], figures: Mapping[str, Any]) -> list[Verdict]:
    """Hold each gate against the figures by their point estimates; the interval is told in the reason.

    A figure that was not measured fails its gate, with the reason why it was not.

    Args:
        figures: ``accuracy``, ``latency``, ``sizes`` and ``reasons`` of a report.
    """
    return [_judge(gate, figures) for gate in gates]


def _judge(gate: Gate, figures: Mapping[str, Any]) -> Verdict:
    metric = METRICS[gate.metric]
    found = list(expand(metric.path, figures))
    missing = [path for path in found if look_up(path, figures) is None]
    if missing or not found:
        path = missing[0] if missing else metric.path
        return Verdict(gate, None, False, f"not measured: {why_missing(path, figures)}")
    # max() finds the worst for a ceiling, min() for a floor
    worst = (max if metric.bound == "ceiling" else min)(found, key=lambda path: float(look_up(path, figures)))
    value = float(look_up(worst, figures))
    low, high = look_up(f"{worst}_ci95", figures) or (None, None)
    interval = "" if low is None else f" (95 % interval {low:.3g} to {high:.3g})"
    graph = f" of the {worst.split('.')[-2]} graph, the worst of {len(found)}" if len(found) > 1 else ""
    reason = f"{value:.4g} {gate.unit}{interval}{graph}; the limit is {metric.words(gate.limit)}"
    return Verdict(gate, value, metric.meets(value, gate.limit), reason)


def expand(path: str, figures: Mapping[str, Any]) -> Iterator[str]:
    """The paths that a path with a ``*`` stands for; a path without one stands for itself."""
    head, star, tail = path.partition(".*")
    if not star:
        yield path
        return
    yield from (f"{head}.{key}{tail}" for key in look_up(head, figures) or {})


def look_up(path: str, figures: Mapping[str, Any]) -> Any:
    """The value at a dotted path; None where it was not measured or does not exist."""
    value: Any = figures
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def why_missing(path: str, figures: Mapping[str, Any]) -> str:
    """Why a figure is null: the reason given for it, or for the nearest group it belongs to."""
    reasons: Mapping[str, str] = figures.get("reasons", {})
    keys = path.replace(".*", "").split(".")
    prefixes = (".".join(keys[:n]) for n in range(len(keys), 0, -1))
    return next((reasons[p] for p in prefixes if p in reasons), "no reason was recorded")
