"""The image as bytes, compared with the float preprocessing, the border included."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import foreign_graphs
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeres.data.preprocess import normalize as preprocess_pixels
from edgeres.graph.graph import Graph
from edgeres.graph.normalize import normalize
from edgeres.quantize.affine import affine_uint8, symmetric_int8
from edgeres.quantize.placement import place
from edgeres.quantize.plan import make_plan
from edgeres.quantize.rewrite import rewrite
from edgeres.records import Preprocess, Skipped, TensorRange
from edgeres.refine.exact_input import ExactInput, exact_input

PX = foreign_graphs.PX


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return result


def pixels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (3, PX, PX, 3), dtype=np.uint8)


def one_conv(kernel: int, stride: int, pads: list[int]) -> onnx.ModelProto:
    w = foreign_graphs.Writer()
    model = w.model(w.head(w.conv("data", (3, 8), kernel, stride, pads=pads, bias=True), 8))
    return normalize(model).model


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from([1, 3, 7]),
    st.sampled_from([1, 2]),
    st.lists(st.integers(0, 3), min_size=4, max_size=4),
    st.tuples(*[st.floats(-0.5, 1.5)] * 3),
    st.tuples(*[st.floats(0.1, 2)] * 3),
)
def test_bytes_give_what_the_normalized_image_gives(
    kernel: int, stride: int, pads: list[int], mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    """Wide borders on a small image, so that padding decides most of the scores."""
    graph, before = one_conv(kernel, stride, pads), Preprocess((PX, PX), mean=mean, std=std)
    found = exact_input(graph, before)
    assert isinstance(found, ExactInput)
    assert found.preprocess.to_dict() == before.to_dict() | {"mean": [128.0] * 3, "std": [1.0] * 3, "pixel_scale": 1}
    x = preprocess_pixels(pixels(), found.preprocess)
    assert np.array_equal(x, pixels().astype(np.float32).transpose(0, 3, 1, 2) - 128)
    expected = run(graph, preprocess_pixels(pixels(), before))
    assert run(found.graph, x) == pytest.approx(expected, abs=1e-4 * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize("make", [foreign_graphs.tf2onnx, foreign_graphs.option_a, foreign_graphs.bottleneck])
def test_layout_and_padding_of_other_exporters(make: foreign_graphs.Callable[[], onnx.ModelProto]) -> None:
    canonical = normalize(make())
    before = canonical.preprocess
    found = exact_input(canonical.model, before)
    assert isinstance(found, ExactInput)
    got = run(found.graph, preprocess_pixels(pixels(), found.preprocess))
    assert got == pytest.approx(run(canonical.model, preprocess_pixels(pixels(), before)), abs=2e-4)


def test_what_stands_before_the_first_convolution_is_the_reason() -> None:
    canonical = normalize(foreign_graphs.keras_pixels())
    found = exact_input(canonical.model, canonical.preprocess)
    assert isinstance(found, Skipped)
    assert "before the first convolution" in found.reason


def test_the_known_range_codes_every_byte_without_error_and_keeps_integer_kernels(tmp_path: Path) -> None:
    canonical = normalize(foreign_graphs.option_a())
    found = exact_input(canonical.model, canonical.preprocess)
    assert isinstance(found, ExactInput)
    ((tensor, interval),) = found.known.items()
    for params, zero in ((affine_uint8(interval), 128), (symmetric_int8(interval), 0)):
        assert (float(params.scale), params.zero_point) == (1.0, zero)
    view = Graph(found.graph)
    placement = place(view, "cpu")
    assert tensor in placement.observed
    rectified = {node.output[0] for node in view.nodes if node.op_type == "Relu"}
    ranges = {n: TensorRange(n, 0.0 if n in rectified else -8.0, 8.0, "minmax", 1) for n in placement.observed}
    ranges |= found.known
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    quantized = rewrite(found.graph, make_plan(view, placement, ranges, "test"))
    ort.InferenceSession(quantized.SerializeToString(), options, providers=["CPUExecutionProvider"])
    ops = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert ops["QLinearConv"] == sum(node.op_type == "Conv" for node in view.nodes)
    assert not ops["Conv"] + ops["FusedConv"]


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from([1, 3, 7]),
    st.sampled_from([1, 2]),
    st.lists(st.integers(0, 3), min_size=4, max_size=4),
    st.tuples(*[st.floats(-0.5, 1.5)] * 3),
    st.tuples(*[st.floats(0.1, 2)] * 3),
)
def test_a_normalized_input_is_taken_back_to_its_bytes(
    kernel: int, stride: int, pads: list[int], mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    """The input stays the normalized image, and its codes are the bytes minus 128."""
    graph, before = one_conv(kernel, stride, pads), Preprocess((PX, PX), mean=mean, std=std)
    found = exact_input(graph, before, "normalized")
    assert isinstance(found, ExactInput)
    assert found.preprocess == before
    images = pixels()
    x = preprocess_pixels(images, before)
    assert run(found.graph, x) == pytest.approx(run(graph, x), rel=1e-3, abs=1e-3)

    view = Graph(found.graph)
    placement = place(view, "tensorrt")
    ranges = {name: TensorRange(name, -1.0, 1.0, "minmax", 1) for name in placement.observed} | dict(found.known)
    quantized = rewrite(found.graph, make_plan(view, placement, ranges, ""))
    quantize = next(node for node in quantized.graph.node if node.op_type == "QuantizeLinear")
    del quantized.graph.output[:]
    quantized.graph.output.append(onnx.helper.make_tensor_value_info(quantize.output[0], onnx.TensorProto.INT8, None))
    codes = run(quantized, x)[:, :3]
    assert np.array_equal(codes, images.transpose(0, 3, 1, 2).astype(int) - 128)
