"""From a histogram to the interval that the codes cover: four pure functions, one door.

All treat the density inside a bin as uniform, so that the error of rounding is integrated, not sampled: bins of 0.2 %
are narrower than a code, and the integral has a closed form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from edgeres.calibrate.sketch import BIN_SHIFT, Histogram
from edgeres.records import F64, Method, TensorRange

# Share of values inside the range of the percentile method; ONNX Runtime's and TensorRT's default.
PERCENTILE = 99.99
LEVELS = 128
_ENTROPY_BINS = 2048


def choose_range(tensor: str, histogram: Histogram, method: Method, samples: int, *, symmetric: bool) -> TensorRange:
    """The range of one tensor by one method.

    Args:
        symmetric: codes are int8 around zero and the result has low == -high (or 0 for tensors without negative
            values); otherwise codes are uint8 over [low, high].
    """
    if histogram.low == histogram.high == 0:
        return TensorRange(tensor, 0.0, 0.0, method, samples)
    low, high = _METHODS[method](histogram, symmetric)
    if symmetric:
        amax = max(-low, high)
        low, high = (-amax if histogram.low < 0 else 0.0), amax
    return TensorRange(tensor, min(low, 0.0), max(high, 0.0), method, samples)


def _minmax(histogram: Histogram, symmetric: bool) -> tuple[float, float]:
    return histogram.low, histogram.high


def _percentile(histogram: Histogram, symmetric: bool) -> tuple[float, float]:
    """Covers PERCENTILE per cent of all values: of the magnitudes where symmetric, split over both ends otherwise."""
    if symmetric:
        amax = quantile(magnitudes(histogram), PERCENTILE / 100)
        return -amax, amax
    tail = (1 - PERCENTILE / 100) / 2
    return quantile(histogram, tail), quantile(histogram, 1 - tail)


def quantile(histogram: Histogram, share: float) -> float:
    """The value below which ``share`` of all values lie, linear inside its bin.

    >>> h = Histogram(np.array([1.0]), np.array([2.0]), np.array([4.0]), 0, 1.0, 2.0)
    >>> quantile(h, 0.25)
    1.25
    """
    split = int(np.searchsorted(histogram.lows, 0.0))
    counts = np.insert(histogram.counts, split, histogram.zeros)
    lows, highs = np.insert(histogram.lows, split, 0.0), np.insert(histogram.highs, split, 0.0)
    wanted = share * counts.sum()
    below = np.cumsum(counts)
    index = min(int(np.searchsorted(below, wanted)), len(counts) - 1)
    inside = (wanted - (below[index] - counts[index])) / counts[index] if counts[index] else 0.0
    return float(lows[index] + inside * (highs[index] - lows[index]))


def magnitudes(histogram: Histogram) -> Histogram:
    """The histogram of |x|."""
    negative = histogram.lows < 0
    lows = np.concatenate([histogram.lows[~negative], -histogram.highs[negative]])
    highs = np.concatenate([histogram.highs[~negative], -histogram.lows[negative]])
    # Bins of both signs have the same edges, except where an exact extreme cuts the outermost: the wider one stands.
    edges, index = np.unique(lows, return_inverse=True)
    values = np.concatenate([histogram.counts[~negative], histogram.counts[negative]])
    counts = np.bincount(index, values, len(edges)).astype(np.float64)
    tops = np.zeros(len(edges))
    np.maximum.at(tops, index, highs)
    top = max(abs(histogram.low), abs(histogram.high))
    return Histogram(edges, tops, counts, histogram.zeros, 0.0, top)


def thin(histogram: Histogram, group: int = 16) -> Histogram:
    """Join bins below an eighth of the extreme in groups of ``group``.

    They stay narrower than a code of any range worth considering, and the search gets several times faster.
    """
    top = max(-histogram.low, histogram.high)
    # In steps of one bin's share of the magnitude; the groups are aligned to powers of two.
    size = np.minimum(np.abs(histogram.lows), np.abs(histogram.highs)).astype(np.float32).view(np.uint32) >> BIN_SHIFT
    small = np.maximum(np.abs(histogram.lows), np.abs(histogram.highs)) < top / 8
    key = np.where(small, size // group * group, size).astype(np.int64) * np.where(histogram.lows < 0, -1, 1)
    starts = np.flatnonzero(np.diff(key, prepend=key[:1] - 1))
    if not len(starts):
        return histogram
    ends = np.append(starts[1:], len(key)) - 1
    counts = np.add.reduceat(histogram.counts, starts)
    return replace(histogram, lows=histogram.lows[starts], highs=histogram.highs[ends], counts=counts)


def rounding_error(histogram: Histogram, scale: float, code_low: int, code_high: int) -> float:
    """Mean squared error of ``scale * clip(round(x / scale), code_low, code_high)`` over the histogram, in units of x².

    With u = x / scale and n the code of u, G(u) = n/12 + (u - n)³/3 is an antiderivative of (u - n)²: it is continuous
    where n changes, and beyond the last code it grows as the clipping error does. The mean over a bin [a, b] is then
    (G(b) - G(a)) / (b - a), without approximation.
    """
    low, high = histogram.lows / scale, histogram.highs / scale
    area = _antiderivative(high, code_low, code_high) - _antiderivative(low, code_low, code_high)
    width = high - low
    # A bin cut to a single value by the exact extremes has no width: its error is that of the value.
    at_point = (low - np.clip(np.rint(low), code_low, code_high)) ** 2
    mean = np.where(width > 0, area / np.where(width > 0, width, 1.0), at_point)
    return float(scale * scale * (histogram.counts @ mean) / histogram.total)


def _antiderivative(u: F64, code_low: int, code_high: int) -> F64:
    n = np.clip(np.rint(u), code_low, code_high)
    result: F64 = n / 12 + (u - n) ** 3 / 3
    return result


def _mse(histogram: Histogram, symmetric: bool) -> tuple[float, float]:
    """The range with the least mean squared rounding and clipping error.

    Symmetric: amax over a fine grid. Asymmetric: low and high in turn over the same grid, until neither moves.
    """
    histogram = thin(histogram)
    if symmetric:
        folded = magnitudes(histogram)
        amax = _search(lambda a: rounding_error(folded, a / 127, -127, 127), folded.high)
        return -amax, amax
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    for _ in range(4):
        before = low, high
        if high > 0:
            high = _search(partial(_affine_error, histogram, low), histogram.high)
        if low < 0:
            low = -_search(partial(_mirrored_error, histogram, high), -histogram.low)
        if (low, high) == before:
            break
    return low, high


def _mirrored_error(histogram: Histogram, high: float, depth: float) -> float:
    return _affine_error(histogram, -depth, high)


def _affine_error(histogram: Histogram, low: float, high: float) -> float:
    scale = (high - low) / 255
    zero = round(-low / scale)
    return rounding_error(histogram, scale, -zero, 255 - zero)


def _search(error: Callable[[float], float], top: float) -> float:
    """The least error over ranges up to ``top``: 64 factors down to 2 % of it, then 32 around the best.

    The error is not unimodal, so nothing but a grid is safe; the second pass resolves 0.2 %, the width of a bin.
    """
    coarse = top * np.geomspace(0.02, 1.0, 64)
    best = int(np.argmin([error(candidate) for candidate in coarse]))
    fine = np.geomspace(coarse[max(best - 1, 0)], coarse[min(best + 1, 63)], 32)
    errors = [error(candidate) for candidate in fine]
    return float(fine[int(np.argmin(errors))])


def _entropy(histogram: Histogram, symmetric: bool) -> tuple[float, float]:
    """The clip that loses least information (Migacz, 8-bit Inference with TensorRT, GTC 2017).

    |x| in 2048 equal bins; for every clip i from 128 bins up: P is the histogram to i with the outliers in the last
    bin, Q the same merged to 128 levels and spread again over the non-empty bins; the clip with the least KL(P || Q)
    wins.
    """
    folded = magnitudes(histogram)
    width = folded.high / _ENTROPY_BINS
    counts = _rebin(folded, _ENTROPY_BINS)
    divergence = [_kl_after_clip(counts, clip) for clip in range(LEVELS, _ENTROPY_BINS + 1)]
    amax = (int(np.argmin(divergence)) + LEVELS + 0.5) * width
    amax = min(amax, folded.high)
    return max(-amax, histogram.low), min(amax, histogram.high)


def _rebin(folded: Histogram, bins: int) -> F64:
    """Counts in equal bins over [0, high], uniform density inside each source bin; zeros are left out.

    Exact zeros stay exact under any scale: counting them would only reward scales that spend codes on them.
    """
    edges = np.linspace(0.0, folded.high, bins + 1)
    known = np.unique(np.concatenate([folded.lows, folded.highs]))
    # Bins do not overlap, so the running count at every known edge is the counts of all bins that end there or before.
    running = np.concatenate([[0.0], np.cumsum(folded.counts)])
    at = running[np.searchsorted(folded.highs, known, side="right")]
    result: F64 = np.diff(np.interp(edges, known, at, left=0.0))
    return result


def _kl_after_clip(counts: F64, clip: int) -> float:
    kept = counts[:clip]
    p = kept.copy()
    p[-1] += counts[clip:].sum()
    level = np.arange(clip) * LEVELS // clip
    alive = p > 0
    sums = np.bincount(level, kept, LEVELS)
    sizes = np.bincount(level, alive, LEVELS)
    q = np.where(alive, sums[level] / np.maximum(sizes[level], 1), 0.0)
    both = (p > 0) & (q > 0)
    if not both.any() or not q.sum():
        return float("inf")
    ps, qs = p / p.sum(), q / q.sum()
    # Mass of P where Q has none cannot be coded at all; a small floor keeps the comparison finite, as TensorRT's does.
    lost = ps[(p > 0) & ~both]
    return float((ps[both] * np.log(ps[both] / qs[both])).sum() + (lost * np.log(lost / 1e-12)).sum())


_METHODS: dict[Method, Callable[[Histogram, bool], tuple[float, float]]] = {
    "minmax": _minmax,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
}
