"""Scales, zero points and codes from ranges and weights.

``real = (code - zero_point) * scale`` (Jacob et al. 2018, eq. 1).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeres.records import F32, QuantParams, TensorRange

# The smallest scale, and the smallest unit of a bias: float32's normal numbers end at 1e-38, and what is below them
# would be flushed to zero.
_LEAST = 1e-30
# The scale of weights that are all zero. With it int32 holds biases up to a thousand times the input's scale, in a unit
# that is far below any code of the output.
_NO_WEIGHT = 2.0**-20


def symmetric_int8(interval: TensorRange) -> QuantParams:
    """int8 codes around zero with zero_point 0, as TensorRT requires: scale = max(high / 127, -low / 128).

    For measured ranges, which are symmetric, that is amax / 127; the range [-128, 127] of a byte minus 128 has scale 1.

    >>> float(symmetric_int8(TensorRange("x", -1.0, 2.54, "minmax", 1)).scale)
    0.019999999552965164
    """
    span = max(interval.high, -interval.low * 127 / 128)
    return QuantParams(np.float32(_scale(span, 127)), 0, "int8")  # type: ignore[arg-type]


def affine_int8(interval: TensorRange) -> QuantParams:
    """int8 codes over [low, high] with zero exactly on a code; behind a ReLU that is -128, and all 256 codes are used.

    >>> affine_int8(TensorRange("x", 0.0, 2.55, "minmax", 1)).zero_point
    -128
    """
    unsigned = affine_uint8(interval)
    return QuantParams(unsigned.scale, unsigned.zero_point - 128, "int8")


def affine_uint8(interval: TensorRange) -> QuantParams:
    """uint8 codes over [low, high] with zero exactly on a code; behind a ReLU that is 0, and all 256 codes are used.

    >>> affine_uint8(TensorRange("x", -1.0, 3.0, "minmax", 1)).zero_point
    64
    """
    scale = _scale(interval.high - interval.low, 255)
    zero_point = int(np.clip(round(-interval.low / scale), 0, 255))
    return QuantParams(np.float32(scale), zero_point, "uint8")  # type: ignore[arg-type]


def _scale(span: float, steps: int) -> float:
    """The range over the number of steps; 1 for an empty range, since runtimes refuse 0."""
    return max(span / steps, _LEAST) if span > 0 else 1.0


def typical_amax(ranges: Iterable[TensorRange]) -> float:
    """The median of the largest magnitudes, of tensors that are not zero on every image; 1 if there are none.

    It stands in for the range of a tensor that is zero on every calibration image, such as one behind a ReLU that never
    fires. Any scale codes such a tensor exactly, but biases and folded zero points are in units of it: with one that is
    far above its neighbours', they would be coarse.

    >>> typical_amax([TensorRange("x", -1.0, 2.0, "minmax", 1), TensorRange("y", 0.0, 0.0, "minmax", 1)])
    2.0
    """
    return float(np.median([interval.amax for interval in ranges if interval.amax > 0] or [1.0]))


def quantize_weight(values: F32, axis: int, bits: int = 8) -> tuple[QuantParams, npt.NDArray[np.int8]]:
    """Symmetric int8 codes with one scale per output channel.

    Args:
        values: (..., C at ``axis``, ...) float32.
        axis: of the output channels: 0 for Conv.
        bits: 7 keeps |code| <= 63, for processors whose 16-bit accumulators saturate on pairs of products.

    Returns:
        params with ``scale`` (C,) = amax per channel / (2**(bits-1) - 1), and codes of the shape of ``values``. A
        channel of zeros, which pruning leaves, has the smallest scale of the others: its bias is in units of it.
    """
    top = (1 << (bits - 1)) - 1
    others = tuple(i for i in range(values.ndim) if i != axis)
    amax = np.abs(values).max(axis=others).astype(np.float64)
    live = np.maximum(amax[amax > 0] / top, _LEAST)
    scale = np.full(amax.shape, live.min() if live.size else _NO_WEIGHT)
    scale[amax > 0] = live
    params = QuantParams(scale.astype(np.float32), 0, "int8", axis)
    return params, np.clip(codes(values, params), -top, top).astype(np.int8)


def code_constant(tensor: str, values: F32) -> tuple[QuantParams, npt.NDArray[np.uint8]]:
    """uint8 codes with one scale, of any shape, for a constant that an integer Add, Mul or Concat reads."""
    interval = TensorRange(tensor, min(float(values.min()), 0.0), max(float(values.max()), 0.0), "constant", 0)
    params = affine_uint8(interval)
    return params, codes(values, params).astype(np.uint8)


def widen_for_bias(params: QuantParams, bias: F32, input_scale: float) -> QuantParams:
    """Raise channel scales until the bias fits int32 at ``input_scale * scale``.

    A channel whose weights are nearly zero has a scale so small that its bias would overflow. A larger scale does no
    harm to such weights. The unit itself must be a normal float32: a bias of zero over a unit of zero is no code.
    """
    least = np.maximum(np.abs(bias.astype(np.float64)) / 2.0**30, _LEAST) / input_scale
    scale = np.maximum(params.scale, least).astype(np.float32)
    return QuantParams(scale, 0, params.dtype, params.axis)


def per_channel(scale: npt.NDArray[Any], axis: int | None, rank: int) -> npt.NDArray[Any]:
    """Scales shaped to broadcast along one axis of an array of this rank; for axis None, one scale of shape ()."""
    return scale.reshape(() if axis is None else [-1 if other == axis else 1 for other in range(rank)])


def codes(values: npt.NDArray[Any], params: QuantParams) -> npt.NDArray[np.int64]:
    """The codes of QuantizeLinear, as int64: rounded half to even, saturated to the limits of ``params.dtype``.

    The division is in the type of ``values``. With float32, as in ONNX and TensorRT, ties round the same way there.
    """
    scale = per_channel(np.asarray(params.scale, values.dtype), params.axis, values.ndim)
    low, high = params.code_limits
    rounded = np.rint(values / scale).astype(np.float64) + params.zero_point
    return np.asarray(np.clip(rounded, low, high), np.int64)
