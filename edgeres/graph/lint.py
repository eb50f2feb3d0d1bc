"""Find in a graph what TensorRT's parsers refuse or misread; this needs no GPU and no vendor package.

Each rule was tried on hand-made graphs against the parser and the builder of TensorRT-RTX 1.7.1 and read against the
open parser of TensorRT 10 (onnx/onnx-tensorrt); ``tests/test_lint.py`` repeats the first wherever RTX is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, defs

from edgeres.graph.graph import Graph, attributes, input_at, type_name

# refused: parser or builder stops. wrong: accepted, but computes something else. slow: accepted, but the layer runs in
# floating point. version: accepted by some of TensorRT 10.3 to 11.x and RTX, or undocumented.
Effect = Literal["refused", "wrong", "slow", "version"]

OPSETS = range(9, 21)  # documented by TensorRT 10.3, the oldest one; 10.13 goes to 24, 11.x to 25
_INTEGER_OPS = frozenset({"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"})
_MISSING_TYPES = frozenset({"INT16", "UINT16", "UINT32", "UINT64", "STRING", "COMPLEX64", "COMPLEX128"})
_ONNX_DOMAINS = ("", "ai.onnx")
# Operators of ONNX that the parser's own list lacks; those with integer arithmetic have a hint of their own.
_MISSING = """
    AffineGrid Bernoulli BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im Compress
    ConcatFromSequence CumProd DFT DeformConv Det ImageDecoder MaxRoiPool MaxUnpool MelWeightMatrix Multinomial
    NegativeLogLikelihoodLoss Optional OptionalGetElement OptionalHasElement RegexFullMatch SequenceAt
    SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength SequenceMap SoftmaxCrossEntropyLoss
    SplitToSequence StringConcat StringNormalizer StringSplit SwiGLU TfIdfVectorizer Unique
"""
_MISSING_OPS = frozenset(_MISSING.split())
_POOLS = frozenset({"MaxPool", "AveragePool", "LpPool"})
# The coordinate transformations of Resize that the parser has no code for.
_MISSING_RESIZES = frozenset({"tf_crop_and_resize", "half_pixel_symmetric"})
_MAX_RANK = 8
# What a rule finds in a node: tensor, rule, effect and hint of a :class:`Finding`.
_Found = Iterator[tuple[str, str, Effect, str]]


@dataclass(frozen=True)
class Finding:
    """One thing in a graph that TensorRT refuses, misreads or runs in floating point.

    Attributes:
        node: its name, or its operator if it has none; "" for a finding about the whole graph.
        tensor: the input or output concerned; "" for a finding about the whole node.
        rule: a word for programs, e.g. ``zero-point``.
        hint: what is wrong and what to do, for people.
    """

    node: str
    tensor: str
    rule: str
    effect: Effect
    hint: str

    def __str__(self) -> str:
        place = " ".join(part for part in (self.node, self.tensor and f"({self.tensor})") if part) or "graph"
        return f"{place}: {self.hint} [{self.effect}: {self.rule}]"


def lint(model: ModelProto) -> list[Finding]:
    """Everything that TensorRT would refuse, misread or run in floating point in a graph that is meant for it.

    Dynamic sizes are allowed. Types are those that the graph declares; nothing is inferred.
    """
    graph = Graph(model)
    found = list(_about_opsets(model)) + list(_about_types(graph))
    for node in graph.nodes:
        for rule in _PAIR_RULES if node.op_type in _PAIR else _RULES:
            found.extend(Finding(_name(node), *what) for what in rule(graph, node))
    return found


def _name(node: NodeProto) -> str:
    return node.name or node.op_type


def _is_weight(graph: Graph, tensor: str) -> bool:
    """Whether it is a constant, or the codes of one."""
    node = graph.producer(tensor)
    quantized = node is not None and node.op_type == "QuantizeLinear" and graph.is_constant(node.input[0])
    return quantized or graph.is_constant(tensor)


def _about_opsets(model: ModelProto) -> Iterator[Finding]:
    for opset in model.opset_import:
        if opset.domain in _ONNX_DOMAINS and opset.version not in OPSETS:
            hint = f"opset {opset.version}, and TensorRT 10.3 takes {OPSETS[0]} to {OPSETS[-1]}; export with opset 17"
            yield Finding("", "", "opset", "version", hint)


def _about_types(graph: Graph) -> Iterator[Finding]:
    """Data types of inputs, weights and casts."""
    declared = [("", value.name, value.type.tensor_type.elem_type) for value in graph.model.graph.input]
    declared += [("", tensor.name, tensor.data_type) for tensor in graph.model.graph.initializer]
    declared += [(_name(cast), cast.output[0], attributes(cast)["to"]) for cast in graph.of("Cast")]
    for node_name, tensor, data_type in declared:
        kind = type_name(data_type)
        if kind in _MISSING_TYPES or "unknown" in kind:
            yield Finding(node_name, tensor, "type", "refused", f"TensorRT has no {kind.lower()}; export in float32")
        elif kind == "DOUBLE":
            yield Finding(node_name, tensor, "type", "wrong", "float64 is narrowed to float32; export in float32")
        elif kind == "UINT8" and node_name and tensor not in graph.outputs:
            yield Finding(node_name, tensor, "type", "refused", "uint8 inside the graph; let only the input be uint8")
        elif kind == "INT64" and tensor in graph.inputs:
            yield Finding(node_name, tensor, "type", "version", "an int64 input; feed images as float32 or uint8")


def _operators(graph: Graph, node: NodeProto) -> _Found:
    if any((function.domain, function.name) == (node.domain, node.op_type) for function in graph.model.functions):
        return
    if node.op_type in _INTEGER_OPS:
        yield "", "operator", "refused", f"TensorRT has no {node.op_type}; write Q/DQ around the float operator"
    elif node.op_type in _MISSING_OPS and node.domain in _ONNX_DOMAINS:
        yield "", "operator", "refused", f"TensorRT has no {node.op_type}; write the layer with other operators"
    elif node.domain not in _ONNX_DOMAINS:
        # The parser knows operators by name only, so it accepts a contributed operator with the name of an ONNX one.
        known = defs.has(node.op_type)
        hint = f"{node.op_type} of {node.domain} is not ONNX; export without fused or contributed operators"
        yield "", "operator", "version" if known else "refused", hint


def _scales(graph: Graph, node: NodeProto) -> _Found:
    tensor = input_at(node, 1)
    if not graph.is_constant(tensor):
        yield tensor, "scale", "version", "the scale is computed; store it as a constant"
        return
    scale = graph.constant(tensor).astype(np.float64)
    if not np.all(scale > 0):
        yield tensor, "scale", "refused", "a scale is 0, negative or not a number; calibrate again"
    elif not np.all(np.isfinite(scale)):
        yield tensor, "scale", "wrong", "a scale is infinite; calibrate again"


def _zero_points(graph: Graph, node: NodeProto) -> _Found:
    tensor = input_at(node, 2)
    if tensor and not graph.is_constant(tensor):
        yield tensor, "zero-point", "version", "the zero_point is computed; store 0 as a constant"
    elif tensor and np.any(graph.constant(tensor).astype(np.float64) != 0):
        yield tensor, "zero-point", "refused", "zero_point is not 0; quantize symmetrically"


def _code_types(graph: Graph, node: NodeProto) -> _Found:
    """uint8 codes, which TensorRT reads as int8, and int32 codes (ONNX Runtime's quantized biases)."""
    tensor = input_at(node, 0) if node.op_type == "DequantizeLinear" else node.output[0]
    codes, zero_point = graph.stored(tensor), graph.stored(input_at(node, 2))
    if (typed := zero_point if codes is None else codes) is not None:
        kind = type_name(typed.data_type)
    elif node.op_type == "QuantizeLinear" and not input_at(node, 2):
        kind = type_name(attributes(node).get("output_dtype") or TensorProto.UINT8)  # ONNX's default
    else:
        return
    if kind == "UINT8" and codes is not None:
        yield tensor, "codes", "refused", "uint8 weights; quantize them to int8"
    elif kind == "UINT8":
        yield tensor, "codes", "wrong", "uint8 codes become int8 and clip above 127; write an int8 zero_point"
    elif kind == "INT32":
        yield tensor, "codes", "refused", "an int32 bias; keep the bias in float"


def _axes(graph: Graph, node: NodeProto) -> _Found:
    """One scale per tensor for activations, one per output channel for weights."""
    scale = graph.stored(input_at(node, 1))
    if scale is None:
        return
    if (attributes(node).get("block_size") or 0) > 0:
        yield input_at(node, 1), "block", "version", "a scale per block of int8 codes; use one per output channel"
    elif not _is_weight(graph, input_at(node, 0)):
        if len(scale.dims) > 0:  # a vector of one element as well: RTX takes it for one channel and gives INT8 up
            hint = "an activation has one scale: write it as a scalar, not as a vector"
            yield input_at(node, 1), "activation-axis", "slow", hint
    elif node.op_type == "DequantizeLinear" and scale.dims and scale.dims[0] > 1:
        yield from _weight_axis(graph, node, scale.dims[0])


def _weight_axis(graph: Graph, node: NodeProto, scales: int) -> _Found:
    codes = graph.stored(input_at(node, 0))
    rank = len(codes.dims) if codes is not None else None
    written = attributes(node).get("axis")
    axis = 1 if written is None else written
    if rank is not None and codes is not None:
        axis %= rank
        if codes.dims[axis] != scales:
            hint = f"{scales} scales for the {codes.dims[axis]} channels of axis {axis}"
            yield input_at(node, 1), "scale-count", "refused", hint
            return
    for reader in graph.consumers(node.output[0]):
        wanted = _output_channels(reader, rank) if input_at(reader, 1) == node.output[0] else None
        if wanted is not None and axis != wanted:
            hint = f"{reader.op_type} has its output channels on axis {wanted}, and the scales are on axis {axis}"
            yield input_at(node, 1), "weight-axis", "slow", hint
        elif wanted is not None and written is None:
            hint = f"TensorRT 10.3 takes a missing axis for 0, ONNX for 1; write axis={axis}"
            yield input_at(node, 1), "weight-axis", "version", hint


def _output_channels(reader: NodeProto, rank: int | None) -> int | None:
    """The axis of a node's weight that counts output channels; None if the node has no weight, or it is unknown."""
    if reader.op_type == "Gemm":
        return 0 if attributes(reader).get("transB") else 1
    if reader.op_type == "MatMul":
        return None if rank is None else rank - 1
    return {"Conv": 0, "ConvTranspose": 1}.get(reader.op_type)


def _pairs(graph: Graph, node: NodeProto) -> _Found:
    tensor = node.output[0]
    others = [_name(reader) for reader in graph.consumers(tensor) if reader.op_type != "DequantizeLinear"]
    others += ["the graph's output"] if tensor in graph.outputs else []
    if others and node.op_type == "QuantizeLinear":
        hint = f"int8 codes go to {', '.join(others)} without a DequantizeLinear; write Q and DQ as a pair"
        yield tensor, "pair", "version", hint


def _half_quantized(graph: Graph, node: NodeProto) -> _Found:
    """A Conv or Gemm multiplies in INT8 only when both its input and its weights are dequantized codes."""
    if node.op_type not in ("Conv", "Gemm", "MatMul") or len(node.input) < 2:
        return
    dequantized = [getattr(graph.producer(name), "op_type", "") == "DequantizeLinear" for name in node.input[:2]]
    if any(dequantized) and not all(dequantized):
        side = "weights" if dequantized[0] else "input"
        hint = f"its {side} stay in float, so it does not run in INT8; quantize both or neither"
        yield node.input[dequantized.index(False)], "half", "slow", hint


def _pools(graph: Graph, node: NodeProto) -> _Found:
    if node.op_type not in _POOLS:
        return
    given = attributes(node)
    if any(step != 1 for step in given.get("dilations", ())):
        yield "", "pool", "refused", f"a dilated {node.op_type}; pool without dilations"
    if len(node.output) > 1 and node.output[1]:
        yield node.output[1], "pool", "refused", "places of the largest values; export the pooled values alone"
    if node.op_type == "LpPool" and given.get("p", 2) not in {1, 2}:
        yield "", "pool", "refused", f"a pool with p={given['p']}; TensorRT has p=1 and p=2"


def _resizes(graph: Graph, node: NodeProto) -> _Found:
    if node.op_type != "Resize":
        return
    given = {name: value.decode() if isinstance(value, bytes) else value for name, value in attributes(node).items()}
    mode = given.get("coordinate_transformation_mode", "half_pixel")
    if mode in _MISSING_RESIZES:
        yield "", "resize", "refused", f"Resize by {mode}; TensorRT has half_pixel, align_corners and asymmetric"
    if given.get("antialias"):
        yield "", "resize", "refused", "Resize with antialias; resize without it, or pool before"
    if given.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        yield "", "resize", "refused", "Resize that keeps the aspect ratio; give the sizes"


def _ranks(graph: Graph, node: NodeProto) -> _Found:
    if node.op_type == "Reshape" and graph.is_constant(node.input[1]):
        rank = graph.constant(node.input[1]).size
        if rank > _MAX_RANK:
            yield node.output[0], "rank", "refused", f"a tensor of rank {rank}; TensorRT takes up to {_MAX_RANK}"


def _computed_weights(graph: Graph, node: NodeProto) -> _Found:
    if node.op_type not in {"Conv", "ConvTranspose"} or _is_weight(graph, node.input[1]):
        return
    producer = graph.producer(node.input[1])
    if producer is not None and producer.op_type == "Cast" and graph.is_constant(producer.input[0]):
        return  # folded by the builder
    if producer is not None and producer.op_type != "DequantizeLinear":
        yield node.input[1], "weights", "version", "weights computed at run time; some TensorRT versions refuse them"


_Rule = Callable[[Graph, NodeProto], _Found]
_PAIR = ("QuantizeLinear", "DequantizeLinear")
_PAIR_RULES: tuple[_Rule, ...] = (_operators, _scales, _zero_points, _code_types, _axes, _pairs)
_RULES: tuple[_Rule, ...] = (_operators, _half_quantized, _computed_weights, _pools, _resizes, _ranks)
