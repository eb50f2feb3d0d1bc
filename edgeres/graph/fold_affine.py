"""Fold what multiplies and shifts the output of a convolution or a matrix product into its weights and bias.

Exporters write batch norm as BatchNormalization, or as Sub, Mul, Div and Add of constants in any order. All of them are
one scale and one shift per channel:

    before    Conv -> Sub(mean) -> Mul(scale) -> Add(shift) -> ReLU
    after     Conv -> ReLU

Worked number: a channel with weight 2 and bias 1, behind it Sub(3), Mul(0.5), Add(4), gets weight 1 and bias
(1 - 3) * 0.5 + 4 = 3.

What stands elsewhere, such as the batch norm behind an Add in a network with pre-activation, becomes one Mul and one
Add, for which runtimes have kernels:

    before    Add -> Sub(mean) -> Mul(scale) -> Add(shift) -> ReLU
    after     Add -> Mul(scale) -> Add(shift - mean * scale) -> ReLU
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto

from edgeres.graph.graph import WEIGHTED, Graph, attributes, input_at

_F64 = npt.NDArray[np.float64]
# Scale and shift of one node, per channel or for all.
_Step = tuple[_F64 | float, _F64 | float]


@dataclass(frozen=True)
class _Place:
    """Where the channels are in the tensor that is scaled: its rank, and their axis and number."""

    rank: int
    axis: int
    channels: int


@dataclass(frozen=True)
class _Affine:
    """``scale * x + shift``, a value per channel each."""

    scale: _F64
    shift: _F64

    def then(self, scale: _F64 | float, shift: _F64 | float) -> _Affine:
        return _Affine(self.scale * scale, self.shift * scale + shift)


def fold_affine(model: ModelProto) -> int:
    """Fold into every Conv, Gemm and MatMul what scales and shifts its channels; the model is changed.

    Only tensors that nothing else reads are folded away. A Gemm's alpha and beta become 1. Sums are kept in float64
    until the weights are written.

    Returns:
        The number of nodes that are gone.
    """
    graph = Graph(model)
    before = len(graph.nodes)
    for node in graph.of(*WEIGHTED):
        if _has_plain_weights(graph, node):
            _fold_into(graph, node)
    for tensor, place, chain in list(_loose_chains(graph)):
        _merge(graph, tensor, place, chain)
    graph.prune()
    return before - len(graph.nodes)


_Chain = list[tuple[NodeProto, _Step]]


def _loose_chains(graph: Graph) -> Iterator[tuple[str, _Place, _Chain]]:
    """Runs of constants that scale and shift a tensor behind a weighted node: the tensor, its channels, the nodes.

    In front of the first weighted node they normalize the image, which is read elsewhere.
    """
    behind: set[str] = set()
    taken: set[str] = set()
    for node in graph.nodes:
        if node.op_type in WEIGHTED or not behind.isdisjoint(node.input):
            behind.update(node.output)
        tensor = next((name for name in node.input if not graph.is_constant(name)), "")
        shape = graph.shape(tensor)
        if node.name in taken or tensor not in behind or not shape:
            continue
        for axis in dict.fromkeys((min(1, len(shape) - 1), len(shape) - 1)):
            place = _Place(len(shape), axis, max(shape[axis], 1))
            chain = list(_run(graph, node, tensor, place))
            if len(chain) > 1 or (chain and node.op_type in {"Sub", "Div"}):
                taken.update(member.name for member, _ in chain)
                yield tensor, place, chain
                break


def _run(graph: Graph, node: NodeProto, tensor: str, place: _Place) -> Iterator[tuple[NodeProto, _Step]]:
    while node.op_type in {"Add", "Sub", "Mul", "Div"} and (step := _step(graph, node, tensor, place)) is not None:
        yield node, step
        tensor = node.output[0]
        readers = graph.consumers(tensor)
        if len(readers) != 1 or tensor in graph.outputs:
            return
        node = readers[0]


def _merge(graph: Graph, tensor: str, place: _Place, chain: _Chain) -> None:
    """Write a run as one Mul and one Add, or the one of them that it takes."""
    total = _Affine(np.ones(place.channels), np.zeros(place.channels))
    for _, (scale, shift) in chain:
        total = total.then(scale, shift)
    with np.errstate(over="ignore"):
        wanted = {"Mul": total.scale.astype(np.float32), "Add": total.shift.astype(np.float32)}
    needed = [op for op, neutral in (("Mul", 1.0), ("Add", 0.0)) if (wanted[op] != neutral).any()]
    if not 0 < len(needed) <= len(chain) or not all(np.isfinite(values).all() for values in wanted.values()):
        return
    for node, _ in chain[len(needed) :]:
        graph.bypass(node)
    along = [-1 if axis == place.axis else 1 for axis in range(place.rank)]
    for (node, _), op in zip(chain, needed, strict=False):
        values = wanted[op]
        one = values[0] if (values == values[0]).all() else values.reshape(along)
        name = next(name for i in count() if (name := f"{node.output[0]}/merged_{i}") not in graph)
        node.op_type = op
        graph.set_inputs(node, [tensor, graph.add_constant(name, one)])
        tensor = node.output[0]


def _has_plain_weights(graph: Graph, node: NodeProto) -> bool:
    if not graph.is_constant(node.input[1]) or graph.is_constant(node.input[0]):
        return False
    weights, name = graph.constant(node.input[1]), input_at(node, 2)
    if weights.dtype != np.float32 or (node.op_type != "Conv" and weights.ndim != 2):
        return False
    if not name:
        return True
    bias = graph.constant(name) if graph.is_constant(name) else np.zeros(0)
    return bias.size == 1 or bias.shape[-1:] == (bias.size,) == (weights.shape[_output_axis(node)],)


def _output_axis(node: NodeProto) -> int:
    """The axis of the output channels in the weights."""
    return 0 if node.op_type == "Conv" or attributes(node).get("transB") else 1


def _fold_into(graph: Graph, node: NodeProto) -> None:
    weights = graph.constant(node.input[1])
    channels = weights.shape[_output_axis(node)]
    alpha, beta = (float(attributes(node).get(name, 1.0)) for name in ("alpha", "beta"))
    chain = list(_chain(graph, node, channels))
    if not chain and alpha == beta == 1:
        return
    total = _Affine(np.ones(channels), np.zeros(channels))
    for _, (scale, shift) in chain:
        total = total.then(scale, shift)
    bias = graph.constant(node.input[2]).astype(np.float64).reshape(-1) if input_at(node, 2) else np.zeros(1)
    along = [-1 if axis == _output_axis(node) else 1 for axis in range(weights.ndim)]
    with np.errstate(over="ignore"):
        scaled = (weights * (alpha * total.scale).reshape(along)).astype(np.float32)
        shifted = (total.scale * beta * bias + total.shift).astype(np.float32)
    if np.isfinite(scaled).all() and np.isfinite(shifted).all():
        _write(graph, node, scaled, shifted)
        for folded, _ in chain:
            graph.bypass(folded)


def _write(graph: Graph, node: NodeProto, weights: npt.NDArray[np.float32], shift: npt.NDArray[np.float32]) -> None:
    """Give a node these weights and this bias; constants that other nodes read too stay as they are."""
    name = next(name for i in count() if (name := f"{node.output[0]}/folded_{i}") not in graph)
    inputs = [node.input[0], graph.add_constant(name, weights)]
    if shift.any() or input_at(node, 2):
        inputs.append(graph.add_constant(f"{name}_bias", shift))
    if node.op_type == "MatMul" and len(inputs) > 2:
        node.op_type = "Gemm"
    kept = [attribute for attribute in node.attribute if attribute.name not in {"alpha", "beta"}]
    del node.attribute[:]
    node.attribute.extend(kept)
    graph.set_inputs(node, inputs)


def _chain(graph: Graph, node: NodeProto, channels: int) -> Iterator[tuple[NodeProto, _Step]]:
    """The nodes behind a weighted one that scale and shift its channels, with scale and shift."""
    rank = graph.constant(node.input[1]).ndim if node.op_type != "MatMul" else len(graph.shape(node.output[0]))
    if not rank:  # unknown
        return
    may_shift = node.op_type != "MatMul" or rank == 2
    axis = 1 if node.op_type == "Conv" else rank - 1
    tensor = node.output[0]
    while len(readers := graph.consumers(tensor)) == 1 and tensor not in graph.outputs:
        reader = readers[0]
        if reader.op_type == "Transpose":
            axis = list(attributes(reader).get("perm") or reversed(range(rank))).index(axis)
        else:
            step = _step(graph, reader, tensor, _Place(rank, axis, channels))
            if step is None or not (may_shift or not np.any(step[1])):
                return
            yield reader, step
        tensor = reader.output[0]


def _step(graph: Graph, node: NodeProto, tensor: str, place: _Place) -> _Step | None:
    """Scale and shift of one node, per channel or for all; None if it does anything else."""
    if node.op_type == "Neg":
        return -1.0, 0.0
    if node.op_type == "BatchNormalization":
        return _batch_norm(graph, node, place)
    if node.op_type not in {"Add", "Sub", "Mul", "Div"} or node.input[0] == node.input[1]:
        return None
    first = node.input[0] == tensor
    value = _per_channel(graph, node.input[1 if first else 0], place)
    if value is None:
        return None
    match node.op_type:
        case "Add":
            return 1.0, value
        case "Sub":
            return (1.0, -value) if first else (-1.0, value)
        case "Mul":
            return value, 0.0
        case _:
            return (1 / value, 0.0) if first and np.all(value != 0) else None


def _per_channel(graph: Graph, constant: str, place: _Place) -> _F64 | None:
    """The values of a constant that differs between channels only, one for all or one for each; None for others."""
    if not graph.is_constant(constant):
        return None
    values = graph.constant(constant)
    wanted = [1] * place.rank
    wanted[place.axis] = place.channels
    shape = [1] * (place.rank - values.ndim) + list(values.shape)
    fits = len(shape) == place.rank and all(size in {1, whole} for size, whole in zip(shape, wanted, strict=True))
    return values.astype(np.float64).reshape(-1) if fits and values.dtype == np.float32 else None


def _batch_norm(graph: Graph, node: NodeProto, place: _Place) -> _Step | None:
    given = attributes(node)
    plain = place.axis == 1 and len([name for name in node.output if name]) == 1 and not given.get("training_mode")
    if not plain or not all(graph.is_constant(name) for name in node.input[1:]):
        return None
    gain, shift, mean, variance = (graph.constant(name).astype(np.float64) for name in node.input[1:])
    scale = gain / np.sqrt(variance + given.get("epsilon", 1e-5))
    return scale, shift - mean * scale
