"""Each check finds the fault that it is for, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from judged import compared

from edgeres.data.base import Source
from edgeres.data.loader import Loader
from edgeres.data.pixels import Pixels, PixelTally, sample_pixels
from edgeres.judge.checks import CHECKS, Evidence, check
from edgeres.records import EngineRecord, LeftOut, Preprocess
from edgeres.verify.accuracy import Comparison
from edgeres.verify.layer_noise import LayerNoise, RangeFit

NAMES = ("ant", "bee", "cow", "dog", "elk", "fox")


def comparison(answers: dict[int, int] | None = None, share: float = 0.9, each: int = 20) -> Comparison:
    """``each`` images per class; FP32 gives the answer in ``answers`` to ``share`` of a class, else the right one."""
    labels = np.repeat(np.arange(len(NAMES)), each)
    given = labels.copy()
    for label, answer in (answers or {}).items():
        given[np.flatnonzero(labels == label)[: round(share * each)]] = answer
    return compared(labels, len(NAMES), {"fp32": given, "cpu": given}, names={})


def found(name: str, **evidence: Any) -> tuple[str, str]:
    (one,) = [one for one in check(Evidence(NAMES, **evidence)) if one.name == name]
    return one.outcome, one.reason


def test_every_check_states_what_it_lacks() -> None:
    checks = check(Evidence(NAMES))
    assert [made.name for made in checks] == list(CHECKS)
    assert {made.outcome for made in checks if made.name not in {"engines", "targets"}} == {"unsure"}
    assert all(made.reason and made.title for made in checks)


# ---- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({1: 4, 4: 1}, "bee -> elk -> bee"),
        ({0: 1, 1: 2, 2: 3, 3: 0}, "ant -> bee -> cow -> dog -> ant"),
        ({1: 4, 4: 1, 2: 3, 3: 2}, "bee -> elk -> bee; cow -> dog -> cow"),
    ],
)
def test_swapped_labels_are_named(answers: dict[int, int], words: str) -> None:
    outcome, reason = found("labels", comparison=comparison(answers))
    assert outcome == "failed"
    assert words in reason


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({0: 1, 1: 2, 2: 3, 3: 4, 4: 5, 5: 0}, "one name a line: fox, ant, bee, cow, dog, elk"),
        ({0: 5, 1: 3, 2: 4, 3: 1, 4: 2, 5: 0}, "one name a line: fox, dog, elk, bee, cow, ant"),
    ],
)
def test_another_order_of_the_outputs_is_named(answers: dict[int, int], words: str) -> None:
    given = comparison(answers)
    outcome, reason = found("labels", comparison=given)
    assert outcome == "failed"
    assert "labels are in another order than the outputs" in reason
    assert words in reason
    assert "their order is another one" in found("fp32", comparison=given)[1]


@pytest.mark.parametrize(("step", "words"), [(1, "labels are 1 too low"), (-1, "labels are 1 too high")])
def test_labels_that_are_off_by_one_are_told(step: int, words: str) -> None:
    """As of a network whose first output is a background class."""
    labels = np.repeat(np.arange(1, 4), 20)
    answers = labels + step
    answers[::20] = 0
    given = compared(labels, len(NAMES), {"fp32": answers, "cpu": answers}, names={})
    outcome, reason = found("labels", comparison=given)
    assert (outcome, reason.startswith(words)) == ("failed", True)


@pytest.mark.parametrize(
    "given",
    [
        comparison(),
        comparison({0: 3, 1: 3, 2: 3, 4: 3, 5: 3}),  # a network that always says dog
        comparison({1: 4, 4: 1}, share=0.5),  # half is no majority
        comparison({1: 4, 4: 1}, each=4),  # too few images
        comparison({1: 4}),  # bees are taken for elks, but elks are answered right
    ],
)
def test_a_poor_network_has_no_swapped_labels(given: Comparison) -> None:
    assert found("labels", comparison=given)[0] == "passed"


def test_another_order_of_labels_than_in_the_baseline_fails() -> None:
    swapped = ["ant", "cow", "bee", "dog", "elk", "fox"]
    section = {"changed": [{"what": "labels", "before": swapped, "after": list(NAMES)}], "missing_classes": []}
    outcome, reason = found("labels", comparison=comparison(), baseline=section)
    assert (outcome, reason) == ("failed", "2 labels are in another order than in the baseline: cow, bee")
    section["changed"] = [{"what": "labels", "before": ["x", "y"], "after": list(NAMES)}]  # another model
    assert found("labels", comparison=comparison(), baseline=section)[0] == "passed"


def test_classes_without_images_are_named() -> None:
    section: dict[str, Any] = {"changed": [], "missing_classes": [{"class": 1, "name": "bee", "before": 62}]}
    outcome, reason = found("classes", baseline=section)
    assert (outcome, reason) == ("failed", "no validation images of bee (62 in the baseline)")
    assert found("classes", baseline={"changed": [], "missing_classes": []})[0] == "passed"


# ---- pixels ----------------------------------------------------------------------------------------------------------


class Coloured(Source):
    """Images of one colour each, reddish."""

    classes, description = (), "coloured"

    def __init__(self, count: int, *, bgr: bool = False, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.labels = np.zeros(count, np.int64)
        self.pixels = np.clip(rng.normal((140, 120, 100), 15, (count, 3)), 0, 255).astype(np.uint8)
        if bgr:
            self.pixels = self.pixels[:, ::-1]

    def name(self, index: int) -> str:
        return str(index)

    def image(self, index: int) -> Any:
        return np.broadcast_to(self.pixels[index], (8, 8, 3))

    def digest(self) -> str:
        return "0" * 64


@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_mean_colours_are_in_bytes(order: Any, layout: Any) -> None:
    mean, std = ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)) if order == "RGB" else ((0.6, 0.5, 0.4), (0.3, 0.25, 0.2))
    contract = Preprocess((8, 8), mean=mean, std=std, channel_order=order, layout=layout)
    source = Coloured(40)
    tally = PixelTally(contract)
    for batch in Loader(source, contract, 7):
        tally.add(batch.inputs)
    assert tally.pixels is not None
    assert tally.pixels.mean == pytest.approx(source.pixels.mean(axis=0), abs=0.01)
    difference = source.pixels[:, 0].astype(float) - source.pixels[:, 2]
    assert tally.pixels.red_minus_blue == pytest.approx(difference.mean(), abs=0.01)
    assert tally.pixels.error == pytest.approx(difference.std(ddof=1) / np.sqrt(40), abs=0.01)


def test_a_sample_is_spread_over_the_source() -> None:
    source = Coloured(1000)
    source.pixels[:500] = 0
    seen = sample_pixels(source, Preprocess((8, 8)))
    assert seen is not None
    assert seen.images == 64
    assert 40 < seen.mean[1] < 80
    assert sample_pixels(Coloured(1), Preprocess((8, 8))) is None


def _seen(source: Source) -> Pixels:
    found = sample_pixels(source, Preprocess((8, 8)))
    assert found is not None
    return found


def _with_pixels(pixels: Pixels) -> Comparison:
    return replace(comparison(), pixels=pixels)


def test_calibration_in_bgr_is_named() -> None:
    now = _with_pixels(_seen(Coloured(300, seed=1)))
    outcome, reason = found("calibration", comparison=now, calibration=_seen(Coloured(300, bgr=True)))
    assert outcome == "failed"
    assert "look like BGR" in reason


def test_other_differences_of_the_images_are_not_bgr() -> None:
    now = _with_pixels(_seen(Coloured(300, seed=1)))
    for mean in ((200, 180, 160), (40, 20, 0), (120, 120, 120), (80, 120, 200), (180, 120, 60)):
        other = Pixels(64, mean, mean[0] - mean[2], 2.0)  # brighter, darker, grey, bluer, redder
        assert found("calibration", comparison=now, calibration=other)[0] == "passed"


def test_images_without_colour_are_not_bgr() -> None:
    """The mean of red minus blue is zero, so its sign is random."""
    wrong = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        two = [Pixels(64, (0, 0, 0), float(rng.normal(0, 3)), 3.0) for _ in range(2)]
        wrong += found("calibration", comparison=_with_pixels(two[0]), calibration=two[1])[0] == "failed"
    assert wrong == 0


# ---- graphs and engines ----------------------------------------------------------------------------------------------


def test_weights_with_one_scale_are_named() -> None:
    inside = {"cpu": LayerNoise(16, weights=20), "tensorrt": LayerNoise(16, per_tensor=("conv1", "fc"), weights=20)}
    outcome, reason = found("weights", layer_noise=inside)
    assert (outcome, "2 of 20 layers of the tensorrt graph" in reason) == ("failed", True)
    assert found("weights", layer_noise={"cpu": LayerNoise(16, weights=20)})[0] == "passed"
    assert found("weights", no_layer_noise="it needs onnx") == ("unsure", "it needs onnx")


def test_a_scale_that_does_not_fit_is_named() -> None:
    fits = (RangeFit("relu1", 0.95, 31.0), RangeFit("relu2", 0.1, 3.0))
    outcome, reason = found("ranges", layer_noise={"cpu": LayerNoise(16, ranges=fits)})
    assert outcome == "failed"
    assert "the scale of relu2 in the cpu graph does not fit (3.0 dB): its codes cover 10 %" in reason
    outcome, reason = found("ranges", layer_noise={"cpu": LayerNoise(16, ranges=fits[:1])})
    assert (outcome, "31.0 dB in the cpu graph" in reason) == ("passed", True)


@pytest.mark.parametrize(
    ("graph", "engine", "outcome"),
    [("new", "old", "failed"), ("old", "old", "passed"), ("new", "new", "passed"), ("old", "new", "passed")],
)
def test_an_engine_older_than_its_graph_fails(graph: str, engine: str, outcome: str) -> None:
    record = EngineRecord("rtx", "rtx", "1.7", "int8", "built, not run here", "engines/a.engine", 5)
    then = {"model.int8.onnx": "old", "engines/a.engine": "old"}
    now = {"model.int8.onnx": graph, "engines/a.engine": engine}
    assert found("engines", engines=(record,), files=now, earlier_files=(then,))[0] == outcome
    assert found("engines", engines=(record,), files=now, earlier_files=())[0] == "passed"


# ---- targets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "outcome"), [((True, False), "failed"), ((False, False), "unsure")])
def test_a_target_that_was_named_and_left_out_fails(asked: tuple[bool, bool], outcome: str) -> None:
    left = [
        LeftOut(name, why, a) for name, why, a in zip(("rtx", "cpu"), ("no engine", "no graph"), asked, strict=True)
    ]
    assert found("targets", left_out=left) == (outcome, "rtx: no engine; cpu: no graph")
