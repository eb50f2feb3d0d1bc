"""Gates: limits on the figures of report.json, each with one of three outcomes.

Each row of :data:`METRICS` is a figure that can be limited: its path in report.json, its unit, and which side of a
limit is good. A ``*`` in the path stands for every graph in the bundle: all have to pass, and the worst is named.

A figure that was measured on a sample has an interval:

    passed   the whole interval is on the good side of the limit (or the figure itself, where it has no interval)
    failed   the whole interval is on the other side
    unsure   the limit is inside the interval, so this number of images does not decide
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from edgeres.errors import UsageError
from edgeres.judge.document import expand, look_up, not_measurable, titled, why_missing
from edgeres.records import Gate, Outcome, Verdict
from edgeres.verify.statistics import Estimate, images_for_drop, images_for_mean, images_for_share


@dataclass(frozen=True)
class Metric:
    """A figure that a gate can limit.

    Attributes:
        title: the figure's name in messages.
        bound: a ceiling passes at or below the limit, a floor at or above it.
        path: dotted path of the figure in report.json; its interval has the same path with ``_ci95``.
        option: field of :class:`Limits` that sets the limit.
        each: what a ``*`` in the path stands for, in words; "": a graph or an engine, by its name.
        scale: factor between the figure in report.json and the limit, e.g. from bytes to megabytes.
        against: what INT8 is compared with. A missing figure leaves the gate unsure for ``baseline``, else it fails.
        labelled: whether the gate is left out where there are no labels; one without a default is asked for, and fails.
    """

    name: str
    title: str
    bound: Literal["ceiling", "floor"]
    unit: str
    path: str
    option: str
    each: str = ""
    scale: float = 1.0
    against: Literal["fp32", "baseline", "nothing"] = "fp32"
    labelled: bool = False

    def meets(self, value: float, limit: float) -> bool:
        return value <= limit if self.bound == "ceiling" else value >= limit

    def words(self, limit: float) -> str:
        return f"{'at most' if self.bound == 'ceiling' else 'at least'} {limit:g} {self.unit}".rstrip()

    def shown(self, value: float) -> str:
        """A figure without its unit; one without a unit is a share near 1, of which three digits say little."""
        return f"{value:.3g}" if self.unit else f"{value:.5g}"


_BASE = "baseline.graphs.*"
METRICS = {
    metric.name: metric
    for metric in (
        Metric("drop_pp", "top-1 drop", "ceiling", "pp", "accuracy.graphs.*.drop_pp", "max_drop", labelled=True),
        Metric("class_drop_pp", "class drop", "ceiling", "pp", "", "max_class_drop", labelled=True),
        Metric("agreement", "agreement", "floor", "%", "accuracy.graphs.*.agreement", "min_agreement"),
        Metric("top1", "top-1", "floor", "%", "accuracy.graphs.*.top1", "min_top1", against="nothing"),
        Metric("speedup", "speedup", "floor", "x", "latency.speedup", "min_speedup"),
        Metric(
            "speedup_fp16",
            "speedup over FP16",
            "floor",
            "x",
            "latency.speedup_fp16",
            "min_speedup_fp16",
            against="nothing",
        ),
        Metric("p99_ms", "INT8 p99", "ceiling", "ms", "latency.int8.p99_ms", "max_p99_ms", against="nothing"),
        Metric("size_mb", "size", "ceiling", "MB", "sizes.deployed_bytes.*", "max_size_mb", "{}", 1e-6, "nothing"),
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
class SpeedupLimits:
    """The least speedups of INT8; None sets no gate.

    Attributes:
        min_speedup: FP32's p50 latency over INT8's, in one run.
        min_speedup_fp16: FP16's p50 latency over INT8's, in one run, where engines of both run.
    """

    min_speedup: float | None = None
    min_speedup_fp16: float | None = None


@dataclass(frozen=True)
class Limits:
    """The limits of a run; None sets no gate. Units: percentage points, per cent, ratios, milliseconds, MB, dB.

    Attributes:
        max_drop: top-1 lost against FP32.
        max_class_drop: top-1 lost by any class, against FP32 and against the baseline; the loss must be significant.
        min_agreement: images that FP32 and INT8 put into the same class.
        min_top1: labelled images that every INT8 graph gets right.
        speedups: of INT8 over FP32 and over FP16.
        max_p99_ms: INT8's p99 latency.
        max_size_mb: size of each INT8 graph and engine.
        max_regression: top-1 lost against the baseline, by INT8 and by FP32 itself.
        max_sqnr_loss: logit SQNR lost against the baseline.
        max_slowdown: INT8's latency against the baseline's, each as a share of FP32's in its own run.
    """

    max_drop: float | None = 1.0
    max_class_drop: float | None = 10.0
    min_agreement: float | None = None
    min_top1: float | None = None
    speedups: SpeedupLimits = SpeedupLimits()
    max_p99_ms: float | None = None
    max_size_mb: float | None = None
    max_regression: float | None = 0.5
    max_sqnr_loss: float | None = 3.0
    max_slowdown: float | None = 15.0

    def __post_init__(self) -> None:
        """Raise UsageError where a limit is not finite, is below zero, or asks for more than all images."""
        for metric in METRICS.values():
            limit = self.limit(metric.option)
            if limit is None:
                continue
            gate(metric.name, limit)
            if limit < 0:
                raise UsageError(f"{limit:g} is below zero", where=metric.option, hint="write 1 for a loss of 1 pp")
            if metric.name == "agreement" and limit > 100:
                raise UsageError(f"{limit:g} % is more than all images", where=metric.option, hint="write at most 100")

    def gates(self, *, baseline: bool = False, labels: bool = True) -> tuple[Gate, ...]:
        """The gates that are set.

        Args:
            baseline: whether there is a baseline; False leaves out the gates that need one.
            labels: whether images have labels; False leaves out those with ``labelled``.
        """
        return tuple(
            gate(metric.name, limit)
            for metric in METRICS.values()
            if (baseline or metric.against != "baseline") and (labels or not metric.labelled)
            if (limit := self.limit(metric.option)) is not None
        )

    def limit(self, option: str) -> float | None:
        """The limit that an option sets, by the option's name."""
        found: float | None = getattr(self.speedups if option in _SPEEDUPS else self, option)
        return found

    @staticmethod
    def of(**values: float | None) -> Limits:
        """Limits by the names of their options, :data:`LIMITS`."""
        own = {name: value for name, value in values.items() if name not in _SPEEDUPS}
        speedups = {name: value for name, value in values.items() if name in _SPEEDUPS}
        return Limits(**own, speedups=SpeedupLimits(**speedups))


_SPEEDUPS = tuple(f.name for f in fields(SpeedupLimits))
# The figures that every network has, whatever its outputs are for.
COMMON = ("speedup", "speedup_fp16", "p99_ms", "size_mb")
LIMITS = tuple(dict.fromkeys(metric.option for metric in METRICS.values()))
_WORSE: tuple[Outcome, ...] = ("passed", "unsure", "failed")  # the worst last


def gate(metric: str, limit: float) -> Gate:
    """A gate on one of :data:`METRICS`.

    Raises:
        UsageError: there is no such metric, or the limit is not a number, or none that the figure can be near.
    """
    if metric not in METRICS:
        raise UsageError(f"there is no metric {metric!r} to limit", hint=f"choose one of {', '.join(METRICS)}")
    if not math.isfinite(limit):
        raise UsageError(f"{limit} is not a limit for {metric}")
    if metric == "top1" and not 1 < limit <= 100:
        raise UsageError(f"{limit:g} is no top-1 in per cent", where="min_top1", hint="write 90 for 90 %")
    return Gate(metric, float(limit), METRICS[metric].unit)


def judge_gates(
    gates: Iterable[Gate], figures: Mapping[str, Any], metrics: Mapping[str, Metric] = METRICS
) -> list[Verdict]:
    """Compare the figures and their intervals with the limits.

    A gate fails where its figure was not measured, and is unsure where the figure cannot be compared with the
    baseline; the reason says why.

    Args:
        figures: the sections ``accuracy``, ``latency``, ``sizes``, ``baseline`` and ``reasons`` of a report.
        metrics: what is limited, by the names in the gates.
    """
    pairs = ((gate, metrics[gate.metric]) for gate in gates)
    return [_judge(gate, metric, figures) if metric.path else _judge_classes(gate, figures) for gate, metric in pairs]


@dataclass(frozen=True)
class _Reading:
    """A figure at one path, in the gate's unit."""

    path: str
    value: float
    low: float | None
    high: float | None
    outcome: Outcome


def _judge(gate: Gate, metric: Metric, figures: Mapping[str, Any]) -> Verdict:
    paths = expand(metric.path, figures)
    missing = [path for path in paths if look_up(path, figures) is None]
    if missing or not paths:
        return _unmeasured(gate, metric, missing[0] if missing else metric.path, figures)
    readings = [_read(metric, gate.limit, path, figures) for path in paths]
    outcome = max((reading.outcome for reading in readings), key=_WORSE.index)
    sign = 1 if metric.bound == "ceiling" else -1
    worst = max((reading for reading in readings if reading.outcome == outcome), key=lambda r: sign * r.value)
    is_worst = all(sign * reading.value <= sign * worst.value for reading in readings)
    since = metric.against == "baseline" and metric.unit == "pp"
    level = look_up("baseline.interval_percent", figures) if since else 95.0
    interval = ""
    if worst.low is not None and worst.high is not None:
        interval = f" ({level:g} % interval {metric.shown(worst.low)} to {metric.shown(worst.high)})"
    head, _, tail = metric.path.partition("*")
    part = worst.path.removeprefix(head).removesuffix(tail)
    name = metric.each.format(part) if metric.each else titled(part)
    where = f" of the {name}{f', the worst of {len(readings)}' if is_worst else ''}" if len(readings) > 1 else ""
    figure = f"{metric.shown(worst.value)} {gate.unit}".rstrip() + f"{interval}{where}"
    if since and all(look_up(f"{path.rpartition('.')[0]}.unchanged", figures) for path in paths):
        figure = f"0 {gate.unit}: exactly unchanged, the same graph gives the same answers to the same images"
    reason = f"{figure}; the limit is {metric.words(gate.limit)}"
    if outcome != "unsure":
        return Verdict(gate, worst.value, outcome, reason)
    if metric.path.startswith("latency") or metric.name == "slowdown_percent":
        return Verdict(gate, worst.value, outcome, f"{reason}; {_why_no_time(metric, figures)}")
    if metric.against == "baseline" and not look_up("baseline.same_images", figures):
        why = f"{why_missing('baseline.same_images', figures)}; validate on those images to compare image by image"
        return Verdict(gate, worst.value, outcome, f"{reason}; {why}")
    needed = _images_needed(metric, gate.limit, figures, worst.path)
    counts = _counts(metric, look_up(worst.path.rpartition(".")[0], figures))
    shown = figure.replace(" (", ", ").replace(")", "," if where else "")
    told = _to_prove(metric, gate.limit, worst.value, needed, counts) + (f" ({shown})" if counts else "")
    return Verdict(gate, worst.value, outcome, f"{counts or figure}; {told}", needed)


def _read(metric: Metric, limit: float, path: str, figures: Mapping[str, Any]) -> _Reading:
    value = metric.scale * float(look_up(path, figures))
    low, high = look_up(f"{path}_ci95", figures) or (None, None)
    ends = {metric.meets(end, limit) for end in (value if low is None else low, value if high is None else high)}
    outcome: Outcome = "unsure" if len(ends) > 1 else "passed" if ends == {True} else "failed"
    if outcome == "failed" and metric.name == "p99_ms" and _disturbed(limit, figures):
        outcome = "unsure"
    if metric.name == "speedup" and not_measurable(look_up("latency", figures)):
        outcome = "unsure"
    if metric.name == "slowdown_percent" and outcome == "unsure" and (low or 0) <= 0 and _same_build(figures):
        outcome = "passed"
    return _Reading(path, value, low, high, outcome)


def _disturbed(limit: float, figures: Mapping[str, Any]) -> bool:
    """Whether only the p99, but not the median, is above the limit in a run that other processes disturbed."""
    return bool(look_up("latency.noise", figures)) and float(look_up("latency.int8.p50_ms", figures)) <= limit


def _unmeasured(gate: Gate, metric: Metric, path: str, figures: Mapping[str, Any]) -> Verdict:
    why = why_missing(path, figures)
    if metric.against == "baseline":
        return Verdict(gate, None, "unsure", f"not comparable: {why}")
    return Verdict(gate, None, "failed", f"not measured: {why}")


def _images_needed(metric: Metric, limit: float, figures: Mapping[str, Any], path: str) -> int | None:
    """Number of images that would decide the gate, by the formula of its own figure; None where there is none."""
    group = look_up(path.rpartition(".")[0], figures)
    if metric.name == "top1":
        return images_for_share(group["correct"], group["total"], limit)
    if metric.name == "agreement":
        return images_for_share(group["same"], group["images"], limit)
    if metric.unit == "pp" and group.get("lost") is not None:
        return images_for_drop(group["lost"], group["gained"], group["total"], limit)
    if metric.name == "sqnr_loss_db" and look_up("baseline.same_images", figures):
        loss = Estimate(group["sqnr_loss_db"], *group["sqnr_loss_db_ci95"])
        return images_for_mean(loss, look_up("accuracy.images", figures), limit)
    if metric.name not in METRICS and (limits := look_up(f"{path}_ci95", figures)) is not None:
        return images_for_mean(Estimate(look_up(path, figures), *limits), group["images"], limit)
    return None


def _same_build(figures: Mapping[str, Any]) -> bool:
    """Whether graphs and answers are the baseline's, on the same versions: then only the machine can be slower."""
    fp32, graphs = (look_up(f"baseline.{name}", figures) for name in ("fp32", "graphs"))
    rows = [fp32, *(graphs or {}).values()]
    versions = [row for row in look_up("baseline.changed", figures) or () if row["what"].startswith("version of ")]
    return not versions and all(row and row.get("unchanged") for row in rows)


def _why_no_time(metric: Metric, figures: Mapping[str, Any]) -> str:
    """Why a latency is not certain."""
    if metric.name == "speedup" and (why := not_measurable(look_up("latency", figures))):
        return why
    noise = look_up("latency.noise", figures)
    return f"not certain: {noise[0] if noise else 'measure again on a machine with less load'}"


def _counts(metric: Metric, group: Mapping[str, Any]) -> str:
    """``2 of 318 images lost, 1 gained``; "" where the figure is no drop, or is not counted image by image."""
    if metric.unit != "pp" or group.get("lost") is None:
        return ""
    gained = f", {group['gained']:,} gained" if group["gained"] else ""
    return f"{group['lost']:,} of {group['total']:,} images lost{gained}"


def _to_prove(metric: Metric, limit: float, value: float, needed: int | None, counts: str) -> str:
    """How many images would decide a gate, and what they would prove."""
    proved = f"{'less' if value < limit else 'more'} than {limit:g} {metric.unit}".rstrip()
    if needed is None:
        return f"no practical number of images proves {proved}: the figure is too close to the limit"
    images = "" if counts else " images"
    both = ", in the baseline too," if metric.against == "baseline" else ""
    return f"{round_up(needed):,}{images}{both} are needed to prove {proved}"


def round_up(images: int) -> int:
    """Round up to two significant digits.

    >>> round_up(1234)
    1300
    """
    step: int = 10 ** max(0, len(str(images)) - 2)
    return -(-images // step) * step


def _judge_classes(gate: Gate, figures: Mapping[str, Any]) -> Verdict:
    """The gate fails where a class lost more than the limit, and the loss is significant over all classes."""
    metric = METRICS[gate.metric]
    path = "accuracy.graphs" if metric.against == "fp32" else "baseline.graphs"
    groups = {name: group["classes"] for name, group in (look_up(path, figures) or {}).items()}
    if not groups or any(classes is None for classes in groups.values()):
        return _unmeasured(gate, metric, f"{path}.*.classes", figures)
    fallen = [(row, name) for name, classes in groups.items() for row in classes["falling"]]
    fallen.sort(key=lambda pair: -pair[0]["drop_pp"])
    significant = [(row, name) for row, name in fallen if row["p_holm"] < groups[name]["alpha"]]
    beyond = [(row, name) for row, name in significant if row["drop_pp"] > gate.limit]
    observed = max((row["drop_pp"] for row, _ in fallen), default=0.0)
    if beyond:
        losses = "; ".join(_class_words(row, name) for row, name in beyond[:3])
        more = f"; and {len(beyond) - 3} more" if len(beyond) > 3 else ""
        return Verdict(gate, observed, "failed", f"{losses}{more}; the limit is {metric.words(gate.limit)}")
    unchanged = [look_up(f"{path}.{name}.unchanged", figures) for name in groups]
    if metric.against == "baseline" and all(unchanged):
        return Verdict(gate, observed, "passed", "exactly unchanged: the same answers to the same images")
    first = next(iter(groups.values()))
    if first["least_found"] > first["largest"]:
        words = f"not certain with at most {first['largest']} images per class: a loss is significant from"
        return Verdict(gate, observed, "unsure", f"{words} {first['least_found']} images on, all of them lost")
    worst = f"the largest loss is {_class_words(*fallen[0])}" if fallen else "no class lost accuracy"
    limit = f"the limit is {metric.words(gate.limit)} where the loss is significant"
    return Verdict(gate, observed, "passed", f"{worst}; {limit}")


def _class_words(row: Mapping[str, Any], graph: str) -> str:
    before, after = f"{row['before']} of {row['total_before']}", f"{row['after']} of {row['total']}"
    p = f"(p = {row['p_holm']:.2g} over all classes)"
    return f"{row['name']} from {before} to {after} right in the {titled(graph)} {p}"
