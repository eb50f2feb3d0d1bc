"""OpenCV's plain bilinear resize, ``cv2.resize(image, size)``, to the same bytes, without OpenCV.

Each output is a weighted mean of the four pixels around it, whatever the ratio; nothing is smoothed, so a strong
reduction skips pixels. Weights have 11 bits. Rows are summed exactly; of the sums OpenCV drops 4 bits, weights them by
columns, and drops 16 more of each product (``VResizeLinear`` in ``resize.cpp``). Halving both sides is a mean of four
pixels, since OpenCV takes another filter there.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from edgeres.data.taps import I32, Taps
from edgeres.records import I64, U8

_ONE = 1 << 11


def cv2_bilinear(image: U8, size: tuple[int, int], keep: tuple[tuple[int, int], tuple[int, int]]) -> U8:
    """Resize to ``size`` (height, width), and return the rows and columns ``keep`` of the result, half open.

    Args:
        image: (H, W, C) uint8.
    """
    height, width = image.shape[:2]
    (top, bottom), (left, right) = keep
    if (height, width) == (2 * size[0], 2 * size[1]):
        part = image[2 * top : 2 * bottom, 2 * left : 2 * right].astype(np.int32)
        return (part[::2, ::2] + part[1::2, ::2] + part[::2, 1::2] + part[1::2, 1::2] + 2 >> 2).astype(np.uint8)
    rows, columns = cv2_rows(height, size[0], (top, bottom)), cv2_columns(width, size[1], (left, right))
    (here, beside), (before, behind) = columns.index.T, columns.weights.T[..., None]

    def line(which: I64, weights: I32) -> I32:
        picked = image[which]
        sums: I32 = picked[:, here].astype(np.int32) * before + picked[:, beside].astype(np.int32) * behind
        return (sums >> 4) * weights[:, None, None] >> 16

    (upper, lower), (over, under) = rows.index.T, rows.weights.T
    return (line(upper, over) + line(lower, under) + 2 >> 2).astype(np.uint8)


def cv2_rows(have: int, want: int, outputs: tuple[int, int]) -> Taps:
    """The two rows of each output row, weights in units of 2^-11; beyond a border, the outer row takes both weights."""
    first, above, below = _taps(have, want, *outputs)
    return Taps(np.clip(np.stack([first, first + 1], axis=1), 0, have - 1), np.stack([above, below], axis=1))


def cv2_columns(have: int, want: int, outputs: tuple[int, int]) -> Taps:
    """The same for columns; beyond a border, the outer column takes the whole weight."""
    first, before, behind = _taps(have, want, *outputs)
    outside = (first < 0) | (first >= have - 1)
    weights = np.stack([np.where(outside, _ONE, before), np.where(outside, 0, behind)], axis=1)
    return Taps(np.clip(np.stack([first, first + 1], axis=1), 0, have - 1), weights.astype(np.int32))


@lru_cache(maxsize=256)
def _taps(have: int, want: int, start: int, stop: int) -> tuple[I64, I32, I32]:
    """The first of the two inputs of each output, -1 before the border, and the weights of both."""
    place = ((np.arange(start, stop) + 0.5) * (1 / (want / have)) - 0.5).astype(np.float32)
    first = np.floor(place)
    share = place - first
    before, behind = (np.rint(part * np.float32(_ONE)).astype(np.int32) for part in (1 - share, share))
    return first.astype(np.int64), before, behind
