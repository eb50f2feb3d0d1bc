"""A graph in the making: nodes in order, constants by name, and what the usual changes need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from edgeres.graph.graph import prune

Values = npt.NDArray[Any]


class Editor:
    """A copy of a model, to be changed.

    Example:
        >>> edit = Editor(model)                                                    # doctest: +SKIP
        >>> for node in edit.of("Add"):                                             # doctest: +SKIP
        ...     edit.behind(node, "Relu", [], f"{node.name}_relu")
        >>> changed = edit.done()                                                   # doctest: +SKIP
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.nodes = list(self.model.graph.node)
        self._constants = {tensor.name: tensor for tensor in self.model.graph.initializer}

    def done(self) -> onnx.ModelProto:
        graph = self.model.graph
        del graph.node[:]
        graph.node.extend(self.nodes)
        prune(graph, [output.name for output in graph.output])
        onnx.checker.check_model(self.model)
        return self.model

    def of(self, *ops: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type in ops]

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        return next((node for node in self.nodes if tensor in node.output), None)

    def writer(self, tensor: str) -> onnx.NodeProto:
        node = self.producer(tensor)
        assert node is not None, tensor
        return node

    def readers(self, tensor: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if tensor in node.input]

    def is_constant(self, tensor: str) -> bool:
        return tensor in self._constants

    def values(self, constant: str) -> Values:
        return numpy_helper.to_array(self._constants[constant])

    def constant(self, name: str, values: Values) -> str:
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        self._constants[name] = self.model.graph.initializer[-1]
        return name

    def before(self, node: onnx.NodeProto, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Put a new node in front of one; returns its output."""
        made = helper.make_node(op, list(inputs), [f"{name}_out"], name, **attributes)
        self.nodes.insert(self.nodes.index(node), made)
        return f"{name}_out"

    def behind(
        self, node: onnx.NodeProto, op: str, others: Sequence[str], name: str, **attributes: Any
    ) -> onnx.NodeProto:
        """Put a new node between one and all its readers; returns it."""
        output = node.output[0]
        node.output[0] = f"{name}_in"
        made = helper.make_node(op, [node.output[0], *others], [output], name, **attributes)
        self.nodes.insert(self.nodes.index(node) + 1, made)
        return made


def redirect(node: onnx.NodeProto, old: str, new: str) -> None:
    for index, name in enumerate(node.input):
        if name == old:
            node.input[index] = new
