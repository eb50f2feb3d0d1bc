"""Rewritings of a Q/DQ graph that keep its INT8 arithmetic: the same codes and sums, written in another way.

Each takes a model of :func:`edgeres.quantize.rewrite.rewrite` and returns a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from edgeres.graph.graph import Graph, Values

Pass = Callable[[onnx.ModelProto], onnx.ModelProto]


# ReLU, Add, bias, and the Q/DQ pair of the skip.


def relu_as(op: str) -> Pass:
    """ReLU as Max or Clip with lower limit 0; ``clip to the range`` also has the largest code as upper limit."""

    def apply(model: onnx.ModelProto) -> onnx.ModelProto:
        graph = Graph.copy_of(model)
        for node in graph.of("Relu"):
            zero = np.zeros((1, 1, 1, 1) if op == "Max" else (), np.float32)
            limits = [graph.add_constant(f"{node.name}.zero", zero)]
            quantize = next((n for n in graph.consumers(node.output[0]) if n.op_type == "QuantizeLinear"), None)
            if op == "clip to the range" and quantize is not None:
                top = np.float32(127) * graph.constant(quantize.input[1])
                limits.append(graph.add_constant(f"{node.name}.top", top))
            node.op_type = "Max" if op == "Max" else "Clip"
            graph.set_inputs(node, [*node.input, *limits])
        return graph.done()

    return apply


def swap_adds(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = Graph.copy_of(model)
    for node in graph.of("Add"):
        graph.set_inputs(node, node.input[::-1])
    return graph.done()


def add_biases(model: onnx.ModelProto) -> onnx.ModelProto:
    """A bias as an Add behind its Conv."""
    graph = Graph.copy_of(model)
    for node in graph.of("Conv"):
        bias = graph.add_constant(f"{node.name}.added", graph.constant(node.input[2]).reshape(1, -1, 1, 1))
        graph.set_inputs(node, node.input[:2])
        graph.put_behind(node, "Add", [bias], f"{node.name}_bias")
    return graph.done()


def own_pairs(model: onnx.ModelProto) -> onnx.ModelProto:
    """One Q/DQ pair per reader."""
    graph = Graph.copy_of(model)
    for dequantize in graph.of("DequantizeLinear"):
        quantize = graph.producer(dequantize.input[0])
        for index, reader in enumerate(graph.consumers(dequantize.output[0])[1:] if quantize is not None else ()):
            assert quantize is not None
            name = f"{dequantize.name}_own{index}"
            codes = graph.put_before(reader, "QuantizeLinear", quantize.input, f"{name}_Q")
            pair = graph.put_before(reader, "DequantizeLinear", [codes, *dequantize.input[1:]], f"{name}_DQ")
            graph.redirect(reader, dequantize.output[0], pair)
    return graph.done()


# The border of full-range codes. edgeres writes DQ -> Pad -> Q -> DQ -> Conv.


def _borders(graph: Graph) -> list[onnx.NodeProto]:
    """The Pads between a DequantizeLinear and a QuantizeLinear."""
    return [
        node
        for node in graph.of("Pad")
        if (before := graph.producer(node.input[0])) is not None and before.op_type == "DequantizeLinear"
    ]


def pad_before_codes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Pad -> Q -> DQ -> Conv; the skip reads a pair without Pad."""
    graph = Graph.copy_of(model)
    for pad in _borders(graph):
        codes = graph.writer(pad.input[0]).input[0]
        graph.redirect(pad, pad.input[0], graph.writer(codes).input[0])
    return graph.done()


def pad_after_codes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Q -> DQ -> Pad -> Conv."""
    graph = Graph.copy_of(model)
    for pad in _borders(graph):
        (quantize,) = graph.consumers(pad.output[0])
        (dequantize,) = graph.consumers(quantize.output[0])
        for reader in graph.consumers(dequantize.output[0]):
            graph.redirect(reader, dequantize.output[0], pad.output[0])
    return graph.done()


def pad_codes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Q -> Pad with -128 -> DQ -> Conv."""
    graph = Graph.copy_of(model)
    for pad in _borders(graph):
        (quantize,) = graph.consumers(pad.output[0])
        (dequantize,) = graph.consumers(quantize.output[0])
        code = graph.add_constant(f"{pad.name}.code", np.int8(-128))
        graph.set_inputs(pad, [graph.writer(pad.input[0]).input[0], pad.input[1], code])
        graph.set_inputs(dequantize, [pad.output[0], *dequantize.input[1:]])
    return graph.done()


def border_maps(model: onnx.ModelProto) -> onnx.ModelProto:
    """Conv padded with zeros, and behind it a constant map (1, channels, height, width) that corrects the border."""
    graph = Graph.copy_of(model)
    sizes = {pad.name: graph.shape(pad.input[0])[2:] for pad in _borders(graph)}
    for pad in _borders(graph):
        (quantize,) = graph.consumers(pad.output[0])
        (dequantize,) = graph.consumers(quantize.output[0])
        pads, fill = graph.constant(pad.input[1]), graph.constant(pad.input[2])
        for conv in graph.consumers(dequantize.output[0]):
            graph.redirect(conv, dequantize.output[0], pad.input[0])
            conv.attribute.append(helper.make_attribute("pads", [*map(int, pads[2:4]), *map(int, pads[6:8])]))
            missing = _border_of(graph, conv, sizes[pad.name], float(fill))
            graph.put_behind(conv, "Add", [graph.add_constant(f"{conv.name}.map", missing)], f"{conv.name}_map")
    return graph.done()


def _border_of(graph: Graph, conv: onnx.NodeProto, size: Sequence[int], fill: float) -> Values:
    """The error of padding with zeros instead of ``fill``: W fill on the taps outside the image."""
    codes, scale = (graph.constant(name) for name in graph.writer(conv.input[1]).input[:2])
    weight = (codes * scale.reshape(-1, 1, 1, 1)).astype(np.float32)
    inside = np.full((1, weight.shape[1], *size), fill, np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    node.attribute.extend(conv.attribute)
    border = helper.make_graph(
        [node],
        "border",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, inside.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    made = helper.make_model(border, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    everywhere = fill * weight.sum(axis=(1, 2, 3), dtype=np.float64).reshape(1, -1, 1, 1)
    missing: Values = (everywhere - session.run(None, {"x": inside})[0]).astype(np.float32)
    return missing
