"""How much of a tensor's rounding error reaches the scores, predicted per channel from weights and histograms.

Two independent parts: :func:`rounding_tables` predicts the error of a channel at a given step, and
:func:`sensitivities` how much of it reaches the scores. The latter propagates variances backwards through the graph as
if the terms of a sum were independent: a Conv maps h to sum_o W[o, i]**2 h[o], a ReLU passes the share of active
values, an Add passes h to both inputs, and nodes that only move values pass it back to where these came from
(:mod:`edgeres.refine.layout`). The absolute level is too low, since neighbouring pixels are correlated; it
serves to compare channels and layers.

Worked number: y = 3 a - 4 b, h(y) = 1: h(a) = 9, h(b) = 16, so a step of b may be 3/4 of one of a.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto

from edgeres.calibrate.forward import with_outputs
from edgeres.graph.graph import Graph, attributes
from edgeres.progress import SILENT, Progress
from edgeres.records import F32, F64, I64
from edgeres.refine.candidate import batches
from edgeres.refine.layout import TensorLayout
from edgeres.runtime.ort import OrtRunner

_FETCHED_BYTES = 1 << 19  # of images whose activations are all fetched: 32 at 32 px, one at 224 px
# Bins of |x|: the float's exponent and three bits of its mantissa, from 2**-20 on; the last column counts zeros.
_LOWEST, _BINS = -20, 320
_SHIFT, _FIRST = 20, (127 + _LOWEST) << 3  # of the float's bits
_OCTAVES, _EIGHTHS = np.divmod(np.arange(_BINS + 1), 8)
EDGES: F64 = 2.0 ** (_LOWEST + _OCTAVES) * (1 + _EIGHTHS / 8)
# log2 of the steps (real values per code) that errors are tabulated for, a quarter of an octave apart.
STEPS: F64 = np.arange(-22.0, 4.0, 0.25)


@dataclass(frozen=True)
class ChannelErrors:
    """Errors per value of one tensor's channels.

    Attributes:
        error: (C, len(STEPS)) mean squared error of symmetric int8 codes with step 2**STEPS, clipping included.
        power, active: (C,) mean square, and share of values that are not zero.
    """

    error: F64
    power: F64
    active: F64


def channel_histograms(
    model: ModelProto, tensors: Sequence[str], images: F32, progress: Progress = SILENT
) -> dict[str, I64]:
    """Histograms of |x| per channel (axis 1), (C, _BINS + 1), in one pass over the images."""
    graph_input = model.graph.input[0].name
    found: dict[str, I64] = {}
    with (
        OrtRunner(with_outputs(model, (name for name in tensors if name != graph_input))) as runner,
        progress.task("measuring channels", total=len(images)) as advance,
    ):
        for part in batches(images, _FETCHED_BYTES):
            values = runner.infer({graph_input: part}) | {graph_input: part}
            for name in tensors:
                found[name] = found.get(name, 0) + _count(values[name])
            advance(len(part))
    return found


def _count(values: F32) -> I64:
    channels = np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)
    bits = np.ascontiguousarray(channels).view(np.int32) & 0x7FFFFFFF
    bins = np.clip((bits >> _SHIFT) - _FIRST, 0, _BINS - 1)
    bins[bits == 0] = _BINS
    bins += np.arange(len(channels), dtype=np.int32)[:, None] * (_BINS + 1)
    return np.bincount(bins.reshape(-1), minlength=len(channels) * (_BINS + 1)).reshape(len(channels), -1)


def rounding_tables(counts: I64, top: int) -> ChannelErrors:
    """Errors from histograms: the density within a bin is taken as uniform, and integrated exactly.

    As in :func:`edgeres.calibrate.ranges.rounding_error`, G(u) = n/12 + (u - n)**3 / 3 is an antiderivative of
    (u - n)**2 for the code n of u.

    Args:
        counts: (C, bins) from :func:`channel_histograms`.
        top: the largest code minus the code of zero.
    """
    low, high = EDGES[:-1], EDGES[1:]
    share = counts / counts.sum(axis=1, keepdims=True)
    columns = []
    for step in 2.0**STEPS:
        code = np.clip(np.rint(EDGES / step), 0, top)
        area = np.diff(code / 12 + (EDGES / step - code) ** 3 / 3)
        columns.append(step**3 * area / (high - low))
    squares = (low * low + low * high + high * high) / 3
    return ChannelErrors(share[:, :-1] @ np.stack(columns, axis=1), share[:, :-1] @ squares, 1 - share[:, -1])


@dataclass(frozen=True)
class Sensitivity:
    """Squared error of the scores per error variance of one value of a channel, (C,).

    ``tensors`` has it by tensor, through all its readers; ``reads`` by (node, tensor), through that reader only.
    """

    tensors: Mapping[str, F64]
    reads: Mapping[tuple[str, str], F64]


def sensitivities(graph: Graph, layout: TensorLayout, active: Mapping[str, F64]) -> Sensitivity:
    """Propagate h backwards from the scores, where it is 1.

    ``active`` has the share of positive values, (C,), of the outputs of ReLUs.
    """
    backward = _Backward(graph, layout, active)
    tensors: dict[str, F64] = {}
    reads: dict[tuple[str, str], F64] = {}
    # h of single values, in arrays that broadcast to the tensor's shape; of tensors between here and the scores.
    whole: dict[str, F64] = {graph.output: np.ones([1] * len(layout.shape[graph.output]))}
    for node in reversed(graph.nodes):
        made = {name: whole.pop(name) for name in node.output if name in whole}
        tensors |= {name: _by_channel(h, layout.shape[name]) for name, h in made.items()}
        for name in dict.fromkeys(node.input) if made else ():
            if name and not graph.is_constant(name) and len(layout.shape.get(name, ())) > 1:
                h = backward.through(node, name, made)
                reads[node.name, name] = _by_channel(h, layout.shape[name])
                whole[name] = whole[name] + h if name in whole else h
    tensors |= {name: _by_channel(h, layout.shape[name]) for name, h in whole.items()}
    return Sensitivity(tensors, reads)


def _by_channel(h: F64, shape: Sequence[int]) -> F64:
    """The mean over all axes but axis 1, (C,)."""
    mean: F64 = h.mean(axis=(0, *range(2, h.ndim)))
    return mean if len(mean) == shape[1] else mean.repeat(shape[1])


class _Backward:
    """From h of a node's outputs to h of one of its inputs; both broadcast to the tensors' shapes."""

    def __init__(self, graph: Graph, layout: TensorLayout, active: Mapping[str, F64]) -> None:
        self.graph, self.shape, self.active = graph, layout.shape, active
        self._layout = layout

    def through(self, node: NodeProto, name: str, made: Mapping[str, F64]) -> F64:
        inside, outside = self.shape[name], self.shape.get(node.output[0], ())
        moves = self._layout.sources(node, name)
        if moves is not None:
            return self._moved(node, moves, made, inside)
        if node.output[0] not in made:
            return np.zeros([1] * len(inside))
        h = made[node.output[0]]
        weight = self._weight(node, name)
        if weight is not None:
            return self._weighted(node, h, weight, name)
        if node.op_type == "BatchNormalization":
            scale, variance = (self.graph.constant(node.input[i]).astype(np.float64) for i in (1, 4))
            return h * _along_channels(scale**2 / variance, len(inside))
        if node.op_type == "Relu" and node.output[0] in self.active:
            return h * _along_channels(self.active[node.output[0]], len(inside))
        if node.op_type.startswith(("Reduce", "Global")):
            return self._spread(node, h, inside, outside)
        shared = math.prod(outside[2:]) / (math.prod(inside[2:]) or 1)
        if node.op_type == "AveragePool":
            return _mean_by_channel(h) * (shared / float(math.prod(attributes(node)["kernel_shape"])))
        if _broadcasts(inside, outside):
            return _summed(h * self._factor(node, name), outside, inside)
        # The rest picks values or is unknown.
        if len(inside) == len(outside) and inside[:2] == outside[:2]:
            return _mean_by_channel(h) * min(shared, 1.0)
        return np.full([1] * len(inside), h.mean() * min(math.prod(outside) / max(math.prod(inside), 1), 1.0))

    @staticmethod
    def _moved(node: NodeProto, moves: Sequence[I64], made: Mapping[str, F64], inside: Sequence[int]) -> F64:
        """Every value gets the sum of h over all places that it is moved to."""
        total = np.zeros(math.prod(inside))
        for name, sources in zip(filter(None, node.output), moves, strict=True):
            if name in made:
                taken = sources >= 0
                h = np.broadcast_to(made[name], sources.shape)[taken]
                total += np.bincount(sources[taken], h, minlength=len(total))
        return total.reshape(inside)

    def _spread(self, node: NodeProto, h: F64, inside: Sequence[int], outside: Sequence[int]) -> F64:
        """From the result of a reduction to the values that it was computed from."""
        count = math.prod(inside) / max(math.prod(outside), 1)
        share = {"ReduceSum": 1.0, "ReduceMean": count**-2, "GlobalAveragePool": count**-2}.get(node.op_type, 1 / count)
        missing = self._layout.reduced(node) if len(outside) < len(inside) else ()
        return np.expand_dims(h, missing) * share

    def _weight(self, node: NodeProto, name: str) -> F64 | None:
        """The squares of constant weights that this input is multiplied by; None if there are none."""
        if node.op_type not in {"Conv", "ConvTranspose", "Gemm", "MatMul"} or name not in node.input[:2]:
            return None
        other = node.input[1 if name == node.input[0] else 0]
        if not self.graph.is_constant(other) or (name == node.input[1] and node.op_type != "MatMul"):
            return None
        weight: F64 = self.graph.constant(other).astype(np.float64) ** 2
        return weight

    def _weighted(self, node: NodeProto, h: F64, squares: F64, name: str) -> F64:
        inside, outside, given = self.shape[name], self.shape[node.output[0]], attributes(node)
        if node.op_type == "Gemm":
            h = np.broadcast_to(h, outside)
            product = given.get("alpha", 1.0) ** 2 * (h @ (squares if given.get("transB") else squares.T))
            turned: F64 = product.T if given.get("transA") else product
            return turned
        if node.op_type == "MatMul":
            h = np.broadcast_to(h, outside)
            if squares.ndim == 1:
                return _summed(h[..., None] * squares, (*outside, len(squares)), inside)
            weight = np.swapaxes(squares, -1, -2)
            product = h @ weight if name == node.input[0] else weight @ h
            return _summed(product, product.shape, inside)
        h = _by_channel(h, outside)
        channels, taps = inside[1], squares.sum(axis=tuple(range(2, squares.ndim)))
        if node.op_type == "ConvTranspose":
            parts = given.get("group", 1)
            to_output = h.reshape(parts, 1, -1).repeat(channels // parts, axis=1).reshape(taps.shape)
            return _along_channels((taps * to_output).sum(axis=1), len(inside))
        shared = (math.prod(outside[2:]) or 1) / (math.prod(inside[2:]) or 1)
        parts = channels // taps.shape[1]
        through = (taps * h[:, None]).reshape(parts, -1, taps.shape[1]).sum(axis=1).reshape(-1) * shared
        return _along_channels(through, len(inside))

    def _factor(self, node: NodeProto, name: str) -> F64:
        """The square of a constant that the input is multiplied or divided by; 1 for other operators."""
        other = [each for each in node.input if each != name]
        if node.op_type in {"Mul", "Div"} and len(other) == 1 and self.graph.is_constant(other[0]):
            value = self.graph.constant(other[0]).astype(np.float64) ** 2
            if node.op_type == "Mul":
                return value
            if name == node.input[0]:
                return 1 / np.maximum(value, 1e-30)
        return np.ones(1)


def _along_channels(values: F64, rank: int) -> F64:
    return values.reshape(1, -1, *[1] * (rank - 2))


def _mean_by_channel(h: F64) -> F64:
    """The mean over all axes but axis 1, of the same rank."""
    mean: F64 = h.mean(axis=(0, *range(2, h.ndim)), keepdims=True)
    return mean


def _broadcasts(inside: Sequence[int], outside: Sequence[int]) -> bool:
    """Whether an input of this shape can be part of an operation element by element."""
    padded = (*[1] * (len(outside) - len(inside)), *inside)
    return len(inside) <= len(outside) and all(a in {1, b} for a, b in zip(padded, outside, strict=True))


def _summed(h: F64, outside: Sequence[int], inside: Sequence[int]) -> F64:
    """Sum over the axes along which the input was repeated."""
    h = h.reshape([1] * (len(outside) - h.ndim) + list(h.shape))
    more = len(outside) - len(inside)
    for axis, size in enumerate(outside):
        kept = inside[axis - more] if axis >= more else 1
        if kept < size:
            h = h.sum(axis=axis, keepdims=True) * (size / h.shape[axis])
    return h.reshape(h.shape[more:])
