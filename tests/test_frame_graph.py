"""The preprocessing inside a graph, compared with OpenCV and Pillow, and with what the network gets otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import frame_cases
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from bundles import classifier, spec
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgeres.data.preprocess import apply, geometry, pixels_read
from edgeres.data.taps import pillow_taps
from edgeres.errors import UsageError
from edgeres.graph.frame import multiply_adds, pixels_of, with_bytes, with_frame
from edgeres.graph.graph import Graph
from edgeres.graph.half import to_fp16
from edgeres.records import (
    BYTE_FORMATS,
    COLOURS,
    INTERPOLATIONS,
    PLANAR,
    U8,
    Fit,
    FrameSpec,
    PixelReading,
    Preprocess,
)
from edgeres.refine.exact_input import ExactInput, exact_input
from edgeres.runtime import Frame
from edgeres.runtime.frames import frame_spec

FILTERS = [name for name in INTERPOLATIONS if name != "cv2-bilinear"]


def noise(*shape: int, seed: int = 0) -> U8:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def run(model: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {session.get_inputs()[0].name: image[None]})[0][0]
    return found


def planes_of(frame: FrameSpec, data: U8) -> list[U8]:
    """The planes by slices of bytes, without gaps."""
    flat, found, at = data.reshape(-1), [], 0
    for index, (rows, length) in enumerate(frame_cases.rows_of(frame.format, frame.height_px, frame.width_px)):
        step = frame.step_bytes * length // frame.row_bytes if index else frame.step_bytes
        step = frame.step_bytes // 2 if index and frame.format in ("i420", "yv12") else step
        step = frame.step_bytes if frame.format in ("nv12", "nv21") else step
        found.append(np.stack([flat[at + row * step :][:length] for row in range(rows)]))
        at += step * (frame.rows if not index else frame.rows // 2)
    return found


def by_opencv_and_pillow(frame: FrameSpec, data: U8, p: Preprocess) -> np.ndarray:
    """The contract's bytes, with nothing of the package: the whole image resized, width first, and cut afterwards."""
    rgb = frame_cases.converted(frame.format, planes_of(frame, data), None)[..., :3]
    height, width = rgb.shape[:2]
    size = p.crop_px
    if isinstance(p.resize_px, int):
        short = min(height, width)
        size = (int(p.resize_px * height / short), int(p.resize_px * width / short))
    kind = Image.Resampling[p.interpolation.upper()]
    image = Image.fromarray(np.ascontiguousarray(rgb)).resize((size[1], height), kind).resize((size[1], size[0]), kind)
    top, left = (round((have - want) / 2) for have, want in zip(size, p.crop_px, strict=True))
    return np.asarray(image.crop((left, top, left + p.crop_px[1], top + p.crop_px[0])))


SIZES = [(720, 1280), (1080, 1920)]
CONTRACTS = {
    f"{mode} {kind}": Preprocess((224, 224), 256 if mode == "crop" else None, kind)
    for mode in ("crop", "squash")
    for kind in ("bilinear", "bicubic")
}


@pytest.mark.parametrize("name", BYTE_FORMATS)
def test_every_format_gives_the_bytes_of_opencv_and_pillow(name: Any) -> None:
    """A camera's picture with each contract in turn; the benchmark has all sizes and contracts of all formats."""
    contract = list(CONTRACTS.values())[BYTE_FORMATS.index(name) % 4]
    frame = frame_spec(f"1280x720:{name}")
    data = noise(*frame.shape)
    np.testing.assert_array_equal(run(pixels_of(contract, frame), data), by_opencv_and_pillow(frame, data, contract))


@pytest.mark.parametrize("contract", CONTRACTS)
def test_full_hd_with_rows_beyond_the_picture(contract: str) -> None:
    frame = frame_spec("1920x1080:nv12:step=2048:rows=1088")
    data = noise(*frame.shape)
    found = run(pixels_of(CONTRACTS[contract], frame), data)
    np.testing.assert_array_equal(found, by_opencv_and_pillow(frame, data, CONTRACTS[contract]))


side = st.integers(1, 40)


@st.composite
def frames(draw: st.DrawFn) -> FrameSpec:
    name = draw(st.sampled_from(BYTE_FORMATS))
    height, width = 2 * draw(side), 2 * draw(side)
    tight = FrameSpec(name, height, width, 4 * width, height).pixel_bytes * width
    rows = height + 2 * draw(st.integers(0, 2)) if name in PLANAR else height
    yuv = name in PLANAR or name in ("yuyv", "yvyu", "uyvy")
    return FrameSpec(
        name,
        height,
        width,
        tight + 2 * draw(st.integers(0, 3)),
        rows,
        draw(st.sampled_from(COLOURS)) if yuv else "bt601",
    )


@st.composite
def contracts(draw: st.DrawFn) -> Preprocess:
    colour = st.tuples(*[st.integers(0, 255)] * 3)
    kind: dict[str, Any] = draw(
        st.one_of(
            st.just({}),
            st.fixed_dictionaries({"resize_px": side}),
            st.fixed_dictionaries({"resize_px": st.tuples(side, side), "fit": st.just(Fit(keep_aspect=False))}),
            st.fixed_dictionaries({"resize_px": st.tuples(side, side)}),
            st.builds(lambda fill: {"fit": Fit(fill=fill)}, colour),
        )
    )
    p = Preprocess((draw(side), draw(side)), interpolation=draw(st.sampled_from(INTERPOLATIONS)), **kind)
    if draw(st.booleans()):
        return replace(p, channel_order="BGR")
    fit = p.fit if p.fit.fill is None else Fit(fill=p.fit.fill[:1])
    gray = replace(p, fit=fit, mean=(0.5,), std=(0.2,), reading=PixelReading(channels=1))
    return gray if draw(st.booleans()) else p


def as_frame(spec_: FrameSpec, data: U8) -> Frame:
    steps, offsets = [spec_.step_bytes], [0]
    if spec_.format in PLANAR:
        one = spec_.format in ("nv12", "nv21")
        step = spec_.step_bytes if one else spec_.step_bytes // 2
        begin = spec_.rows * spec_.step_bytes
        steps += [step] * (1 if one else 2)
        offsets += [begin] if one else [begin, begin + spec_.rows // 2 * step]
    size = spec_.height_px, spec_.width_px
    return Frame(data.tobytes(), spec_.format, *size, tuple(steps), tuple(offsets), colour=spec_.colour)


@settings(deadline=None, max_examples=120)
@given(frames(), contracts(), st.integers(0, 9))
def test_any_frame_and_contract_give_the_bytes_of_the_other_way(frame: FrameSpec, p: Preprocess, seed: int) -> None:
    data = noise(*frame.shape, seed=seed)
    np.testing.assert_array_equal(run(pixels_of(p, frame), data), geometry(as_frame(frame, data).rgb(), p))


@settings(deadline=None, max_examples=150)
@given(frames(), contracts(), st.integers(0, 9))
def test_converting_what_the_resize_reads_alone_gives_the_same_bytes(
    frame: FrameSpec, p: Preprocess, seed: int
) -> None:
    seen = as_frame(frame, noise(*frame.shape, seed=seed))
    part = seen.rgb(lambda size_px: pixels_read(size_px, p))
    np.testing.assert_array_equal(geometry(part, p), geometry(seen.rgb(), p))


def test_yuv_beyond_the_crop_is_not_converted() -> None:
    """Of 1280x720, the middle 224 of 256 reads fewer than half of the pixels; the rest stays black."""
    frame = frame_spec("1280x720:nv12")
    p = Preprocess((224, 224), resize_px=256)
    seen = as_frame(frame, noise(*frame.shape))
    part = seen.rgb(lambda size_px: pixels_read(size_px, p))
    assert 0.3 < (part != 0).any(axis=-1).mean() < 0.75
    np.testing.assert_array_equal(geometry(part, p), geometry(seen.rgb(), p))


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(FILTERS))
def test_taps_are_those_of_pillow(have: int, want: int, kind: Any) -> None:
    line = noise(3, have, seed=have)
    taps = pillow_taps(have, want, (0, want), kind)
    found = (line[:, taps.index].astype(np.int64) * taps.weights).sum(-1) + (1 << 21) >> 22
    wanted = (
        line if have == want else np.asarray(Image.fromarray(line).resize((want, 3), Image.Resampling[kind.upper()]))
    )
    if have != want:  # of equal sides Pillow copies
        np.testing.assert_array_equal(found.clip(0, 255), wanted)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("form", ["fp32", "fp16"])
def test_the_network_says_the_same_of_a_frame(exact: bool, layout: Any, form: str) -> None:
    model, p = onnx.load_from_string(classifier(layout=layout)), spec(layout=layout, resize_px=10).preprocess
    if exact:
        found = exact_input(model, p)
        assert isinstance(found, ExactInput)
        model, p = found.graph, found.preprocess
    model = to_fp16(model) if form == "fp16" else model
    frame = frame_spec("48x30:nv12")
    data = noise(*frame.shape)
    rgb = Frame(data, "nv12").rgb()
    wanted = run(model, apply(rgb, p))
    tolerance = 0 if exact else 1e-5 if form == "fp32" else 2e-2  # float32's affine line, and float16's rounding of it
    for graph, image in ((with_frame(model, p, frame), data), (with_bytes(model, p), geometry(rgb, p))):
        assert not Graph(graph).of("Pad")
        np.testing.assert_allclose(run(graph, image), wanted, rtol=0, atol=tolerance * float(np.abs(wanted).max()))


def test_several_frames_at_once() -> None:
    model, p = onnx.load_from_string(classifier()), spec().preprocess
    data = noise(3, 24, 32, 4)
    graph = with_frame(model, p, frame_spec("32x24:bgra8"))
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"frame": data})[0], [run(graph, image) for image in data], atol=1e-5)


def test_what_stands_no_chance_in_a_graph_is_refused() -> None:
    p = Preprocess((8, 8), mean=(0.0,) * 4, std=(1.0,) * 4, reading=PixelReading(channels=4))
    with pytest.raises(UsageError, match="four channels"):
        pixels_of(p, frame_spec("32x24:rgba8"))


def test_multiply_adds_of_a_small_resize() -> None:
    """8 x 6 to 4 x 3, bilinear: four pixels for each output, three at the borders, which are filled up to four."""
    sparse, dense = multiply_adds(Preprocess((3, 4)), frame_spec("8x6:rgb8"))
    assert sparse == 3 * (6 * 4 * 4 + 3 * 4 * 4)
    assert dense == 3 * (6 * 4 * 8 + 3 * 4 * 6)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("1280x720", "''"),
        ("1280:bgr8", "WIDTHxHEIGHT"),
        ("64x48:bayer_rggb8", "no place"),
        ("64x48:bgr16", "no place"),
        ("64x48:jpeg", "not known"),
        ("63x48:nv12", "even"),
        ("64x47:i420", "even"),
        ("63x48:yuyv", "even"),
        ("64x48:bgr8:step=64", "192"),
        ("64x48:bgr8:rows=50", "planes"),
        ("64x48:bgr8:bt709", "YUV"),
        ("64x48:nv12:bt709:bt601", "says nothing"),
        ("64x48:nv12:step", "says nothing"),
        ("0x48:bgr8", "sides"),
        ("60000x60000:bgr8", "bytes"),
    ],
)
def test_a_frame_that_does_not_exist_is_told_in_one_line(text: str, what: str) -> None:
    with pytest.raises(UsageError, match=what) as caught:
        frame_spec(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("given_", "plain"), [("1280x720:BGRx", "1280x720:bgra8"), ("640x480:YUY2", "640x480:yuyv")])
def test_names_of_gstreamer_and_v4l2(given_: str, plain: str) -> None:
    assert str(frame_spec(given_)) == plain and frame_spec(plain) == frame_spec(given_)


def limits(colour: str) -> tuple[float, float, float, float, float]:
    """Kr, Kb, black, levels of luma and of chroma."""
    kr, kb = (0.2126, 0.0722) if colour.startswith("bt709") else (0.299, 0.114)
    return (kr, kb, 0, 255, 255) if colour.endswith("full") else (kr, kb, 16, 219, 224)


@pytest.mark.parametrize("colour", COLOURS)
def test_yuv_is_what_the_standard_says(colour: Any) -> None:
    """Within one level; ITU-R's formulas in float."""
    y, u, v = noise(40, 60), noise(40, 30, seed=1), noise(40, 30, seed=2)
    data = np.empty((40, 60, 2), np.uint8)
    data[..., 0], data[:, ::2, 1], data[:, 1::2, 1] = y, u, v
    kr, kb, black, luma, chroma = limits(colour)
    light = np.maximum(y - float(black), 0) / luma
    blue, red = ((plane.repeat(2, 1) - 128.0) / chroma for plane in (u, v))
    r, b = light + 2 * (1 - kr) * red, light + 2 * (1 - kb) * blue
    g = (light - kr * r - kb * b) / (1 - kr - kb)
    wanted = 255 * np.stack([r, g, b], axis=-1).clip(0, 1)
    assert np.abs(Frame(data, "yuyv", colour=colour).rgb() - wanted).max() <= 1.1


def test_rtx_builds_the_graph_with_few_kernels_more() -> None:
    pytest.importorskip("tensorrt_rtx")
    from edgeres.engine.builder import BuildRequest, build_engine
    from edgeres.engine.kernels import read_program

    found = exact_input(onnx.load_from_string(classifier()), spec().preprocess)
    assert isinstance(found, ExactInput)
    request = BuildRequest("fp32", max_batch=2)

    def built(model: onnx.ModelProto) -> Any:
        return build_engine(model.SerializeToString(), request, "rtx")

    plain = built(found.graph)
    frame = built(with_frame(found.graph, found.preprocess, frame_spec("1280x720:nv12")))
    more = len(read_program(frame.data).kernels) - len(read_program(plain.data).kernels)
    assert more <= 3
    assert len(frame.data) - len(plain.data) < 2 << 20
