"""Intervals and tests for figures measured on a sample, with numpy and the standard library alone.

FP32 and INT8 answer the same images, so the sample is paired and only the images they disagree about carry information:
``lost`` (FP32 right, INT8 wrong) and ``gained`` (the reverse). Intervals are two-sided; ``z`` is 95 % where unsaid.

What each gate makes of them, with the error rates that were measured, is in ``docs/verification.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeres.records import F64

Z95 = 1.959963984540054  # the standard normal's 97.5 % quantile
Z999 = 3.290526731491926  # its 99.95 % quantile
Z80 = 0.8416212335729143  # its 80 % quantile: the power that "how many images would do" is planned for
ENOUGH_AT_MOST = 10_000_000  # images; more is no plan


@dataclass(frozen=True)
class Estimate:
    """A figure with its confidence interval, 95 % where nothing else is said, all in the figure's own unit."""

    value: float
    low: float
    high: float


def paired_drop_pp(lost: float, gained: float, total: int, z: float = Z95) -> Estimate:
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
        """Whether a true difference of ``delta`` would make these counts a surprise."""
        return (estimate - delta) ** 2 * total > z**2 * _restricted_variance(lost / total, gained / total, delta)

    def limit(beyond: float) -> float:
        inside = estimate
        for _ in range(60):  # bisection down to a float's own precision
            middle = (inside + beyond) / 2
            inside, beyond = (inside, middle) if rejected(middle) else (middle, beyond)
        return 100 * inside

    return Estimate(100 * estimate, limit(-1.0), limit(1.0))


def _restricted_variance(lost: float, gained: float, delta: float) -> float:
    """Variance of one image's share in the drop, by maximum likelihood among all with a true drop of ``delta``.

    Args:
        lost, gained: shares that were observed.
    """
    b = (2 - lost + gained) * delta - lost - gained
    c = -gained * delta * (1 - delta)
    q = (math.sqrt(max(b * b - 8 * c, 0.0)) - b) / 4  # probability of a gained image
    return 2 * q + delta * (1 - delta)


def mcnemar_p(lost: int, gained: int) -> float:
    """Exact two-sided p-value of "INT8 is as often right as FP32", from the discordant pairs.

    Under the hypothesis every discordant pair is a fair coin (McNemar 1947), so this is a binomial test.

    >>> mcnemar_p(1, 7)
    0.0703125
    """
    return min(1.0, 2 * sign_tail(max(lost, gained), min(lost, gained)))


def mcnemar_mid_p(lost: int, gained: int) -> float:
    """The same, but of what is exactly as far out as observed half the probability: closer to its level, and stronger.

    Source: Fagerland, Lydersen and Laake 2013, "The McNemar test for binary matched-pairs data: mid-p and asymptotic
    are better than exact conditional", BMC Medical Research Methodology 13:91.

    >>> mcnemar_mid_p(1, 7)
    0.0390625
    """
    n = lost + gained
    own: float = math.comb(n, lost) / 2**n
    return 1 - own / 2 if lost == gained else 2 * sign_tail(max(lost, gained), min(lost, gained)) - own


def sign_tail(lost: int, gained: int) -> float:
    """Chance of at least ``lost`` heads in ``lost + gained`` tosses of a fair coin: the one-sided exact McNemar test.

    >>> sign_tail(5, 0)
    0.03125
    """
    n = lost + gained
    term, tail = 1, 0  # integers, so the sum is exact
    for k in range(gained + 1):
        tail += term  # C(n, k)
        term = term * (n - k) // (k + 1)
    share: float = tail / 2**n
    return share


def fisher_tail(hits: int, total: int, hits_before: int, total_before: int) -> float:
    """One-sided exact test of "the share of hits has not fallen", for two samples of different images.

    The chance, with both margins given, of ``hits`` or fewer in the newer sample (Fisher 1935, hypergeometric).

    >>> round(fisher_tail(1, 10, 11, 14), 7)
    0.0013797
    """
    every, all_hits = total + total_before, hits + hits_before
    ways = range(max(0, all_hits - total_before), hits + 1)
    count = sum(math.comb(total, k) * math.comb(total_before, all_hits - k) for k in ways)
    share: float = count / math.comb(every, all_hits)
    return share


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for having looked so many times: the chance that any true hypothesis falls is kept.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, reached = [0.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for rank, i in enumerate(order):
        reached = max(reached, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = reached
    return adjusted


def difference(now: Estimate, before: Estimate) -> Estimate:
    """``now - before`` of two independent samples, from their intervals alone.

    Source: square-and-add, Newcombe 1998, "Interval estimation for the difference between independent proportions",
    Statistics in Medicine 17; for any two intervals, MOVER in Zou and Donner 2008, Statistics in Medicine 27.
    """
    value = now.value - before.value
    below = math.hypot(now.value - now.low, before.high - before.value)
    above = math.hypot(now.high - now.value, before.value - before.low)
    return Estimate(value, value - below, value + above)


def ratio(now: Estimate, before: Estimate) -> Estimate:
    """``now / before`` of two independent positive figures: :func:`difference` of their logarithms."""
    logs = (Estimate(math.log(e.value), math.log(e.low), math.log(e.high)) for e in (now, before))
    log = difference(*logs)
    return Estimate(math.exp(log.value), math.exp(log.low), math.exp(log.high))


def images_for_drop(lost: int, gained: int, total: int, limit_pp: float) -> int | None:
    """Images with which the interval of a drop would leave ``limit_pp`` on one side, four times in five.

    n = (z_0.975 sqrt(v0) + z_0.8 sqrt(v1))**2 / (limit - drop)**2, v1 = p_lost + p_gained - drop**2 the variance as
    observed and v0 that of the score test at the limit (Connor 1987, Biometrics 43; with a margin Nam 1997, Biometrics
    53); and no fewer than it takes where the shares turn out as observed.

    Returns:
        None where the drop is so close to the limit that no practical number would do.
    """
    drop, limit = (lost - gained) / total, limit_pp / 100
    spreads = (
        _restricted_variance(lost / total, gained / total, limit),
        (lost + gained + 1) / (total + 2) - drop**2,  # half an image more on either side: none is not never
    )

    def interval(n: int) -> Estimate:
        return paired_drop_pp(n * lost / total, n * gained / total, n)

    return _enough(spreads, drop - limit, lambda n: _clear(interval(n), limit_pp))


def images_for_share(hits: int, total: int, limit_percent: float) -> int | None:
    """The same for a share such as the agreement, with the binomial's own variances."""
    p, limit = (hits + 0.5) / (total + 1), limit_percent / 100

    def interval(n: int) -> Estimate:
        return proportion_percent(n * hits / total, n)

    spreads = (limit * (1 - limit), p * (1 - p))
    return _enough(spreads, hits / total - limit, lambda n: _clear(interval(n), limit_percent))


def _clear(interval: Estimate, limit: float) -> bool:
    return not interval.low <= limit <= interval.high


def _enough(variances: tuple[float, float], distance: float, is_clear: Callable[[int], bool]) -> int | None:
    """The planned number, or the least with a clear interval if that is larger.

    Args:
        variances: of one image, at the limit and as observed.
    """
    at_limit, observed = (math.sqrt(max(variance, 0.0)) for variance in variances)
    reach = (Z95 * at_limit + Z80 * observed) / abs(distance) if distance else math.inf
    if reach**2 > ENOUGH_AT_MOST or not is_clear(ENOUGH_AT_MOST):
        return None
    planned = math.ceil(reach**2)
    few, many = 1, ENOUGH_AT_MOST
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if is_clear(middle) else (middle, many)
    return max(planned, many)


def proportion_percent(hits: float, total: int, z: float = Z95) -> Estimate:
    """A share in per cent with Wilson's score interval.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22; method 3 of
    Newcombe 1998, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17.
    """
    p, zz = hits / total, z**2 / total
    centre = (p + zz / 2) / (1 + zz)
    half = z / (1 + zz) * math.sqrt((p * (1 - p) + zz / 4) / total)
    # At 0 and 100 % a limit is the estimate itself: keep rounding from putting it a hair inside
    return Estimate(100 * p, 100 * min(max(centre - half, 0.0), p), 100 * max(min(centre + half, 1.0), p))


class Sqnr:
    """Signal to quantization noise, ``10 log10(sum s^2 / sum (s - t)^2)`` in dB, over any number of batches."""

    def __init__(self) -> None:
        self._signal: list[F64] = []
        self._noise: list[F64] = []

    def add(self, reference: npt.NDArray[np.floating], candidate: npt.NDArray[np.floating]) -> None:
        """Take in one batch, images along the first axis; sums are kept in float64, one pair an image."""
        s = reference.astype(np.float64)
        self._signal.append(np.square(s).reshape(len(s), -1).sum(axis=1))
        self._noise.append(np.square(s - candidate).reshape(len(s), -1).sum(axis=1))

    @property
    def decibels(self) -> float:
        """inf where both agree to the last bit, -inf where the reference is all zero and the candidate is not."""
        signal, noise = (float(np.concatenate(rows).sum()) for rows in (self._signal, self._noise))
        if noise == 0:
            return math.inf
        return 10 * math.log10(signal / noise) if signal else -math.inf

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % limits in dB over the choice of images; None with fewer than two images or no finite ratio.

        The delta method for the logarithm of a ratio of means (Cochran 1977, "Sampling techniques", chapter 6).
        """
        signal, noise = np.concatenate(self._signal), np.concatenate(self._noise)
        if len(signal) < 2 or not math.isfinite(self.decibels):
            return None
        spread = float(np.std(signal / signal.mean() - noise / noise.mean(), ddof=1))
        half = Z95 * 10 / math.log(10) * spread / math.sqrt(len(signal))
        return self.decibels - half, self.decibels + half


def block_bootstrap(
    figure: Callable[[F64], float], blocks: F64, *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % limits of a figure of latencies, whole blocks drawn; see :func:`ratio_of_medians`.

    Args:
        figure: of a one-dimensional sample.
        blocks: float64 (blocks, n).
    """
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(blocks), (resamples, len(blocks)))
    low, high = np.quantile([figure(blocks[rows].reshape(-1)) for rows in drawn], [0.025, 0.975])
    return float(low), float(high)


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
