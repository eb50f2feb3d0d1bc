"""The check that FP32 sees the images: its exact test against brute force, its error rates, and its words."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judged import compared

from edgeres.judge.checks import BLIND, Evidence, check
from edgeres.verify.statistics import binomials, blind_tail, halfway_tail

NAMES = tuple("abcdefghijklmnop")


def judged(labels: Any, answers: Any, classes: int = 16) -> tuple[str, str, bool]:
    given = np.asarray(answers)
    table = compared(np.asarray(labels), classes, {"fp32": given, "cpu": given}, names={})
    (one,) = [one for one in check(Evidence(NAMES[:classes], table)) if one.name == "fp32"]
    return one.outcome, one.reason, one.warns


def right_with(share: float, labels: Any, classes: int, seed: int = 0) -> Any:
    """Answers that are right on this share of the images, and any class otherwise."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(len(labels)) < share, labels, rng.integers(0, classes, len(labels)))


# ---- the test --------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1)), min_size=1, max_size=4))
def test_the_distribution_of_a_sum_of_binomials_is_that_of_all_outcomes(parts: list[tuple[int, float]]) -> None:
    draws = [p for n, p in parts for _ in range(n)]
    mass = np.zeros(len(draws) + 1)
    for outcome in np.ndindex(*(2,) * len(draws)):
        mass[sum(outcome)] += np.prod([p if hit else 1 - p for hit, p in zip(outcome, draws, strict=True)])
    counts, shares = np.array([n for n, _ in parts]), np.array([p for _, p in parts])
    assert binomials(counts, shares) == pytest.approx(mass, abs=1e-12)


def test_blind_answers_are_dealt_to_labels_that_are_drawn() -> None:
    """Every way to label six images with the shares of the set, given the answers."""
    answers, labels, classes = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 2], 3
    share = np.bincount(labels) / 6
    for hits in range(7):
        tail = 0.0
        for drawn in np.ndindex(*(classes,) * 6):
            if sum(a == b for a, b in zip(answers, drawn, strict=True)) >= hits:
                tail += float(np.prod(share[list(drawn)]))
        assert blind_tail(hits, np.bincount(answers), np.bincount(labels)) == pytest.approx(tail, abs=1e-12)


def test_it_is_close_to_all_orders_of_the_labels() -> None:
    answers, labels = (0, 0, 0, 1, 1, 1, 2, 2), (0, 0, 0, 0, 1, 1, 2, 2)
    orders = [sum(a == b for a, b in zip(answers, order, strict=True)) for order in permutations(labels)]
    for hits in range(3, 8):
        exact = float(np.mean(np.array(orders) >= hits))
        assert blind_tail(hits, np.bincount(answers), np.bincount(labels)) == pytest.approx(exact, rel=0.6, abs=0.02)


@pytest.mark.parametrize(
    ("sizes", "bias"),
    [
        ([50, 50], [0.5, 0.5]),
        ([90, 10], [0.8, 0.2]),
        ([20] * 16, [1 / 16] * 16),
        ([20] * 10, [0.91, *[0.01] * 9]),
        ([1] * 100, [0.01] * 100),
    ],
)
def test_blind_answers_pass_no_more_often_than_the_level(sizes: list[int], bias: list[float]) -> None:
    """Simulated at 5 % and 1 %, where 1,000 draws tell; the check's own level is 0.1 %."""
    rng, labels = np.random.default_rng(3), np.repeat(np.arange(len(sizes)), sizes)
    p = []
    for _ in range(1000):
        answers = rng.choice(len(sizes), len(labels), p=bias)
        p.append(
            blind_tail(int((answers == labels).sum()), np.bincount(answers, minlength=len(sizes)), np.array(sizes))
        )
    assert np.mean(np.array(p) < 0.05) < 0.065
    assert np.mean(np.array(p) < 0.01) < 0.018
    assert np.mean(np.array(p) < BLIND) < 0.004


@pytest.mark.parametrize(("classes", "each"), [(2, 10), (2, 100), (3, 20), (16, 2), (16, 20), (100, 1)])
@pytest.mark.parametrize("share", [0.6, 0.8, 0.95])
def test_a_network_that_sees_the_images_fails_in_one_run_of_forty_at_most(
    classes: int, each: int, share: float
) -> None:
    labels, failed = np.repeat(np.arange(classes), each), 0
    sizes = np.bincount(labels)
    for seed in range(200):
        answers = right_with(share, labels, classes, seed)
        counts, hits = np.bincount(answers, minlength=classes), int((answers == labels).sum())
        failed += blind_tail(hits, counts, sizes) >= BLIND and halfway_tail(hits, counts, sizes) < 0.025
    assert failed / 200 <= 0.025


def test_fifty_thousand_images_of_a_thousand_classes_take_no_time() -> None:
    sizes = np.full(1000, 50)
    answers = np.random.default_rng(0).multinomial(50_000, np.full(1000, 1e-3))
    assert blind_tail(50, answers, sizes) == pytest.approx(0.52, abs=0.05)
    assert blind_tail(100, answers, sizes) < 1e-8


# ---- the check -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "each"), [(2, 20), (2, 500), (3, 100), (10, 10), (16, 4)])
def test_answers_without_a_look_at_the_images_fail(classes: int, each: int) -> None:
    labels = np.repeat(np.arange(classes), each)
    for answers in (np.zeros_like(labels), np.arange(len(labels)) % classes, right_with(0.0, labels, classes)):
        outcome, reason, _ = judged(labels, answers, classes)
        assert outcome == "failed"
        assert "dealt out blindly, would be right on" in reason
        assert "input size, mean and std, pixel scale, channel order, order of the labels" in reason


@pytest.mark.parametrize("answers", [[0] * 100, [*[0] * 97, 1, 1, 1], [1] * 3 + [0] * 97])
def test_the_largest_class_as_the_answer_for_all_fails_although_it_is_right_on_nine_in_ten(answers: list[int]) -> None:
    labels = [0] * 90 + [1] * 10
    if answers[-1] == 1:
        labels = labels[::-1]  # the few other answers are wrong
    assert judged(labels, answers, 2)[0] == "failed"


def test_exchanged_labels_of_two_classes_fail() -> None:
    labels = np.arange(100) % 2
    assert judged(labels, 1 - labels, 2)[0] == "failed"


@pytest.mark.parametrize(("classes", "each", "share"), [(2, 20, 1.0), (2, 100, 0.7), (3, 40, 0.7), (16, 4, 0.5)])
def test_a_network_that_sees_the_images_passes(classes: int, each: int, share: float) -> None:
    labels = np.repeat(np.arange(classes), each)
    outcome, reason, warns = judged(labels, right_with(share, labels, classes), classes)
    assert (outcome, warns) == ("passed", False)
    assert reason.startswith("FP32 is right on ")


def test_a_top1_little_above_chance_is_told() -> None:
    """41.8 % of 3 classes: a network fine-tuned at 64 pixels, on images of 224."""
    labels = np.repeat(np.arange(3), 200)
    answers = np.where(np.arange(600) % 200 < 84, labels, (labels + 1 + np.arange(600) % 2) % 3)
    outcome, reason, warns = judged(labels, answers, 3)
    assert (outcome, warns) == ("unsure", True)
    assert "FP32 is right on 252 of 600 images (42.00 %), little more than chance" in reason
    assert "33.33 %" in reason


def test_a_network_that_is_worse_than_its_largest_class_is_told() -> None:
    """It sees the images, and answers the rare class too often: 95 images of 100 are a, it is right on 90 in 100."""
    labels = np.repeat([0, 1], [190, 10])
    answers = labels.copy()
    answers[:20] = 1
    outcome, reason, warns = judged(labels, answers, 2)
    assert (outcome, warns) == ("unsure", True)
    assert "but the answer a for all of them would be right on 95.00 %" in reason


def test_images_of_one_class_and_too_few_images_cannot_be_judged() -> None:
    outcome, reason, warns = judged([3] * 50, [3] * 50)
    assert (outcome, warns) == ("unsure", True)
    assert "all are d, so one answer for all may be right: add others" in reason
    outcome, reason, warns = judged([0, 0, 1, 1], [0, 0, 1, 1], 2)
    assert (outcome, warns) == ("unsure", True)
    assert "too few to tell" in reason
    assert judged([-1] * 8, [0] * 8) == ("unsure", "there are no labels", False)


def test_images_without_a_label_are_not_counted() -> None:
    labels = np.repeat(np.arange(4), 20)
    outcome, reason, _ = judged(np.append(labels, [-1] * 100), np.append(labels, [0] * 100), 4)
    assert (outcome, "80 of 80 images" in reason) == ("passed", True)
