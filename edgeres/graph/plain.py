"""Write a foreign graph in plain ONNX before anything reads it, and refuse graphs in training mode.

Plain: one name for ONNX's domain, no outputs that nothing reads, no weights that are standardized at run time, float32
in place of other floats.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgeres.errors import ModelError
from edgeres.graph.graph import Graph, attributes, input_at, opset_of

_RANDOM = ("Random", "Bernoulli", "Multinomial")
# Attributes that hold a data type.
_TYPED = frozenset({"to", "dtype"})
_LARGEST = float(np.finfo(np.float32).max)


def plain_domains(model: ModelProto) -> None:
    """Give operators of ONNX the empty domain, which "ai.onnx" is another name for; the model is changed."""
    version = opset_of(model)
    others = [entry for entry in model.opset_import if entry.domain not in {"", "ai.onnx"}]
    if len(others) < len(model.opset_import):
        others.insert(0, onnx.helper.make_opsetid("", version))
    del model.opset_import[:]
    model.opset_import.extend(others)
    for function in model.functions:
        for entry in function.opset_import:
            entry.domain = "" if entry.domain == "ai.onnx" else entry.domain
    for node in _all_nodes(model):
        if node.domain == "ai.onnx":
            node.domain = ""


def drop_unread_outputs(model: ModelProto) -> None:
    """Drop the mask of a Dropout and the statistics of a batch norm in inference mode, where nothing reads them.

    ONNX Runtime refuses such a batch norm. Before opset 14 further outputs mean training mode: they are kept.
    """
    graph = Graph(model)
    for node in graph.of("Dropout", "BatchNormalization"):
        training = attributes(node).get("training_mode") or opset_of(model) < 14
        if node.op_type == "Dropout" or not training:
            while len(node.output) > 1 and graph.last_use(node.output[-1]) < 0:
                del node.output[-1]


def fold_standardized_weights(model: ModelProto) -> None:
    """Store weights that a batch norm in training mode standardizes; the model is changed.

    Networks without normalization of activations normalize each filter when they run (Qiao et al. 2019, Weight
    Standardization), and timm writes that as a batch norm of the weights: constant, whatever its mode.
    """
    graph = Graph(model)
    inputs = set(graph.inputs)
    found = [
        node
        for node in graph.of("BatchNormalization")
        if _training(graph, node, opset_of(model)) and inputs.isdisjoint(graph.ancestors(*filter(None, node.input)))
    ]
    if not found:
        return
    names = [node.output[0] for node in found]
    values = ReferenceEvaluator(_constants_alone(model, graph, names)).run(names, {})
    for node, stored in zip(found, values, strict=True):
        graph.remove(node)
        graph.add_constant(node.output[0], np.asarray(stored))


def _constants_alone(model: ModelProto, graph: Graph, names: Sequence[str]) -> ModelProto:
    """The part of a model that computes these tensors, which no input reaches."""
    wanted = graph.ancestors(*names)
    part = onnx.helper.make_graph(
        [node for node in graph.nodes if not wanted.isdisjoint(node.output)],
        "constants",
        [],
        [onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
        [tensor for tensor in model.graph.initializer if tensor.name in wanted],
    )
    return onnx.helper.make_model(part, opset_imports=model.opset_import, ir_version=model.ir_version)


def refuse_training(model: ModelProto, where: object) -> None:
    """Raise if a node drops values at random, draws random numbers or normalizes with the statistics of its batch.

    Raises:
        ModelError: it was exported in training mode.
    """
    graph = Graph(model)
    for node in graph.nodes:
        if why := _training(graph, node, opset_of(model)):
            what = f"exported in training mode: {node.op_type} {node.name or node.output[0]} {why}"
            raise ModelError(what, where=where, hint="export after model.eval()")


def _training(graph: Graph, node: NodeProto, opset: int) -> str:
    if node.op_type == "BatchNormalization":
        mode = attributes(node).get("training_mode") if opset >= 14 else len(list(filter(None, node.output))) > 1
        return "normalizes with the statistics of each batch" if mode else ""
    if node.op_type == "Dropout" and opset >= 12:
        on, ratio = (input_at(node, index) for index in (2, 1))
        kept = graph.is_constant(ratio) and not graph.constant(ratio).any()
        return "drops values at random" if graph.is_constant(on) and graph.constant(on).any() and not kept else ""
    return "draws random numbers" if node.op_type.startswith(_RANDOM) else ""


def single_precision(model: ModelProto, kinds: Collection[int]) -> int:
    """Make every tensor of these float types float32, but for the graph's inputs; the model is changed.

    Values beyond the range of float32 become its largest.

    Returns:
        The number of constants and nodes that were changed.
    """
    changed = 0
    for tensor in model.graph.initializer:
        changed += _make_single(tensor, kinds)
    for node in _all_nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                changed += _make_single(attribute.t, kinds)
            elif attribute.name in _TYPED and attribute.i in kinds:
                attribute.i = TensorProto.FLOAT
                changed += 1
    for graph in (model.graph, *_subgraphs(_all_nodes(model))):
        for value in (*graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type in kinds:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
    return changed


def float_types(model: ModelProto) -> set[int]:
    """Data types of a model's inputs, weights, constants and Casts."""
    found = {value.type.tensor_type.elem_type for value in model.graph.input}
    found |= {tensor.data_type for tensor in model.graph.initializer}
    for node in _all_nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                found.add(attribute.t.data_type)
            elif attribute.name in _TYPED:
                found.add(attribute.i)
    return found


def _make_single(tensor: TensorProto, kinds: Collection[int]) -> bool:
    if tensor.data_type not in kinds:
        return False
    values = numpy_helper.to_array(tensor)
    finite = np.where(np.isinf(values), values, np.clip(values, -_LARGEST, _LARGEST))
    tensor.CopyFrom(numpy_helper.from_array(finite.astype(np.float32), tensor.name))
    return True


def all_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """The tensors that a model, its functions and its subgraphs store."""
    for graph in (model.graph, *_subgraphs(_all_nodes(model))):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in _all_nodes(model):
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors) if attribute.HasField("t") else attribute.tensors


def _all_nodes(model: ModelProto) -> Iterator[NodeProto]:
    """The nodes of a model, of its functions and of its subgraphs."""
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in nodes:
            yield node
            for graph in _subgraphs([node]):
                yield from graph.node


def _subgraphs(nodes: Collection[NodeProto] | Iterator[NodeProto]) -> Iterator[onnx.GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield graph
                yield from _subgraphs(graph.node)
