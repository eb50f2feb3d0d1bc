"""An ONNX graph, indexed by tensor name: producers, consumers, constants and shapes; and the edits that keep the index.

The methods of the last section answer what quantization asks about a residual network: which input of an Add is the
skip, which nodes only move values, which tensors cannot be negative.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator, Sequence
from copy import deepcopy
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper, shape_inference

# A constant of an ONNX graph may have any element type.
Values = npt.NDArray[Any]

# Ops that move values without changing them: codes pass through with scale and zero_point untouched.
PASS_THROUGH = frozenset(
    {"Identity", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Pad", "MaxPool"}
)
# Further ops of that kind. Only ONNX Runtime's CPU provider lets codes through them.
_MOVES = frozenset({"Split", "DepthToSpace", "Gather", "Tile", "Expand", "Resize"})
WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
_POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})


class Graph:
    """The main graph of a model.

    An edit changes the model at once. Nodes, their inputs and constants must be changed through the methods here, or
    the index is wrong afterwards; attributes of nodes are not indexed.

    Attributes:
        nodes: in the model's order. Iterate over a copy while nodes are inserted or removed.
        inputs: names; files of IR 3 list constants among them, which are left out.
        outputs: names.

    Example:
        >>> graph = Graph.copy_of(model)                                            # doctest: +SKIP
        >>> for add in graph.of("Add"):                                             # doctest: +SKIP
        ...     graph.put_behind(add, "Relu", [], f"{add.name}_relu")
        >>> changed = graph.done()                                                  # doctest: +SKIP
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.nodes: list[NodeProto] = list(model.graph.node)
        self._initializers: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}
        self.inputs = [str(value.name) for value in model.graph.input if value.name not in self._initializers]
        self.outputs = [str(value.name) for value in model.graph.output]
        self._producer: dict[str, NodeProto] = {}
        self._consumers: dict[str, list[NodeProto]] = {}
        self._by_name: dict[str, NodeProto] = {}
        self._types: dict[str, onnx.ValueInfoProto] | None = None
        # An ascending key per node: a node that is inserted gets one between its neighbours', and no other changes.
        self._keys: list[Fraction | int] = list(range(len(self.nodes)))
        self._key_by_id: dict[int, Fraction | int] = {}
        for node, key in zip(self.nodes, self._keys, strict=True):
            self._enter(node, key)

    @classmethod
    def copy_of(cls, model: ModelProto) -> Graph:
        """A graph to be edited; the model given is not changed."""
        return cls(deepcopy(model))

    # --- queries -----------------------------------------------------------------------------------------------------

    @property
    def input(self) -> str:
        """The first input: a canonical graph has no other."""
        return self.inputs[0]

    @property
    def output(self) -> str:
        """The first output: a canonical graph has no other."""
        return self.outputs[0]

    def output_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Of each output for one image, by name; None where a size is not known."""
        values = self.model.graph.output
        return {v.name: tuple(d.dim_value or None for d in v.type.tensor_type.shape.dim[1:]) for v in values}

    def of(self, *ops: str) -> list[NodeProto]:
        """The nodes with these operators."""
        return [node for node in self.nodes if node.op_type in ops]

    def node(self, name: str) -> NodeProto:
        """The node of this name; :func:`edgeres.graph.normalize.normalize` gives unique names."""
        return self._by_name[name]

    def position(self, node: NodeProto) -> int:
        """Where the node stands in ``nodes``."""
        return bisect_left(self._keys, self._key(node))

    def producer(self, tensor: str) -> NodeProto | None:
        """The node that writes a tensor; None for inputs, initializers and unknown names."""
        return self._producer.get(tensor)

    def writer(self, tensor: str) -> NodeProto:
        """The node that writes a tensor; KeyError if no node does."""
        return self._producer[tensor]

    def consumers(self, tensor: str) -> list[NodeProto]:
        """The nodes that read a tensor, each once, in the graph's order."""
        return list(self._consumers.get(tensor, ()))

    def last_use(self, tensor: str) -> int:
        """The position of the last node that reads a tensor; behind the last node for an output, -1 if nothing does."""
        readers = self._consumers.get(tensor)
        return len(self.nodes) if tensor in self.outputs else self.position(readers[-1]) if readers else -1

    def ancestors(self, *tensors: str) -> set[str]:
        """Every tensor that these are computed from, themselves included."""
        found = set(tensors)
        for node in reversed(self.nodes):
            if not found.isdisjoint(node.output):
                found.update(inputs_of(node))
        return found

    def __contains__(self, tensor: str) -> bool:
        """Whether an input, a constant or a node's output has this name."""
        return tensor in self._producer or tensor in self._initializers or tensor in self.inputs

    def is_constant(self, tensor: str) -> bool:
        """Whether a tensor is an initializer, the output of a Constant node, or an Identity of one of these."""
        return self.stored(tensor) is not None

    def constant(self, tensor: str) -> Values:
        """The values of a constant; KeyError if the tensor is none."""
        stored = self.stored(tensor)
        if stored is None:
            raise KeyError(tensor)
        return numpy_helper.to_array(stored)

    def stored(self, tensor: str) -> onnx.TensorProto | None:
        """The protobuf of a constant, for its type and sizes; None if the tensor is no constant."""
        while tensor not in self._initializers:
            node = self._producer.get(tensor)
            if node is None or node.op_type not in {"Identity", "Constant"}:
                return None
            if node.op_type == "Constant":
                return next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
            tensor = node.input[0]
        return self._initializers[tensor]

    @property
    def types(self) -> dict[str, onnx.ValueInfoProto]:
        """Types and shapes of all tensors that ONNX can infer them for, constants left out."""
        if self._types is None:
            inferred = shape_inference.infer_shapes(self.model, data_prop=True).graph
            values = (*inferred.value_info, *inferred.input, *inferred.output)
            self._types = {value.name: value for value in values if value.name not in self._initializers}
        return self._types

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Shape; unknown sizes, such as a dynamic batch, are 0. () for scalars and for unknown tensors."""
        if tensor in self._initializers:
            return tuple(self._initializers[tensor].dims)
        value = self.types.get(tensor)
        return () if value is None else tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)

    def carries_activations(self, tensor: str) -> bool:
        """Whether codes may stand for a tensor: float32, with the batch as its first axis, and no constant.

        Sizes and what is computed from them alone have another type or no batch axis. Where ONNX infers no shape the
        type decides.
        """
        value = self.types.get(tensor)
        if value is None or self.is_constant(tensor):
            return False
        kind = value.type.tensor_type
        if kind.elem_type != onnx.TensorProto.FLOAT or not kind.HasField("shape"):
            return bool(kind.elem_type == onnx.TensorProto.FLOAT)
        return len(kind.shape.dim) > 0 and kind.shape.dim[0].dim_value <= 0

    # --- edits -------------------------------------------------------------------------------------------------------

    def insert(
        self, made: Sequence[NodeProto], *, before: NodeProto | None = None, behind: NodeProto | None = None
    ) -> list[NodeProto]:
        """Insert new nodes before or behind a node, or as the graph's first; returns them as the model holds them."""
        at = self.position(before) if before is not None else 0 if behind is None else self.position(behind) + 1
        for index, node in enumerate(made, at):
            low = self._keys[index - 1] if index else self._keys[0] - 2 if self._keys else 0
            high = self._keys[index] if index < len(self._keys) else low + 2
            self.model.graph.node.insert(index, node)
            self.nodes.insert(index, self.model.graph.node[index])
            self._keys.insert(index, Fraction(low + high) / 2)
            self._enter(self.nodes[index], self._keys[index])
        self._types = None
        return self.nodes[at : at + len(made)]

    def put_before(self, node: NodeProto, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Insert a node that nothing reads yet in front of another; returns its output's name, ``<name>_out``."""
        self.insert([helper.make_node(op, list(inputs), [f"{name}_out"], name, **attributes)], before=node)
        return f"{name}_out"

    def put_behind(self, node: NodeProto, op: str, others: Sequence[str], name: str, **attributes: Any) -> NodeProto:
        """Insert a node, with ``others`` as further inputs, between another and all readers of its output; returns it.

        The tensor's name goes to the new node's output, and what the other writes is called ``<name>_in`` from then on.
        """
        output = node.output[0]
        node.output[0] = f"{name}_in"
        self._producer[f"{name}_in"] = node
        made = helper.make_node(op, [f"{name}_in", *others], [output], name, **attributes)
        return self.insert([made], behind=node)[0]

    def remove(self, node: NodeProto) -> None:
        """Drop a node; what read its output must be given another input."""
        at = self.position(node)
        self._drop_reader(node, set(node.input))
        for name in node.output:
            if self._producer.get(name) is node:  # else its replacement is there already
                del self._producer[name]
        if self._by_name.get(node.name) is node:
            del self._by_name[node.name]
        del self._key_by_id[id(node)], self._keys[at], self.nodes[at], self.model.graph.node[at]

    def bypass(self, node: NodeProto) -> None:
        """Drop a node that is the only reader of the tensor it changes; that tensor's writer gives its output."""
        source = next(name for name in node.input if not self.is_constant(name))
        writer, output = self.writer(source), node.output[0]
        self.remove(node)
        writer.output[list(writer.output).index(source)] = output
        del self._producer[source]
        self._producer[output] = writer
        self._types = None

    def set_inputs(self, node: NodeProto, inputs: Sequence[str]) -> None:
        """Let a node read other tensors."""
        self._drop_reader(node, set(node.input) - set(inputs))
        added = [name for name in dict.fromkeys(filter(None, inputs)) if name not in node.input]
        node.input[:] = inputs
        for name in added:
            insort(self._consumers.setdefault(name, []), node, key=self._key)
        self._types = None

    def redirect(self, node: NodeProto, old: str, new: str) -> None:
        """Let a node read ``new`` wherever it reads ``old``."""
        self.set_inputs(node, [new if name == old else name for name in node.input])

    def add_constant(self, name: str, values: npt.ArrayLike) -> str:
        """Add an initializer; returns its name."""
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        self._initializers[name] = self.model.graph.initializer[-1]
        return name

    def set_constant(self, name: str, values: npt.ArrayLike) -> None:
        """Give an initializer other values."""
        self._initializers[name].CopyFrom(numpy_helper.from_array(np.asarray(values), name))

    def free_name(self, stem: str, suffixes: Sequence[str] = ("",)) -> str:
        """The stem, lengthened by underscores until no tensor has its name with any of the suffixes."""
        while any(f"{stem}{suffix}" in self for suffix in suffixes):
            stem += "_"
        return stem

    def done(self) -> ModelProto:
        """The edited model, pruned; raises onnx.checker.ValidationError if it is not valid."""
        self.prune()
        onnx.checker.check_model(self.model)
        return self.model

    def prune(self) -> None:
        """Drop nodes and initializers that no output depends on."""
        wanted = self.ancestors(*self.outputs)
        for node in reversed(self.nodes):
            if wanted.isdisjoint(node.output):
                self.remove(node)
        initializers = self.model.graph.initializer
        for index in reversed(range(len(initializers))):
            if initializers[index].name not in wanted:
                del self._initializers[initializers[index].name], initializers[index]

    def _drop_reader(self, node: NodeProto, tensors: set[str]) -> None:
        for name in filter(None, tensors):
            readers = self._consumers[name]
            del readers[bisect_left(readers, self._key(node), key=self._key)]

    def _enter(self, node: NodeProto, key: Fraction | int) -> None:
        """Take a node into the index."""
        self._key_by_id[id(node)] = key
        self._by_name[node.name] = node
        self._producer.update((name, node) for name in node.output if name)
        for name in dict.fromkeys(node.input):
            if name:
                insort(self._consumers.setdefault(name, []), node, key=self._key)

    def _key(self, node: NodeProto) -> Fraction | int:
        return self._key_by_id[id(node)]

    # --- questions about a residual network --------------------------------------------------------------------------

    def joins_activations(self, node: NodeProto) -> bool:
        """An Add or Mul of two activations: a residual, or a gate as in squeeze-and-excite."""
        return node.op_type in {"Add", "Mul"} and not any(self.is_constant(name) for name in node.input)

    def is_residual_add(self, node: NodeProto) -> bool:
        """An Add of two activations (an Add of a constant is a bias)."""
        return node.op_type == "Add" and self.joins_activations(node)

    def keeps_codes(self, node: NodeProto) -> bool:
        """Whether codes can pass through a node unchanged: it only moves values, and a Pad fills with zero."""
        if node.op_type != "Pad":
            return node.op_type in PASS_THROUGH
        filled = input_at(node, 2)
        return not filled or (self.is_constant(filled) and not self.constant(filled).any())

    def moves_codes(self, node: NodeProto) -> bool:
        """Whether ONNX Runtime's CPU provider runs a node on codes: one that keeps them, or another that moves them."""
        if node.op_type == "Resize":
            return bool(attributes(node).get("mode", b"nearest") == b"nearest")
        return node.op_type in _MOVES or self.keeps_codes(node)

    def keeps_range(self, node: NodeProto) -> bool:
        """Whether its output lies within its input's range: it pools values or moves them."""
        return node.op_type in _POOLS or self.keeps_codes(node)

    def activation_after(self, node: NodeProto) -> str:
        """The node's output, or the output of a ReLU that is its only reader. A Clip from zero on counts as a ReLU.

        Codes with zero at the lower limit clip as ReLU does, so the activation costs nothing behind a quantize.
        """
        readers = self.consumers(node.output[0])
        fused = len(readers) == 1 and node.output[0] != self.output and self._is_relu(readers[0])
        return str((readers[0] if fused else node).output[0])

    def _is_relu(self, node: NodeProto) -> bool:
        if node.op_type != "Clip":
            return node.op_type == "Relu"
        lowest = input_at(node, 1)
        return self.is_constant(lowest) and not self.constant(lowest).any()

    def is_nonnegative(self, tensor: str) -> bool:
        """Whether no value can be below zero: it comes from a ReLU, Sigmoid or Softmax, pooled or moved at most."""
        while (node := self.producer(tensor)) is not None and self.keeps_range(node):
            tensor = node.input[0]
        return node is not None and (self._is_relu(node) or node.op_type in {"Sigmoid", "Softmax"})

    def source_of(self, tensor: str) -> str:
        """The tensor that these values come from unchanged: back through nodes that only move values."""
        while (node := self.producer(tensor)) is not None and node.op_type in PASS_THROUGH:
            tensor = node.input[0]
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

    def skip_input(self, add: NodeProto) -> str | None:
        """Which input of a residual Add is the skip: the one with the shorter way to the nearest common ancestor.

        In an identity block that is the block's input itself; in a downsample block both inputs end in a Conv, and the
        skip is the input with fewer of them on its way. Of two equally long ways the second input is taken: one of them
        must carry codes so that the Add can be fused into the other's Conv. None: they have no common ancestor.
        """
        left, right = add.input
        from_left, from_right = self._distances(left), self._distances(right)
        common = from_left.keys() & from_right.keys()
        if not common:
            return None
        nearest = min(common, key=lambda name: tuple(map(sum, zip(from_left[name], from_right[name], strict=True))))
        return str(left if from_left[nearest] < from_right[nearest] else right)


def input_at(node: NodeProto, index: int) -> str:
    """The name of an input; "" where an optional one is left out."""
    return str(node.input[index]) if index < len(node.input) else ""


def inputs_of(node: NodeProto) -> Iterator[str]:
    """Names of the tensors that a node reads, those that only its subgraphs read included."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from inputs_of(inner)


def opset_of(model: ModelProto) -> int:
    """The version of the ONNX operators in a model; 0 if it has none."""
    return max((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), default=0)


def type_name(data_type: int) -> str:
    """ONNX's name of a type of values; files state other numbers, too.

    >>> type_name(1), type_name(999)
    ('FLOAT', 'type 999, which is unknown')
    """
    known = data_type in onnx.TensorProto.DataType.values()
    return str(onnx.TensorProto.DataType.Name(data_type)) if known else f"type {data_type}, which is unknown"


def attributes(node: NodeProto) -> dict[str, Any]:
    """A node's attributes by name; their types depend on the operator."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
