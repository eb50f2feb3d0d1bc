"""Fold what a graph computes from the sizes of its tensors: all sizes but the batch are known once the image's are.

    before    x.sum((2, 3)) / (Shape(x)[2] * Shape(x)[3])      and a padding computed from Shape(x)
    after     x.sum((2, 3)) / 64                               and constant pads

The values come from ONNX Runtime, which runs the graph with two batch sizes: what is the same in both runs and is
computed from nothing but sizes becomes a constant. What depends on the batch becomes a 0 or -1 of a Reshape, or stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, helper

from edgeres.errors import ModelError
from edgeres.graph.free_batch import BROADCASTING, give_scales
from edgeres.graph.graph import Graph, attributes, input_at
from edgeres.graph.probe import opened

_BATCHES = (2, 5)
_SIZES = frozenset({"Shape", "Size"})
_RANDOM = ("Random", "Bernoulli", "Multinomial")

# Values of a tensor, one for each batch size.
_Seen = Mapping[str, Sequence[npt.NDArray[Any]]]


def fold_sizes(model: ModelProto, batch: int | None) -> bool:
    """Replace what is computed from sizes by constants; the model, with float32 images as its input, is changed.

    Args:
        batch: the size that the graph is written for; None: any.

    Returns:
        Whether anything was changed; a graph that does not run with several batch sizes stays as it is.
    """
    graph = Graph(model)
    sized = _computed_from_sizes(graph)
    gathers = [node for node in graph.of("Gather") if _reads_flat(graph, node)]
    flat = [tensor for node in gathers for tensor in (*node.input[:2], graph.writer(node.input[0]).input[0])]
    reshapes = [node for node in graph.of("Reshape") if node.input[1] in sized]
    resizes = [node for node in graph.of("Resize") if input_at(node, 3) in sized]
    expands = [node for node in graph.of("Expand") if node.input[1] in sized]
    shaped = [name for node in (*reshapes, *resizes, *expands) for name in (node.input[0], node.output[0])]
    shaped += [name for node in expands for reader in graph.consumers(node.output[0]) for name in reader.input if name]
    if not sized and not gathers:
        return False
    batches = _BATCHES if batch is None else (batch,)
    try:
        seen = _run(graph, list(dict.fromkeys([*sized, *flat, *shaped])), batches)
    except ModelError:
        return False
    changed = sum(_read_by_image(graph, node, seen, batches) for node in gathers)
    changed += sum(_reshape_by_image(graph, node, seen, batches) for node in reshapes)
    changed += sum(_resize_by_image(graph, node, seen, batches) for node in resizes)
    changed += sum(_leave_to_broadcasting(graph, node, seen) for node in expands)
    changed += sum(_make_constant(graph, tensor, seen[tensor]) for tensor in sized)
    changed += sum(_sizes_of_the_batch(graph, tensor, seen[tensor], batches) for tensor in sized)
    graph.prune()
    return changed > 0


def _computed_from_sizes(graph: Graph) -> list[str]:
    """Tensors that no value of the image reaches, only sizes."""
    found: dict[str, None] = {}
    for node in graph.nodes:
        if node.op_type.startswith(_RANDOM) or any(attribute.HasField("g") for attribute in node.attribute):
            continue
        given = [name for name in node.input if name and not graph.is_constant(name)]
        if node.op_type in _SIZES or (given and all(name in found for name in given)):
            found.update(dict.fromkeys(filter(None, node.output)))
    return list(found)


def _run(graph: Graph, tensors: list[str], batches: Sequence[int]) -> dict[str, list[npt.NDArray[Any]]]:
    """The values of these tensors for black images, one array per batch size."""
    model = deepcopy(graph.model)
    given = {name for name in tensors if graph.is_constant(name)}
    computed = [name for name in tensors if name not in given and name not in graph.inputs]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in computed)
    Graph(model).prune()
    size = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][1:]
    seen: dict[str, list[npt.NDArray[Any]]] = {name: [graph.constant(name)] * len(batches) for name in given}
    run = opened(model, None)
    for batch in batches:
        images = np.zeros((batch, *size), np.float32)
        seen.setdefault(graph.input, []).append(images)
        for name, values in zip(computed, run(images, computed), strict=True):
            seen.setdefault(name, []).append(values)
    return seen


def _make_constant(graph: Graph, tensor: str, seen: Sequence[npt.NDArray[Any]]) -> bool:
    first, node = seen[0], graph.producer(tensor)
    if node is None or any(first.shape != other.shape or not np.array_equal(first, other) for other in seen[1:]):
        return False
    name = graph.add_constant(graph.free_name(f"{tensor}/value"), first)
    for reader in graph.consumers(tensor):
        graph.redirect(reader, tensor, name)
    return True


def _sizes_of_the_batch(graph: Graph, tensor: str, seen: Sequence[npt.NDArray[Any]], batches: Sequence[int]) -> bool:
    """Write sizes of which only the first depends on the batch, and is the batch, in one way.

    After:
        Concat(Shape(image, the first axis), the other sizes)
    """
    node, readers = graph.producer(tensor), graph.consumers(tensor)
    known = all(values.dtype == np.int64 and values.ndim == 1 and values.size for values in seen)
    if node is None or node.op_type == "Shape" or not known or not readers:
        return False
    if any(
        values[0] != batch or values[1:].tolist() != seen[0][1:].tolist()
        for batch, values in zip(batches, seen, strict=True)
    ):
        return False
    first = graph.producer(node.input[0])
    if node.op_type == "Concat" and len(node.input) == 2 and first is not None and attributes(first).get("end") == 1:
        return False  # it is written so
    stem = graph.free_name(f"{tensor}/sizes", ("", "_batch", "_rest"))
    rest = graph.add_constant(f"{stem}_rest", seen[0][1:])
    batch = helper.make_node("Shape", [graph.input], [f"{stem}_batch"], start=0, end=1)
    graph.insert([batch, helper.make_node("Concat", [f"{stem}_batch", rest], [stem], axis=0)])
    for reader in readers:
        graph.redirect(reader, tensor, stem)
    return True


def _reshape_by_image(graph: Graph, node: NodeProto, seen: _Seen, batches: Sequence[int]) -> bool:
    """Give a Reshape to sizes that depend on the batch alone a constant target: 0 or -1 for the batch."""
    shapes = np.array([values.shape for values in seen[node.output[0]]])
    varying = np.flatnonzero((shapes != shapes[0]).any(axis=0)) if shapes.size else np.zeros(0)
    if len(varying) != 1:
        return False
    target = shapes[0].copy()
    whole = [values.shape[:1] for values in seen[node.input[0]]] == [(batch,) for batch in batches]
    target[varying[0]] = 0 if varying[0] == 0 and whole and list(shapes[:, 0]) == list(batches) else -1
    _set_inputs(graph, node, [node.input[0]], target)
    return True


def _resize_by_image(graph: Graph, node: NodeProto, seen: _Seen, batches: Sequence[int]) -> bool:
    """Give a Resize to sizes that depend on the batch alone constant scales."""
    before, after = ([values.shape for values in seen[name]] for name in (node.input[0], node.output[0]))
    each = {(then[1:], now[1:]) for then, now in zip(before, after, strict=True)}
    images = all(shape[0] == batch for shapes in (before, after) for shape, batch in zip(shapes, batches, strict=True))
    return images and len(each) == 1 and give_scales(graph, node, *each.pop())


def _leave_to_broadcasting(graph: Graph, node: NodeProto, seen: _Seen) -> bool:
    """Drop an Expand whose readers broadcast, each beside another tensor that has the shape already."""
    output, readers = node.output[0], graph.consumers(node.output[0])
    whole = [values.shape for values in seen[output]]
    for reader in readers:
        others = [name for name in reader.input if name != output]
        if not any([values.shape for values in seen[name]] == whole for name in others):
            return False
    if output in graph.outputs or any(reader.op_type not in BROADCASTING for reader in readers):
        return False
    for reader in readers:
        graph.redirect(reader, output, node.input[0])
    return bool(readers)


def _reads_flat(graph: Graph, node: NodeProto) -> bool:
    """Whether a Gather picks from all values of a tensor in a row, as torch's as_strided is exported."""
    flat = graph.producer(node.input[0])
    if flat is None or flat.op_type != "Reshape" or attributes(node).get("axis", 0) != 0:
        return False
    return graph.is_constant(flat.input[1]) and graph.constant(flat.input[1]).tolist() == [-1]


def _read_by_image(graph: Graph, node: NodeProto, seen: _Seen, batches: Sequence[int]) -> bool:
    """Let a Gather from all values in a row read each image for itself, where it picks the same places of each.

    Before:
        Reshape(x, [-1]) -> Gather(indices (N, 512, 1, 1))
    After:
        Reshape(x, [0, -1]) -> Gather(places (512, 1, 1), axis 1), or Reshape(x, [0, 512, 1, 1]) for all in their order
    """
    source = graph.writer(node.input[0]).input[0]
    for batch, values, indices in zip(batches, seen[source], seen[node.input[1]], strict=True):
        if not (values.ndim and indices.ndim and values.shape[0] == indices.shape[0] == batch):
            return False
        each = values[0].size
        places = indices[0]
        starts = np.arange(batch).reshape(-1, *[1] * places.ndim) * each
        if not np.array_equal(indices, starts + places) or places.min() < 0 or places.max() >= each:
            return False
    if np.array_equal(places.reshape(-1), np.arange(each)):
        node.op_type = "Reshape"
        del node.attribute[:]
        _set_inputs(graph, node, [source], np.array([0, *places.shape]))
        return True
    rows = graph.add_constant(graph.free_name(f"{node.output[0]}/rows_shape"), np.array([0, -1]))
    flat = graph.free_name(f"{node.output[0]}/rows")
    graph.insert([helper.make_node("Reshape", [source, rows], [flat])], before=node)
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("axis", 1))
    _set_inputs(graph, node, [flat], places)
    return True


def _set_inputs(graph: Graph, node: NodeProto, inputs: Sequence[str], last: npt.NDArray[Any]) -> None:
    name = graph.add_constant(graph.free_name(f"{node.output[0]}/{node.op_type.lower()}"), last.astype(np.int64))
    graph.set_inputs(node, [*inputs, name])
    if node.op_type == "Reshape":
        del node.attribute[:]  # with allowzero the 0 would be a size
