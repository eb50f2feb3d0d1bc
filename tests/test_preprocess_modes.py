"""Resize modes, filters, channels, depth and orientation against Pillow and OpenCV, bit for bit."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgeres.bundle import MANIFEST_KIND
from edgeres.data.channels import to_bytes
from edgeres.data.files import read_image
from edgeres.data.preprocess import apply, geometry
from edgeres.data.presets import PRESETS
from edgeres.errors import EdgeresError, SourceError, UsageError
from edgeres.pipeline.input_choice import InputChoice
from edgeres.records import INTERPOLATIONS, U8, Fit, PixelReading, Preprocess

side = st.integers(1, 90)
filters = st.sampled_from(INTERPOLATIONS)
KNOWN = Preprocess((224, 224), resize_px=256)


def noise(height: int, width: int, channels: int = 3) -> U8:
    shape = (height, width, channels)
    return np.random.default_rng(height * 1000 + width).integers(0, 256, shape, dtype=np.uint8)


def resize(image: U8, height: int, width: int, interpolation: str) -> U8:
    """By Pillow in two passes, as its single call for most images, or by OpenCV."""
    if interpolation == "cv2-bilinear":
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, -1)
    if image.shape[:2] == (height, width):
        return image
    filter_ = Image.Resampling[interpolation.upper()]
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    mode = picture.mode
    if mode == "RGBA" and interpolation != "nearest":
        picture = picture.convert("RGBa")
    picture = picture.resize((width, picture.height), filter_).resize((width, height), filter_)
    return np.asarray(picture.convert(mode)).reshape(height, width, -1)


def centre_crop(image: U8, height: int, width: int) -> U8:
    """torchvision's CenterCrop."""
    top, left = max(height - image.shape[0], 0), max(width - image.shape[1], 0)
    pads = ((top // 2, (top + 1) // 2), (left // 2, (left + 1) // 2), (0, 0))
    image = np.pad(image, pads)
    y, x = round((image.shape[0] - height) / 2), round((image.shape[1] - width) / 2)
    return image[y : y + height, x : x + width]


def values(channels: int, **other: Any) -> dict[str, Any]:
    return {"mean": (0.5,) * channels, "std": (0.5,) * channels, "reading": PixelReading(channels), **other}  # type: ignore[arg-type]


@settings(max_examples=120, deadline=None)
@given(side, side, st.tuples(side, side), filters, st.sampled_from([1, 3, 4]))
def test_squash(height, width, size, interpolation, channels):
    image = noise(height, width, channels)
    p = Preprocess(size, None, interpolation, **values(channels))
    np.testing.assert_array_equal(geometry(image, p), resize(image, *size, interpolation))


@settings(max_examples=80, deadline=None)
@given(side, side, st.tuples(side, side), st.tuples(side, side), filters)
def test_both_sides_and_a_crop(height, width, size, both, interpolation):
    image = noise(height, width)
    p = Preprocess(size, both, interpolation, fit=Fit(keep_aspect=False))
    np.testing.assert_array_equal(geometry(image, p), centre_crop(resize(image, *both, interpolation), *size))


@settings(max_examples=80, deadline=None)
@given(st.integers(20, 90), st.integers(20, 90), st.tuples(side, side), side, filters)
def test_the_shorter_side_as_torchvision(height, width, size, short, interpolation):
    image, long = noise(height, width), int(short * max(height, width) / min(height, width))
    resized = resize(image, *((short, long) if height <= width else (long, short)), interpolation)
    p = Preprocess(size, short, interpolation)
    np.testing.assert_array_equal(geometry(image, p), centre_crop(resized, *size))


@settings(max_examples=80, deadline=None)
@given(
    st.integers(20, 90),
    st.integers(20, 90),
    st.integers(8, 60),
    st.integers(8, 60),
    st.sampled_from([0.875, 0.95, 1.0]),
)
def test_crop_ratio_as_timm(height, width, rows, columns, ratio):
    """timm's transforms_imagenet_eval: Resize for a square, ResizeKeepRatio for others, then CenterCrop."""
    p = InputChoice.of({"crop_ratio": ratio, "interpolation": "bicubic"}).over(Preprocess((rows, columns)))
    image, box = noise(height, width), (math.floor(rows / ratio), math.floor(columns / ratio))
    if box[0] == box[1]:
        long = int(box[0] * max(height, width) / min(height, width))
        size = (box[0], long) if height <= width else (long, box[0])
    else:
        factor = min(height / box[0], width / box[1])
        size = (round(height / factor), round(width / factor))
    np.testing.assert_array_equal(geometry(image, p), centre_crop(resize(image, *size, "bicubic"), rows, columns))


@settings(max_examples=100, deadline=None)
@given(side, side, st.tuples(side, side), filters, st.sampled_from([1, 3, 4]), st.integers(0, 255))
def test_letterbox_as_ultralytics(height, width, size, interpolation, channels, level):
    r = min(size[0] / height, size[1] / width)
    rows, columns = max(round(height * r), 1), max(round(width * r), 1)
    image = noise(height, width, channels)
    top, left = round((size[0] - rows) / 2 - 0.1), round((size[1] - columns) / 2 - 0.1)
    expected = np.full((*size, channels), level, np.uint8)
    expected[top : top + rows, left : left + columns] = resize(image, rows, columns, interpolation)
    p = Preprocess(size, None, interpolation, fit=Fit((level,) * channels), **values(channels))
    np.testing.assert_array_equal(geometry(image, p), expected)


@pytest.mark.parametrize("size", [(720, 1280), (1080, 1920), (480, 640), (448, 448)])
def test_camera_sizes_as_opencv(size):
    image = noise(*size)
    p = Preprocess((224, 224), None, "cv2-bilinear")
    np.testing.assert_array_equal(geometry(image, p), cv2.resize(image, (224, 224)))


def test_gray_is_pillows():
    image = noise(40, 50)
    p = Preprocess((40, 50), **values(1))
    gray = np.asarray(Image.fromarray(image).convert("L"))
    np.testing.assert_array_equal(geometry(image, p)[..., 0], gray)
    np.testing.assert_array_equal(geometry(gray, p)[..., 0], gray)
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    np.testing.assert_array_equal(read_image(stream, None, p.reading)[..., 0], gray)


def test_a_fourth_channel_stays_the_last():
    image = noise(6, 7, 4)
    p = Preprocess((6, 7), **values(4, channel_order="BGR"))
    np.testing.assert_array_equal(geometry(image, p), image[..., [2, 1, 0, 3]])
    opaque = np.dstack([image[..., 2::-1], np.full((6, 7), 255, np.uint8)])
    np.testing.assert_array_equal(geometry(image[..., :3], p), opaque)


@given(st.integers(1, 65535))
def test_16_bits_are_rounded_to_the_nearest_byte(full_scale):
    every = np.arange(0, 65536, 37, dtype=np.uint16)
    exact = np.minimum(every, full_scale) * (255 / full_scale)
    assert np.abs(to_bytes(every, full_scale) - exact).max() <= 0.5 + 1e-9


def test_16_bit_files_and_arrays_are_alike(tmp_path: Path):
    depth = np.random.default_rng(0).integers(0, 8000, (9, 11), dtype=np.uint16)
    Image.fromarray(depth).save(tmp_path / "d.png")
    p = Preprocess((9, 11), **values(1, reading=PixelReading(1, full_scale=5000)))
    from_file = apply(read_image(tmp_path / "d.png", None, p.reading), p)
    np.testing.assert_array_equal(from_file, apply(depth, p))
    assert from_file.max() == 1.0


def test_floating_point_files_are_refused(tmp_path: Path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(SourceError, match="floating-point pixels"):
        read_image(tmp_path / "f.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_as_opencv_reads_it(tmp_path: Path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(noise(5, 8)).save(path, exif=exif)
    content = np.frombuffer(path.read_bytes(), np.uint8)
    by_jpeg = tmp_path / "turned.jpg"
    Image.fromarray(noise(16, 32)).save(by_jpeg, exif=exif, quality=95)
    assert read_image(by_jpeg).shape == cv2.imread(str(by_jpeg)).shape
    np.testing.assert_array_equal(read_image(path), read_image(io.BytesIO(content.tobytes())))
    ignored = read_image(path, None, PixelReading(exif=False))
    np.testing.assert_array_equal(ignored, noise(5, 8))


def test_keras_caffe_is_bgr_less_the_mean():
    p = InputChoice(preprocess="keras-caffe").over(Preprocess((6, 6)))
    image = noise(6, 6)
    expected = image[..., ::-1].astype(np.float64) - (103.939, 116.779, 123.68)
    np.testing.assert_array_equal(apply(image, p), expected.transpose(2, 0, 1).astype(np.float32))


def test_torchvision_presets_give_its_sizes():
    assert InputChoice(preprocess="torchvision").over(Preprocess((224, 224))) == KNOWN
    assert InputChoice(preprocess="torchvision-v2").over(Preprocess((224, 224))).resize_px == 232


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_fits_any_size(name):
    p = InputChoice(preprocess=name).over(Preprocess((96, 160)))
    assert apply(noise(70, 60), p).shape == (3, 96, 160)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"crop_ratio": 0.9, "resize_mode": "squash"}, "crop ratio has no meaning with resize mode squash"),
        ({"fill": (1, 2, 3), "resize_mode": "crop"}, "fill colour has no meaning with resize mode crop"),
        ({"fill": (1, 2), "resize_mode": "letterbox"}, "2 values for a network with 3 channels"),
        ({"fill": (1, 2, 300)}, "whole values from 0 to 255"),
        ({"mean": (0.5,)}, "1 value for a network with 3 channels"),
        ({"resize_px": 256, "resize_mode": "squash"}, "keeps the aspect ratio"),
        ({"resize_px": 256, "resize_mode": "letterbox"}, "has no meaning with a letterbox"),
        ({"resize_px": 256, "crop_ratio": 0.9}, "exclude each other"),
        ({"resize_px": (256, 256), "resize_mode": "crop"}, "squash before the crop"),
        ({"crop_ratio": 1.5}, "not above 0 and at most 1"),
        ({"full_scale": 0}, "not 1 to 65535"),
        ({"preprocess": "torchvison"}, "did you mean torchvision"),
        ({"preprocess": "keras-caffe", "pixel_scale": 1 / 255}, "has pixel scale 1"),
        ({"interpolation": "cubic"}, "no interpolation is 'cubic'"),
    ],
)
def test_nonsense_is_refused_in_one_line(given, words):
    with pytest.raises(UsageError) as caught:
        InputChoice.of(given).over(KNOWN)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_statistics_of_other_channels_are_refused():
    gray = Preprocess((8, 8), **values(1))
    for chosen in ({"preprocess": "torchvision"}, {"channel_order": "BGR"}, {"mean": (1.0, 2.0, 3.0)}):
        with pytest.raises(EdgeresError, match="channel"):
            InputChoice.of(chosen).over(gray)


def test_an_older_manifest_keeps_what_it_was_built_with():
    old = {"crop_px": [8, 8], "resize_px": 9}
    assert MANIFEST_KIND.upgrade is not None
    held = MANIFEST_KIND.upgrade({"model": {"preprocess": old}}, 2)["model"]["preprocess"]
    assert held == {**old, "fill": None, "keep_aspect": True, "channels": 3, "exif": False, "full_scale": 255}
    with pytest.raises(ValueError, match="not square"):
        MANIFEST_KIND.upgrade({"model": {"preprocess": {**old, "crop_px": [8, 9]}}}, 2)
