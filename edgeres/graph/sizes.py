"""The size of every tensor of a graph and the work of every node, by arithmetic on declared sizes.

It knows the operators that residual networks are made of, and allocates nothing. ONNX's own inference is not asked: it
believes what a file says of its tensors, and can itself be made to compute lists without end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeres.graph.skeleton import Declared, Operation, Skeleton

_FEW = 1024  # values that are followed: they are sizes

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Known:
    """A tensor's sizes, and its values where they are few and known."""

    shape: Shape
    values: npt.NDArray[Any] | None = None

    @property
    def count(self) -> int:
        """Number of values."""
        return prod(self.shape)


class Unknown(Exception):
    """Only a run can tell the sizes; the text says of what."""


@dataclass(frozen=True)
class Sizes:
    """What a graph needs for one image.

    Attributes:
        alive: the most values that nodes have written and others have yet to read, and all that are computed from
            constants: those are computed once and kept.
        work: multiplications and additions, or values read and written where that is more.
        folded: the part of ``work`` that constants alone take.
        listed: values of all vectors: ONNX's inference makes an object of each number in what may be sizes.
        largest: the node that writes the most, or works the most.
        unknown: what only a run can tell; "" where everything is known.
    """

    alive: int
    work: int
    folded: int
    listed: int
    largest: str
    unknown: str


class _Sum:
    """Adds up the nodes of a graph in their order."""

    def __init__(self, skeleton: Skeleton, free_px: int) -> None:
        self.known = {tensor.name: Known(tensor.dims, tensor.values) for tensor in skeleton.initializers}
        self.images = {name: shape for name, shape in skeleton.inputs.items() if name not in self.known}
        for name, shape in self.images.items():
            if shape is not None:
                sizes = (size or (free_px if axis else 1) for axis, size in enumerate(shape))
                self.known[name] = Known(tuple(sizes))
        self.from_image = set(self.images)
        self.ends = {name: index for index, node in enumerate(skeleton.nodes) for name in node.inputs}
        self.now = self.peak = sum(self.known[name].count for name in self.images if name in self.known)
        self.kept = self.work = self.folded = self.listed = 0
        self.largest, self._share, self.unknown = "the input", self.peak, ""

    def add(self, index: int, node: Operation) -> None:
        """The next node."""
        title = f"{node.op} {node.name or ', '.join(node.outputs)}"
        by_image = not self.from_image.isdisjoint(node.inputs)
        if by_image:
            self.from_image.update(node.outputs)
        try:
            made, cost = _node(node, self.known)
        except Unknown as error:
            self.unknown = self.unknown or f"{title}: {error}"
            return
        self.known.update((name, tensor) for name, tensor in zip(node.outputs, made, strict=False) if name)
        own = sum(tensor.count for tensor in made)
        cost = max(cost, own)
        self.work += cost
        self.listed += sum(tensor.count for tensor in made if len(tensor.shape) < 2)
        if by_image:
            self.now += own
            self.peak = max(self.peak, self.now)
            ended = {name for name in node.inputs if name in self.from_image and self.ends[name] == index}
            unread = {name for name in node.outputs if name not in self.ends}
            self.now -= sum(self.known[name].count for name in ended | unread if name in self.known)
        else:
            self.kept, self.folded = self.kept + own, self.folded + cost
        if cost > self._share:
            self.largest, self._share = title, cost


def sizes_of(skeleton: Skeleton, free_px: int) -> Sizes:
    """What the main graph needs for one image.

    Args:
        free_px: stands for sizes that the graph leaves free, besides the batch.
    """
    total = _Sum(skeleton, free_px)
    for index, node in enumerate(skeleton.nodes):
        total.add(index, node)
    return Sizes(total.peak + total.kept, total.work, total.folded, total.listed, total.largest, total.unknown)


def _node(node: Operation, known: Mapping[str, Known]) -> tuple[list[Known], int]:
    """What a node writes, and its work."""
    rule = _RULES.get(node.op)
    if node.domain or node.has_graph or rule is None:
        raise Unknown("not one of the operators whose sizes are known" if not node.has_graph else "it runs subgraphs")
    given = [known.get(name) if name else None for name in node.inputs]
    if any(name and name not in known for name in node.inputs):
        raise Unknown("what it reads is not known")
    try:
        return rule(node, given)
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise Unknown(f"its inputs do not fit ({type(error).__name__})") from None


Inputs = Sequence[Known | None]
Made = tuple[list[Known], int]


def _at(given: Inputs, index: int) -> Known:
    found = given[index] if index < len(given) else None
    if found is None:
        raise Unknown(f"it lacks input {index}")
    return found


def _numbers(given: Inputs, index: int) -> list[int] | None:
    """The values of an input that holds sizes; None where it is left out."""
    found = given[index] if index < len(given) else None
    if found is None:
        return None
    if found.values is None:
        raise Unknown("sizes are computed from values")
    return [int(value) for value in found.values.reshape(-1)]


def _asked(node: Operation, given: Inputs, index: int, name: str) -> list[int] | None:
    """Numbers from an input, or from the attribute that older opsets have in its place."""
    found = _numbers(given, index)
    return found if found is not None else node.attributes.get(name)


def _one(shape: Sequence[int], cost: int = 0, values: npt.NDArray[Any] | None = None) -> Made:
    if min(shape, default=0) < 0:
        raise Unknown("a size is negative")
    return [
        Known(tuple(int(size) for size in shape), values if values is not None and values.size <= _FEW else None)
    ], cost


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise Unknown("an axis is not there")
    return axis % rank


def _same(node: Operation, given: Inputs) -> Made:
    first = _at(given, 0)
    kept = first.values if node.op in {"Identity", "Dropout"} else None
    return [Known(first.shape, kept)] * len(node.outputs), len(node.outputs) * first.count


def _cast(node: Operation, given: Inputs) -> Made:
    first = _at(given, 0)
    to_int = node.attributes.get("to") in {6, 7}
    kept = first.values.astype(np.int64) if to_int and first.values is not None else first.values
    return _one(first.shape, values=kept)


def _broadcast_shape(*shapes: Shape) -> Shape:
    found = []
    for sizes in zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1):
        others = {size for size in sizes if size != 1}
        if len(others) > 1:
            raise Unknown("sizes do not fit together")
        found.append(others.pop() if others else 1)
    return tuple(reversed(found))


def _broadcast(node: Operation, given: Inputs) -> Made:
    if not given or None in given:
        raise Unknown("an input is missing")
    parts = [tensor for tensor in given if tensor is not None]
    shape = _broadcast_shape(*(part.shape for part in parts))
    compute, values = _ON_VALUES.get(node.op), [part.values for part in parts]
    found = None
    if compute is not None and all(value is not None for value in values) and prod(shape) <= _FEW:
        with np.errstate(all="ignore"):
            found = np.asarray(compute(*values))
        found = found.astype(np.int64) if found.dtype == bool else found
    return _one(shape, prod(shape) * max(len(parts) - 1, 1), found)


def _divided(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if a.dtype.kind == "f" or b.dtype.kind == "f":
        return np.asarray(a / b)
    return np.asarray(np.trunc(a / b)).astype(np.int64)


_ON_VALUES: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": _divided,
    "Min": np.minimum,
    "Max": np.maximum,
    "Equal": np.equal,
    "Less": np.less,
    "Greater": np.greater,
    "Where": np.where,
    "Mod": np.mod,
}


def _window(node: Operation, sizes: Shape, kernel: Sequence[int]) -> list[int]:
    """Output height and width of a convolution or pool."""
    rank = len(sizes)
    strides, dilations = (node.attributes.get(name) or [1] * rank for name in ("strides", "dilations"))
    pads, mode = node.attributes.get("pads") or [0] * 2 * rank, node.attributes.get("auto_pad") or "NOTSET"
    if not len(kernel) == len(strides) == len(dilations) == rank == len(pads) / 2 or min(*strides, *kernel) < 1:
        raise Unknown("its window does not fit")
    found = []
    for axis, size in enumerate(sizes):
        if str(mode).startswith("SAME"):
            found.append(-(-size // strides[axis]))
            continue
        space = size + (pads[axis] + pads[axis + rank] if mode == "NOTSET" else 0)
        space -= dilations[axis] * (kernel[axis] - 1) + 1
        found.append((-(-space // strides[axis]) if node.attributes.get("ceil_mode") else space // strides[axis]) + 1)
    return found


def _conv(node: Operation, given: Inputs) -> Made:
    image, weight = _at(given, 0), _at(given, 3 if node.op == "QLinearConv" else 1)
    if len(image.shape) != len(weight.shape):
        raise Unknown("its weights do not fit")
    shape = [image.shape[0], weight.shape[0], *_window(node, image.shape[2:], weight.shape[2:])]
    return _one(shape, prod(shape) * prod(weight.shape[1:]))


def _conv_back(node: Operation, given: Inputs) -> Made:
    image, weight = _at(given, 0), _at(given, 1)
    rank = len(image.shape) - 2
    strides, dilations = (node.attributes.get(name) or [1] * rank for name in ("strides", "dilations"))
    pads, more = node.attributes.get("pads") or [0] * 2 * rank, node.attributes.get("output_padding") or [0] * rank
    if node.attributes.get("output_shape") or node.attributes.get("auto_pad", "NOTSET") != "NOTSET":
        raise Unknown("its output is given another way")
    shape = [image.shape[0], weight.shape[1] * node.attributes.get("group", 1)]
    for axis, (size, kernel) in enumerate(zip(image.shape[2:], weight.shape[2:], strict=True)):
        reach = strides[axis] * (size - 1) + dilations[axis] * (kernel - 1) + 1
        shape.append(reach + more[axis] - pads[axis] - pads[axis + rank])
    return _one(shape, image.count * prod(weight.shape[1:]))


def _pool(node: Operation, given: Inputs) -> Made:
    image, kernel = _at(given, 0), node.attributes["kernel_shape"]
    shape = (*image.shape[:2], *_window(node, image.shape[2:], kernel))
    made, cost = _one(shape, prod(shape) * prod(kernel))
    return made * len(node.outputs), cost * len(node.outputs)


def _global_pool(node: Operation, given: Inputs) -> Made:
    image = _at(given, 0)
    return _one((*image.shape[:2], *(1 for _ in image.shape[2:])), image.count)


def _gemm(node: Operation, given: Inputs) -> Made:
    left, right = _at(given, 0).shape, _at(given, 1).shape
    rows, inner = reversed(left) if node.attributes.get("transA") else left
    columns = right[0 if node.attributes.get("transB") else 1]
    return _one((rows, columns), rows * columns * max(inner, 1))


def _matmul(node: Operation, given: Inputs) -> Made:
    left, right = _at(given, 0).shape, _at(given, 1).shape
    if min(len(left), len(right)) < 2:
        raise Unknown("a factor is a vector")
    shape = (*_broadcast_shape(left[:-2], right[:-2]), left[-2], right[-1])
    return _one(shape, prod(shape) * max(left[-1], 1))


def _flatten(node: Operation, given: Inputs) -> Made:
    shape = _at(given, 0).shape
    axis = node.attributes.get("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return _one((prod(shape[:axis]), prod(shape[axis:])))


def _reshape(node: Operation, given: Inputs) -> Made:
    first, wanted = _at(given, 0), _asked(node, given, 1, "shape")
    if wanted is None:
        raise Unknown("its sizes are not given")
    keep_zero = node.attributes.get("allowzero")
    shape = [size if size or keep_zero else first.shape[axis] for axis, size in enumerate(wanted)]
    if -1 in shape:
        rest = prod(size for size in shape if size != -1)
        shape[shape.index(-1)] = first.count // rest if rest else 0
    if prod(shape) != first.count:
        raise Unknown("its sizes do not fit")
    return _one(shape, values=None if first.values is None else first.values.reshape(shape))


def _transpose(node: Operation, given: Inputs) -> Made:
    first = _at(given, 0)
    order = node.attributes.get("perm") or list(reversed(range(len(first.shape))))
    values = None if first.values is None else np.transpose(first.values, order)
    return _one([first.shape[axis] for axis in order], first.count, values)


def _squeeze(node: Operation, given: Inputs) -> Made:
    first, axes = _at(given, 0), _asked(node, given, 1, "axes")
    rank = len(first.shape)
    gone = (
        {axis for axis, size in enumerate(first.shape) if size == 1} if axes is None else {_axis(a, rank) for a in axes}
    )
    shape = [size for axis, size in enumerate(first.shape) if axis not in gone]
    if prod(shape) != first.count:
        raise Unknown("it squeezes what is not 1")
    return _one(shape, values=None if first.values is None else first.values.reshape(shape))


def _unsqueeze(node: Operation, given: Inputs) -> Made:
    first, axes = _at(given, 0), _asked(node, given, 1, "axes") or []
    rank = len(first.shape) + len(axes)
    new, rest = {_axis(axis, rank) for axis in axes}, iter(first.shape)
    shape = [1 if axis in new else next(rest) for axis in range(rank)]
    return _one(shape, values=None if first.values is None else first.values.reshape(shape))


def _concat(node: Operation, given: Inputs) -> Made:
    parts = [_at(given, index) for index in range(len(given))]
    shape = list(parts[0].shape)
    axis = _axis(node.attributes["axis"], len(shape))
    shape[axis] = sum(part.shape[axis] for part in parts)
    known = all(part.values is not None for part in parts) and prod(shape) <= _FEW
    return _one(shape, prod(shape), np.concatenate([part.values for part in parts], axis) if known else None)


def _split(node: Operation, given: Inputs) -> Made:
    first = _at(given, 0)
    axis, parts = _axis(node.attributes.get("axis", 0), len(first.shape)), len(node.outputs)
    size = first.shape[axis]
    sizes = _asked(node, given, 1, "split") or [min(-(-size // parts), size)] * parts
    made = [Known((*first.shape[:axis], int(part), *first.shape[axis + 1 :])) for part in sizes]
    if len(made) != parts or min(sizes) < 0:
        raise Unknown("its parts do not fit")
    return made, sum(tensor.count for tensor in made)


def _slice(node: Operation, given: Inputs) -> Made:
    first = _at(given, 0)
    starts, ends = _asked(node, given, 1, "starts"), _asked(node, given, 2, "ends")
    if starts is None or ends is None:
        raise Unknown("its ends are not given")
    axes, steps = _asked(node, given, 3, "axes") or range(len(starts)), _numbers(given, 4) or [1] * len(starts)
    cuts = [slice(None)] * len(first.shape)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        stop = None if step < 0 and end < -first.shape[axis] else end
        cuts[_axis(axis, len(cuts))] = slice(start, stop, step)
    shape = [len(range(size)[cut]) for size, cut in zip(first.shape, cuts, strict=True)]
    return _one(shape, values=None if first.values is None else first.values[tuple(cuts)])


def _gather(node: Operation, given: Inputs) -> Made:
    first, places = _at(given, 0), _at(given, 1)
    axis = _axis(node.attributes.get("axis", 0), len(first.shape))
    shape = (*first.shape[:axis], *places.shape, *first.shape[axis + 1 :])
    if first.values is None or places.values is None or prod(shape) > _FEW:
        return _one(shape, prod(shape))
    return _one(shape, values=np.take(first.values, places.values.astype(np.int64), axis))


def _shape(node: Operation, given: Inputs) -> Made:
    shape = _at(given, 0).shape
    found = shape[node.attributes.get("start", 0) : node.attributes.get("end", len(shape))]
    return _one((len(found),), values=np.array(found, np.int64))


def _size(node: Operation, given: Inputs) -> Made:
    return _one((), values=np.array(_at(given, 0).count, np.int64))


def _constant(node: Operation, given: Inputs) -> Made:
    value = next(iter(node.attributes.values()))
    if isinstance(value, Declared):
        return [Known(value.dims, value.values)], 0
    if value is None or isinstance(value, str):
        raise Unknown("it is text")
    return _one(
        np.shape(value), values=np.asarray(value, np.float64 if "float" in next(iter(node.attributes)) else np.int64)
    )


def _filled(node: Operation, given: Inputs) -> Made:
    shape, value = _numbers(given, 0) or [], node.attributes.get("value")
    if prod(shape) > _FEW or min(shape, default=0) < 0 or (isinstance(value, Declared) and value.values is None):
        return _one(shape)
    filler = value.values.reshape(-1)[0] if isinstance(value, Declared) and value.values is not None else 0.0
    return _one(shape, values=np.full(shape, filler))


def _expand(node: Operation, given: Inputs) -> Made:
    return _one(_broadcast_shape(_at(given, 0).shape, tuple(_numbers(given, 1) or ())))


def _tile(node: Operation, given: Inputs) -> Made:
    return _one([size * times for size, times in zip(_at(given, 0).shape, _numbers(given, 1) or (), strict=True)])


def _pad(node: Operation, given: Inputs) -> Made:
    shape, pads = list(_at(given, 0).shape), _asked(node, given, 1, "pads")
    axes = _numbers(given, 3) or range(len(shape))
    if pads is None or len(pads) != 2 * len(axes):
        raise Unknown("its pads do not fit")
    for index, axis in enumerate(axes):
        shape[_axis(axis, len(shape))] += pads[index] + pads[index + len(axes)]
    return _one(shape)


def _reduced(node: Operation, given: Inputs) -> Made:
    first, axes = _at(given, 0), _asked(node, given, 1, "axes")
    rank = len(first.shape)
    if not axes and node.attributes.get("noop_with_empty_axes"):
        return _one(first.shape)
    if node.op.startswith("Arg"):
        axes = [node.attributes.get("axis", 0)]
    gone = {_axis(axis, rank) for axis in axes} if axes else set(range(rank))
    keep = node.attributes.get("keepdims", 1)
    return _one(
        [1 if axis in gone else size for axis, size in enumerate(first.shape) if keep or axis not in gone], first.count
    )


def _blocks(node: Operation, given: Inputs) -> Made:
    batch, channels, height, width = _at(given, 0).shape
    block = node.attributes["blocksize"]
    if node.op == "DepthToSpace":
        return _one((batch, channels // block**2, height * block, width * block))
    return _one((batch, channels * block**2, height // block, width // block))


def _resize(node: Operation, given: Inputs) -> Made:
    first, old = _at(given, 0), node.op == "Upsample" or len(given) == 2
    scales = given[1 if old else 2] if len(given) > 1 + (not old) else None
    sizes = _numbers(given, 3)
    if node.attributes.get("axes") or (scales is None and sizes is None):
        raise Unknown("its sizes are not given")
    if sizes is None:
        if scales is None or scales.values is None:
            raise Unknown("sizes are computed from values")
        sizes = [int(size * scale) for size, scale in zip(first.shape, scales.values.tolist(), strict=True)]
    return _one(sizes, 16 * prod(sizes))


def _range(node: Operation, given: Inputs) -> Made:
    values = [_at(given, index).values for index in range(3)]
    if any(value is None for value in values):
        raise Unknown("sizes are computed from values")
    start, end, step = (float(np.asarray(value).reshape(())) for value in values)
    count = max(int(np.ceil((end - start) / step)), 0)
    return _one((count,), values=start + step * np.arange(count) if count <= _FEW else None)


def _top(node: Operation, given: Inputs) -> Made:
    first, wanted = _at(given, 0), _asked(node, given, 1, "k")
    shape = list(first.shape)
    shape[_axis(node.attributes.get("axis", -1), len(shape))] = (
        wanted[0] if isinstance(wanted, list) else int(wanted or 0)
    )
    made, _ = _one(shape)
    return made * len(node.outputs), 20 * first.count


def _local_norm(node: Operation, given: Inputs) -> Made:
    first = _at(given, 0)
    return _one(first.shape, first.count * max(node.attributes["size"], 1))


_SAME = (
    *("Relu", "LeakyRelu", "PRelu", "ThresholdedRelu", "Elu", "Selu", "Celu", "Gelu", "Mish", "Swish", "Softplus"),
    *("Softsign", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Erf", "Exp", "Log", "Sqrt", "Reciprocal", "Abs"),
    *("Neg", "Floor", "Ceil", "Round", "Sign", "Not", "Softmax", "LogSoftmax", "Hardmax", "Identity", "Dropout"),
    *("BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization", "LpNormalization"),
    *("MeanVarianceNormalization", "QuantizeLinear", "DequantizeLinear", "Clip", "CastLike", "Sin", "Cos", "IsNaN"),
)
_BROADCAST = (
    *("Add", "Sub", "Mul", "Div", "Pow", "Sum", "Mean", "Max", "Min", "Mod", "Where", "And", "Or", "Xor"),
    *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"),
)
_REDUCE = ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp")
_RULES: dict[str, Callable[[Operation, Inputs], Made]] = {
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(_BROADCAST, _broadcast),
    **dict.fromkeys(("Conv", "ConvInteger", "QLinearConv"), _conv),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _global_pool),
    **dict.fromkeys(("MatMul", "MatMulInteger"), _matmul),
    **dict.fromkeys((*(f"Reduce{kind}" for kind in _REDUCE), "ArgMax", "ArgMin"), _reduced),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), _blocks),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "ConvTranspose": _conv_back,
    "Cast": _cast,
    "Gemm": _gemm,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "LRN": _local_norm,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "Gather": _gather,
    "Shape": _shape,
    "Size": _size,
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "Expand": _expand,
    "Tile": _tile,
    "Range": _range,
    "TopK": _top,
}
