"""Take post-processing off a foreign graph, and tell features from scores.

scores -> TopK, ArgMax, ... -> values, indices      becomes      scores
"""

from __future__ import annotations

from onnx import ModelProto, NodeProto, helper, shape_inference

from edgeres.errors import ModelError
from edgeres.graph.graph import Graph
from edgeres.graph.interface import OTHER_ANSWERS

# Operators that select among scores. What comes behind them has no row of scores in the order of the classes.
_SELECTING = frozenset({"TopK", "ArgMax", "ArgMin", "NonMaxSuppression", "Hardmax", "Multinomial"})
_LAYERS = frozenset({"Conv", "Gemm", "MatMul", "ConvTranspose", "Einsum"})
# Operators of one activation behind the last layer of a classifier, or behind the pooling of features.
_THROUGH = frozenset(
    {"Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Dropout", "Cast", "Softmax", "LogSoftmax"}
    | {"Sigmoid", "Relu", "Clip", "LeakyRelu", "HardSwish", "ReduceMean", "GlobalAveragePool", "AveragePool"}
    | {"GlobalMaxPool", "MaxPool", "BatchNormalization"}
)
_POOLS = frozenset({"ReduceMean", "GlobalAveragePool", "GlobalMaxPool", "AveragePool"})


def take_scores_before_selection(model: ModelProto, where: object) -> str | None:
    """Make the scores that TopK, ArgMax or the like select from the output; the model is changed.

    Only what no layer follows is post-processing: a network may select within itself.

    Returns:
        What was taken off, in words; None: nothing.

    Raises:
        ModelError: they select from several tensors.
    """
    graph = Graph(model)
    found = [node for node in graph.of(*_SELECTING) if _is_last(graph, node)]
    first = [
        node for node in found if not any(_depends(graph, node.input[0], other) for other in found if other != node)
    ]
    sources = list(dict.fromkeys(node.input[0] for node in first))
    if not sources:
        return None
    kinds = ", ".join(dict.fromkeys(node.op_type for node in found))
    dropped = [value.name for value in model.graph.output if any(_depends(graph, value.name, node) for node in found)]
    if not dropped:
        return None
    if len(sources) > 1:
        what = f"{kinds} select from {len(sources)} tensors ({', '.join(sources)})"
        raise ModelError(what, where=where, hint="export the scores themselves, one (N, classes) output")
    kept = [value for value in model.graph.output if value.name == sources[0]]
    if not kept:
        types = {value.name: value for value in shape_inference.infer_shapes(model).graph.value_info}
        known = types.get(sources[0])
        if known is None:
            known = helper.make_tensor_value_info(sources[0], model.graph.input[0].type.tensor_type.elem_type, None)
        kept = [known]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    Graph(model).prune()
    return f"{kinds} taken off ({', '.join(dropped)}): the output is {sources[0]}, the scores before it"


def refuse_features(graph: Graph, where: object) -> str | None:
    """Tell from a canonical graph whether the output is features that nothing classifies.

    Returns:
        A note where it may be so: a mean over a map of features that a convolution made. A classifier may end so, too.

    Raises:
        ModelError: the output is a pooled sum of residual branches, or is normalized to length 1.
    """
    output = graph.source_of(graph.output)
    hint = f"export the network with its classifier; {OTHER_ANSWERS}"
    if _has_unit_length(graph, output):
        what = f"output {graph.output} is normalized to length 1, as embeddings are; these are no scores of classes"
        raise ModelError(what, where=where, hint=hint)
    node, pooled = graph.producer(output), False
    while node is not None and node.op_type in _THROUGH:
        pooled |= node.op_type in _POOLS
        node = graph.producer(node.input[0])
    if not pooled or node is None:
        return None
    if node.op_type == "Concat" or graph.is_residual_add(node):
        what = f"output {graph.output} is pooled features ({node.op_type} {node.name}), and nothing classifies them"
        raise ModelError(what, where=where, hint=hint)
    return f"no layer stands behind the pooling of {node.name}: figures are void if the output is features, not scores"


def _is_last(graph: Graph, node: NodeProto) -> bool:
    """Whether the image reaches it and no layer is computed from it."""
    if graph.is_constant(node.input[0]) or set(graph.inputs).isdisjoint(graph.ancestors(node.input[0])):
        return False
    return not any(layer.op_type in _LAYERS and _depends(graph, layer.output[0], node) for layer in graph.nodes)


def _depends(graph: Graph, tensor: str, node: NodeProto) -> bool:
    return not graph.ancestors(tensor).isdisjoint(node.output)


def _has_unit_length(graph: Graph, tensor: str) -> bool:
    """Whether it ends in x / ||x||: a LpNormalization, or a Div by a norm of the same tensor."""
    node = graph.producer(tensor)
    if node is None or node.op_type != "Div":
        return node is not None and node.op_type == "LpNormalization"
    return any(_depends(graph, node.input[1], other) and _is_norm(graph, other, node.input[0]) for other in graph.nodes)


def _is_norm(graph: Graph, node: NodeProto, tensor: str) -> bool:
    """Whether a node computes the length of this tensor, or its square."""
    if node.op_type == "ReduceSum":
        square = graph.producer(node.input[0])
        return square is not None and square.op_type in {"Mul", "Pow"} and set(square.input[:1]) == {tensor}
    return node.op_type in {"ReduceL2", "ReduceSumSquare"} and node.input[0] == tensor
