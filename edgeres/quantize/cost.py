"""What an engine for a form would do, by a model: kernels, bytes, products, and patterns that may not fuse.

Nothing here is measured: it decides which forms are worth a device's time, not which of them is fastest. Rules:

* A Conv or Gemm is one kernel with its bias, a residual Add and ReLU behind it. It reads its input, the Add's other
  input and its weights, and writes its result once. Pools, Pads and other operators are kernels of their own.
* A tensor in codes has one byte a value; another has four, or two in float16. Where some readers take codes and others
  float, both are written.
* TensorRT's convolutions write codes. TensorRT-RTX 1.7's write float, which a further kernel reads to write codes.
* Patterns that may not fuse, or for which no vendor's page and no sample shows that they do: a Pad with other than
  zeros before a convolution, an Add without ReLU before its quantize, an Add in INT8 whose sum is read as float, as
  by a float average pool, a Gemm in INT8, and the first convolution in INT8, which reads three channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from onnx import NodeProto

from edgeres.device.targets import Runtime
from edgeres.graph.graph import WEIGHTED, Graph, attributes, input_at
from edgeres.records import QuantPlan

_ABSORBED = frozenset({"Relu", "Clip", "Add", "BatchNormalization"})
_FREE = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Transpose", "Cast"})


@dataclass(frozen=True)
class Cost:
    """Of one image.

    Attributes:
        moved_bytes: that kernels read and write, weights included.
        int8_products, float_products: of convolutions and matrix products.
        unsure: patterns that may not fuse, see above; each is named by the layer or tensor that it is at.
    """

    kernels: int
    moved_bytes: int
    int8_products: int
    float_products: int
    unsure: frozenset[str]

    def is_no_better(self, other: Cost) -> bool:
        """Whether the other one does nothing more than this one."""
        here, there = ((c.kernels, c.moved_bytes, c.float_products) for c in (self, other))
        return all(theirs <= own for own, theirs in zip(here, there, strict=True)) and other.unsure <= self.unsure


def cost_of(graph: Graph, plan: QuantPlan | None, float_bytes: int, runtime: Runtime) -> Cost:
    """The cost of a form for a runtime.

    Args:
        graph: the float graph, with the shapes of its tensors.
        plan: None: no codes.
        float_bytes: of a value that is not in codes, 4 or 2.
    """
    return _Counter(graph, plan, float_bytes, runtime).count()


class _Counter:
    """The count over one graph.

    Attributes:
        readers: of codes, by tensor.
        coded: the nodes with weights in INT8.
        full: tensors with all 256 codes.
    """

    def __init__(self, graph: Graph, plan: QuantPlan | None, float_bytes: int, runtime: Runtime) -> None:
        self.graph, self.float_bytes, self.runtime = graph, float_bytes, runtime
        edges = () if plan is None else plan.edges
        self.readers = {edge.tensor: frozenset(edge.consumers) for edge in edges}
        self.coded = frozenset() if plan is None else frozenset(weight.node for weight in plan.weights)
        self.full = {edge.tensor for edge in edges if edge.params.zero_point}
        self.kernels = self.moved = 0
        self.unsure: set[str] = set()
        self.products = {True: 0, False: 0}

    def count(self) -> Cost:
        absorbed: set[str] = set()
        first = True
        for node in self.graph.nodes:
            if node.name in absorbed or not self.graph.carries_activations(node.output[0]):
                continue
            if node.op_type in WEIGHTED:
                chain = self._chain(node)
                absorbed.update(other.name for other in chain)
                self._layer(node, chain, first)
                first = False
            elif node.op_type not in _FREE:
                self._kernel([(name, node) for name in node.input], node.output[0])
        self._quantize_image()
        self._pads()
        return Cost(self.kernels, self.moved, self.products[True], self.products[False], frozenset(self.unsure))

    def _chain(self, node: NodeProto) -> list[NodeProto]:
        """What the kernel of a layer takes in behind it."""
        found: list[NodeProto] = []
        tensor = node.output[0]
        while tensor not in self.readers:
            readers = self.graph.consumers(tensor)
            if len(readers) != 1 or readers[0].op_type not in _ABSORBED:
                break
            other = readers[0]
            # Of the two branches of an Add, the one that is not its skip takes it in.
            if self.graph.is_residual_add(other) and self.graph.skip_input(other) in {None, tensor}:
                break
            found.append(other)
            tensor = other.output[0]
        return found

    def _layer(self, node: NodeProto, chain: list[NodeProto], first: bool) -> None:
        last = chain[-1] if chain else node
        skips = [(name, add) for add in chain if add.op_type == "Add" for name in add.input]
        inner = {node.output[0], *(other.output[0] for other in chain)}
        self._kernel([(node.input[0], node), *(pair for pair in skips if pair[0] not in inner)], last.output[0])
        weights = self.graph.shape(node.input[1])
        coded = node.name in self.coded
        self.moved += prod(weights) * (1 if coded else self.float_bytes)
        outputs = self._values(node.output[0])
        per_output = prod(weights[1:]) if node.op_type == "Conv" else prod(weights) // max(outputs, 1)
        self.products[coded] += outputs * per_output
        adds = any(add.op_type == "Add" for add in chain)
        if coded and (first or node.op_type != "Conv"):
            self.unsure.add(node.name)
        if adds and (last.output[0] in self.full or (coded and last.output[0] not in self.readers)):
            self.unsure.add(last.output[0])

    def _kernel(self, reads: list[tuple[str, NodeProto]], writes: str) -> None:
        self.kernels += 1
        for name, reader in reads:
            if self.graph.carries_activations(name):
                self.moved += self._values(name) * self._bytes_read(name, reader)
        self.moved += self._written(writes)

    def _bytes_read(self, tensor: str, reader: NodeProto) -> int:
        return 1 if reader.name in self.readers.get(tensor, ()) else self.float_bytes

    def _written(self, tensor: str) -> int:
        """Bytes that it takes to write a tensor as its readers want it; RTX takes another kernel for codes."""
        values, coded = self._values(tensor), self.readers.get(tensor)
        if coded is None:
            return values * self.float_bytes
        if self.runtime == "rtx":
            self.kernels += 1
            return values * (2 * self.float_bytes + 1)
        both = any(reader.name not in coded for reader in self.graph.consumers(tensor))
        return values * (1 + both * self.float_bytes)

    def _quantize_image(self) -> None:
        if self.graph.input in self.readers:
            self.kernels += 1
            self.moved += self._values(self.graph.input) * 5

    def _pads(self) -> None:
        """Borders that are not zero: a copy of the codes; convolutions with the same padding share it."""
        for tensor in self.full - {self.graph.input}:
            convolutions = [self.graph.node(name) for name in self.readers[tensor]]
            pads = {tuple(attributes(conv).get("pads", ())) for conv in convolutions if conv.op_type == "Conv"}
            count = sum(any(pad) for pad in pads)
            self.kernels += count
            if count:
                self.unsure.add(f"border of {tensor}")
            self.moved += 2 * count * self._values(tensor)

    def _values(self, tensor: str) -> int:
        return prod(size or 1 for size in self.graph.shape(tensor))


def stages(graph: Graph) -> tuple[tuple[int, frozenset[str]], ...]:
    """The nodes from each stage on, early stages first: a stage begins where images become smaller.

    Returns:
        For each stage, the values of a channel's image, and the names of the nodes whose images are no larger.
    """
    areas: dict[str, int] = {}
    for node in graph.nodes:
        source = input_at(node, 0)
        shape = graph.shape(node.output[0])
        area = prod(size or 1 for size in shape[2:]) if len(shape) == 4 else 1
        # Nodes without a known shape belong to the stage of what they read.
        areas[node.name] = area if shape else areas.get(getattr(graph.producer(source), "name", ""), 1)
    sizes = sorted({areas[node.name] for node in graph.nodes if node.op_type == "Conv"}, reverse=True)
    return tuple((size, frozenset(name for name, area in areas.items() if area <= size)) for size in sizes)
