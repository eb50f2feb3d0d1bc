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
from edgeres.records import U8, PixelReading, Preprocess
from edgeres.runtime import Frame

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


ALIASES = {"rgb8": ["RGB"], "bgr8": ["BGR", "8UC3"], "rgba8": ["RGBA", "RGBx"], "bgra8": ["BGRx", "BGRA", "8UC4"],
           "mono8": ["GRAY8", "8UC1", "GREY"], "yuyv": ["YUY2", "yuv422_yuy2"], "uyvy": ["UYVY", "yuv422"],
           "yvyu": ["YVYU"], "nv12": ["NV12"], "nv21": ["NV21"], "i420": ["I420", "YU12"], "yv12": ["YV12"],
           "mono16": ["GRAY16_LE"], "bgr16": ["16UC3"], "bgra16": ["16UC4"], "bayer_rggb8": ["rggb"],
           "bayer_grbg8": ["grbg"], "bayer_gbrg8": ["gbrg"], "bayer_bggr8": ["bggr"]}  # fmt: skip


@pytest.mark.parametrize("name", ALIASES)
def test_ros_gstreamer_and_v4l2_name_the_same(name: str) -> None:
    data = noise(4 * 6 * 8).tobytes()
    size = {1: 24, 1.5: 36, 2: 48, 3: 72, 4: 96, 6: 144, 8: 192}
    per_pixel = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "yuyv": 2, "uyvy": 2, "yvyu": 2, "mono16": 2, "bgr16": 6}
    per_pixel |= {"bgra16": 8, "nv12": 1.5, "nv21": 1.5, "i420": 1.5, "yv12": 1.5}  # type: ignore[dict-item]
    data = data[: size[per_pixel.get(name, 1)]]
    wanted = Frame(data, name, 4, 6).rgb()
    for alias in ALIASES[name]:
        np.testing.assert_array_equal(Frame(data, alias, 4, 6).rgb(), wanted)


@pytest.mark.parametrize(("order", "pixel"), [("rggb", (0, 0)), ("grbg", (0, 1)), ("gbrg", (1, 0)), ("bggr", (1, 1))])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_mosaic_begins_as_its_name_says(order: str, pixel: tuple[int, int], bits: int) -> None:
    """A red scene lights the red pixels alone. cv2 calls RGGB BayerBG, after the pixels of its second row."""
    mosaic = np.zeros((8, 10), np.uint8 if bits == 8 else np.uint16)
    mosaic[pixel[0] :: 2, pixel[1] :: 2] = 255 if bits == 8 else 65_535
    for frame in (
        Frame(mosaic, f"bayer_{order}{bits}"),
        Frame(mosaic.tobytes(), f"BAYER_{order.upper()}{bits}", 8, 10),
    ):
        assert (frame.rgb() == (255, 0, 0)).all()


@pytest.mark.parametrize(
    ("frame", "bytes_"),
    [
        (Frame(np.array([[0, 128, 129, 65_535]], np.uint16), "mono16"), [0, 0, 1, 255]),
        (Frame(np.array([[0, 128, 129, 65_535]], ">u2").tobytes(), "mono16", 1, 4, big_endian=True), [0, 0, 1, 255]),
        (Frame(np.array([[0, 128, 129, 65_535]], ">u2").tobytes(), "GRAY16_BE", 1, 4), [0, 0, 1, 255]),
        (Frame(np.array([[0, 500, 2400, 9999]], "<u2").tobytes(), "16UC1", 1, 4, 8, scale=0.051), [0, 26, 122, 255]),
    ],
)
def test_16_bits_are_scaled_not_clipped(frame: Frame, bytes_: list[int]) -> None:
    """65,535 is white, and 128 is less than half of a byte's step of 257; depth in mm reaches to 5 m at 255/5000."""
    assert frame.rgb()[0].tolist() == [[value] * 3 for value in bytes_]


@pytest.mark.parametrize("name", ["nv12", "nv21", "i420", "yv12"])
@pytest.mark.parametrize("step", [1920, 2048])
def test_a_decoder_gives_1088_rows_for_1080(name: str, step: int) -> None:
    """Planes as GstVideoMeta, V4L2 and V4L2's multi-planar buffers describe them; a length alone is not believed."""
    y, u, v = planes(1080, 1920)
    tight = packed_420("nv12" if name == "nv12" else "i420", y, u, v)
    if name in ("nv21", "yv12"):
        tight = packed_420("nv21" if name == "nv21" else "i420", y, *((u, v) if name == "nv21" else (v, u)))
    wanted = Frame(packed_420("i420", y, u, v), "i420", 1080, 1920).rgb()
    np.testing.assert_array_equal(Frame(tight, name, 1080, 1920).rgb(), wanted)
    sizes = [(1080, 1920), *([(540, 1920)] if name[0] == "n" else [(540, 960)] * 2)]
    parts, at = [], 0
    for rows, length in sizes:
        plane = np.full((1088 * rows // 1080, step * length // 1920), 200, np.uint8)
        plane[:rows, :length] = tight[at : at + rows * length].reshape(rows, length)
        parts.append(plane)
        at += rows * length
    whole, steps = b"".join(part.tobytes() for part in parts), [part.shape[1] for part in parts]
    offsets = np.cumsum([0, *(part.size for part in parts[:-1])]).tolist()
    four = [0] * (4 - len(steps))
    for frame in (
        Frame(whole, name, 1080, 1920, steps + four, offsets + four),
        Frame(whole + bytes(999), name, 1080, 1920, step, offsets),
        Frame(whole, name, np.uint16(1080), np.uint16(1920), np.uint16(step), np.array(offsets)),
        Frame([part.ravel() for part in parts], name, 1080, 1920, steps, [0] * len(steps)),
    ):
        np.testing.assert_array_equal(frame.rgb(), wanted)
    with pytest.raises(InputError, match=re.escape("1,088 rows of")) as caught:
        Frame(whole, name, 1080, 1920).rgb()
    assert f"offsets_bytes={tuple(offsets)}" in str(caught.value)


def test_sizes_of_few_bits_do_not_overflow() -> None:
    """30 x 35,000 bytes were read beyond a buffer of 16 bytes: in uint16 their product is 1,424."""
    for integer in (np.uint16, np.int32, np.int64, int):
        with pytest.raises(InputError, match="found 2,000 bytes, it has 1,050,000"):
            Frame(bytes(2000), "mono8", integer(30), integer(35_000)).rgb()  # type: ignore[operator]
    for value in (np.float32(4), 4.0, True, np.bool_(True), "4", [4], -4, 0):
        with pytest.raises(UsageError, match="height_px is"):
            Frame(bytes(48), "rgb8", value, 4).rgb()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("frame", "kind", "words"),
    [
        (Frame(bytes(4), "bayer_rggb8", 2, 2), InputError, "which this format does not have"),
        (Frame(b"", "jpeg", 2, 2), UsageError, "'jpeg' is not known; give one of rgb8, bgr8"),
        (Frame(bytes(12), "rgb8"), UsageError, "needs its height and width"),
        (
            Frame(bytes(11), "rgb8", 2, 2),
            InputError,
            "expected a rgb8 frame of 2 x 2 pixels, found 11 bytes, it has 12",
        ),
        (Frame(bytes(12), "rgb8", 2, 2, 5), InputError, "steps of 5 for rows of 6"),
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
        (Frame(bytes(13), "rgb8", 2, 2), InputError, "found 13 bytes, it has 12"),
        (Frame(bytes(48), "rgb8", 4, 3), InputError, "4 rows of 12 bytes have this length; if that is so, give step"),
        (Frame(bytes(12), "rgb8", 2, 2, -6), InputError, "steps of -6 for rows of 6 bytes"),
        (Frame(bytes(12), "rgb8", 2, 2, 6.0), UsageError, "step_bytes is an integer, found float 6.0"),  # type: ignore[arg-type]
        (Frame(bytes(99), "i420", 4, 6, 7), InputError, "which chroma has no half of"),
        (Frame(bytes(99), "nv12", 4, 6, (6, 6), (0, 20)), InputError, "planes that overlap, at 0, 20 bytes"),
        (Frame(bytes(99), "nv12", 4, 6, 6, (0, -24)), InputError, "begin at 0, -24"),
        (Frame(bytes(99), "nv12", 4, 6, 6, (0, 90)), InputError, "found 99 bytes in steps of 6, it has 102"),
        (Frame(bytes(99), "nv12", 4, 6, (6,)), UsageError, "step_bytes has 1 values for 2 planes"),
        (Frame((bytes(24),), "nv12", 4, 6), InputError, "not 2 planes"),
        (Frame(bytes(8), "16UC1", 2, 2), UsageError, "needs a scale from its samples to bytes"),
        (Frame(bytes(4), "mono8", 2, 2, scale=2.0), UsageError, "has bytes, which take no scale"),
        (Frame(bytes(8), "mono16", 2, 2, scale=float("nan")), UsageError, "scale is a number from"),
        (Frame(bytes(8), "mono16", 2, 2, 5), InputError, "steps of 5 bytes for samples of 2"),
        (Frame(bytes(8), "mono16", 2, 2, big_endian=2), UsageError, "big_endian is False or True"),  # type: ignore[arg-type]
        (Frame(noise(1632, 1920), "nv12", 1080, 1920), InputError, "rows or columns beyond the picture: Frame("),
        (Frame(memoryview(bytes(8)).cast("H"), "mono16", 2, 2), InputError, "found memoryview, not bytes"),
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


@pytest.mark.parametrize(("name", "order"), [("rgba", (0, 1, 2, 3)), ("bgra", (2, 1, 0, 3))])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_network_of_four_channels_gets_the_fourth_of_a_frame(name: str, order: tuple[int, ...], bits: int) -> None:
    rgba = np.random.default_rng(bits).integers(0, 256, (6, 5, 4), np.uint8)
    stored = rgba[..., list(order)]
    data = stored if bits == 8 else stored.astype(np.uint16) * 257
    reading = PixelReading(channels=4)
    for frame in (Frame(data, f"{name}{bits}"), Frame(data.tobytes(), f"{name}{bits}", 6, 5)):
        np.testing.assert_array_equal(frame.pixels(reading), rgba)
        np.testing.assert_array_equal(frame.rgb(), rgba[..., :3])


def test_the_unused_fourth_of_rgbx_is_no_channel() -> None:
    data = np.full((4, 4, 4), 7, np.uint8)
    p = Preprocess((4, 4), mean=(0.5,) * 4, std=(0.5,) * 4, reading=PixelReading(channels=4))
    for name in ("RGBx", "BGRx"):
        assert geometry(Frame(data, name).pixels(p.reading), p)[0, 0].tolist() == [7, 7, 7, 255]


@pytest.mark.parametrize("name", ["mono16", "16UC1", "rgb16", "bgr16", "bayer_rggb16"])
def test_frames_of_16_bits_have_the_full_scale_of_the_bundle(name: str) -> None:
    """Rounded as Pillow's values of a file are: to the nearest, by integers."""
    values = np.random.default_rng(0).integers(0, 6000, (8, 6, 3) if name in ("rgb16", "bgr16") else (8, 6))
    data = values.astype(np.uint16)
    if "bayer" in name:
        data[...] = 2500  # interpolation of one value is that value
    wanted = np.minimum(255, np.floor(data / 5000 * 255 + 0.5))
    found = Frame(data, name).pixels(PixelReading(full_scale=5000))
    found = found[..., ::-1] if name == "bgr16" else found
    np.testing.assert_array_equal(found if wanted.ndim == 3 else found[..., 0], wanted)
    scaled = Frame(data, name, scale=255 / 65535).pixels(PixelReading(full_scale=5000))
    assert scaled.max() < 25  # what a frame says itself comes first


def test_all_layouts_of_a_length_are_named() -> None:
    with pytest.raises(
        InputError, match="384 rows of 1,920 bytes and 360 rows of 2,048 bytes have this length"
    ) as told:
        Frame(bytes(360 * 2048), "rgb8", 360, 640).rgb()
    assert "step_bytes=1920, offsets_bytes=(0,) or step_bytes=2048" in str(told.value)
    Frame(bytes(360 * 2048), "rgb8", 360, 640, step_bytes=2048).rgb()
    Frame(bytes(360 * 2048), "rgb8", 360, 640, step_bytes=1920, offsets_bytes=(0,)).rgb()
