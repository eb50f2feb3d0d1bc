"""Make the quantization plan from placement, ranges and weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from edgeres.graph.graph import Graph, Values, input_at
from edgeres.quantize.affine import (
    affine_int8,
    affine_uint8,
    code_constant,
    codes,
    quantize_weight,
    symmetric_int8,
    typical_amax,
    widen_for_bias,
)
from edgeres.quantize.placement import Placement, Site, weight_axis
from edgeres.records import Edge, QuantParams, QuantPlan, Skipped, TensorRange, WeightEdge

_FULL = "; all 256 codes, since it is never negative"
_Params = Mapping[str, QuantParams]


def make_plan(
    graph: Graph, placement: Placement, ranges: Mapping[str, TensorRange], calibration_digest: str, weight_bits: int = 8
) -> QuantPlan:
    """Scales for every site, codes for every weight and, for ONNX Runtime, int32 codes for every bias.

    Args:
        ranges: by tensor, at least of ``placement.observed``.
        weight_bits: 7 where the CPU's int8 dot product saturates (x86-64 without VNNI).
    """
    cpu = placement.style == "cpu"
    to_params = affine_uint8 if cpu else symmetric_int8
    # A tensor that is zero on every image needs no finer step, and keeps zero_point 0: the layer behind it may have any
    # weights, and a folded zero point would have to cancel what they make of it.
    full = frozenset(tensor for tensor in placement.full if ranges[tensor].amax > 0)
    ranges = _without_empty(graph, {tensor: ranges[tensor] for tensor in placement.observed})
    params = {tensor: to_params(ranges[tensor]) for tensor in placement.observed}
    params |= {tensor: affine_int8(ranges[tensor]) for tensor in full}
    params |= {site.tensor: params[site.like] for site in placement.sites if site.like is not None}

    def why(site: Site) -> str:
        return site.reason + (_FULL if (site.like or site.tensor) in full else "")

    coded = [node for node in graph.nodes if node.name in set(placement.weighted)]
    make = _integer_layer if cpu else _float_bias_layer
    weights = [edge for node in coded for edge in make(graph, node, params, weight_bits)]
    for name, tensor in placement.operands:
        weights.append(WeightEdge(tensor, name, *code_constant(tensor, graph.constant(tensor))))
    skipped = placement.skipped
    if not cpu:
        biased = [node.name for node in coded if len(node.input) > 2]
        skipped += tuple(Skipped(f"bias of {name}", "TensorRT's parsers take a float bias only") for name in biased)
    return QuantPlan(
        style=placement.style,
        edges=tuple(Edge(site.tensor, params[site.tensor], site.consumers, why(site)) for site in placement.sites),
        weights=tuple(weights),
        skipped=skipped,
        calibration_digest=calibration_digest,
    )


def _without_empty(graph: Graph, ranges: Mapping[str, TensorRange]) -> dict[str, TensorRange]:
    """The ranges, with a typical one for every tensor that is zero on all images: see :func:`typical_amax`."""
    amax = typical_amax(ranges.values())

    def filled(interval: TensorRange) -> TensorRange:
        if interval.amax > 0:
            return interval
        return replace(interval, low=0.0 if graph.is_nonnegative(interval.tensor) else -amax, high=amax)

    return {tensor: filled(interval) for tensor, interval in ranges.items()}


def _float_bias_layer(graph: Graph, node: NodeProto, params: _Params, bits: int) -> Iterator[WeightEdge]:
    """The weights. The bias stays in float, but must fit int32 with zero points folded in: a runtime may code it so."""
    values, data = graph.constant(node.input[1]), params[node.input[0]]
    others = tuple(axis for axis in range(values.ndim) if axis != weight_axis(node))
    inward = _offset(data) * np.abs(values).sum(axis=others)
    largest = np.abs(_bias(graph, node)) + inward + _offset_behind(graph, node, params)
    yield WeightEdge(node.input[1], node.name, *_weights_that_fit(graph, node, largest, float(data.scale), bits))


def _integer_layer(graph: Graph, node: NodeProto, params: _Params, bits: int) -> Iterator[WeightEdge]:
    """The weights, and the bias as int32 in the accumulator's unit: scale = input scale * weight scale."""
    data = params[node.input[0]]
    bias = _bias(graph, node)
    weight, weight_codes = _weights_that_fit(graph, node, bias, float(data.scale), bits)
    if input_at(node, 2):
        unit = QuantParams((weight.scale * data.scale).astype(np.float32), 0, "int32", 0)
        yield WeightEdge(node.input[2], node.name, unit, codes(bias.astype(np.float64), unit).astype(np.int32))
    yield WeightEdge(node.input[1], node.name, weight, weight_codes)


def _bias(graph: Graph, node: NodeProto) -> Values:
    """The bias, flat; one zero where the node has none."""
    return graph.constant(node.input[2]).reshape(-1) if input_at(node, 2) else np.zeros(1)


def _weights_that_fit(
    graph: Graph, node: NodeProto, bias: Values, input_scale: float, bits: int
) -> tuple[QuantParams, npt.NDArray[np.int8]]:
    values = graph.constant(node.input[1])
    params, weight_codes = quantize_weight(values, weight_axis(node), bits)
    wider = widen_for_bias(params, bias, input_scale)
    if np.array_equal(wider.scale, params.scale):
        return params, weight_codes
    return wider, codes(values, wider).astype(np.int8)


def _offset_behind(graph: Graph, node: NodeProto, params: _Params) -> float:
    """The most that folded zero points change this node's bias: the next quantized tensor's and a skip's on the way."""
    tensor, found = str(node.output[0]), 0.0
    while tensor not in params:
        readers = graph.consumers(tensor)
        if len(readers) != 1 or readers[0].op_type not in {"Relu", "Add", "MaxPool"}:
            return found
        found += sum(_offset(params[name]) for name in readers[0].input if name != tensor and name in params)
        tensor = readers[0].output[0]
    return found + _offset(params[tensor])


def _offset(params: QuantParams) -> float:
    return abs(params.zero_point) * float(params.scale)


def plan_digest(plan: QuantPlan) -> str:
    """SHA-256 over every scale, zero point, code and decision of a plan."""
    hasher = hashlib.sha256(plan.style.encode())
    for edge in plan.edges:
        hasher.update(f"{edge.tensor}|{edge.consumers}|{edge.params.zero_point}|{edge.params.dtype}".encode())
        hasher.update(edge.params.scale.tobytes())
    for half in plan.halves:
        hasher.update(f"{half.tensor}|{half.consumers}|float16".encode())
    for weight in plan.weights:
        hasher.update(f"{weight.tensor}|{weight.node}|{weight.params.axis}".encode())
        hasher.update(weight.params.scale.tobytes() + weight.codes.tobytes())
    return hasher.hexdigest()
