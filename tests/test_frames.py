"""Camera frames compared with the definition of their formats, BT.601, and Pillow's decoder."""

from __future__ import annotations

import io
import re
from array import array
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgeres.data.preprocess import apply, geometry
from edgeres.errors import EdgeresError, InputError, UsageError
from edgeres.records import U8, Preprocess
from edgeres.runtime import Frame
from edgeres.runtime.frames import FORMATS

BYTE = st.integers(0, 255)


def noise(*shape: int, seed: int = 0) -> U8:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def by_hand(name: str, image: U8) -> Any:
    """An RGB image in a packed format."""
    fourth = noise(*image.shape[:2], 1, seed=9)
    return {
        "rgb8": image,
        "bgr8": np.stack([image[..., 2], image[..., 1], image[..., 0]], axis=-1),
        "rgba8": np.concatenate([image, fourth], axis=-1),
        "bgra8": np.concatenate([image[..., 2:], image[..., 1:2], image[..., :1], fourth], axis=-1),
        "mono8": image[..., 0],
    }[name]


@pytest.mark.parametrize("name", ["rgb8", "bgr8", "rgba8", "bgra8", "mono8"])
@pytest.mark.parametrize("gap", [None, 0, 7])
def test_packed_formats(name: str, gap: int | None) -> None:
    """As an array, as bytes, and as bytes with a gap behind each row; each is read in place."""
    image = noise(90, 123)[..., None].repeat(3, -1) if name == "mono8" else noise(90, 123, 3)
    packed = by_hand(name, image)
    if gap is None:
        frame = Frame(packed, name)
    else:
        rows = packed.reshape(90, -1)
        padded = np.concatenate([rows, np.full((90, gap), 77, np.uint8)], axis=1)
        step = padded.shape[1] if gap else None
        data = padded.tobytes()[: None if not gap else -gap]  # drivers omit the last gap
        frame = Frame(data, name, 90, 123, step)
    np.testing.assert_array_equal(frame.rgb(), image)
    for p in (Preprocess((32, 32), resize_px=36), Preprocess((90, 123)), Preprocess((16, 50), channel_order="BGR")):
        np.testing.assert_array_equal(geometry(frame.rgb(), p), geometry(image, p))
        np.testing.assert_array_equal(apply(frame.rgb(), p), apply(image, p))


def exact(y: int, u: int, v: int) -> tuple[Fraction, ...]:
    """BT.601 with 219 and 224 levels, from Kr = 0.299 and Kb = 0.114."""
    kr, kb = Fraction("0.299"), Fraction("0.114")
    kg = 1 - kr - kb
    luma, blue, red = Fraction(max(y - 16, 0), 219), Fraction(u - 128, 224), Fraction(v - 128, 224)
    r, b = luma + 2 * (1 - kr) * red, luma + 2 * (1 - kb) * blue
    g = luma - 2 * kb * (1 - kb) / kg * blue - 2 * kr * (1 - kr) / kg * red
    return tuple(255 * min(max(value, Fraction(0)), Fraction(1)) for value in (r, g, b))


@settings(max_examples=200, deadline=None)
@given(BYTE, BYTE, BYTE)
def test_a_colour_is_bt601(y: int, u: int, v: int) -> None:
    """Within one level, because the fixed-point coefficients have three digits, e.g. 1.164 for 255/219."""
    found = Frame(np.array([[[y, u], [y, v]]], np.uint8), "yuyv").rgb()[0, 0]
    wanted = exact(y, u, v)
    assert all(abs(int(have) - want) <= Fraction(9, 8) for have, want in zip(found, wanted, strict=True))


@pytest.mark.parametrize(("yuv", "rgb"), [((235, 128, 128), 255), ((16, 128, 128), 0), ((126, 128, 128), 128)])
def test_gray_is_gray(yuv: tuple[int, int, int], rgb: int) -> None:
    y, u, v = yuv
    assert Frame(np.array([[[y, u], [y, v]]], np.uint8), "yuyv").rgb().tolist() == [[[rgb] * 3] * 2]


def planes(height: int, width: int) -> tuple[U8, U8, U8]:
    return noise(height, width), noise(height // 2, width // 2, seed=1), noise(height // 2, width // 2, seed=2)


def packed_420(name: str, y: U8, u: U8, v: U8) -> U8:
    if name == "i420":
        return np.concatenate([part.ravel() for part in (y, u, v)])
    first, second = (u, v) if name == "nv12" else (v, u)
    return np.concatenate([y.ravel(), np.stack([first, second], axis=-1).ravel()])


@pytest.mark.parametrize("name", ["nv12", "nv21", "i420"])
@pytest.mark.parametrize("size", [(2, 2), (48, 64), (6, 10), (70, 34), (66, 130)])
def test_each_chroma_sample_serves_four_pixels(name: str, size: tuple[int, int]) -> None:
    """All colours, one by one, through the 4:2:2 format."""
    height, width = size
    y, u, v = planes(height, width)
    wide_u, wide_v = u.repeat(2, 0), v.repeat(2, 0)
    yuyv = np.empty((height, width, 2), np.uint8)
    yuyv[..., 0], yuyv[:, ::2, 1], yuyv[:, 1::2, 1] = y, wide_u, wide_v
    wanted = np.empty((height, width, 3), np.uint8)
    for row in range(height):
        for column in range(0, width, 2):
            pair = np.ascontiguousarray(yuyv[row : row + 1, column : column + 2])
            wanted[row, column : column + 2] = Frame(pair, "yuyv").rgb()[0]
    data = packed_420(name, y, u, v)
    np.testing.assert_array_equal(Frame(data.tobytes(), name, height, width).rgb(), wanted)
    np.testing.assert_array_equal(Frame(data.reshape(-1, width), name).rgb(), wanted)
    np.testing.assert_array_equal(Frame(yuyv, "YUY2").rgb(), wanted)
    np.testing.assert_array_equal(Frame(yuyv[..., ::-1], "uyvy").rgb(), wanted)


def test_a_yuv_frame_is_near_what_was_filmed() -> None:
    """A smooth image to BT.601 limited range in floating point, and back."""
    y, x = np.mgrid[0:64, 0:96]
    image = np.stack([2 * x, 3 * y, 255 - x - y], axis=-1).clip(0, 255).astype(np.float64)
    luma = image @ [0.299, 0.587, 0.114]
    u, v = (image[..., 2] - luma) / 1.772, (image[..., 0] - luma) / 1.402
    shrink = [plane.reshape(32, 2, 48, 2).mean(axis=(1, 3)) * 224 / 255 + 128 for plane in (u, v)]
    parts = [np.rint(part).astype(np.uint8) for part in (luma * 219 / 255 + 16, *shrink)]
    found = Frame(packed_420("nv12", *parts).tobytes(), "NV12", 64, 96).rgb()
    assert np.abs(found - image).max() <= 6


@pytest.mark.parametrize("name", FORMATS)
def test_ros_and_gstreamer_name_the_same(name: str) -> None:
    size = (4, 6)
    shape = {"mono8": size, "nv12": (6, 6), "nv21": (6, 6), "i420": (6, 6), "yuyv": (*size, 2), "uyvy": (*size, 2)}
    data = noise(*shape.get(name, (*size, 4 if "a8" in name else 3)))
    aliases = {"rgb8": ["RGB"], "bgr8": ["BGR", "8UC3"], "rgba8": ["RGBA", "RGBx"], "bgra8": ["BGRx", "BGRA", "8UC4"],
               "mono8": ["GRAY8"], "yuyv": ["YUY2", "yuv422_yuy2"], "uyvy": ["UYVY", "yuv422"], "nv12": ["NV12"],
               "nv21": ["NV21"], "i420": ["I420"]}[name]  # fmt: skip
    for alias in aliases:
        np.testing.assert_array_equal(Frame(data, alias).rgb(), Frame(data, name).rgb())


@pytest.mark.parametrize(
    ("frame", "kind", "words"),
    [
        (Frame(b"", "bayer_rggb8", 2, 2), UsageError, "demosaic it first"),
        (Frame(b"", "jpeg", 2, 2), UsageError, "'jpeg' is not known; give one of rgb8, bgr8"),
        (Frame(bytes(12), "rgb8"), UsageError, "needs its height and width"),
        (Frame(bytes(11), "rgb8", 2, 2), InputError, "expected a rgb8 frame of 2 x 2 pixels, found 11 bytes in steps"),
        (Frame(bytes(12), "rgb8", 2, 2, 5), InputError, "steps of 5"),
        (Frame(bytes(9), "nv12", 3, 2), InputError, "3 x 2 pixels, which this format does not have"),
        (Frame(bytes(12), "yuyv", 2, 3), InputError, "which this format does not have"),
        (Frame(noise(4, 4), "rgb8"), InputError, "found an array uint8"),
        (Frame(noise(4, 4, 4), "rgb8"), InputError, "found an array uint8"),
        (Frame(noise(4, 4, 3), "mono8"), InputError, "found an array uint8"),
        (Frame(noise(5, 4), "nv12"), InputError, "found an array uint8"),
        (Frame(noise(4, 4, 3).astype(np.float32), "rgb8"), InputError, "found an array float32"),
        (Frame(noise(4, 4, 3), "rgb8", 4, 5), InputError, "expected a rgb8 frame of 4 x 5 pixels, found 4 x 4"),
        (Frame(noise(0, 4, 3), "rgb8"), InputError, "0 x 4"),
        (Frame([1, 2, 3], "rgb8", 1, 1), InputError, "found list, not bytes"),
        (Frame(None, "rgb8", 1, 1), InputError, "found NoneType, not bytes"),
        (Frame(np.zeros(12, np.float32), "rgb8", 1, 4), InputError, "found an array float32 (12,)"),
        (Frame(b"", b"rgb8", 1, 1), UsageError, "is not known"),  # type: ignore[arg-type]
    ],
)
def test_a_frame_that_does_not_fit_is_refused(frame: Frame, kind: type[EdgeresError], words: str) -> None:
    with pytest.raises(kind, match=re.escape(words)) as caught:
        frame.rgb()
    assert "\n" not in str(caught.value)


def test_ros_delivers_array_array() -> None:
    image = noise(4, 6, 3)
    np.testing.assert_array_equal(Frame(array("B", image.tobytes()), "rgb8", 4, 6, 18).rgb(), image)


def test_encoded_bytes_decode_as_files_do() -> None:
    """JPEG frames are decoded by Pillow, as calibration images are."""
    from edgeres.data.files import read_image

    for form in ("JPEG", "PNG"):
        stream = io.BytesIO()
        Image.fromarray(noise(20, 30, 3)).save(stream, form)
        decoded = np.asarray(Image.open(io.BytesIO(stream.getvalue())).convert("RGB"))
        np.testing.assert_array_equal(read_image(io.BytesIO(stream.getvalue()), "camera"), decoded)
