"""Compute only the part of a resize that a crop keeps, with the same bits as a resize of the whole image.

Pillow computes each output pixel from a window of inputs with weights in fixed point, ``round(w 2^22)``
(``Resample.c``). Output ``i`` of a side resized from ``have`` to ``want`` pixels has its centre at
``(i + 1/2) have / want``. With ``g = gcd(have, want)`` the weights repeat after ``want / g`` outputs, which correspond
to ``have / g`` inputs. So a range of whole periods is a resize of its own, with the same ratio of integers, which
Pillow's ``box`` represents exactly. Inputs beyond the reach of the kept outputs are not needed.

Only the rounding of the centre in float64 differs, by about 1e-12. It changes no weight whose exact value is far enough
from a tie. That is checked for every weight of the range; where it does not hold, the whole side is computed.

Worked number: 1280 to 455 columns (720p to a shorter side of 256), of which a crop keeps 116 to 340: g = 5, the period
is 91 outputs or 256 inputs, and three periods, outputs 91 to 364, are computed instead of 455.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, floor, gcd

import numpy as np

from edgeres.data.taps import FILTERS, WEIGHT_BITS
from edgeres.records import Interpolation

# Others are computed whole: at the abrupt end of a box, the centre's rounding could move a weight in or out.
_SMOOTH = ("bilinear", "bicubic", "lanczos")
# In units of a weight's last place: 100 times the largest error of float64 for sides up to _LONGEST.
_CLEAR_OF_TIE = 1e-4
_LONGEST = 16_384


@dataclass(frozen=True)
class Window:
    """How to resize a part of one side. All ranges are half open.

    Attributes:
        read: the inputs that are needed.
        box: the range of inputs that is resized, counted from ``read[0]``.
        size: number of outputs that are computed.
        keep: the outputs that were asked for, among those.
    """

    read: tuple[int, int]
    box: tuple[int, int]
    size: int
    keep: tuple[int, int]


@lru_cache(maxsize=256)
def window(have: int, want: int, keep: tuple[int, int], interpolation: Interpolation) -> Window:
    """The window for outputs ``keep`` of a side resized from ``have`` to ``want`` pixels; ``keep`` may exceed it."""
    low, high = max(keep[0], 0), min(keep[1], want)
    if have == want:
        return Window((low, high), (0, high - low), high - low, (0, high - low))
    whole = Window((0, have), (0, have), want, (low, high))
    if (low, high) == (0, want) or have > _LONGEST or interpolation not in _SMOOTH:
        return whole
    common = gcd(have, want)
    inputs, outputs = have // common, want // common
    first, last = low // outputs, ceil(high / outputs)
    if (first, last) == (0, common) or not _clear_of_ties(have, want, (low, high), interpolation):
        return whole
    reach = FILTERS[interpolation][0] * max(have / want, 1) + 1
    start = min(max(floor((low + 0.5) * have / want - reach), 0), first * inputs)
    stop = max(min(ceil((high - 0.5) * have / want + reach), have), last * inputs)
    box = (first * inputs - start, last * inputs - start)
    return Window((start, stop), box, (last - first) * outputs, (low - first * outputs, high - first * outputs))


def _clear_of_ties(have: int, want: int, outputs: tuple[int, int], interpolation: Interpolation) -> bool:
    """Whether every weight of these outputs rounds to one value, despite the error of the centre."""
    support, kernel = FILTERS[interpolation]
    stretch = max(have / want, 1)
    centres = (np.arange(*outputs) + 0.5)[:, None] * have / want
    inputs = np.floor(centres - support * stretch) + np.arange(ceil(2 * support * stretch) + 2)
    distance = np.abs(inputs + 0.5 - centres) / stretch
    weights = np.where((inputs >= 0) & (inputs < have) & (distance < support), kernel(distance), 0)
    units = np.abs(weights / weights.sum(axis=1, keepdims=True)) * 2**WEIGHT_BITS
    return bool((np.abs(units % 1 - 0.5) > _CLEAR_OF_TIE).all())
