"""Choose which values of a large tensor are counted: all outer values, and a regular sample of the others.

The largest values decide the range, and a plain sample has too few of them; of the many small values only the density
matters. So the values of each image are split at two thresholds of their own. Outer values, about ``OUTER`` on each
side, are all counted. Of the values between, every ``step``-th is counted ``step`` times.

    values  |x x| x x x x x x x x x x x x x |x x x|          one image, one tensor
             all   every step-th, step each   all

In a tensor with more than ``SCANNED`` values per image, outer values are searched in a regular part of at most that
many values, and counted for the whole. Extremes are always taken over all values.

The choice depends on the image alone: the position of the first sampled value, the phase, is a checksum of the pixels.
So the sketches do not depend on the order of the images, the batches, or the machines.

Error: low and high are exact. Every value is counted once on average over the phases, so the share of values below any
given value is unbiased. The phases of different images are independent and an image's share lies between 0 and 2, so by
Hoeffding's inequality (1963, theorem 2) the mean over N images is off by more than e with probability at most
2 exp(-N e**2 / 2), for any values. This is the worst case, in which all positions of an image agree;
docs/calibration.md has measured errors.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from edgeres.records import F32, I64

Mask = npt.NDArray[np.bool_]

# A tensor with up to this many values per image is counted completely.
WHOLE = 1 << 14
# For larger tensors, per image: values that are searched for outer ones, sampled values, and the outer share per side.
SCANNED = 1 << 16
SAMPLE = 1 << 11
OUTER = 0.005
_PROBE = 1 << 9
_SEGMENTS = 64


@dataclass(frozen=True)
class Split:
    """The values of a tensor that are counted.

    Attributes:
        outer, body: float32 (k,), outer values and values between the thresholds.
        outer_weight, body_weight: how often each of them is counted.
        low, high: the exact extremes of all values; not finite where a value is not finite.
    """

    outer: F32
    outer_weight: int
    body: F32
    body_weight: int
    low: float
    high: float


def split(values: F32, phases: Sequence[int]) -> Iterator[Split]:
    """Choose the values to count, image by image.

    Args:
        values: (B, n) contiguous.
        phases: of the B images, from :func:`phase_of`.
    """
    if values.shape[1] <= WHOLE:
        yield Split(values.reshape(-1), 1, values[0, :0], 1, *_extremes(values))
        return
    layout = _layout(values.shape[1])
    for image, phase in zip(values, phases, strict=True):
        low, high = _extremes(image)
        rest, part = divmod(phase, layout.parts)
        rest, start = divmod(rest, layout.step)
        # The thresholds have a phase of their own, so that they are independent of the sample.
        probe = np.sort(image[rest % layout.probe_step :: layout.probe_step])
        rank = int(len(probe) * OUTER)
        limits = probe[rank], probe[-1 - rank], low
        sample = image[start :: layout.step]
        outside = _outside(image.reshape(layout.rows, layout.parts, -1)[:, part], *limits)
        outer = image[layout.positions(np.flatnonzero(outside), part)]
        body = sample[~_outside(sample, *limits)]
        yield Split(outer, layout.parts, body, layout.step, low, high)


def phase_of(image: F32) -> int:
    """A checksum of one network input of any shape; the same pixels give the same checksum on any machine."""
    return zlib.crc32(image.reshape(-1)[::61].tobytes())


def _extremes(values: F32) -> tuple[float, float]:
    """The least and the largest value."""
    # Read as unsigned integers, negative floats are above positive ones, the most negative is the highest, and NaN is
    # above all of them.
    top = np.maximum.reduce(values.view(np.uint32), axis=None).view(np.float32)
    if np.signbit(top):
        return float(top), float(values.max())
    # Behind a ReLU a zero is found soon, so the minimum need not be searched.
    return (float(values.min()) if values.reshape(-1)[:_PROBE].all() else 0.0), float(top)


def _outside(values: F32, floor: np.float32, ceiling: np.float32, low: float) -> Mask:
    """Which values are below the floor, above the ceiling, or NaN; ``low`` is the least value."""
    if low >= floor:  # typical behind a ReLU
        beyond: Mask = values > ceiling
        return beyond
    inside = values <= ceiling
    inside &= values >= floor
    return np.logical_not(inside, out=inside)


@dataclass(frozen=True)
class _Layout:
    """How the values of one image are traversed.

    Every ``step``-th value is sampled, every ``probe_step``-th value is used to find the thresholds, and outer values
    are searched in one of ``parts`` parts, each of ``rows`` rows of ``width`` values.
    """

    parts: int
    rows: int
    width: int
    step: int
    probe_step: int

    def positions(self, inside: I64, part: int) -> I64:
        """Positions in the tensor of values at these positions in a part."""
        if self.parts == 1:
            return inside
        row = inside // self.width
        found: I64 = inside + (row * (self.parts - 1) + part) * self.width
        return found


@lru_cache(maxsize=256)
def _layout(count: int) -> _Layout:
    """For ``count`` values. Steps have no common factor with it, so all rows, columns and channels are sampled."""
    divisors = [d for d in range(1, math.isqrt(count) + 1) if count % d == 0]
    parts = next((d for d in divisors if count // d <= SCANNED), 1)
    rows = max(d for d in range(1, _SEGMENTS + 1) if count // parts % d == 0)
    step, probe_step = (
        next(step for step in range(max(count // wanted, 1), count + 2) if math.gcd(step, count) == 1)
        for wanted in (SAMPLE, _PROBE)
    )
    return _Layout(parts, rows, count // parts // rows, step, probe_step)
