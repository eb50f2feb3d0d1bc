"""Rewritings of a Q/DQ graph that keep its INT8 arithmetic: the same codes and sums, said to a compiler in another way.

Each takes a model that :func:`edgeres.quantize.rewrite.rewrite` made, and gives a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from edgeres.graph.edit import Editor, Values, redirect

Pass = Callable[[onnx.ModelProto], onnx.ModelProto]


# How ReLU, Add, bias and the skip's pair are written.


def relu_as(op: str) -> Pass:
    """ReLU as Max or Clip from zero on; as ``clip to the range``, up to the largest code as well."""

    def apply(model: onnx.ModelProto) -> onnx.ModelProto:
        edit = Editor(model)
        for node in edit.of("Relu"):
            limits = [edit.constant(f"{node.name}.zero", np.zeros((1, 1, 1, 1) if op == "Max" else (), np.float32))]
            quantize = next((n for n in edit.readers(node.output[0]) if n.op_type == "QuantizeLinear"), None)
            if op == "clip to the range" and quantize is not None:
                top = np.float32(127) * edit.values(quantize.input[1])
                limits.append(edit.constant(f"{node.name}.top", top))
            node.op_type = "Max" if op == "Max" else "Clip"
            node.input.extend(limits)
        return edit.done()

    return apply


def swap_adds(model: onnx.ModelProto) -> onnx.ModelProto:
    edit = Editor(model)
    for node in edit.of("Add"):
        left, right = node.input
        node.input[:] = [right, left]
    return edit.done()


def add_biases(model: onnx.ModelProto) -> onnx.ModelProto:
    """A bias as an Add behind its Conv."""
    edit = Editor(model)
    for node in edit.of("Conv"):
        bias = edit.constant(f"{node.name}.added", edit.values(node.input[2]).reshape(1, -1, 1, 1))
        del node.input[2:]
        edit.behind(node, "Add", [bias], f"{node.name}_bias")
    return edit.done()


def own_pairs(model: onnx.ModelProto) -> onnx.ModelProto:
    """A Q/DQ pair of its own for every reader."""
    edit = Editor(model)
    for dequantize in edit.of("DequantizeLinear"):
        quantize = edit.producer(dequantize.input[0])
        for index, reader in enumerate(edit.readers(dequantize.output[0])[1:] if quantize is not None else ()):
            assert quantize is not None
            name = f"{dequantize.name}_own{index}"
            codes = edit.before(reader, "QuantizeLinear", quantize.input, f"{name}_Q")
            pair = edit.before(reader, "DequantizeLinear", [codes, *dequantize.input[1:]], f"{name}_DQ")
            redirect(reader, dequantize.output[0], pair)
    return edit.done()


# The border of full-range codes. edgeres writes DQ -> Pad -> Q -> DQ -> Conv.


def _borders(edit: Editor) -> list[onnx.NodeProto]:
    """The Pads between a DequantizeLinear and a QuantizeLinear."""
    return [
        node
        for node in edit.of("Pad")
        if (before := edit.producer(node.input[0])) is not None and before.op_type == "DequantizeLinear"
    ]


def pad_before_codes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Pad -> Q -> DQ -> Conv; the skip reads a pair without Pad."""
    edit = Editor(model)
    for pad in _borders(edit):
        pad.input[0] = edit.writer(edit.writer(pad.input[0]).input[0]).input[0]
    return edit.done()


def pad_after_codes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Q -> DQ -> Pad -> Conv."""
    edit = Editor(model)
    for pad in _borders(edit):
        (quantize,) = edit.readers(pad.output[0])
        (dequantize,) = edit.readers(quantize.output[0])
        for reader in edit.readers(dequantize.output[0]):
            redirect(reader, dequantize.output[0], pad.output[0])
    return edit.done()


def pad_codes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Q -> Pad with -128 -> DQ -> Conv."""
    edit = Editor(model)
    for pad in _borders(edit):
        (quantize,) = edit.readers(pad.output[0])
        (dequantize,) = edit.readers(quantize.output[0])
        pad.input[0] = edit.writer(pad.input[0]).input[0]
        pad.input[2] = edit.constant(f"{pad.name}.code", np.int8(-128))
        dequantize.input[0] = pad.output[0]
    return edit.done()


def border_maps(model: onnx.ModelProto) -> onnx.ModelProto:
    """Conv padded with zeros, and a constant map (1, channels, height, width) behind it that repairs the border."""
    edit = Editor(model)
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim[2:]]
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    for pad in _borders(edit):
        (quantize,) = edit.readers(pad.output[0])
        (dequantize,) = edit.readers(quantize.output[0])
        pads, fill = edit.values(pad.input[1]), edit.values(pad.input[2])
        for conv in edit.readers(dequantize.output[0]):
            redirect(conv, dequantize.output[0], pad.input[0])
            conv.attribute.append(helper.make_attribute("pads", [*map(int, pads[2:4]), *map(int, pads[6:8])]))
            missing = _border_of(edit, conv, shapes[pad.input[0]], float(fill))
            edit.behind(conv, "Add", [edit.constant(f"{conv.name}.map", missing)], f"{conv.name}_map")
    return edit.done()


def _border_of(edit: Editor, conv: onnx.NodeProto, size: Sequence[int], fill: float) -> Values:
    """What padding with zeros in place of ``fill`` leaves out: W fill on the taps outside the image."""
    codes, scale = (edit.values(name) for name in edit.writer(conv.input[1]).input[:2])
    weight = (codes * scale.reshape(-1, 1, 1, 1)).astype(np.float32)
    inside = np.full((1, weight.shape[1], *size), fill, np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    node.attribute.extend(conv.attribute)
    graph = helper.make_graph(
        [node],
        "border",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, inside.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    everywhere = fill * weight.sum(axis=(1, 2, 3), dtype=np.float64).reshape(1, -1, 1, 1)
    missing: Values = (everywhere - session.run(None, {"x": inside})[0]).astype(np.float32)
    return missing
