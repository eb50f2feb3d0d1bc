"""What can only be wrong is refused before anything is computed: units of mean and std, images without a picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import CLASSES, SIDE, classifier, spec, write_bundle, write_images
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import edgeres
from edgeres.bundle import FP32
from edgeres.data.arrays import open_npz
from edgeres.data.choose import DataChoice
from edgeres.data.plausible import check_images, check_normalization
from edgeres.data.sources import open_source
from edgeres.errors import BundleError, SourceError, UsageError
from edgeres.pipeline.calibrate import CalibrateOptions, calibrate_file
from edgeres.pipeline.options import RangeOptions, VerifyOptions
from edgeres.pipeline.quantize import quantize_file
from edgeres.pipeline.take import InputChoice, ModelChoice
from edgeres.pipeline.verify import verify_bundle
from edgeres.records import IMAGENET_MEAN, IMAGENET_STD, PixelReading, Preprocess
from edgeres.refine.choice import RefineChoice

MEAN_255, STD_255 = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
ZERO, HALF, ONE = (0.0,) * 3, (0.5,) * 3, (1.0,) * 3
UNIT = 1 / 255


def contract(mean: tuple[float, ...], std: tuple[float, ...], scale: float) -> Preprocess:
    return Preprocess((8, 8), mean=mean, std=std, pixel_scale=scale)


@pytest.mark.parametrize(
    ("mean", "std", "scale"),
    [
        (IMAGENET_MEAN, IMAGENET_STD, UNIT),
        (MEAN_255, STD_255, 1.0),
        (HALF, HALF, UNIT),
        (ZERO, ONE, UNIT),
        (ZERO, ONE, 1.0),
        ((127.5,) * 3, (127.5,) * 3, 1.0),
        ((127.5,) * 3, (128.0,) * 3, 1.0),
        ((103.939, 116.779, 123.68), ONE, 1.0),  # Caffe
        (ONE, ONE, 1 / 127.5),
        ((128.0,) * 3, ONE, 1.0),
        ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), UNIT),
        (ZERO, (255.0,) * 3, 1.0),
        ((-1.0,) * 3, ONE, 1 / 255),
    ],
)
def test_normalizations_that_people_train_with_are_taken(
    mean: tuple[float, ...], std: tuple[float, ...], scale: float
) -> None:
    told = check_normalization(contract(mean, std, scale))
    assert [line.split(" is ")[1][:8] for line in told] == (["negative"] if min(mean) < 0 else [])


@pytest.mark.parametrize(
    ("mean", "std", "scale", "words"),
    [
        (
            MEAN_255,
            STD_255,
            UNIT,
            "mean 123.675 is above 1, the value of white at pixel scale 1/255; add --pixel-scale 1",
        ),
        (MEAN_255, IMAGENET_STD, UNIT, "mean 123.675 is above 1"),
        ((0.5, 0.5, 116.28), HALF, UNIT, "mean 116.28 is above 1"),
        (IMAGENET_MEAN, STD_255, UNIT, "leaves no contrast; add --pixel-scale 1"),
        (ZERO, (255.0,) * 3, UNIT, "leaves no contrast"),
        (IMAGENET_MEAN, IMAGENET_STD, 1.0, "mean 0.485 is below 1, but pixels reach 255 at pixel scale 1; leave out"),
        (HALF, HALF, 1.0, "leave out --pixel-scale"),
        (IMAGENET_MEAN, ONE, 1.0, "mean 0.485 is below 1"),
        (ZERO, IMAGENET_STD, 1.0, "far beyond what networks are trained on; leave out --pixel-scale"),
        (MEAN_255, IMAGENET_STD, 1.0, "far beyond"),
        (ZERO, ONE, 1 / 65025, "leaves no contrast"),
    ],
)
def test_other_units_are_refused_in_one_line(
    mean: tuple[float, ...], std: tuple[float, ...], scale: float, words: str
) -> None:
    with pytest.raises(UsageError) as raised:
        check_normalization(contract(mean, std, scale))
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@given(st.floats(0, 255), st.floats(1, 255), st.sampled_from([255.0, 1.0]))
def test_the_same_normalization_in_other_units_gives_the_same_verdict(mean: float, std: float, units: float) -> None:
    """(byte - mean) / std, written with bytes or with values of 0 to 1."""
    in_bytes, in_units = contract((mean,) * 3, (std,) * 3, 1.0), contract((mean / 255,) * 3, (std / 255,) * 3, UNIT)
    if mean >= 1:  # a mean below one byte looks like one in units of 0 to 1
        assert _is_refused(in_bytes) == _is_refused(in_units)


def _is_refused(p: Preprocess) -> bool:
    try:
        check_normalization(p)
    except UsageError:
        return True
    return False


# ---- images ----------------------------------------------------------------------------------------------------------


def images_at(folder: Path, images: Any) -> Any:
    np.savez(folder / "images.npz", images=np.asarray(images, np.uint8), labels=np.arange(len(images)) % 2)
    return open_npz(folder / "images.npz", "calibration")


def noise(count: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)


PLAIN = contract(IMAGENET_MEAN, IMAGENET_STD, UNIT)


@pytest.mark.parametrize(("level", "word"), [(255, "white"), (0, "black"), (128, "grey (level 128)")])
def test_images_that_are_all_the_same_plain_colour_are_refused(tmp_path: Path, level: int, word: str) -> None:
    source = images_at(tmp_path, np.full((40, 8, 8, 3), level))
    with pytest.raises(SourceError, match="32 of 32 images that were looked at are plain") as raised:
        check_images(source, PLAIN)
    assert f"plain {word}, such as" in str(raised.value)
    assert "images.npz" in str(raised.value)


def test_black_files_with_one_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    for i in range(10):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "a" / f"{i}.png")
    (tmp_path / "a" / "0.png").write_bytes(b"no image")
    with pytest.raises(SourceError, match="9 of 9 images that were looked at are plain black"):
        check_images(open_source(str(tmp_path), role="calibration", px=8), PLAIN)


def test_few_plain_images_are_warned_of(tmp_path: Path) -> None:
    (told,) = check_images(images_at(tmp_path, np.zeros((7, 8, 8, 3))), PLAIN)
    assert "7 of 7 images that were looked at are plain black, such as images[0]; look at the files" in told


def test_some_plain_images_and_copies_of_one_picture_are_warned_of(tmp_path: Path) -> None:
    mixed = noise(30)
    mixed[:10] = 255
    (told,) = check_images(images_at(tmp_path, mixed), PLAIN)
    assert "10 of 30 images that were looked at have one plain colour" in told
    (told,) = check_images(images_at(tmp_path, np.repeat(noise(1), 6, axis=0)), PLAIN)
    assert "all 6 images that were looked at are the same picture" in told


def test_real_pictures_patches_of_colours_and_line_drawings_are_taken(tmp_path: Path) -> None:
    assert check_images(images_at(tmp_path, noise(40)), PLAIN) == []
    drawn = np.zeros((40, 64, 64, 3))  # a thin line on black, at another place in each image
    for i in range(40):
        drawn[i, i, :40] = 255
    assert check_images(images_at(tmp_path, drawn), contract(HALF, HALF, UNIT)) == []
    colours = np.broadcast_to(np.random.default_rng(0).integers(0, 256, (40, 1, 1, 3)), (40, 8, 8, 3))
    assert "one plain colour" in check_images(images_at(tmp_path, colours), PLAIN)[0]
    assert check_images(images_at(tmp_path, np.zeros((1, 8, 8, 3))), PLAIN) == []


GRAY = Preprocess((8, 8), mean=(0.5,), std=(0.25,), reading=PixelReading(1))
DEPTH = replace(GRAY, reading=PixelReading(1, full_scale=5000))


def written(folder: Path, pixels: Any) -> Any:
    """A folder of twelve PNG files with the same pixels."""
    for i in range(12):
        (folder / "a").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / "a" / f"{i}.png")
    return open_source(str(folder), role="calibration", px=8)


def test_depth_of_one_value_is_warned_of_with_its_full_scale(tmp_path: Path) -> None:
    """A wall; the same files are refused for a network of three channels."""
    walls = written(tmp_path, np.full((8, 8), 6000, np.uint16))
    (told,) = check_images(walls, DEPTH)
    assert "12 of 12 images that were looked at are plain white" in told
    assert "16 bits from 5000 on are white: does --full-scale fit them?" in told
    (told,) = check_images(walls, GRAY)
    assert "plain grey (level 23)" in told
    (told,) = check_images(walls, replace(PLAIN, reading=PixelReading(full_scale=6000)))
    assert "plain white" in told
    with pytest.raises(SourceError, match="plain grey"):
        check_images(walls, PLAIN)


def test_a_fourth_channel_does_not_hide_what_the_others_lack(tmp_path: Path) -> None:
    four = Preprocess((8, 8), mean=(*IMAGENET_MEAN, 0.0), std=(*IMAGENET_STD, 1.0), reading=PixelReading(4))
    black = np.zeros((8, 8, 4), np.uint8)
    black[..., 3] = 255
    with pytest.raises(SourceError, match="plain black"):
        check_images(written(tmp_path, black), four)
    black[..., 3] = np.random.default_rng(0).integers(0, 256, (8, 8))
    assert not [line for line in check_images(written(tmp_path, black), four) if "plain" in line]
    assert check_normalization(four) == []


def test_depth_in_millimetres_or_metres_is_taken_and_other_units_are_named() -> None:
    in_mm = {"mean": (1200.0,), "std": (800.0,)}
    assert check_normalization(replace(DEPTH, **in_mm, pixel_scale=5000 / 255)) == []
    assert check_normalization(replace(DEPTH, mean=(0.0,), std=(1.0,), pixel_scale=5000 / 255)) == []
    assert check_normalization(replace(DEPTH, mean=(1.2,), std=(0.8,), pixel_scale=5 / 255)) == []
    with pytest.raises(UsageError, match=r"add --pixel-scale 19\.6078 where mean and std are in units of the files"):
        check_normalization(replace(DEPTH, **in_mm))


# ---- every command ---------------------------------------------------------------------------------------------------


def network(folder: Path) -> Path:
    (folder / "tiny.onnx").write_bytes(classifier())
    return folder / "tiny.onnx"


def run(step: str, folder: Path, images: Path, **choice: Any) -> object:
    """One step of the pipeline on a small network."""
    model = ModelChoice(network(folder), input=InputChoice(**choice))
    data = DataChoice(calibration=str(images))
    if step == "build":
        return edgeres.build(
            network(folder), calibration=images, validation=images, output=folder / "out.edgeres", **choice
        )
    if step == "quantize":
        return quantize_file(model, data, RangeOptions(), RefineChoice("fast"), "cpu")
    return calibrate_file(model, data, CalibrateOptions(), folder / "calibration.json")


@pytest.mark.parametrize("step", ["build", "quantize", "calibrate"])
def test_each_step_refuses_other_units_and_plain_images_and_leaves_no_file(tmp_path: Path, step: str) -> None:
    good, white = write_images(tmp_path / "good.npz"), tmp_path / "white.npz"
    np.savez(white, images=np.full((12, SIDE, SIDE, 3), 255, np.uint8), labels=np.arange(12) % len(CLASSES))
    network(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(UsageError, match="add --pixel-scale 1"):
        run(step, tmp_path, good, mean=MEAN_255, std=STD_255)
    with pytest.raises(UsageError, match="leave out --pixel-scale"):
        run(step, tmp_path, good, pixel_scale=1.0)
    with pytest.raises(SourceError, match="12 of 12 images that were looked at are plain white"):
        run(step, tmp_path, white)
    assert {path.name for path in tmp_path.iterdir()} == before


def test_verification_refuses_plain_images_and_a_bundle_of_other_units(tmp_path: Path) -> None:
    good, white = write_images(tmp_path / "good.npz"), tmp_path / "white.npz"
    np.savez(white, images=np.full((12, SIDE, SIDE, 3), 255, np.uint8), labels=np.arange(12) % len(CLASSES))
    bundle = write_bundle(
        tmp_path / "good.edgeres", files={name: classifier() for name in (FP32, "model.int8.cpu.onnx")}
    )
    with pytest.raises(SourceError, match="plain white"):
        verify_bundle(bundle, DataChoice(validation=str(white)), VerifyOptions())
    wrong = write_bundle(tmp_path / "wrong.edgeres", spec(mean=MEAN_255, std=STD_255))
    with pytest.raises(BundleError, match=r"mean 123\.675 is above 1") as raised:
        verify_bundle(wrong, DataChoice(validation=str(good)), VerifyOptions())
    assert "build it again with the mean and std of training" in str(raised.value)
