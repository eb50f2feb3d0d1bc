"""The same INT8 network in the form for which TensorRT-RTX moves the fewest bytes.

RTX 1.7 fuses neither a quantize nor a scale per output channel into a convolution: with such scales a convolution
writes float32, in a float16 graph too, and kernels of their own read that and write codes. Two passes let it write
float16 (docs/formulations.md counts kernels and bytes, formulation by formulation):

    before   DQ(codes, a scale per channel) -> Conv(+ bias) ------------------------> ReLU -> Q      float32 between
    after    DQ(codes, one power of two)    -> Conv -> Mul(per channel) -> Add(bias) -> ReLU -> Q    float16 between

Codes, scales of activations and the sums of products stay those of the given graph; float16 has 11 bits for values that
are rounded to 8 afterwards. Worked number: scales 0.003 and 0.007 have the mean 0.005, base 2**-8 = 0.0039, factors
0.768 and 1.792.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from edgeres.graph.graph import Graph, attributes

# Operators whose output has the type of their input.
_TYPE_PRESERVING = frozenset({"Pad", "Transpose", "Identity"})


def rtx_form(model: ModelProto) -> ModelProto:
    """The graph for TensorRT-RTX from that of :func:`edgeres.quantize.rewrite.rewrite` for TensorRT.

    The model given is not changed.
    """
    return half_between(channel_factor(model))


def channel_factor(model: ModelProto) -> ModelProto:
    """Give a layer's weights one scale, and multiply each channel by the rest of its scale: the same products.

    Before:
        DQ(codes, scale per channel) -> Conv(+ bias)
    After:
        DQ(codes, one scale) -> Conv -> Mul(factor per channel) -> Add(bias)
    """
    graph = Graph.copy_of(model)
    for node in graph.of("Conv", "Gemm"):
        dequantize = graph.producer(node.input[1])
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        scale = graph.constant(dequantize.input[1])
        base = np.exp2(np.floor(np.log2(scale.mean()))).astype(np.float32)
        one_scale = [
            dequantize.input[0],
            graph.add_constant(f"{node.name}.base", base),
            graph.add_constant(f"{node.name}.base_zero", np.int8(0)),
        ]
        if len(graph.consumers(dequantize.output[0])) > 1:  # another layer keeps the scales per channel
            own = graph.put_before(node, "DequantizeLinear", one_scale, f"{node.name}_codes")
            graph.redirect(node, node.input[1], own)
        else:
            graph.set_inputs(dequantize, one_scale)
            del dequantize.attribute[:]
        shape = (1, -1, 1, 1) if node.op_type == "Conv" else (-1,)
        factor = graph.add_constant(f"{node.name}.factor", (scale / base).reshape(shape))
        last = graph.put_behind(node, "Mul", [factor], f"{node.name}_factor")
        if len(node.input) > 2 and node.input[2]:
            bias = graph.add_constant(f"{node.name}.added", graph.constant(node.input[2]).reshape(shape))
            graph.put_behind(last, "Add", [bias], f"{node.name}_bias")
        graph.set_inputs(node, node.input[:2])
    return graph.done()


def half_between(model: ModelProto) -> ModelProto:
    """Compute in float16 between the codes; scales stay in float32.

    Before:
        DQ -> Conv, Add, ReLU -> Q                      float32
    After:
        DQ -> Cast -> Conv, Add, ReLU -> Cast -> Q      float16 between the Casts
    """
    graph = Graph.copy_of(model)
    _drop_casts(graph)
    single = {graph.input}  # tensors that stay in float32: the image, up to where something is computed from it
    for node in list(graph.nodes):
        if node.op_type == "QuantizeLinear":
            source = node.input[0]
            if source not in single and not graph.is_constant(source):
                cast = graph.put_before(node, "Cast", [source], f"{node.name}_single", to=TensorProto.FLOAT)
                graph.set_inputs(node, [cast, *node.input[1:]])
        elif node.op_type == "DequantizeLinear":
            graph.put_behind(node, "Cast", [], f"{node.name}_half", to=TensorProto.FLOAT16)
        elif node.op_type in _TYPE_PRESERVING and node.input[0] in single and _is_only_quantized(graph, node.output[0]):
            single.update(node.output)
        elif node.op_type == "ConstantOfShape" and _gives_floats(node):
            graph.put_behind(node, "Cast", [], f"{node.name}_half", to=TensorProto.FLOAT16)
        else:
            _to_half(graph, node, single)
    graph.put_behind(graph.writer(graph.output), "Cast", [], "output_single", to=TensorProto.FLOAT)
    return graph.done()


def _drop_casts(graph: Graph) -> None:
    """Remove the Casts around skips that are kept in float16: everything else is float16 too."""
    for half in graph.of("Cast"):
        if attributes(half)["to"] != TensorProto.FLOAT16:
            continue
        back = [reader for reader in graph.consumers(half.output[0]) if reader.op_type == "Cast"]
        for cast in (*back, half):
            for reader in graph.consumers(cast.output[0]):
                graph.redirect(reader, cast.output[0], half.input[0])
            graph.remove(cast)


def _gives_floats(node: NodeProto) -> bool:
    value = attributes(node).get("value")
    return value is None or bool(value.data_type == TensorProto.FLOAT)


def _is_only_quantized(graph: Graph, tensor: str) -> bool:
    return all(reader.op_type == "QuantizeLinear" for reader in graph.consumers(tensor))


def _to_half(graph: Graph, node: NodeProto, single: set[str]) -> None:
    """Let a node compute in float16: casts in front of its float32 tensors, copies of its float32 constants."""
    inputs = list(node.input)
    for index, name in enumerate(node.input):
        if name in single:
            inputs[index] = graph.put_before(node, "Cast", [name], f"{node.name}_half{index}", to=TensorProto.FLOAT16)
        elif graph.is_constant(name) and graph.constant(name).dtype == np.float32:
            inputs[index] = f"{name}.half"
            if not graph.is_constant(inputs[index]):
                graph.add_constant(inputs[index], graph.constant(name).astype(np.float16))
    graph.set_inputs(node, inputs)
