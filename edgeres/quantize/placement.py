"""Decide where Q/DQ pairs go: one policy per style, from the graph only, before any range is known.

TensorRT (``tensorrt``): the input of every Conv and Gemm, and the skip input of every residual Add. Nothing stands
between the main branch's Conv and the Add, so that Conv + Add + ReLU become one INT8 kernel; the quantize behind the
ReLU belongs to the next block's input. Nodes that only move values (Slice, Pad, MaxPool) pass the codes on.

ONNX Runtime's CPU kernels (``cpu``): codes everywhere from the image to the last Gemm, since QLinearConv and QLinearAdd
read and write codes. Which operators have such a kernel was measured: ``benchmarks/cpu_kernels.py`` prints the table.

Codes stand for activations only: float32 with the batch as the first axis. Sizes, and what is computed from them, are
left alone.

    >>> place(graph, "tensorrt").sites[0]                                                    # doctest: +SKIP
    Site(tensor='input', consumers=('/conv1/Conv',), reason='input of Conv', like=None)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import NodeProto

from edgeres.graph.graph import PASS_THROUGH, WEIGHTED, Graph, attributes
from edgeres.quantize.affine import code_constant, per_channel
from edgeres.records import Codes, Skipped, Style


@dataclass(frozen=True)
class Site:
    """A tensor to be quantized, and the nodes that will read the codes.

    With ``like``, it takes over scale and zero_point of that site's tensor, so that codes pass through unchanged.
    """

    tensor: str
    consumers: tuple[str, ...]
    reason: str
    like: str | None = None


@dataclass(frozen=True)
class Placement:
    """Where codes go.

    Attributes:
        weighted: the nodes whose weights are coded.
        operands: (node, constant) of each Add, Mul or Concat whose constants are coded: its kernel reads codes only.
        skipped: nodes that stay in float, with the reasons.
        full: tensors that use all 256 codes of int8, with zero_point -128.
    """

    style: Style
    sites: tuple[Site, ...]
    weighted: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    full: frozenset[str] = frozenset()
    operands: tuple[tuple[str, str], ...] = ()

    @property
    def observed(self) -> tuple[str, ...]:
        """The tensors whose ranges must be measured."""
        return tuple(site.tensor for site in self.sites if site.like is None)


@dataclass
class _PlacementBuilder:
    """Collects which nodes read which tensors as codes, and why."""

    # By tensor; the keys of the inner dicts stand for an ordered set.
    readers: defaultdict[str, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))
    reasons: defaultdict[str, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))
    like: dict[str, str] = field(default_factory=dict)
    weighted: list[str] = field(default_factory=list)
    operands: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def want(self, tensor: str, reader: str, reason: str) -> None:
        self.readers[tensor][reader] = None
        self.reasons[tensor][reason] = None

    def skip(self, node: NodeProto, reason: str) -> None:
        self.skipped.append(Skipped(f"{node.op_type} {node.name}", reason))

    def finish(self, style: Style) -> Placement:
        sites = (
            Site(tensor, tuple(readers), ", ".join(self.reasons[tensor]), self.like.get(tensor))
            for tensor, readers in self.readers.items()
        )
        operands = tuple(self.operands)
        return Placement(style, tuple(sites), tuple(self.weighted), tuple(self.skipped), operands=operands)


def place(graph: Graph, style: Style, codes: Codes = "free") -> Placement:
    """The placement for a canonical graph; ``codes`` is for tensors behind a ReLU in the ``tensorrt`` style alone."""
    if style == "cpu":
        return _place_cpu(graph).finish(style)
    placement = _place_tensorrt(graph).finish(style)
    return placement if codes == "half" else replace(placement, full=_full(graph, placement, codes))


def _full(graph: Graph, placement: Placement, codes: Codes) -> frozenset[str]:
    """The tensors that are never negative and whose readers :mod:`edgeres.quantize.zero_points` can change.

    With ``free`` codes, only those whose readers need no border for that.
    """
    readers: defaultdict[str, set[str]] = defaultdict(set)
    for site in placement.sites:
        readers[site.like or site.tensor].update(site.consumers)

    def fits(node: NodeProto) -> bool:
        return _takes_lowered(graph, node) and not (codes == "free" and _pads(graph, node))

    nonnegative = filter(graph.is_nonnegative, placement.observed)
    return frozenset(tensor for tensor in nonnegative if all(fits(graph.node(name)) for name in readers[tensor]))


def _takes_lowered(graph: Graph, node: NodeProto) -> bool:
    """Whether a reader can be changed to read ``x - t``: Conv with known padding, Gemm, Add, nodes that move values."""
    if attributes(node).get("auto_pad", b"NOTSET") not in {b"NOTSET", b"VALID"}:
        return False
    return node.op_type in {"Conv", "Gemm"} or graph.is_residual_add(node) or graph.keeps_codes(node)


def _pads(graph: Graph, node: NodeProto) -> bool:
    """Whether a node, or one that reads its output, adds a border of zeros to values that it moves or reads."""
    if node.op_type == "Pad" or (node.op_type == "Conv" and any(attributes(node).get("pads", ()))):
        return True
    passes = node.op_type in PASS_THROUGH
    return passes and any(_pads(graph, reader) for output in node.output for reader in graph.consumers(output))


def weight_axis(node: NodeProto) -> int:
    """The axis of the output channels in the weights of a Conv, Gemm or MatMul."""
    return 0 if node.op_type == "Conv" or attributes(node).get("transB") else 1


def why_not_weighted(graph: Graph, node: NodeProto) -> str | None:
    """The reason why a Conv, Gemm or MatMul cannot take codes, None where it can."""
    if graph.is_constant(node.input[0]):
        return "its weights are the left factor: no runtime has such an integer kernel"
    if not graph.is_constant(node.input[1]):
        return "its weights are not constant"
    if not graph.carries_activations(node.input[0]):
        return _NO_ACTIVATION
    given = attributes(node)
    if node.op_type == "Gemm" and (given.get("alpha", 1.0) != 1.0 or given.get("beta", 1.0) != 1.0):
        return "alpha or beta is not 1"
    if node.op_type == "Gemm" and given.get("transA"):
        return "its input is transposed"
    if graph.constant(node.input[1]).ndim != {"Conv": 4}.get(node.op_type, 2):
        return "its weights do not have the usual rank"
    return None


_NO_ACTIVATION = "it computes from sizes: its input has no batch axis, or is no float32"

# Why an operator of the TensorRT graph has no Q/DQ pair of its own.
_FLOAT_IN_TENSORRT = {
    "GlobalAveragePool": "computes in float: it has few values, and rounding would add an error before the classifier",
    "AveragePool": "computes in float: it has few values, and rounding would add an error after the mean",
    "ReduceMean": "computes in float: it has few values, and rounding would add an error before the classifier",
    "MaxPool": "needs no Q/DQ pair: max and rounding commute, so the quantize behind it moves ahead of it",
    "BatchNormalization": "no convolution before it takes it up; the quantize follows its activation",
    "Softmax": "probabilities need float",
}
_OTHER = "has no weights and no INT8 kernel: runs in float between quantized layers"
# Nodes without arithmetic of their own: not worth a line in the list of what stays in float.
_UNLISTED = (PASS_THROUGH - {"MaxPool"}) | {"Relu", "Clip"}


def _place_tensorrt(graph: Graph) -> _PlacementBuilder:
    builder = _PlacementBuilder()
    for node in graph.nodes:
        if node.op_type in WEIGHTED:
            reason = why_not_weighted(graph, node)
            if reason:
                builder.skip(node, reason)
            else:
                builder.weighted.append(node.name)
                builder.want(node.input[0], node.name, f"input of {node.op_type}")
        elif not _computes_activations(graph, node):
            _skip_mixed(graph, node, _FLOAT_IN_TENSORRT, builder)
        elif graph.is_residual_add(node):
            _place_skip_input(graph, node, builder)
        elif node.op_type not in _UNLISTED:
            builder.skip(node, _FLOAT_IN_TENSORRT.get(node.op_type, _OTHER))
    return builder


def _place_skip_input(graph: Graph, add: NodeProto, builder: _PlacementBuilder) -> None:
    skip = graph.skip_input(add)
    if skip is None:
        builder.skip(add, "its inputs have no common ancestor, so neither of them is a skip")
        return
    builder.want(skip, add.name, "skip input of Add")
    builder.skip(add, "its main branch stays float, so that Conv + Add + ReLU fuse into one INT8 kernel")
    # An option-A shortcut slices and pads the block's input: it reads the codes that the block's first Conv reads.
    tensor, reader = skip, add
    while (node := graph.producer(tensor)) is not None and graph.keeps_codes(node):
        tensor, reader = node.input[0], node
    if tensor != skip and _feeds_weighted(graph, tensor):
        builder.want(tensor, reader.name, "source of a shortcut")
        builder.like[skip] = tensor


def _feeds_weighted(graph: Graph, tensor: str) -> bool:
    return any(node.op_type in WEIGHTED and not why_not_weighted(graph, node) for node in graph.consumers(tensor))


def _computes_activations(graph: Graph, node: NodeProto) -> bool:
    """Whether every tensor that a node computes from or writes may carry codes; constants and sizes set aside."""
    read = [name for name in node.input if name and not graph.is_constant(name)]
    if node.op_type in _SIZED:
        read = read[:1]
    return all(graph.carries_activations(name) for name in (*read, *filter(None, node.output)))


def _skip_mixed(graph: Graph, node: NodeProto, why: Mapping[str, str], builder: _PlacementBuilder) -> None:
    """List a node that makes activations from something else as well; sizes alone are not worth a line."""
    if any(graph.carries_activations(name) for name in node.output) and node.op_type not in _UNLISTED:
        builder.skip(node, why.get(node.op_type, _NO_ACTIVATION))


# Operators whose further inputs may be sizes that are computed.
_SIZED = PASS_THROUGH | {"Resize", "Expand", "Tile", "Gather", "Split", "ConstantOfShape", "Range"}


def _place_cpu(graph: Graph) -> _PlacementBuilder:
    builder = _PlacementBuilder()
    for node in graph.nodes:
        if node.op_type in WEIGHTED:
            if reason := why_not_weighted(graph, node):
                builder.skip(node, reason)
            else:
                builder.weighted.append(node.name)
                _place_around(graph, node, builder)
        elif not _computes_activations(graph, node):
            _skip_mixed(graph, node, _FLOAT_ON_CPU, builder)
        elif graph.joins_activations(node) or node.op_type in _CPU_UNARY:
            _place_around(graph, node, builder)
        elif node.op_type in _CPU_WITH_CONSTANT and any(name in builder.readers for name in node.input):
            _place_with_constants(graph, node, builder)
        elif graph.moves_codes(node) and node.input[0] in builder.readers:
            # Same codes on both sides; a Pad fills with real zero, which is a code.
            for output in filter(None, node.output):
                builder.like[output] = builder.like.get(node.input[0], node.input[0])
                _want_everywhere(graph, output, f"output of {node.op_type}", builder)
        elif node.op_type not in _UNLISTED:
            builder.skip(node, _FLOAT_ON_CPU.get(node.op_type) or _why_float_on_cpu(graph, node))
    return builder


# Operators with one input that have an integer kernel.
_CPU_UNARY = frozenset({"GlobalAveragePool", "AveragePool", "LeakyRelu", "Sigmoid"})
# Operators with an integer kernel that reads all inputs as codes, constants too.
_CPU_WITH_CONSTANT = frozenset({"Add", "Mul", "Concat"})
_SCORES = "its output stays float: scores are not rounded"
_NO_KERNEL = "no integer kernel on ONNX Runtime's CPU provider"
_FLOAT_ON_CPU = {
    "MaxPool": "its input is float; max and rounding commute, so the quantize behind it moves ahead of it",
    "BatchNormalization": "no convolution before it takes it up; the quantize follows its activation",
    "Softmax": "probabilities need float",
    "Where": "the integer kernel is slower than the float operator",
}


def _why_float_on_cpu(graph: Graph, node: NodeProto) -> str:
    if _is_score(graph, node.output[0]):
        return _SCORES
    return "its input is float, and it only moves values" if graph.moves_codes(node) else _NO_KERNEL


# Least SQNR of a constant's codes: with less it would add to the noise of activations, whose codes have 35 to 40 dB.
_CONSTANT_DB = 45.0


def _place_with_constants(graph: Graph, node: NodeProto, builder: _PlacementBuilder) -> None:
    """Codes around an Add, Mul or Concat, and for its constants if eight bits hold them."""
    constants = [name for name in dict.fromkeys(node.input) if graph.is_constant(name)]
    if _is_score(graph, graph.activation_after(node)):
        builder.skip(node, _SCORES)
    elif any(_coding_db(graph, node, name) < _CONSTANT_DB for name in constants):
        builder.skip(node, "eight bits with one scale are too few for its constant")
    else:
        builder.operands.extend((node.name, name) for name in constants)
        _place_around(graph, node, builder)


def _coding_db(graph: Graph, node: NodeProto, constant: str) -> float:
    """SQNR of a constant in uint8 codes, in dB; 0 where it is no float32.

    Factors count by their relative errors, each the same: a small factor may belong to a large channel.
    """
    values = graph.constant(constant)
    if values.dtype != np.float32:
        return 0.0
    params, codes = code_constant(constant, values)
    real = (codes.astype(np.float64) - params.zero_point) * per_channel(params.scale, None, values.ndim)
    unit = np.where(values, np.abs(values), 1.0) if node.op_type == "Mul" else np.float64(1.0)
    noise, signal = (float(np.square(part / unit).sum()) for part in (values - real, values.astype(np.float64)))
    return 10 * float(np.log10(signal / noise)) if noise else np.inf


def _place_around(graph: Graph, node: NodeProto, builder: _PlacementBuilder) -> None:
    for name in node.input:
        if name and not graph.is_constant(name):
            _want_everywhere(graph, name, f"input of {node.op_type}", builder)
    after = graph.activation_after(node)
    # A Conv that writes float has no kernel that reads codes, and costs more than the rounding of its scores is worth.
    if after == graph.output or (node.op_type != "Conv" and _is_score(graph, after)):
        builder.skip(node, _SCORES)
    elif node.op_type not in {"Gemm", "MatMul"}:  # behind these, the next layer asks for codes or it does not
        _want_everywhere(graph, after, f"output of {node.op_type}", builder)


def _is_score(graph: Graph, tensor: str) -> bool:
    """Whether a tensor is the output but for its form, its size, or a Softmax."""
    while tensor != graph.output:
        readers = graph.consumers(tensor)
        if len(readers) != 1 or len(readers[0].output) != 1:
            return False
        (node,) = readers
        with_constant = node.op_type in {"Add", "Mul"} and not graph.joins_activations(node)
        if not (with_constant or node.op_type == "Softmax" or (graph.keeps_codes(node) and node.op_type != "MaxPool")):
            return False
        tensor = node.output[0]
    return True


def _want_everywhere(graph: Graph, tensor: str, reason: str, builder: _PlacementBuilder) -> None:
    for reader in graph.consumers(tensor):
        builder.want(tensor, reader.name, reason)
