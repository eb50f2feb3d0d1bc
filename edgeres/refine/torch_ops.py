"""The ONNX operators of classification networks, in torch.

Semantics: https://onnx.ai/onnx/operators/ at opsets 17 to 20. Every function takes the node's attributes and
inputs, and returns its output, or a sequence of them. The attribute ``outputs`` is the node's number of outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from onnx import TensorProto, numpy_helper
from torch import Tensor

from edgeres.errors import ModelError
from edgeres.graph.graph import type_name
from edgeres.refine.torch_windows import WINDOWS, Attributes, Op, torch_pads


def _ints(value: Tensor | None, default: Any) -> Any:
    return default if value is None else value.tolist()


# --- arithmetic -------------------------------------------------------------------------------------------------------


def _div(a: Attributes, inputs: list[Any]) -> Any:
    """Integers are divided as in C: the quotient is cut towards zero."""
    rounding = None if inputs[0].is_floating_point() else "trunc"
    return torch.div(*inputs, rounding_mode=rounding)


def _mod(a: Attributes, inputs: list[Any]) -> Any:
    """The sign is the divisor's, or the dividend's with ``fmod``."""
    return torch.fmod(*inputs) if a.get("fmod") else torch.remainder(*inputs)


def _pow(a: Attributes, inputs: list[Any]) -> Any:
    return torch.pow(*inputs).to(inputs[0].dtype)


def _gemm(a: Attributes, inputs: list[Any]) -> Any:
    left, right, bias = (*inputs, None)[:3]
    left = left.T if a.get("transA") else left
    right = right.T if a.get("transB") else right
    product = a.get("alpha", 1.0) * (left @ right)
    return product if bias is None else product + a.get("beta", 1.0) * bias


def _clip(a: Attributes, inputs: list[Any]) -> Any:
    x, low, high = (*inputs, None, None)[:3]
    return x if low is None and high is None else torch.clamp(x, low, high)


def _selu(a: Attributes, inputs: list[Any]) -> Any:
    x, alpha, gamma = inputs[0], a.get("alpha", 1.6732632423543772), a.get("gamma", 1.0507009873554805)
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0)))


def _gelu(a: Attributes, inputs: list[Any]) -> Any:
    return F.gelu(inputs[0], approximate=a.get("approximate", b"none").decode())


_TYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.BOOL: torch.bool,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
}


def _cast(a: Attributes, inputs: list[Any]) -> Any:
    if a["to"] not in _TYPES:
        raise ModelError(f"Cast to {type_name(a['to'])} has no torch form here")
    return inputs[0].to(_TYPES[a["to"]])


# --- normalization ----------------------------------------------------------------------------------------------------


def _batch_normalization(a: Attributes, inputs: list[Any]) -> Any:
    x, scale, bias, mean, variance = inputs
    return F.batch_norm(x, mean, variance, scale, bias, eps=a.get("epsilon", 1e-5))


def _layer_normalization(a: Attributes, inputs: list[Any]) -> Any:
    x, scale, bias = (*inputs, None)[:3]
    axes = list(range(a.get("axis", -1) % x.ndim, x.ndim))
    mean = x.mean(dim=axes, keepdim=True)
    inverse = (x.var(dim=axes, keepdim=True, unbiased=False) + a.get("epsilon", 1e-5)).rsqrt()
    y = (x - mean) * inverse * scale
    return (y if bias is None else y + bias), mean, inverse


def _instance_normalization(a: Attributes, inputs: list[Any]) -> Any:
    x, scale, bias = inputs
    return F.instance_norm(x, weight=scale, bias=bias, eps=a.get("epsilon", 1e-5))


def _group_normalization(a: Attributes, inputs: list[Any]) -> Any:
    """Up to opset 20 scale and bias are given by group, from 21 on by channel."""
    x, scale, bias = inputs
    groups, channels = a["num_groups"], x.shape[1]
    scale, bias = (value.repeat_interleave(channels // value.numel()) for value in (scale, bias))
    return F.group_norm(x, groups, scale, bias, a.get("epsilon", 1e-5))


def _lp_normalization(a: Attributes, inputs: list[Any]) -> Any:
    x, order, axis = inputs[0], a.get("p", 2), a.get("axis", -1)
    length = x.abs().sum(axis, keepdim=True) if order == 1 else x.square().sum(axis, keepdim=True).sqrt()
    return torch.where(length == 0, 0.0, x / length)


def _local_response(a: Attributes, inputs: list[Any]) -> Any:
    x, size = inputs[0], a["size"]
    padded = F.pad(x.square().unsqueeze(1), [0] * (2 * (x.ndim - 2)) + [(size - 1) // 2, size // 2])
    power = padded.unfold(2, size, 1).sum(dim=-1).squeeze(1)
    return x / (a.get("bias", 1.0) + a.get("alpha", 1e-4) / size * power) ** a.get("beta", 0.75)


# --- reductions -------------------------------------------------------------------------------------------------------


def _reduction(compute: Callable[[Tensor, list[int], bool], Tensor]) -> Op:
    """Over the axes of the attribute or the second input; over all, or none, where neither is given."""

    def op(a: Attributes, inputs: list[Any]) -> Any:
        x, axes = (*inputs, None)[:2]
        chosen = a.get("axes") or _ints(axes, [])
        if not chosen and a.get("noop_with_empty_axes"):
            return x
        return compute(x, chosen or list(range(x.ndim)), bool(a.get("keepdims", 1)))

    return op


def _length(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """The 2-norm; its gradient at zero is 0."""
    power = x.square().sum(axes, keep)
    return torch.where(power == 0, 0.0, torch.where(power == 0, 1.0, power).sqrt())


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keep)
    return x


def _arg(compute: Callable[..., Tensor]) -> Op:
    def op(a: Attributes, inputs: list[Any]) -> Any:
        if a.get("select_last_index"):
            raise ModelError("ArgMax and ArgMin with select_last_index have no torch form here")
        return compute(inputs[0], dim=a.get("axis", 0), keepdim=bool(a.get("keepdims", 1)))

    return op


# --- shapes -----------------------------------------------------------------------------------------------------------


def _reshape(a: Attributes, inputs: list[Any]) -> Any:
    x, shape = inputs[0], inputs[1].tolist()
    copies = not a.get("allowzero")  # 0 copies the size of the input
    return x.reshape([x.shape[axis] if size == 0 and copies else size for axis, size in enumerate(shape)])


def _slice(a: Attributes, inputs: list[Any]) -> Any:
    """Limits beyond the tensor are cut, as Python's slices do; torch has no negative steps."""
    x, starts, ends, axes, steps = (*inputs, None, None)[:5]
    begin, stop = starts.tolist(), ends.tolist()
    for i, axis in enumerate(_ints(axes, range(len(begin)))):
        step = _ints(steps, [1] * len(begin))[i]
        chosen = range(x.shape[axis])[begin[i] : stop[i] : step]
        if step > 0:
            index = [slice(None)] * x.ndim
            index[axis] = slice(chosen.start, chosen.stop, step)
            x = x[tuple(index)]
        else:
            x = x.index_select(axis, torch.tensor(chosen, dtype=torch.int64))
    return x


def _split(a: Attributes, inputs: list[Any]) -> Any:
    """Into given sizes, or into parts of equal size of which the last may be smaller."""
    x, sizes = (*inputs, None)[:2]
    axis = a.get("axis", 0)
    if sizes is not None:
        return torch.split(x, sizes.tolist(), axis)
    return torch.split(x, -(-x.shape[axis] // a.get("num_outputs", a["outputs"])), axis)


def _pad(a: Attributes, inputs: list[Any]) -> Any:
    x, pads, value, axes = (*inputs, None, None)[:4]
    begin, end = [0] * x.ndim, [0] * x.ndim
    for axis, (first, last) in zip(_ints(axes, range(x.ndim)), pads.reshape(2, -1).T.tolist(), strict=True):
        begin[axis], end[axis] = first, last
    mode = a.get("mode", b"constant").decode()
    if mode == "constant":
        return F.pad(x, torch_pads(begin, end), value=0 if value is None else value.item())
    for axis in range(x.ndim):
        if begin[axis] or end[axis]:
            around: Any = {"edge": "edge", "reflect": "reflect", "wrap": "wrap"}[mode]
            index = np.pad(np.arange(x.shape[axis]), (max(begin[axis], 0), max(end[axis], 0)), mode=around)
            index = index[max(-begin[axis], 0) : len(index) - max(-end[axis], 0)]
            x = x.index_select(axis, torch.from_numpy(index))
    return x


def _squeeze(a: Attributes, inputs: list[Any]) -> Any:
    x, axes = (*inputs, None)[:2]
    return x.squeeze() if axes is None else x.squeeze(tuple(axes.tolist()))


def _unsqueeze(a: Attributes, inputs: list[Any]) -> Any:
    x, axes = inputs[0], inputs[1].tolist()
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _expand(a: Attributes, inputs: list[Any]) -> Any:
    x, shape = inputs[0], inputs[1].tolist()
    return x.expand(np.broadcast_shapes(x.shape, tuple(shape)))


def _gather(a: Attributes, inputs: list[Any]) -> Any:
    x, indices = inputs
    axis = a.get("axis", 0) % x.ndim
    picked = x.index_select(axis, _wrapped(indices, x.shape[axis]).reshape(-1))
    return picked.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def _gather_elements(a: Attributes, inputs: list[Any]) -> Any:
    x, indices = inputs
    axis = a.get("axis", 0) % x.ndim
    return x.gather(axis, _wrapped(indices, x.shape[axis]))


def _wrapped(indices: Tensor, size: int) -> Tensor:
    """Negative indices count from the end."""
    return torch.where(indices < 0, indices + size, indices).to(torch.int64)


def _depth_to_space(a: Attributes, inputs: list[Any]) -> Any:
    x, size = inputs[0], a["blocksize"]
    n, channels, height, width = x.shape
    depth = channels // size**2
    if a.get("mode", b"DCR") == b"CRD":
        parts = x.reshape(n, depth, size, size, height, width).permute(0, 1, 4, 2, 5, 3)
    else:
        parts = x.reshape(n, size, size, depth, height, width).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, depth, height * size, width * size)


def _space_to_depth(a: Attributes, inputs: list[Any]) -> Any:
    x, size = inputs[0], a["blocksize"]
    n, channels, height, width = x.shape
    parts = x.reshape(n, channels, height // size, size, width // size, size).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, channels * size**2, height // size, width // size)


def _constant(a: Attributes, inputs: list[Any]) -> Any:
    if "value" in a:
        return torch.from_numpy(numpy_helper.to_array(a["value"]).copy())
    if found := [value for name, value in a.items() if name in {"value_float", "value_floats"}]:
        return torch.tensor(found[0], dtype=torch.float32)
    return torch.tensor(next(value for name, value in a.items() if name in {"value_int", "value_ints"}))


def _constant_of_shape(a: Attributes, inputs: list[Any]) -> Any:
    value = numpy_helper.to_array(a["value"]) if "value" in a else np.zeros(1, np.float32)
    return torch.from_numpy(value.copy()).reshape([1] * len(inputs[0])).expand(inputs[0].tolist())


def _flatten(a: Attributes, inputs: list[Any]) -> Any:
    x = inputs[0]
    axis = a.get("axis", 1)
    return x.reshape(math.prod(x.shape[: axis if axis >= 0 else axis + x.ndim]), -1)


def _all(combine: Callable[[Any, Any], Any]) -> Op:
    """An operator of one or more inputs."""
    return lambda a, i: reduce(combine, i)


def _einsum(a: Attributes, inputs: list[Any]) -> Any:
    return torch.einsum(a["equation"].decode(), *inputs)


OPS: dict[str, Op] = {
    **WINDOWS,
    "Abs": lambda a, i: i[0].abs(),
    "Add": lambda a, i: i[0] + i[1],
    "And": lambda a, i: i[0] & i[1],
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "Ceil": lambda a, i: i[0].ceil(),
    "Celu": lambda a, i: F.celu(i[0], a.get("alpha", 1.0)),
    "Clip": _clip,
    "Concat": lambda a, i: torch.cat(i, a["axis"]),
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Cos": lambda a, i: i[0].cos(),
    "DepthToSpace": _depth_to_space,
    "Div": _div,
    "Dropout": lambda a, i: i[0],
    "Einsum": _einsum,
    "Elu": lambda a, i: F.elu(i[0], a.get("alpha", 1.0)),
    "Equal": lambda a, i: i[0] == i[1],
    "Erf": lambda a, i: i[0].erf(),
    "Exp": lambda a, i: i[0].exp(),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": lambda a, i: i[0].floor(),
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "Greater": lambda a, i: i[0] > i[1],
    "GreaterOrEqual": lambda a, i: i[0] >= i[1],
    "GroupNormalization": _group_normalization,
    "HardSigmoid": lambda a, i: (a.get("alpha", 0.2) * i[0] + a.get("beta", 0.5)).clamp(0, 1),
    "HardSwish": lambda a, i: i[0] * (i[0] / 6 + 0.5).clamp(0, 1),
    "Identity": lambda a, i: i[0],
    "InstanceNormalization": _instance_normalization,
    "LRN": _local_response,
    "LayerNormalization": _layer_normalization,
    "LeakyRelu": lambda a, i: F.leaky_relu(i[0], a.get("alpha", 0.01)),
    "Less": lambda a, i: i[0] < i[1],
    "LessOrEqual": lambda a, i: i[0] <= i[1],
    "Log": lambda a, i: i[0].log(),
    "LogSoftmax": lambda a, i: torch.log_softmax(i[0], a.get("axis", -1)),
    "LpNormalization": _lp_normalization,
    "MatMul": lambda a, i: i[0] @ i[1],
    "Max": _all(torch.maximum),
    "Mean": lambda a, i: reduce(torch.add, i) / len(i),
    "Min": _all(torch.minimum),
    "Mish": lambda a, i: F.mish(i[0]),
    "Mod": _mod,
    "Mul": lambda a, i: i[0] * i[1],
    "Neg": lambda a, i: -i[0],
    "Not": lambda a, i: ~i[0],
    "Or": lambda a, i: i[0] | i[1],
    "Pad": _pad,
    "Pow": _pow,
    "PRelu": lambda a, i: torch.where(i[0] < 0, i[0] * i[1], i[0]),
    "Range": lambda a, i: torch.arange(i[0].item(), i[1].item(), i[2].item(), dtype=i[0].dtype),
    "Reciprocal": lambda a, i: i[0].reciprocal(),
    "ReduceL1": _reduction(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "ReduceL2": _reduction(_length),
    "ReduceLogSumExp": _reduction(torch.logsumexp),
    "ReduceMax": _reduction(lambda x, axes, keep: x.amax(axes, keep)),
    "ReduceMean": _reduction(lambda x, axes, keep: x.mean(axes, keep)),
    "ReduceMin": _reduction(lambda x, axes, keep: x.amin(axes, keep)),
    "ReduceProd": _reduction(_prod),
    "ReduceSum": _reduction(lambda x, axes, keep: x.sum(axes, keep)),
    "ReduceSumSquare": _reduction(lambda x, axes, keep: x.square().sum(axes, keep)),
    "Relu": lambda a, i: F.relu(i[0]),
    "Reshape": _reshape,
    "Round": lambda a, i: i[0].round(),
    "Selu": _selu,
    "Shape": lambda a, i: torch.tensor(i[0].shape)[a.get("start", 0) : a.get("end")],
    "Sigmoid": lambda a, i: torch.sigmoid(i[0]),
    "Sign": lambda a, i: i[0].sign(),
    "Sin": lambda a, i: i[0].sin(),
    "Size": lambda a, i: torch.tensor(i[0].numel()),
    "Slice": _slice,
    "Softmax": lambda a, i: torch.softmax(i[0], a.get("axis", -1)),
    "Softplus": lambda a, i: F.softplus(i[0]),
    "Softsign": lambda a, i: F.softsign(i[0]),
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Sqrt": lambda a, i: i[0].sqrt(),
    "Squeeze": _squeeze,
    "Sub": lambda a, i: i[0] - i[1],
    "Sum": _all(torch.add),
    "Tanh": lambda a, i: torch.tanh(i[0]),
    "ThresholdedRelu": lambda a, i: torch.where(i[0] > a.get("alpha", 1.0), i[0], 0.0),
    "Tile": lambda a, i: i[0].repeat(i[1].tolist()),
    "Transpose": lambda a, i: i[0].permute(a.get("perm") or tuple(range(i[0].ndim))[::-1]),
    "Unsqueeze": _unsqueeze,
    "Where": lambda a, i: torch.where(*i),
    "Xor": lambda a, i: i[0] ^ i[1],
}
