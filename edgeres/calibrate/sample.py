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

Error: low and high are exact. Every value is counted once in the mean over the phases, so the share of values below any
given one is unbiased. The phases of different images are independent and an image's share lies between 0 and 2, so by
Hoeffding's inequality (1963, theorem 2) the mean over N images is off by more than e with probability at most
2 exp(-N e**2 / 2), whatever they hold. That is a worst case, in which all positions of an image go together;
docs/calibration.md has the errors that were measured.
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

# Values of one image up to which a tensor is counted whole.
WHOLE = 1 << 14
# Beyond that: values that are searched for outer ones, values sampled among them, and the share on each side that is
# outer.
SCANNED = 1 << 16
SAMPLE = 1 << 11
OUTER = 0.005
_PROBE = 1 << 9
_SEGMENTS = 64


@dataclass(frozen=True)
class Split:
    """What is counted of a tensor.

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


def split(values: F32, phases: Sequence[int]) -> Iterator[Split]:
    """What to count of a tensor, image by image.

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
        # The thresholds have a phase of their own: what is counted on either side must not depend on where they fall.
        probe = np.sort(image[rest % layout.probe_step :: layout.probe_step])
        rank = int(len(probe) * OUTER)
        limits = probe[rank], probe[-1 - rank], low
        sample = image[start :: layout.step]
        outside = _outside(image.reshape(layout.rows, layout.parts, -1)[:, part], *limits)
        outer = image[layout.positions(np.flatnonzero(outside), part)]
        body = sample[~_outside(sample, *limits)]
        yield Split(outer, layout.parts, body, layout.step, low, high)


def phase_of(image: F32) -> int:
    """A checksum of one network input, of any shape: the same for the same pixels, on any machine."""
    return zlib.crc32(image.reshape(-1)[::61].tobytes())


def _extremes(values: F32) -> tuple[float, float]:
    """The least and the largest value."""
    # As integers, floats with a sign bit are larger than any without, the most negative largest; NaN exceeds them all.
    top = np.maximum.reduce(values.view(np.uint32), axis=None).view(np.float32)
    if np.signbit(top):
        return float(top), float(values.max())
    # Behind a ReLU zeros are plenty, which spares the search for the least.
    return (float(values.min()) if values.reshape(-1)[:_PROBE].all() else 0.0), float(top)


def _outside(values: F32, floor: np.float32, ceiling: np.float32, low: float) -> Mask:
    """Which values are below the floor, above the ceiling, or not numbers; none is below ``low``."""
    if low >= floor:  # as behind a ReLU
        beyond: Mask = values > ceiling
        return beyond
    inside = values <= ceiling
    inside &= values >= floor
    return np.logical_not(inside, out=inside)


@dataclass(frozen=True)
class _Layout:
    """How the values of one image are gone through: every ``step``-th is sampled, every ``probe_step``-th is there for
    the thresholds, and outer ones are sought in one of ``parts`` parts, each of ``rows`` rows of ``width`` values.
    """

    parts: int
    rows: int
    width: int
    step: int
    probe_step: int

    def positions(self, inside: I64, part: int) -> I64:
        """Where in the tensor the values of a part lie, given where in the part they lie."""
        if self.parts == 1:
            return inside
        row = inside // self.width
        found: I64 = inside + (row * (self.parts - 1) + part) * self.width
        return found


@lru_cache(maxsize=256)
def _layout(count: int) -> _Layout:
    """For ``count`` values. Steps share no factor with it, nor then with rows, columns and channels: each of these has
    its turn.
    """
    divisors = [d for d in range(1, math.isqrt(count) + 1) if count % d == 0]
    parts = next((d for d in divisors if count // d <= SCANNED), 1)
    rows = max(d for d in range(1, _SEGMENTS + 1) if count // parts % d == 0)
    step, probe_step = (
        next(step for step in range(max(count // wanted, 1), count + 2) if math.gcd(step, count) == 1)
        for wanted in (SAMPLE, _PROBE)
    )
    return _Layout(parts, rows, count // parts // rows, step, probe_step)
