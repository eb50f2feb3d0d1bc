"""Statistics against published figures and brute force; comparison and latency against plain loops."""

from __future__ import annotations

import doctest
import gc
import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import combinations, count
from pathlib import Path
from typing import Any

import bundles
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeres.data.arrays import open_npz
from edgeres.data.base import Source
from edgeres.data.loader import Batch, Loader
from edgeres.data.matching import match_labels
from edgeres.errors import ModelError, SourceError
from edgeres.progress import Silent
from edgeres.records import Measurement, ModelSpec, Preprocess
from edgeres.runtime.ort import OrtRunner
from edgeres.verify import latency as latency_module
from edgeres.verify import statistics
from edgeres.verify.accuracy import compare
from edgeres.verify.latency import (
    LatencyPlan,
    cpu_speedup,
    drift_percent,
    measure_latency,
    noise,
    speedup,
    variation_percent,
)
from edgeres.verify.statistics import (
    Z95,
    Estimate,
    Sqnr,
    block_bootstrap,
    difference,
    fisher_tail,
    holm,
    mcnemar_mid_p,
    paired_drop_pp,
    proportion_percent,
    ratio,
    ratio_of_medians,
    sign_tail,
)

# ---------------------------------------------------------------------------------------------------------- statistics


def test_documented_values_of_statistics() -> None:
    assert doctest.testmod(statistics).attempted > 0
    assert doctest.testmod(statistics).failed == 0


def test_paired_drop_as_published() -> None:
    """Fagerland, Lydersen and Laake 2014, airway hyper-responsiveness: 1 and 7 discordant pairs of 21."""
    drop = paired_drop_pp(1, 7, 21)
    assert (round(drop.value, 1), round(drop.low, 1), round(drop.high, 1)) == (-28.6, -51.7, -2.6)


def _likeliest_gain(lost: int, gained: int, total: int, delta: float) -> float:
    """The maximum-likelihood P(gained) under P(lost) - P(gained) = delta, by ternary search."""

    def log_likelihood(q: float) -> float:
        parts = ((lost, q + delta), (gained, q), (total - lost - gained, 1 - 2 * q - delta))
        return sum(n * math.log(max(p, 1e-300)) for n, p in parts)

    low, high = max(0.0, -delta), (1 - delta) / 2
    for _ in range(200):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (a, high) if log_likelihood(a) < log_likelihood(b) else (low, b)
    return (low + high) / 2


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 400))
@settings(deadline=None, max_examples=60)
def test_limits_of_the_paired_drop_are_where_the_score_test_turns(lost: int, gained: int, same: int) -> None:
    total = lost + gained + same
    drop = paired_drop_pp(lost, gained, total)
    assert -100 <= drop.low <= drop.value <= drop.high <= 100
    for delta in (drop.low / 100, drop.high / 100):
        q = _likeliest_gain(lost, gained, total, delta)
        variance = total * (2 * q + delta * (1 - delta))
        assert (lost - gained - total * delta) ** 2 == pytest.approx(Z95**2 * variance, rel=1e-4)


def test_paired_drop_mirrors_and_reaches_the_ends() -> None:
    one, other = paired_drop_pp(5, 2, 60), paired_drop_pp(2, 5, 60)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    assert paired_drop_pp(10, 0, 10).high == 100
    # without a discordant pair the limit is Wilson's upper limit for no hit
    assert paired_drop_pp(0, 0, 50).high == pytest.approx(proportion_percent(0, 50).high)


@pytest.mark.parametrize(("p_lost", "p_gained"), [(0.02, 0.02), (0.05, 0.01), (0.1, 0.1), (0.02, 0.0)])
def test_paired_drop_covers_the_truth(p_lost: float, p_gained: float) -> None:
    """Exact coverage, summed over the outcomes of 60 images; Wald's interval covers 70 % of the last case."""
    n, truth, covered = 60, 100 * (p_lost - p_gained), 0.0
    for lost in range(20):
        for gained in range(20):
            ways = math.comb(n, lost) * math.comb(n - lost, gained)
            chance = ways * p_lost**lost * p_gained**gained * (1 - p_lost - p_gained) ** (n - lost - gained)
            drop = paired_drop_pp(lost, gained, n)
            covered += chance * (drop.low <= truth <= drop.high)
    assert covered >= 0.95


def test_sign_tail_against_every_outcome() -> None:
    for n in range(11):
        for lost in range(n + 1):
            outcomes = (Fraction(math.comb(n, k), 2**n) for k in range(lost, n + 1))
            assert sign_tail(lost, n - lost) == pytest.approx(float(sum(outcomes)))
    assert sign_tail(2000, 1800) == pytest.approx(0.00062, rel=0.01)  # 2**3800 overflows a float


def test_mid_p_takes_half_of_the_outcome_itself() -> None:
    assert round(mcnemar_mid_p(1, 7), 3) == 0.039  # Fagerland, Lydersen and Laake 2013, the same data
    for n in range(1, 12):
        for lost in range(n + 1):
            chances = {k: Fraction(math.comb(n, k), 2**n) for k in range(n + 1)}
            further = sum(c for k, c in chances.items() if abs(2 * k - n) > abs(2 * lost - n))
            as_far = sum(c for k, c in chances.items() if abs(2 * k - n) == abs(2 * lost - n))
            assert mcnemar_mid_p(lost, n - lost) == pytest.approx(float(further + as_far / 2))


def test_fisher_tail_against_every_table() -> None:
    """The hits of a sample of ``total`` out of ``every`` images, drawn one by one."""
    for total, before, all_hits in ((4, 5, 4), (3, 6, 7), (5, 2, 1)):
        every = range(total + before)
        draws = list(combinations(every, total))
        for hits in range(max(0, all_hits - before), min(total, all_hits) + 1):
            as_few = sum(sum(i < all_hits for i in draw) <= hits for draw in draws)
            found = fisher_tail(hits, total, all_hits - hits, before)
            assert found == pytest.approx(as_few / len(draws))


@given(st.lists(st.floats(1e-9, 1), min_size=1, max_size=12))
def test_holm_rejects_step_by_step(p_values: list[float]) -> None:
    """The procedure of the paper: in ascending order, reject while p <= alpha / (number left), then stop."""
    adjusted = holm(p_values)
    for alpha in (0.001, 0.025, 0.3):
        rejected = set()
        for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
            if (len(p_values) - rank) * p_values[i] > alpha:
                break
            rejected.add(i)
        assert {i for i, p in enumerate(adjusted) if p <= alpha} == rejected


def test_a_difference_covers_the_truth() -> None:
    """Exact coverage of Newcombe's interval for two samples of 80 and 60 images."""
    p, q, covered = 0.95, 0.9, 0.0
    for hits in range(81):
        for others in range(61):
            chance = math.comb(80, hits) * p**hits * (1 - p) ** (80 - hits)
            chance *= math.comb(60, others) * q**others * (1 - q) ** (60 - others)
            found = difference(proportion_percent(hits, 80), proportion_percent(others, 60))
            covered += chance * (found.low <= 100 * (p - q) <= found.high)
    assert 0.94 <= covered <= 0.985


def test_a_difference_as_published() -> None:
    """Newcombe 1998, "Interval estimation for the difference", table II: 56/70 - 48/80, method 10."""
    found = difference(proportion_percent(56, 70), proportion_percent(48, 80))
    assert [round(x / 100, 4) for x in (found.value, found.low, found.high)] == [0.2, 0.0524, 0.3339]


def test_the_ratio_of_swapped_sides_is_the_inverse() -> None:
    now, before = Estimate(2.0, 1.9, 2.2), Estimate(3.0, 2.9, 3.3)
    one, other = ratio(now, before), ratio(before, now)
    assert (one.value, one.low, one.high) == pytest.approx((1 / other.value, 1 / other.high, 1 / other.low))
    sure = ratio(Estimate(2.0, 1.9, 2.2), Estimate(1.0, 1.0, 1.0))
    assert (sure.value, sure.low, sure.high) == pytest.approx((2.0, 1.9, 2.2))


def test_sqnr_interval_covers_the_truth() -> None:
    """Images of different strength; the truth is the ratio of the expectations."""
    rng, covered = np.random.default_rng(8), 0
    for _ in range(300):
        strength = rng.gamma(2.0, 1.0, (60, 1))
        s = strength * rng.normal(size=(60, 10))
        meter = Sqnr()
        meter.add(s, s + 0.1 * rng.normal(size=s.shape))
        assert meter.interval is not None
        low, high = meter.interval
        covered += low <= 10 * math.log10(6.0 / 0.01) <= high  # E[gamma(2)^2] = 6
    assert 0.88 * 300 <= covered < 300
    alone = Sqnr()
    alone.add(np.ones((1, 3)), np.zeros((1, 3)))
    assert alone.interval is None


def test_block_bootstrap_covers_a_p99() -> None:
    rng, covered = np.random.default_rng(9), 0
    truth = math.exp(0.3 * 2.3263478740408408)
    for _ in range(100):
        blocks = rng.lognormal(0, 0.3, (40, 50))
        low, high = block_bootstrap(lambda seconds: float(np.percentile(seconds, 99)), blocks, resamples=150)
        covered += low <= truth <= high
    assert 86 <= covered < 100


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [(81, 263, 25.53, 36.62), (15, 148, 6.24, 16.05), (0, 20, 0.0, 16.11), (1, 29, 0.61, 17.18)],
)
def test_proportion_as_published(hits: int, total: int, low: float, high: float) -> None:
    """Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3."""
    share = proportion_percent(hits, total)
    assert (round(share.low, 2), round(share.high, 2)) == (low, high)


@given(st.integers(0, 500), st.integers(1, 500))
def test_proportion_stays_in_order(hits: int, more: int) -> None:
    share = proportion_percent(hits, hits + more)
    assert 0 <= share.low <= share.value <= share.high <= 100


def test_sqnr_over_batches() -> None:
    rng = np.random.default_rng(0)
    s = rng.normal(size=(50, 10)).astype(np.float32)
    t = (s + 0.1 * rng.normal(size=s.shape)).astype(np.float32)
    meter = Sqnr()
    for rows in (slice(0, 7), slice(7, 8), slice(8, 50)):
        meter.add(s[rows], t[rows])
    noise_power = sum((float(a) - float(b)) ** 2 for a, b in zip(s.flat, t.flat, strict=True))
    assert meter.decibels == pytest.approx(10 * math.log10(sum(float(a) ** 2 for a in s.flat) / noise_power))


def test_sqnr_of_equal_and_zero_signals() -> None:
    one, zero = np.ones(3, np.float32), np.zeros(3, np.float32)
    for reference, candidate, expected in ((one, one, math.inf), (zero, one, -math.inf), (one, 1.1 * one, 20.0)):
        meter = Sqnr()
        meter.add(reference, candidate)
        assert meter.decibels == pytest.approx(expected, rel=1e-5)


def test_ratio_of_medians_ignores_what_slows_both() -> None:
    load = np.linspace(1, 3, 40)[:, None]
    ratio = ratio_of_medians(3 * load * np.ones((40, 2)), load * np.ones((40, 5)))
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((3, 3, 3))


def test_ratio_of_medians_covers_the_truth() -> None:
    rng = np.random.default_rng(1)
    trials, covered = 200, 0
    for _ in range(trials):
        slow, fast = rng.lognormal(np.log(30), 0.05, (30, 3)), rng.lognormal(np.log(10), 0.05, (30, 9))
        ratio = ratio_of_medians(slow, fast, resamples=200)
        covered += ratio.low <= 3 <= ratio.high
    assert 0.9 * trials <= covered < trials


# ------------------------------------------------------------------------------------------------------------ accuracy


class Images(Source):
    """Images of one pixel that hold their own index."""

    description = "images in memory"
    classes = ()

    def __init__(self, labels: list[int]) -> None:
        self.labels = np.array(labels, np.int64)

    def name(self, index: int) -> str:
        return f"image {index}"

    def image(self, index: int) -> np.ndarray[Any, Any]:
        return np.full((1, 1, 3), index, np.uint8)

    def digest(self) -> str:
        return "0" * 64


PIXEL = Preprocess((1, 1), mean=(0, 0, 0), std=(1, 1, 1), pixel_scale=1.0)


def spec(classes: int, output: Any = "logits") -> ModelSpec:
    return ModelSpec("net", PIXEL, tuple(f"class {i}" for i in range(classes)), output=output)


class Table:
    """A runner that looks its scores up by the index in the image."""

    input_name, output_name = "input", "scores"

    def __init__(self, scores: np.ndarray[Any, Any], name: str = "table") -> None:
        self.scores, self.name = scores, name

    def infer(self, feed: dict[str, Any]) -> dict[str, Any]:
        return {"scores": self.scores[feed["input"][:, 0, 0, 0].astype(int)]}

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *error: object) -> None:
        return None


def _top(scores: np.ndarray[Any, Any], k: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda c: (-scores[c], c))[:k]


@given(st.integers(1, 30), st.integers(2, 9), st.integers(1, 7), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=40)
def test_compare_against_a_plain_loop(n: int, classes: int, batch: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, classes, n)
    fp32 = rng.integers(0, 4, (n, classes)).astype(np.float32)  # small integers, so that scores tie
    int8 = fp32 + rng.integers(-1, 2, (n, classes)).astype(np.float32)
    source = Images(labels.tolist())
    found = compare(Table(fp32), {"cpu": Table(int8)}, Loader(source, PIXEL, batch), spec(classes))

    known = [i for i in range(n) if labels[i] >= 0]
    table = found.table
    for name, scores in (("fp32", fp32), ("cpu", int8)):
        hits = [i for i in known if _top(scores[i], 1)[0] == labels[i]]
        if accuracy := found.accuracy(name):
            top5 = sum(labels[i] in _top(scores[i], 5) for i in known)
            assert (accuracy.correct, accuracy.correct_top5, accuracy.total) == (len(hits), top5, len(known))
        else:
            assert not known
        assert table.hits(name).tolist() == [sum(labels[i] == c for i in hits) for c in range(classes)]
    same = sum(_top(fp32[i], 1) == _top(int8[i], 1) for i in range(n))
    assert found.table.agreement("cpu").value == pytest.approx(100 * same / n)
    right = [(_top(fp32[i], 1)[0] == labels[i], _top(int8[i], 1)[0] == labels[i]) for i in range(n)]
    assert [d.image for d in found.disagreements("cpu", table.lost("cpu"))] == [
        f"image {i}" for i in range(n) if right[i] == (True, False)
    ]
    assert [d.image for d in found.disagreements("cpu", table.gained("cpu"))] == [
        f"image {i}" for i in range(n) if right[i] == (False, True)
    ]
    for d in found.disagreements("cpu", table.lost("cpu")):
        assert (d.label, d.reference) == (d.reference, d.label)
        assert d.candidate != d.label
    if drop := table.drop_pp("cpu"):
        lost_less_gained = int(table.lost("cpu").sum()) - int(table.gained("cpu").sum())
        assert drop.value == pytest.approx(100 * lost_less_gained / len(known))


def test_sqnr_of_probabilities_is_that_of_centred_logits() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 3, (20, 7))
    moved = logits + rng.normal(0, 0.1, logits.shape)

    def softmax(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        e = np.exp(x - x.max(1, keepdims=True))
        return (e / e.sum(1, keepdims=True)).astype(np.float32)

    runners = Table(softmax(logits)), {"cpu": Table(softmax(moved))}
    found = compare(*runners, Loader(Images([0] * 20), PIXEL, 6), spec(7, "probabilities"))
    s, t = (x - x.mean(1, keepdims=True) for x in (logits, moved))
    expected = 10 * math.log10((s**2).sum() / ((s - t) ** 2).sum())
    assert found.scored["cpu"].sqnr_db == pytest.approx(expected, abs=1e-3)


def test_a_probability_of_zero_is_clipped() -> None:
    p = np.array([[1.0, 0.0, 0.0]], np.float32)
    found = compare(Table(p), {"cpu": Table(p)}, Loader(Images([0]), PIXEL, 1), spec(3, "probabilities"))
    assert found.scored["cpu"].sqnr_db == math.inf


def test_unlabelled_images_have_agreement_and_no_accuracy() -> None:
    scores = np.eye(3, dtype=np.float32)
    loader = Loader(Images([-1, -1, -1]), PIXEL, 2)
    found = compare(Table(scores), {"cpu": Table(scores[[0, 1, 1]])}, loader, spec(3))
    assert found.accuracy("fp32") is None
    assert found.table.drop_pp("cpu") is None
    assert found.table.agreement("cpu").value == pytest.approx(200 / 3)
    assert not found.table.lost("cpu").any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_output_that_is_not_finite_names_the_image(value: float) -> None:
    fine, broken = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)
    broken[2, 1] = value
    loader = Loader(Images([0, 1, 2, 3]), PIXEL, 3)
    with pytest.raises(ModelError, match=r"^image 2: INT8 gives an output that is not finite"):
        compare(Table(fine), {"cpu": Table(broken, "INT8")}, loader, spec(4))


def test_outputs_and_labels_have_to_fit_the_model() -> None:
    scores = np.eye(4, dtype=np.float32)
    with pytest.raises(ModelError, match="4 outputs for 3 labels"):
        compare(Table(scores), {"cpu": Table(scores)}, Loader(Images([0, 1]), PIXEL, 2), spec(3))
    with pytest.raises(SourceError, match=r"^image 1: label 7 is outside the model's 4 classes"):
        compare(Table(scores), {"cpu": Table(scores)}, Loader(Images([0, 7]), PIXEL, 2), spec(4))


def test_no_images_are_an_error() -> None:
    class Nothing(Loader):
        def __iter__(self) -> Iterator[Batch]:
            return iter(())

    scores = np.eye(2, dtype=np.float32)
    with pytest.raises(SourceError, match="no image to compare on"):
        compare(Table(scores), {"cpu": Table(scores)}, Nothing(Images([]), PIXEL, 1), spec(2))


def test_compare_runs_graphs_on_onnx_runtime(tmp_path: Any) -> None:
    """Scores of shape (B, C, 1, 1) from a real session, against the same product in numpy."""
    rng = np.random.default_rng(5)
    weights = {"fp32": rng.normal(size=(6, 3)).astype(np.float32)}
    weights["int8"] = np.round(weights["fp32"] * 3) / 3
    runners = {}
    for name, w in weights.items():
        kernel = numpy_helper.from_array(w.reshape(6, 3, 1, 1), "w")
        conv = helper.make_node("Conv", ["x", "w"], ["y"])
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3, 1, 1])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 6, 1, 1])
        graph = helper.make_graph([conv], name, [x], [y], [kernel])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(model, tmp_path / f"{name}.onnx")
        runners[name] = OrtRunner(tmp_path / f"{name}.onnx", threads=1)
    source = Images(rng.integers(0, 6, 40).tolist())
    pixels = rng.integers(0, 256, (40, 1, 1, 3), dtype=np.uint8)
    source.image = lambda index: pixels[index]  # type: ignore[method-assign]
    found = compare(runners["fp32"], {"cpu": runners["int8"]}, Loader(source, PIXEL, 16), spec(6))
    for name, w in (("fp32", weights["fp32"]), ("cpu", weights["int8"])):
        assert found.table.answers[name].tolist() == (pixels[:, 0, 0].astype(np.float32) @ w.T).argmax(1).tolist()
        assert found.scored[name].runner.startswith("ONNX Runtime")


# ------------------------------------------------------------------------------------------------------------- latency


class Clock:
    """Time that passes only inside inferences."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Timed(Table):
    """A runner whose n-th inference takes ``seconds(n)``, written down in a shared diary."""

    def __init__(self, name: str, clock: Clock, diary: list[str], seconds: Any) -> None:
        super().__init__(np.zeros((1, 1)), name)
        self.clock, self.diary, self.seconds, self.n = clock, diary, seconds, count()

    def infer(self, feed: dict[str, Any]) -> dict[str, Any]:
        assert not gc.isenabled()
        self.diary.append(self.name)
        self.clock.now += self.seconds(next(self.n))
        return {}


def _measured(monkeypatch: pytest.MonkeyPatch, plan: LatencyPlan, **seconds: Any) -> tuple[dict[str, Any], list[str]]:
    clock, diary = Clock(), []
    for name in ("perf_counter", "process_time"):
        monkeypatch.setattr(latency_module, name, clock)
    runners = {name: Timed(name, clock, diary, taken) for name, taken in seconds.items()}
    return measure_latency(runners, lambda runner: {runner.input_name: np.zeros((2, 3))}, plan), diary


def test_runners_take_turns_and_reach_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = LatencyPlan("host to host", warmup_seconds=0.2, min_seconds=1.0, min_iterations=10, block_seconds=0.1)
    found, diary = _measured(monkeypatch, plan, fp32=lambda n: 0.05, int8=lambda n: 0.01)
    fp32, int8 = found["fp32"], found["int8"]
    assert (fp32.block, int8.block) == (2, 10)
    assert len(fp32.seconds) // fp32.block == len(int8.seconds) // int8.block
    for m in found.values():
        assert m.seconds.sum() >= 1.0 - 1e-9
        assert len(m.seconds) >= 10
        assert m.warmup_seconds == pytest.approx(0.2)
        assert (m.batch, m.scope) == (2, "host to host")
    warm = ["fp32"] * 4 + ["int8"] * 20
    a, b = ["fp32"] * 3, ["int8"] * 11  # one unrecorded inference before each block
    assert diary[: len(warm)] == warm
    assert diary[len(warm) :][: 2 * len(a + b)] == a + b + b + a
    ratio = speedup(fp32, int8)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((5, 5, 5))
    assert noise(fp32) == noise(int8) == []


def test_a_runner_that_is_held_up_gets_short_turns_and_enough_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tenth inference waits for the processor, as in a throttled container."""
    plan = LatencyPlan("s", warmup_seconds=0.2, min_seconds=1.0, block_seconds=0.1)
    found, _ = _measured(monkeypatch, plan, a=lambda n: 0.08 if n % 10 == 9 else 0.001, b=lambda n: 0.3)
    a, b = found["a"], found["b"]
    assert a.block <= 12  # by the median it would be 100
    assert len(a.seconds) // a.block == len(b.seconds) // b.block >= plan.min_turns


def test_a_crowd_that_slows_one_runner_alone_shows_in_processor_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two other processes take turns with the runner whose inferences are longer than a time slice."""
    clock, cpu, diary = Clock(), Clock(), []
    monkeypatch.setattr(latency_module, "perf_counter", clock)
    monkeypatch.setattr(latency_module, "process_time", cpu)

    class Crowded(Timed):
        def infer(self, feed: dict[str, Any]) -> dict[str, Any]:
            cpu.now += {"fp32": 0.05, "int8": 0.01}[self.name]
            return super().infer(feed)

    taken = {"fp32": lambda n: 0.15, "int8": lambda n: 0.01}
    runners = {name: Crowded(name, clock, diary, seconds) for name, seconds in taken.items()}
    plan = LatencyPlan("s", min_seconds=1.0, on_cpu=True)
    found = measure_latency(runners, lambda runner: {runner.input_name: np.zeros((1, 3))}, plan)
    assert speedup(found["fp32"], found["int8"]).value == pytest.approx(15)
    ratio = cpu_speedup(found["fp32"], found["int8"])
    assert ratio is not None
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((5, 5, 5))
    assert noise(found["fp32"]) == ["it had a processor for 33 % of the time (below 90 %)"]
    assert noise(found["int8"]) == []


def test_a_slow_runner_still_gets_its_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = _measured(monkeypatch, LatencyPlan("s", min_seconds=1.0), a=lambda n: 2.0, b=lambda n: 0.5)
    assert len(found["a"].seconds) == 10
    assert found["a"].block == found["b"].block == 1


def test_the_first_inference_of_a_turn_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = LatencyPlan("s", warmup_seconds=0.1, min_seconds=0.5, block_seconds=0.3)
    found, _ = _measured(monkeypatch, plan, a=lambda n: 9.0 if n > 0 and n % 4 == 1 else 0.1)
    assert found["a"].block == 3
    assert found["a"].seconds == pytest.approx(0.1)


def test_progress_is_complete_and_the_garbage_collector_is_on_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Meter(Silent):
        steps: list[int] = []  # noqa: RUF012

        def task(self, name: str, total: int | None) -> Any:
            from contextlib import nullcontext

            self.total = total
            return nullcontext(self.steps.append)

        def say(self, line: str) -> None:
            raise AssertionError(line)

    clock, meter = Clock(), Meter()
    for name in ("perf_counter", "process_time"):
        monkeypatch.setattr(latency_module, name, clock)
    measure_latency(
        {"a": Timed("a", clock, [], lambda n: 0.07)}, lambda r: {"input": np.zeros(1)}, LatencyPlan("s"), meter
    )
    assert sum(meter.steps) == meter.total == 3000
    assert gc.isenabled()

    def fail(n: int) -> float:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        measure_latency({"a": Timed("a", clock, [], fail)}, lambda r: {"input": np.zeros(1)}, LatencyPlan("s"))
    assert gc.isenabled()


def _taken(*seconds: float) -> Measurement:
    return Measurement(np.array(seconds), 1, "s", "b", 0.2)


def test_reasons_for_noise() -> None:
    assert noise(_taken(*[1.0, 1.01] * 10)) == []
    slowing = _taken(*[1.0] * 10, *[1.08] * 10)
    assert drift_percent(slowing) == pytest.approx(8.0)
    assert noise(slowing) == ["the median changed by +8.0 % in the second half (above 5 %)"]
    spiky = _taken(*[1.0] * 9, 2.0, *[1.0] * 9, 2.0)
    assert variation_percent(spiky) == pytest.approx(100 * 0.3 / 1.1)
    assert noise(spiky) == ["coefficient of variation 27.3 % (above 10 %)"]


@pytest.mark.parametrize("workers", [2, 5])
def test_parallel_graphs_give_the_same_answers_in_the_same_order(tmp_path: Path, workers: int) -> None:
    images = match_labels(open_npz(bundles.write_images(tmp_path / "i.npz", 50), "validation"), bundles.CLASSES)
    loader = Loader(images, bundles.spec().preprocess, 4)
    runners = [OrtRunner(bundles.classifier(seed=seed), threads=1) for seed in range(3)]
    graphs = dict(zip(("cpu", "tensorrt"), runners[1:], strict=True))
    one, many = (compare(runners[0], graphs, loader, bundles.spec(), workers=at_a_time) for at_a_time in (1, workers))
    assert np.array_equal(one.table.labels, many.table.labels)
    assert list(one.table.answers) == list(many.table.answers) == ["fp32", *graphs]
    for name in one.table.answers:
        assert np.array_equal(one.table.answers[name], many.table.answers[name])
        assert one.scored[name] == many.scored[name]
    assert one.names == many.names
    with pytest.raises(ModelError, match="the graph has 6 outputs for 7 labels"):
        compare(runners[0], graphs, loader, replace(bundles.spec(), labels=(*bundles.CLASSES, "gnu")), workers=workers)
