"""Small graphs for the tests of the engine: a ResNet in float and with Q/DQ placed by hand, and its parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ACTIVATION_SCALE = 0.05


def constant(name: str, values: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values), name)


def model(
    nodes: list[onnx.NodeProto],
    constants: list[onnx.TensorProto],
    *,
    shape: tuple[Any, ...] = ("n", 3, 8, 8),
    output: tuple[Any, ...] | None = None,
    types: tuple[int, int] = (TensorProto.FLOAT, TensorProto.FLOAT),
    opsets: dict[str, int] | None = None,
) -> onnx.ModelProto:
    """A graph from input ``x`` to output ``y``."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", types[0], shape)],
        [helper.make_tensor_value_info("y", types[1], output)],
        constants,
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in (opsets or {"": 17}).items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


class _Net:
    """Writes layers one behind the other; with ``quantized``, as Q/DQ for TensorRT wants it."""

    def __init__(self, quantized: bool) -> None:
        self.quantized = quantized
        self.nodes: list[onnx.NodeProto] = []
        self.constants = [constant("scale", np.float32(ACTIVATION_SCALE)), constant("zero", np.int8(0))] * quantized
        self._rng = np.random.default_rng(0)

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def qdq(self, tensor: str) -> str:
        if not self.quantized:
            return tensor
        return self.add("DequantizeLinear", self.add("QuantizeLinear", tensor, "scale", "zero"), "scale", "zero")

    def weight(self, *shape: int) -> str:
        """A weight with its output channels on axis 0, scaled as He et al. initialise."""
        name = f"weight{len(self.constants)}"
        fan_in = int(np.prod(shape[1:]))
        values = (self._rng.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32)
        if not self.quantized:
            self.constants.append(constant(name, values))
            return name
        scale = np.abs(values).reshape(shape[0], -1).max(axis=1) / np.float32(127)
        codes = np.rint(values / scale.reshape(-1, *[1] * (len(shape) - 1))).astype(np.int8)
        self.constants += [constant(name, codes), constant(f"{name}_scale", scale)]
        self.constants.append(constant(f"{name}_zero", np.zeros(shape[0], np.int8)))
        return self.add("DequantizeLinear", name, f"{name}_scale", f"{name}_zero", axis=0)

    def conv(self, tensor: str, channels: tuple[int, int], kernel: int, stride: int = 1) -> str:
        weight = self.weight(channels[1], channels[0], kernel, kernel)
        bias = f"bias{len(self.constants)}"
        self.constants.append(constant(bias, np.zeros(channels[1], np.float32)))
        pads, strides = [kernel // 2] * 4, [stride] * 2
        return self.add("Conv", self.qdq(tensor), weight, bias, pads=pads, strides=strides)

    def block(self, tensor: str, channels: tuple[int, int]) -> str:
        """A basic block; with a change of channels, a strided one with a projection on its skip."""
        stride = 1 if channels[0] == channels[1] else 2
        main = self.add("Relu", self.conv(tensor, channels, 3, stride))
        main = self.conv(main, (channels[1], channels[1]), 3)
        skip = tensor if stride == 1 else self.conv(tensor, channels, 1, stride)
        return self.add("Relu", self.add("Add", main, self.qdq(skip)))


def resnet(*, quantized: bool, batch: int | str = "n", width: int = 64, px: int = 32) -> onnx.ModelProto:
    """Stem, an identity block, a downsample block, mean, classifier: x (batch, 3, px, px) -> y (batch, 10)."""
    net = _Net(quantized)
    tensor = net.add("Relu", net.conv("x", (3, width), 3))
    tensor = net.add("MaxPool", tensor, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    tensor = net.block(net.block(tensor, (width, width)), (width, 2 * width))
    tensor = net.qdq(net.add("Flatten", net.add("GlobalAveragePool", tensor)))
    weight = net.weight(10, 2 * width)
    net.nodes.append(helper.make_node("Gemm", [tensor, weight], ["y"], name="head", transB=1))
    built = model(net.nodes, net.constants, shape=(batch, 3, px, px), output=(batch, 10))
    onnx.checker.check_model(built, full_check=True)
    return built


@dataclass(frozen=True)
class Layer:
    """A quantized layer that reads x through Q/DQ; the fields are what the cases below get wrong."""

    op: str = "Conv"
    shape: tuple[int, ...] = (8, 3, 3, 3)
    axis: int | None = 0
    count: int = 8  # of scales
    attributes: dict[str, Any] | None = None
    features: int | None = None  # of a flat input

    def graph(self) -> onnx.ModelProto:
        axis = {} if self.axis is None else {"axis": self.axis}
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["xd"], name="dq"),
            helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], name="dqw", **axis),
            helper.make_node(self.op, ["xd", "wd"], ["y"], name="layer", **(self.attributes or {})),
        ]
        codes = np.random.default_rng(0).integers(-127, 128, self.shape).astype(np.int8)
        weights = [constant("w", codes), constant("ws", np.full(self.count, 0.02, np.float32))]
        weights.append(constant("wz", np.zeros(self.count, np.int8)))
        shape = ("n", 3, 8, 8) if self.features is None else ("n", self.features)
        return model(nodes, [constant("s", np.float32(0.1)), constant("z", np.int8(0)), *weights], shape=shape)


def node_of(built: onnx.ModelProto, op: str) -> onnx.NodeProto:
    """The first node of this operator."""
    return next(node for node in built.graph.node if node.op_type == op)
