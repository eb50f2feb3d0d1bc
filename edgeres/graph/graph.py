"""An ONNX graph with the questions that placement asks of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

# Ops that move values without changing them: codes pass through with scale and zero_point untouched.
PASS_THROUGH = frozenset(
    {"Identity", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Pad", "MaxPool"}
)
_POOLS = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool"})
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

    def joins_activations(self, node: onnx.NodeProto) -> bool:
        """An Add or Mul of two activations: a residual, or a gate as in squeeze-and-excite."""
        return node.op_type in {"Add", "Mul"} and not any(self.is_constant(name) for name in node.input)

    def is_residual_add(self, node: onnx.NodeProto) -> bool:
        """An Add of two activations (an Add of a constant is a bias)."""
        return node.op_type == "Add" and self.joins_activations(node)

    def keeps_codes(self, node: onnx.NodeProto) -> bool:
        """Whether codes can pass through as they are: it only moves values, and pads with zero if it pads."""
        if node.op_type != "Pad":
            return node.op_type in PASS_THROUGH
        filled = node.input[2] if len(node.input) > 2 else ""
        return not filled or (self.is_constant(filled) and not self.constant(filled).any())

    def activation_after(self, node: onnx.NodeProto) -> str:
        """The node's output, or that of the ReLU which is its only reader; a Clip from zero on is one.

        Codes with zero at the lower limit clip as ReLU does, so the activation costs nothing behind a quantize.
        """
        readers = self.consumers(node.output[0])
        if len(readers) == 1 and node.output[0] != self.output and self._is_relu(readers[0]):
            return str(readers[0].output[0])
        return str(node.output[0])

    def _is_relu(self, node: onnx.NodeProto) -> bool:
        if node.op_type != "Clip":
            return node.op_type == "Relu"
        lowest = node.input[1] if len(node.input) > 1 else ""
        return self.is_constant(lowest) and not self.constant(lowest).any()

    def is_nonnegative(self, tensor: str) -> bool:
        """Whether no value can be below zero: behind a ReLU, or behind pooling or moving of what is."""
        node = self.producer(tensor)
        while node is not None and (node.op_type in _POOLS or self.keeps_codes(node)):
            node = self.producer(node.input[0])
        return node is not None and (self._is_relu(node) or node.op_type in {"Sigmoid", "Softmax"})

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
        skip is the side with fewer of them. Of two that are equally far it is the second: one of them must carry codes
        for the other's Conv to take in the Add. None where they have no common ancestor.
        """
        left, right = add.input
        from_left, from_right = self._distances(left), self._distances(right)
        common = from_left.keys() & from_right.keys()
        if not common:
            return None
        nearest = min(common, key=lambda name: tuple(map(sum, zip(from_left[name], from_right[name], strict=True))))
        return str(left if from_left[nearest] < from_right[nearest] else right)


def inputs_of(node: onnx.NodeProto) -> Iterator[str]:
    """Names of the tensors that a node reads, those that only its subgraphs read included."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from inputs_of(inner)


def prune(graph: onnx.GraphProto, keep_outputs: Iterable[str]) -> None:
    """Drop, in place, nodes and initializers that no output depends on."""
    wanted = set(keep_outputs)
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted.update(inputs_of(node))
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    constants = [tensor for tensor in graph.initializer if tensor.name in wanted]
    del graph.initializer[:]
    graph.initializer.extend(constants)
