"""The three outcomes of a gate, its error rates, and the number of images that an unsure gate asks for."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeres.errors import UsageError
from edgeres.judge.asked import GateChoice
from edgeres.judge.gates import METRICS, Limits, gate, judge_gates, round_up
from edgeres.records import Gate
from edgeres.verify.statistics import images_for_drop, images_for_share, paired_drop_pp, proportion_percent


def figures(**drops: float | None) -> dict[str, Any]:
    """Two-sided intervals of +-1 pp; the speedup is 3 (2.9 to 3.1)."""
    graphs = {
        name: {"drop_pp": d, "drop_pp_ci95": None if d is None else [d - 1, d + 1], "classes": None}
        for name, d in drops.items()
    }
    latency = {"speedup": 3.0, "speedup_ci95": [2.9, 3.1], "noise": []}
    accuracy = {"graphs": graphs, "images": 1000}
    sizes = {"deployed_bytes": {"cpu graph": 11_000_000, "rtx engine": 20_000_000}}
    return {"accuracy": accuracy, "latency": latency, "sizes": sizes, "reasons": {"accuracy": "no labels"}}


@pytest.mark.parametrize(
    ("metric", "limit", "outcome"),
    [
        ("drop_pp", 1.5, "passed"),  # the end of the interval may touch the limit
        ("drop_pp", 1.49, "unsure"),
        ("drop_pp", -0.5, "unsure"),
        ("drop_pp", -0.51, "failed"),
        ("speedup", 2.9, "passed"),
        ("speedup", 2.91, "unsure"),
        ("speedup", 3.11, "failed"),
        ("size_mb", 20.0, "passed"),  # no interval: the figure itself decides
        ("size_mb", 19.9, "failed"),
    ],
)
def test_where_the_limit_lies_decides(metric: str, limit: float, outcome: str) -> None:
    (verdict,) = judge_gates([gate(metric, limit)], figures(cpu=0.5))
    assert verdict.outcome == outcome
    assert verdict.observed == {"drop_pp": 0.5, "speedup": 3.0, "size_mb": 20.0}[metric]


@settings(deadline=None)
@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0, 3))
def test_a_stricter_limit_never_gives_a_better_outcome(value: float, limit: float, stricter: float) -> None:
    order = ("passed", "unsure", "failed")
    loose, tight = (judge_gates([gate("drop_pp", at)], figures(cpu=value))[0] for at in (limit, limit - stricter))
    assert order.index(tight.outcome) >= order.index(loose.outcome)


def test_every_graph_has_to_pass_and_the_worst_is_named() -> None:
    (verdict,) = judge_gates([gate("drop_pp", 0.4)], figures(cpu=0.1, tensorrt=1.5))
    assert verdict.outcome == "failed"
    expected = "1.5 pp (95 % interval 0.5 to 2.5) of the tensorrt graph, the worst of 2; the limit is at most 0.4 pp"
    assert verdict.reason == expected
    (size,) = judge_gates([gate("size_mb", 15.0)], figures())
    assert "20 MB of the rtx engine, the worst of 2" in size.reason


@pytest.mark.parametrize("given", [figures(cpu=0.1, tensorrt=None), figures()])
def test_a_figure_that_was_not_measured_fails(given: dict[str, Any]) -> None:
    (verdict,) = judge_gates([gate("drop_pp", 1.0)], given)
    assert (verdict.observed, verdict.outcome, verdict.reason) == (None, "failed", "not measured: no labels")


def test_a_baseline_that_cannot_be_compared_leaves_the_gate_unsure() -> None:
    reasons = {"baseline.slowdown_percent": "another machine"}
    given = {**figures(cpu=0.0), "baseline": {"slowdown_percent": None}, "reasons": reasons}
    (verdict,) = judge_gates([gate("slowdown_percent", 15.0)], given)
    assert (verdict.observed, verdict.outcome) == (None, "unsure")
    assert verdict.reason == "not comparable: another machine"


def test_a_missing_reason_is_stated() -> None:
    (verdict,) = judge_gates([gate("speedup", 1.0)], {"accuracy": {"graphs": {}}, "latency": {"speedup": None}})
    assert verdict.reason == "not measured: no reason was recorded"


@pytest.mark.parametrize(
    ("noise", "p50", "outcome"), [([], 2.0, "failed"), (["busy"], 2.0, "unsure"), (["busy"], 9.0, "failed")]
)
def test_a_p99_of_a_disturbed_run_does_not_fail(noise: list[str], p50: float, outcome: str) -> None:
    latency = {"int8": {"p99_ms": 8.0, "p99_ms_ci95": [7.0, 9.0], "p50_ms": p50}, "noise": noise}
    (verdict,) = judge_gates([gate("p99_ms", 5.0)], {"latency": latency})
    assert verdict.outcome == outcome
    assert ("not certain: busy" in verdict.reason) is (outcome == "unsure")


# ---- how many images -------------------------------------------------------------------------------------------------


def test_an_unsure_drop_says_how_many_images_would_decide() -> None:
    drop = paired_drop_pp(3, 1, 200)
    group = {"drop_pp": drop.value, "drop_pp_ci95": [drop.low, drop.high], "lost": 3, "gained": 1, "total": 200}
    given = {"accuracy": {"graphs": {"cpu": group}, "images": 200}}
    (verdict,) = judge_gates([gate("drop_pp", 3.0)], given)
    assert verdict.outcome == "unsure"
    assert verdict.images_needed == images_for_drop(3, 1, 200, 3.0)
    assert verdict.images_needed is not None
    assert verdict.images_needed > 200
    lost = "3 of 200 images lost, 1 gained"
    assert verdict.reason.startswith(
        f"{lost}; {round_up(verdict.images_needed):,} are needed to prove less than 3 pp ("
    )


def test_the_last_line_of_a_run_that_loses_nothing_says_what_it_cannot_prove() -> None:
    """318 images and a limit of 1 pp: 590 are needed, as docs/verification.md has it."""
    drop = paired_drop_pp(0, 0, 318)
    group = {"drop_pp": drop.value, "drop_pp_ci95": [drop.low, drop.high], "lost": 0, "gained": 0, "total": 318}
    (verdict,) = judge_gates([gate("drop_pp", 1.0)], {"accuracy": {"graphs": {"cpu": group}, "images": 318}})
    assert re.match(r"0 of 318 images lost; [\d,]+ are needed to prove less than 1 pp \(0 pp, 95 %", verdict.reason)


@pytest.mark.parametrize(
    ("metric", "limit", "figure", "words"),
    [
        (
            "agreement",
            97.0,
            {"agreement": 98.0, "agreement_ci95": [95, 99], "same": 196, "images": 200},
            "more than 97 %",
        ),
        (
            "agreement",
            97.0,
            {"agreement": 96.0, "agreement_ci95": [92, 98], "same": 192, "images": 200},
            "less than 97 %",
        ),
    ],
)
def test_the_images_that_are_needed_prove_what_the_figure_shows(
    metric: str, limit: float, figure: dict[str, Any], words: str
) -> None:
    (verdict,) = judge_gates([gate(metric, limit)], {"accuracy": {"graphs": {"cpu": figure}, "images": 200}})
    assert verdict.outcome == "unsure"
    assert verdict.images_needed is not None
    assert verdict.reason.endswith(f"{round_up(verdict.images_needed):,} images are needed to prove {words}")


def test_a_speedup_that_processor_time_does_not_confirm_is_not_measurable() -> None:
    """By the clock it passes, in processor time it fails: other processes decided it."""
    latency = {"speedup": 17.2, "speedup_ci95": [16.8, 17.6], "cpu_speedup": 5.1, "measurable": False, "noise": []}
    (verdict,) = judge_gates([gate("speedup", 10.0)], {"latency": latency})
    assert verdict.outcome == "unsure"
    assert "not measurable: 17.2x by the clock, but 5.1x in processor time" in verdict.reason
    (sure,) = judge_gates([gate("speedup", 10.0)], {"latency": latency | {"measurable": True}})
    assert sure.outcome == "passed"


@pytest.mark.parametrize(
    ("p_lost", "p_gained", "limit"), [(0.02, 0.01, 2.0), (0.005, 0.004, 0.5), (0.03, 0.005, 1.0), (0.001, 0.001, 1.0)]
)
def test_so_many_images_decide_four_times_in_five(p_lost: float, p_gained: float, limit: float) -> None:
    total = 10_000
    n = images_for_drop(round(p_lost * total), round(p_gained * total), total, limit)
    assert n is not None
    drawn = np.random.default_rng(4).multinomial(n, [p_lost, p_gained, 1 - p_lost - p_gained], 300)
    intervals = [paired_drop_pp(int(lost), int(gained), n) for lost, gained, _ in drawn]
    decided = sum(not i.low <= limit <= i.high for i in intervals)
    assert decided >= 0.72 * 300  # four in five, less three standard errors
    few = np.random.default_rng(5).multinomial(n // 8, [p_lost, p_gained, 1 - p_lost - p_gained], 300)
    intervals = [paired_drop_pp(int(lost), int(gained), n // 8) for lost, gained, _ in few]
    assert sum(not i.low <= limit <= i.high for i in intervals) < decided  # fewer images would not do


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(61, 3000), st.floats(0.01, 20))
def test_an_unsure_drop_asks_for_more_than_there_are(lost: int, gained: int, total: int, limit: float) -> None:
    drop, needed = paired_drop_pp(lost, gained, total), images_for_drop(lost, gained, total, limit)
    if drop.low <= limit <= drop.high:
        assert needed is None or needed > total


def test_an_agreement_asks_for_images_too() -> None:
    needed = images_for_share(990, 1000, 98.5)
    assert needed is not None
    drawn = np.random.default_rng(6).binomial(needed, 0.99, 300)
    assert sum(proportion_percent(int(hits), needed).low > 98.5 for hits in drawn) >= 0.72 * 300
    assert images_for_share(985, 1000, 98.5) is None


@pytest.mark.parametrize(("images", "rounded"), [(7, 7), (99, 99), (101, 110), (1234, 1300), (20001, 21000)])
def test_estimates_are_rounded_up_to_two_digits(images: int, rounded: int) -> None:
    assert round_up(images) == rounded


# ---- how often a gate errs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p_gained", "limit"), [(0.01, 1.0), (0.03, 2.0), (0.0, 0.5)])
def test_a_drop_at_its_limit_fails_or_passes_one_time_in_forty(p_gained: float, limit: float) -> None:
    """Exact probability of both errors over every outcome of 400 images, for a build exactly at the limit."""
    n, p_lost = 400, limit / 100 + p_gained
    wrong = {"failed": 0.0, "passed": 0.0}
    for lost in range(40):
        for gained in range(40):
            ways = math.comb(n, lost) * math.comb(n - lost, gained)
            chance = ways * p_lost**lost * p_gained**gained * (1 - p_lost - p_gained) ** (n - lost - gained)
            drop = paired_drop_pp(lost, gained, n)
            wrong["failed"] += chance * (drop.low > limit)
            wrong["passed"] += chance * (drop.high <= limit)
    # 2.5 % each, plus the error of a score interval on a discrete distribution
    assert max(wrong.values()) <= 0.035


# ---- classes ---------------------------------------------------------------------------------------------------------


def _row(name: str, before: int, after: int, total: int, p: float) -> dict[str, Any]:
    drop = 100 * (before - after) / total
    row = {"name": name, "before": before, "after": after, "total": total, "total_before": total}
    return row | {"drop_pp": drop, "p_holm": p}


def _classes(*falling: dict[str, Any], largest: int = 62) -> dict[str, Any]:
    classes = {"alpha": 0.025, "judged": 16, "largest": largest, "least_found": 10, "falling": list(falling)}
    return {"accuracy": {"graphs": {"cpu": {"classes": classes}, "tensorrt": {"classes": {**classes, "falling": []}}}}}


@pytest.mark.parametrize(
    ("falling", "outcome"),
    [
        ([], "passed"),
        ([_row("exit", 60, 40, 62, 0.001)], "failed"),
        ([_row("exit", 60, 40, 62, 0.03)], "passed"),  # not significant over all classes
        ([_row("exit", 600, 590, 620, 0.001)], "passed"),  # significant, but within the limit
    ],
)
def test_a_class_fails_where_its_loss_is_beyond_the_limit_and_significant(falling: list[Any], outcome: str) -> None:
    (verdict,) = judge_gates([gate("class_drop_pp", 10.0)], _classes(*falling))
    assert verdict.outcome == outcome
    if falling:
        assert "exit from" in verdict.reason
        assert "in the cpu graph" in verdict.reason


def test_too_few_images_in_every_class_leave_the_gate_unsure() -> None:
    (verdict,) = judge_gates([gate("class_drop_pp", 10.0)], _classes(_row("exit", 9, 0, 9, 0.05), largest=9))
    assert verdict.outcome == "unsure"
    assert "not certain with at most 9 images per class: a loss is significant from 10 images on" in verdict.reason


def test_classes_without_labels_are_not_measured() -> None:
    (verdict,) = judge_gates([gate("class_drop_pp", 10.0)], figures(cpu=None))
    assert (verdict.outcome, verdict.reason) == ("failed", "not measured: no labels")


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_limits_become_gates() -> None:
    assert gate("drop_pp", 1) == Gate("drop_pp", 1.0, "pp")
    assert {m.name for m in METRICS.values()} == set(METRICS)
    chosen = Limits.of(max_drop=0.5, max_class_drop=None, min_speedup=2)
    assert chosen.gates() == (gate("drop_pp", 0.5), gate("speedup", 2.0))
    assert [g.metric for g in Limits().gates()] == ["drop_pp", "class_drop_pp"]
    assert [g.metric for g in Limits(min_agreement=99).gates(labels=False)] == ["agreement"]
    since = [g.metric for g in Limits(max_drop=None, max_class_drop=None).gates(baseline=True)]
    assert since == ["regression_pp", "fp32_regression_pp", "sqnr_loss_db", "slowdown_percent"]
    unlabelled = [g.metric for g in Limits().gates(baseline=True, labels=False)]
    assert unlabelled == ["sqnr_loss_db", "slowdown_percent"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_drop": math.nan}, "not a limit for drop_pp"),
        ({"max_slowdown": math.inf}, "not a limit for slowdown_percent"),
    ],
)
def test_limits_have_to_be_finite(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Limits.of(**options)
    with pytest.raises(UsageError, match="no metric 'top-1'"):
        gate("top-1", 1.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on_unsure": "panic"}, "no such on_unsure: 'panic'; one of warn, fail"),
        ({"allow": ("wieghts",)}, "no check 'wieghts' to allow; did you mean weights"),
    ],
)
def test_a_choice_of_gates_refuses_words_that_do_not_exist(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        GateChoice(**options)


# ---- top-1 -----------------------------------------------------------------------------------------------------------


def hits(correct: int, total: int) -> dict[str, Any]:
    share = proportion_percent(correct, total)
    graph = {"top1": share.value, "top1_ci95": [share.low, share.high], "correct": correct, "total": total}
    return {"accuracy": {"graphs": {"cpu": graph, "tensorrt": graph}, "images": total, "lost": 0, "gained": 0}}


@pytest.mark.parametrize(
    ("limit", "outcome"),
    [
        (85.0, "passed"),  # Wilson's interval of 180 of 200 is 85.06 to 93.44
        (85.1, "unsure"),
        (93.4, "unsure"),
        (93.5, "failed"),
    ],
)
def test_the_interval_of_top1_decides(limit: float, outcome: str) -> None:
    (verdict,) = judge_gates([gate("top1", limit)], hits(180, 200))
    assert (verdict.observed, verdict.outcome) == (90.0, outcome)
    assert f"than {limit:g} %" in verdict.reason or f"the limit is at least {limit:g} %" in verdict.reason
    assert (verdict.images_needed is not None) is (outcome == "unsure")


def test_so_many_images_decide_top1() -> None:
    (verdict,) = judge_gates([gate("top1", 88.0)], hits(180, 200))
    assert verdict.images_needed == images_for_share(180, 200, 88.0)
    more = hits(9 * (verdict.images_needed or 0) // 10 + 1, verdict.images_needed or 1)
    assert judge_gates([gate("top1", 88.0)], more)[0].outcome == "passed"


def test_top1_that_was_asked_for_fails_without_labels() -> None:
    asked = Limits(min_top1=90.0).gates(labels=False)
    (verdict,) = judge_gates(asked, figures(cpu=None))
    assert (verdict.gate.metric, verdict.outcome, verdict.reason) == ("top1", "failed", "not measured: no labels")


@pytest.mark.parametrize("limit", [0.9, 1.0, 0.0, -5.0, 100.1])
def test_a_share_in_place_of_per_cent_is_refused(limit: float) -> None:
    with pytest.raises(UsageError, match="write 90 for 90 %"):
        Limits(min_top1=limit)
