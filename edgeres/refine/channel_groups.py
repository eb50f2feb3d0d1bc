"""Which channels can be scaled together without changing what a network computes.

ReLU, max and mean pooling, sums, slices and zero padding commute with a positive factor per channel: f(s x) = s f(x).
So a factor can be put into the layer that makes a channel and taken out of the layers that read it. In a residual
network the Add ties channel c of both its inputs and of its output to one factor, which thereby runs along a whole
stage, and through option A's Slice and Pad into the next:

    Conv -> x -> ReLU -> Conv -> Add(y, x) -> ReLU -> ... -> Conv | Gemm
    W[c] s_c            W[:, c] / s_c                        W[:, c] / s_c

Sigmoid, Clip at 6, Softmax and whatever is not known here do not commute: what they read is pinned to the factor 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from edgeres.graph.graph import Graph
from edgeres.records import F64, I64

PINNED = 0


@dataclass(frozen=True)
class Tie:
    """A constant that absorbs factors: ``value * factors[groups] ** power``.

    Attributes:
        groups: broadcasts against the constant's values.
    """

    constant: str
    groups: I64
    power: int


@dataclass(frozen=True)
class Ties:
    """Which channels of which tensors must be scaled by one factor, and which constants take the factors up.

    Attributes:
        channels: by tensor, one group number per channel (axis 1). Tensors that are not in it keep their values.
        ties: every constant to be changed.
        size: how many groups there are; group 0 (``PINNED``) always has the factor 1.
    """

    channels: dict[str, I64]
    ties: list[Tie]
    size: int


def find_ties(model: onnx.ModelProto) -> Ties:
    """Follow every channel from the layer that makes it to the layers that read it, from the graph alone.

    A constant that several nodes read keeps its values, and so do the tensors of those nodes.
    """
    walk = _Walk(model)
    for node in walk.view.nodes:
        rule = _RULES.get(node.op_type)
        if rule is None or not rule(walk, node):
            walk.pin(node)
    for output in model.graph.output:
        walk.unite(walk.channels.get(output.name, np.zeros(1, np.int64)), np.int64(PINNED))
    return walk.finish()


class _Walk:
    """One pass over the nodes in graph order; groups are numbers, united as in Galler and Fischer (1964)."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.view = Graph(model)
        inferred = shape_inference.infer_shapes(model).graph
        self._shapes = {
            v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
            for v in (*inferred.value_info, *inferred.input, *inferred.output)
        }
        self._parent = [PINNED]
        self.channels: dict[str, I64] = {}
        self.ties: list[Tie] = []

    def shape(self, tensor: str) -> list[int]:
        """With 0 for the batch and for what is not known."""
        return self._shapes.get(tensor, [])

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

    def pin(self, node: onnx.NodeProto) -> None:
        """An operator that does not commute with factors: what it reads keeps its values."""
        for name in node.input:
            if name in self.channels:
                self.unite(self.channels[name], np.int64(PINNED))

    def owns(self, *constants: str) -> bool:
        """Whether these are constants that no other node reads, so that they can be changed."""
        return all(self.view.is_constant(name) and len(self.view.consumers(name)) == 1 for name in constants)

    def tie(self, constant: str, groups: I64, power: int) -> None:
        self.ties.append(Tie(constant, groups, power))

    def finish(self) -> Ties:
        roots = np.array([self.find(group) for group in range(len(self._parent))])
        kept, compact = np.unique(roots, return_inverse=True)
        return Ties(
            {name: compact[groups] for name, groups in self.channels.items()},
            [Tie(tie.constant, compact[tie.groups], tie.power) for tie in self.ties],
            len(kept),
        )


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _conv(walk: _Walk, node: onnx.NodeProto) -> bool:
    if not walk.owns(*filter(None, node.input[1:])):
        return False
    outputs, per_group = walk.view.constant(node.input[1]).shape[:2]
    spatial = (1,) * (walk.view.constant(node.input[1]).ndim - 2)
    made = walk.fresh(outputs)
    if node.input[0] in walk.channels:
        read = walk.channels[node.input[0]].reshape(-1, per_group)
        walk.tie(node.input[1], read.repeat(outputs // len(read), axis=0).reshape(outputs, per_group, *spatial), -1)
    walk.tie(node.input[1], made.reshape(-1, 1, *spatial), 1)
    if len(node.input) > 2 and node.input[2]:
        walk.tie(node.input[2], made, 1)
    walk.channels[node.output[0]] = made
    return True


def _matmul(walk: _Walk, node: onnx.NodeProto) -> bool:
    attributes = _attributes(node)
    if not walk.owns(*filter(None, node.input[1:])) or attributes.get("transA") or len(walk.shape(node.input[0])) != 2:
        return False
    transposed = bool(attributes.get("transB"))
    outputs = walk.view.constant(node.input[1]).shape[0 if transposed else 1]
    bias = node.input[2] if len(node.input) > 2 else ""
    if bias and walk.view.constant(bias).shape not in {(outputs,), (1, outputs)}:
        return False
    made = walk.fresh(outputs)
    if node.input[0] in walk.channels:
        walk.tie(node.input[1], walk.channels[node.input[0]].reshape((1, -1) if transposed else (-1, 1)), -1)
    walk.tie(node.input[1], made.reshape((-1, 1) if transposed else (1, -1)), 1)
    if bias:
        walk.tie(bias, made, 1)
    walk.channels[node.output[0]] = made
    return True


def _batch_norm(walk: _Walk, node: onnx.NodeProto) -> bool:
    scale, shift, mean, _ = node.input[1:]
    if not walk.owns(scale, shift, mean):
        return False
    made = walk.fresh(walk.view.constant(scale).size)
    if node.input[0] in walk.channels:
        read = walk.channels[node.input[0]]
        walk.tie(scale, read, -1)
        walk.tie(mean, read, 1)
    walk.tie(scale, made, 1)
    walk.tie(shift, made, 1)
    walk.channels[node.output[0]] = made
    return True


def _same(walk: _Walk, node: onnx.NodeProto) -> bool:
    if node.input[0] in walk.channels:
        walk.channels[node.output[0]] = walk.channels[node.input[0]]
    return True


def _mean(walk: _Walk, node: onnx.NodeProto) -> bool:
    before, after = walk.shape(node.input[0]), walk.shape(node.output[0])
    return after[:2] == before[:2] and len(before) == 4 and _same(walk, node)


def _flatten(walk: _Walk, node: onnx.NodeProto) -> bool:
    """(N, C, H, W) -> (N, C H W): each channel becomes H W neighbours."""
    if node.input[0] not in walk.channels:
        return True
    groups, after = walk.channels[node.input[0]], walk.shape(node.output[0])
    spatial = math.prod(walk.shape(node.input[0])[2:])
    if len(after) != 2 or spatial < 1 or after[1] != len(groups) * spatial:
        return False
    walk.channels[node.output[0]] = groups.repeat(spatial)
    return True


def _slice(walk: _Walk, node: onnx.NodeProto) -> bool:
    if node.input[0] not in walk.channels:
        return True
    if not all(walk.view.is_constant(name) for name in node.input[1:] if name):
        return False
    starts, ends, *rest = (walk.view.constant(name).tolist() for name in node.input[1:])
    axes = rest[0] if rest else list(range(len(starts)))
    steps = rest[1] if len(rest) > 1 else [1] * len(starts)
    groups = walk.channels[node.input[0]]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if axis in {1, 1 - len(walk.shape(node.input[0]))}:
            if step < 0:
                return False
            groups = groups[start:end:step]
    walk.channels[node.output[0]] = groups
    return True


def _pad(walk: _Walk, node: onnx.NodeProto) -> bool:
    if node.input[0] not in walk.channels:
        return True
    if not walk.view.keeps_codes(node) or not walk.view.is_constant(node.input[1]) or len(node.input) > 3:
        return False
    pads = walk.view.constant(node.input[1])
    before, after = int(pads[1]), int(pads[len(pads) // 2 + 1])
    if min(before, after) < 0 or (max(before, after) and _attributes(node).get("mode", b"constant") != b"constant"):
        return False
    groups = walk.channels[node.input[0]]
    walk.channels[node.output[0]] = np.concatenate([walk.fresh(before), groups, walk.fresh(after)])
    return True


def _add(walk: _Walk, node: onnx.NodeProto) -> bool:
    left, right = node.input
    if left in walk.channels and right in walk.channels:
        a, b = walk.channels[left], walk.channels[right]
        if len(a) != len(b) or len(walk.shape(left)) != len(walk.shape(right)):
            return False
        walk.unite(a, b)
        walk.channels[node.output[0]] = a
        return True
    activation, constant = (left, right) if left in walk.channels else (right, left)
    if activation not in walk.channels or not walk.owns(constant):
        return False
    groups = walk.channels[activation]
    shape = walk.view.constant(constant).shape
    shape = (1,) * (len(walk.shape(activation)) - len(shape)) + shape
    if len(shape) < 2 or shape[1] != len(groups):
        return False
    walk.tie(constant, groups.reshape(-1, *(1,) * (len(shape) - 2)), 1)
    walk.channels[node.output[0]] = groups
    return True


def _mul(walk: _Walk, node: onnx.NodeProto) -> bool:
    """By a constant, or by a gate that is pinned itself (squeeze and excite)."""
    made = [name for name in node.input if name in walk.channels]
    if len(made) != 1:
        return not made
    before, after = walk.shape(made[0]), walk.shape(node.output[0])
    if len(before) != len(after) or before[1] != after[1]:
        return False
    walk.channels[node.output[0]] = walk.channels[made[0]]
    return True


_RULES: dict[str, Callable[[_Walk, onnx.NodeProto], bool]] = {
    "Conv": _conv,
    "Gemm": _matmul,
    "MatMul": _matmul,
    "BatchNormalization": _batch_norm,
    **dict.fromkeys(
        ["Relu", "LeakyRelu", "PRelu", "Identity", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"],
        _same,
    ),
    "ReduceMean": _mean,
    **dict.fromkeys(["Flatten", "Reshape", "Squeeze"], _flatten),
    "Slice": _slice,
    "Pad": _pad,
    "Add": _add,
    "Mul": _mul,
}


def scaled(model: onnx.ModelProto, ties: Ties, factors: F64) -> onnx.ModelProto:
    """The same function with every tied tensor multiplied by its channels' factors; the graph given is not changed.

    Args:
        factors: (ties.size,) positive, 1 for ``PINNED``.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    constants = {t.name: t for t in result.graph.initializer}
    values: dict[str, F64] = {}
    for tie in ties.ties:
        value = values.get(tie.constant)
        if value is None:
            value = numpy_helper.to_array(constants[tie.constant]).astype(np.float64)
        values[tie.constant] = value * factors[tie.groups] ** tie.power
    for name, value in values.items():
        constants[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
    return result
