"""Factors per channel that keep the function, and the noise model that chooses them."""

from __future__ import annotations

import foreign_graphs
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moving_graphs import MOVING
from onnx import TensorProto, helper, numpy_helper

from edgeres.calibrate.forward import with_outputs
from edgeres.graph.graph import Graph
from edgeres.graph.normalize import normalize
from edgeres.pipeline.take import ModelChoice, take
from edgeres.refine.channel_groups import PINNED, ChannelGroups, find_channel_groups, scaled
from edgeres.refine.equalize import equalize
from edgeres.refine.layout import TensorLayout
from edgeres.refine.sensitivity import STEPS, rounding_tables, sensitivities
from edgeres.refine.sensitivity import _count as count


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return result


def layout_of(model: onnx.ModelProto) -> TensorLayout:
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][1:]
    return TensorLayout(Graph(model), np.random.default_rng(2).standard_normal((1, *shape)).astype(np.float32))


def groups_of(model: onnx.ModelProto) -> ChannelGroups:
    return find_channel_groups(Graph(model), layout_of(model))


def assert_same_function(before: onnx.ModelProto, after: onnx.ModelProto, px: int) -> None:
    x = np.random.default_rng(1).standard_normal((2, 3, px, px)).astype(np.float32)
    if before.graph.input[0].type.tensor_type.shape.dim[3].dim_value == 3:
        x = x.transpose(0, 2, 3, 1)
    expected = run(before, x)
    assert run(after, x) == pytest.approx(expected, abs=1e-4 * float(np.abs(expected).max()))


def random_factors(size: int, seed: int) -> np.ndarray:
    factors = np.exp(np.random.default_rng(seed).normal(0, 1, size))
    factors[PINNED] = 1.0
    return factors


@pytest.mark.parametrize("name", foreign_graphs.FOREIGN)
def test_any_factors_keep_the_function(name: str) -> None:
    model = normalize(foreign_graphs.FOREIGN[name]()).model
    groups = groups_of(model)
    # Where every activation is of a kind that does not commute, there is nothing to scale.
    assert (groups.size > 1) == (name not in {"Clip", "HardSwish", "Silu", "Elu"})
    changed = scaled(model, groups, random_factors(groups.size, 0))
    assert_same_function(model, changed, foreign_graphs.PX)
    assert (changed.graph.initializer != model.graph.initializer) == (groups.size > 1)


@pytest.mark.parametrize("name", MOVING)
def test_factors_move_with_their_channels(name: str) -> None:
    model = normalize(MOVING[name]()).model
    groups = groups_of(model)
    # By network: factors of a stem's 16 channels, of others inside, and the pinned one. A gate of the mean of all
    # channels and a layer norm pin everything but what lies behind them.
    sizes = {"channel shuffle": 25, "split attention": 41, "channels last tail": 17, "computed padding": 17}
    sizes |= {"blocks of pixels": 21, "channel attention": 2, "channels last block": 1}
    assert groups.size == sizes[name]
    assert_same_function(model, scaled(model, groups, random_factors(groups.size, 0)), foreign_graphs.PX)


@pytest.mark.parametrize("name", MOVING)
def test_equalized_networks_keep_their_function(name: str) -> None:
    model = normalize(MOVING[name]()).model
    images = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)
    assert_same_function(model, equalize(model, images), foreign_graphs.PX)


@pytest.mark.parametrize("name", ["resnet20", "resnet20v2"])
def test_zoo_networks_keep_their_function(name: str) -> None:
    model = take(ModelChoice(name, weights="random")).graph
    groups = groups_of(model)
    assert_same_function(model, scaled(model, groups, random_factors(groups.size, 1)), 32)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.sampled_from([4, 8]), min_size=1, max_size=5), st.integers(0, 99), st.sampled_from([1, 4]))
def test_random_networks_keep_their_function(widths: list[int], seed: int, group: int) -> None:
    """Blocks of any widths, with a skip wherever shapes allow one, with or without ReLU."""
    w = foreign_graphs.Writer()
    rng = np.random.default_rng(seed)
    x, channels = w.conv("data", (3, 8)), 8
    for width in widths:
        y = w.conv(
            w.op("Relu", w.conv(x, (channels, 8), group=group, bias=True)), (8, width), bias=bool(rng.integers(2))
        )
        x = w.op("Add", x, y) if width == channels else y
        x = w.op("Relu", x) if rng.integers(2) else x
        channels = width
    model = normalize(w.model(w.head(x, channels))).model
    groups = groups_of(model)
    assert_same_function(model, scaled(model, groups, random_factors(groups.size, seed)), foreign_graphs.PX)


def test_one_factor_per_channel_runs_along_the_stream() -> None:
    model = take(ModelChoice("resnet20", weights="random")).graph
    view = Graph(model)
    groups = groups_of(model)
    adds = [node for node in view.nodes if view.is_residual_add(node)]
    for add in adds:
        left, right, out = (groups.channels[name] for name in (*add.input, add.output[0]))
        assert np.array_equal(left, right) and np.array_equal(left, out)
    stages = [groups.channels[add.output[0]] for add in adds[::3]]
    # Option A pads channels on both sides: the middle of the next stage is the stage before.
    assert np.array_equal(stages[1][8:24], stages[0]) and np.array_equal(stages[2][16:48], stages[1])
    # 64 stream channels in all, 16 + 3 * (16 + 32 + 64) inside blocks less the stem that is the stream, and PINNED.
    assert groups.size == 64 + 3 * (16 + 32 + 64) + 1


def test_what_does_not_commute_is_pinned() -> None:
    for name in ("Clip", "HardSwish", "Silu", "Elu"):
        model = normalize(foreign_graphs.FOREIGN[name]()).model
        groups = groups_of(model)
        activations = [n.input[0] for n in model.graph.node if n.op_type in {name, "Sigmoid", "HardSigmoid"}]
        assert activations
        assert all(not groups.channels[tensor].any() for tensor in activations if tensor in groups.channels)


def test_rounding_tables_against_codes_written_out() -> None:
    rng = np.random.default_rng(0)
    x = np.maximum(rng.normal(0, [[[[1.0]], [[0.1]]]], (4, 2, 64, 64)), 0).astype(np.float32)
    found = rounding_tables(count(x), 127)
    channels = x.transpose(1, 0, 2, 3).reshape(2, -1).astype(np.float64)
    for index in np.flatnonzero((STEPS > -8) & (STEPS < -1))[::4]:
        step = 2.0 ** STEPS[index]
        error = (np.clip(np.rint(channels / step), -128, 127) * step - channels) ** 2
        assert found.error[:, index] == pytest.approx(error.mean(axis=1), rel=0.1)
    assert found.power == pytest.approx((channels**2).mean(axis=1), rel=0.02)
    assert found.active == pytest.approx((channels > 0).mean(axis=1))


def test_sensitivities_are_the_noise_gain_of_a_linear_layer() -> None:
    """Mean and classifier, for which the prediction is exact: white noise on one channel at a time, and its effect."""
    w = foreign_graphs.Writer()
    model = normalize(w.model(w.head(w.conv("data", (3, 6)), 6))).model
    inner = model.graph.node[0].output[0]
    h = sensitivities(Graph(model), layout_of(model), {}).tensors[inner]
    head = onnx.ModelProto()
    head.CopyFrom(model)
    del head.graph.node[0], head.graph.input[0]
    head.graph.input.append(helper.make_tensor_value_info(inner, TensorProto.FLOAT, ["n", 6, 32, 32]))
    noise = np.random.default_rng(0).standard_normal((2000, 6, 32, 32)).astype(np.float32)
    quiet = run(head, np.zeros_like(noise[:1]))
    masks = np.eye(6, dtype=np.float32)[..., None, None]
    measured = [((run(head, noise * mask) - quiet) ** 2).sum(axis=1).mean() for mask in masks]
    assert h * 32 * 32 == pytest.approx(measured, rel=0.1)


def linear_model(nodes: list[onnx.NodeProto], shape: tuple[int, ...], constants: dict[str, np.ndarray]) -> Graph:
    """A graph from x to y."""
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape[1:]])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "linear", values, outputs, tensors)
    return Graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8))


NODE = helper.make_node
LINEAR: dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray]]] = {
    "shuffle": (
        [
            NODE("Reshape", ["x", "s"], ["a"]),
            NODE("Transpose", ["a"], ["b"], perm=[0, 2, 1, 3]),
            NODE("Flatten", ["b"], ["c"]),
        ],
        {"s": np.array([-1, 2, 3, 4])},
    ),
    "rows of a MatMul": (
        [NODE("MatMul", ["x", "m"], ["a"]), NODE("Flatten", ["a"], ["c"])],
        {"m": np.eye(2, 3, dtype=np.float32) * 3},
    ),
    "sum of half": (
        [
            NODE("Split", ["x"], ["a", "b"], axis=1, num_outputs=2),
            NODE("ReduceSum", ["b", "r"], ["d"], keepdims=0),
            NODE("Flatten", ["d"], ["c"]),
        ],
        {"r": np.array([1])},
    ),
    "mean of a sum": (
        [
            NODE("AveragePool", ["x"], ["a"], kernel_shape=[2, 1], strides=[1, 1]),
            NODE("Mul", ["a", "k"], ["b"]),
            NODE("Flatten", ["b"], ["c"]),
        ],
        {"k": np.arange(1, 7, dtype=np.float32).reshape(6, 1, 1)},
    ),
    "twice": ([NODE("Concat", ["x", "x"], ["a"], axis=2), NODE("Flatten", ["a"], ["c"])], {}),
    "transposed convolution": (
        [NODE("ConvTranspose", ["x", "k"], ["a"], strides=[2, 2], group=2), NODE("Flatten", ["a"], ["c"])],
        {"k": np.random.default_rng(3).standard_normal((6, 2, 2, 2)).astype(np.float32)},
    ),
}


@pytest.mark.parametrize("name", LINEAR)
def test_sensitivities_are_squared_entries_of_the_jacobian(name: str) -> None:
    """Without a nonlinearity the scores' Jacobian is constant: a run with a 1 at one value of the input gives a column.

    Where a value reaches a score on several ways, its effects add up by chance only: with many scores, as squares.
    """
    scores, tolerance = (20_000, 0.05) if name in {"twice", "transposed convolution"} else (3, 1e-4)
    nodes, constants = LINEAR[name]
    inner = linear_model([*nodes, NODE("Identity", ["c"], ["y"])], (1, 6, 2, 2), constants)
    width = run(inner.model, np.zeros((1, 6, 2, 2), np.float32)).shape[1]
    weight = np.random.default_rng(0).standard_normal((width, scores)).astype(np.float32)
    graph = linear_model([*nodes, NODE("MatMul", ["c", "w"], ["y"])], (1, 6, 2, 2), constants | {"w": weight})
    columns = run(graph.model, np.eye(24, dtype=np.float32).reshape(24, 6, 2, 2))
    exact = (columns.astype(np.float64) ** 2).sum(axis=1).reshape(6, 4).mean(axis=1)
    found = sensitivities(graph, layout_of(graph.model), {}).tensors["x"]
    assert found == pytest.approx(exact, rel=tolerance)


def test_a_convolution_and_a_relu_pass_variance_back() -> None:
    """y = relu(W x) with 2 x 2 taps of known squares, stride 1: by hand."""
    weight = np.array([[[[3.0]], [[0.0]]], [[[4.0]], [[1.0]]]], np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], name="conv"),
        helper.make_node("Relu", ["y"], ["z"], name="relu"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 4, 4]) for name in "xz"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    h = sensitivities(Graph(model), layout_of(model), {"z": np.array([1.0, 0.5])})
    assert h.tensors["y"] == pytest.approx([1.0, 0.5])
    assert h.tensors["x"] == pytest.approx([9 + 0.5 * 16, 0.5])


def test_channels_of_unequal_size_end_up_with_like_ranges() -> None:
    """Two layers whose channels differ by powers of ten but matter equally: the factors make them equal again."""
    w = foreign_graphs.Writer()
    model = normalize(w.model(w.head(w.op("Relu", w.conv(w.op("Relu", w.conv("data", (3, 8))), (8, 8))), 8))).model
    groups = groups_of(model)
    inner = model.graph.node[1].output[0]
    uneven = np.ones(groups.size)
    uneven[groups.channels[inner]] = np.geomspace(0.1, 10, 8)
    skewed = scaled(model, groups, uneven)
    images = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)
    even = equalize(skewed, images)
    assert_same_function(skewed, even, 32)

    def spread(graph: onnx.ModelProto) -> float:
        tapped = onnx.load_from_string(with_outputs(graph, [inner]))
        session = ort.InferenceSession(tapped.SerializeToString(), providers=["CPUExecutionProvider"])
        power = (session.run([inner], {"data": images})[0] ** 2).mean(axis=(0, 2, 3))
        return float(np.log10(power).std())

    assert spread(even) < spread(skewed) / 2


def test_shapes_that_inference_does_not_know_are_measured() -> None:
    model = normalize(foreign_graphs.option_a_concat()).model
    joined = next(node.output[0] for node in model.graph.node if node.op_type == "Concat")
    assert layout_of(model).shape[joined] == (1, 32, 16, 16)
    images = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)
    assert_same_function(model, equalize(model, images), 32)
