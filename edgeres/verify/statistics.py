"""Intervals and tests for figures measured on a sample, with numpy and the standard library alone.

FP32 and INT8 answer the same images, so the sample is paired and only the images they disagree about carry information:
``lost`` (FP32 right, INT8 wrong) and ``gained`` (the reverse). All intervals are two-sided, 95 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeres.records import F64

Z95 = 1.959963984540054  # the standard normal's 97.5 % quantile


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % confidence interval, all in the figure's own unit."""

    value: float
    low: float
    high: float


def paired_drop_pp(lost: int, gained: int, total: int) -> Estimate:
    """Loss of accuracy in percentage points, ``100 (lost - gained) / total``, with Tango's score interval.

    The score interval keeps its coverage where the discordant pairs are few or none, as they should be here; Wald's
    collapses to a point there. With no discordant pair in n images the limits are ``+-z^2 / (n + z^2)``.

    Source: Tango 1998, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 17, eq. 10 to 13; recommended by Fagerland, Lydersen and Laake 2014.

    >>> round(paired_drop_pp(0, 0, 1000).high, 4)
    0.3827
    """
    estimate = (lost - gained) / total

    def rejected(delta: float) -> bool:
        """Whether a true difference of ``delta`` would make these counts a 5 % surprise."""
        # q: maximum-likelihood probability of a gained image, given the difference
        a = 2 * total
        b = (2 * total - lost + gained) * delta - lost - gained
        c = -gained * delta * (1 - delta)
        q = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = total * (2 * q + delta * (1 - delta))
        return (lost - gained - total * delta) ** 2 > Z95**2 * variance

    def limit(beyond: float) -> float:
        inside = estimate
        for _ in range(60):  # bisection down to a float's own precision
            middle = (inside + beyond) / 2
            inside, beyond = (inside, middle) if rejected(middle) else (middle, beyond)
        return 100 * inside

    return Estimate(100 * estimate, limit(-1.0), limit(1.0))


def mcnemar_p(lost: int, gained: int) -> float:
    """Exact two-sided p-value of "INT8 is as often right as FP32", from the discordant pairs.

    Under the hypothesis every discordant pair is a fair coin (McNemar 1947), so this is a binomial test.

    >>> mcnemar_p(1, 7)
    0.0703125
    """
    n = lost + gained
    term, tail = 1, 0  # integers, so the sum is exact
    for k in range(min(lost, gained) + 1):
        tail += term  # C(n, k)
        term = term * (n - k) // (k + 1)
    p: float = 2 * tail / 2**n
    return min(1.0, p)


def proportion_percent(hits: int, total: int) -> Estimate:
    """A share in per cent with Wilson's score interval.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22; method 3 of
    Newcombe 1998, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17.
    """
    p, zz = hits / total, Z95**2 / total
    centre = (p + zz / 2) / (1 + zz)
    half = Z95 / (1 + zz) * math.sqrt((p * (1 - p) + zz / 4) / total)
    # At 0 and 100 % a limit is the estimate itself: keep rounding from putting it a hair inside
    return Estimate(100 * p, 100 * min(max(centre - half, 0.0), p), 100 * max(min(centre + half, 1.0), p))


class Sqnr:
    """Signal to quantization noise, ``10 log10(sum s^2 / sum (s - t)^2)`` in dB, over any number of batches."""

    def __init__(self) -> None:
        self._signal = 0.0
        self._noise = 0.0

    def add(self, reference: npt.NDArray[np.floating], candidate: npt.NDArray[np.floating]) -> None:
        """Take in one batch of any shape; sums are kept in float64."""
        s = reference.astype(np.float64)
        self._signal += float(np.square(s).sum())
        self._noise += float(np.square(s - candidate).sum())

    @property
    def decibels(self) -> float:
        """inf where both agree to the last bit, -inf where the reference is all zero and the candidate is not."""
        if self._noise == 0:
            return math.inf
        return 10 * math.log10(self._signal / self._noise) if self._signal else -math.inf


def ratio_of_medians(numerator: F64, denominator: F64, *, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Ratio of two medians with a block bootstrap interval (percentiles of the resampled ratios).

    Latencies taken one after another depend on each other, so whole blocks are drawn, and because block ``i`` of both
    was measured at the same time, both take the same draw: what slowed the machine down for both cancels.

    Args:
        numerator, denominator: float64 (blocks, n) and (blocks, m); row ``i`` of both was measured side by side.

    Source: Kuensch 1989, "The jackknife and the bootstrap for general stationary observations", Annals of
    Statistics 17.
    """
    rng = np.random.default_rng(seed)
    blocks = len(numerator)
    drawn = rng.integers(0, blocks, (resamples, blocks))
    ratios = [np.median(numerator[rows]) / np.median(denominator[rows]) for rows in drawn]
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Estimate(float(np.median(numerator) / np.median(denominator)), float(low), float(high))
