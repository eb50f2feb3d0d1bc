"""The same INT8 network in the form for which TensorRT-RTX moves the fewest bytes.

RTX 1.7 fuses neither a quantize nor a scale per output channel into a convolution: with such scales a convolution
writes float32, in a float16 graph too, and kernels of their own read that and write codes. Two passes let it write
float16 (docs/formulations.md counts kernels and bytes, formulation by formulation):

    before   DQ(codes, a scale per channel) -> Conv(+ bias) ------------------------> ReLU -> Q      float32 between
    after    DQ(codes, one power of two)    -> Conv -> Mul(per channel) -> Add(bias) -> ReLU -> Q    float16 between

Codes, scales of activations and the sums of products stay those of the given graph; float16 has 11 bits for values that
are rounded to 8 afterwards. Worked number: scales 0.003 and 0.007 have the median 0.005, base 2**-8 = 0.0039, factors
0.768 and 1.792.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto

from edgeres.graph.graph import Graph, attributes
from edgeres.graph.half import half_between
from edgeres.records import F32


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
        base, factors = _split(graph, dequantize)
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
        factor = graph.add_constant(f"{node.name}.factor", factors.reshape(shape))
        last = graph.put_behind(node, "Mul", [factor], f"{node.name}_factor")
        if len(node.input) > 2 and node.input[2]:
            bias = graph.add_constant(f"{node.name}.added", graph.constant(node.input[2]).reshape(shape))
            graph.put_behind(last, "Add", [bias], f"{node.name}_bias")
        graph.set_inputs(node, node.input[:2])
    return graph.done()


def _split(graph: Graph, dequantize: NodeProto) -> tuple[np.float32, F32]:
    """A power of two for all channels of the dequantized weights, and the factor of each channel, (C,) or ().

    The base is the median: a convolution without the factor then writes as large values as one with it, whatever the
    scales of a few channels are, and neither these values nor the factors leave the range of float16. The scale of a
    channel of zeros is no measure of anything; its factor is 1.
    """
    codes, scale = (graph.constant(name) for name in dequantize.input[:2])
    axis = attributes(dequantize).get("axis", 1) if scale.ndim else 0
    others = tuple(other for other in range(codes.ndim) if other != axis or not scale.ndim)
    live = codes.any(axis=others)
    median = float(np.median(scale[live])) if live.any() else 1.0
    # Codes times base, up to 127 of them, are exact in float16 from 2**-24 to 2**8.
    base = np.float32(np.clip(np.exp2(np.floor(np.log2(median))), 2.0**-24, 2.0**8))
    return base, np.where(live, np.clip(scale / base, 0.0, np.finfo(np.float16).max), 1.0).astype(np.float32)
