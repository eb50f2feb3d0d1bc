"""Make the batch of a graph dynamic: rewrite the operators that name its size so that any number of images passes.

The result is a claim that :func:`edgeres.graph.probe.compare` proves or refutes with two images more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, helper

from edgeres.graph.graph import Graph, attributes, input_at

BATCH = "batch"

BROADCASTING = ("Add", "Sub", "Mul", "Div", "Min", "Max", "Pow", "Where")
_Dims = Sequence[onnx.TensorShapeProto.Dimension]


def free_batch(model: ModelProto, batch: int | None) -> None:
    """Make the batch dynamic; the model, with the shapes of its tensors in ``value_info``, is changed.

    Args:
        batch: the size that the graph fixes; None: it is dynamic already, but for what tracing one image left behind.
    """
    graph = Graph(model)
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    shapes = _Shapes({value.name: value.type.tensor_type.shape.dim for value in values}, batch)
    for node in list(graph.nodes):
        if node.op_type in _REWRITES and node.input:
            _REWRITES[node.op_type](graph, node, shapes)
    graph.prune()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = BATCH


@dataclass(frozen=True)
class _Shapes:
    """Shapes by tensor, as far as they are known, and the batch that the graph fixes."""

    known: Mapping[str, _Dims]
    batch: int | None

    def of(self, tensor: str) -> _Dims:
        return self.known.get(tensor, ())

    def counts_images(self, tensor: str) -> bool:
        """Whether a tensor's first axis has the size of the batch."""
        first = next(iter(self.of(tensor)), None)
        if first is None:
            return False
        return bool(first.dim_param == BATCH if self.batch is None else first.dim_value == self.batch)

    def key(self, tensor: str) -> tuple[str, ...]:
        """The sizes by number or name; () where one is unknown."""
        sizes = tuple(dim.dim_param or str(dim.dim_value or "") for dim in self.of(tensor))
        return sizes if all(sizes) else ()

    def behind(self, tensor: str) -> list[int]:
        """The sizes behind the first axis; -1 for unknown ones."""
        return [dim.dim_value or -1 for dim in self.of(tensor)[1:]]


def _reshape(graph: Graph, node: NodeProto, shapes: _Shapes) -> None:
    """0 copies the batch; -1 stands for a multiple of it. Exports with one image leave a 1 behind a free batch."""
    before, after = (next(iter(shapes.of(names[0])), None) for names in (node.input, node.output))
    if before is None or after is None:
        return
    batch = shapes.batch
    left, right = (shapes.behind(name) for name in (node.input[0], node.output[0]))
    same = -1 not in (*left, *right) and prod(left) == prod(right)
    images = shapes.counts_images(node.output[0]) or (batch is None and (after.dim_value == 1 or same))
    if shapes.counts_images(node.input[0]) and images:
        first = 0
    elif batch and all(dim.dim_value and dim.dim_value % batch == 0 for dim in (before, after)):
        first = -1
    else:
        return
    sizes = [first, *shapes.behind(node.output[0])]
    if sizes.count(-1) <= 1:
        _set_input(graph, node, 1, np.array(sizes, np.int64))
        del node.attribute[:]  # with allowzero the 0 would be a size


def _squeeze(graph: Graph, node: NodeProto, shapes: _Shapes) -> None:
    """Explicit axes: the batch may be one image, and is kept."""
    if len(node.input) == 1 and shapes.batch is None and shapes.counts_images(node.input[0]):
        axes = [axis for axis, dim in enumerate(shapes.of(node.input[0])) if axis and dim.dim_value == 1]
        _set_input(graph, node, 1, np.array(axes, np.int64))


def _resize(graph: Graph, node: NodeProto, shapes: _Shapes) -> None:
    source, output = node.input[0], node.output[0]
    if input_at(node, 3) and shapes.counts_images(source) and shapes.counts_images(output):
        give_scales(graph, node, shapes.behind(source), shapes.behind(output))


def give_scales(graph: Graph, node: NodeProto, before: Sequence[int], after: Sequence[int]) -> bool:
    """Give a Resize scales in place of sizes, of which the batch is one; ONNX Runtime makes scales of sizes too.

    Args:
        before, after: the sizes of its input and output behind the batch.

    Returns:
        Whether it is done: sizes of some axes, and those that keep the aspect ratio, stay.
    """
    given = attributes(node)
    plain = not given.get("axes") and given.get("keep_aspect_ratio_policy", b"stretch") == b"stretch"
    if not plain or min(*before, *after) < 1:
        return False
    sizes = np.array(before, np.float32)
    scales = (np.array(after) / sizes).astype(np.float32)
    larger = np.nextafter(scales, np.float32(np.inf))
    fitting = np.where(np.floor(sizes * scales) < after, larger, scales)
    _set_input(graph, node, 2, np.array([1, *fitting], np.float32))
    return True


def _expand(graph: Graph, node: NodeProto, shapes: _Shapes) -> None:
    """No Expand where its readers broadcast; else 1 in place of the batch, which leaves the axis as it is."""
    source, output = node.input[0], node.output[0]
    whole = shapes.key(output)
    readers = graph.consumers(output)
    if whole and output not in graph.outputs and all(_broadcasts(reader, output, whole, shapes) for reader in readers):
        for reader in readers:
            graph.redirect(reader, output, source)
    elif shapes.counts_images(source) and shapes.counts_images(output) and graph.is_constant(node.input[1]):
        sizes = graph.constant(node.input[1]).copy()
        if sizes.size == len(shapes.of(output)):
            sizes[0] = 1
            _set_input(graph, node, 1, sizes)


def _broadcasts(reader: NodeProto, tensor: str, whole: tuple[str, ...], shapes: _Shapes) -> bool:
    """Whether a node takes a tensor to this shape itself, since another input has it."""
    others = [name for name in reader.input if name != tensor]
    return reader.op_type in BROADCASTING and any(shapes.key(name) == whole for name in others)


def _concat(graph: Graph, node: NodeProto, shapes: _Shapes) -> None:
    """A constant that is the same for every image is repeated for each, as the classification token of a transformer.

    Before:
        Concat(x, constant of N equal rows)
    After:
        Concat(x, Expand(row, sizes of x's batch and of the row))
    """
    source = next((name for name in node.input if not graph.is_constant(name) and shapes.counts_images(name)), None)
    if source is None or attributes(node)["axis"] % len(shapes.of(source)) == 0:
        return
    for index, name in enumerate(node.input):
        rows = graph.constant(name) if graph.is_constant(name) else np.zeros(0)
        if rows.ndim and len(rows) == (shapes.batch or 1) and (rows == rows[:1]).all():
            stem = graph.free_name(f"{node.output[0]}/rows_{index}", ("", "_batch", "_sizes", "_row"))
            row = graph.add_constant(f"{stem}_row", rows[:1])
            rest = graph.add_constant(f"{stem}_rest", np.array(rows.shape[1:], np.int64))
            made = [
                helper.make_node("Shape", [source], [f"{stem}_batch"], start=0, end=1),
                helper.make_node("Concat", [f"{stem}_batch", rest], [f"{stem}_sizes"], axis=0),
                helper.make_node("Expand", [row, f"{stem}_sizes"], [stem]),
            ]
            graph.insert(made, before=node)
            graph.set_inputs(node, [stem if i == index else other for i, other in enumerate(node.input)])


def _joined(graph: Graph, node: NodeProto, shapes: _Shapes) -> None:
    """One row of a constant with an equal row for every image: it is broadcast."""
    batch = shapes.batch or 1
    rank = len(shapes.of(node.output[0]))
    for index, name in enumerate(node.input):
        rows = graph.constant(name) if graph.is_constant(name) else np.zeros(0)
        if batch > 1 and rows.ndim == rank > 0 and len(rows) == batch and (rows == rows[:1]).all():
            _set_input(graph, node, index, rows[:1])


_REWRITES: dict[str, Callable[[Graph, NodeProto, _Shapes], None]] = {
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Resize": _resize,
    "Expand": _expand,
    "Concat": _concat,
    **dict.fromkeys(BROADCASTING, _joined),
}


def _set_input(graph: Graph, node: NodeProto, index: int, values: npt.NDArray[np.generic]) -> None:
    """Give a node another constant; a Resize with scales has no sizes."""
    name = graph.add_constant(graph.free_name(f"{node.output[0]}/{node.op_type.lower()}_{index}"), values)
    behind = [] if node.op_type == "Resize" else node.input[index + 1 :]
    graph.set_inputs(node, [*node.input[:index], name, *behind])
