"""The weights of Pillow's filters in fixed point: which pixels an output of a resize is the mean of.

Pillow resizes bytes with weights ``round(w 2^22)`` (``Resample.c``). Output ``i`` of a side resized from ``have`` to
``want`` pixels is centred at ``(i + 1/2) have / want``; a filter is stretched by ``have / want`` where that exceeds 1.
The output is ``(sum(pixel weight) + 2^21) >> 22``, limited to a byte.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt

from edgeres.records import F64, I64, Interpolation

WEIGHT_BITS = 22
I32 = npt.NDArray[np.int32]


def _bicubic(x: F64) -> F64:
    inner, outer = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, inner, outer)


# Support and weight by distance, both in output pixels, as in Pillow.
FILTERS: dict[str, tuple[float, Callable[[F64], F64]]] = {
    "bilinear": (1, lambda x: 1 - x),
    "bicubic": (2, _bicubic),
    "lanczos": (3, lambda x: np.sinc(x) * np.sinc(x / 3)),
    "hamming": (1, lambda x: np.sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x))),
    "box": (0.5, np.ones_like),
}


@dataclass(frozen=True)
class Taps:
    """The inputs of each of n outputs, and their weights; those of weight 0 fill the rows up.

    Attributes:
        index: (n, T) int64.
        weights: (n, T) int32, in units of 2^-22.
    """

    index: I64
    weights: I32


def pillow_taps(have: int, want: int, outputs: tuple[int, int], interpolation: Interpolation) -> Taps:
    """The taps of the outputs ``outputs``, half open, of a side resized from ``have`` to ``want`` pixels by Pillow."""
    if interpolation == "nearest":
        return Taps(
            _nearest(have, want)[slice(*outputs), None],
            np.full((outputs[1] - outputs[0], 1), 1 << WEIGHT_BITS, np.int32),
        )
    support, kernel = FILTERS[interpolation]
    scale = have / want
    stretch = max(scale, 1.0)
    centres = (np.arange(*outputs) + 0.5) * scale
    # Pillow truncates towards zero; what is negative is limited to 0 anyway.
    first = np.maximum(centres - support * stretch + 0.5, 0).astype(np.int64)
    stop = np.minimum((centres + support * stretch + 0.5).astype(np.int64), have)
    index = first[:, None] + np.arange(2 * ceil(support * stretch) + 1)
    inside = index < stop[:, None]
    distance = (index + 0.5 - centres[:, None]) / stretch
    shares = np.where(inside & _reached(distance, support, interpolation), kernel(np.abs(distance)), 0.0)
    exact = shares / shares.sum(axis=1, keepdims=True) * (1 << WEIGHT_BITS)
    weights = np.trunc(exact + np.copysign(0.5, exact)).astype(np.int32)
    used = int(np.max(np.flatnonzero(weights.any(axis=0)), initial=0)) + 1
    return Taps(np.minimum(index, stop[:, None] - 1)[:, :used], weights[:, :used])


def _reached(distance: F64, support: float, interpolation: Interpolation) -> npt.NDArray[np.bool_]:
    """Whether the filter reaches so far; a box counts its right edge alone."""
    if interpolation == "box":
        return (distance > -support) & (distance <= support)
    return np.abs(distance) < support


def _nearest(have: int, want: int) -> I64:
    """The input that Pillow takes for each output, from a resize of the inputs' own numbers."""
    from PIL import Image

    numbers = Image.fromarray(np.arange(have, dtype=np.int32)[None])
    found: I64 = np.asarray(numbers.resize((want, 1), Image.Resampling.NEAREST))[0].astype(np.int64)
    return found
