"""Compares a run with an accepted build: accuracy, classes, SQNR, latency, and what was made differently.

On the same images the comparison is paired, image by image. On other images only INT8's drop against FP32 is compared,
with 99.9 % intervals, because each run is a new sample and a run per day would otherwise often raise a false alarm.
Latency is compared as a share of FP32's in the same run, by default only on the same machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgeres.bundle import FP32
from edgeres.graph.forms import FORMS
from edgeres.judge.build_figures import BuildFigures
from edgeres.judge.document import Json, Section, not_measurable, titled
from edgeres.verify.answers import REFERENCE, AnswerTable
from edgeres.verify.classes import ALPHA_UNPAIRED, ClassFalls, paired_falls, unpaired_falls
from edgeres.verify.statistics import (
    Z95,
    Z999,
    Estimate,
    difference,
    holm,
    paired_drop_pp,
    paired_sqnr_loss_db,
    proportion_percent,
    ratio,
)

# Relative standard deviation of a speedup between runs, in addition to that between the blocks of a run; measured, see
# docs/verification.md. A machine was busy where the mean latency is more than BUSY times the median.
RUN_TO_RUN, RUN_TO_RUN_BUSY = 0.01, 0.037
BUSY = 1.1
_MACHINE = ("processor", "system")
_PREPROCESSING = "preprocessing "  # what the facts on preprocessing begin with
DROP = ("drop_pp", "drop_pp_ci95", "lost", "gained", "total")


@dataclass(frozen=True)
class _Pair:
    """The answers of both sides; both have labels of the same classes.

    Attributes:
        names: class names.
        same_images: whether answers can be compared image by image.
        unchanged: the reference and the candidates whose graph, preprocessing and answers are the same as before.
    """

    before: AnswerTable
    now: AnswerTable
    names: tuple[str, ...]
    same_images: bool
    unchanged: frozenset[str]


def regression(before: BuildFigures, now: BuildFigures, *, any_machine: bool = False) -> Section:
    """Compare two builds; figures that cannot be compared are null, with a reason.

    Args:
        any_machine: compare latency between different machines, too.
    """
    reasons: dict[str, str] = {}
    same_images = _same_images(before, now)
    if not same_images:
        description = before.images.description if before.images else "not described"
        reasons["same_images"] = f"{before.name} was measured on other images: {description}"
    why = _not_comparable(before, now)
    pair = None
    if why:
        reasons[""] = why
    elif before.table and now.table and now.class_names:
        # A table that was read back may not have the number of classes.
        table = replace(before.table, num_classes=now.table.num_classes)
        pair = _Pair(table, now.table, now.class_names, same_images, _unchanged(before, now))
    graphs = {name: _graph(name, before, now, pair) for name in (now.table.candidates if now.table else ())}
    slowdown = _slowdown(before, now, any_machine)
    for name, graph in graphs.items():
        reasons |= graph.reasons_below(f"graphs.{name}")
    return Section(
        {
            "same_images": same_images,
            "interval_percent": 95.0 if same_images else 99.9,
            "fp32": _lost(REFERENCE, pair) if pair else None,
            "graphs": {name: graph.content for name, graph in graphs.items()},
            "missing_classes": _missing_classes(pair) if pair else [],
            **slowdown.content,
            "changed": changes(before, now),
        },
        reasons | dict(slowdown.reasons),
    )


def _not_comparable(before: BuildFigures, now: BuildFigures) -> str | None:
    """The reason why accuracy cannot be compared; None where it can."""
    if not (now.table and now.table.labelled and before.table and before.table.labelled):
        return f"{before.name} or {now.name} has no labels"
    known, names = before.class_names, now.class_names or ()
    if known is not None and len(known) != len(names):
        return f"{before.name} has {len(known)} classes, {now.name} has {len(names)}"
    return None


def _same_images(before: BuildFigures, now: BuildFigures) -> bool:
    if before.images is None or now.images is None or before.table is None or now.table is None:
        return False
    return before.images.is_same(now.images) and np.array_equal(before.table.labels, now.table.labels)


def _unchanged(before: BuildFigures, now: BuildFigures) -> frozenset[str]:
    """The reference and the candidates that have not changed: same file, preprocessing, images and answers."""
    if before.table is None or now.table is None or not _same_images(before, now):
        return frozenset()
    old, new = ({k: v for k, v in side.facts.items() if k.startswith(_PREPROCESSING)} for side in (before, now))
    same_file = {
        name
        for name, file in {REFERENCE: FP32, **{name: form.file for name, form in FORMS.items()}}.items()
        if file in now.files and now.files[file] == before.files.get(file) and old == new
    }
    was, is_ = before.table.answers, now.table.answers
    return frozenset(name for name in same_file & was.keys() & is_.keys() if np.array_equal(was[name], is_[name]))


def _lost(name: str, pair: _Pair) -> Json:
    """Top-1 that one graph lost; FP32 loses by a change of the model, the preprocessing or the data alone."""
    counts: Json = dict.fromkeys(("lost", "gained", "total"))
    if pair.same_images:
        before, now, total = pair.before.right(name), pair.now.right(name), pair.now.labelled
        counts = {"lost": int((before & ~now).sum()), "gained": int((now & ~before).sum()), "total": total}
        drop = Estimate(0.0, 0.0, 0.0) if name in pair.unchanged else paired_drop_pp(**counts)
    elif name == REFERENCE:
        right = ((int(table.right(name).sum()), table.labelled) for table in (pair.before, pair.now))
        drop = difference(*(proportion_percent(*counted, Z999) for counted in right))
    else:
        now_drop, drop_before = (table.drop_pp(name, Z999) for table in (pair.now, pair.before))
        assert now_drop and drop_before  # both sides have labels
        drop = difference(now_drop, drop_before)
    unchanged = name in pair.unchanged
    return {"drop_pp": drop.value, "drop_pp_ci95": [drop.low, drop.high], **counts, "unchanged": unchanged}


def _graph(name: str, before: BuildFigures, now: BuildFigures, pair: _Pair | None) -> Section:
    graph: Json = dict.fromkeys((*DROP, "classes", "sqnr_loss_db", "sqnr_loss_db_ci95")) | {"unchanged": False}
    if before.table is None or name not in before.table.candidates:
        return Section(graph, {"": f"{before.name} has no {titled(name)}"})
    reasons = {}
    loss = _sqnr_loss(name, before, now)
    if loss is not None:
        graph |= {"sqnr_loss_db": loss.value, "sqnr_loss_db_ci95": [loss.low, loss.high]}
    else:
        reasons["sqnr_loss_db"] = f"the logit SQNR of {before.name} or {now.name} is not finite"
    if pair:
        graph |= _lost(name, pair) | {"classes": _falls(name, pair).to_dict(pair.names)}
    return Section(graph, reasons)


def _sqnr_loss(name: str, before: BuildFigures, now: BuildFigures) -> Estimate | None:
    """Logit SQNR that a graph lost, image by image where both know the noise of the same images; None: not finite.

    Documents of earlier versions do not have the noise of each image. On the same images the interval, which is then
    that of independent samples, is too wide.
    """
    loss = difference(before.sqnr[name], now.sqnr[name]) if name in before.sqnr and name in now.sqnr else None
    if not _same_images(before, now):
        return loss
    if all(of in side.power for side in (before, now) for of in (REFERENCE, name)):
        was, is_ = ((side.power[REFERENCE], side.power[name]) for side in (before, now))
        return paired_sqnr_loss_db(was, is_, loss.value if loss else None)
    return Estimate(0.0, 0.0, 0.0) if loss and loss.value == 0 and name in _unchanged(before, now) else loss


def _falls(name: str, pair: _Pair) -> ClassFalls:
    before, now = pair.before, pair.now
    if pair.same_images:
        return paired_falls(now.labels, before.right(name), now.right(name), now.num_classes)
    return unpaired_falls(before.hits(name), before.class_sizes, now.hits(name), now.class_sizes)


def _missing_classes(pair: _Pair) -> list[Json]:
    """Classes that had images before and have none now, where that cannot be chance."""
    before, now = pair.before.class_sizes, pair.now.class_sizes
    present = np.flatnonzero(before).tolist()
    p_values = [float((1 - before[c] / before.sum()) ** pair.now.labelled) for c in present]
    return [
        {"class": c, "name": pair.names[c], "before": int(before[c])}
        for c, p in zip(present, holm(p_values), strict=True)
        if now[c] == 0 and p < ALPHA_UNPAIRED
    ]


def _slowdown(before: BuildFigures, now: BuildFigures, any_machine: bool) -> Section:
    """Change of INT8's latency in per cent, each in units of FP32's latency in the same run."""
    machine_before, machine_now = ([side.environment.get(key) for key in _MACHINE] for side in (before, now))
    why = None
    if now.latency["speedup"] is None:
        why = "latency was not measured in this run"
    elif before.latency["speedup"] is None:
        why = f"{before.name} has no latency"
    elif doubt := next((side for side in (now, before) if not_measurable(side.latency)), None):
        why = f"the speedup of {doubt.name} is {not_measurable(doubt.latency)}"
    elif before.latency["scope"] != now.latency["scope"]:
        why = f"latency of {before.name} is {before.latency['scope']}, of {now.name} {now.latency['scope']}"
    elif machine_before != machine_now and not any_machine:
        why = f"{before.name} was timed on another machine ({machine_before[0]}); --any-machine compares anyway"
    if why:
        return Section({"slowdown_percent": None, "slowdown_percent_ci95": None}, {"slowdown_percent": why})
    slower = ratio(*(_between_runs(side.latency) for side in (before, now)))
    percents = [100 * (factor - 1) for factor in (slower.value, slower.low, slower.high)]
    return Section({"slowdown_percent": percents[0], "slowdown_percent_ci95": percents[1:]})


def _between_runs(measured: Mapping[str, Any]) -> Estimate:
    """A speedup with its interval widened by the variation between runs."""
    low, high = measured["speedup_ci95"]
    spread = Z95 * (RUN_TO_RUN_BUSY if was_busy(measured) else RUN_TO_RUN)
    value: float = measured["speedup"]
    below, above = (math.hypot(math.log(high / low), spread) for low, high in ((low, value), (value, high)))
    return Estimate(value, value * math.exp(-below), value * math.exp(above))


def was_busy(measured: Mapping[str, Any]) -> bool:
    """Whether other processes slowed the measurement down; ``measured`` is a section ``latency`` with figures."""
    times, batch = (measured["fp32"], measured["int8"]), measured["batch"]
    return any(1e3 * batch / time["throughput_ips"] > BUSY * time["p50_ms"] for time in times)


def changes(before: BuildFigures, now: BuildFigures) -> list[Json]:
    """Differences of the builds' facts and of the runs' versions, as ``what``, ``before`` and ``after``."""
    old, new = (
        {**side.facts, **{f"version of {name}": v for name, v in side.environment.items()}} for side in (before, now)
    )
    if before.images is not None and now.images is not None and not before.images.is_same(now.images):
        old["validation images"], new["validation images"] = before.images.sha256, now.images.sha256
    rows = ({"what": name, "before": old.get(name), "after": new.get(name)} for name in dict.fromkeys((*old, *new)))
    return [row for row in rows if row["before"] != row["after"]]
