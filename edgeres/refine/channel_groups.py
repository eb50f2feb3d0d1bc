"""Groups of channels that can be scaled by one factor without a change of what the network computes.

ReLU, max and mean pooling, sums, slices and zero padding commute with a positive factor per channel: f(s x) = s f(x).
So the layer that writes a channel can be multiplied by a factor, and the layers that read it divided by it. In a
residual network the Add puts channel c of both its inputs and of its output into one group, so one factor applies to
the channel along a whole stage, and through option A's Slice and Pad into the next:

    Conv -> x -> ReLU -> Conv -> Add(y, x) -> ReLU -> ... -> Conv | Gemm
    W[c] s_c            W[:, c] / s_c                        W[:, c] / s_c

Nodes that only move values take the groups along, such as the Reshapes and the Transpose of a channel shuffle
(:mod:`edgeres.refine.layout`). Sigmoid, Clip at 6, Softmax and unknown operators do not commute: their inputs keep the
factor 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from edgeres.graph.graph import Graph, attributes, input_at
from edgeres.records import F64, I64
from edgeres.refine.layout import TensorLayout

# The group whose factor is always 1.
PINNED = 0


@dataclass(frozen=True)
class ScaledConstant:
    """A constant that becomes ``value * factors[groups] ** power``; ``groups`` broadcast against its values."""

    constant: str
    groups: I64
    power: int


@dataclass(frozen=True)
class ChannelGroups:
    """Which channels share a factor, and which constants take the factors up; one constant may do so several times.

    Attributes:
        channels: by tensor, the group of each channel (axis 1). Tensors that are missing keep their values, or their
            factors are not those of channels: ahead of the Transpose of a channel shuffle.
        size: number of groups; group 0 (``PINNED``) always has the factor 1.
    """

    channels: dict[str, I64]
    constants: list[ScaledConstant]
    size: int


def find_channel_groups(graph: Graph, layout: TensorLayout) -> ChannelGroups:
    """Follow every channel from the layer that writes it to the layers that read it.

    A constant that several nodes read keeps its values, and so do the inputs of those nodes.
    """
    walk = _Walk(graph, layout)
    for node in walk.graph.nodes:
        rule = _RULES.get(node.op_type) if node.output[0] in layout.shape else None  # else it is no float
        if node.op_type != "Shape" and (rule is None or not rule(walk, node)):
            walk.pin(*node.input)
    walk.pin(*walk.graph.outputs)
    return walk.finish()


class _Walk:
    """One pass over the nodes in graph order; groups are numbers, united as in Galler and Fischer (1964).

    Attributes:
        groups: by tensor, an array of its rank that broadcasts to its shape. Tensors that are missing keep their
            values.
    """

    def __init__(self, graph: Graph, layout: TensorLayout) -> None:
        self.graph, self.layout = graph, layout
        self._parent = [PINNED]
        self.groups: dict[str, I64] = {}
        self.constants: list[ScaledConstant] = []

    def fresh(self, count: int) -> I64:
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def find(self, group: int) -> int:
        while self._parent[group] != group:
            self._parent[group] = self._parent[self._parent[group]]
            group = self._parent[group]
        return group

    def unite(self, left: I64, right: I64 | np.int64) -> None:
        for a, b in np.broadcast(left, right):
            a, b = self.find(int(a)), self.find(int(b))
            self._parent[max(a, b)] = min(a, b)  # PINNED is the smallest and stays a root

    def pin(self, *tensors: str) -> None:
        """Keep the values of these tensors: the operator that reads them does not commute with factors."""
        for name in tensors:
            if name in self.groups:
                self.unite(self.groups[name], np.int64(PINNED))

    def owns(self, *constants: str) -> bool:
        """Whether these are constants that no other node reads: only such can be changed."""
        return all(self.graph.is_constant(name) and len(self.graph.consumers(name)) == 1 for name in constants)

    def scale(self, constant: str, groups: I64, power: int) -> None:
        self.constants.append(ScaledConstant(constant, groups, power))

    def along(self, tensor: str, axis: int) -> I64:
        """The group of each position along an axis; groups that differ along the other axes are united."""
        rows = np.moveaxis(self.groups[tensor], axis, 0)
        rows = rows.reshape(len(rows), -1)
        if rows.shape[1] > 1:
            self.unite(rows[:, 1:], rows[:, :1])
        size = self.layout.shape[tensor][axis]
        return rows[:, 0] if len(rows) == size else rows[:, 0].repeat(size)

    def give(self, tensor: str, groups: I64, axis: int = 1) -> None:
        """Set the groups of a tensor's positions along an axis."""
        sizes = [1] * len(self.layout.shape[tensor])
        sizes[axis] = -1
        self.groups[tensor] = groups.reshape(sizes)

    def finish(self) -> ChannelGroups:
        roots = np.array([self.find(group) for group in range(len(self._parent))])
        kept, compact = np.unique(roots, return_inverse=True)
        by_channel = {
            name: np.broadcast_to(groups.reshape(-1), self.layout.shape[name][1])
            for name, groups in self.groups.items()
            if groups.ndim > 1 and groups.size == groups.shape[1]
        }
        return ChannelGroups(
            {name: compact[groups] for name, groups in by_channel.items()},
            [replace(each, groups=compact[each.groups]) for each in self.constants],
            len(kept),
        )


def _compact(groups: I64) -> I64:
    """The same groups with size 1 along every axis on which they do not change."""
    for axis in range(groups.ndim):
        first = groups.take([0], axis)
        if (groups == first).all():
            groups = first
    return groups


def _conv(walk: _Walk, node: NodeProto) -> bool:
    if not walk.owns(*filter(None, node.input[1:])):
        return False
    outputs, per_group = walk.graph.constant(node.input[1]).shape[:2]
    spatial = (1,) * (walk.graph.constant(node.input[1]).ndim - 2)
    made = walk.fresh(outputs)
    if node.input[0] in walk.groups:
        read = walk.along(node.input[0], 1).reshape(-1, per_group)
        walk.scale(node.input[1], read.repeat(outputs // len(read), axis=0).reshape(outputs, per_group, *spatial), -1)
    walk.scale(node.input[1], made.reshape(-1, 1, *spatial), 1)
    if input_at(node, 2):
        walk.scale(node.input[2], made, 1)
    walk.give(node.output[0], made)
    return True


def _matmul(walk: _Walk, node: NodeProto) -> bool:
    given = attributes(node)
    if not walk.owns(*filter(None, node.input[1:])) or given.get("transA"):
        return False
    if len(walk.layout.shape[node.input[0]]) != 2 or walk.graph.constant(node.input[1]).ndim != 2:
        return False
    transposed = bool(given.get("transB"))
    outputs = walk.graph.constant(node.input[1]).shape[0 if transposed else 1]
    bias = input_at(node, 2)
    if bias and walk.graph.constant(bias).shape not in {(outputs,), (1, outputs)}:
        return False
    made = walk.fresh(outputs)
    if node.input[0] in walk.groups:
        walk.scale(node.input[1], walk.along(node.input[0], 1).reshape((1, -1) if transposed else (-1, 1)), -1)
    walk.scale(node.input[1], made.reshape((-1, 1) if transposed else (1, -1)), 1)
    if bias:
        walk.scale(bias, made, 1)
    walk.give(node.output[0], made)
    return True


def _batch_norm(walk: _Walk, node: NodeProto) -> bool:
    scale, shift, mean, _ = node.input[1:]
    if not walk.owns(scale, shift, mean):
        return False
    made = walk.fresh(walk.graph.constant(scale).size)
    if node.input[0] in walk.groups:
        read = walk.along(node.input[0], 1)
        walk.scale(scale, read, -1)
        walk.scale(mean, read, 1)
    walk.scale(scale, made, 1)
    walk.scale(shift, made, 1)
    walk.give(node.output[0], made)
    return True


def _same(walk: _Walk, node: NodeProto) -> bool:
    if node.input[0] in walk.groups:
        walk.groups[node.output[0]] = walk.groups[node.input[0]]
    return True


def _pool(walk: _Walk, node: NodeProto) -> bool:
    """A window over the spatial axes, or linear interpolation along them."""
    if node.input[0] in walk.groups:
        if walk.layout.shape[node.input[0]][:2] != walk.layout.shape[node.output[0]][:2]:
            return False
        walk.give(node.output[0], walk.along(node.input[0], 1))
    return True


def _reduce(walk: _Walk, node: NodeProto) -> bool:
    if node.input[0] in walk.groups:
        groups, axes = walk.groups[node.input[0]], walk.layout.reduced(node)
        for axis in axes:
            first = groups.take([0], axis)
            if groups.shape[axis] > 1:
                walk.unite(groups, first)
            groups = first
        kept = len(walk.layout.shape[node.output[0]]) == groups.ndim
        walk.groups[node.output[0]] = groups if kept else groups.squeeze(axes)
    return True


def _move(walk: _Walk, node: NodeProto) -> bool:
    """Every element of the outputs has the group of the element that it comes from."""
    data = list(node.input) if node.op_type == "Concat" else [node.input[0]]
    for name in data:
        if node.op_type == "Concat" and walk.graph.is_constant(name) and not walk.graph.constant(name).any():
            _zeros(walk, name, walk.graph.constant(name).shape)
    if not any(name in walk.groups for name in data):
        return True
    made: list[I64] | None = None
    for name in data:
        sources = walk.layout.sources(node, name)
        if sources is None:
            return False
        made = made or [np.full(each.shape, PINNED) for each in sources]
        if name in walk.groups:
            shape = walk.graph.constant(name).shape if walk.graph.is_constant(name) else walk.layout.shape[name]
            groups = np.broadcast_to(walk.groups[name], shape).reshape(-1)
            for output, each in zip(made, sources, strict=True):
                output[each >= 0] = groups[each[each >= 0]]
    for name, groups in zip(filter(None, node.output), made or [], strict=True):
        walk.groups[name] = _compact(groups)
    return True


def _zeros(walk: _Walk, name: str, shape: tuple[int, ...]) -> None:
    """Zeros take any factors."""
    if len(shape) > 1:
        walk.groups[name] = walk.fresh(shape[1]).reshape(1, -1, *[1] * (len(shape) - 2))


def _constant_of_shape(walk: _Walk, node: NodeProto) -> bool:
    value = attributes(node).get("value")
    if value is None or not numpy_helper.to_array(value).any():
        _zeros(walk, node.output[0], walk.layout.shape.get(node.output[0], ()))
    return True


def _resize(walk: _Walk, node: NodeProto) -> bool:
    same = walk.layout.shape[node.input[0]][:2] == walk.layout.shape[node.output[0]][:2]
    return _pool(walk, node) if same else _move(walk, node)


def _pad(walk: _Walk, node: NodeProto) -> bool:
    """Zeros take any factors: new channels get groups of their own, and a border those of its channel."""
    if attributes(node).get("mode", b"constant") != b"constant":
        return _move(walk, node)
    if node.input[0] not in walk.groups:
        return True
    pads, axes = walk.layout.values(node.input[1]), input_at(node, 3)
    if not walk.graph.keeps_codes(node) or pads is None or axes:
        return False
    groups = walk.groups[node.input[0]]
    for axis, (before, after) in enumerate(pads.reshape(2, -1).T.tolist()):
        if groups.shape[axis] > 1:
            groups = np.moveaxis(groups, axis, -1)
            kept = groups[..., max(-before, 0) : groups.shape[-1] - max(-after, 0)]
            more = [
                np.broadcast_to(walk.fresh(max(count, 0)), (*kept.shape[:-1], max(count, 0)))
                for count in (before, after)
            ]
            groups = np.moveaxis(np.concatenate([more[0], kept, more[1]], axis=-1), -1, axis)
    walk.groups[node.output[0]] = groups
    return True


def _join(walk: _Walk, node: NodeProto) -> bool:
    """A sum, difference or maximum of two tensors, of which one may be a constant."""
    if len(node.input) != 2:
        return False
    left, right = node.input
    rank = len(walk.layout.shape[node.output[0]])
    if left in walk.groups and right in walk.groups:
        a, b = (_at_rank(walk.groups[name], rank) for name in node.input)
        walk.unite(a, b)
        walk.groups[node.output[0]] = np.broadcast_to(a, np.broadcast_shapes(a.shape, b.shape))
        return True
    activation, constant = (left, right) if left in walk.groups else (right, left)
    if activation not in walk.groups or not walk.owns(constant):
        return False
    groups, own = _at_rank(walk.groups[activation], rank), walk.graph.constant(constant).shape
    shape = (1,) * (rank - len(own)) + own
    if len(shape) < len(own) or np.broadcast_shapes(groups.shape, shape) != shape:
        return False
    walk.scale(constant, groups.reshape(groups.shape[rank - len(own) :]), 1)
    walk.groups[node.output[0]] = groups
    return True


def _at_rank(groups: I64, rank: int) -> I64:
    return groups.reshape([1] * (rank - groups.ndim) + list(groups.shape))


def _product(walk: _Walk, node: NodeProto) -> bool:
    """A product or quotient with a constant, or with a gate whose own factor is 1 (squeeze and excite)."""
    made = [name for name in node.input if name in walk.groups]
    if len(made) != 1 or (node.op_type == "Div" and made[0] != node.input[0]):
        return not made
    walk.groups[node.output[0]] = _at_rank(walk.groups[made[0]], len(walk.layout.shape[node.output[0]]))
    return True


# Each returns whether the operator commutes with factors. If so, it sets the groups of the output; else the inputs are
# pinned.
_RULES: dict[str, Callable[[_Walk, NodeProto], bool]] = {
    "Conv": _conv,
    "Gemm": _matmul,
    "MatMul": _matmul,
    "BatchNormalization": _batch_norm,
    **dict.fromkeys(["Relu", "LeakyRelu", "PRelu", "Identity", "Dropout", "Abs", "Neg"], _same),
    **dict.fromkeys(["MaxPool", "AveragePool"], _pool),
    **dict.fromkeys(
        ["GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"], _reduce
    ),
    **dict.fromkeys(["Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Concat"], _move),
    **dict.fromkeys(["Gather", "Expand", "Tile", "DepthToSpace", "SpaceToDepth"], _move),
    "ConstantOfShape": _constant_of_shape,
    "Resize": _resize,
    "Pad": _pad,
    **dict.fromkeys(["Add", "Sub", "Max", "Min"], _join),
    **dict.fromkeys(["Mul", "Div"], _product),
}


def scaled(model: ModelProto, groups: ChannelGroups, factors: F64) -> ModelProto:
    """The same function with every group of channels multiplied by its factor; the model given is not changed.

    ``factors`` are (groups.size,) positive numbers, 1 for ``PINNED``.
    """
    graph = Graph.copy_of(model)
    values: dict[str, F64] = {}
    for each in groups.constants:
        name = each.constant
        value = values[name] if name in values else graph.constant(name).astype(np.float64)
        values[name] = value * factors[each.groups] ** each.power
    for name, value in values.items():
        graph.set_constant(name, value.astype(np.float32))
    return graph.model
