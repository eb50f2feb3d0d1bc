"""The shapes of a graph's tensors for one image, and where nodes that only move values take each of them from.

A channel is followed through Reshape, Transpose, Split, Concat and the like by running the node on the numbers of its
input's elements: the output then holds, for every element, the number of the one it came from. Nothing is assumed
about where the channels are.

    Reshape (1, 4) -> (1, 2, 2), Transpose of the last two:   [0 1 2 3] -> [[0 2] [1 3]]
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from edgeres.graph.graph import Graph, Values, attributes
from edgeres.records import F32, I64
from edgeres.runtime.ort import OrtRunner

# Operators whose outputs are values of their data inputs, or fill. Resize is one where it takes the nearest value.
_MOVERS = frozenset(
    {"Identity", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Concat", "Gather"}
    | {"GatherElements", "Pad", "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "Resize", "Dropout"}
)
# The type of the numbers, where ONNX Runtime's kernel does not take int64.
_KINDS = {"Resize": TensorProto.INT32, "DepthToSpace": TensorProto.DOUBLE, "SpaceToDepth": TensorProto.DOUBLE}
# Constants of more values than this are no shapes.
_SMALL = 1024


class TensorLayout:
    """Shapes and moves in a canonical graph, for one image.

    Attributes:
        shape: of every float tensor but constants, with a batch of 1.

    Raises:
        ModelError: ONNX Runtime cannot run the graph.
    """

    def __init__(self, graph: Graph, image: F32) -> None:
        self.graph = graph
        types = {
            name: value.type.tensor_type for name, value in _inferred(graph.model, image.shape).items() if value.type
        }
        unknown = [name for name, kind in types.items() if _is_float(kind) and not _is_known(kind)]
        # Sizes that the graph computes: further inputs of nodes that move values.
        sizes = [
            name
            for node in graph.nodes
            if node.op_type in _MOVERS or node.op_type.startswith("Reduce")
            for name in self._others(node)
            if not graph.is_constant(name)
        ]
        kinds = {name: types[name].elem_type for name in dict.fromkeys([*unknown, *sizes]) if name in types}
        self._computed = _measured(graph.model, kinds, image)
        self.shape = {
            name: self._computed[name].shape if name in unknown else tuple(dim.dim_value for dim in kind.shape.dim)
            for name, kind in types.items()
            if _is_float(kind)
        }
        self._sources: dict[tuple[str, str], list[I64] | None] = {}

    def sources(self, node: NodeProto, tensor: str) -> list[I64] | None:
        """For each output of a node, where in ``tensor``, one of its inputs, its elements come from.

        Returns:
            By output, an array of its shape: positions in the flattened input, -1 for elements from elsewhere. None if
            the node does not only move values.
        """
        key = (node.name, tensor)
        if key not in self._sources:
            self._sources[key] = self._follow(node, tensor) if self._moves(node) else None
        return self._sources[key]

    def reduced(self, node: NodeProto) -> tuple[int, ...]:
        """The axes that a Reduce or a global pool reduces, from 0 on."""
        rank = len(self.shape[node.input[0]])
        if node.op_type.startswith("Global"):
            return tuple(range(2, rank))
        given = attributes(node)
        found = self.values(node.input[1]) if len(node.input) > 1 and node.input[1] else given.get("axes", ())
        axes = [int(axis) % rank for axis in (() if found is None else found)]
        return tuple(sorted(axes)) or (() if given.get("noop_with_empty_axes") else tuple(range(rank)))

    def _moves(self, node: NodeProto) -> bool:
        given = attributes(node)
        if node.op_type == "Pad":
            fill = node.input[2] if len(node.input) > 2 else ""
            zero = not fill or (self.graph.is_constant(fill) and not self.graph.constant(fill).any())
            return zero or given.get("mode", b"constant") != b"constant"
        if node.op_type == "Resize":
            return bool(given.get("mode", b"nearest") == b"nearest")
        return node.op_type in _MOVERS

    def _data(self, node: NodeProto) -> list[str]:
        """The inputs whose values are moved."""
        return list(node.input) if node.op_type == "Concat" else [node.input[0]]

    def _others(self, node: NodeProto) -> list[str]:
        return [] if node.op_type == "Concat" else [name for name in node.input[1:] if name]

    def _follow(self, node: NodeProto, tensor: str) -> list[I64]:
        """Run the node alone: ``tensor`` holds its elements' numbers from 1 on, other data and fill are 0."""
        kind = _KINDS.get(node.op_type, TensorProto.INT64)
        alone = NodeProto()
        alone.CopyFrom(node)
        if node.op_type == "Pad":  # the fill has the type of the data
            del alone.input[2:3]
            alone.input[2:2] = [""] if len(node.input) > 2 else []
        feed = {name: self._numbers(name, name == tensor, kind) for name in self._data(node)}
        others = {name: self.values(name) for name in filter(None, alone.input) if name not in feed}
        inputs = [helper.make_tensor_value_info(name, kind, value.shape) for name, value in feed.items()]
        outputs = [helper.make_tensor_value_info(name, kind, None) for name in alone.output if name]
        constants = [numpy_helper.from_array(value, name) for name, value in others.items() if value is not None]
        inner = helper.make_graph([alone], "alone", inputs, outputs, constants)
        model = helper.make_model(inner, opset_imports=self.graph.model.opset_import, ir_version=8)
        with OrtRunner(model.SerializeToString(), threads=1) as runner:
            found = runner.infer(feed)
        return [found[name].astype(np.int64) - 1 for name in alone.output if name]

    def _numbers(self, name: str, counted: bool, kind: int) -> Values:
        shape = self.graph.constant(name).shape if self.graph.is_constant(name) else self.shape[name]
        numbers = np.arange(1, np.prod(shape, dtype=np.int64) + 1).reshape(shape)
        return (numbers if counted else np.zeros_like(numbers)).astype(helper.tensor_dtype_to_np_dtype(kind))

    def values(self, name: str) -> Values | None:
        """A constant, or a size that the graph computes for one image; None if neither is known."""
        return self.graph.constant(name) if self.graph.is_constant(name) else self._computed.get(name)


def _inferred(model: ModelProto, image_shape: tuple[int, ...]) -> dict[str, onnx.ValueInfoProto]:
    """Types of all tensors but constants for a batch of one image; large constants are left out, as types only."""
    graph = model.graph
    small = [tensor for tensor in graph.initializer if np.prod(tensor.dims) <= _SMALL]
    large = [tensor for tensor in graph.initializer if np.prod(tensor.dims) > _SMALL]
    names = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in names]
    images = [
        helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, image_shape) for value in inputs
    ]
    stand_ins = [helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in large]
    outputs = [helper.make_tensor_value_info(v.name, v.type.tensor_type.elem_type, None) for v in graph.output]
    skeleton = helper.make_graph(graph.node, "shapes", [*images, *stand_ins], outputs, small)
    typed = helper.make_model(skeleton, opset_imports=model.opset_import, ir_version=model.ir_version)
    found = shape_inference.infer_shapes(typed, data_prop=True).graph
    return {v.name: v for v in (*found.value_info, *found.input, *found.output) if v.name not in names}


def _measured(model: ModelProto, kinds: Mapping[str, int], image: F32) -> dict[str, Values]:
    """The values of tensors of these types for one image."""
    if not kinds:
        return {}
    more = ModelProto()
    present = {value.name for value in model.graph.output}
    infos = (helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items() if name not in present)
    more.graph.output.extend(infos)
    # Concatenated messages are merged when they are parsed. So the weights need not be copied.
    with OrtRunner(model.SerializeToString() + more.SerializeToString()) as runner:
        return dict(runner.infer({runner.input_name: image}))


def _is_float(kind: onnx.TypeProto.Tensor) -> bool:
    return bool(kind.elem_type == TensorProto.FLOAT)


def _is_known(kind: onnx.TypeProto.Tensor) -> bool:
    return kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim)
