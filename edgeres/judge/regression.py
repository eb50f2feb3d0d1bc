"""This run against the last accepted build: what it lost, which classes fell, how much slower it is, what was changed.

On the same images the comparison is paired, image by image. On other images only figures that were paired in
themselves are compared (INT8's drop against FP32, then and now), with 99.9 % intervals: every run draws other images,
and a run a day should not cry once a month. Latency is compared as a share of FP32's in the same run, and only on the
machine of the baseline unless asked otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgeres.judge.document import Json, Section
from edgeres.judge.standing import Standing
from edgeres.verify.answers import REFERENCE, AnswerTable
from edgeres.verify.classes import ALPHA_UNPAIRED, ClassFalls, paired_falls, unpaired_falls
from edgeres.verify.statistics import Z95, Z999, Estimate, difference, holm, paired_drop_pp, proportion_percent, ratio

# Relative standard deviation of a speedup from run to run, beyond what blocks within a run show: other neighbours
# leave other caches. Measured, see docs/verification.md. A run is crowded where the mean latency is so much longer than
# the median: the difference is what others took.
RUN_TO_RUN, RUN_TO_RUN_CROWDED = 0.01, 0.037
CROWDED = 1.1
_MACHINE = ("processor", "system")
_DROP = ("drop_pp", "drop_pp_ci95", "lost", "gained", "total")


@dataclass(frozen=True)
class _Pair:
    """The answers of both sides, which both have labels for the same classes.

    Attributes:
        names: of the classes.
        same_images: whether answers can be compared image by image.
    """

    before: AnswerTable
    now: AnswerTable
    names: tuple[str, ...]
    same_images: bool


def regression(before: Standing, now: Standing, *, any_machine: bool = False) -> Section:
    """What ``now`` lost against ``before``; what cannot be compared is null, with its reason.

    Args:
        any_machine: compare latency with that of another machine, too.
    """
    reasons: dict[str, str] = {}
    same_images = _same_images(before, now)
    if not same_images:
        told = before.images.description if before.images else "others"
        reasons["same_images"] = f"{before.called} was measured on other images: {told}"
    why = _not_comparable(before, now)
    pair = None
    if why:
        reasons[""] = why
    elif before.table and now.table and now.class_names:
        # A table that was read back may not know how many classes there are.
        pair = _Pair(replace(before.table, num_classes=now.table.num_classes), now.table, now.class_names, same_images)
    graphs = {name: _graph(name, before, now, pair) for name in (now.table.candidates if now.table else ())}
    slowdown = _slowdown(before, now, any_machine)
    for name, graph in graphs.items():
        reasons |= graph.reasons_below(f"graphs.{name}")
    return Section(
        {
            "same_images": same_images,
            "interval_percent": 95.0 if same_images else 99.9,
            "fp32": _fp32(pair) if pair else None,
            "graphs": {name: graph.content for name, graph in graphs.items()},
            "missing_classes": _missing_classes(pair) if pair else [],
            **slowdown.content,
            "changed": changes(before, now),
        },
        reasons | dict(slowdown.reasons),
    )


def _not_comparable(before: Standing, now: Standing) -> str | None:
    """Why there is no drop of accuracy between the two."""
    if not (now.table and now.table.labelled and before.table and before.table.labelled):
        return "there are no labels on both sides"
    known, names = before.class_names, now.class_names or ()
    if known is not None and len(known) != len(names):
        return f"{before.called} has {len(known)} classes, this model {len(names)}"
    return None


def _same_images(before: Standing, now: Standing) -> bool:
    if before.images is None or now.images is None or before.table is None or now.table is None:
        return False
    return before.images.sha256 == now.images.sha256 and np.array_equal(before.table.labels, now.table.labels)


def _fp32(pair: _Pair) -> Json:
    """FP32's top-1 lost: model, preprocessing or data have changed, not the quantization."""
    if pair.same_images:
        return _paired(pair, REFERENCE)
    shares = (
        proportion_percent(int(table.right(REFERENCE).sum()), table.labelled, Z999) for table in (pair.before, pair.now)
    )
    return _drop(difference(*shares))


def _paired(pair: _Pair, name: str) -> Json:
    before, now, total = pair.before.right(name), pair.now.right(name), pair.now.labelled
    lost, gained = int((before & ~now).sum()), int((now & ~before).sum())
    return _drop(paired_drop_pp(lost, gained, total)) | {"lost": lost, "gained": gained, "total": total}


def _drop(drop: Estimate) -> Json:
    return dict.fromkeys(_DROP) | {"drop_pp": drop.value, "drop_pp_ci95": [drop.low, drop.high]}


def _graph(name: str, before: Standing, now: Standing, pair: _Pair | None) -> Section:
    graph: Json = dict.fromkeys((*_DROP, "classes", "sqnr_loss_db", "sqnr_loss_db_ci95"))
    if before.table is None or name not in before.table.candidates:
        return Section(graph, {"": f"{before.called} has no {name} graph"})
    reasons = {}
    if name in before.sqnr and name in now.sqnr:
        # The two intervals are taken as independent, which on the same images is on the safe side.
        loss = difference(before.sqnr[name], now.sqnr[name])
        graph |= {"sqnr_loss_db": loss.value, "sqnr_loss_db_ci95": [loss.low, loss.high]}
    else:
        reasons["sqnr_loss_db"] = "one of the two logit SQNR is not finite"
    if pair:
        graph |= _int8(name, pair) | {"classes": _falls(name, pair).to_dict(pair.names)}
    return Section(graph, reasons)


def _int8(name: str, pair: _Pair) -> Json:
    if pair.same_images:
        return _paired(pair, name)
    now, before = (table.drop_pp(name, Z999) for table in (pair.now, pair.before))
    assert now is not None and before is not None  # both sides have labels
    return _drop(difference(now, before))


def _falls(name: str, pair: _Pair) -> ClassFalls:
    before, now = pair.before, pair.now
    if pair.same_images:
        return paired_falls(now.labels, before.right(name), now.right(name), now.num_classes)
    return unpaired_falls(before.hits(name), before.class_sizes, now.hits(name), now.class_sizes)


def _missing_classes(pair: _Pair) -> list[Json]:
    """Classes that the images of before had and these lack, where chance is out of the question."""
    before, now = pair.before.class_sizes, pair.now.class_sizes
    had = np.flatnonzero(before).tolist()
    chances = [float((1 - before[c] / before.sum()) ** pair.now.labelled) for c in had]
    return [
        {"class": c, "name": pair.names[c], "before": int(before[c])}
        for c, p in zip(had, holm(chances), strict=True)
        if now[c] == 0 and p < ALPHA_UNPAIRED
    ]


def _slowdown(before: Standing, now: Standing, any_machine: bool) -> Section:
    """How much longer INT8 takes, in units of FP32 on the same machine in the same run."""
    machine, here = ([side.environment.get(key) for key in _MACHINE] for side in (before, now))
    why = None
    if now.latency["speedup"] is None:
        why = "latency was not measured in this run"
    elif before.latency["speedup"] is None:
        why = f"{before.called} holds no latency"
    elif before.latency["scope"] != now.latency["scope"]:
        why = f"{before.called}'s latency is {before.latency['scope']}, this one {now.latency['scope']}"
    elif machine != here and not any_machine:
        why = f"{before.called} was timed on another machine ({machine[0]}); --any-machine compares all the same"
    if why:
        return Section({"slowdown_percent": None, "slowdown_percent_ci95": None}, {"slowdown_percent": why})
    slower = ratio(*(_from_run_to_run(side.latency) for side in (before, now)))
    percents = [100 * (limit - 1) for limit in (slower.value, slower.low, slower.high)]
    return Section({"slowdown_percent": percents[0], "slowdown_percent_ci95": percents[1:]})


def _from_run_to_run(measured: Mapping[str, Any]) -> Estimate:
    """A speedup with an interval that also holds for another run."""
    low, high = measured["speedup_ci95"]
    spread = Z95 * (RUN_TO_RUN_CROWDED if crowded(measured) else RUN_TO_RUN)
    value: float = measured["speedup"]
    below, above = (math.hypot(math.log(high / low), spread) for low, high in ((low, value), (value, high)))
    return Estimate(value, value * math.exp(-below), value * math.exp(above))


def crowded(measured: Mapping[str, Any]) -> bool:
    """Whether others took so much of the machine that it shows; of a section ``latency`` that was measured."""
    return any(_mean_ms(measured, name) > CROWDED * measured[name]["p50_ms"] for name in ("fp32", "int8"))


def _mean_ms(measured: Mapping[str, Any], name: str) -> float:
    mean: float = 1e3 * measured["batch"] / measured[name]["throughput_ips"]
    return mean


def changes(before: Standing, now: Standing) -> list[Json]:
    """What was made or measured differently: facts of the build and versions of the run, as (what, before, after)."""
    old, new = (
        {**side.facts, **{f"version of {name}": v for name, v in side.environment.items()}} for side in (before, now)
    )
    if before.images is not None and now.images is not None:
        old["validation images"], new["validation images"] = before.images.sha256, now.images.sha256
    names = dict.fromkeys((*old, *new))
    return [
        {"what": name, "before": old.get(name), "after": new.get(name)}
        for name in names
        if old.get(name) != new.get(name)
    ]
