"""The recipe keeps the steps that lower the error, and records all steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from noise import noise_power

from edgeres.data.arrays import Arrays
from edgeres.data.loader import Loader
from edgeres.errors import ModelError
from edgeres.pipeline.take import Fp32Model, ModelChoice, take, with_exact_input
from edgeres.progress import Silent
from edgeres.quantize.graphs import RangeChoice, quantize
from edgeres.refine import recipe
from edgeres.refine.candidate import logits
from edgeres.refine.choice import RefineChoice
from edgeres.refine.recipe import Refined, quantize_with_recipe


@pytest.fixture(scope="module", autouse=True)
def few_held_back() -> Iterator[None]:
    """16 of 64 images are held back, so that tests are quick; equalization asks for more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "_LEAST_HELD_TO_EQUALIZE", 16)
        yield


def source(count: int, seed: int) -> Arrays:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    return Arrays(pixels, np.arange(count) % 4, ("a", "b", "c", "d"), "random")


@pytest.fixture(scope="module")
def fp32() -> Fp32Model:
    return with_exact_input(take(ModelChoice("resnet20", weights="signs")))


@pytest.fixture(scope="module")
def loader(fp32: Fp32Model) -> Loader:
    return Loader(source(64, 0), fp32.spec.preprocess, 16)


@pytest.fixture(scope="module")
def balanced(fp32: Fp32Model, loader: Loader) -> Refined:
    choice = RefineChoice("balanced", "auto")
    return quantize_with_recipe(fp32.graph, ["tensorrt", "cpu"], loader, RangeChoice(known=fp32.known), choice)


def test_fast_is_the_calibration_and_nothing_else(fp32: Fp32Model, loader: Loader) -> None:
    ranges = RangeChoice(known=fp32.known)
    plain = quantize(fp32.graph, ["tensorrt"], loader, ranges)
    fast = quantize_with_recipe(fp32.graph, ["tensorrt"], loader, ranges, RefineChoice("fast"))
    assert fast.quantized.graphs["tensorrt"].SerializeToString() == plain.graphs["tensorrt"].SerializeToString()
    assert not fast.steps and not fast.skips
    assert fast.quantized.images == 64


def test_every_step_is_kept_exactly_where_it_helps(balanced: Refined) -> None:
    assert {step.name for step in balanced.steps} >= {"equalization", "bias correction"}
    for step in balanced.steps:
        assert step.after_db is not None
        assert step.kept == (step.after_db > step.before_db)
        assert bool(step.note) != step.kept
    assert balanced.quantized.images == 48  # 16 are held back
    assert len(balanced.skips) == 9


def test_refinement_lowers_the_error_on_images_that_nobody_saw(
    fp32: Fp32Model, loader: Loader, balanced: Refined
) -> None:
    unseen = next(iter(Loader(source(64, 9), fp32.spec.preprocess, 64))).inputs
    reference = logits(fp32.graph, unseen)
    plain = quantize(fp32.graph, ["tensorrt"], loader, RangeChoice(known=fp32.known)).graphs["tensorrt"]
    before = noise_power(reference, logits(plain, unseen))
    assert noise_power(reference, logits(balanced.quantized.graphs["tensorrt"], unseen)) < before


def test_too_few_images_are_all_used_for_calibration(fp32: Fp32Model) -> None:
    few = Loader(source(8, 1), fp32.spec.preprocess, 8)
    done = quantize_with_recipe(fp32.graph, ["tensorrt"], few, RangeChoice(), RefineChoice("balanced", "fp16"))
    assert done.quantized.images == 8
    assert len(done.quantized.plans["tensorrt"].halves) == 9


def test_the_input_is_exact(fp32: Fp32Model, loader: Loader) -> None:
    """Bytes minus 128 equal their codes: scale 1 and no error, in both styles."""
    done = quantize(fp32.graph, ["tensorrt", "cpu"], loader, RangeChoice(known=fp32.known))
    first = next(iter(fp32.known))
    for style, zero_point in (("tensorrt", 0), ("cpu", 128)):
        edge = next(edge for edge in done.plans[style].edges if edge.tensor == first)  # type: ignore[index]
        assert (float(edge.params.scale), edge.params.zero_point) == (1.0, zero_point)
    values = np.unique(next(iter(loader)).inputs)
    assert np.array_equal(values, values.astype(np.int8))


@pytest.mark.parametrize("why", ["", "the mean error rises by 2.0 dB"])
def test_refined_ranges_that_are_worse_than_those_of_all_images_are_not_used(
    fp32: Fp32Model, loader: Loader, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    def judge(before: object, after: object, start: object = None) -> str:
        return why if start is None else ""  # only a step has a start: every step is kept

    monkeypatch.setattr("edgeres.refine.recipe.why_refused", judge)
    ranges = RangeChoice(known=fp32.known)
    plain = quantize(fp32.graph, ["cpu"], loader, ranges)
    done = quantize_with_recipe(fp32.graph, ["cpu"], loader, ranges, RefineChoice("balanced"))
    same = done.quantized.graphs["cpu"].SerializeToString() == plain.graphs["cpu"].SerializeToString()
    last = done.steps[-1]
    if why:
        assert same and done.quantized.images == 64
        assert last.name == "calibration on all images" and last.note.endswith(why)
    else:
        assert not same and done.quantized.images == 48
        assert last.name == "bias correction"


def test_a_step_that_fails_is_left_out_with_a_word(
    fp32: Fp32Model, loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refinement is optional: whatever one of its steps raises, the build goes on without it."""

    class Said(Silent):
        def say(self, line: str) -> None:
            lines.append(line)

    def fails(error: Exception) -> Any:
        def step(*given: object, **named: object) -> None:
            raise error

        return step

    lines: list[str] = []
    steps = {"equalize": KeyError("x"), "correct_bias": ValueError("of\ntwo lines"), "choose_residual": IndexError(3)}
    for name, error in steps.items():
        monkeypatch.setattr(f"edgeres.refine.recipe.{name}", fails(error))
    monkeypatch.setattr("edgeres.refine.reconstruct.reconstruct", fails(ModelError("no such operator", where="net")))
    ranges, choice = RangeChoice(known=fp32.known), RefineChoice("balanced", "auto")
    done = quantize_with_recipe(fp32.graph, ["tensorrt"], loader, ranges, choice, Said())
    assert lines == [
        "equalization left out: KeyError: 'x'",
        "residual precision left out: IndexError: 3",
        "learned ranges, tensorrt graph left out: net: no such operator",
        "bias correction, tensorrt graph left out: ValueError: of two lines",
    ]
    assert [(step.name, step.kept, step.after_db) for step in done.steps] == [
        ("equalization", False, None),
        ("learned ranges", False, None),
        ("bias correction", False, None),
    ]
    assert all(step.note in line for step, line in zip(done.steps, [lines[0], *lines[2:]], strict=True))
    # What is left is the calibration of the images that were not held back.
    assert done.quantized.images == 48 and not done.skips


def test_equalization_is_left_out_where_too_few_images_judge_it(
    fp32: Fp32Model, loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "_LEAST_HELD_TO_EQUALIZE", 17)
    done = quantize_with_recipe(fp32.graph, ["cpu"], loader, RangeChoice(known=fp32.known), RefineChoice("balanced"))
    step = done.steps[0]
    assert (step.name, step.kept, step.after_db) == ("equalization", False, None)
    assert step.note == "16 held-back images are too few to judge it: give 68 images"
    assert done.steps[1].name == "bias correction" and done.steps[1].after_db is not None


def test_a_machine_without_memory_ends_the_build(
    fp32: Fp32Model, loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: object) -> None:
        raise MemoryError

    monkeypatch.setattr("edgeres.refine.recipe.equalize", fails)
    with pytest.raises(MemoryError):
        quantize_with_recipe(fp32.graph, ["cpu"], loader, RangeChoice(known=fp32.known), RefineChoice("balanced"))
