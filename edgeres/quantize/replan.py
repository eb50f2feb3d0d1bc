"""Plans made from a plan that is already refined: other codes behind ReLU, fewer layers in INT8, scales of float16.

Nothing is measured again. A tensor keeps its range: with half as many codes its step is twice as wide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from edgeres.graph.graph import Graph
from edgeres.quantize.affine import per_channel
from edgeres.quantize.placement import place
from edgeres.records import Codes, Edge, QuantPlan, WeightEdge

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
        full, was_full = source in placement.full and source not in zeros, edge.params.zero_point == _LOWEST
        if full == was_full:
            return edge
        scale = edge.params.scale * np.float32(127 / 255 if full else 255 / 127)
        params = replace(edge.params, scale=np.asarray(scale, np.float32), zero_point=_LOWEST if full else 0)
        return replace(edge, params=params, reason=f"{edge.reason.partition(';')[0]}; {codes} codes")

    return replace(plan, edges=tuple(map(changed, plan.edges)))


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
