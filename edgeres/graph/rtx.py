"""The same INT8 network as TensorRT-RTX moves fewest bytes for it.

RTX 1.7 folds neither a quantize nor a scale per output channel into a convolution: with such scales a convolution
writes float32, in a float16 graph too, and kernels of their own read that and write codes. Two changes let it write
float16 (docs/formulations.md has the count of kernels and bytes, formulation by formulation):

    before   DQ(codes, a scale per channel) -> Conv(+ bias) ------------------------> ReLU -> Q      float32 between
    after    DQ(codes, one power of two)    -> Conv -> Mul(per channel) -> Add(bias) -> ReLU -> Q    float16 between

Codes, scales of activations and the sums of products are those of the graph that is given; float16 has 11 bits for what
is rounded to 8 behind it. Worked number: scales 0.003 and 0.007 have the mean 0.005, base 2**-8 = 0.0039, factors 0.768
and 1.792.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from edgeres.graph.edit import Editor, redirect

# They give what they are given, in any type.
_MOVES = frozenset({"Pad", "Transpose", "Identity"})


def rtx_form(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph for TensorRT-RTX; the model given is not changed.

    Args:
        model: of :func:`edgeres.quantize.rewrite.rewrite` for TensorRT: zero points 0, bias in float.
    """
    return half_between(channel_factor(model))


def channel_factor(model: onnx.ModelProto) -> onnx.ModelProto:
    """Conv(DQ(codes, one scale)) -> Mul(channels) -> Add(bias) in place of a scale per channel: the same products."""
    edit = Editor(model)
    for node in edit.of("Conv", "Gemm"):
        dequantize = edit.producer(node.input[1])
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        scale = edit.values(dequantize.input[1])
        base = np.exp2(np.floor(np.log2(scale.mean()))).astype(np.float32)
        shared = len(edit.readers(dequantize.output[0])) > 1
        if shared:  # by a layer that keeps its scales
            codes = [dequantize.input[0], *_constants(edit, node, base)]
            redirect(node, node.input[1], edit.before(node, "DequantizeLinear", codes, f"{node.name}_codes"))
        else:
            dequantize.input[1:] = _constants(edit, node, base)
            del dequantize.attribute[:]
        shape = (1, -1, 1, 1) if node.op_type == "Conv" else (-1,)
        factor = edit.constant(f"{node.name}.factor", (scale / base).reshape(shape))
        last = edit.behind(node, "Mul", [factor], f"{node.name}_factor")
        if len(node.input) > 2 and node.input[2]:
            bias = edit.constant(f"{node.name}.added", edit.values(node.input[2]).reshape(shape))
            edit.behind(last, "Add", [bias], f"{node.name}_bias")
        del node.input[2:]
    return edit.done()


def _constants(edit: Editor, node: onnx.NodeProto, base: np.float32) -> list[str]:
    return [
        edit.constant(f"{node.name}.base", np.asarray(base)),
        edit.constant(f"{node.name}.base_zero", np.asarray(np.int8(0))),
    ]


def half_between(model: onnx.ModelProto) -> onnx.ModelProto:
    """float16 between the codes: DQ -> Cast -> Conv, Add, ReLU in float16 -> Cast -> Q; scales stay in float32."""
    edit = Editor(model)
    _drop_casts(edit)
    single = {edit.model.graph.input[0].name}  # the image, up to where it is computed with
    for node in list(edit.nodes):
        if node.op_type == "QuantizeLinear":
            if node.input[0] not in single and not edit.is_constant(node.input[0]):
                node.input[0] = edit.before(node, "Cast", [node.input[0]], f"{node.name}_single", to=TensorProto.FLOAT)
        elif node.op_type == "DequantizeLinear":
            edit.behind(node, "Cast", [], f"{node.name}_half", to=TensorProto.FLOAT16)
        elif node.op_type in _MOVES and node.input[0] in single and _is_coded(edit, node.output[0]):
            single.update(node.output)
        elif node.op_type == "ConstantOfShape" and _gives_floats(node):
            edit.behind(node, "Cast", [], f"{node.name}_half", to=TensorProto.FLOAT16)
        else:
            _to_half(edit, node, single)
    output = edit.writer(edit.model.graph.output[0].name)
    edit.behind(output, "Cast", [], "output_single", to=TensorProto.FLOAT)
    return edit.done()


def _drop_casts(edit: Editor) -> None:
    """Skips that are kept in float16 already need no casts of their own where everything is."""
    for half in (cast for cast in edit.of("Cast") if _goal(cast) == TensorProto.FLOAT16):
        back = [reader for reader in edit.readers(half.output[0]) if reader.op_type == "Cast"]
        for cast in (*back, half):
            for reader in edit.readers(cast.output[0]):
                redirect(reader, cast.output[0], half.input[0])
            edit.nodes.remove(cast)


def _gives_floats(node: onnx.NodeProto) -> bool:
    return all(a.t.data_type == TensorProto.FLOAT for a in node.attribute if a.name == "value")


def _goal(cast: onnx.NodeProto) -> int:
    return next(int(attribute.i) for attribute in cast.attribute if attribute.name == "to")


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
