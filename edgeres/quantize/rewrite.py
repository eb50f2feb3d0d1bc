"""Plan + FP32 graph -> Q/DQ graph.

    before:  x ----------------> Conv(W, b)
    after:   x -> Q -> DQ -----> Conv(DQ(codes of W), b)

Zero points that TensorRT does not take are folded into what is around (:mod:`edgeres.quantize.zero_points`).

Readers of ``x`` that the plan does not name keep the float tensor. Reasons travel with the file, in ``metadata_props``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeres.graph.graph import prune
from edgeres.quantize.zero_points import fold_zero_points
from edgeres.records import Edge, HalfEdge, QuantParams, QuantPlan

PLAN_KEY = "edgeres.plan"
_SUFFIXES = ("_q", "_dq", "_scale", "_zero_point", "_half", "_float")


def rewrite(model: onnx.ModelProto, plan: QuantPlan) -> onnx.ModelProto:
    """The Q/DQ graph for the plan's runtime; the graph given is not changed."""
    result = insert_pairs(model, plan)
    if plan.style == "tensorrt":
        result = fold_zero_points(result)
        onnx.checker.check_model(result)
    return result


def insert_pairs(model: onnx.ModelProto, plan: QuantPlan) -> onnx.ModelProto:
    """The plan's Q/DQ pairs with its zero points, which TensorRT would not take, and no other change.

    Every tensor of the model that is still there holds what it stands for, so this is the form in which inner tensors
    can be compared. The codes are those of :func:`rewrite`.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    by_name = {node.name: node for node in graph.node}
    after: dict[str, list[onnx.NodeProto]] = {}
    producer = {name: node.name for node in graph.node for name in node.output}
    moves: list[tuple[Edge | HalfEdge, list[onnx.NodeProto]]] = [
        *((edge, _pair(graph, edge)) for edge in plan.edges),
        *((half, _half(graph, half)) for half in plan.halves),
    ]
    for move, pair in moves:
        after.setdefault(producer.get(move.tensor, ""), []).extend(pair)
        for reader in move.consumers:
            _redirect(by_name[reader], move.tensor, pair[-1].output[0])
    for weight in plan.weights:
        node = by_name[weight.node]
        # The same initializer may serve two layers with two scales, hence the layer's name in the tensor's.
        shared = _readers(model, weight.tensor) > 1
        name = _free(graph, f"{weight.tensor}.{weight.node}" if shared else weight.tensor)
        after.setdefault("", []).append(_constant(graph, name, weight.codes, weight.params))
        _redirect(node, weight.tensor, f"{name}_dq")
    ordered = list(after.get("", ()))
    for node in graph.node:
        ordered.append(node)
        ordered.extend(after.get(node.name, ()))
    del graph.node[:]
    graph.node.extend(ordered)
    del graph.value_info[:]
    prune(graph, [output.name for output in graph.output])
    _note_decisions(result, plan)
    onnx.checker.check_model(result)
    return result


def _pair(graph: onnx.GraphProto, edge: Edge) -> list[onnx.NodeProto]:
    name = _free(graph, edge.tensor)
    inputs = _parameters(graph, name, edge.params)
    return [
        helper.make_node("QuantizeLinear", [edge.tensor, *inputs], [f"{name}_q"], name=f"{name}_QuantizeLinear"),
        helper.make_node("DequantizeLinear", [f"{name}_q", *inputs], [f"{name}_dq"], name=f"{name}_DequantizeLinear"),
    ]


def _free(graph: onnx.GraphProto, tensor: str) -> str:
    """The tensor's name, lengthened until what is named after it collides with nothing that the exporter named."""
    taken = {constant.name for constant in graph.initializer}.union(*(node.output for node in graph.node))
    while any(f"{tensor}{suffix}" in taken for suffix in _SUFFIXES):
        tensor += "_"
    return tensor


def _half(graph: onnx.GraphProto, half: HalfEdge) -> list[onnx.NodeProto]:
    name = _free(graph, half.tensor)
    return [
        helper.make_node("Cast", [half.tensor], [f"{name}_half"], name=f"{name}_ToHalf", to=TensorProto.FLOAT16),
        helper.make_node("Cast", [f"{name}_half"], [f"{name}_float"], name=f"{name}_ToFloat", to=TensorProto.FLOAT),
    ]


def _constant(graph: onnx.GraphProto, name: str, codes: npt.NDArray[np.generic], params: QuantParams) -> onnx.NodeProto:
    graph.initializer.append(numpy_helper.from_array(codes, f"{name}_q"))
    inputs = [f"{name}_q", *_parameters(graph, name, params)]
    return helper.make_node(
        "DequantizeLinear", inputs, [f"{name}_dq"], name=f"{name}_DequantizeLinear", axis=params.axis
    )


def _parameters(graph: onnx.GraphProto, tensor: str, params: QuantParams) -> Sequence[str]:
    scale = np.asarray(params.scale, np.float32)
    zero = np.full(scale.shape, params.zero_point, params.dtype)
    graph.initializer.append(numpy_helper.from_array(scale, f"{tensor}_scale"))
    graph.initializer.append(numpy_helper.from_array(zero, f"{tensor}_zero_point"))
    return f"{tensor}_scale", f"{tensor}_zero_point"


def _redirect(node: onnx.NodeProto, old: str, new: str) -> None:
    for index, name in enumerate(node.input):
        if name == old:
            node.input[index] = new


def _readers(model: onnx.ModelProto, tensor: str) -> int:
    return sum(tensor in node.input for node in model.graph.node)


def _note_decisions(model: onnx.ModelProto, plan: QuantPlan) -> None:
    decisions = {
        "style": plan.style,
        "calibration": plan.calibration_digest,
        "quantized": {edge.tensor: edge.reason for edge in plan.edges},
        "half": {half.tensor: half.reason for half in plan.halves},
        "skipped": [[item.what, item.reason] for item in plan.skipped],
    }
    helper.set_model_props(model, {PLAN_KEY: json.dumps(decisions)})
