"""A histogram of float32 values that needs no prior range, has fixed size, and merges exactly.

Bins are taken from the float's own bits: sign, exponent and the top ``MANTISSA_BITS`` of the mantissa. A bin is
therefore ``2**-MANTISSA_BITS`` of its value wide (0.2 %), wherever the values lie; adding images in any order or any
grouping gives the same counts, and merging two sketches is adding their counts. Minimum and maximum are kept exactly.

    >>> sketch = Sketch()
    >>> sketch.add(np.array([0.0, 1.0, -3.0], np.float32))
    >>> sketch.count, sketch.low, sketch.high
    (3, -3.0, 1.0)

Error bound: a quantile of the sketch lies in the same bin as the exact one, so it is off by at most 0.2 % of its value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeres.records import F64, I64

U32 = npt.NDArray[np.uint32]

MANTISSA_BITS = 9
BIN_SHIFT = 23 - MANTISSA_BITS
_HALF = 1 << (8 + MANTISSA_BITS)  # bins of one sign; the sign bit is the top bit of the index
# Pieces that fit into the cache with their bin indices are counted several times faster than a whole array.
_PIECE = 1 << 18


@dataclass(frozen=True)
class Histogram:
    """The non-empty bins in ascending order of value; density inside a bin is taken as uniform.

    Attributes:
        lows, highs: (B,) edges of each bin, lows < highs; zeros are not in here.
        counts: (B,) values in each.
        zeros: values that are exactly zero (or subnormal).
        low, high: exact extremes of everything, zeros included.
    """

    lows: F64
    highs: F64
    counts: F64
    zeros: int
    low: float
    high: float

    @property
    def total(self) -> float:
        return float(self.counts.sum()) + self.zeros


class Sketch:
    """Counts by float bits, plus exact extremes; ``counts`` has shape (2 * _HALF,), positive values first."""

    def __init__(self) -> None:
        self.counts: I64 = np.zeros(2 * _HALF, np.int64)
        self.low = np.inf
        self.high = -np.inf

    @property
    def count(self) -> int:
        return int(self.counts.sum())

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Count every value of an array of any shape.

        Raises:
            ValueError: an infinite or undefined value, after which the sketch must not be used.
        """
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        self.widen(float(flat.min()), float(flat.max()))
        for start in range(0, len(flat), _PIECE):
            self.count_bins(bins_of(flat[start : start + _PIECE]))

    def widen(self, low: float, high: float) -> None:
        """Extend the extremes, also for values that are not counted.

        Raises:
            ValueError: they are infinite or undefined.
        """
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("infinite or undefined values")
        self.low, self.high = min(self.low, low), max(self.high, high)

    def count_bins(self, bins: U32, weight: int = 1) -> None:
        """Count values by the indices of their bins, from :func:`bins_of`, each ``weight`` times.

        Only efficient for many values at a time: each call costs as much as about 50,000 values.
        """
        signed = int(bins.max(initial=0)) >= _HALF
        magnitude = bins & np.uint32(_HALF - 1) if signed else bins
        # Few bins are in use once zeros move to the bin below the smallest magnitude and the sign becomes the last bit.
        base = int((magnitude - np.uint32(1)).min(initial=_HALF - 1))
        folded = np.maximum(magnitude, np.uint32(base))
        folded -= np.uint32(base)
        if signed:
            folded <<= 1
            folded |= bins >> np.uint32(8 + MANTISSA_BITS)
        signs = 1 + signed
        found = np.bincount(folded, minlength=signs)
        found = np.append(found, 0) if len(found) % signs else found
        by_sign = found.reshape(-1, signs).T * weight
        counts = self.counts.reshape(2, _HALF)[:signs]
        counts[:, 0] += by_sign[:, 0]
        counts[:, base + 1 : base + by_sign.shape[1]] += by_sign[:, 1:]

    def merge(self, other: Sketch) -> None:
        """Add the counts and extremes of ``other``; exact, commutative and associative."""
        used = np.flatnonzero(other.counts)
        self.counts[used] += other.counts[used]
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def histogram(self) -> Histogram:
        """The non-empty bins, ascending, clipped to the exact extremes."""
        positive = np.flatnonzero(self.counts[1:_HALF]) + 1
        negative = np.flatnonzero(self.counts[_HALF + 1 :]) + 1
        near, far = _edges(positive)
        low_side, high_side = _edges(negative[::-1])
        lows = np.maximum(np.concatenate([-high_side, near]), self.low)
        highs = np.minimum(np.concatenate([-low_side, far]), self.high)
        counts = np.concatenate([self.counts[_HALF:][negative[::-1]], self.counts[positive]]).astype(np.float64)
        zeros = int(self.counts[0] + self.counts[_HALF])
        return Histogram(lows, highs, counts, zeros, float(self.low), float(self.high))


def bins_of(values: npt.NDArray[np.float32]) -> U32:
    """For each value of a contiguous array the index of its bin in ``Sketch.counts``."""
    bins: U32 = values.view(np.uint32) >> np.uint32(BIN_SHIFT)
    return bins


def _edges(index: I64) -> tuple[F64, F64]:
    """Magnitudes at which bins begin and end."""

    def value(bins: I64) -> F64:
        bits: npt.NDArray[np.uint32] = (bins << BIN_SHIFT).astype(np.uint32)
        return bits.view(np.float32).astype(np.float64)

    return value(index), value(index + 1)
