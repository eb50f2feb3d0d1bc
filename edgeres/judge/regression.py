"""This run against the last accepted build: what it lost, which classes fell, how much slower it is, what was changed.

On the same images the comparison is paired, image by image. On other images only figures that were paired in
themselves are compared (INT8's drop against FP32, then and now), with 99.9 % intervals: every run draws other images,
and a run a day should not cry once a month. Latency is compared as a share of FP32's in the same run, and only on the
machine of the baseline unless asked otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeres.judge.baseline import Baseline, Then
from edgeres.verify.accuracy import Comparison
from edgeres.verify.classes import ALPHA_OTHERS, ClassFalls, paired_falls, unpaired_falls
from edgeres.verify.statistics import Z95, Z999, Estimate, difference, holm, paired_drop_pp, proportion_percent, ratio

Json = dict[str, Any]

# Relative standard deviation of a speedup from run to run, beyond what blocks within a run show: other neighbours
# leave other caches. Measured, see docs/verification.md. A run is crowded where the mean latency is so much longer than
# the median: the difference is what others took.
RUN_TO_RUN, RUN_TO_RUN_CROWDED = 0.01, 0.037
CROWDED = 1.1
_MACHINE = ("processor", "system")
_DROP = ("drop_pp", "drop_pp_ci95", "lost", "gained", "total")


@dataclass(frozen=True)
class Run:
    """What is held against a baseline.

    Attributes:
        validation: SHA-256 of what identifies the images.
        labels: class names in the order of the outputs.
        latency, environment, facts: as in the report.
    """

    comparison: Comparison | None
    validation: str | None
    labels: tuple[str, ...]
    latency: Mapping[str, Any]
    environment: Mapping[str, str]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class _Pair:
    """Then and now.

    Attributes:
        same_images: whether answers can be compared image by image.
        comparable: whether there are labels on both sides, of equally many classes.
    """

    document: Mapping[str, Any]
    then: Then
    run: Run
    same_images: bool
    comparable: bool


def hold_against(baseline: Baseline | None, run: Run, reasons: dict[str, str]) -> Json | None:
    """The section ``baseline`` of a report; what cannot be compared is null, with its reason in ``reasons``."""
    if baseline is None:
        return None
    document, then, comparison = baseline.document, Then.of(baseline.document), run.comparison
    same_images = _same_images(document, then, run)
    pair = _Pair(document, then, run, same_images, _comparable(document, then, run, reasons))
    if not same_images:
        told = (document["validation"] or {}).get("description", "others")
        reasons["baseline.same_images"] = f"the baseline was measured on other images: {told}"
    return {
        "file": baseline.where,
        "accepted": document["accepted"],
        "same_images": same_images,
        "interval_percent": 95.0 if same_images else 99.9,
        "fp32": _fp32(pair) if pair.comparable else None,
        "graphs": {name: _graph(name, pair, reasons) for name in comparison.candidates} if comparison else {},
        "missing_classes": _missing_classes(pair) if pair.comparable else [],
        **_slowdown(baseline, run, reasons),
        "changed": changes(document, run),
    }


def _comparable(document: Mapping[str, Any], then: Then, run: Run, reasons: dict[str, str]) -> bool:
    if run.comparison is None or not run.comparison.labelled or not (then.labels >= 0).any():
        reasons.setdefault("baseline", "there are no labels on both sides")
        return False
    before = len(document["facts"].get("labels", run.labels))
    if before != len(run.labels):
        reasons["baseline"] = f"the baseline has {before} classes, this model {len(run.labels)}"
        return False
    return True


def _same_images(document: Mapping[str, Any], then: Then, run: Run) -> bool:
    if run.comparison is None or run.validation is None or document["validation"] is None:
        return False
    same = run.validation == document["validation"]["sha256"]
    return same and np.array_equal(then.labels, run.comparison.labels)


def _fp32(pair: _Pair) -> Json:
    """FP32's top-1 lost: model, preprocessing or data have changed, not the quantization."""
    assert pair.run.comparison is not None
    comparison, then = pair.run.comparison, pair.then
    now = comparison.right(comparison.reference)
    known = then.labels >= 0
    before = (then.answers["fp32"] == then.labels) & known
    if pair.same_images:
        return _paired(before, now, int(known.sum()))
    shares = (
        proportion_percent(int(before.sum()), int(known.sum()), Z999),
        proportion_percent(int(now.sum()), comparison.labelled, Z999),
    )
    return _drop(difference(*shares))


def _paired(before: npt.NDArray[np.bool_], now: npt.NDArray[np.bool_], total: int) -> Json:
    lost, gained = int((before & ~now).sum()), int((now & ~before).sum())
    return _drop(paired_drop_pp(lost, gained, total)) | {"lost": lost, "gained": gained, "total": total}


def _drop(drop: Estimate) -> Json:
    return dict.fromkeys(_DROP) | {"drop_pp": drop.value, "drop_pp_ci95": [drop.low, drop.high]}


def _graph(name: str, pair: _Pair, reasons: dict[str, str]) -> Json:
    path = f"baseline.graphs.{name}"
    graph: Json = dict.fromkeys((*_DROP, "classes", "sqnr_loss_db", "sqnr_loss_db_ci95"))
    if name not in pair.document["accuracy"]["graphs"]:
        reasons[path] = f"the baseline has no {name} graph"
        return graph
    loss = _sqnr_loss(name, pair)
    if loss is None:
        reasons[f"{path}.sqnr_loss_db"] = "one of the two logit SQNR is not finite"
    else:
        graph |= {"sqnr_loss_db": loss.value, "sqnr_loss_db_ci95": [loss.low, loss.high]}
    if pair.comparable:
        graph |= _int8(name, pair) | {"classes": _falls(name, pair).to_dict(pair.run.labels)}
    return graph


def _int8(name: str, pair: _Pair) -> Json:
    assert pair.run.comparison is not None
    comparison, then = pair.run.comparison, pair.then
    now = comparison.right(comparison.candidates[name])
    if pair.same_images:
        before = (then.answers[name] == then.labels) & (then.labels >= 0)
        return _paired(before, now, comparison.labelled)
    old = pair.document["accuracy"]["graphs"][name]
    drops = (
        paired_drop_pp(len(comparison.lost(name)), len(comparison.gained(name)), comparison.labelled, Z999),
        paired_drop_pp(old["lost"], old["gained"], old["total"], Z999),
    )
    return _drop(difference(*drops))


def _falls(name: str, pair: _Pair) -> ClassFalls:
    assert pair.run.comparison is not None
    comparison, then = pair.run.comparison, pair.then
    answers = comparison.candidates[name]
    if pair.same_images:
        before = (then.answers[name] == then.labels) & (then.labels >= 0)
        return paired_falls(then.labels, before, comparison.right(answers), comparison.num_classes)
    classes = comparison.num_classes
    now = comparison.per_class(answers), comparison.class_sizes
    return unpaired_falls(then.hits(name, classes), then.sizes(classes), *now)


def _sqnr_loss(name: str, pair: _Pair) -> Estimate | None:
    """Decibels lost; the two intervals are taken as independent, which on the same images is on the safe side."""
    assert pair.run.comparison is not None
    old, new = pair.document["accuracy"]["graphs"][name], pair.run.comparison.candidates[name]
    if old["logit_sqnr_db"] is None or new.sqnr_db is None or not math.isfinite(new.sqnr_db):
        return None
    before = Estimate(old["logit_sqnr_db"], *(old["logit_sqnr_db_ci95"] or [old["logit_sqnr_db"]] * 2))
    return difference(before, Estimate(new.sqnr_db, *(new.sqnr_db_ci95 or (new.sqnr_db, new.sqnr_db))))


def _missing_classes(pair: _Pair) -> list[Json]:
    """Classes that the baseline's images had and these lack, where chance is out of the question."""
    assert pair.run.comparison is not None
    comparison, before = pair.run.comparison, pair.then.sizes(pair.run.comparison.num_classes)
    had = np.flatnonzero(before).tolist()
    chances = [float((1 - before[c] / before.sum()) ** comparison.labelled) for c in had]
    now = comparison.class_sizes
    return [
        {"class": c, "name": pair.run.labels[c], "before": int(before[c])}
        for c, p in zip(had, holm(chances), strict=True)
        if now[c] == 0 and p < ALPHA_OTHERS
    ]


def _slowdown(baseline: Baseline, run: Run, reasons: dict[str, str]) -> Json:
    """How much longer INT8 takes, in units of FP32 on the same machine in the same run."""
    old, now = baseline.document["latency"], run.latency
    nothing: Json = {"slowdown_percent": None, "slowdown_percent_ci95": None}
    machine = [baseline.document["environment"].get(key) for key in _MACHINE]
    here = [run.environment.get(key) for key in _MACHINE]
    why = None
    if now["speedup"] is None:
        why = "latency was not measured in this run"
    elif old["speedup"] is None:
        why = "the baseline holds no latency"
    elif old["scope"] != now["scope"]:
        why = f"the baseline's latency is {old['scope']}, this one {now['scope']}"
    elif machine != here and not baseline.any_machine:
        why = f"the baseline was timed on another machine ({machine[0]}); --any-machine compares all the same"
    if why:
        reasons["baseline.slowdown_percent"] = why
        return nothing
    slower = ratio(*(_from_run_to_run(m) for m in (old, now)))
    percents = [100 * (limit - 1) for limit in (slower.value, slower.low, slower.high)]
    return {"slowdown_percent": percents[0], "slowdown_percent_ci95": percents[1:]}


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


def changes(document: Mapping[str, Any], run: Run) -> list[Json]:
    """What was made differently: facts of the build and versions of this run, as (what, before, after)."""
    before = {**document["facts"], **{f"version of {name}": v for name, v in document["environment"].items()}}
    after = {**run.facts, **{f"version of {name}": v for name, v in run.environment.items()}}
    if document["validation"] is not None and run.validation is not None:
        before["validation images"], after["validation images"] = document["validation"]["sha256"], run.validation
    names = dict.fromkeys((*before, *after))
    return [
        {"what": name, "before": before.get(name), "after": after.get(name)}
        for name in names
        if before.get(name) != after.get(name)
    ]
