"""Preprocessing against exact arithmetic, torch's antialiased resize and torchvision's rules for sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from edgeres.data.files import read_image
from edgeres.data.preprocess import apply, geometry, normalize
from edgeres.data.window import Window, window
from edgeres.errors import InputError, UsageError
from edgeres.records import F64, U8, Preprocess

PHOTOGRAPHS = Path(__file__).parents[2] / "shared" / "data" / "imagenet_samples"
IMAGENET = Preprocess((224, 224), resize_px=256)


def noise(height: int, width: int, seed: int = 0) -> U8:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def reference_geometry(image: U8, p: Preprocess) -> F64:
    """Resize by torch without rounding, crop and padding by slices; sizes from exact fractions."""
    height, width = image.shape[:2]
    if p.resize_px is None:
        size = p.crop_px
    else:
        scale = Fraction(p.resize_px, min(height, width))
        size = (int(height * scale), int(width * scale))
    tensor = torch.from_numpy(image.astype(np.float64)).permute(2, 0, 1)[None]
    if size != (height, width):
        tensor = torch.nn.functional.interpolate(tensor, size=size, mode="bilinear", antialias=True)
    resized = tensor[0].permute(1, 2, 0).numpy()
    out = np.zeros((*p.crop_px, 3))
    source, target = zip(*(overlap(have, want) for have, want in zip(size, p.crop_px, strict=True)), strict=True)
    out[target] = resized[source]
    return out


def overlap(have: int, want: int) -> tuple[slice, slice]:
    """Slices of a side of length ``have`` to read and of length ``want`` to write; halves are rounded to even."""
    spare = abs(have - want)
    if have < want:
        return slice(0, have), slice(spare // 2, spare // 2 + have)
    start = spare // 2 + (spare % 2 and spare // 2 % 2)
    return slice(start, start + want), slice(0, want)


side = st.integers(1, 70)
wide = st.integers(2, 40)  # torch 2.13 interpolates images one pixel wide wrongly


@settings(max_examples=150, deadline=None)
@given(wide, wide, st.tuples(wide, wide), st.none() | wide)
def test_geometry_agrees_with_torch_to_one_level(height, width, crop, resize):
    """Each of two passes rounds by at most half a level; bilinear weights are positive and sum to 1."""
    p = Preprocess(crop, resize_px=resize)
    image = noise(height, width)
    ours, reference = geometry(image, p), reference_geometry(image, p)
    assert ours.dtype == np.uint8 and ours.shape == (*crop, 3) and ours.flags["C_CONTIGUOUS"]
    assert np.abs(ours - reference).max() <= 1.001


@pytest.mark.parametrize(
    ("shape", "resized", "corner"),
    [  # Resize(256) and CenterCrop(224): int(256 * long / short), then round() of half the difference, half to even
        ((375, 500), (256, 341), (16, 58)),
        ((500, 375), (341, 256), (58, 16)),
        ((333, 500), (256, 384), (16, 80)),
        ((768, 1023), (256, 341), (16, 58)),
        ((512, 518), (256, 259), (16, 18)),
        ((256, 257), (256, 257), (16, 16)),
    ],
)
def test_torchvision_sizes_and_corners(shape, resized, corner):
    image = noise(*shape)
    whole = np.asarray(Image.fromarray(image).resize(resized[::-1], Image.Resampling.BILINEAR))
    top, left = corner
    np.testing.assert_array_equal(geometry(image, IMAGENET), whole[top : top + 224, left : left + 224])


KERNELS: dict[str, tuple[float, Callable[[F64], F64]]] = {  # support and weight by distance, in output pixels
    "bilinear": (1, lambda x: 1 - x),
    "bicubic": (2, lambda x: np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2)),
    "lanczos": (3, lambda x: np.sinc(x) * np.sinc(x / 3)),
}


def resample(rows: F64, size: int, interpolation: str) -> F64:
    """Convolve along the first axis with a kernel widened to the step between output pixels, and round to bytes."""
    support, kernel = KERNELS[interpolation]
    step = len(rows) / size
    centres = (np.arange(size) + 0.5) * step
    distance = np.abs(np.arange(len(rows)) + 0.5 - centres[:, None]) / max(step, 1)
    weights = np.where(distance < support, kernel(distance), 0)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.clip(np.floor(np.tensordot(weights, rows, axes=1) + 0.5), 0, 255)


@settings(max_examples=100, deadline=None)
@given(side, side, st.tuples(side, side), st.sampled_from(sorted(KERNELS)))
def test_filters_are_the_published_kernels(height, width, size, interpolation):
    """Rows first, then columns; fixed-point weights change at most one level in each pass."""
    image = noise(height, width)
    rows = resample(image.transpose(1, 0, 2).astype(np.float64), size[1], interpolation).transpose(1, 0, 2)
    expected = resample(rows, size[0], interpolation)
    out = geometry(image, Preprocess(size, interpolation=interpolation))
    assert np.abs(out - expected).max() <= 2


def test_an_image_of_the_networks_size_is_left_untouched():
    image = noise(32, 32)
    for interpolation in ("nearest", "bilinear", "bicubic", "lanczos"):
        p = Preprocess((32, 32), interpolation=interpolation)
        np.testing.assert_array_equal(geometry(image, p), image)


def test_nearest_repeats_pixels():
    image = noise(4, 4)
    p = Preprocess((8, 8), interpolation="nearest")
    np.testing.assert_array_equal(geometry(image, p), image.repeat(2, 0).repeat(2, 1))


def test_a_crop_larger_than_the_resized_image_is_padded_with_black():
    image = np.full((10, 10, 3), 200, np.uint8)
    out = geometry(image, Preprocess((13, 13), resize_px=10))
    expected = np.zeros((13, 13, 3), np.uint8)
    expected[1:11, 1:11] = 200
    np.testing.assert_array_equal(out, expected)


finite = st.floats(-3, 3)


@given(
    st.tuples(finite, finite, finite),
    st.tuples(*[st.floats(0.01, 300) for _ in range(3)]),
    st.sampled_from([1 / 255, 1.0, 1 / 128, 2.0]),
)
def test_normalize_is_the_formula_rounded_once(mean, std, scale):
    """All 256 values of all channels against exact rational arithmetic."""
    p = Preprocess((1, 256), mean=mean, std=std, pixel_scale=scale)
    pixels = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    out = normalize(pixels, p)
    assert out.dtype == np.float32 and out.shape == (3, 1, 256)
    for channel in range(3):
        for byte in (0, 1, 77, 128, 254, 255):
            exact = (byte * Fraction(scale) - Fraction(mean[channel])) / Fraction(std[channel])
            tolerance = float(abs(exact)) * 2**-24 + 1e-15 * (byte * scale + 3) / std[channel] + 1e-45
            assert abs(float(out[channel, 0, byte]) - exact) <= tolerance


def test_layouts_hold_the_same_numbers():
    p = replace(IMAGENET, crop_px=(5, 7))
    batch = np.stack([noise(5, 7, seed) for seed in range(3)])
    planes, pixels = normalize(batch, p), normalize(batch, replace(p, layout="NHWC"))
    assert planes.shape == (3, 3, 5, 7) and pixels.shape == (3, 5, 7, 3)
    assert planes.flags["C_CONTIGUOUS"] and pixels.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(planes.transpose(0, 2, 3, 1), pixels)
    for one, image in zip(planes, batch, strict=True):
        np.testing.assert_array_equal(one, normalize(image, p))


def test_bgr_reverses_the_channels_before_mean_and_std():
    """Caffe's preprocessing: raw pixels in BGR minus the mean per channel."""
    mean = (103.939, 116.779, 123.68)
    p = Preprocess((6, 6), mean=mean, std=(1.0, 1.0, 1.0), channel_order="BGR", pixel_scale=1.0)
    image = noise(6, 6)
    expected = (image[..., ::-1].astype(np.float64) - mean).transpose(2, 0, 1)
    np.testing.assert_array_equal(apply(image, p), expected.astype(np.float32))


@pytest.mark.parametrize(
    ("image", "hint"),
    [
        (noise(4, 4)[..., 0], "mono8"),
        (noise(4, 4) / 255, "before any normalization"),
        (noise(4, 4)[:0], "it is empty"),
        (noise(4, 4)[..., :2], "docs/runtime.md"),
        (noise(5, 6).transpose(2, 0, 1), "transpose(1, 2, 0)"),
        (noise(4, 4).astype(np.int64), "astype(np.uint8)"),
        (np.concatenate([noise(4, 4)] * 2, axis=-1)[..., :4], "image[..., :3]"),
        (noise(4, 4)[None], "classify.batch"),
    ],
)
def test_what_is_not_an_image_is_refused_with_the_next_step(image, hint):
    with pytest.raises(InputError, match="expected an RGB image, uint8") as told:
        geometry(image, IMAGENET)
    assert hint in str(told.value)


@pytest.mark.parametrize("change", [{"std": (1.0, 0.0, 1.0)}, {"mean": (0.5,)}, {"pixel_scale": float("nan")}])
def test_constants_that_cannot_normalize_are_refused(change):
    with pytest.raises(ValueError, match=r"mean and std must have three values|std and pixel_scale must be above 0"):
        replace(IMAGENET, **change)


@pytest.mark.parametrize("change", [{"std": (1.0, np.inf, 1.0)}, {"mean": (0.5, np.nan, 0.5)}, {"pixel_scale": np.inf}])
def test_constants_that_are_not_finite_are_refused(change):
    with pytest.raises(UsageError, match="must be finite"):
        normalize(noise(2, 2), replace(IMAGENET, **change))


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="needs shared/data/imagenet_samples")
def test_photographs_against_torch():
    """The tolerance is one grey level, 1 / 255 / 0.225, plus a few units in the last place of torch's float32."""
    files = sorted(PHOTOGRAPHS.iterdir())[::3]
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET.mean, IMAGENET.std))
    for file in files:
        image = read_image(file)
        reference = (torch.from_numpy(reference_geometry(image, IMAGENET)).float().permute(2, 0, 1) / 255 - mean) / std
        assert np.abs(apply(image, IMAGENET) - reference.numpy()).max() <= 1.001 / 255 / 0.224


def whole(image: U8, p: Preprocess) -> U8:
    """Resize the whole image with Pillow, width then height, and crop it by slices."""
    height, width = image.shape[:2]
    size = p.crop_px
    if p.resize_px is not None:
        scale = Fraction(p.resize_px, min(height, width))
        size = (int(height * scale), int(width * scale))
    filter_ = Image.Resampling[p.interpolation.upper()]
    resized = np.asarray(Image.fromarray(image).resize((size[1], height), filter_).resize(size[::-1], filter_))
    out = np.zeros((*p.crop_px, 3), np.uint8)
    source, target = zip(*(overlap(have, want) for have, want in zip(size, p.crop_px, strict=True)), strict=True)
    out[target] = resized[source]
    return out


filters = st.sampled_from(("nearest", "bilinear", "bicubic", "lanczos"))


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.tuples(side, side), st.none() | st.integers(1, 90), filters)
def test_what_the_crop_leaves_out_changes_no_bit(height, width, crop, resize, interpolation):
    p = Preprocess(crop, resize_px=resize, interpolation=interpolation)
    long, short = max(height, width), min(height, width)
    assume(resize is None or resize * long < 3000 * short)
    image = noise(height, width)
    np.testing.assert_array_equal(geometry(image, p), whole(image, p))


CAMERAS = [(720, 1280), (1080, 1920), (480, 640), (480, 848), (360, 640), (600, 800), (1536, 2048), (1200, 1920)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", CAMERAS, ids=lambda size: f"{size[1]}x{size[0]}")
def test_camera_sizes_to_the_last_bit(size, interpolation):
    image = noise(*size)
    for p in (IMAGENET, Preprocess((224, 224), resize_px=232), Preprocess((192, 320), resize_px=200)):
        p = replace(p, interpolation=interpolation)
        np.testing.assert_array_equal(geometry(image, p), whole(image, p))


def test_photographs_to_the_last_bit():
    """Photographs in their own size, and enlarged to a 720p camera's."""
    files = sorted(PHOTOGRAPHS.rglob("*.JPEG"))[:40]
    if not files:
        pytest.skip("the sample photographs are not here")
    for index, file in enumerate(files):
        image = read_image(file)
        if index % 4 == 0:
            image = np.asarray(Image.fromarray(image).resize((1280, 720)))
        np.testing.assert_array_equal(geometry(image, IMAGENET), whole(image, IMAGENET))


def test_views_are_what_their_copies_are():
    image = noise(90, 120)
    wide = np.zeros((95, 130, 4), np.uint8)
    wide[2:92, 5:125, :3] = image
    cases = {
        "padded rows": np.ascontiguousarray(wide[..., :3])[2:92, 5:125],
        "four bytes": wide[2:92, 5:125, :3],
        "four bytes, the last row's last pixel at the end": np.concatenate([image, image[..., :1]], -1)[..., :3],
        "reversed channels": np.ascontiguousarray(image[..., ::-1])[..., ::-1],
        "four bytes reversed": np.ascontiguousarray(wide[2:92, 5:125, [2, 1, 0, 3]])[..., 2::-1],
        "upside down": np.ascontiguousarray(image[::-1])[::-1],
        "mirrored": np.ascontiguousarray(image[:, ::-1])[:, ::-1],
        "Fortran": np.asfortranarray(image),
        "planes": np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0),
        "every second": np.repeat(np.repeat(image, 2, 0), 2, 1)[::2, ::2],
        "from bytes": np.frombuffer(image.tobytes(), np.uint8).reshape(image.shape),
        "three of a line of bytes": np.lib.stride_tricks.as_strided(np.frombuffer(image.tobytes(), np.uint8),
                                                                     image.shape, image.strides),
    }  # fmt: skip
    for p in (Preprocess((32, 32), resize_px=40), Preprocess((50, 200), resize_px=20)):
        expected = whole(image, p)
        for name, view in cases.items():
            np.testing.assert_array_equal(geometry(view, p), expected, err_msg=name)


def test_gray_seen_as_three_channels_is_resized_once():
    gray = noise(300, 400)[..., 0]
    p = Preprocess((64, 64), resize_px=72, channel_order="BGR")
    expected = whole(np.stack([gray] * 3, axis=-1), p)
    np.testing.assert_array_equal(geometry(np.broadcast_to(gray[..., None], (300, 400, 3)), p), expected)


def test_a_720p_frame_needs_three_periods_of_five():
    """The worked number of :mod:`edgeres.data.window`."""
    assert window(1280, 455, (116, 340), "bilinear") == Window((256, 1024), (0, 768), 273, (25, 249))
    rows = window(720, 256, (16, 240), "bilinear")
    assert rows.size == 224 and rows.keep == (0, 224) and rows.read[0] <= 43 and rows.read[1] >= 677


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 1500), st.integers(0, 1500), st.integers(1, 1500), filters)
def test_a_window_reads_all_that_its_outputs_reach(have, want, first, count, interpolation):
    first = min(first, want - 1)
    keep = (first, min(first + count, want))
    found = window(have, want, keep, interpolation)
    reach = {"nearest": 1, "bilinear": 1, "bicubic": 2, "lanczos": 3}[interpolation] * max(Fraction(have, want), 1)
    low, high = ((Fraction(2 * i + 1, 2) * Fraction(have, want)) for i in (keep[0], keep[1] - 1))
    if have != want:
        assert found.read[0] <= max(low - reach, 0) and found.read[1] >= min(high + reach, have)
        assert Fraction(found.box[1] - found.box[0], found.size) == Fraction(have, want)
    assert found.keep[1] - found.keep[0] == keep[1] - keep[0]
    start = Fraction(found.read[0] + found.box[0]) * want / have + found.keep[0]
    assert start == keep[0]
    assert 0 <= found.box[0] < found.box[1] <= found.read[1] - found.read[0] <= have


def test_where_a_weight_could_round_two_ways_all_is_computed(monkeypatch):
    monkeypatch.setattr("edgeres.data.window._CLEAR_OF_TIE", 1.0)
    window.cache_clear()
    try:
        assert window(1280, 455, (116, 340), "bilinear") == Window((0, 1280), (0, 1280), 455, (116, 340))
        image = noise(720, 1280)
        np.testing.assert_array_equal(geometry(image, IMAGENET), whole(image, IMAGENET))
    finally:
        window.cache_clear()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_an_array_that_is_given_is_filled(layout):
    image = noise(40, 50)
    for p in (
        Preprocess((8, 8), layout=layout),
        Preprocess((8, 8), mean=(128.0,) * 3, std=(1.0,) * 3, pixel_scale=1.0),
    ):
        p = replace(p, layout=layout)
        room = np.full((2, *apply(image, p).shape), np.nan, np.float32)
        assert np.shares_memory(apply(image, p, room[1]), room)
        np.testing.assert_array_equal(room[1], apply(image, p))
        assert np.isnan(room[0]).all()


def test_the_byte_less_128_is_a_whole_number():
    """With exact input, the float32 value is the code itself."""
    image = noise(30, 30)
    p = Preprocess((30, 30), mean=(128.0,) * 3, std=(1.0,) * 3, pixel_scale=1.0)
    expected = image.transpose(2, 0, 1).astype(np.int64) - 128
    np.testing.assert_array_equal(apply(image, p), expected)
    np.testing.assert_array_equal(apply(image, replace(p, mean=(128.0, 127.0, 0.5)))[1], expected[1] + 1)
    np.testing.assert_array_equal(apply(image, replace(p, mean=(128.0, 127.0, 0.5)))[2], image[..., 2] - 0.5)
