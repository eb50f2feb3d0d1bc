"""Operators between two layers of the graph for the CPU: codes all the way, by what ONNX Runtime makes of the graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from engine_graphs import constant, model
from noise import noise_power
from onnx import helper

from edgeres.data.arrays import Arrays
from edgeres.data.loader import Loader
from edgeres.graph.fold_affine import fold_affine
from edgeres.graph.graph import Graph
from edgeres.graph.normalize import normalize
from edgeres.quantize.graphs import RangeChoice, quantize
from edgeres.records import F32, Preprocess, QuantPlan, Style

PX, WIDTH = 16, 16
CONTRACT = Preprocess((PX, PX), mean=(0.5,) * 3, std=(0.25,) * 3)
# What surrounds the integer layers: the first quantize, layouts, and the last dequantize.
AROUND = {"QuantizeLinear": 1, "DequantizeLinear": 1}


class Net:
    """Writes a small network: layers by name, constants beside them."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(7)

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        written = [f"{name}_out{index or ''}" for index in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), written, name=name, **attributes))
        return written[0]

    def value(self, values: Any) -> str:
        self.constants.append(constant(f"constant{len(self.constants)}", values))
        return str(self.constants[-1].name)

    def uniform(self, *shape: int, low: float = 0.5, high: float = 1.5) -> str:
        return self.value(self._rng.uniform(low, high, shape).astype(np.float32))

    def conv(self, tensor: str, channels: int, kernel: int = 3, outputs: int = WIDTH) -> str:
        shape = (outputs, channels, kernel, kernel)
        weight = self._rng.standard_normal(shape).astype(np.float32) * np.float32(np.sqrt(2 / np.prod(shape[1:])))
        bias = self._rng.normal(0, 0.1, outputs).astype(np.float32)
        pads = [kernel // 2] * 4
        return self.add("Conv", tensor, self.value(weight), self.value(bias), pads=pads)

    def relu(self, tensor: str) -> str:
        return self.add("Relu", tensor)


def network(middle: Callable[[Net, str], tuple[str, int]]) -> onnx.ModelProto:
    """Conv, ReLU, the operator under test, Conv, ReLU, mean, classifier; ``middle`` gives a tensor and its channels."""
    net = Net()
    tensor, channels = middle(net, net.relu(net.conv("x", 3)))
    tensor = net.relu(net.conv(tensor, channels, 1))
    tensor = net.add("Flatten", net.add("GlobalAveragePool", tensor))
    net.nodes.append(
        helper.make_node("Gemm", [tensor, net.uniform(10, WIDTH, low=-1, high=1)], ["y"], "head", transB=1)
    )
    return normalize(model(net.nodes, net.constants, shape=("n", 3, PX, PX), output=("n", 10))).model


def shuffled(net: Net, x: str) -> tuple[str, int]:
    """A unit of ShuffleNet: channel split, one half through a layer, Concat, channel shuffle."""
    first = net.add("Split", x, net.value(np.array([8, 8])), outputs=2, axis=1)
    other = net.relu(net.conv(f"{first}1", 8, outputs=8))
    tensor = net.add("Concat", first, other, axis=1)
    tensor = net.add("Reshape", tensor, net.value(np.array([0, 2, 8, PX, PX])))
    tensor = net.add("Transpose", tensor, perm=[0, 2, 1, 3, 4])
    return net.add("Reshape", tensor, net.value(np.array([0, 16, PX, PX]))), 16


def shortcut_with_zeros(net: Net, x: str) -> tuple[str, int]:
    """Option A: more channels by zeros, here a padding."""
    return net.add("Pad", x, net.value(np.array([0, 8, 0, 0, 0, 8, 0, 0]))), 2 * WIDTH


def gate(net: Net, x: str) -> tuple[str, int]:
    """Squeeze and excite."""
    small = net.relu(net.conv(net.add("GlobalAveragePool", x), WIDTH, 1, 4))
    return net.add("Mul", x, net.add("Sigmoid", net.conv(small, 4, 1))), WIDTH


SIZES = np.array([1, 1, 2, 2], np.float32)
FUSED: dict[str, tuple[str, Callable[[Net, str], tuple[str, int]]]] = {
    "Mul by a constant per channel": ("QLinearMul", lambda n, x: (n.add("Mul", x, n.uniform(WIDTH, 1, 1)), WIDTH)),
    "Mul by a number": ("QLinearMul", lambda n, x: (n.add("Mul", n.value(np.float32(0.3)), x), WIDTH)),
    "Add of a constant per channel": ("QLinearAdd", lambda n, x: (n.add("Add", x, n.uniform(WIDTH, 1, 1)), WIDTH)),
    "Add and ReLU": ("QLinearAdd", lambda n, x: (n.relu(n.add("Add", x, n.value(np.float32(-0.5)))), WIDTH)),
    "Concat": ("QLinearConcat", lambda n, x: (n.add("Concat", x, n.relu(n.conv(x, WIDTH)), axis=1), 2 * WIDTH)),
    "Concat with itself": ("QLinearConcat", lambda n, x: (n.add("Concat", x, x, axis=1), 2 * WIDTH)),
    "zeros behind a shortcut": ("Pad", shortcut_with_zeros),
    "LeakyRelu": ("QLinearLeakyRelu", lambda n, x: (n.add("LeakyRelu", n.conv(x, WIDTH), alpha=0.1), WIDTH)),
    "Sigmoid gate": ("QLinearSigmoid", gate),
    "AveragePool": ("QLinearAveragePool", lambda n, x: (
        n.add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]), WIDTH
    )),
    "channel shuffle": ("QLinearConcat", shuffled),
    "Resize": ("Resize", lambda n, x: (
        n.add("Resize", x, "", n.value(SIZES), mode="nearest", coordinate_transformation_mode="asymmetric",
              nearest_mode="floor"), WIDTH
    )),
    "DepthToSpace": ("DepthToSpace", lambda n, x: (n.add("DepthToSpace", x, blocksize=2), WIDTH // 4)),
    "Gather": ("Gather", lambda n, x: (n.add("Gather", x, n.value(np.arange(16)[::-2].copy()), axis=1), 8)),
}  # fmt: skip


def loader(seed: int) -> Loader:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, PX, PX, 3), dtype=np.uint8)
    return Loader(Arrays(pixels, np.zeros(32, np.int64), ("one",), "random"), CONTRACT, 16)


def run(graph: onnx.ModelProto, *, optimized: Path | None = None) -> F32:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    images = np.concatenate([batch.inputs for batch in loader(1)])
    scores: F32 = session.run(None, {session.get_inputs()[0].name: images})[0]
    return scores


def for_cpu(graph: onnx.ModelProto) -> tuple[onnx.ModelProto, QuantPlan]:
    done = quantize(graph, ["cpu"], loader(0), RangeChoice("minmax"))
    return done.graphs["cpu"], done.plans["cpu"]


@pytest.mark.parametrize("name", FUSED)
def test_codes_pass_from_layer_to_layer(name: str, tmp_path: Path) -> None:
    kernel, middle = FUSED[name]
    graph = network(middle)
    coded, plan = for_cpu(graph)
    scores = run(coded, optimized=tmp_path / "optimized.onnx")
    counts = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert counts[kernel] >= 1
    assert counts["QLinearConv"] == sum(node.op_type == "Conv" for node in graph.graph.node)
    assert {op: count for op, count in counts.items() if op in AROUND and count > AROUND[op]} == {}
    assert [item for item in plan.skipped if "scores are not rounded" not in item.reason] == []
    assert noise_power(run(graph), scores) < 1e-3


def skipped(plan: QuantPlan) -> dict[str, str]:
    return {item.what.split()[0]: item.reason for item in plan.skipped if not item.what.startswith("Gemm head")}


def test_a_constant_that_eight_bits_cannot_hold_stays_float() -> None:
    factors = np.geomspace(1e-3, 10, WIDTH, dtype=np.float32).reshape(WIDTH, 1, 1)
    factors[0] = -10
    _, plan = for_cpu(network(lambda n, x: (n.add("Mul", x, n.value(factors)), WIDTH)))
    assert skipped(plan) == {"Mul": "eight bits with one scale are too few for its constant"}
    assert all(edge.params.dtype != "uint8" for edge in plan.weights)


def test_constants_in_front_of_the_first_layer_stay_float() -> None:
    """A graph that normalizes its own image: the codes of the image would be rounded a second time."""
    net = Net()
    tensor = net.add("Add", net.add("Mul", "x", net.uniform(3, 1, 1)), net.uniform(3, 1, 1))
    tensor = net.add("Flatten", net.add("GlobalAveragePool", net.relu(net.conv(tensor, 3))))
    net.nodes.append(helper.make_node("Gemm", [tensor, net.uniform(10, WIDTH)], ["y"], "head", transB=1))
    _, plan = for_cpu(normalize(model(net.nodes, net.constants, shape=("n", 3, PX, PX), output=("n", 10))).model)
    assert all(edge.params.dtype != "uint8" for edge in plan.weights)


def test_scores_that_are_scaled_at_the_end_are_not_rounded() -> None:
    net = Net()
    tensor = net.conv(net.relu(net.conv("x", 3)), WIDTH, 1, 10)
    tensor = net.add("Flatten", net.add("GlobalAveragePool", tensor))
    net.nodes.append(helper.make_node("Mul", [tensor, net.value(np.float32(0.1))], ["y"], "head"))
    graph = normalize(model(net.nodes, net.constants, shape=("n", 3, PX, PX), output=("n", 10))).model
    coded, plan = for_cpu(graph)
    assert skipped(plan) == dict.fromkeys(
        ["GlobalAveragePool", "Mul"], "its output stays float: scores are not rounded"
    )
    assert len(np.unique(run(coded))) > 256


def attention_pool(net: Net, x: str) -> tuple[str, int]:
    """Tokens of rank 3, a product of two activations, and weights as the left factor."""
    tokens = net.add("Reshape", x, net.value(np.array([0, WIDTH, -1])))
    mixed = net.add("MatMul", net.uniform(WIDTH, WIDTH, low=-0.2, high=0.2), tokens)
    keys = net.add("Transpose", tokens, perm=[0, 2, 1])
    scores = net.add("MatMul", keys, net.uniform(WIDTH, WIDTH, low=-0.2, high=0.2))
    weights = net.add("Softmax", net.add("MatMul", scores, mixed), axis=-1)
    return net.add("Reshape", net.add("MatMul", tokens, weights), net.value(np.array([0, WIDTH, PX, PX]))), WIDTH


def shares_of_the_batch(net: Net, x: str) -> tuple[str, int]:
    """A factor that is computed from the number of images, as float: an activation times something that is none."""
    count = net.add("Gather", net.add("Shape", x), net.value(np.int64(0)), axis=0)
    number = net.add("Cast", count, to=onnx.TensorProto.FLOAT)
    halves = net.add("Add", net.add("Div", number, number), net.add("Sub", number, number))
    return net.add("Mul", x, halves), WIDTH


@pytest.mark.parametrize("middle", [attention_pool, shares_of_the_batch])
@pytest.mark.parametrize("style", ["cpu", "tensorrt"])
def test_only_activations_carry_codes(middle: Callable[[Net, str], tuple[str, int]], style: Style) -> None:
    graph = network(middle)
    view = Graph(graph)
    done = quantize(graph, [style], loader(0), RangeChoice("minmax"))
    for edge in done.plans[style].edges:
        value = view.types[edge.tensor].type.tensor_type
        assert value.elem_type == onnx.TensorProto.FLOAT and value.shape.dim[0].dim_value == 0, edge.tensor
    assert noise_power(run(graph), run(done.graphs[style])) < 1e-3
    matmul = [item for item in done.plans[style].skipped if item.what.startswith("MatMul")]
    assert len(matmul) == (3 if middle is attention_pool else 0)


def test_learning_sees_the_constants_that_the_graph_has() -> None:
    pytest.importorskip("torch")
    import torch

    from edgeres.refine.blocks import whole
    from edgeres.refine.candidate import CandidatePlan
    from edgeres.refine.torch_graph import TorchGraph

    graph = network(FUSED["Mul by a constant per channel"][1])
    coded, plan = for_cpu(graph)
    learner = TorchGraph(graph, plan)
    images = np.concatenate([batch.inputs for batch in loader(1)])
    found = learner.run(whole(Graph(graph)), torch.from_numpy(images)).detach().numpy()
    assert noise_power(run(coded), found) < 1e-4 < noise_power(run(coded), run(graph)) * 10
    again = CandidatePlan(graph, learner.candidate().plan).quantized()
    assert noise_power(run(coded), run(again)) < 1e-6


def batch_norm_behind_an_add(net: Net, x: str) -> tuple[str, int]:
    """As Keras writes it, in a network with pre-activation: Sub, Mul, Add."""
    tensor = net.add("Add", x, net.conv(x, WIDTH))
    for op in ("Sub", "Mul", "Add"):
        tensor = net.add(op, tensor, net.uniform(WIDTH, 1, 1))
    return net.relu(net.add("Div", tensor, net.value(np.float32(2)))), WIDTH


def test_constants_one_behind_the_other_become_one_product_and_one_sum(tmp_path: Path) -> None:
    graph = network(batch_norm_behind_an_add)
    assert Counter(node.op_type for node in graph.graph.node)["Mul"] == 1
    assert not {"Sub", "Div"} & {node.op_type for node in graph.graph.node}
    coded, _ = for_cpu(graph)
    scores = run(coded, optimized=tmp_path / "optimized.onnx")
    counts = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert (counts["QLinearMul"], counts["QLinearAdd"], counts["DequantizeLinear"]) == (1, 2, 0)
    assert noise_power(run(graph), scores) < 1e-3


@pytest.mark.parametrize("channels_last", [False, True])
def test_what_is_merged_computes_the_same(channels_last: bool) -> None:
    """With another reader of the tensor that the run begins at, and of one in its middle."""
    net = Net()
    tensor = net.relu(net.conv("x", 3))
    shape = (WIDTH, 1, 1)
    if channels_last:
        tensor, shape = net.add("Transpose", tensor, perm=[0, 2, 3, 1]), (WIDTH,)
    first = net.add("Div", net.add("Sub", tensor, net.uniform(*shape)), net.uniform(*shape))
    second = net.add("Add", net.add("Mul", first, net.value(np.float32(-2))), net.uniform(*shape))
    net.nodes.append(helper.make_node("Add", [net.add("Add", tensor, first), second], ["y"], "last"))
    before = model(net.nodes, net.constants, shape=("n", 3, PX, PX), output=("n", None, None, None))
    view = Graph.copy_of(before)
    assert fold_affine(view.model) == 0
    ops = Counter(node.op_type for node in view.model.graph.node)
    assert (ops["Sub"], ops["Div"], ops["Mul"], ops["Add"]) == (0, 0, 2, 4)
    expected, found = run(before), run(view.model)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
