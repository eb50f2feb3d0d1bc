"""Where Q/DQ pairs go: one policy per style, from the graph alone, before any range is known.

TensorRT (``tensorrt``): the input of every Conv and Gemm, and the skip input of every residual Add. Nothing stands
between the main branch's Conv and the Add, so that Conv + Add + ReLU become one INT8 kernel; a quantize behind the
ReLU is the next block's input. What only moves values (Slice, Pad, MaxPool) keeps the codes it is given.

ONNX Runtime's CPU kernels (``cpu``): codes everywhere from the image to the last Gemm, since QLinearConv and QLinearAdd
take and give codes.

    >>> place(view, "tensorrt").sites[0]                                                    # doctest: +SKIP
    Site(tensor='input', consumers=('/conv1/Conv',), reason='input of Conv', like=None)
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import onnx
from onnx import helper

from edgeres.graph.graph import WEIGHTED, GraphView
from edgeres.records import Codes, Skipped, Style


@dataclass(frozen=True)
class Site:
    """A tensor to be quantized.

    Attributes:
        consumers: names of the nodes that will read the codes.
        like: another site's tensor whose scale and zero_point this one takes over, so that codes pass through
            unchanged.
    """

    tensor: str
    consumers: tuple[str, ...]
    reason: str
    like: str | None = None


@dataclass(frozen=True)
class Placement:
    """Where codes go.

    Attributes:
        sites: in graph order.
        weighted: the nodes whose weights are coded.
        skipped: what stays in float, with the reason.
        full: tensors that use all 256 codes of int8, with zero_point -128.
    """

    style: Style
    sites: tuple[Site, ...]
    weighted: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    full: frozenset[str] = frozenset()

    @property
    def observed(self) -> tuple[str, ...]:
        """The tensors whose ranges must be measured."""
        return tuple(site.tensor for site in self.sites if site.like is None)


@dataclass
class _Draft:
    """A placement in the making: who reads what, and why."""

    readers: dict[str, list[str]] = field(default_factory=dict)
    reasons: dict[str, list[str]] = field(default_factory=dict)
    like: dict[str, str] = field(default_factory=dict)
    weighted: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def want(self, tensor: str, reader: str, reason: str) -> None:
        readers, reasons = self.readers.setdefault(tensor, []), self.reasons.setdefault(tensor, [])
        if reader not in readers:
            readers.append(reader)
        if reason not in reasons:
            reasons.append(reason)

    def skip(self, node: onnx.NodeProto, reason: str) -> None:
        self.skipped.append(Skipped(f"{node.op_type} {node.name}", reason))

    def finish(self, style: Style) -> Placement:
        sites = (
            Site(tensor, tuple(readers), ", ".join(self.reasons[tensor]), self.like.get(tensor))
            for tensor, readers in self.readers.items()
        )
        return Placement(style, tuple(sites), tuple(self.weighted), tuple(self.skipped))


def place(view: GraphView, style: Style, codes: Codes = "full") -> Placement:
    """The placement of one style for a canonical graph.

    Args:
        codes: of tensors behind a ReLU in the ``tensorrt`` style; the ``cpu`` style has uint8.
    """
    if style == "cpu":
        return _place_cpu(view).finish(style)
    placement = _place_tensorrt(view).finish(style)
    return replace(placement, full=_full(view, placement)) if codes == "full" else placement


def _full(view: GraphView, placement: Placement) -> frozenset[str]:
    """The tensors that are never negative, and whose readers can do without a zero point.

    See :mod:`edgeres.quantize.zero_points`.
    """
    readers: dict[str, set[str]] = {}
    for site in placement.sites:
        readers.setdefault(site.like or site.tensor, set()).update(site.consumers)
    nodes = {node.name: node for node in view.nodes}
    return frozenset(
        tensor
        for tensor in placement.observed
        if view.is_nonnegative(tensor) and all(_takes_lowered(view, nodes[name]) for name in readers[tensor])
    )


def _takes_lowered(view: GraphView, node: onnx.NodeProto) -> bool:
    """Whether a reader can be made to take ``x - t``: a Conv with known padding, Gemm, Add, what only moves values."""
    padding = next((a.s for a in node.attribute if a.name == "auto_pad"), b"NOTSET")
    if padding not in {b"NOTSET", b"VALID"}:
        return False
    return node.op_type in {"Conv", "Gemm"} or view.is_residual_add(node) or view.keeps_codes(node)


def weight_axis(node: onnx.NodeProto) -> int:
    """The axis of the output channels in the weights of a Conv, Gemm or MatMul."""
    if node.op_type == "Conv":
        return 0
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if transposed else 1


def why_not_weighted(view: GraphView, node: onnx.NodeProto) -> str | None:
    """The reason why a Conv, Gemm or MatMul cannot take codes, None where it can."""
    if not view.is_constant(node.input[1]) or view.is_constant(node.input[0]):
        return "its weights are not constant"
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Gemm" and (attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0):
        return "alpha or beta is not 1"
    if node.op_type == "Gemm" and attributes.get("transA"):
        return "its input is transposed"
    if view.constant(node.input[1]).ndim != {"Conv": 4}.get(node.op_type, 2):
        return "its weights do not have the usual rank"
    return None


# Why an op of the TensorRT graph has no Q/DQ of its own.
_FLOAT_IN_TENSORRT = {
    "GlobalAveragePool": "averaged in float: few values, and no rounding before the classifier",
    "AveragePool": "averaged in float: few values, and no rounding after the mean",
    "ReduceMean": "averaged in float: few values, and no rounding before the classifier",
    "MaxPool": "the quantize behind it moves ahead of it, since max and rounding commute",
    "BatchNormalization": "no convolution before it to fold into; the quantize follows its activation",
    "Softmax": "probabilities need float",
}
_OTHER = "no INT8 kernel with weights; runs in float between quantized layers"
_QUIET = frozenset(
    {"Relu", "Clip", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Pad", "Identity"}
)


def _place_tensorrt(view: GraphView) -> _Draft:
    draft = _Draft()
    for node in view.nodes:
        if node.op_type in WEIGHTED:
            reason = why_not_weighted(view, node)
            if reason:
                draft.skip(node, reason)
            else:
                draft.weighted.append(node.name)
                draft.want(node.input[0], node.name, f"input of {node.op_type}")
        elif view.is_residual_add(node):
            _place_skip_input(view, node, draft)
        elif node.op_type not in _QUIET:
            draft.skip(node, _FLOAT_IN_TENSORRT.get(node.op_type, _OTHER))
    return draft


def _place_skip_input(view: GraphView, add: onnx.NodeProto, draft: _Draft) -> None:
    skip = view.skip_input(add)
    if skip is None:
        draft.skip(add, "its inputs have no common ancestor, so neither is the skip")
        return
    draft.want(skip, add.name, "skip input of Add")
    draft.skip(add, "its main branch stays float, so that Conv + Add + ReLU fuse into one INT8 kernel")
    # An option-A shortcut slices and pads the block's input: it reads the codes that the block's first Conv reads.
    tensor, reader = skip, add
    while tensor not in {view.input} and (node := view.producer(tensor)) is not None and view.keeps_codes(node):
        tensor, reader = node.input[0], node
    if tensor != skip and _feeds_weighted(view, tensor):
        draft.want(tensor, reader.name, "source of a shortcut")
        draft.like[skip] = tensor


def _feeds_weighted(view: GraphView, tensor: str) -> bool:
    return any(node.op_type in WEIGHTED and not why_not_weighted(view, node) for node in view.consumers(tensor))


def _place_cpu(view: GraphView) -> _Draft:
    draft = _Draft()
    for node in view.nodes:
        if node.op_type in WEIGHTED and (reason := why_not_weighted(view, node)):
            draft.skip(node, reason)
        elif node.op_type in WEIGHTED or view.joins_activations(node) or node.op_type in _CPU_UNARY:
            if node.op_type in WEIGHTED:
                draft.weighted.append(node.name)
            _place_around(view, node, draft)
        elif view.keeps_codes(node) and node.input[0] in draft.readers:
            # Same codes on both sides; a Pad fills with real zero, which is a code.
            draft.like[node.output[0]] = draft.like.get(node.input[0], node.input[0])
            _want_everywhere(view, node.output[0], f"output of {node.op_type}", draft)
        elif node.op_type not in _QUIET:
            draft.skip(node, _FLOAT_ON_CPU.get(node.op_type, "no integer kernel on ONNX Runtime's CPU provider"))
    return draft


# Besides Conv, Gemm and MatMul, Add and Mul: what has an integer kernel from one tensor to one.
_CPU_UNARY = frozenset({"GlobalAveragePool", "AveragePool", "LeakyRelu", "Sigmoid"})
_FLOAT_ON_CPU = {
    "MaxPool": "its input is in float; max and rounding commute, so the quantize behind it moves ahead of it",
    "BatchNormalization": "no convolution before it to fold into; the quantize follows its activation",
    "Softmax": "probabilities need float",
}


def _place_around(view: GraphView, node: onnx.NodeProto, draft: _Draft) -> None:
    inputs = [name for name in node.input if name and not view.is_constant(name)]
    for name in inputs:
        _want_everywhere(view, name, f"input of {node.op_type}", draft)
    after = view.activation_after(node)
    if after == view.output or node.op_type in {"Gemm", "MatMul"}:
        draft.skip(node, "its output stays float: scores are compared, not convolved")
    else:
        _want_everywhere(view, after, f"output of {node.op_type}", draft)


def _want_everywhere(view: GraphView, tensor: str, reason: str, draft: _Draft) -> None:
    for reader in view.consumers(tensor):
        draft.want(tensor, reader.name, reason)
