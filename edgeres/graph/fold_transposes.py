"""Move a Transpose behind activations and means, as channels-last networks end: the mean needs none.

    before    Add -> Transpose to NHWC -> ReLU -> ReduceMean over the axes 1, 2
    after     Add -> ReLU -> ReduceMean over the axes 2, 3

ONNX Runtime moves the other Transposes of such networks against each other already.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, helper

from edgeres.graph.graph import Graph, attributes, input_at

_UNARY = frozenset({"Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Elu", "Tanh", "Softplus"})
_REDUCES = frozenset({"ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2"})


def fold_transposes(model: ModelProto) -> None:
    """Drop Transposes before activations and a mean, where the mean can take other axes; the model is changed."""
    graph = Graph(model)
    for transpose in graph.of("Transpose"):
        chain = _until_reduce(graph, transpose)
        perm = attributes(transpose).get("perm")
        if not chain or perm is None:
            continue
        axes = _axes(graph, chain[-1], len(perm))
        left = [place for axis, place in enumerate(perm) if axis not in axes]
        if axes and left == sorted(left) and not attributes(chain[-1]).get("keepdims", 1):
            graph.redirect(chain[0], transpose.output[0], transpose.input[0])
            _set_axes(graph, chain[-1], sorted(perm[axis] for axis in axes))
    graph.prune()


def _until_reduce(graph: Graph, transpose: NodeProto) -> list[NodeProto]:
    """The activations behind a Transpose, and the reduction behind them; [] where anything else reads one of them."""
    chain: list[NodeProto] = []
    tensor = transpose.output[0]
    while (
        len(readers := graph.consumers(tensor)) == 1 and tensor not in graph.outputs and readers[0].input[0] == tensor
    ):
        chain.append(readers[0])
        if readers[0].op_type in _REDUCES:
            return chain
        if readers[0].op_type not in _UNARY:
            break
        tensor = readers[0].output[0]
    return []


def _axes(graph: Graph, node: NodeProto, rank: int) -> list[int]:
    name = input_at(node, 1)
    axes = graph.constant(name).tolist() if graph.is_constant(name) else attributes(node).get("axes", ())
    return [int(axis) % rank for axis in axes]


def _set_axes(graph: Graph, node: NodeProto, axes: list[int]) -> None:
    if input_at(node, 1):
        name = graph.add_constant(graph.free_name(f"{node.output[0]}/axes"), np.array(axes, np.int64))
        graph.set_inputs(node, [node.input[0], name])
        return
    kept = [attribute for attribute in node.attribute if attribute.name != "axes"]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("axes", axes)])
