"""Codes, placement and rewrite, compared with ONNX Runtime's operators and with numpy."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeres.data.arrays import Arrays
from edgeres.data.loader import Loader
from edgeres.graph.graph import Graph
from edgeres.pipeline.take import Fp32Model, ModelChoice, take
from edgeres.quantize.affine import affine_uint8, codes, quantize_weight, symmetric_int8, widen_for_bias
from edgeres.quantize.graphs import Quantized, RangeChoice, quantize
from edgeres.quantize.inspect import inspect
from edgeres.quantize.placement import place
from edgeres.quantize.plan import plan_digest
from edgeres.quantize.rewrite import insert_pairs, rewrite
from edgeres.records import QuantParams, TensorRange

values = hnp.arrays(np.float32, hnp.array_shapes(max_dims=1, max_side=50), elements=st.floats(-100, 100, width=32))


def ort_quantize(x: np.ndarray, params: QuantParams) -> np.ndarray:
    """QuantizeLinear as ONNX Runtime computes it."""
    kind = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8}[params.dtype]
    scale = np.asarray(params.scale, np.float32)
    zero = np.full(scale.shape, params.zero_point, params.dtype)
    attributes = {} if params.axis is None else {"axis": params.axis}
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("q", kind, x.shape)],
        [numpy_helper.from_array(scale, "s"), numpy_helper.from_array(zero, "z")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    result: np.ndarray = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    return result


@settings(deadline=None)
@given(values, st.floats(0.01, 200), st.floats(0.01, 200))
def test_codes_are_those_of_onnx_runtime(x: np.ndarray, low: float, high: float) -> None:
    interval = TensorRange("x", -low, high, "minmax", 1)
    for params in (symmetric_int8(interval), affine_uint8(interval)):
        assert np.array_equal(codes(x, params), ort_quantize(x, params))


@given(st.floats(-1e6, 0), st.floats(0, 1e6))
def test_zero_is_exact_and_the_range_is_covered(low: float, high: float) -> None:
    interval = TensorRange("x", low, high, "minmax", 1)
    for params in (symmetric_int8(interval), affine_uint8(interval)):
        first, last = params.code_limits
        assert first <= params.zero_point <= last
        reach = [(code - params.zero_point) * float(params.scale) for code in (first, last)]
        slack = float(params.scale) * 0.51 + 1e-6 * max(-low, high)
        assert reach[0] <= low + slack or low == 0
        assert reach[1] >= high - slack
    assert symmetric_int8(interval).zero_point == 0


def test_a_tensor_that_is_always_zero_gets_a_scale_that_is_not() -> None:
    nothing = TensorRange("x", 0.0, 0.0, "mse", 1)
    assert float(symmetric_int8(nothing).scale) == float(affine_uint8(nothing).scale) == 1.0
    params, weight = quantize_weight(np.zeros((2, 3, 1, 1), np.float32), 0)
    assert (params.scale > 0).all()
    assert not weight.any()


@settings(deadline=None)
@given(hnp.arrays(np.float32, (3, 4, 2), elements=st.floats(-8, 8, width=32)), st.sampled_from([0, 1, 2]))
def test_weights_have_one_scale_per_output_channel(weight: np.ndarray, axis: int) -> None:
    params, quantized = quantize_weight(weight, axis)
    assert params.scale.shape == (weight.shape[axis],)
    assert np.array_equal(quantized, np.clip(ort_quantize(weight, params), -127, 127))
    real = quantized * np.expand_dims(params.scale, [i for i in range(3) if i != axis])
    assert (np.abs(real - weight) <= 0.5001 * np.expand_dims(params.scale, [i for i in range(3) if i != axis])).all()


def test_seven_bits_leave_room_for_a_saturating_sum() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 4, 3, 3)).astype(np.float32)
    _, quantized = quantize_weight(weight, 0, bits=7)
    assert np.abs(quantized).max() == 63
    assert np.iinfo(np.int16).max >= 255 * 63 * 2


def test_a_bias_beyond_int32_raises_the_scale_of_its_channel_only() -> None:
    params = QuantParams(np.array([1e-2, 1e-14], np.float32), 0, "int8", 0)
    wider = widen_for_bias(params, np.array([1.0, 5.0], np.float32), 0.02)
    assert wider.scale[0] == params.scale[0]
    assert 5.0 / (wider.scale[1] * 0.02) < np.iinfo(np.int32).max


def images(count: int, px: int, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    smooth = rng.integers(0, 256, (count, px // 8, px // 8, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    return Arrays(smooth, np.zeros(count, np.int64), ("one",), "random")


@pytest.fixture(scope="module")
def fp32() -> Fp32Model:
    return take(ModelChoice("resnet20", weights="random"))


@pytest.fixture(scope="module")
def quantized(fp32: Fp32Model) -> Quantized:
    loader = Loader(images(16, 32), fp32.spec.preprocess, 4)
    return quantize(fp32.graph, ["tensorrt", "cpu"], loader, RangeChoice())


def run(model: onnx.ModelProto, x: np.ndarray, *, optimized: Path | None = None) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if optimized is None:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    else:
        options.optimized_model_filepath = str(optimized)
    result: np.ndarray = ort.InferenceSession(model.SerializeToString(), options).run(None, {"input": x})[0]
    return result


def inputs(fp32: Fp32Model) -> np.ndarray:
    return next(iter(Loader(images(16, 32, seed=1), fp32.spec.preprocess, 16))).inputs


def sqnr_db(signal: np.ndarray, other: np.ndarray) -> float:
    signal = signal - signal.mean()
    return float(10 * np.log10((signal**2).sum() / ((signal - (other - other.mean())) ** 2).sum()))


def test_tensorrt_takes_conv_inputs_and_skip_inputs_only(fp32: Fp32Model) -> None:
    view = Graph(fp32.graph)
    placement = place(view, "tensorrt")
    convs = [node for node in view.nodes if node.op_type == "Conv"]
    adds = [node for node in view.nodes if node.op_type == "Add"]
    sites = {site.tensor: site for site in placement.sites}
    assert {node.input[0] for node in convs} <= set(sites)
    for add in adds:
        quantized_inputs = [name for name in add.input if name in sites and add.name in sites[name].consumers]
        assert len(quantized_inputs) == 1
        main = next(name for name in add.input if name not in quantized_inputs)
        producer = view.producer(main)
        assert producer is not None and producer.op_type == "Conv"
        assert any(add.name in skipped.what and "main branch" in skipped.reason for skipped in placement.skipped)
    # Two option-A shortcuts read the codes of the block's input and pass them on.
    passed_on = [site for site in placement.sites if site.like is not None]
    assert len(passed_on) == 2
    assert all(any(node.input[0] == site.like for node in convs) for site in passed_on)
    assert len(placement.weighted) == len(convs) + 1


def test_a_downsample_block_skips_on_the_side_with_fewer_convolutions() -> None:
    view = Graph(take(ModelChoice("resnet18", weights="random")).graph)
    placement = place(view, "tensorrt")
    skips = [site.tensor for site in placement.sites if "skip input of Add" in site.reason]
    assert len(skips) == 8
    assert sum("downsample" in name for name in skips) == 3


def test_a_plain_net_has_no_skip() -> None:
    view = Graph(take(ModelChoice("plain18", weights="random")).graph)
    assert not any("skip" in site.reason for site in place(view, "tensorrt").sites)


def test_onnx_runtime_makes_every_convolution_and_add_an_integer_kernel(
    fp32: Fp32Model, quantized: Quantized, tmp_path: Path
) -> None:
    run(quantized.graphs["cpu"], inputs(fp32), optimized=tmp_path / "optimized.onnx")
    ops = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    original = Counter(node.op_type for node in fp32.graph.graph.node)
    assert ops["QLinearConv"] == original["Conv"] == 19
    assert ops["QLinearAdd"] == original["Add"] == 9
    assert not ops["Conv"] + ops["FusedConv"] + ops["Add"] + ops["Relu"] + ops["Gemm"]


@pytest.mark.parametrize("style", ["tensorrt", "cpu"])
def test_both_graphs_stay_near_fp32(fp32: Fp32Model, quantized: Quantized, style: str) -> None:
    x = inputs(fp32)
    assert sqnr_db(run(fp32.graph, x), run(quantized.graphs[style], x)) > 20  # type: ignore[index]


def test_the_first_layer_is_the_arithmetic_written_out(fp32: Fp32Model, quantized: Quantized) -> None:
    """Q/DQ on input and weights of the first Conv, in float64 numpy, against the graph's own first tensor."""
    graph = onnx.ModelProto()
    plan = quantized.plans["tensorrt"]
    graph.CopyFrom(insert_pairs(fp32.graph, plan))
    conv = next(node for node in graph.graph.node if node.op_type == "Conv")
    del graph.graph.output[:]
    graph.graph.output.append(helper.make_tensor_value_info(conv.output[0], TensorProto.FLOAT, None))
    x = inputs(fp32)[:2]
    got = run(graph, x)
    edge = next(edge for edge in plan.edges if edge.tensor == "input")
    weight = next(weight for weight in plan.weights if weight.node == conv.name)
    scale = float(edge.params.scale)
    data = np.clip(np.rint(x / np.float32(scale)), -128, 127).astype(np.float64) * scale
    kernel = weight.codes.astype(np.float64) * weight.params.scale.reshape(-1, 1, 1, 1)
    bias = Graph(fp32.graph).constant(conv.input[2])
    padded = np.pad(data, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    expected = np.einsum("nchwij,ocij->nohw", windows, kernel) + bias.reshape(1, -1, 1, 1)
    assert got == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_readers_that_are_not_named_keep_the_float_tensor(fp32: Fp32Model, quantized: Quantized) -> None:
    plan = quantized.plans["tensorrt"]
    first = plan.edges[0]
    nothing = rewrite(fp32.graph, replace(plan, edges=(replace(first, consumers=()),), weights=()))
    assert not any(node.op_type == "QuantizeLinear" for node in nothing.graph.node)
    x = inputs(fp32)
    assert np.array_equal(run(nothing, x), run(fp32.graph, x))


def test_every_decision_has_a_reason_that_travels_with_the_file(quantized: Quantized, tmp_path: Path) -> None:
    for style, graph in quantized.graphs.items():
        path = tmp_path / f"{style}.onnx"
        onnx.save(graph, path)
        (found,) = inspect(path)
        assert found.style == style
        assert found.quantized and all(tensor.reason for tensor in found.quantized)
        assert found.skipped and all(reason for _, reason in found.skipped)
        assert not found.refused
        json.dumps(asdict(found), allow_nan=False)


def test_plan_digest_sees_every_scale(quantized: Quantized) -> None:
    plan = quantized.plans["tensorrt"]
    edge = plan.edges[3]
    nudged = replace(edge, params=replace(edge.params, scale=np.nextafter(edge.params.scale, np.float32(1))))
    other = replace(plan, edges=(*plan.edges[:3], nudged, *plan.edges[4:]))
    assert plan_digest(plan) == plan_digest(replace(plan)) != plan_digest(other)


@pytest.fixture(scope="module")
def grown() -> Iterator[Fp32Model]:
    yield take(ModelChoice("resnext50_32x4d", weights="random", num_classes=7))


def test_grouped_convolutions_take_codes_too(grown: Fp32Model) -> None:
    loader = Loader(images(2, 224), grown.spec.preprocess, 2)
    done = quantize(grown.graph, ["tensorrt"], loader, RangeChoice("minmax"))
    grouped = [n for n in grown.graph.graph.node if any(a.name == "group" and a.i == 32 for a in n.attribute)]
    assert len(grouped) == 16
    assert {n.name for n in grouped} <= {w.node for w in done.plans["tensorrt"].weights}
