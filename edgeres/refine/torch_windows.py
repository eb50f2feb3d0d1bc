"""The ONNX operators that slide a window or resample, in torch: convolutions, pools, Resize.

Every function takes the node's attributes and inputs, and returns its output. Inputs are (N, C, ...) with one to three
spatial axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeres.errors import ModelError
from edgeres.records import F32, F64

Attributes = Mapping[str, Any]
Op = Callable[[Attributes, list[Any]], Any]  # inputs are tensors, or None for an optional one that is left out


def torch_pads(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """torch counts axes from the last one, begin and end side by side."""
    return [count for pair in zip(reversed(begin), reversed(end), strict=True) for count in pair]


def _conv(a: Attributes, inputs: list[Any]) -> Any:
    x, weight, bias = (*inputs, None)[:3]
    begin, end = _pads(x, weight.shape[2:], a)
    if begin != end:
        x, begin = F.pad(x, torch_pads(begin, end)), [0] * len(begin)
    options = {"stride": a.get("strides", 1), "dilation": a.get("dilations", 1), "groups": a.get("group", 1)}
    conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[weight.ndim - 2]
    return conv(x, weight, bias, padding=begin, **options)


def _pads(x: Tensor, kernel: Sequence[int], a: Attributes) -> tuple[list[int], list[int]]:
    rank = len(kernel)
    auto = a.get("auto_pad", b"NOTSET").decode()
    if not auto.startswith("SAME"):
        pads = a.get("pads", [0] * (2 * rank)) if auto == "NOTSET" else [0] * (2 * rank)
        return list(pads[:rank]), list(pads[rank:])
    # As many outputs as strides fit into the input; an odd pixel goes to the end, or to the begin for SAME_LOWER.
    lengths = _lengths(kernel, a)
    spans = zip(x.shape[2:], lengths, a.get("strides", [1] * rank), strict=True)
    totals = [max(0, (-(-size // stride) - 1) * stride + length - size) for size, length, stride in spans]
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (small, large) if auto == "SAME_UPPER" else (large, small)


def _lengths(kernel: Sequence[int], a: Attributes) -> list[int]:
    """Pixels that a window spans along each axis."""
    dilations = a.get("dilations", [1] * len(kernel))
    return [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]


def _conv_transpose(a: Attributes, inputs: list[Any]) -> Any:
    """All of the outputs first, then what the pads cut away."""
    x, weight, bias = (*inputs, None)[:3]
    rank = weight.ndim - 2
    stride, extra = a.get("strides", [1] * rank), a.get("output_padding", [0] * rank)
    conv = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[rank]
    y = conv(x, weight, bias, stride, 0, extra, a.get("group", 1), a.get("dilations", 1))
    auto, pads = a.get("auto_pad", b"NOTSET").decode(), a.get("pads", [0] * (2 * rank))
    wanted = a.get("output_shape")
    if auto.startswith("SAME") and wanted is None:
        wanted = [size * step for size, step in zip(x.shape[2:], stride, strict=True)]
    if wanted is not None:
        totals = [size - target for size, target in zip(y.shape[2:], wanted[-rank:], strict=True)]
        small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
        pads = [*small, *large] if auto == "SAME_UPPER" else [*large, *small]
    return F.pad(y, torch_pads([-count for count in pads[:rank]], [-count for count in pads[rank:]]))


def _pool_pads(x: Tensor, a: Attributes) -> tuple[list[int], list[int], list[int]]:
    """Pads at the begin and at the end, and what ceil_mode adds at the end so that the last window fits in."""
    kernel = a["kernel_shape"]
    begin, end = _pads(x, kernel, a)
    more = [0] * len(kernel)
    if a.get("ceil_mode"):
        strides = a.get("strides", [1] * len(kernel))
        for axis, (length, stride) in enumerate(zip(_lengths(kernel, a), strides, strict=True)):
            size = x.shape[2 + axis] + begin[axis] + end[axis]
            count = -(-(size - length) // stride) + 1
            if (count - 1) * stride >= x.shape[2 + axis] + begin[axis]:  # a window must not begin in the end's padding
                count -= 1
            more[axis] = max(0, (count - 1) * stride + length - size)
    return begin, end, more


def _max_pool(a: Attributes, inputs: list[Any]) -> Any:
    x = inputs[0]
    begin, end, more = _pool_pads(x, a)
    last = [ours + added for ours, added in zip(end, more, strict=True)]
    if any(begin) or any(last):
        x = F.pad(x, torch_pads(begin, last), value=-torch.inf)
    pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(begin)]
    return pool(x, a["kernel_shape"], a.get("strides", 1), 0, a.get("dilations", 1))


def _average_pool(a: Attributes, inputs: list[Any]) -> Any:
    """Sums over windows, divided by the number of values in each."""
    x, kernel = inputs[0], a["kernel_shape"]
    begin, end, more = _pool_pads(x, a)
    last = [ours + added for ours, added in zip(end, more, strict=True)]
    ones = x.new_ones(1, 1, *x.shape[2:])
    if a.get("count_include_pad"):
        counted = F.pad(F.pad(ones, torch_pads(begin, end), value=1.0), torch_pads([0] * len(more), more))
    else:
        counted = F.pad(ones, torch_pads(begin, last))
    return _window_mean(F.pad(x, torch_pads(begin, last)), kernel, a) / _window_mean(counted, kernel, a)


def _window_mean(x: Tensor, kernel: Sequence[int], a: Attributes) -> Tensor:
    strides, dilations = a.get("strides", 1), a.get("dilations", [1] * len(kernel))
    if any(dilation > 1 for dilation in dilations):
        channels = x.shape[1]
        weight = x.new_full((channels, 1, *kernel), 1 / math.prod(kernel))
        conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(kernel)]
        return conv(x, weight, None, strides, 0, dilations, channels)
    pool: Callable[..., Tensor] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(kernel)]
    return pool(x, kernel, strides)


def _resize(a: Attributes, inputs: list[Any]) -> Any:
    """Axis by axis: the output is a matrix of weights times the input."""
    x, _, scales, sizes = (*inputs, None, None, None)[:4]
    if a.get("coordinate_transformation_mode", b"half_pixel") == b"tf_crop_and_resize":
        raise ModelError("Resize with tf_crop_and_resize has no torch form here")
    axes = [axis % x.ndim for axis in a.get("axes", range(x.ndim))]
    if sizes is not None and sizes.numel():
        wanted = sizes.tolist()
        factors = [size / x.shape[axis] for size, axis in zip(wanted, axes, strict=True)]
        policy = a.get("keep_aspect_ratio_policy", b"stretch")
        if policy != b"stretch":
            factors = [(min if policy == b"not_larger" else max)(factors)] * len(axes)
            wanted = [int(x.shape[axis] * factors[0] + 0.5) for axis in axes]
    else:
        factors = scales.tolist()
        wanted = [int(np.float32(x.shape[axis]) * np.float32(f)) for axis, f in zip(axes, factors, strict=True)]
    for axis, factor, size in zip(axes, factors, wanted, strict=True):
        if factor != 1 or size != x.shape[axis]:
            x = _resampled(x, axis, _resize_weights(x.shape[axis], size, factor, a))
    return x


def _resampled(x: Tensor, axis: int, weights: F64) -> Tensor:
    chosen = weights.argmax(axis=1)
    if np.array_equal(weights, np.eye(weights.shape[1])[chosen]):  # copies only
        return x.index_select(axis, torch.from_numpy(chosen))
    if not x.is_floating_point():
        raise ModelError("Resize of integers has no torch form here unless it copies values")
    return (x.movedim(axis, -1) @ torch.from_numpy(weights.T).to(x.dtype)).movedim(-1, axis)


def _resize_weights(length: int, size: int, factor: float, a: Attributes) -> F64:
    """(size, length): how much each output position takes of each input position."""
    at = _positions(length, size, factor, a.get("coordinate_transformation_mode", b"half_pixel").decode())
    mode = a.get("mode", b"nearest").decode()
    if mode == "nearest":
        down, up = np.ceil(at - 0.5), np.floor(at + 0.5)
        rounding = a.get("nearest_mode", b"round_prefer_floor").decode()
        nearest = {"floor": np.floor(at), "ceil": np.ceil(at), "round_prefer_ceil": up}.get(rounding, down)
        return np.eye(length)[nearest.clip(0, length - 1).astype(np.int64)]
    stretch = max(1.0, 1 / factor) if a.get("antialias") else 1.0
    reach = int(np.ceil(stretch * (1 if mode == "linear" else 2)))
    taps = np.floor(at)[:, None] + np.arange(1 - reach, reach + 1)
    distance = np.abs(at[:, None] - taps) / stretch
    weights = np.maximum(1 - distance, 0) if mode == "linear" else _cubic(distance, a.get("cubic_coeff_a", -0.75))
    outside = (taps < 0) | (taps >= length)
    if a.get("exclude_outside"):
        weights = np.where(outside, 0, weights)
    weights /= weights.sum(axis=1, keepdims=True)
    found = np.zeros((size, length))
    np.add.at(found, (np.arange(size)[:, None], taps.clip(0, length - 1).astype(np.int64)), weights)
    return found


def _positions(length: int, size: int, scale: float, mode: str) -> F64:
    """The position in the input of every output position; in float32, whose rounding decides between two neighbours."""
    index, factor = np.arange(size, dtype=np.float32), np.float32(scale)
    if mode == "align_corners":
        return np.zeros(size) if size == 1 else index.astype(np.float64) * (length - 1) / (size - 1)
    if mode == "asymmetric":
        return (index / factor).astype(np.float64)
    if mode == "pytorch_half_pixel" and size == 1:
        return np.zeros(1)
    if mode == "half_pixel_symmetric":
        centre = length / 2
        begin = centre * (1 - size / (scale * length))  # the exact size of the output is not rounded down
        return begin + _centres(index, factor)
    return _centres(index, factor)


def _centres(index: F32, factor: np.float32) -> F64:
    return ((index + np.float32(0.5)) / factor - np.float32(0.5)).astype(np.float64)


def _cubic(distance: F64, a: float) -> F64:
    """Keys 1981, equation 4."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


WINDOWS: dict[str, Op] = {
    "AveragePool": _average_pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GlobalAveragePool": lambda a, i: i[0].mean(dim=tuple(range(2, i[0].ndim)), keepdim=True),
    "GlobalMaxPool": lambda a, i: i[0].amax(dim=tuple(range(2, i[0].ndim)), keepdim=True),
    "MaxPool": _max_pool,
    "Resize": _resize,
}
