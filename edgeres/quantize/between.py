"""Say when so much between INT8 layers computes in float that the network may be no faster than in FP32."""

from __future__ import annotations

from collections import Counter

from edgeres.graph.graph import Graph, inputs_of
from edgeres.records import QuantPlan

# Of the INT8 layers: with fewer float operators between them nothing is said.
_SHARE = 0.5


def float_between(graph: Graph, plan: QuantPlan) -> str | None:
    """One line with the operators between INT8 layers that compute in float, and their number; None if they are few.

    Residual Adds, pools and what only moves values are not counted: they are cheap, or become part of a layer.
    """
    layers = {edge.node for edge in plan.weights}
    float_nodes = {item.what.partition(" ")[2] for item in plan.skipped} - layers
    behind: set[str] = set()  # tensors that an INT8 layer is among the ancestors of
    for node in graph.nodes:
        if node.name in layers or not behind.isdisjoint(inputs_of(node)):
            behind.update(node.output)
    ahead = graph.ancestors(*(node.input[0] for node in graph.nodes if node.name in layers))
    found = Counter(
        node.op_type
        for node in graph.nodes
        if node.name in float_nodes
        and graph.carries_activations(node.output[0])
        and not (graph.is_residual_add(node) or graph.keeps_range(node) or node.op_type == "ReduceMean")
        and not behind.isdisjoint(inputs_of(node))
        and not ahead.isdisjoint(node.output)
    )
    if not found or found.total() < _SHARE * len(layers):
        return None
    listed = ", ".join(f"{count} {op}" for op, count in found.most_common())
    what = f"{found.total()} operators between the {len(layers)} INT8 layers of the {plan.style} graph compute in float"
    return f"{what} ({listed}), which may cost the time that INT8 saves; edgeres inspect lists them"
