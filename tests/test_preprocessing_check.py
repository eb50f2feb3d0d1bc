"""Whether pixels are prepared as in training: the arithmetic against preprocessing itself, and how often it errs."""

from __future__ import annotations

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
from edgeres.pipeline.verify import zeros_in
from edgeres.records import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from edgeres.runtime.ort import OrtRunner
from edgeres.verify.accuracy import compare
from edgeres.verify.candidates import Candidate
from edgeres.verify.preprocessing import _changes, _with, better_input

HALF, NONE, ONE = (0.5, 0.5, 0.5), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
WAYS = {
    "ImageNet's mean and std": (IMAGENET_MEAN, IMAGENET_STD),
    "mean and std 0.5": (HALF, HALF),
    "mean 0 and std 1": (NONE, ONE),
}


def contract(told: str, **changes: Any) -> Preprocess:
    mean, std = WAYS[told]
    order = -1 if changes.get("channel_order") == "BGR" else 1
    return Preprocess((SIDE, SIDE), mean=mean[::order], std=std[::order], **changes)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("told", WAYS)
def test_another_way_is_what_preprocessing_would_have_done(told: str, order: Any, layout: Any) -> None:
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    own = contract(told, channel_order=order, layout=layout)
    changes = dict(_changes(own))
    for way in WAYS.keys() - {told}:
        found = _with(changes[f"{way} in place of {told}"], apply(image, own)[None], own)[0]
        wanted = apply(image, contract(way, channel_order=order, layout=layout))
        assert np.allclose(found, wanted, atol=1e-4)
    turned = _with(changes[f"channels in the order {order[::-1]}"], apply(image, own)[None], own)[0]
    assert np.allclose(turned, apply(image[..., ::-1], own), atol=1e-4)


def test_a_bundle_that_takes_bytes_holds_the_mean_itself() -> None:
    """What such a graph does with the bytes it gets is what it was told: (byte / 255 - mean) / std."""
    image = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    own = Preprocess((SIDE, SIDE), mean=(128.0, 128.0, 128.0), std=ONE, pixel_scale=1.0)
    change = dict(_changes(own))["ImageNet's mean and std in place of mean 0 and std 1"]
    given = _with(change, apply(image, own)[None], own)[0] + 128
    wanted = apply(image, contract("ImageNet's mean and std"))
    assert np.allclose(given / 255, wanted, atol=1e-4)


def made(folder: Path, seed: int, truth: Preprocess | None, told: Preprocess) -> Any:
    """FP32's comparison on noise whose labels are its own answers where pixels are prepared as ``truth``."""
    graph = folder / "fp32.onnx"
    graph.write_bytes(classifier(seed=seed))
    file = write_images(folder / "images.npz", 160, seed=seed)
    data = dict(np.load(file))
    colours = np.random.default_rng(seed).uniform(0, 1, (160, 1, 1, 3))  # else all noise looks the same to it
    data["images"] = (data["images"] * colours).astype(np.uint8)
    if truth is not None:
        with OrtRunner(graph) as runner:
            inputs = np.stack([apply(image, truth) for image in data["images"]])
            data["labels"] = runner.infer({"pixels": inputs})["scores"].argmax(axis=1)
    np.savez(file, **data)
    loader = Loader(match_labels(open_npz(file, "validation"), CLASSES), told, 16)
    model = replace(spec(), preprocess=told)
    with OrtRunner(graph) as runner:
        return better_input(Candidate(lambda threads: OrtRunner(graph)), loader, compare(runner, {}, loader, model))


def test_the_way_that_made_the_labels_is_named(tmp_path: Path) -> None:
    found = made(tmp_path, 1, contract("ImageNet's mean and std"), contract("mean 0 and std 1"))
    assert found.way == "ImageNet's mean and std in place of mean 0 and std 1"
    assert found.right_otherwise == found.images > found.right


def test_right_inputs_and_labels_of_pure_luck_are_left_alone(tmp_path: Path) -> None:
    own = contract("ImageNet's mean and std")
    assert made(tmp_path, 1, own, own) is None
    assert [made(tmp_path, seed, None, own) for seed in range(20)] == [None] * 20


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
