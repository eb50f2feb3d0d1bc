"""An ONNX graph with the questions that placement asks of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

# Ops that move values without changing them: codes pass through with scale and zero_point untouched.
PASS_THROUGH = frozenset(
    {"Identity", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Pad", "MaxPool"}
)
WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})


class GraphView:
    """Read-only index of a model: producers, consumers, constants and shapes by tensor name.

    The model must have unique, non-empty node names (:func:`edgeres.graph.normalize.normalize` gives them).
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        graph = model.graph
        self.nodes: list[onnx.NodeProto] = list(graph.node)
        self.input = str(graph.input[0].name)
        self.output = str(graph.output[0].name)
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._producer = {name: node for node in self.nodes for name in node.output}
        self._consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self._consumers.setdefault(name, []).append(node)

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        return self._producer.get(tensor)

    def consumers(self, tensor: str) -> list[onnx.NodeProto]:
        return self._consumers.get(tensor, [])

    def is_constant(self, tensor: str) -> bool:
        return tensor in self._constants

    def constant(self, tensor: str) -> npt.NDArray[np.float32]:
        """The values of an initializer."""
        return numpy_helper.to_array(self._constants[tensor])

    def is_residual_add(self, node: onnx.NodeProto) -> bool:
        """An Add of two activations (an Add of a constant is a bias)."""
        return node.op_type == "Add" and not any(self.is_constant(name) for name in node.input)

    def activation_after(self, node: onnx.NodeProto) -> str:
        """The node's output, or that of the ReLU or Clip which is its only reader.

        Codes with zero at the lower limit clip as ReLU does, so the activation costs nothing behind a quantize.
        """
        readers = self.consumers(node.output[0])
        if len(readers) == 1 and readers[0].op_type in {"Relu", "Clip"} and node.output[0] != self.output:
            return str(readers[0].output[0])
        return str(node.output[0])

    def source_of(self, tensor: str) -> str:
        """The tensor whose values arrive here unchanged: back through pass-through ops."""
        node = self.producer(tensor)
        while node is not None and node.op_type in PASS_THROUGH:
            tensor = node.input[0]
            node = self.producer(tensor)
        return tensor

    def _distances(self, tensor: str) -> dict[str, tuple[int, int]]:
        """For every ancestor tensor the fewest (weighted nodes, nodes) between it and ``tensor``: 0-1 breadth first."""
        found = {tensor: (0, 0)}
        queue = deque([tensor])
        while queue:
            name = queue.popleft()
            node = self.producer(name)
            if node is None:
                continue
            weighted, steps = found[name]
            step = (weighted + (node.op_type in WEIGHTED), steps + 1)
            for parent in node.input:
                if parent and not self.is_constant(parent) and step < found.get(parent, (1 << 30, 0)):
                    found[parent] = step
                    (queue.append if node.op_type in WEIGHTED else queue.appendleft)(parent)
        return found

    def skip_input(self, add: onnx.NodeProto) -> str | None:
        """Which input of a residual Add is the skip: the one with the shorter way to the nearest common ancestor.

        For an identity block that is the block's input itself; in a downsample block both inputs end in a Conv and the
        skip is the side with fewer of them. None where the two inputs have no common ancestor or are equally far.
        """
        left, right = add.input
        from_left, from_right = self._distances(left), self._distances(right)
        common = from_left.keys() & from_right.keys()
        if not common:
            return None
        nearest = min(common, key=lambda name: tuple(np.add(from_left[name], from_right[name])))
        if from_left[nearest] == from_right[nearest]:
            return None
        return str(left if from_left[nearest] < from_right[nearest] else right)


def prune(graph: onnx.GraphProto, keep_outputs: Iterable[str]) -> None:
    """Drop, in place, nodes and initializers that no output depends on."""
    wanted = set(keep_outputs)
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    constants = [tensor for tensor in graph.initializer if tensor.name in wanted]
    del graph.initializer[:]
    graph.initializer.extend(constants)
