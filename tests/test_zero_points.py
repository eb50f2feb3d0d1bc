"""Folded zero points, compared with ONNX Runtime's own QuantizeLinear with zero_point -128."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import foreign_graphs
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeres.graph.graph import Graph
from edgeres.graph.lint import lint
from edgeres.graph.normalize import normalize
from edgeres.pipeline.take import ModelChoice, take, with_exact_input
from edgeres.quantize.affine import affine_int8
from edgeres.quantize.placement import Placement, place
from edgeres.quantize.plan import make_plan
from edgeres.quantize.rewrite import insert_pairs, rewrite
from edgeres.quantize.zero_points import fold_zero_points
from edgeres.records import CODES, Codes, QuantPlan, TensorRange

PX = foreign_graphs.PX


def run(model: onnx.ModelProto, x: np.ndarray, *more: str) -> dict[str, np.ndarray]:
    """The output and the named tensors, without any optimization of ONNX Runtime."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.INT8, None) for name in more)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {session.get_inputs()[0].name: x}), strict=True))


def zero_points(model: onnx.ModelProto) -> set[int]:
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    return {int(value) for node in pairs for value in np.ravel(numpy_helper.to_array(constants[node.input[2]]))}


def plan_for(graph: onnx.ModelProto, x: np.ndarray, codes: Codes = "full") -> QuantPlan:
    """Min-max ranges, found by running the float graph with every tensor as an output."""
    view = Graph(graph)
    placement = place(view, "tensorrt", codes)
    shown = onnx.ModelProto()
    shown.CopyFrom(graph)
    inner = [name for name in placement.observed if name != view.input]
    shown.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inner)
    found = run(shown, x) | {view.input: x}
    ranges = {
        name: TensorRange(name, min(0.0, float(found[name].min())), float(found[name].max()), "minmax", len(x))
        for name in placement.observed
    }
    return make_plan(view, placement, ranges, "")


@pytest.mark.parametrize("name", foreign_graphs.FOREIGN)
def test_folded_graphs_have_the_same_codes_without_zero_points(name: str) -> None:
    graph = normalize(foreign_graphs.FOREIGN[name]()).model
    shape = [dim.dim_value for dim in graph.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(0).uniform(0, 1, (2, *shape[1:])).astype(np.float32)
    plan = plan_for(graph, x)
    plain, folded = insert_pairs(graph, plan), rewrite(graph, plan)

    assert zero_points(folded) == {0}
    assert not [finding for finding in lint(folded) if finding.effect in {"refused", "wrong"}]
    weighted = {node.name for node in folded.graph.node if node.op_type in {"Conv", "Gemm"}}
    sources = {node.output[0]: node.op_type for node in folded.graph.node}
    coded = {edge.node for edge in plan.weights}
    readers = [node for node in folded.graph.node if node.name in weighted & coded]
    assert all(sources[node.input[0]] == "DequantizeLinear" for node in readers)  # every one still takes int8

    codes = [f"{edge.tensor}_q" for edge in plan.edges]
    expected, found = run(plain, x, *codes), run(folded, x, *codes)

    different = [np.abs(expected[name].astype(int) - found[name]) for name in codes]
    # A value in the middle between two codes may round the other way; what follows sees one step more or less.
    assert max(found.max() for found in different) <= 2
    assert np.mean([np.mean(found > 0) for found in different]) < 0.01


def test_some_of_these_graphs_use_all_codes() -> None:
    made = (normalize(make()).model for make in foreign_graphs.FOREIGN.values())
    used = [len(place(Graph(graph), "tensorrt", "full").full) for graph in made]
    assert sum(count > 0 for count in used) > len(used) / 2


def pads(model: onnx.ModelProto) -> Counter[bytes]:
    """What each Pad fills its border with."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "Pad"]
    return Counter(np.float32(constants.get((*node.input, "", "")[2], 0)).tobytes() for node in nodes)


def plan_of(graph: onnx.ModelProto, placement: Placement) -> QuantPlan:
    """A plan with any ranges: what is folded where does not depend on them."""
    ranges = {name: TensorRange(name, 0.0, 1.0, "minmax", 1) for name in placement.observed}
    return make_plan(Graph(graph), placement, ranges, "")


@pytest.mark.parametrize("name", foreign_graphs.FOREIGN)
def test_free_codes_are_all_that_need_no_pad(name: str) -> None:
    """Found by trial, tensor by tensor: a tensor has all codes if and only if that changes no border."""
    graph = normalize(foreign_graphs.FOREIGN[name]()).model
    full, free = (place(Graph(graph), "tensorrt", codes) for codes in ("full", "free"))
    plain = pads(rewrite(graph, plan_of(graph, replace(full, full=frozenset()))))
    assert pads(rewrite(graph, plan_of(graph, free))) == plain
    alone = {tensor: replace(full, full=frozenset({tensor})) for tensor in full.full}
    assert free.full == {t for t, one in alone.items() if pads(rewrite(graph, plan_of(graph, one))) == plain}


def test_free_codes_of_a_resnet50_need_a_pad_of_the_input_at_most() -> None:
    fp32 = with_exact_input(take(ModelChoice("resnet50", weights="random", num_classes=10, input_px=(32, 32))))
    placed = {codes: place(Graph(fp32.graph), "tensorrt", codes) for codes in CODES}
    assert {codes: len(placement.full) for codes, placement in placed.items()} == {"half": 0, "free": 33, "full": 49}
    written = Graph(rewrite(fp32.graph, plan_of(fp32.graph, placed["free"])))
    assert [written.source_of(node.input[0]) for node in written.of("Pad")] == [written.input]


def conv_behind_relu(
    kernel: int, stride: int, pads: list[int], weight: np.ndarray, bias: np.ndarray
) -> onnx.ModelProto:
    """x -> Relu -> Q -> DQ -> Conv, with zero_point -128 and scale 1/4."""
    constants = [
        numpy_helper.from_array(np.float32(0.25), "s"),
        numpy_helper.from_array(np.int8(-128), "z"),
        numpy_helper.from_array(weight, "w"),
        numpy_helper.from_array(bias, "b"),
    ]
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("QuantizeLinear", ["r", "s", "z"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="dequantize"),
        helper.make_node(
            "Conv", ["d", "w", "b"], ["y"], name="conv", kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads
        ),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    values[0] = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 9, 9])
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([1, 2, 3, 5]),
    st.sampled_from([1, 2]),
    st.lists(st.integers(0, 2), min_size=4, max_size=4),
    st.integers(0, 2**32 - 1),
)
def test_the_border_is_exact(kernel: int, stride: int, pads: list[int], seed: int) -> None:
    """All numbers are small multiples of 1/4, so float arithmetic is exact, and the result must be too."""
    rng = np.random.default_rng(seed)
    weight = rng.integers(-9, 10, (4, 3, kernel, kernel)).astype(np.float32)
    bias = rng.integers(-9, 10, 4).astype(np.float32)
    model = conv_behind_relu(kernel, stride, pads, weight, bias)
    x = rng.integers(-200, 300, (1, 3, 9, 9)).astype(np.float32) / 4
    folded = fold_zero_points(model)
    assert zero_points(folded) == {0}
    assert ("Pad" in {node.op_type for node in folded.graph.node}) == any(pads)
    assert np.array_equal(run(model, x)["y"], run(folded, x)["y"])


def test_the_worked_number() -> None:
    weight = np.zeros((1, 3, 1, 1), np.float32)
    weight[0, 0] = 2.0
    model = conv_behind_relu(1, 1, [0] * 4, weight, np.array([0.5], np.float32))
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float32(0.02), "s"))
    x = np.full((1, 3, 9, 9), 3.0, np.float32)
    assert run(fold_zero_points(model), x)["y"] == pytest.approx(6.5, abs=1e-5)
    assert run(model, x, "q")["q"].max() == 150 - 128


def test_a_relu_that_others_read_stays() -> None:
    model = conv_behind_relu(3, 1, [1] * 4, np.ones((4, 3, 3, 3), np.float32), np.zeros(4, np.float32))
    model.graph.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, None))
    x = np.random.default_rng(0).integers(-20, 20, (1, 3, 9, 9)).astype(np.float32)
    expected, found = run(model, x), run(fold_zero_points(model), x)
    assert all(np.array_equal(expected[name], found[name]) for name in ("y", "r"))


def test_full_codes_halve_the_step() -> None:
    params = affine_int8(TensorRange("x", 0.0, 2.55, "minmax", 1))
    assert (float(params.scale), params.zero_point) == (pytest.approx(0.01), -128)


def test_a_convolution_behind_padding_of_unknown_size_keeps_half() -> None:
    w = foreign_graphs.Writer()
    x = w.op("Relu", w.conv("data", (3, 8), bias=True))
    made = w.model(w.head(w.op("Relu", w.conv(x, (8, 8), auto_pad="SAME_UPPER")), 8))
    view = Graph(made)
    assert x not in place(view, "tensorrt", "full").full
    assert Counter(place(view, "tensorrt", "half").full) == Counter()


def test_biases_fit_int32_where_a_runtime_codes_them() -> None:
    """A channel whose weights are all but zero has a tiny scale, and the zero point behind it a large bias: ONNX
    Runtime, with its optimizations on, codes biases in int32 and saturates them."""
    graph = normalize(foreign_graphs.option_a()).model
    convs = [node for node in graph.graph.node if node.op_type == "Conv"]
    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    for conv in convs:
        weight = numpy_helper.to_array(constants[conv.input[1]]).copy()
        weight[::3] *= 1e-9
        constants[conv.input[1]].CopyFrom(numpy_helper.from_array(weight, conv.input[1]))
    x = np.random.default_rng(0).uniform(0, 1, (4, 3, PX, PX)).astype(np.float32)
    folded = rewrite(graph, plan_for(graph, x))
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in folded.graph.initializer}
    made = {node.output[0]: node for node in folded.graph.node}
    for node in folded.graph.node:
        if node.op_type == "Conv":
            scales = [values[made[name].input[1]].astype(np.float64) for name in node.input[:2]]
            assert np.abs(values[node.input[2]] / (scales[0] * scales[1])).max() < 2**31
    session = ort.InferenceSession(folded.SerializeToString(), providers=["CPUExecutionProvider"])
    optimized = session.run(None, {session.get_inputs()[0].name: x})[0]
    plain = next(iter(run(folded, x).values()))
    assert np.abs(optimized - plain).max() < 0.05 * np.abs(plain).max()
