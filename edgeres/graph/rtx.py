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
from onnx import ModelProto

from edgeres.graph.graph import Graph
from edgeres.graph.half import half_between


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
