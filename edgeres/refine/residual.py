"""Precision of the residual stream, block by block.

With x_{l+1} = relu(x_l + F(x_l)) an error that enters the identity path stays in it: nothing behind the Add removes
it, and every block that quantizes the stream adds its own, at the skip input of its Add. Each skip input is either int8
(the codes that the block's first Conv reads anyway, so nothing more is moved) or float16 (two bytes a value, written
once and read once more, with a negligible error). The Convs read int8 in both cases.

``auto`` measures what each block's int8 skip alone adds to the logit error, and spends an error budget where that saves
most bytes. Independent rounding errors add up in power, so this is a knapsack problem, for which a greedy choice is
good: blocks become int8 in the order of error per byte saved, as long as the measured error keeps within the budget.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from edgeres.graph.graph import Graph
from edgeres.progress import SILENT, Progress
from edgeres.records import F32, HalfEdge, QuantPlan
from edgeres.refine.candidate import CandidatePlan, logits, typical_noise
from edgeres.refine.layout import TensorLayout

# The noise power that int8 skips may reach, over that with every skip in float16: 0.13 dB more.
BUDGET_SHARE = 1.03
_REASON = "residual stream kept in float16: rounding it to int8 would stay in the identity path"


@dataclass(frozen=True)
class SkipCost:
    """The cost of the skip input ``tensor`` of one residual Add, and the precision chosen for it.

    Attributes:
        noise: noise power that int8 adds to the logits, as a share of the signal's.
        bytes_moved: bytes per image that float16 moves more than int8.
    """

    add: str
    tensor: str
    noise: float
    bytes_moved: int
    precision: Literal["int8", "fp16"]


def skips(graph: Graph, plan: QuantPlan) -> dict[str, str]:
    """The skip input of every residual Add that the plan quantizes, by the Add's name."""
    adds = {node.name for node in graph.nodes if graph.is_residual_add(node)}
    return {reader: edge.tensor for edge in plan.edges for reader in edge.consumers if reader in adds}


def keep_in_half(graph: Graph, plan: QuantPlan, adds: Collection[str]) -> QuantPlan:
    """The plan with the skip inputs of these Adds, named as in :func:`skips`, in float16 instead of int8."""
    chosen = {add: tensor for add, tensor in skips(graph, plan).items() if add in adds}
    # Slices and Pads before an option-A skip read the codes of their source: they become float again with it.
    released = set(chosen) | {name for tensor in chosen.values() for name in _movers(graph, tensor)}
    edges = (replace(e, consumers=tuple(c for c in e.consumers if c not in released)) for e in plan.edges)
    halves = tuple(HalfEdge(tensor, (add,), _REASON) for add, tensor in chosen.items())
    return replace(plan, edges=tuple(edge for edge in edges if edge.consumers), halves=plan.halves + halves)


def choose_residual(
    candidate: CandidatePlan, reference: F32, images: F32, budget: float = BUDGET_SHARE, progress: Progress = SILENT
) -> tuple[CandidatePlan, tuple[SkipCost, ...]]:
    """Give each block the least precision that keeps the logit error within the budget.

    Args:
        candidate: a candidate plan with every skip in int8.
        reference: FP32 logits of ``images``, (N, classes).
        images: network inputs, held back from calibration.
        budget: how much larger the noise power may be than with every skip in float16.

    Returns:
        The candidate with the chosen skips in float16, and the cost of each block in graph order.
    """
    graph = Graph(candidate.graph)
    found = skips(graph, candidate.plan)

    def noise(in_half: Collection[str]) -> float:
        plan = keep_in_half(graph, candidate.plan, in_half)
        return typical_noise(reference, logits(replace(candidate, plan=plan).quantized(), images))

    with progress.task("residual precision", total=len(found) + 1) as advance:
        floor = noise(found)
        advance(1)
        added: dict[str, float] = {}
        for add in found:
            added[add] = max(noise(found.keys() - {add}) - floor, 0.0)
            advance(1)
    sizes = TensorLayout(graph, images[:1]).shape
    values = {add: math.prod(sizes[tensor][1:]) for add, tensor in found.items()}
    saved = {add: _bytes_of_half(graph, candidate.plan, tensor, values[add]) for add, tensor in found.items()}
    in_half = set(found)
    for add in sorted(found, key=lambda name: added[name] / max(saved[name], 1)):
        if noise(in_half - {add}) <= budget * floor:
            in_half.discard(add)
    costs = (
        SkipCost(add, tensor, added[add], saved[add], "fp16" if add in in_half else "int8")
        for add, tensor in found.items()
    )
    return replace(candidate, plan=keep_in_half(graph, candidate.plan, in_half)), tuple(costs)


def _movers(graph: Graph, tensor: str) -> list[str]:
    """The pass-through nodes between a skip input and the tensor it comes from."""
    source, names = graph.source_of(tensor), []
    while tensor != source:
        node = graph.writer(tensor)
        names.append(node.name)
        tensor = node.input[0]
    return names


def _bytes_of_half(graph: Graph, plan: QuantPlan, tensor: str, values: int) -> int:
    """Bytes per image that float16 moves more than int8.

    Two bytes a value are written and two are read, in place of one that is read; if no Conv reads the codes, in place
    of one that is written, too.
    """
    shared = any(edge.tensor == graph.source_of(tensor) and len(edge.consumers) > 1 for edge in plan.edges)
    return (3 if shared else 2) * values
