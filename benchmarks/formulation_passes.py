"""Rewritings of a Q/DQ graph that keep its INT8 arithmetic: the same codes and sums, said to a compiler in another way.

Each takes a model that :func:`edgeres.quantize.rewrite.rewrite` made, and gives a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from edgeres.graph.view import prune

Pass = Callable[[onnx.ModelProto], onnx.ModelProto]
Values = npt.NDArray[Any]
_MOVES = frozenset({"Pad", "Transpose", "Identity"})


class Editor:
    """A model in the making: nodes in order, and constants by name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.nodes = list(self.model.graph.node)
        self._constants = {tensor.name: tensor for tensor in self.model.graph.initializer}

    def done(self) -> onnx.ModelProto:
        graph = self.model.graph
        del graph.node[:]
        graph.node.extend(self.nodes)
        prune(graph, [output.name for output in graph.output])
        onnx.checker.check_model(self.model)
        return self.model

    def of(self, *ops: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type in ops]

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        return next((node for node in self.nodes if tensor in node.output), None)

    def writer(self, tensor: str) -> onnx.NodeProto:
        node = self.producer(tensor)
        assert node is not None, tensor
        return node

    def readers(self, tensor: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if tensor in node.input]

    def is_constant(self, tensor: str) -> bool:
        return tensor in self._constants

    def values(self, constant: str) -> Values:
        return numpy_helper.to_array(self._constants[constant])

    def constant(self, name: str, values: Values) -> str:
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        self._constants[name] = self.model.graph.initializer[-1]
        return name

    def before(self, node: onnx.NodeProto, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Put a new node in front of one; returns its output."""
        made = helper.make_node(op, list(inputs), [f"{name}_out"], name, **attributes)
        self.nodes.insert(self.nodes.index(node), made)
        return f"{name}_out"

    def behind(
        self, node: onnx.NodeProto, op: str, others: Sequence[str], name: str, **attributes: Any
    ) -> onnx.NodeProto:
        """Put a new node between one and all its readers; returns it."""
        output = node.output[0]
        node.output[0] = f"{name}_in"
        made = helper.make_node(op, [node.output[0], *others], [output], name, **attributes)
        self.nodes.insert(self.nodes.index(node) + 1, made)
        return made


def redirect(node: onnx.NodeProto, old: str, new: str) -> None:
    for index, name in enumerate(node.input):
        if name == old:
            node.input[index] = new


# Where the scale of each output channel is applied, and in which precision.


def channel_factor(model: onnx.ModelProto) -> onnx.ModelProto:
    """Conv(DQ(codes, one scale)) -> Mul(channels) -> Add(bias) in place of a scale per channel: the same products."""
    edit = Editor(model)
    for node in edit.of("Conv", "Gemm"):
        dequantize = edit.producer(node.input[1])
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        scale = edit.values(dequantize.input[1])
        base = np.exp2(np.floor(np.log2(scale.mean()))).astype(np.float32)
        dequantize.input[1] = edit.constant(f"{node.name}.base", base)
        dequantize.input[2] = edit.constant(f"{node.name}.base_zero", np.int8(0))
        del dequantize.attribute[:]
        shape = (1, -1, 1, 1) if node.op_type == "Conv" else (-1,)
        factor = edit.constant(f"{node.name}.factor", (scale / base).reshape(shape))
        bias = edit.constant(f"{node.name}.added", edit.values(node.input[2]).reshape(shape))
        del node.input[2:]
        edit.behind(edit.behind(node, "Mul", [factor], f"{node.name}_factor"), "Add", [bias], f"{node.name}_bias")
    return edit.done()


def half_between(model: onnx.ModelProto) -> onnx.ModelProto:
    """float16 between the codes: DQ -> Cast -> Conv, Add, ReLU in float16 -> Cast -> Q; scales stay in float32."""
    edit = Editor(model)
    single = {edit.model.graph.input[0].name}  # the image, up to where it is computed with
    for node in list(edit.nodes):
        if node.op_type == "QuantizeLinear":
            if node.input[0] not in single and not edit.is_constant(node.input[0]):
                node.input[0] = edit.before(node, "Cast", [node.input[0]], f"{node.name}_single", to=TensorProto.FLOAT)
        elif node.op_type == "DequantizeLinear":
            edit.behind(node, "Cast", [], f"{node.name}_half", to=TensorProto.FLOAT16)
        elif node.op_type in _MOVES and node.input[0] in single and _is_coded(edit, node.output[0]):
            single.update(node.output)
        else:
            _to_half(edit, node, single)
    output = edit.writer(edit.model.graph.output[0].name)
    edit.behind(output, "Cast", [], "output_single", to=TensorProto.FLOAT)
    return edit.done()


def _is_coded(edit: Editor, tensor: str) -> bool:
    return all(reader.op_type == "QuantizeLinear" for reader in edit.readers(tensor))


def _to_half(edit: Editor, node: onnx.NodeProto, single: set[str]) -> None:
    for index, name in enumerate(node.input):
        if name in single:
            node.input[index] = edit.before(node, "Cast", [name], f"{node.name}_half{index}", to=TensorProto.FLOAT16)
        elif name and edit.is_constant(name) and edit.values(name).dtype == np.float32:
            half = f"{name}.half"
            if not edit.is_constant(half):
                edit.constant(half, edit.values(name).astype(np.float16))
            node.input[index] = half


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
