"""The check of preprocessing: its arithmetic against preprocessing itself, and how often it errs."""

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
from edgeres.verify.preprocessing import _changed, _changes, better_input

HALF, NONE, ONE = (0.5, 0.5, 0.5), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
NORMALIZATIONS = {
    "ImageNet's mean and std": (IMAGENET_MEAN, IMAGENET_STD),
    "mean and std 0.5": (HALF, HALF),
    "mean 0 and std 1": (NONE, ONE),
}


def contract(normalization: str, **changes: Any) -> Preprocess:
    mean, std = NORMALIZATIONS[normalization]
    order = -1 if changes.get("channel_order") == "BGR" else 1
    return Preprocess((SIDE, SIDE), mean=mean[::order], std=std[::order], **changes)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("used", NORMALIZATIONS)
def test_a_change_computes_what_the_other_preprocessing_gives(used: str, order: Any, layout: Any) -> None:
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    own = contract(used, channel_order=order, layout=layout)
    changes = dict(_changes(own))
    for other in NORMALIZATIONS.keys() - {used}:
        found = _changed(apply(image, own)[None], changes[f"{other} in place of {used}"], own)[0]
        wanted = apply(image, contract(other, channel_order=order, layout=layout))
        assert np.allclose(found, wanted, atol=1e-4)
    swapped = _changed(apply(image, own)[None], changes[f"channels in the order {order[::-1]}"], own)[0]
    assert np.allclose(swapped, apply(image[..., ::-1], own), atol=1e-4)


def test_mean_and_std_inside_the_graph_are_replaced_too() -> None:
    """A graph that takes bytes computes (byte / 255 - mean) / std itself."""
    image = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    own = Preprocess((SIDE, SIDE), mean=(128.0, 128.0, 128.0), std=ONE, pixel_scale=1.0)
    change = dict(_changes(own))["ImageNet's mean and std in place of mean 0 and std 1"]
    given = _changed(apply(image, own)[None], change, own)[0] + 128
    wanted = apply(image, contract("ImageNet's mean and std"))
    assert np.allclose(given / 255, wanted, atol=1e-4)


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
    with OrtRunner(graph) as runner:
        return better_input(Candidate(lambda threads: OrtRunner(graph)), loader, compare(runner, {}, loader, model))


def test_the_preprocessing_that_made_the_labels_is_found(tmp_path: Path) -> None:
    found = searched(tmp_path, 1, contract("ImageNet's mean and std"), contract("mean 0 and std 1"))
    assert found.way == "ImageNet's mean and std in place of mean 0 and std 1"
    assert found.right_otherwise == found.images > found.right


def test_none_is_found_for_right_inputs_or_random_labels(tmp_path: Path) -> None:
    own = contract("ImageNet's mean and std")
    assert searched(tmp_path, 1, own, own) is None
    assert [searched(tmp_path, seed, None, own) for seed in range(20)] == [None] * 20


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
