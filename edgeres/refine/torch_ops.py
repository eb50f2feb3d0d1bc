"""The ONNX operators of classification networks, in torch.

Semantics: https://onnx.ai/onnx/operators/ at opsets 17 to 20. Every function takes the node's attributes and
inputs, and returns its output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor

from edgeres.errors import ModelError

Attributes = Mapping[str, Any]
Op = Callable[[Attributes, list[Any]], Any]  # inputs are tensors, or None for an optional one that is left out


def _ints(value: Tensor | None, default: Any) -> Any:
    return default if value is None else value.tolist()


def _conv(a: Attributes, inputs: list[Any]) -> Any:
    x, weight, bias = (*inputs, None)[:3]
    x, padding = _symmetric(x, weight.shape[2:], a, 0.0)
    options = {"stride": a.get("strides", 1), "dilation": a.get("dilations", 1), "groups": a.get("group", 1)}
    conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[weight.ndim - 2]
    return conv(x, weight, bias, padding=padding, **options)


def _symmetric(x: Tensor, kernel: Sequence[int], a: Attributes, fill: float) -> tuple[Tensor, list[int]]:
    """The padding argument for torch; where begin and end differ, the input is padded first and the argument is 0."""
    begin, end = _pads(x, kernel, a)
    if begin == end:
        return x, begin
    return F.pad(x, _torch_pads(begin, end), value=fill), [0] * len(begin)


def _pads(x: Tensor, kernel: Sequence[int], a: Attributes) -> tuple[list[int], list[int]]:
    rank = len(kernel)
    auto = a.get("auto_pad", b"NOTSET").decode()
    if not auto.startswith("SAME"):
        pads = a.get("pads", [0] * (2 * rank))
        return pads[:rank], pads[rank:]
    # As many outputs as strides fit into the input; an odd pixel goes to the end, or to the begin for SAME_LOWER.
    spans = zip(x.shape[2:], kernel, a.get("strides", [1] * rank), strict=True)
    totals = [max(0, (-(-size // stride) - 1) * stride + length - size) for size, length, stride in spans]
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (small, large) if auto == "SAME_UPPER" else (large, small)


def _torch_pads(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """torch counts axes from the last one, begin and end side by side."""
    return [count for pair in zip(reversed(begin), reversed(end), strict=True) for count in pair]


def _gemm(a: Attributes, inputs: list[Any]) -> Any:
    left, right, bias = (*inputs, None)[:3]
    left = left.T if a.get("transA") else left
    right = right.T if a.get("transB") else right
    product = a.get("alpha", 1.0) * (left @ right)
    return product if bias is None else product + a.get("beta", 1.0) * bias


def _max_pool(a: Attributes, inputs: list[Any]) -> Any:
    x, padding = _symmetric(inputs[0], a["kernel_shape"], a, -torch.inf)
    strides, dilations = a.get("strides", 1), a.get("dilations", 1)
    return F.max_pool2d(x, a["kernel_shape"], strides, padding, dilations, bool(a.get("ceil_mode")))


def _average_pool(a: Attributes, inputs: list[Any]) -> Any:
    x, padding = _symmetric(inputs[0], a["kernel_shape"], a, 0.0)
    counted = bool(a.get("count_include_pad"))
    if x is not inputs[0] and not counted:
        raise ModelError("AveragePool with uneven padding that is not counted has no torch form here")
    return F.avg_pool2d(x, a["kernel_shape"], a.get("strides", 1), padding, bool(a.get("ceil_mode")), counted)


def _reduce_mean(a: Attributes, inputs: list[Any]) -> Any:
    x, axes = (*inputs, None)[:2]
    chosen = a.get("axes") or _ints(axes, list(range(x.ndim)))
    return x.mean(dim=chosen, keepdim=bool(a.get("keepdims", 1)))


def _reshape(a: Attributes, inputs: list[Any]) -> Any:
    x, shape = inputs[0], inputs[1].tolist()
    copies = not a.get("allowzero")  # 0 copies the size of the input
    return x.reshape([x.shape[axis] if size == 0 and copies else size for axis, size in enumerate(shape)])


def _slice(a: Attributes, inputs: list[Any]) -> Any:
    x, starts, ends, axes, steps = (*inputs, None, None)[:5]
    begin, stop = starts.tolist(), ends.tolist()
    for i, axis in enumerate(_ints(axes, range(len(begin)))):
        step = _ints(steps, [1] * len(begin))[i]
        if step < 1:
            raise ModelError("Slice with a negative step has no torch form here")
        index = [slice(None)] * x.ndim
        index[axis] = slice(begin[i], stop[i], step)
        x = x[tuple(index)]
    return x


def _pad(a: Attributes, inputs: list[Any]) -> Any:
    x, pads, value, axes = (*inputs, None, None)[:4]
    begin, end = [0] * x.ndim, [0] * x.ndim
    for axis, (first, last) in zip(_ints(axes, range(x.ndim)), pads.reshape(2, -1).T.tolist(), strict=True):
        begin[axis], end[axis] = first, last
    mode = a.get("mode", b"constant").decode()
    if mode == "constant":
        return F.pad(x, _torch_pads(begin, end), value=0.0 if value is None else float(value))
    return F.pad(x, _torch_pads(begin[2:], end[2:]), mode={"edge": "replicate"}.get(mode, mode))


def _batch_normalization(a: Attributes, inputs: list[Any]) -> Any:
    x, scale, bias, mean, variance = inputs
    return F.batch_norm(x, mean, variance, scale, bias, eps=a.get("epsilon", 1e-5))


def _clip(a: Attributes, inputs: list[Any]) -> Any:
    x, low, high = (*inputs, None, None)[:3]
    return x if low is None and high is None else torch.clamp(x, low, high)


def _squeeze(a: Attributes, inputs: list[Any]) -> Any:
    x, axes = (*inputs, None)[:2]
    return x.squeeze() if axes is None else x.squeeze(tuple(axes.tolist()))


def _unsqueeze(a: Attributes, inputs: list[Any]) -> Any:
    x, axes = inputs
    rank = x.ndim + len(axes)
    for axis in sorted(int(axis) % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _gather(a: Attributes, inputs: list[Any]) -> Any:
    x, indices = inputs
    axis = a.get("axis", 0) % x.ndim
    chosen = torch.where(indices < 0, indices + x.shape[axis], indices)
    picked = x.index_select(axis, chosen.reshape(-1))
    return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _constant_of_shape(a: Attributes, inputs: list[Any]) -> Any:
    value = numpy_helper.to_array(a["value"]).reshape(-1) if "value" in a else np.zeros(1, np.float32)
    return torch.from_numpy(value.copy()).expand(inputs[0].tolist())


OPS: dict[str, Op] = {
    "Add": lambda a, i: i[0] + i[1],
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Clip": _clip,
    "Concat": lambda a, i: torch.cat(i, a["axis"]),
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "Div": lambda a, i: i[0] / i[1],
    "Elu": lambda a, i: F.elu(i[0], a.get("alpha", 1.0)),
    "Flatten": lambda a, i: i[0].reshape(math.prod(i[0].shape[: a.get("axis", 1)]), -1),
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda a, i: i[0].mean(dim=tuple(range(2, i[0].ndim)), keepdim=True),
    "HardSigmoid": lambda a, i: (a.get("alpha", 0.2) * i[0] + a.get("beta", 0.5)).clamp(0, 1),
    "HardSwish": lambda a, i: i[0] * (i[0] / 6 + 0.5).clamp(0, 1),
    "Identity": lambda a, i: i[0],
    "LeakyRelu": lambda a, i: F.leaky_relu(i[0], a.get("alpha", 0.01)),
    "MatMul": lambda a, i: i[0] @ i[1],
    "MaxPool": _max_pool,
    "Mul": lambda a, i: i[0] * i[1],
    "Pad": _pad,
    "PRelu": lambda a, i: torch.where(i[0] < 0, i[0] * i[1], i[0]),
    "ReduceMean": _reduce_mean,
    "Relu": lambda a, i: F.relu(i[0]),
    "Reshape": _reshape,
    "Shape": lambda a, i: torch.tensor(i[0].shape)[a.get("start", 0) : a.get("end")],
    "Sigmoid": lambda a, i: torch.sigmoid(i[0]),
    "Slice": _slice,
    "Softmax": lambda a, i: torch.softmax(i[0], a.get("axis", -1)),
    "Squeeze": _squeeze,
    "Sub": lambda a, i: i[0] - i[1],
    "Tanh": lambda a, i: torch.tanh(i[0]),
    "Transpose": lambda a, i: i[0].permute(a.get("perm") or tuple(range(i[0].ndim))[::-1]),
    "Unsqueeze": _unsqueeze,
}
