"""Write the Q/DQ graph of a plan.

    before:  x ----------------> Conv(W, b)
    after:   x -> Q -> DQ -----> Conv(DQ(codes of W), b)

Zero points that TensorRT does not take are folded into the nodes around (:mod:`edgeres.quantize.zero_points`).

Readers of ``x`` that the plan does not name keep the float tensor. The plan's reasons are kept in the file, in
``metadata_props``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from edgeres.documents import DocumentKind
from edgeres.errors import ModelError
from edgeres.graph.graph import Graph
from edgeres.quantize.zero_points import fold_zero_points
from edgeres.records import Edge, HalfEdge, QuantParams, QuantPlan, Style

PLAN_KEY = "edgeres.plan"  # of the entry with PlanNotes in a graph's metadata
_SUFFIXES = ("_q", "_dq", "_scale", "_zero_point", "_half", "_float")


@dataclass(frozen=True)
class PlanNotes:
    """What a graph says about its quantization: reasons by tensor, and of what stays in float."""

    style: Style | None = None
    calibration: str = ""
    quantized: Mapping[str, str] = field(default_factory=dict)
    half: Mapping[str, str] = field(default_factory=dict)
    skipped: tuple[tuple[str, str], ...] = ()


PLAN_NOTES = DocumentKind(PlanNotes, "notes of a plan", "quantize the model again", error=ModelError)


def rewrite(model: ModelProto, plan: QuantPlan) -> ModelProto:
    """The Q/DQ graph for the plan's runtime; the graph given is not changed."""
    result = insert_pairs(model, plan)
    if plan.style == "tensorrt":
        result = fold_zero_points(result)
        onnx.checker.check_model(result)
        return result
    return _pad_codes(result)


def insert_pairs(model: ModelProto, plan: QuantPlan) -> ModelProto:
    """The plan's Q/DQ pairs with its zero points, which TensorRT would not take, and no other change.

    Every tensor of the model that is still there has the same meaning, so inner tensors can be compared in this form.
    The codes are those of :func:`rewrite`.
    """
    before = Graph(model)
    readers = {weight.tensor: len(before.consumers(weight.tensor)) for weight in plan.weights}
    coded = Counter(weight.tensor for weight in plan.weights)
    graph = Graph(_copy_without(model, {name for name in coded if coded[name] == readers[name]} - {*before.outputs}))
    del graph.model.graph.value_info[:]
    # New nodes by the name of the node that they follow; "" for the front of the graph.
    made: dict[str, list[NodeProto]] = {"": []}
    moves: tuple[Edge | HalfEdge, ...] = (*plan.edges, *plan.halves)
    for move in moves:
        source = graph.producer(move.tensor)
        name = graph.free_name(move.tensor, _SUFFIXES)
        pair = _pair(graph, name, move) if isinstance(move, Edge) else _casts(name, move)
        made.setdefault("" if source is None else source.name, []).extend(pair)
        for reader in move.consumers:
            graph.redirect(graph.node(reader), move.tensor, pair[-1].output[0])
    for weight in plan.weights:
        # An initializer may serve two layers with two scales: then the layer's name is part of the tensor's.
        stem = f"{weight.tensor}.{weight.node}" if readers[weight.tensor] > 1 else weight.tensor
        name = graph.free_name(stem, _SUFFIXES)
        codes = graph.add_constant(f"{name}_q", weight.codes)
        made[""].append(_dequantize(name, [codes, *_parameters(graph, name, weight.params)], axis=weight.params.axis))
        graph.redirect(graph.node(weight.node), weight.tensor, f"{name}_dq")
    for behind, nodes in made.items():
        graph.insert(nodes, behind=graph.node(behind) if behind else None)
    result = graph.done()
    _note_decisions(result, plan)
    return result


def _copy_without(model: ModelProto, names: Set[str]) -> ModelProto:
    """A copy in which these initializers have no values: their codes take their place, and they are pruned.

    They are nearly all of a model's size. Copied with it, they would be held twice.
    """
    copy = ModelProto()
    for source, target in ((model, copy), (model.graph, copy.graph)):
        for kind, value in source.ListFields():
            if kind.name in ("graph", "initializer"):
                continue
            if hasattr(value, "extend"):
                getattr(target, kind.name).extend(value)
            elif hasattr(value, "CopyFrom"):
                getattr(target, kind.name).CopyFrom(value)
            else:
                setattr(target, kind.name, value)
    for tensor in model.graph.initializer:
        added = copy.graph.initializer.add()
        if tensor.name in names:
            added.name, added.data_type = tensor.name, tensor.data_type
            added.dims.extend(tensor.dims)
        else:
            added.CopyFrom(tensor)
    return copy


def _pad_codes(model: ModelProto) -> ModelProto:
    """Let every Pad between two equal pairs read and write codes, which ONNX Runtime leaves in float.

    Before:
        DQ -> Pad(0) -> Q -> DQ
    After:
        Pad(zero point) -> DQ
    """
    graph = Graph(model)
    for pad in graph.of("Pad"):
        dequantize, readers = graph.producer(pad.input[0]), graph.consumers(pad.output[0])
        if dequantize is None or dequantize.op_type != "DequantizeLinear" or len(readers) != 1:
            continue
        (quantize,) = readers
        equal = quantize.op_type == "QuantizeLinear" and all(
            np.array_equal(graph.constant(a), graph.constant(b))
            for a, b in zip(dequantize.input[1:], quantize.input[1:], strict=True)
        )
        if not equal or pad.output[0] in graph.outputs:
            continue
        written, pads, rest = quantize.output[0], pad.input[1], pad.input[3:]
        graph.remove(quantize)
        graph.remove(pad)
        inputs = [dequantize.input[0], pads, dequantize.input[2], *rest]
        moved = helper.make_node("Pad", inputs, [written], pad.name)
        moved.attribute.extend(pad.attribute)
        graph.insert([moved], behind=graph.producer(dequantize.input[0]))
    return graph.done()


def _pair(graph: Graph, name: str, edge: Edge) -> list[NodeProto]:
    inputs = _parameters(graph, name, edge.params)
    quantize = helper.make_node("QuantizeLinear", [edge.tensor, *inputs], [f"{name}_q"], f"{name}_QuantizeLinear")
    return [quantize, _dequantize(name, [f"{name}_q", *inputs])]


def _dequantize(name: str, inputs: list[str], axis: int | None = None) -> NodeProto:
    return helper.make_node("DequantizeLinear", inputs, [f"{name}_dq"], f"{name}_DequantizeLinear", axis=axis)


def _casts(name: str, half: HalfEdge) -> list[NodeProto]:
    return [
        helper.make_node("Cast", [half.tensor], [f"{name}_half"], name=f"{name}_ToHalf", to=TensorProto.FLOAT16),
        helper.make_node("Cast", [f"{name}_half"], [f"{name}_float"], name=f"{name}_ToFloat", to=TensorProto.FLOAT),
    ]


def _parameters(graph: Graph, name: str, params: QuantParams) -> list[str]:
    scale = np.asarray(params.scale, np.float32)
    zero = np.full(scale.shape, params.zero_point, params.dtype)
    return [graph.add_constant(f"{name}_scale", scale), graph.add_constant(f"{name}_zero_point", zero)]


def _note_decisions(model: ModelProto, plan: QuantPlan) -> None:
    notes = PlanNotes(
        style=plan.style,
        calibration=plan.calibration_digest,
        quantized={edge.tensor: edge.reason for edge in plan.edges},
        half={half.tensor: half.reason for half in plan.halves},
        skipped=tuple((item.what, item.reason) for item in plan.skipped),
    )
    helper.set_model_props(model, {PLAN_KEY: json.dumps(PLAN_NOTES.content(notes))})
