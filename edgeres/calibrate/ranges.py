"""Choose the range that the codes of a tensor cover, from its histogram, by one of four methods.

All methods take the density inside a bin as uniform. The rounding error is then an integral with a closed form; bins
are 0.2 % wide, which is narrower than a code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from edgeres.calibrate.sketch import Histogram
from edgeres.records import F64, I64, Method, TensorRange

# Percentage of values inside the range of the percentile method; the default of ONNX Runtime and TensorRT.
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
    """Covers PERCENTILE per cent of the magnitudes where symmetric; otherwise both ends lose the same share."""
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
    wanted, below = share * counts.sum(), np.cumsum(counts)
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


@dataclass(frozen=True)
class Moments:
    """Running sums over the bins of a histogram, from which the error of any scale follows in a few look-ups.

    Attributes:
        lows, highs, counts: (B,) as in the histogram.
        mass, first: (B,) number and sum of all values in the bins before each.
        total_mass, total_first, total_second: number, sum and sum of squares of all values that are not zero.
        total: number of all values.
    """

    lows: F64
    highs: F64
    counts: F64
    mass: F64
    first: F64
    total_mass: float
    total_first: float
    total_second: float
    total: float

    @classmethod
    def of(cls, h: Histogram) -> Moments:
        first = h.counts * (h.lows + h.highs) / 2
        second = h.counts * (h.lows**2 + h.lows * h.highs + h.highs**2) / 3
        mass, running = (np.concatenate([[0.0], np.cumsum(values)[:-1]]) for values in (h.counts, first))
        sums = (float(h.counts.sum()), float(first.sum()), float(second.sum()))
        return cls(h.lows, h.highs, h.counts, mass, running, *sums, h.total)

    def below(self, x: F64) -> tuple[F64, F64]:
        """Number and sum of the values below each ``x``, of any shape."""
        index = np.maximum(np.searchsorted(self.lows, x) - 1, 0)
        low, high = self.lows[index], self.highs[index]
        # The exact extremes may cut a bin to a single value: it has no width, and is either below x or not.
        wide = high > low
        share = np.where(wide, (x - low) / np.where(wide, high - low, 1.0), x > low)
        inside = self.counts[index] * np.clip(share, 0.0, 1.0)
        return self.mass[index] + inside, self.first[index] + inside * (low + np.clip(x, low, high)) / 2


def rounding_error(moments: Moments, scale: F64, code_low: I64, codes: int) -> F64:
    """Mean squared error of ``scale * clip(round(x / scale), code_low, code_low + codes - 1)``, in units of x².

    With F and M the number and the sum of the values below x, and b_k = (n_k + 1/2) scale the end of code n_k,

        sum (x - scale n(x))² = sum x² - 2 scale sum n x + scale² sum n²,
        sum n x = n_last M(inf) - sum_k M(b_k),     sum n² = n_last² F(inf) - sum_k (2 n_k + 1) F(b_k),

    which is summation by parts: codes differ by one from cell to cell. It is exact for a uniform density inside each
    bin, and takes ``codes`` look-ups however many bins there are.

    Args:
        scale: (S,) candidates.
        code_low: (S,) least code of each; there are ``codes`` of them.

    Returns:
        (S,)
    """
    code = code_low[:, None] + np.arange(codes - 1)
    mass, first = moments.below((code + 0.5) * scale[:, None])
    last = code_low + codes - 1
    product = last * moments.total_first - first.sum(axis=1)
    square = last**2 * moments.total_mass - ((2 * code + 1) * mass).sum(axis=1)
    error: F64 = moments.total_second - 2 * scale * product + scale**2 * square
    return np.maximum(error, 0.0) / moments.total


def _mse(histogram: Histogram, symmetric: bool) -> tuple[float, float]:
    """The range with the least mean squared rounding and clipping error.

    Symmetric: amax over a fine grid. Asymmetric: low and high in turn over the same grid, until neither moves.
    """
    if symmetric:
        # Magnitudes need only the codes from 0 on; negative codes mirror them.
        folded = Moments.of(magnitudes(histogram))
        top = max(-histogram.low, histogram.high)
        amax = _search(lambda a: rounding_error(folded, a / 127, np.zeros(len(a), np.int64), LEVELS), top)
        return -amax, amax
    moments = Moments.of(histogram)
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    for _ in range(4):
        before = low, high
        if high > 0:
            high = _search(partial(_affine_error, moments, np.array([low])), histogram.high)
        if low < 0:
            low = -_search(partial(_mirrored_error, moments, np.array([high])), -histogram.low)
        if (low, high) == before or low == 0 or high == 0:
            break
    return low, high


def _mirrored_error(moments: Moments, high: F64, depth: F64) -> F64:
    return _affine_error(moments, -depth, high)


def _affine_error(moments: Moments, low: F64, high: F64) -> F64:
    scale = (high - low) / 255
    return rounding_error(moments, scale, -np.rint(-low / scale).astype(np.int64), 256)


def _search(error: Callable[[F64], F64], top: float) -> float:
    """The least error over ranges up to ``top``: 64 factors down to 2 % of it, then 32 around the best.

    The error is not unimodal, so only a grid is safe. The second pass resolves 0.2 %, the width of a bin.
    """
    coarse = top * np.geomspace(0.02, 1.0, 64)
    best = int(np.argmin(error(coarse)))
    fine = np.geomspace(coarse[max(best - 1, 0)], coarse[min(best + 1, 63)], 32)
    return float(fine[int(np.argmin(error(fine)))])


def _entropy(histogram: Histogram, symmetric: bool) -> tuple[float, float]:
    """The range that loses the least information (Migacz, 8-bit Inference with TensorRT, GTC 2017).

    |x| is counted in 2048 equal bins. For every clip i from 128 bins on, P is the histogram up to i with the outliers
    in the last bin, and Q is P merged to 128 levels and spread over the non-empty bins. The clip with the least
    KL(P || Q) is chosen.
    """
    folded = magnitudes(histogram)
    width = folded.high / _ENTROPY_BINS
    counts = _rebin(folded, _ENTROPY_BINS)
    divergence = [_kl_after_clip(counts, clip) for clip in range(LEVELS, _ENTROPY_BINS + 1)]
    amax = min((int(np.argmin(divergence)) + LEVELS + 0.5) * width, folded.high)
    return max(-amax, histogram.low), min(amax, histogram.high)


def _rebin(folded: Histogram, bins: int) -> F64:
    """Counts in equal bins over [0, high], uniform density inside each source bin; zeros are left out.

    Zeros are exact under any scale, so they must not influence the choice.
    """
    edges = np.linspace(0.0, folded.high, bins + 1)
    known = np.unique(np.concatenate([folded.lows, folded.highs]))
    # Bins do not overlap, so the running count at an edge is the sum over all bins that end there or before.
    running = np.concatenate([[0.0], np.cumsum(folded.counts)])
    at = running[np.searchsorted(folded.highs, known, side="right")]
    result: F64 = np.diff(np.interp(edges, known, at, left=0.0))
    return result


def _kl_after_clip(counts: F64, clip: int) -> float:
    kept = counts[:clip]
    p = kept.copy()
    p[-1] += counts[clip:].sum()
    alive = p > 0
    level = np.arange(clip) * LEVELS // clip
    sums, sizes = np.bincount(level, kept, LEVELS), np.bincount(level, alive, LEVELS)
    q = np.where(alive, sums[level] / np.maximum(sizes[level], 1), 0.0)
    both = alive & (q > 0)
    if not both.any() or not q.sum():
        return float("inf")
    ps, qs = p / p.sum(), q / q.sum()
    # Where Q is zero and P is not, a small floor keeps the divergence finite, as in TensorRT.
    lost = ps[alive & ~both]
    return float((ps[both] * np.log(ps[both] / qs[both])).sum() + (lost * np.log(lost / 1e-12)).sum())


_Chooser = Callable[[Histogram, bool], tuple[float, float]]
_METHODS: dict[Method, _Chooser] = {"minmax": _minmax, "percentile": _percentile, "entropy": _entropy, "mse": _mse}
