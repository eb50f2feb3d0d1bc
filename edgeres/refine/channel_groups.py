"""Groups of channels that can be scaled by one factor without a change of what the network computes.

ReLU, max and mean pooling, sums, slices and zero padding commute with a positive factor per channel: f(s x) = s f(x).
So the layer that writes a channel can be multiplied by a factor, and the layers that read it divided by it. In a
residual network the Add puts channel c of both its inputs and of its output into one group, so one factor applies to
the channel along a whole stage, and through option A's Slice and Pad into the next:

    Conv -> x -> ReLU -> Conv -> Add(y, x) -> ReLU -> ... -> Conv | Gemm
    W[c] s_c            W[:, c] / s_c                        W[:, c] / s_c

Sigmoid, Clip at 6, Softmax and unknown operators do not commute: their inputs keep the factor 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from onnx import ModelProto, NodeProto

from edgeres.graph.graph import Graph, attributes, input_at
from edgeres.records import F64, I64

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
        channels: by tensor, the group of each channel (axis 1). Tensors that are missing keep their values.
        size: number of groups; group 0 (``PINNED``) always has the factor 1.
    """

    channels: dict[str, I64]
    constants: list[ScaledConstant]
    size: int


def find_channel_groups(graph: Graph) -> ChannelGroups:
    """Follow every channel from the layer that writes it to the layers that read it.

    A constant that several nodes read keeps its values, and so do the inputs of those nodes.
    """
    walk = _Walk(graph)
    for node in walk.graph.nodes:
        rule = _RULES.get(node.op_type)
        if rule is None or not rule(walk, node):
            walk.pin(node)
    for output in walk.graph.outputs:
        walk.unite(walk.channels.get(output, np.zeros(1, np.int64)), np.int64(PINNED))
    return walk.finish()


class _Walk:
    """One pass over the nodes in graph order; groups are numbers, united as in Galler and Fischer (1964)."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._parent = [PINNED]
        self.channels: dict[str, I64] = {}
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

    def pin(self, node: NodeProto) -> None:
        """Keep the values of a node's inputs: its operator does not commute with factors."""
        for name in node.input:
            if name in self.channels:
                self.unite(self.channels[name], np.int64(PINNED))

    def owns(self, *constants: str) -> bool:
        """Whether these are constants that no other node reads: only such can be changed."""
        return all(self.graph.is_constant(name) and len(self.graph.consumers(name)) == 1 for name in constants)

    def scale(self, constant: str, groups: I64, power: int) -> None:
        self.constants.append(ScaledConstant(constant, groups, power))

    def finish(self) -> ChannelGroups:
        roots = np.array([self.find(group) for group in range(len(self._parent))])
        kept, compact = np.unique(roots, return_inverse=True)
        return ChannelGroups(
            {name: compact[groups] for name, groups in self.channels.items()},
            [replace(each, groups=compact[each.groups]) for each in self.constants],
            len(kept),
        )


def _conv(walk: _Walk, node: NodeProto) -> bool:
    if not walk.owns(*filter(None, node.input[1:])):
        return False
    outputs, per_group = walk.graph.constant(node.input[1]).shape[:2]
    spatial = (1,) * (walk.graph.constant(node.input[1]).ndim - 2)
    made = walk.fresh(outputs)
    if node.input[0] in walk.channels:
        read = walk.channels[node.input[0]].reshape(-1, per_group)
        walk.scale(node.input[1], read.repeat(outputs // len(read), axis=0).reshape(outputs, per_group, *spatial), -1)
    walk.scale(node.input[1], made.reshape(-1, 1, *spatial), 1)
    if input_at(node, 2):
        walk.scale(node.input[2], made, 1)
    walk.channels[node.output[0]] = made
    return True


def _matmul(walk: _Walk, node: NodeProto) -> bool:
    given = attributes(node)
    if not walk.owns(*filter(None, node.input[1:])) or given.get("transA") or len(walk.graph.shape(node.input[0])) != 2:
        return False
    transposed = bool(given.get("transB"))
    outputs = walk.graph.constant(node.input[1]).shape[0 if transposed else 1]
    bias = input_at(node, 2)
    if bias and walk.graph.constant(bias).shape not in {(outputs,), (1, outputs)}:
        return False
    made = walk.fresh(outputs)
    if node.input[0] in walk.channels:
        walk.scale(node.input[1], walk.channels[node.input[0]].reshape((1, -1) if transposed else (-1, 1)), -1)
    walk.scale(node.input[1], made.reshape((-1, 1) if transposed else (1, -1)), 1)
    if bias:
        walk.scale(bias, made, 1)
    walk.channels[node.output[0]] = made
    return True


def _batch_norm(walk: _Walk, node: NodeProto) -> bool:
    scale, shift, mean, _ = node.input[1:]
    if not walk.owns(scale, shift, mean):
        return False
    made = walk.fresh(walk.graph.constant(scale).size)
    if (read := walk.channels.get(node.input[0])) is not None:
        walk.scale(scale, read, -1)
        walk.scale(mean, read, 1)
    walk.scale(scale, made, 1)
    walk.scale(shift, made, 1)
    walk.channels[node.output[0]] = made
    return True


def _same(walk: _Walk, node: NodeProto) -> bool:
    if node.input[0] in walk.channels:
        walk.channels[node.output[0]] = walk.channels[node.input[0]]
    return True


def _mean(walk: _Walk, node: NodeProto) -> bool:
    before, after = walk.graph.shape(node.input[0]), walk.graph.shape(node.output[0])
    return after[:2] == before[:2] and len(before) == 4 and _same(walk, node)


def _flatten(walk: _Walk, node: NodeProto) -> bool:
    """(N, C, H, W) -> (N, C H W): each channel becomes H W neighbours."""
    if node.input[0] not in walk.channels:
        return True
    groups, after = walk.channels[node.input[0]], walk.graph.shape(node.output[0])
    spatial = math.prod(walk.graph.shape(node.input[0])[2:])
    if len(after) != 2 or spatial < 1 or after[1] != len(groups) * spatial:
        return False
    walk.channels[node.output[0]] = groups.repeat(spatial)
    return True


def _slice(walk: _Walk, node: NodeProto) -> bool:
    if node.input[0] not in walk.channels:
        return True
    if not all(walk.graph.is_constant(name) for name in node.input[1:] if name):
        return False
    starts, ends, *rest = (walk.graph.constant(name).tolist() for name in node.input[1:])
    axes = rest[0] if rest else list(range(len(starts)))
    steps = rest[1] if len(rest) > 1 else [1] * len(starts)
    groups = walk.channels[node.input[0]]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if axis in {1, 1 - len(walk.graph.shape(node.input[0]))}:
            if step < 0:
                return False
            groups = groups[start:end:step]
    walk.channels[node.output[0]] = groups
    return True


def _pad(walk: _Walk, node: NodeProto) -> bool:
    if node.input[0] not in walk.channels:
        return True
    if not walk.graph.keeps_codes(node) or not walk.graph.is_constant(node.input[1]) or len(node.input) > 3:
        return False
    pads = walk.graph.constant(node.input[1])
    before, after = int(pads[1]), int(pads[len(pads) // 2 + 1])
    if min(before, after) < 0 or (max(before, after) and attributes(node).get("mode", b"constant") != b"constant"):
        return False
    groups = walk.channels[node.input[0]]
    walk.channels[node.output[0]] = np.concatenate([walk.fresh(before), groups, walk.fresh(after)])
    return True


def _add(walk: _Walk, node: NodeProto) -> bool:
    left, right = node.input
    if left in walk.channels and right in walk.channels:
        a, b = walk.channels[left], walk.channels[right]
        if len(a) != len(b) or len(walk.graph.shape(left)) != len(walk.graph.shape(right)):
            return False
        walk.unite(a, b)
        walk.channels[node.output[0]] = a
        return True
    activation, constant = (left, right) if left in walk.channels else (right, left)
    if activation not in walk.channels or not walk.owns(constant):
        return False
    groups = walk.channels[activation]
    shape = walk.graph.constant(constant).shape
    shape = (1,) * (len(walk.graph.shape(activation)) - len(shape)) + shape
    if len(shape) < 2 or shape[1] != len(groups):
        return False
    walk.scale(constant, groups.reshape(-1, *(1,) * (len(shape) - 2)), 1)
    walk.channels[node.output[0]] = groups
    return True


def _mul(walk: _Walk, node: NodeProto) -> bool:
    """A product with a constant, or with a gate whose own factor is 1 (squeeze and excite)."""
    made = [name for name in node.input if name in walk.channels]
    if len(made) != 1:
        return not made
    before, after = walk.graph.shape(made[0]), walk.graph.shape(node.output[0])
    if len(before) != len(after) or before[1] != after[1]:
        return False
    walk.channels[node.output[0]] = walk.channels[made[0]]
    return True


# Each returns whether the operator commutes with factors. If so, it sets the channels of the output; else the inputs
# are pinned.
_RULES: dict[str, Callable[[_Walk, NodeProto], bool]] = {
    "Conv": _conv,
    "Gemm": _matmul,
    "MatMul": _matmul,
    "BatchNormalization": _batch_norm,
    **dict.fromkeys(["Relu", "LeakyRelu", "PRelu", "Identity"], _same),
    **dict.fromkeys(["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"], _same),
    "ReduceMean": _mean,
    **dict.fromkeys(["Flatten", "Reshape", "Squeeze"], _flatten),
    "Slice": _slice,
    "Pad": _pad,
    "Add": _add,
    "Mul": _mul,
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
