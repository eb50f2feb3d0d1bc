"""Limits on figures, judged on the figures as they stand in report.json.

A metric is one line of :data:`METRICS`: which side of the limit is good, the unit, and the path of the figure. A ``*``
in the path means that every graph in the bundle has to pass, and the worst one is named.

A figure that was measured on a sample has an interval, and a limit lies beside it in one of three ways:

    passed   all of the interval is on the good side, or the figure has no interval and is itself
    failed   all of it is on the other side
    unsure   the limit lies inside: with this many images nobody can tell
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any, Literal

from edgeres.errors import UsageError
from edgeres.judge.document import expand, look_up, why_missing
from edgeres.records import Gate, Outcome, Verdict
from edgeres.verify.statistics import images_for_drop, images_for_share


@dataclass(frozen=True)
class Metric:
    """What a gate can limit.

    Attributes:
        title: the figure's name for people.
        bound: a ceiling passes at or below the limit, a floor at or above it.
        path: of the figure in report.json; its interval stands beside it under the same name with ``_ci95``.
        each: what a ``*`` in the path stands for, in words.
        scale: what the figure is multiplied with before it is compared: report.json has bytes, people have megabytes.
        option: field of :class:`Limits` that sets the limit.
        against: what the figure compares with; a figure that a baseline cannot give leaves the gate unsure, one that
            this run did not give fails it.
        labelled: whether the figure needs labels.
    """

    name: str
    title: str
    bound: Literal["ceiling", "floor"]
    unit: str
    path: str
    option: str
    each: str = "{} graph"
    scale: float = 1.0
    against: Literal["fp32", "baseline", "nothing"] = "fp32"
    labelled: bool = False

    def meets(self, value: float, limit: float) -> bool:
        return value <= limit if self.bound == "ceiling" else value >= limit

    def words(self, limit: float) -> str:
        return f"{'at most' if self.bound == 'ceiling' else 'at least'} {limit:g} {self.unit}"


_BASE = "baseline.graphs.*"
METRICS = {
    metric.name: metric
    for metric in (
        Metric("drop_pp", "top-1 drop", "ceiling", "pp", "accuracy.graphs.*.drop_pp", "max_drop", labelled=True),
        Metric("class_drop_pp", "class drop", "ceiling", "pp", "", "max_class_drop", labelled=True),
        Metric("agreement", "agreement", "floor", "%", "accuracy.graphs.*.agreement", "min_agreement"),
        Metric("speedup", "speedup", "floor", "x", "latency.speedup", "min_speedup"),
        Metric("p99_ms", "INT8 p99", "ceiling", "ms", "latency.int8.p99_ms", "max_p99_ms", against="nothing"),
        Metric(
            "size_mb",
            "size",
            "ceiling",
            "MB",
            "sizes.deployed_bytes.*",
            "max_size_mb",
            each="{}",
            scale=1e-6,
            against="nothing",
        ),
        *(
            Metric(name, title, "ceiling", unit, path, option, against="baseline", labelled=unit == "pp")
            for name, title, unit, path, option in (
                ("regression_pp", "top-1 since baseline", "pp", f"{_BASE}.drop_pp", "max_regression"),
                ("fp32_regression_pp", "FP32 since baseline", "pp", "baseline.fp32.drop_pp", "max_regression"),
                ("class_regression_pp", "class since baseline", "pp", "", "max_class_drop"),
                ("sqnr_loss_db", "SQNR since baseline", "dB", f"{_BASE}.sqnr_loss_db", "max_sqnr_loss"),
                ("slowdown_percent", "latency since baseline", "%", "baseline.slowdown_percent", "max_slowdown"),
            )
        ),
    )
}


@dataclass(frozen=True)
class Limits:
    """The limits of a run; None sets no gate. Units: percentage points, per cent, ratios, milliseconds, MB, dB.

    Attributes:
        max_drop: top-1 lost against FP32.
        max_class_drop: of any class, against FP32 and against the baseline; it must be more than luck, too.
        min_agreement: images that FP32 and INT8 put into the same class.
        min_speedup: FP32's p50 latency over INT8's, in one run.
        max_p99_ms: INT8's p99 latency.
        max_size_mb: of each INT8 graph and engine.
        max_regression: top-1 lost against the baseline, by INT8 and by FP32 itself.
        max_sqnr_loss: logit SQNR lost against the baseline.
        max_slowdown: INT8's latency against the baseline's, each as a share of FP32's in its own run.
    """

    max_drop: float | None = 1.0
    max_class_drop: float | None = 10.0
    min_agreement: float | None = None
    min_speedup: float | None = None
    max_p99_ms: float | None = None
    max_size_mb: float | None = None
    max_regression: float | None = 0.5
    max_sqnr_loss: float | None = 3.0
    max_slowdown: float | None = 15.0

    def __post_init__(self) -> None:
        """Refuse what is no number.

        Raises:
            UsageError: a limit is not finite.
        """
        for metric in METRICS.values():
            limit = getattr(self, metric.option)
            if limit is not None:
                gate(metric.name, limit)

    def gates(self, *, baseline: bool = False, labels: bool = True) -> tuple[Gate, ...]:
        """The gates that are set.

        Args:
            baseline: whether there is one to compare with.
            labels: False leaves out what cannot be told without them.
        """
        wanted = (
            metric
            for metric in METRICS.values()
            if (baseline or metric.against != "baseline") and (labels or not metric.labelled)
        )
        limits = ((metric.name, getattr(self, metric.option)) for metric in wanted)
        return tuple(gate(name, limit) for name, limit in limits if limit is not None)


LIMITS = tuple(f.name for f in fields(Limits))


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


def judge_gates(gates: Iterable[Gate], figures: Mapping[str, Any]) -> list[Verdict]:
    """Hold each gate against the figures and their intervals.

    A figure that was not measured fails its gate, with the reason why it was not; a baseline that cannot be compared
    with leaves it unsure.

    Args:
        figures: ``accuracy``, ``latency``, ``sizes``, ``baseline`` and ``reasons`` of a report.
    """
    return [_judge_classes(gate, figures) if not METRICS[gate.metric].path else _judge(gate, figures) for gate in gates]


@dataclass(frozen=True)
class _Reading:
    """A figure at one path, in the gate's unit."""

    path: str
    value: float
    low: float | None
    high: float | None
    outcome: Outcome


def _judge(gate: Gate, figures: Mapping[str, Any]) -> Verdict:
    metric = METRICS[gate.metric]
    found = list(expand(metric.path, figures))
    missing = [path for path in found if look_up(path, figures) is None]
    if missing or not found:
        return _unmeasured(gate, missing[0] if missing else metric.path, figures)
    seen = [_read(metric, gate.limit, path, figures) for path in found]
    outcome = _worst_outcome(one.outcome for one in seen)
    sign = 1 if metric.bound == "ceiling" else -1
    worst = max((one for one in seen if one.outcome == outcome), key=lambda one: sign * one.value)
    is_worst = all(sign * one.value <= sign * worst.value for one in seen)
    since = metric.against == "baseline" and metric.unit == "pp"
    level = look_up("baseline.interval_percent", figures) if since else 95.0
    interval = "" if worst.low is None else f" ({level:g} % interval {worst.low:.3g} to {worst.high:.3g})"
    name = metric.each.format(_starred(metric.path, worst.path))
    where = f" of the {name}{f', the worst of {len(seen)}' if is_worst else ''}" if len(seen) > 1 else ""
    reason = f"{worst.value:.3g} {gate.unit}{interval}{where}; the limit is {metric.words(gate.limit)}"
    needed = (
        _enough(metric, gate.limit, look_up(worst.path.rpartition(".")[0], figures)) if outcome == "unsure" else None
    )
    if outcome == "unsure":
        reason += f"; {_doubt(metric, needed, figures)}"
    return Verdict(gate, worst.value, outcome, reason, needed)


def _read(metric: Metric, limit: float, path: str, figures: Mapping[str, Any]) -> _Reading:
    value = metric.scale * float(look_up(path, figures))
    low, high = look_up(f"{path}_ci95", figures) or (None, None)
    ends = {metric.meets(end, limit) for end in (value if low is None else low, value if high is None else high)}
    outcome: Outcome = "unsure" if len(ends) > 1 else "passed" if ends == {True} else "failed"
    if outcome == "failed" and metric.name == "p99_ms" and _disturbed(limit, figures):
        outcome = "unsure"
    return _Reading(path, value, low, high, outcome)


def _disturbed(limit: float, figures: Mapping[str, Any]) -> bool:
    """A neighbour on the machine makes a p99 of any length; it is no alibi where the median is beyond the limit too."""
    return bool(look_up("latency.noise", figures)) and float(look_up("latency.int8.p50_ms", figures)) <= limit


def _worst_outcome(outcomes: Iterable[Outcome]) -> Outcome:
    order: tuple[Outcome, ...] = ("passed", "unsure", "failed")
    return max(outcomes, key=order.index)


def _unmeasured(gate: Gate, path: str, figures: Mapping[str, Any]) -> Verdict:
    why = why_missing(path, figures)
    if METRICS[gate.metric].against == "baseline":
        return Verdict(gate, None, "unsure", f"cannot tell: {why}")
    return Verdict(gate, None, "failed", f"not measured: {why}")


def _enough(metric: Metric, limit: float, group: Mapping[str, Any]) -> int | None:
    """Images that would decide it, where it is a matter of images."""
    if metric.name == "agreement":
        return images_for_share(group["same"], group["images"], limit)
    if group.get("lost") is not None:
        return images_for_drop(group["lost"], group["gained"], group["total"], limit)
    return None


def _doubt(metric: Metric, needed: int | None, figures: Mapping[str, Any]) -> str:
    if metric.path.startswith("latency") or metric.name == "slowdown_percent":
        disturbed = look_up("latency.noise", figures)
        return f"cannot tell: {disturbed[0]}" if disturbed else "cannot tell: measure again on a quieter machine"
    if metric.against == "baseline" and not look_up("baseline.same_images", figures):
        return f"cannot tell: {why_missing('baseline.same_images', figures)}; on those every image would count"
    images = look_up("accuracy.images", figures)
    with_these = f"cannot tell with {images:,} images" if images else "cannot tell"
    if needed is None:
        return f"{with_these}: it lies too close to the limit"
    return f"{with_these}, about {round_up(needed):,} would do"


def round_up(images: int) -> int:
    """To two digits, as an estimate deserves.

    >>> round_up(1234)
    1300
    """
    step: int = 10 ** max(0, len(str(images)) - 2)
    return -(-images // step) * step


def _judge_classes(gate: Gate, figures: Mapping[str, Any]) -> Verdict:
    """Failed where a class fell further than the limit and, all classes considered, by more than luck."""
    metric = METRICS[gate.metric]
    path = "accuracy.graphs" if metric.against == "fp32" else "baseline.graphs"
    groups = {name: group["classes"] for name, group in (look_up(path, figures) or {}).items()}
    if not groups or any(classes is None for classes in groups.values()):
        return _unmeasured(gate, f"{path}.*.classes", figures)
    fallen = [(row, name) for name, classes in groups.items() for row in classes["falling"]]
    fallen.sort(key=lambda pair: -pair[0]["drop_pp"])
    sure = [(row, name) for row, name in fallen if row["p_holm"] < groups[name]["alpha"]]
    collapsed = [(row, name) for row, name in sure if row["drop_pp"] > gate.limit]
    observed = max((row["drop_pp"] for row, _ in fallen), default=0.0)
    if collapsed:
        told = "; ".join(_class_words(row, name) for row, name in collapsed[:3])
        more = f"; and {len(collapsed) - 3} more" if len(collapsed) > 3 else ""
        return Verdict(gate, observed, "failed", f"{told}{more}; the limit is {metric.words(gate.limit)}")
    first = next(iter(groups.values()))
    if first["least_found"] > first["largest"]:
        words = f"cannot tell with {first['largest']} images a class at most; with {first['least_found']} a loss of all"
        return Verdict(gate, observed, "unsure", f"{words} would just be more than luck")
    worst = f"the largest fall is {_class_words(*fallen[0])}" if fallen else "no class fell"
    return Verdict(gate, observed, "passed", f"{worst}; the limit is {metric.words(gate.limit)}, and more than luck")


def _class_words(row: Mapping[str, Any], graph: str) -> str:
    was, now = f"{row['before']} of {row['total_before']}", f"{row['after']} of {row['total']}"
    return f"{row['name']} from {was} to {now} right in the {graph} graph (p = {row['p_holm']:.2g} over all classes)"


def _starred(pattern: str, path: str) -> str:
    """What stands in a path where the pattern has its star."""
    head, _, tail = pattern.partition("*")
    return path[len(head) : len(path) - len(tail)] if fnmatchcase(path, pattern) else path
