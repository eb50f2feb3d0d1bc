"""Two layers with INT8 input and one step between them, to see whether the first layer writes codes itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeres.engine.builder import BuildRequest, build_engine
from edgeres.engine.kernels import read_program

CHANNELS, SIDE = 64, 28
SCALE = 0.03


@dataclass
class Pair:
    """Builds a graph: x (1, 64, 28, 28) -> Q -> DQ -> first -> step -> second -> y.

    Attributes:
        op: Conv, or MatMul on (784, 64).
        channel_scales: whether weights have a scale per output channel, or one scale.
        dtype: of the tensors that are not codes.
    """

    op: str = "Conv"
    kernel: int = 3
    channel_scales: bool = False
    bias: bool = True
    dtype: type = np.float32
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def put(self, op: str, *inputs: Any, **attributes: Any) -> str:
        names = []
        for value in inputs:
            if not isinstance(value, str):
                self.constants.append(numpy_helper.from_array(np.asarray(value), f"k{len(self.constants)}"))
            names.append(value if isinstance(value, str) else self.constants[-1].name)
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, names, [output], f"{op}{len(self.nodes)}", **attributes))
        return output

    def quantize(self, tensor: str, scale: float = SCALE) -> str:
        return self.put("QuantizeLinear", tensor, self.dtype(scale), np.int8(0))

    def dequantize(self, codes: str, scale: float = SCALE) -> str:
        return self.put("DequantizeLinear", codes, self.dtype(scale), np.int8(0))

    def layer(self, tensor: str) -> str:
        conv = self.op == "Conv"
        shape = (CHANNELS, CHANNELS, self.kernel, self.kernel) if conv else (CHANNELS, CHANNELS)
        weight_codes = np.random.default_rng(len(self.nodes)).integers(-127, 128, shape).astype(np.int8)
        count = (CHANNELS,) if self.channel_scales else ()
        scale, zero = np.full(count, 0.01, self.dtype), np.zeros(count, np.int8)
        axis = {"axis": 0 if conv else 1} if self.channel_scales else {}
        weight = self.put("DequantizeLinear", weight_codes, scale, zero, **axis)
        bias = [np.ones(CHANNELS, self.dtype)] if self.bias else []
        if not conv:
            product = self.put("MatMul", tensor, weight)
            return self.put("Add", product, *bias) if bias else product
        return self.put("Conv", tensor, weight, *bias, pads=[self.kernel // 2] * 4)

    def graph(self, step: Callable[[Pair, str], str]) -> onnx.ModelProto:
        half = self.dtype == np.float16
        x = self.put("Cast", "x", to=TensorProto.FLOAT16) if half else "x"
        x = self.layer(self.dequantize(self.quantize(x)))
        y = self.layer(self.dequantize(step(self, x)))
        self.nodes.append(helper.make_node("Cast", [y], ["y"], "out", to=TensorProto.FLOAT))
        shape = [1, CHANNELS, SIDE, SIDE] if self.op == "Conv" else [SIDE * SIDE, CHANNELS]
        graph = helper.make_graph(
            self.nodes,
            "pair",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            self.constants,
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        onnx.checker.check_model(made)
        return made


def _relu(pair: Pair, x: str) -> str:
    return pair.quantize(pair.put("Relu", x))


def _cast(pair: Pair, x: str) -> str:
    return pair.put("Cast", x, to=TensorProto.INT8)


def _clip(low: float) -> Callable[[Pair, str], str]:
    return lambda pair, x: pair.put("Clip", x, pair.dtype(low), pair.dtype(127))


# The step between the two layers, and the layers.
STEPS: dict[str, tuple[Pair, Callable[[Pair, str], str]]] = {
    "Q": (Pair(), Pair.quantize),
    "Q with scale 1": (Pair(), lambda pair, x: pair.quantize(x, 1.0)),
    "Q with scale 1/32": (Pair(), lambda pair, x: pair.quantize(x, 1 / 32)),
    "ReLU, Q": (Pair(), _relu),
    "ReLU, Q; a scale per channel of the weights": (Pair(channel_scales=True), _relu),
    "Q; no bias": (Pair(bias=False), Pair.quantize),
    "ReLU, Q; float16 between": (Pair(dtype=np.float16), _relu),
    "ReLU, Q; float16 between, a scale per channel": (Pair(dtype=np.float16, channel_scales=True), _relu),
    "Q, ReLU on codes": (Pair(), lambda pair, x: pair.put("Relu", pair.quantize(x))),
    "Cast to int8": (Pair(), _cast),
    "ReLU, Cast to int8": (Pair(), lambda pair, x: _cast(pair, pair.put("Relu", x))),
    "Clip to 0..127, Cast to int8": (Pair(), lambda pair, x: _cast(pair, _clip(0)(pair, x))),
    "Clip to -128..127, Round, Cast to int8": (
        Pair(),
        lambda pair, x: _cast(pair, pair.put("Round", _clip(-128)(pair, x))),
    ),
    "ReLU, Q; 1x1": (Pair(kernel=1), _relu),
    "ReLU, Q; 1x1, no bias": (Pair(kernel=1, bias=False), _relu),
    "ReLU, Q; MatMul in place of Conv, with a bias": (Pair("MatMul"), _relu),
    "ReLU, Q; MatMul, no bias": (Pair("MatMul", bias=False), _relu),
    "ReLU, Q; MatMul, no bias, a scale per channel": (Pair("MatMul", bias=False, channel_scales=True), _relu),
}


def endings() -> Iterator[tuple[str, str, str]]:
    """The step, the type that the first layer writes, and the kernels between the layers."""
    for name, (pair, step) in STEPS.items():
        data = build_engine(pair.graph(step).SerializeToString(), BuildRequest("int8"), "rtx").data
        kernels = read_program(data).kernels
        first, second = (i for i, kernel in enumerate(kernels) if kernel.kind in {"convolution", "matmul"})
        between = "; ".join(kernel.name for kernel in kernels[first + 1 : second])
        yield name, kernels[first].writes[0].dtype, between
