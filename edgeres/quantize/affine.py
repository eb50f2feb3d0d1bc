"""Scales, zero points and codes from ranges and weights.

``real = (code - zero_point) * scale`` (Jacob et al. 2018, eq. 1).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgeres.records import F32, QuantParams, TensorRange


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
    """The range over the number of steps.

    A tensor that is zero on every image gets scale 1: any scale codes it exactly, and runtimes refuse 0. Scales below
    float32's normal numbers would be flushed to zero, so 1e-30 is the smallest.
    """
    return max(span / steps, 1e-30) if span > 0 else 1.0


def quantize_weight(values: F32, axis: int, bits: int = 8) -> tuple[QuantParams, npt.NDArray[np.int8]]:
    """Symmetric int8 codes with one scale per output channel.

    Args:
        values: (..., C at ``axis``, ...) float32.
        axis: of the output channels: 0 for Conv.
        bits: 7 keeps |code| <= 63, for processors whose 16-bit accumulators saturate on pairs of products.

    Returns:
        params with ``scale`` (C,) = amax per channel / (2**(bits-1) - 1), and codes of the shape of ``values``.
    """
    top = (1 << (bits - 1)) - 1
    others = tuple(i for i in range(values.ndim) if i != axis)
    amax = np.abs(values).max(axis=others).astype(np.float64)
    scale = np.where(amax > 0, np.maximum(amax / top, 1e-30), 1.0).astype(np.float32)
    params = QuantParams(scale, 0, "int8", axis)
    return params, np.clip(codes(values, params), -top, top).astype(np.int8)


def widen_for_bias(params: QuantParams, bias: F32, input_scale: float) -> QuantParams:
    """Raise channel scales until the bias fits int32 at ``input_scale * scale``.

    A channel whose weights are nearly zero has a scale so small that its bias would overflow. A larger scale does no
    harm to such weights.
    """
    least = np.abs(bias.astype(np.float64)) / (input_scale * 2.0**30)
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
