"""Codes whose scales are float16: a strongly typed TensorRT then computes in float16 between them, with no Cast there.

ONNX has float16 scales from opset 19 on.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, version_converter

from edgeres.graph.graph import Graph, attributes, opset_of
from edgeres.graph.half import half_between

OPSET = 19


def half_with_scales(model: ModelProto) -> ModelProto:
    """Compute in float16 between the codes, with scales in float16.

    Before:
        DQ(float32 scale) -> Conv, Add, ReLU -> Q(float32 scale)                     float32
    After:
        DQ(float16 scale) -> Conv, Add, ReLU -> Q(float16 scale)                     float16, opset 19

    The model given is not changed. Its scales must be normal numbers of float16. The image, which is float32, keeps a
    float32 scale.
    """
    half = half_between(model)
    if opset_of(half) < OPSET:
        metadata = list(half.metadata_props)
        half = version_converter.convert_version(half, OPSET)
        del half.metadata_props[:]
        half.metadata_props.extend(metadata)
    del half.graph.value_info[:]  # types change below
    graph = Graph(half)
    for dequantize in graph.of("DequantizeLinear"):
        casts = graph.consumers(dequantize.output[0])
        if casts and all(_casts_to(cast, TensorProto.FLOAT16) for cast in casts):
            for cast in casts:
                for reader in graph.consumers(cast.output[0]):
                    graph.redirect(reader, cast.output[0], dequantize.output[0])
                graph.remove(cast)
            _scale_in_half(graph, dequantize, dequantize.input[0])
    for quantize in graph.of("QuantizeLinear"):
        before = graph.producer(quantize.input[0])
        if before is not None and _casts_to(before, TensorProto.FLOAT) and before.input[0] not in graph.inputs:
            _scale_in_half(graph, quantize, before.input[0])
    graph.prune()
    result = graph.done()
    onnx.checker.check_model(result)
    return result


def _casts_to(node: NodeProto, kind: int) -> bool:
    return node.op_type == "Cast" and attributes(node)["to"] == kind


def _scale_in_half(graph: Graph, node: NodeProto, source: str) -> None:
    name = f"{node.input[1]}.half"
    if not graph.is_constant(name):
        graph.add_constant(name, graph.constant(node.input[1]).astype(np.float16))
    graph.set_inputs(node, [source, name, *node.input[2:]])
