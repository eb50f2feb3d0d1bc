"""Cross-layer equalization for the scores: one positive factor per channel, inside blocks and along the stream.

Int8 activations have one step for a whole tensor, so a channel with small values is coded coarsely. Factors per channel
that leave the network's function unchanged (:mod:`edgeres.refine.channel_groups`) make ranges more equal. Nagel et al.
2019 (Data-Free Quantization, eq. 11) equalize the ranges of weights. Here weights have a scale per channel, and many
layers read a residual stream, so the factors are found by minimizing the predicted noise. With v_c = log2 of a
channel's factor and u_t = log2 of a tensor's step, both free,

    J(u, v) = sum_t sum_c h_tc E_tc(u_t - v_c)  +  sum_layers sum_o h_o s_o(v)**2 / 12 * sum_i k_i 4**v_i X_i

The first part is the rounding and clipping error E of every coded activation, weighted by how much of it reaches the
scores. The second is the rounding of the weights: s_o = max_i |W[o, i] 2**-v_i| / 127 is their step, X the input's mean
square, k the taps. Without the second part, every channel of a tensor that is alone in its groups would get its own
step. Where tensors share a channel, the best common factor is a compromise between them. J is minimized in u and v
together (Adam on log J).

Worked number: two channels with amax 8 and 2 and equal h share the step 8/127: h (8/127)**2 / 12 each. A factor of 4 on
the second leaves the scaled step at 8/127, which is 2/127 in its own units: J falls from 2 to 1 + 1/16, by 2.7 dB.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto

from edgeres.graph.graph import WEIGHTED, Graph
from edgeres.progress import SILENT, Advance, Progress
from edgeres.quantize.placement import place, weight_axis, why_not_weighted
from edgeres.records import F32, F64, I64, Codes
from edgeres.refine.channel_groups import PINNED, ChannelGroups, find_channel_groups, scaled
from edgeres.refine.layout import TensorLayout
from edgeres.refine.sensitivity import STEPS, ChannelErrors, channel_histograms, rounding_tables, sensitivities

ITERATIONS = 150
_RATE = 0.05  # of the first iteration, in octaves; it falls to zero
_MOST = 6.0  # octaves that a factor may go, so that dead channels stay finite


# The first part of J, for one coded tensor: (C, len(STEPS)) weighted errors, and the (C,) group of each channel.
_ActivationTerm = tuple[F64, I64]


@dataclass(frozen=True)
class _WeightTerm:
    """The second part of J, for one layer."""

    weight: F64  # (O, I / groups) log2 of the largest |W| over the taps
    channel: I64  # (O, I / groups) input channel of each
    groups: I64  # (I,) group of each input channel
    power: F64  # (I,) mean square times taps over 12 * 127**2
    h: F64  # (O,) squared error of the scores per error variance of an output channel


def equalize(model: ModelProto, images: F32, codes: Codes = "free", progress: Progress = SILENT) -> ModelProto:
    """Scale channels for the least predicted error of int8 activations and weights; the function stays the same.

    Args:
        model: canonical FP32; it is not changed.
        images: (N, ...) float32 inputs, a hundred or more; the network runs on each once.
        codes: of activations behind a ReLU, in the graph that will be quantized.

    Returns:
        A model with the same nodes and tensors, other weights, and the same output up to float rounding. Tensors that
        cannot be scaled keep their values.

    Raises:
        ModelError: ONNX Runtime cannot run the graph.
    """
    graph = Graph(model)
    layout = TensorLayout(graph, images[:1])
    groups = find_channel_groups(graph, layout)
    if groups.size == 1:
        return scaled(model, groups, np.ones(1))
    errors = _errors(graph, layout, images, codes, progress)
    activations, layers = _terms(graph, groups, errors, layout)
    with progress.task("equalizing channels", total=ITERATIONS) as advance:
        octaves = _descend(activations, layers, groups.size, advance)
    return scaled(model, groups, 2.0**octaves)


def _errors(
    graph: Graph, layout: TensorLayout, images: F32, codes: Codes, progress: Progress
) -> dict[str, ChannelErrors]:
    """The errors of coded tensors, of what layers read, and of outputs of ReLUs, by tensor."""
    placement = place(graph, "tensorrt", codes)
    relus = (node.output[0] for node in graph.of("Relu"))
    read = (node.input[0] for node in graph.of(*WEIGHTED))
    wanted = [name for name in (*placement.observed, *relus, *read) if len(layout.shape.get(name, ())) > 1]
    counts = channel_histograms(graph.model, list(dict.fromkeys(wanted)), images, progress)
    return {name: rounding_tables(found, 255 if name in placement.full else 127) for name, found in counts.items()}


def _terms(
    graph: Graph, groups: ChannelGroups, errors: Mapping[str, ChannelErrors], layout: TensorLayout
) -> tuple[list[_ActivationTerm], list[_WeightTerm]]:
    sites = [site for site in place(graph, "tensorrt").sites if site.like is None and site.tensor in errors]
    h = sensitivities(graph, layout, {name: found.active for name, found in errors.items()})
    activations = []
    for site in sites:
        through = sum(h.reads[reader, site.tensor] for reader in site.consumers if (reader, site.tensor) in h.reads)
        weight = np.reshape(through * _positions(layout, site.tensor), (-1, 1))
        activations.append((errors[site.tensor].error * weight, _groups(groups, site.tensor, layout)))
    layers = []
    for node in graph.of(*WEIGHTED):
        read, written = node.input[0], node.output[0]
        # Other inputs of a MatMul have no channels at axis 1. They keep their values, so their noise is a constant.
        if node.op_type != "Conv" and len(layout.shape[read]) != 2:
            continue
        if not why_not_weighted(graph, node) and written in h.tensors:
            noise = h.tensors[written] * _positions(layout, written)
            layers.append(_weight_term(graph, node, _groups(groups, read, layout), errors[read], noise))
    return activations, layers


def _positions(layout: TensorLayout, tensor: str) -> float:
    """Number of values of a channel, for one image."""
    shape = layout.shape[tensor]
    return float(math.prod(shape) / shape[1])


def _groups(groups: ChannelGroups, tensor: str, layout: TensorLayout) -> I64:
    return groups.channels.get(tensor, np.full(layout.shape[tensor][1], PINNED))


def _weight_term(graph: Graph, node: NodeProto, groups: I64, errors: ChannelErrors, h: F64) -> _WeightTerm:
    weight = np.abs(np.moveaxis(graph.constant(node.input[1]).astype(np.float64), weight_axis(node), 0))
    outputs, reads = weight.shape[:2]
    largest = weight.reshape(outputs, reads, -1).max(axis=2)
    parts = len(groups) // reads
    channel = np.arange(len(groups)).reshape(parts, reads).repeat(outputs // parts, axis=0)
    taps = math.prod(weight.shape[2:])
    return _WeightTerm(np.log2(np.maximum(largest, 1e-12)), channel, groups, errors.power * taps / (12 * 127**2), h)


def _descend(activations: list[_ActivationTerm], layers: list[_WeightTerm], size: int, advance: Advance) -> F64:
    """v of every group, in octaves, by Adam (Kingma and Ba 2015) on log J in v and u together."""
    start = [STEPS[int(error.sum(axis=0).argmin())] for error, _ in activations]
    point = np.concatenate([np.zeros(size), start])
    mean, square = np.zeros_like(point), np.zeros_like(point)
    for step in range(ITERATIONS):
        total, slope = _objective(activations, layers, point[:size], point[size:])
        slope /= max(total, 1e-300)
        slope[PINNED] = 0.0
        mean = 0.9 * mean + 0.1 * slope
        square = 0.99 * square + 0.01 * slope**2
        scaled_mean, scaled_square = mean / (1 - 0.9 ** (step + 1)), square / (1 - 0.99 ** (step + 1))
        point -= _RATE * (1 - step / ITERATIONS) * scaled_mean / (np.sqrt(scaled_square) + 1e-6)
        point[:size] = np.clip(point[:size], -_MOST, _MOST)
        advance(1)
    return point[:size]


def _objective(
    activations: list[_ActivationTerm], layers: list[_WeightTerm], octaves: F64, steps: F64
) -> tuple[float, F64]:
    """J, and its slope in (v, u)."""
    total = 0.0
    slope = np.zeros(len(octaves) + len(steps))
    for index, (error, groups) in enumerate(activations):
        position = (steps[index] - octaves[groups] - STEPS[0]) / (STEPS[1] - STEPS[0])
        position = np.clip(position, 0, len(STEPS) - 1.001)
        below = position.astype(np.int64)
        rows = np.arange(len(below))
        low, high = error[rows, below], error[rows, below + 1]
        total += float((low + (high - low) * (position - below)).sum())
        change = (high - low) / (STEPS[1] - STEPS[0])
        slope[len(octaves) + index] += change.sum()
        np.subtract.at(slope, groups, change)
    doubling = 2 * math.log(2)  # d(4**v)/dv over 4**v
    for layer in layers:
        reach = layer.weight - octaves[layer.groups][layer.channel]
        widest = reach.argmax(axis=1)
        rows = np.arange(len(widest))
        power = layer.power * 4.0 ** octaves[layer.groups]
        noise = layer.h * 4.0 ** reach[rows, widest]  # per output, over the input's power
        per_output = noise * power[layer.channel].sum(axis=1)
        total += float(per_output.sum())
        np.subtract.at(slope, layer.groups[layer.channel[rows, widest]], doubling * per_output)
        readers = np.bincount(layer.channel.reshape(-1), np.repeat(noise, layer.channel.shape[1]), len(power))
        np.add.at(slope, layer.groups, doubling * power * readers)
    return total, slope
