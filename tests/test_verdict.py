"""Which steps are kept, by errors image by image; and a network on which the typical error alone would mislead."""

from __future__ import annotations

import foreign_graphs
import numpy as np
import onnx
import pytest
from noise import noise_power

from edgeres.data.arrays import Arrays
from edgeres.data.loader import Loader
from edgeres.graph.normalize import normalize
from edgeres.quantize.graphs import RangeChoice, quantize
from edgeres.records import Preprocess
from edgeres.refine.candidate import logits, typical_noise
from edgeres.refine.choice import RefineChoice
from edgeres.refine.recipe import quantize_with_recipe
from edgeres.refine.verdict import ImageErrors, why_refused


def errors(squares: np.ndarray, held: int = 50) -> ImageErrors:
    return ImageErrors(squares, squares, held)


def lognormal(seed: int, count: int = 100) -> np.ndarray:
    return np.exp(np.random.default_rng(seed).normal(-7, 1, count))


def test_less_error_on_every_image_is_kept() -> None:
    before = lognormal(0)
    assert not why_refused(errors(before), errors(0.8 * before), errors(2 * before))


def test_a_single_image_can_refuse_a_step() -> None:
    """99 errors halve, one grows from 0.01 to 0.7: the typical error falls, the mean rises."""
    before = lognormal(1)
    before[7] = 0.01
    after = before / 2
    after[7] = 0.7
    assert errors(after).typical < 0.6 * errors(before).typical
    assert why_refused(errors(before), errors(after)).startswith("the mean error rises by")
    mended = after.copy()
    mended[7] = 0.005
    assert not why_refused(errors(before), errors(mended))


def test_images_that_the_step_has_used_count_for_the_mean() -> None:
    before = lognormal(2)
    after = before / 2
    after[90] = 1.0
    assert "rises" in why_refused(errors(before, held=50), errors(after, held=50))


def test_the_worst_images_count_by_themselves() -> None:
    """The mean falls since most images gain; the five worst lose."""
    before = np.full(100, 0.01)
    before[:5] = 0.02
    after = np.full(100, 0.005)
    after[:5] = 0.05
    assert after.mean() < before.mean()
    assert why_refused(errors(before, held=100), errors(after, held=100)) == (
        "the error on the worst 5% of the images rises by 4.0 dB"
    )


def test_a_clear_gain_is_kept_though_single_errors_change_by_chance() -> None:
    """1.5 dB less on average, and 1.3 dB up or down from image to image."""
    refused = 0
    for seed in range(40):
        before = lognormal(seed)
        after = before * np.exp(np.random.default_rng(1000 + seed).normal(-0.35, 0.3, 100))
        refused += bool(why_refused(errors(before), errors(after)))
    assert refused <= 4


def test_rises_do_not_add_up() -> None:
    start = lognormal(3)
    before, after = start.copy(), start.copy()
    before[60], after[60] = start.sum(), 0.9 * start.sum()
    after[:50] *= 0.9
    assert not why_refused(errors(before), errors(after))
    assert "rises" in why_refused(errors(before), errors(after), errors(start))


def without_normalization() -> onnx.ModelProto:
    """Nothing brings the activations of an image with much contrast to the size of the others."""
    w = foreign_graphs.Writer()
    x = w.op("Relu", w.conv("data", (3, 16), stride=2, bias=True))
    x = w.op("Mul", x, w.op("Sigmoid", x))
    for _ in range(2):
        y = w.op("Relu", w.conv(x, (16, 16), bias=True))
        x = w.op("Relu", w.op("Add", w.conv(y, (16, 16), bias=True), x))
    return w.model(w.head(x, 16))


def loader(count: int, seed: int, spread: float) -> Loader:
    """Images of very different contrast."""
    rng = np.random.default_rng(seed)
    contrast = np.exp(rng.normal(2.2, spread, (count, 1, 1, 1)))
    small = 128 + contrast * rng.standard_normal((count, 8, 8, 3))
    pixels = small.clip(0, 255).astype(np.uint8).repeat(4, 1).repeat(4, 2)
    source = Arrays(pixels, np.arange(count) % 4, ("a", "b", "c", "d"), "random")
    return Loader(source, Preprocess(crop_px=(32, 32), mean=(0.5,) * 3, std=(0.1,) * 3), 32)


@pytest.mark.parametrize("spread", [0.5, 0.9])
def test_refinement_does_not_trade_few_images_for_many(spread: float) -> None:
    """On images that nobody saw the typical error falls, and the mean does not rise, as when only the former judged."""
    model = normalize(without_normalization()).model
    unseen = np.concatenate([batch.inputs for batch in loader(256, 9, spread)])
    reference = logits(model, unseen)
    plain = quantize(model, ["tensorrt"], loader(128, 0, spread), RangeChoice())
    choice = RefineChoice("balanced")
    refined = quantize_with_recipe(model, ["tensorrt"], loader(128, 0, spread), RangeChoice(), choice).quantized
    before, after = (logits(graphs["tensorrt"], unseen) for graphs in (plain.graphs, refined.graphs))
    assert noise_power(reference, after) < 1.05 * noise_power(reference, before)  # 0.2 dB is within chance here
    assert typical_noise(reference, after) < 0.9 * typical_noise(reference, before)
