"""Plans made from a refined one: other codes behind ReLU, fewer layers in INT8, pools in INT8, scales of float16.

Nothing is measured again. A tensor keeps its range: with half as many codes its step is twice as wide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from onnx import NodeProto

from edgeres.graph.graph import Graph
from edgeres.quantize.affine import per_channel
from edgeres.quantize.placement import place
from edgeres.records import Codes, Edge, QuantParams, QuantPlan, WeightEdge

_LOWEST = -128
# Scales below are no normal numbers of float16.
_LEAST_SCALE = float(np.finfo(np.float16).tiny)


def with_codes(graph: Graph, plan: QuantPlan, codes: Codes, zeros: frozenset[str] = frozenset()) -> QuantPlan:
    """The plan for TensorRT with other codes behind ReLU.

    Args:
        zeros: tensors that are zero on every calibration image: they keep zero point 0 (:mod:`edgeres.quantize.plan`).

    Worked number: 0 to 2.55 has the step 0.01 in all 256 codes, and 2.55 / 127 = 0.0201 in half of them.
    """
    placement = place(graph, "tensorrt", codes)
    origin = {site.tensor: site.like or site.tensor for site in placement.sites}

    def changed(edge: Edge) -> Edge:
        source = origin.get(edge.tensor, edge.tensor)
        full = source in placement.full and source not in zeros
        return _in_codes(edge, codes, full=full)

    return replace(plan, edges=tuple(map(changed, plan.edges)))


def _in_codes(edge: Edge, codes: Codes, *, full: bool = False) -> Edge:
    """The edge with all 256 codes of a tensor that is never negative, or with half of them; its range stays."""
    if full == (edge.params.zero_point == _LOWEST):
        return edge
    scale = edge.params.scale * np.float32(127 / 255 if full else 255 / 127)
    params = replace(edge.params, scale=np.asarray(scale, np.float32), zero_point=_LOWEST if full else 0)
    return replace(edge, params=params, reason=f"{edge.reason.partition(';')[0]}; {codes} codes")


def only(plan: QuantPlan, keeps: Callable[[str], bool]) -> QuantPlan:
    """The plan for the nodes alone of whose names ``keeps`` is true; the others read the float tensor."""
    edges = (replace(edge, consumers=tuple(filter(keeps, edge.consumers))) for edge in plan.edges)
    halves = (replace(half, consumers=tuple(filter(keeps, half.consumers))) for half in plan.halves)
    return replace(
        plan,
        edges=tuple(edge for edge in edges if edge.consumers),
        halves=tuple(half for half in halves if half.consumers),
        weights=tuple(weight for weight in plan.weights if keeps(weight.node)),
    )


def pools_between_codes(graph: Graph, plan: QuantPlan) -> dict[str, tuple[NodeProto, str]]:
    """The average pools that could read codes, since their result is read as codes.

    TensorRT runs an operator without weights in INT8 only where both of its sides are codes.

    Returns:
        By the tensor that a pool reads: the pool, and the tensor of codes behind it.
    """
    coded = {edge.tensor for edge in plan.edges}
    found = {}
    for node in graph.of("GlobalAveragePool", "AveragePool", "ReduceMean"):
        tensor, readers = node.output[0], graph.consumers(node.output[0])
        while tensor not in coded and len(readers) == 1 and graph.keeps_codes(readers[0]):
            tensor, readers = readers[0].output[0], graph.consumers(readers[0].output[0])
        if tensor in coded and node.input[0] not in coded and graph.carries_activations(node.input[0]):
            found[node.input[0]] = (node, tensor)
    return found


def with_pools(graph: Graph, plan: QuantPlan, largest: Mapping[str, float]) -> QuantPlan | None:
    """The plan with average pools in INT8; None where there is none whose input's largest magnitude is known.

    Behind such a pool the codes have zero point 0: another one would take an Add between the pool and its quantize.

    Worked number: a magnitude of 12.7 gives the step 0.1.
    """
    pools = {tensor: found for tensor, found in pools_between_codes(graph, plan).items() if largest.get(tensor)}
    behind = {after for _, after in pools.values()}
    edges = tuple(
        Edge(tensor, QuantParams(np.asarray(largest[tensor] / 127, np.float32), 0, "int8"), (node.name,), "pooled")
        for tensor, (node, _) in pools.items()
    )
    others = tuple(_in_codes(edge, "half") if edge.tensor in behind else edge for edge in plan.edges)
    return replace(plan, edges=others + edges) if edges else None


def with_half_scales(plan: QuantPlan) -> QuantPlan:
    """The plan with normal numbers of float16 as scales; codes of weights whose scale grew are rounded anew."""

    def edge_in_half(edge: Edge) -> Edge:
        return replace(edge, params=replace(edge.params, scale=_in_half(edge.params.scale)))

    def weight_in_half(weight: WeightEdge) -> WeightEdge:
        params = weight.params
        scale = _in_half(params.scale)
        grown = np.maximum(params.scale.astype(np.float64), _LEAST_SCALE)
        shrink = per_channel(params.scale / grown, params.axis, weight.codes.ndim)
        codes = np.rint(weight.codes * shrink).astype(weight.codes.dtype)
        return replace(weight, params=replace(params, scale=scale), codes=codes)

    return replace(plan, edges=tuple(map(edge_in_half, plan.edges)), weights=tuple(map(weight_in_half, plan.weights)))


def _in_half(scale: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(scale, _LEAST_SCALE).astype(np.float16).astype(np.float32))
