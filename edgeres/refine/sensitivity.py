"""How much of a tensor's rounding error reaches the scores, predicted per channel from weights and histograms.

Two independent parts: :func:`rounding_tables` predicts the error of a channel at a given step, and
:func:`sensitivities` how much of it reaches the scores. The latter propagates variances backwards through the graph as
if the terms of a sum were independent: a Conv maps h to sum_o W[o, i]**2 h[o], a ReLU passes the share of active
values, an Add passes h to both inputs. The absolute level is too low, since neighbouring pixels are correlated; it
serves to compare channels and layers.

Worked number: y = 3 a - 4 b, h(y) = 1: h(a) = 9, h(b) = 16, so a step of b may be 3/4 of one of a.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from edgeres.calibrate.forward import with_outputs
from edgeres.graph.graph import Graph
from edgeres.progress import SILENT, Progress
from edgeres.quantize.placement import weight_axis
from edgeres.records import F32, F64, I64
from edgeres.runtime.ort import OrtRunner

_BATCH = 32
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


def shapes(graph: Graph, image: F32) -> dict[str, tuple[int, ...]]:
    """The shapes of the float tensors; where one cannot be inferred, the network runs on ``image``, (1, ...)."""
    floats = [name for name, value in graph.types.items() if value.type.tensor_type.elem_type == TensorProto.FLOAT]
    found = {name: graph.shape(name) for name in floats}
    unknown = [name for name, sizes in found.items() if 0 in sizes[1:] or not sizes]
    if unknown:
        with OrtRunner(with_outputs(graph.model, unknown)) as runner:
            measured = runner.infer({runner.input_name: image})
        found |= {name: measured[name].shape for name in unknown}
    return found


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
        for start in range(0, len(images), _BATCH):
            part = images[start : start + _BATCH]
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


def sensitivities(graph: Graph, shape: Mapping[str, Sequence[int]], active: Mapping[str, F64]) -> Sensitivity:
    """Propagate h backwards from the scores, where it is 1, through shapes from :func:`shapes`.

    ``active`` has the share of positive values, (C,), of the outputs of ReLUs.
    """
    tensors: dict[str, F64] = {graph.output: np.ones(shape[graph.output][1])}
    reads: dict[tuple[str, str], F64] = {}
    for node in reversed(graph.nodes):
        if node.output[0] not in tensors:
            continue
        for name in dict.fromkeys(node.input):
            if name and not graph.is_constant(name) and len(shape.get(name, ())) > 1:
                value = _backward(graph, node, tensors[node.output[0]], (shape[name], shape[node.output[0]]), active)
                reads[node.name, name] = value
                tensors[name] = tensors.get(name, np.zeros(1)) + value
    return Sensitivity(tensors, reads)


def _backward(
    graph: Graph, node: NodeProto, h: F64, sizes: tuple[Sequence[int], Sequence[int]], active: Mapping[str, F64]
) -> F64:
    """h of the node's output -> h of its input, averaged over positions; those that strides leave out count as 0."""
    channels, positions = sizes[0][1], math.prod(sizes[0][2:]) or 1
    shared = (math.prod(sizes[1][2:]) or 1) / positions
    if node.op_type in {"Conv", "Gemm", "MatMul"} and graph.is_constant(node.input[1]):
        weight = np.moveaxis(graph.constant(node.input[1]).astype(np.float64), weight_axis(node), 0)
        squares = (weight**2).sum(axis=tuple(range(2, weight.ndim)))
        groups = channels // squares.shape[1]
        result: F64 = (squares * h[:, None]).reshape(groups, -1, squares.shape[1]).sum(axis=1).reshape(-1) * shared
        return result
    if node.op_type == "BatchNormalization":
        scale, variance = (graph.constant(node.input[i]).astype(np.float64) for i in (1, 4))
        through: F64 = h * scale**2 / variance
        return through
    if node.op_type in {"GlobalAveragePool", "AveragePool", "ReduceMean"}:
        return h * shared**2
    if node.op_type == "Pad" and graph.is_constant(node.input[1]):
        before = int(graph.constant(node.input[1])[1])
        return h[before : before + channels]
    if node.op_type in {"Flatten", "Reshape", "Squeeze"}:
        mean: F64 = h.reshape(channels, -1).mean(axis=1)
        return mean
    if node.op_type == "Relu":
        return h * active[node.output[0]]
    # Add, Slice, MaxPool and the rest pass a value on or drop it; where they change the channels, h is averaged.
    return (h if len(h) == channels else np.full(channels, h.mean())) * min(shared, 1.0)
