"""Where a graph that has Q/DQ pairs still computes in float, and which pair is to blame.

A Conv, Gemm or MatMul runs in INT8 where its image and its weights are both dequantized codes. Between the
DequantizeLinear and the layer there may be what only moves codes (Transpose, Slice, MaxPool, Pad with zeros, Concat of
codes with one scale), a factor, which joins the scale, and a Cast to half precision; anything else computes in float,
and the layer behind it does too. RTX 1.7.1 agrees, case by case (tests/test_kernels.py).

In graphs for TensorRT a residual Add wants codes on its skip alone: quantized on both sides it cannot join the Conv
before it, and on neither it carries a float tensor through memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgeres.graph.graph import WEIGHTED, GraphView

# What computes with one activation; behind a DequantizeLinear it takes codes to float.
_ONE_INPUT = frozenset(
    {"Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Elu", "Tanh", "Add", "Sub", "Mul"}
    | {"Div", "Cast", "Pad", "AveragePool", "GlobalAveragePool", "ReduceMean", "Resize", "BatchNormalization"}
)


@dataclass(frozen=True)
class Loss:
    """INT8 that a Q/DQ pair was meant to bring and does not.

    Attributes:
        node: the layer or Add that suffers.
        edge: the tensor that is quantized in vain.
        reason: what is wrong and what to do.
    """

    node: str
    op: str
    edge: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Side:
    """Where an input of a layer comes from: the nearest DequantizeLinear before it, and what stands between."""

    tensor: str
    dequantize: onnx.NodeProto | None
    between: onnx.NodeProto | None

    @property
    def is_codes(self) -> bool:
        return self.dequantize is not None and self.between is None


def losses(model: onnx.ModelProto) -> tuple[Loss, ...]:
    """Everything in a quantized graph that stays in float against the purpose of a Q/DQ pair, in graph order.

    Layers without codes on either side were left out on purpose, and are no loss.
    """
    view = GraphView(model)
    for_tensorrt = not any(_is_asymmetric(view, node) for node in view.nodes)
    found: list[Loss] = []
    for node in view.nodes:
        if node.op_type in WEIGHTED:
            found.extend(_of_layer(view, node))
        elif for_tensorrt and view.is_residual_add(node):
            found.extend(_of_add(view, node))
    return tuple(found)


def _of_layer(view: GraphView, node: onnx.NodeProto) -> Iterator[Loss]:
    sides = {"input": _trace(view, node.input[0]), "weights": _trace(view, node.input[1])}
    if all(side.is_codes for side in sides.values()):
        return
    for word, side in sides.items():
        other = sides["weights" if word == "input" else "input"]
        if side.dequantize is not None and side.between is not None:
            what = f"{side.between.op_type} {side.between.name}".strip()
            reason = f"{what} stands between the DequantizeLinear and its {word}; put the pair behind it"
            yield Loss(node.name, node.op_type, _edge(view, side.dequantize), reason)
        elif side.dequantize is None and other.is_codes:
            assert other.dequantize is not None
            told = "its weights are codes and its input" if word == "input" else "its input is codes and its weights"
            reason = f"{told} float ({side.tensor}); quantize both or neither"
            yield Loss(node.name, node.op_type, _edge(view, other.dequantize), reason)


def _of_add(view: GraphView, node: onnx.NodeProto) -> Iterator[Loss]:
    sides = [_trace(view, name) for name in node.input]
    coded = [side.dequantize for side in sides if side.dequantize is not None and side.between is None]
    skip = view.skip_input(node)
    if len(coded) == len(sides):
        main = sides[1] if skip == node.input[0] else sides[0]
        assert main.dequantize is not None
        reason = "both inputs of the Add are codes, so it cannot join the Conv before it; quantize its skip input alone"
        yield Loss(node.name, node.op_type, _edge(view, main.dequantize), reason)


def _trace(view: GraphView, tensor: str) -> _Side:
    """Back to the nearest DequantizeLinear, through what moves codes; then through what computes with one tensor."""
    start, between = tensor, None
    while (node := view.producer(tensor)) is not None:
        if node.op_type == "DequantizeLinear":
            return _Side(start, node, between)
        if node.op_type == "Concat":
            first = _trace(view, node.input[0])
            if first.dequantize is None:
                break
            return _Side(start, first.dequantize, between or (None if _share_codes(view, node) else node))
        if not (view.keeps_codes(node) or _scales(view, node) or _halves(node)):
            if node.op_type not in _ONE_INPUT or view.joins_activations(node):
                break
            between = node
        computed = [name for name in node.input if name and not view.is_constant(name)]
        if not computed:
            break
        tensor = computed[0]
    return _Side(start, None, None)


def _share_codes(view: GraphView, concat: onnx.NodeProto) -> bool:
    """Whether all that is joined are codes with one scale."""
    sides = [_trace(view, name) for name in concat.input]
    scales = [
        view.constant(side.dequantize.input[1])
        for side in sides
        if side.dequantize is not None and side.between is None and view.is_constant(side.dequantize.input[1])
    ]
    return len(scales) == len(sides) and all(np.array_equal(scale, scales[0]) for scale in scales)


def _scales(view: GraphView, node: onnx.NodeProto) -> bool:
    """A factor for the whole tensor."""
    constant = [name for name in node.input if view.is_constant(name)]
    return node.op_type == "Mul" and len(constant) == 1 and view.constant(constant[0]).size == 1


def _halves(node: onnx.NodeProto) -> bool:
    """A Cast to half precision: the layer computes from the same codes, and gives half."""
    targets = [helper.get_attribute_value(a) for a in node.attribute if a.name == "to"]
    return node.op_type == "Cast" and targets in ([TensorProto.FLOAT16], [TensorProto.BFLOAT16])


def _edge(view: GraphView, dequantize: onnx.NodeProto) -> str:
    """The tensor that a pair quantizes: what goes into its QuantizeLinear, or the constant codes."""
    quantize = view.producer(dequantize.input[0])
    if quantize is None or quantize.op_type != "QuantizeLinear":
        return str(dequantize.input[0])
    return str(quantize.input[0])


def _is_asymmetric(view: GraphView, node: onnx.NodeProto) -> bool:
    """Codes as ONNX Runtime's integer kernels like them, which want an Add quantized all around."""
    if node.op_type != "QuantizeLinear":
        return False
    zero = node.input[2] if len(node.input) > 2 else ""
    if not zero or not view.is_constant(zero):
        return not zero
    return view.constant(zero).dtype == "uint8" or bool(view.constant(zero).any())
