"""The check of preprocessing: its arithmetic against preprocessing itself, and how often it errs."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import CLASSES, SIDE, classifier, spec, write_images
from calibrations import calibration

from edgeres.calibrate.record import CALIBRATION_KIND, Observed, TensorEntry
from edgeres.data.arrays import open_npz
from edgeres.data.loader import Loader
from edgeres.data.matching import match_labels
from edgeres.data.preprocess import apply
from edgeres.pipeline.input_choice import FitChoice, InputChoice
from edgeres.pipeline.verify import zeros_in
from edgeres.records import IMAGENET_MEAN, IMAGENET_STD, Fit, Preprocess
from edgeres.runtime.ort import OrtRunner
from edgeres.verify.accuracy import compare
from edgeres.verify.candidates import Candidate, Candidates
from edgeres.verify.preprocessing import _changed, _geometries, _ways, search

HALF, NONE, ONE = (0.5, 0.5, 0.5), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
NORMALIZATIONS = {
    "ImageNet's mean and std": (IMAGENET_MEAN, IMAGENET_STD, 1 / 255),
    "mean and std 0.5": (HALF, HALF, 1 / 255),
    "mean 0 and std 1": (NONE, ONE, 1 / 255),
    "raw pixels of 0 to 255": (NONE, ONE, 1.0),
    "Caffe's mean on pixels of 0 to 255": ((123.68, 116.779, 103.939), ONE, 1.0),
    "CIFAR-10's mean and std": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616), 1 / 255),
}


def contract(normalization: str, **changes: Any) -> Preprocess:
    mean, std, scale = NORMALIZATIONS[normalization]
    order = -1 if changes.get("channel_order") == "BGR" else 1
    return Preprocess((SIDE, SIDE), mean=mean[::order], std=std[::order], pixel_scale=scale, **changes)


def option(options: str, name: str) -> list[str]:
    words = options.split()
    after = words[words.index(name) + 1 :] if name in words else []
    return list(itertools.takewhile(lambda word: not word.startswith("--"), after))


def as_built(options: str, own: Preprocess) -> Preprocess:
    """The preprocessing that the command line makes of these options, over one that is known."""
    given = InputChoice(
        mean=tuple(map(float, option(options, "--mean"))) or None,
        std=tuple(map(float, option(options, "--std"))) or None,
        pixel_scale=next(iter(map(float, option(options, "--pixel-scale"))), None),
        resize_px=next(iter(map(int, option(options, "--resize"))), None),
        channel_order=next(iter(option(options, "--channel-order")), None),  # type: ignore[arg-type]
    )
    return given.over(own)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("used", NORMALIZATIONS)
def test_each_way_computes_what_a_build_with_its_options_gives(used: str, order: Any, layout: Any) -> None:
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    own = contract(used, channel_order=order, layout=layout)
    ways = [way for way in _ways(own, None) if way.change is not None]
    assert len({way.words for way in ways}) == len(ways) == 11  # six normalizations in two orders, but its own
    for way in ways:
        found = _changed(apply(image, own)[None], way.change, own)[0]
        wanted = apply(image, as_built(way.options, own))
        assert np.allclose(found, wanted, rtol=1e-4, atol=1e-3 * max(1, np.abs(wanted).max() / 255)), way.words


@pytest.mark.parametrize("given", [contract("ImageNet's mean and std"), contract("mean and std 0.5"), None])
def test_mean_and_std_inside_the_graph_are_replaced_too(given: Preprocess | None) -> None:
    """A graph that takes bytes computes (byte / 255 - mean) / std itself."""
    image = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    own = Preprocess((SIDE, SIDE), mean=(128.0, 128.0, 128.0), std=ONE, pixel_scale=1.0)
    inside = given or contract("mean 0 and std 1")
    name = "ImageNet's mean and std in place of mean 0 and std 1"
    ways = [way for way in _ways(own, given) if way.change and (given or way.words == name)]
    assert len(ways) == (11 if given else 1)
    for way in ways:
        byte = _changed(apply(image, own)[None], way.change, own)[0] + 128
        mean, std = (np.array(values).reshape(3, 1, 1) for values in (inside.mean, inside.std))
        wanted = apply(image, as_built(way.options, inside))
        assert np.allclose((byte * inside.pixel_scale - mean) / std, wanted, rtol=1e-3, atol=1e-3), way.words


def test_the_usual_sizes_and_the_other_crop_are_tried() -> None:
    own = Preprocess((224, 224), resize_px=256)
    ways = {way.options: way.contract for way in _ways(own, None) if way.change is None}
    assert ways["--input-px 64"] == replace(own, crop_px=(64, 64), resize_px=73)
    assert ways["--input-px 320"] == replace(own, crop_px=(320, 320), resize_px=366)
    assert ways["--resize-mode squash"] == replace(own, resize_px=None)
    assert not {"--input-px 224", "--input-px 384"} & ways.keys()
    small = {way.options: way.contract for way in _ways(Preprocess((32, 64)), None) if way.change is None}
    assert small["--input-px 64x128"].crop_px == (64, 128)
    assert small["--resize-mode crop --resize 37"].resize_px == 37
    boxed = Preprocess((224, 224), fit=Fit((114, 114, 114)))
    for known in (own, Preprocess((32, 64)), boxed):  # every other mode, as the command line builds it
        geometries = {way.options: way.contract for way in _geometries(known)}
        assert len({other.resize_mode for other in geometries.values()} | {known.resize_mode}) == 3
        for options, other in geometries.items():
            resize = next(iter(map(int, option(options, "--resize"))), None)
            (mode,) = option(options, "--resize-mode")
            fit = FitChoice(resize_mode=mode)  # type: ignore[arg-type]
            assert InputChoice(resize_px=resize, fit=fit).over(known) == other


def searched(folder: Path, seed: int, truth: Preprocess | None, used: Preprocess) -> Any:
    """The better preprocessing on noise images; labels are FP32's own answers with ``truth``, or random for None."""
    graph = folder / "fp32.onnx"
    graph.write_bytes(classifier(seed=seed))
    file = write_images(folder / "images.npz", 160, seed=seed)
    data = dict(np.load(file))
    colours = np.random.default_rng(seed).uniform(
        0, 1, (160, 1, 1, 3)
    )  # without colours the network answers all noise alike
    data["images"] = (data["images"] * colours).astype(np.uint8)
    if truth is not None:
        with OrtRunner(graph) as runner:
            inputs = np.stack([apply(image, truth) for image in data["images"]])
            data["labels"] = runner.infer({"pixels": inputs})["scores"].argmax(axis=1)
    np.savez(file, **data)
    loader = Loader(match_labels(open_npz(file, "validation"), CLASSES), used, 16)
    model = replace(spec(), preprocess=used)
    candidates = Candidates(Candidate(lambda threads: OrtRunner(graph), graph), {}, "", OrtRunner)
    with OrtRunner(graph) as runner:
        return search(candidates, model, loader, compare(runner, {}, loader, model)).better


def test_the_preprocessing_that_made_the_labels_is_found(tmp_path: Path) -> None:
    found = searched(tmp_path, 1, contract("ImageNet's mean and std"), contract("mean 0 and std 1"))
    assert found.way == "ImageNet's mean and std in place of mean 0 and std 1"
    assert found.right_otherwise == found.images > found.right


def test_none_is_found_for_right_inputs_or_random_labels(tmp_path: Path) -> None:
    own = contract("ImageNet's mean and std")
    assert searched(tmp_path, 1, own, own) is None
    assert [searched(tmp_path, seed, None, own) for seed in range(5)] == [None] * 5


def test_shares_of_zeros_come_from_the_calibration_file(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    assert zeros_in(path) == {}
    tensors = {
        "relu": TensorEntry(Observed(0.0, 1.0, 200, 50, 0.9)),
        "free of zeros": TensorEntry(Observed(0.5, 1.0, 200, 0, 0.9)),
        "imported": TensorEntry(ranges={"cpu": (0.0, 1.0)}),
    }
    path.write_text(json.dumps(CALIBRATION_KIND.content(calibration(tensors))))
    assert zeros_in(path) == {"relu": 0.25}
