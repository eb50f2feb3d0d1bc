"""Which values of a large tensor are counted: the outer ones all, one in so many of the rest.

Ranges are decided by the largest values, of which a plain sample has too few, while the many small ones only need their
density. So every image's tensor is split at two thresholds of its own: what lies outside them, about ``OUTER`` on
each side, is counted value by value; what lies inside at every ``step``-th position, each value ``step`` times.

    values  |x x| x x x x x x x x x x x x x |x x x|          one image, one tensor
             all   every step-th, step each   all

Of a tensor with more than ``SCANNED`` values an image, a regular part of at most that many is split, each value counted
for as many as it stands for. Extremes are taken over everything, always.

All of this is a function of the image alone; where the steps begin, its phase, is a checksum of its pixels. So the
sketches of the same images are equal whatever the order, the batches, and the machines that they are spread over.

Error: low and high are exact. The share of values below any given one is unbiased over the phase, and the phases of
different images are independent, so by Hoeffding's inequality (1963, theorem 2) it is off by more than e with
probability at most 2 exp(-2 N e**2) for N images, whatever they hold. That is a worst case, in which all positions
of an image go together; docs/calibration.md has the errors that were measured.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from edgeres.records import F32

# Values of one image up to which a tensor is counted whole.
WHOLE = 1 << 14
# Beyond that: values that are searched for outer ones, values sampled among them, and the share on each side that is
# outer.
SCANNED = 1 << 16
SAMPLE = 1 << 12
OUTER = 0.005
_PROBE = 1 << 9
_SEGMENTS = 64


@dataclass(frozen=True)
class Split:
    """What is counted of one image's tensor.

    Attributes:
        outer, body: float32 (k,), values.
        outer_weight, body_weight: how often each of them is counted.
        low, high: the exact extremes of all values; not finite where any value is not.
    """

    outer: F32
    outer_weight: int
    body: F32
    body_weight: int
    low: float
    high: float


def split(values: F32, phase: int) -> Split:
    """Split the values of one image's tensor.

    Args:
        values: (n,) contiguous.
        phase: of the image, from :func:`phase_of`.
    """
    parts, rows, step, stride = _layout(values.size)
    scanned = values.reshape(rows, parts, -1)[:, phase % parts].reshape(-1)
    sample = scanned[phase // parts % step :: step].copy()
    probe = np.sort(sample[::stride])
    rank = int(len(probe) * OUTER)
    floor, ceiling = probe[rank], probe[-1 - rank]
    outer = _take(scanned, _outside(scanned, floor, ceiling))
    body = sample[~_outside(sample, floor, ceiling)]
    return Split(outer, parts, body, parts * step, *_extremes(values, sample))


def phase_of(image: F32) -> int:
    """A checksum of one network input, of any shape: the same for the same pixels, on any machine."""
    return zlib.crc32(image.reshape(-1)[::61].tobytes())


def _extremes(values: F32, sample: F32) -> tuple[float, float]:
    """The least and the largest value; ``sample`` is some of them."""
    # As integers, floats with a sign bit are larger than any without, the most negative largest; NaN exceeds them all.
    bits = values.view(np.uint32).max()
    if np.signbit(bits.view(np.float32)):
        return float(bits.view(np.float32)), float(values.max())
    # Behind a ReLU a zero is sure to be in the sample, which spares the search for the least.
    return (0.0 if (sample == 0).any() else float(values.min())), float(bits.view(np.float32))


def _outside(values: F32, floor: np.float32, ceiling: np.float32) -> npt.NDArray[np.bool_]:
    """Which values are below the floor, above the ceiling, or not numbers."""
    if floor == 0 and not np.signbit(floor):
        # Behind a ReLU one comparison does, for the same reason.
        beyond: npt.NDArray[np.bool_] = values.view(np.uint32) > ceiling.view(np.uint32)
        return beyond
    inside = values <= ceiling
    inside &= values >= floor
    return np.logical_not(inside, out=inside)


def _take(values: F32, chosen: npt.NDArray[np.bool_]) -> F32:
    """``values[chosen]``, several times faster where few are: by eights first."""
    whole = len(values) // 8 * 8
    eights = np.flatnonzero(chosen[:whole].view(np.uint64) != 0)
    near = np.take(values[:whole].reshape(-1, 8), eights, axis=0).reshape(-1)
    which = np.take(chosen[:whole].reshape(-1, 8), eights, axis=0).reshape(-1)
    found: F32 = near[np.flatnonzero(which)]
    return found if whole == len(values) else np.concatenate([found, values[whole:][chosen[whole:]]])


@lru_cache(maxsize=256)
def _layout(count: int) -> tuple[int, int, int, int]:
    """How ``count`` values are gone through: one of ``parts`` parts, each of ``rows`` rows all over the tensor; every
    ``step``-th value of it; and for the thresholds every ``stride``-th of those.

    Steps share no factor with the count, nor then with rows, columns and channels: each of these has its turn.
    """
    divisors = [d for d in range(1, math.isqrt(count) + 1) if count % d == 0]
    parts = next((d for d in divisors if count // d <= SCANNED), 1)
    size = count // parts
    rows = max(d for d in range(1, _SEGMENTS + 1) if size % d == 0)
    step, stride = (
        next(step for step in range(max(least, 1), size + 2) if math.gcd(step, size) == 1)
        for least in (size // SAMPLE, min(size, SAMPLE) // _PROBE)
    )
    return parts, rows, step, stride
