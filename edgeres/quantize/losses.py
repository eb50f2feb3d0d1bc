"""Which layers of a graph with Q/DQ pairs still compute in float, and which pair is to blame.

A Conv, Gemm or MatMul runs in INT8 where both its input and its weights are dequantized codes. Between the
DequantizeLinear and the layer, three kinds of operators are harmless: those that only move codes (Transpose, Slice,
MaxPool, Pad with zeros, Concat of codes with one scale), a factor, which joins the scale, and a Cast to half precision.
Any other operator computes in float, and so does the layer behind it. RTX 1.7.1 agrees, case by case
(tests/test_kernels.py).

In graphs for TensorRT only the skip input of a residual Add should be codes: with codes on both inputs the Add cannot
be fused into the Conv before it, and with codes on neither it carries a float tensor through memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from edgeres.graph.graph import WEIGHTED, Graph, attributes, input_at

# Operators that compute from one activation: behind a DequantizeLinear their output is float.
_ONE_INPUT = frozenset(
    {"Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Elu", "Tanh", "Add", "Sub", "Mul"}
    | {"Div", "Cast", "Pad", "AveragePool", "GlobalAveragePool", "ReduceMean", "Resize", "BatchNormalization"}
)


@dataclass(frozen=True)
class Loss:
    """A layer or Add that stays in float although a Q/DQ pair stands before it.

    ``edge`` is the tensor whose quantization has no effect; ``reason`` says what is wrong and what to do.
    """

    node: str
    op: str
    edge: str
    reason: str


@dataclass(frozen=True)
class _InputSource:
    """An input of a layer, the nearest DequantizeLinear before it and a node between them that computes in float."""

    tensor: str
    dequantize: NodeProto | None
    between: NodeProto | None

    @property
    def is_codes(self) -> bool:
        return self.dequantize is not None and self.between is None


def losses(model: ModelProto) -> tuple[Loss, ...]:
    """The layers that stay in float although a Q/DQ pair stands before them, in graph order.

    Layers without codes on any input were left in float on purpose and are not listed.
    """
    graph = Graph(model)
    for_tensorrt = not any(_has_zero_point(graph, node) for node in graph.of("QuantizeLinear"))
    found: list[Loss] = []
    for node in graph.nodes:
        if node.op_type in WEIGHTED:
            found.extend(_of_layer(graph, node))
        elif for_tensorrt and graph.is_residual_add(node):
            found.extend(_of_add(graph, node))
    return tuple(found)


def _of_layer(graph: Graph, node: NodeProto) -> Iterator[Loss]:
    origins = {"input": _trace(graph, node.input[0]), "weights": _trace(graph, node.input[1])}
    if all(origin.is_codes for origin in origins.values()):
        return
    for word, origin in origins.items():
        other = origins["weights" if word == "input" else "input"]
        if origin.dequantize is not None and origin.between is not None:
            what = f"{origin.between.op_type} {origin.between.name}".strip()
            reason = f"{what} stands between the DequantizeLinear and its {word}; put the pair behind it"
            yield Loss(node.name, node.op_type, _edge(graph, origin.dequantize), reason)
        elif origin.dequantize is None and other.is_codes:
            assert other.dequantize is not None
            told = "its weights are codes, its input is" if word == "input" else "its input is codes, its weights are"
            reason = f"{told} float ({origin.tensor}); quantize both or neither"
            yield Loss(node.name, node.op_type, _edge(graph, other.dequantize), reason)


def _of_add(graph: Graph, node: NodeProto) -> Iterator[Loss]:
    origins = [_trace(graph, name) for name in node.input]
    if all(origin.is_codes for origin in origins):
        main = origins[1] if graph.skip_input(node) == node.input[0] else origins[0]
        assert main.dequantize is not None
        reason = "both inputs of the Add are codes, so it cannot join the Conv before it; quantize its skip input alone"
        yield Loss(node.name, node.op_type, _edge(graph, main.dequantize), reason)


def _trace(graph: Graph, tensor: str) -> _InputSource:
    """Go back to the nearest DequantizeLinear, through nodes that move codes and nodes that compute from one tensor."""
    start, between = tensor, None
    while (node := graph.producer(tensor)) is not None:
        if node.op_type == "DequantizeLinear":
            return _InputSource(start, node, between)
        if node.op_type == "Concat":
            first = _trace(graph, node.input[0])
            if first.dequantize is None:
                break
            return _InputSource(start, first.dequantize, between or (None if _share_codes(graph, node) else node))
        if not (graph.keeps_codes(node) or _scales(graph, node) or _halves(node)):
            if node.op_type not in _ONE_INPUT or graph.joins_activations(node):
                break
            between = node
        tensor = next((name for name in node.input if name and not graph.is_constant(name)), "")
    return _InputSource(start, None, None)


def _share_codes(graph: Graph, concat: NodeProto) -> bool:
    """Whether all inputs of a Concat are codes with the same scale."""
    origins = [_trace(graph, name) for name in concat.input]
    coded = [origin.dequantize for origin in origins if origin.dequantize is not None and origin.between is None]
    scales = [graph.constant(pair.input[1]) for pair in coded if graph.is_constant(pair.input[1])]
    return len(scales) == len(origins) and all(np.array_equal(scale, scales[0]) for scale in scales)


def _scales(graph: Graph, node: NodeProto) -> bool:
    """Whether a node multiplies the whole tensor by one constant."""
    constant = [name for name in node.input if graph.is_constant(name)]
    return node.op_type == "Mul" and len(constant) == 1 and graph.constant(constant[0]).size == 1


def _halves(node: NodeProto) -> bool:
    """Whether a node is a Cast to half precision: the layer behind it computes from the same codes, and writes half."""
    return node.op_type == "Cast" and attributes(node).get("to") in {TensorProto.FLOAT16, TensorProto.BFLOAT16}


def _edge(graph: Graph, dequantize: NodeProto) -> str:
    """The tensor that a pair quantizes: the input of its QuantizeLinear, or the constant codes."""
    quantize = graph.producer(dequantize.input[0])
    behind = dequantize if quantize is None or quantize.op_type != "QuantizeLinear" else quantize
    return str(behind.input[0])


def _has_zero_point(graph: Graph, node: NodeProto) -> bool:
    """Whether a quantizer has uint8 codes or a zero point: such graphs are for ONNX Runtime, whose Add takes codes."""
    zero = input_at(node, 2)
    if not zero or not graph.is_constant(zero):
        return not zero
    return graph.constant(zero).dtype == "uint8" or bool(graph.constant(zero).any())
