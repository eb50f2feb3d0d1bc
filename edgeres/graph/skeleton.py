"""Read what an ONNX file declares, without onnx: its nodes, the sizes of its tensors, and how much of each is stored.

An ONNX file is a protobuf message. Parsers make an object of every message in it, so ten megabytes may become
gigabytes; this reader counts them first, keeps no weights, and needs no package. It follows protobuf's wire format
(https://protobuf.dev/programming-guides/encoding) and the field numbers of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

MOST_FIELDS = 500_000  # of the 4,000 nodes of a ResNet-1202 with the metadata of torch's exporter: 250,000
DEEPEST = 8  # subgraphs in subgraphs
_USUAL_INPUTS = 8  # of an LSTM
_SMALL = 1024  # values of a constant that are looked at: sizes of tensors are computed from them

# Message types by their fields' numbers. Leaves hold no messages.
_LEAF: Mapping[int, str] = {}
_FIELDS: Mapping[str, Mapping[int, str]] = {
    "leaf": _LEAF,
    "model": {7: "graph", 8: "leaf", 14: "leaf", 20: "training", 25: "function", 26: "leaf"},
    "training": {1: "graph", 2: "graph", 3: "leaf", 4: "leaf"},
    "graph": {1: "node", 5: "tensor", 11: "value", 12: "value", 13: "value", 14: "notes", 15: "sparse", 16: "leaf"},
    "notes": {2: "leaf"},
    "function": {7: "node", 9: "leaf", 11: "attribute", 12: "value", 14: "leaf"},
    "node": {5: "attribute", 9: "leaf", 10: "placement"},
    "placement": {2: "sharding"},
    "sharding": {3: "leaf", 4: "axis"},
    "axis": {2: "leaf"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        14: "type",
        15: "type",
        22: "sparse",
        23: "sparse",
    },
    "tensor": {3: "leaf", 13: "leaf", 16: "leaf"},
    "sparse": {1: "tensor", 2: "tensor"},
    "value": {2: "type", 4: "leaf"},
    "type": {1: "array", 4: "element", 5: "mapping", 8: "array", 9: "element"},
    "array": {2: "shape"},
    "element": {1: "type"},
    "mapping": {2: "type"},
    "shape": {1: "leaf"},
}
_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16}
_STRING, _EXTERNAL = 8, 1
_NUMPY = {1: "<f4", 6: "<i4", 7: "<i8", 9: "|b1", 11: "<f8"}


class Message(dict[int, list[Any]]):
    """Values by field number: ints, bytes of fixed length, (start, end) of text and data, messages."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind


_NOTHING = Message("leaf")


class Damaged(Exception):
    """Not the wire format of an ONNX file, or more of it than any network has; the text says which."""


@dataclass(frozen=True)
class External:
    """Where a file beside the graph holds the values of a tensor; ``length`` is None for all of the rest."""

    file: str
    offset: int
    length: int | None


@dataclass(frozen=True)
class Declared:
    """A constant: its declared sizes, and its values where they are few.

    Attributes:
        bits: of an element.
        values: (dims), int64 or float64; None where there are many, or they lie in another file.
        external: where they lie in another file.
    """

    name: str
    dims: tuple[int, ...]
    bits: int
    values: npt.NDArray[Any] | None = None
    external: External | None = None


@dataclass(frozen=True)
class Operation:
    """An operation.

    Attributes:
        attributes: ints, floats and lists of them, ``Declared``; None for text and other kinds.
        has_graph: whether it runs subgraphs.
    """

    op: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    has_graph: bool = False


class Skeleton:
    """What an ONNX file declares.

    Raises:
        Damaged: it is no ONNX file, holds more messages or deeper ones than a network has, or a tensor claims more
            values than are stored.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._left = MOST_FIELDS
        self._model = self._message(0, len(content), "model", 0)
        self._graphs: list[Message] = self._model.get(7, [])

    @cached_property
    def nodes(self) -> list[Operation]:
        """The nodes of the main graph."""
        return [self._node(node) for graph in self._graphs for node in graph.get(1, [])]

    @cached_property
    def initializers(self) -> list[Declared]:
        """The constants of the main graph; of sparse ones the sizes that they have when they are written out."""
        dense = [self._tensor(tensor) for graph in self._graphs for tensor in graph.get(5, [])]
        return dense + [self._sparse(tensor) for graph in self._graphs for tensor in graph.get(15, [])]

    @cached_property
    def inputs(self) -> dict[str, tuple[int, ...] | None]:
        """Sizes of the main graph's inputs by name, 0 where one is free; None where they are not told."""
        return {self._text(value, 1): self._shape(value) for graph in self._graphs for value in graph.get(11, [])}

    @property
    def constants(self) -> list[Declared]:
        """The constants in nodes of the main graph."""
        return [value for node in self.nodes for value in node.attributes.values() if isinstance(value, Declared)]

    @property
    def elsewhere(self) -> list[Declared]:
        """All constants in subgraphs, functions and training graphs, checked as those of the main graph are."""
        inner = [message for key in (20, 25) for message in self._model.get(key, [])]
        inner += [graph for outer in self._graphs for node in outer.get(1, []) for graph in self._inner(node)]
        return [self._tensor(tensor) for message in inner for tensor in _tensors_in(message)]

    def expanded(self) -> int:
        """Nodes of all graphs once functions are written out in the place of their calls, and sums as sums of two.

        Raises:
            Damaged: a function calls itself.
        """
        functions = {(self._text(f, 10), self._text(f, 1)): f.get(7, []) for f in self._model.get(25, [])}
        counts: dict[tuple[str, str], int] = {}
        open_calls: set[tuple[str, str]] = set()

        def count(nodes: list[Message], depth: int) -> int:
            total = 0
            for node in nodes:
                key = (self._text(node, 7), self._text(node, 4))
                total += max(1, len(node.get(1, [])) - _USUAL_INPUTS)
                total += sum(count(graph.get(1, []), depth) for graph in self._inner(node))
                total += called(key, depth + 1) if key in functions else 0
            return total

        def called(key: tuple[str, str], depth: int) -> int:
            if key not in counts:
                if key in open_calls or depth > 10 * DEEPEST:
                    raise Damaged(f"function {key[1]} calls itself, or functions in functions are nested too deeply")
                open_calls.add(key)
                counts[key] = count(functions[key], depth)
                open_calls.remove(key)
            return counts[key]

        return sum(count(graph.get(1, []), 0) for graph in self._graphs)

    # --- messages ----------------------------------------------------------------------------------------------------

    def _message(self, start: int, end: int, kind: str, depth: int) -> Message:
        if depth > 4 * DEEPEST:
            raise Damaged("messages are nested more deeply than in any network")
        known = _FIELDS[kind]
        found = Message(kind)
        content, at = self._content, start
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise Damaged(f"it has more than {MOST_FIELDS:,} entries")
            key, at = self._varint(at, end)
            number, wire = key >> 3, key & 7
            value: Any
            if wire == 0:
                value, at = self._varint(at, end)
            elif wire == 2:
                length, at = self._varint(at, end)
                stop = at + length
                value = (
                    (at, stop) if number not in known else self._message(at, min(stop, end), known[number], depth + 1)
                )
                at = stop
            elif wire in (1, 5):
                stop = at + (8 if wire == 1 else 4)
                value, at = content[at:stop], stop
            else:
                raise Damaged("it is no protobuf message")
            if at > end:
                raise Damaged("it ends within an entry")
            found.setdefault(number, []).append(value)
        return found

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        content = self._content
        while at < end and shift < 70:
            byte = content[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFFFFFFFFFFFFFF, at
            shift += 7
        raise Damaged("it ends within a number")

    def _text(self, message: Message, number: int) -> str:
        spans = message.get(number)
        return self._of(spans[-1]).decode(errors="replace") if spans else ""

    def _of(self, span: object) -> bytes:
        if not isinstance(span, tuple):
            raise Damaged("an entry has another type than ONNX gives it")
        return self._content[span[0] : span[1]]

    def _one(self, message: Message, number: int) -> Any:
        """A message that stands at most once; protobuf would merge several."""
        values = message.get(number, [])
        if len(values) > 1:
            raise Damaged("an entry that stands once stands several times")
        return values[0] if values else None

    def _ints(self, message: Message, number: int, most: int = _SMALL) -> list[int]:
        """Signed numbers, packed or one by one."""
        values: list[int] = []
        for entry in message.get(number, []):
            at, end = entry if isinstance(entry, tuple) else (0, 0)
            values += [] if isinstance(entry, tuple) else [_signed(entry)]
            while at < end:
                value, at = self._varint(at, end)
                values.append(_signed(value))
                if len(values) > most:
                    raise Damaged(f"a list has more than {most:,} numbers")
        return values

    def _floats(self, message: Message, number: int, kind: str) -> list[float]:
        entries = (self._of(entry) if isinstance(entry, tuple) else entry for entry in message.get(number, []))
        content = b"".join(entry for entry in entries if isinstance(entry, bytes))
        return list(np.frombuffer(content[: len(content) // int(kind[-1]) * int(kind[-1])], kind).astype(float))

    # --- records -----------------------------------------------------------------------------------------------------

    def _node(self, message: Message) -> Operation:
        attributes = {self._text(entry, 1): self._attribute(entry) for entry in message.get(5, [])}
        names = [tuple(self._of(span).decode(errors="replace") for span in message.get(key, [])) for key in (1, 2)]
        domain = self._text(message, 7)
        return Operation(
            op=self._text(message, 4),
            domain="" if domain == "ai.onnx" else domain,
            name=self._text(message, 3),
            inputs=names[0],
            outputs=names[1],
            attributes=attributes,
            has_graph=next(self._inner(message), None) is not None,
        )

    def _attribute(self, message: Message) -> Any:
        if tensor := self._one(message, 5):
            return self._tensor(tensor)
        for sparse in message.get(22, []):
            return self._sparse(sparse)
        if 3 in message:
            value = message[3][-1]
            return _signed(value) if isinstance(value, int) else None
        if 2 in message:
            return (self._floats(message, 2, "<f4") or [0.0])[-1]
        if 8 in message:
            return self._ints(message, 8)
        if 7 in message:
            return self._floats(message, 7, "<f4")
        left_out = {1: 0.0, 2: 0, 6: [], 7: []}  # some writers leave out zeros and empty lists
        return self._text(message, 4) if 4 in message else left_out.get(_last(message, 20))

    def _tensor(self, message: Message) -> Declared:
        name, dims = self._text(message, 8), tuple(self._ints(message, 1, 64))
        kind = _last(message, 2)
        count = prod(dims)
        if min(dims, default=0) < 0:
            raise Damaged(f"constant {name} has a negative size")
        bits = _BITS.get(kind, 4)
        if _last(message, 14) == _EXTERNAL:
            return Declared(name, dims, bits, external=self._external(message, name))
        if count > self._stored(message, kind, bits):
            size = "x".join(map(str, dims)) or "1"
            raise Damaged(f"constant {name} claims {size} values, and fewer are stored")
        return Declared(name, dims, bits, self._values(message, kind, dims) if count <= _SMALL else None)

    def _stored(self, message: Message, kind: int, bits: int) -> int:
        """The most values that the data of a constant can hold."""
        raw = sum(span[1] - span[0] for span in message.get(9, []) if isinstance(span, tuple))
        if kind == _STRING:
            return len(message.get(6, []))
        most: int = raw * 8 // bits
        for number, least in ((4, 4), (5, 1), (7, 1), (10, 8), (11, 1)):
            for entry in message.get(number, []):
                size = (entry[1] - entry[0]) // least if isinstance(entry, tuple) else 1
                most += size * (2 if bits == 4 else 1)
        return most

    def _values(self, message: Message, kind: int, dims: tuple[int, ...]) -> npt.NDArray[Any] | None:
        if kind not in _NUMPY:
            return None
        try:
            if 9 in message:
                values = np.frombuffer(self._of(message[9][-1]), _NUMPY[kind])
            elif kind in (1, 11):
                values = np.array(self._floats(message, 4 if kind == 1 else 10, "<f4" if kind == 1 else "<f8"))
            else:
                values = np.array(self._ints(message, 7 if kind == 7 else 5))
            return values.astype(np.float64 if kind in (1, 11) else np.int64)[: prod(dims)].reshape(dims)
        except (ValueError, OverflowError):
            return None

    def _external(self, message: Message, name: str) -> External:
        entries = {self._text(entry, 1): self._text(entry, 2) for entry in message.get(13, [])}
        try:
            length = int(entries["length"]) if "length" in entries else None
            return External(entries.get("location", ""), int(entries.get("offset", 0)), length)
        except ValueError:
            raise Damaged(f"constant {name} lies at a place that is no number") from None

    def _sparse(self, message: Message) -> Declared:
        values = self._one(message, 1)
        dims = tuple(self._ints(message, 3, 64))
        if min(dims, default=0) < 0:
            raise Damaged("a sparse constant has a negative size")
        return Declared(self._text(values, 8) if values else "", dims, 32)

    def _shape(self, value: Message) -> tuple[int, ...] | None:
        array = self._one(self._one(value, 2) or _NOTHING, 1)
        shape = self._one(array or _NOTHING, 2)
        if shape is None:
            return None
        dims = [_last(dim, 1) for dim in shape.get(1, [])]
        return tuple(max(_signed(size), 0) for size in dims)

    def _inner(self, node: Message) -> Iterator[Message]:
        """The subgraphs of a node."""
        return (graph for attribute in node.get(5, []) for key in (6, 11) for graph in attribute.get(key, []))


def _tensors_in(message: Message) -> Iterator[Message]:
    """The dense tensors below a message; those of sparse ones, too."""
    if message.kind == "tensor":
        yield message
        return
    for values in message.values():
        for value in values:
            if isinstance(value, Message):
                yield from _tensors_in(value)


def _last(message: Message, number: int) -> int:
    values = message.get(number)
    return int(values[-1]) if values and isinstance(values[-1], int) else 0


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
