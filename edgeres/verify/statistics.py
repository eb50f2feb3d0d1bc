"""Confidence intervals and tests for figures measured on a sample; needs numpy and the standard library alone.

FP32 and INT8 answer the same images, so the sample is paired, and only the images with exactly one right answer carry
information: ``lost`` (FP32 right, INT8 wrong) and ``gained`` (the reverse). Intervals are two-sided, 95 % by default.

``docs/verification.md`` describes how each gate uses them, with measured error rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeres.records import F64, I64

Z95 = 1.959963984540054  # the standard normal's 97.5 % quantile
Z999 = 3.290526731491926  # its 99.95 % quantile
Z80 = 0.8416212335729143  # its 80 % quantile; the number of images needed is planned for a power of 80 %
MAX_IMAGES = 10_000_000  # a plan for more images is of no use


@dataclass(frozen=True)
class Estimate:
    """A figure with its confidence interval (95 % by default), all in the figure's own unit."""

    value: float
    low: float
    high: float


def paired_drop_pp(lost: float, gained: float, total: int, z: float = Z95) -> Estimate:
    """Loss of accuracy in percentage points, ``100 (lost - gained) / total``, with Tango's score interval.

    The score interval keeps its coverage with few or no discordant pairs, the normal case here; Wald's interval
    collapses to a point. With no discordant pair in n images the limits are ``+-z^2 / (n + z^2)``.

    Source: Tango 1998, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 17, eq. 10 to 13; recommended by Fagerland, Lydersen and Laake 2014.

    >>> round(paired_drop_pp(0, 0, 1000).high, 4)
    0.3827
    """
    estimate = (lost - gained) / total

    def rejected(delta: float) -> bool:
        """Whether the score test rejects a true difference of ``delta``."""
        return (estimate - delta) ** 2 * total > z**2 * _restricted_variance(lost / total, gained / total, delta)

    def limit(beyond: float) -> float:
        inside = estimate
        for _ in range(60):  # bisection down to the precision of a float
            middle = (inside + beyond) / 2
            inside, beyond = (inside, middle) if rejected(middle) else (middle, beyond)
        return 100 * inside

    return Estimate(100 * estimate, limit(-1.0), limit(1.0))


def _restricted_variance(lost: float, gained: float, delta: float) -> float:
    """Variance of one image's contribution to the drop, by maximum likelihood under a true drop of ``delta``.

    Args:
        lost, gained: observed shares of the images.
    """
    b = (2 - lost + gained) * delta - lost - gained
    c = -gained * delta * (1 - delta)
    q = (math.sqrt(max(b * b - 8 * c, 0.0)) - b) / 4  # probability of a gained image
    return 2 * q + delta * (1 - delta)


def mcnemar_mid_p(lost: int, gained: int) -> float:
    """Two-sided mid-p value of McNemar's test that INT8 is right as often as FP32, from the discordant pairs.

    Under this hypothesis each discordant pair is a fair coin (McNemar 1947). Mid-p counts outcomes as extreme as the
    observed one by half their probability; its level is closer to the nominal one, and its power higher.

    Source: Fagerland, Lydersen and Laake 2013, "The McNemar test for binary matched-pairs data: mid-p and asymptotic
    are better than exact conditional", BMC Medical Research Methodology 13:91.

    >>> mcnemar_mid_p(1, 7)
    0.0390625
    """
    n = lost + gained
    own: float = math.comb(n, lost) / 2**n
    return 1 - own / 2 if lost == gained else 2 * sign_tail(max(lost, gained), min(lost, gained)) - own


def sign_tail(lost: int, gained: int) -> float:
    """One-sided p-value of the exact McNemar test: probability of at least ``lost`` heads in ``lost + gained`` tosses.

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
    """One-sided p-value of Fisher's exact test that the share of hits has not fallen between two independent samples.

    It is the probability of ``hits`` or fewer in the newer sample, given both margins (Fisher 1935, hypergeometric).

    >>> round(fisher_tail(1, 10, 11, 14), 7)
    0.0013797
    """
    all_hits = hits + hits_before
    possible = range(max(0, all_hits - total_before), hits + 1)
    count = sum(math.comb(total, k) * math.comb(total_before, all_hits - k) for k in possible)
    p: float = count / math.comb(total + total_before, all_hits)
    return p


def blind_tail(hits: int, answers: I64, sizes: I64) -> float:
    """Probability of ``hits`` or more right answers where the answers have nothing to do with the images.

    Given how often each answer was given, the label of each image is drawn with the shares of the classes in the set,
    so the hits are a sum of independent binomials, one per answer. A network that always gives one answer is right on
    the share of that class.

    Args:
        answers: how often each class was answered, int64 (classes,).
        sizes: labelled images by class, int64 (classes,); as many in total as answers.

    >>> round(blind_tail(3, np.array([2, 2]), np.array([2, 2])), 4)
    0.3125
    """
    return float(min(1.0, binomials(answers, sizes / sizes.sum())[hits:].sum()))


def halfway_tail(hits: int, answers: I64, sizes: I64) -> float:
    """Probability of ``hits`` or fewer for a network half-way from :func:`blind_tail`'s to one that is always right.

    It answers each image rightly with a probability of (1 + s) / 2, where s is the share of its class in all answers.

    >>> halfway_tail(2, np.array([4, 0]), np.array([2, 2]))  # always the first class: the second is missed twice
    0.25
    """
    return float(min(1.0, binomials(sizes, (1 + answers / answers.sum()) / 2)[: hits + 1].sum()))


def binomials(counts: I64, shares: F64) -> F64:
    """The distribution of a sum of independent binomials with n = ``counts`` and p = ``shares``, float64 (sum + 1,).

    It is exact up to rounding (Poisson's binomial distribution): all are convolved, the shortest first, so that only
    the last steps are long.
    """
    parts = [_binomial(int(n), float(p)) for n, p in zip(counts, shares, strict=True) if n] or [np.ones(1)]
    while len(parts) > 1:
        parts.sort(key=len, reverse=True)
        parts.append(np.convolve(parts.pop(), parts.pop()))
    return parts[0]


def _binomial(n: int, p: float) -> F64:
    """The probabilities of 0 to n hits, float64 (n + 1,)."""
    if p in (0.0, 1.0):
        return np.eye(1, n + 1, round(n * p)).reshape(-1)
    k = np.arange(n + 1)
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    log_choices = log_factorials[n] - log_factorials - log_factorials[::-1]
    mass: F64 = np.exp(log_choices + k * math.log(p) + (n - k) * math.log1p(-p))
    return mass


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction of p-values for multiple tests; it bounds the probability of rejecting any true hypothesis.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def difference(now: Estimate, before: Estimate) -> Estimate:
    """``now - before`` of two independent samples, computed from their intervals.

    Source: square-and-add, Newcombe 1998, "Interval estimation for the difference between independent proportions",
    Statistics in Medicine 17; for any two intervals (MOVER) Zou and Donner 2008, Statistics in Medicine 27.
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
    """Number of images with which the interval of a drop excludes ``limit_pp``, in four of five samples.

    n = (z_0.975 sqrt(v0) + z_0.8 sqrt(v1))**2 / (limit - drop)**2, where v1 = p_lost + p_gained - drop**2 is the
    observed variance and v0 that of the score test at the limit (Connor 1987, Biometrics 43; with a margin Nam 1997,
    Biometrics 53). It is at least the number that is needed if the shares stay as observed.

    Returns:
        None where the drop is so close to the limit that no practical number of images would do.
    """
    drop, limit = (lost - gained) / total, limit_pp / 100
    at_limit = _restricted_variance(lost / total, gained / total, limit)
    observed = (lost + gained + 1) / (total + 2) - drop**2  # half an image more each, so that no count is taken as zero

    def decides(n: int) -> bool:
        return _excludes(paired_drop_pp(n * lost / total, n * gained / total, n), limit_pp)

    return _images_needed((at_limit, observed), drop - limit, decides)


def images_for_share(hits: int, total: int, limit_percent: float) -> int | None:
    """:func:`images_for_drop` for a share such as the agreement, with the variances of the binomial distribution."""
    p, limit = (hits + 0.5) / (total + 1), limit_percent / 100

    def decides(n: int) -> bool:
        return _excludes(proportion_percent(n * hits / total, n), limit_percent)

    return _images_needed((limit * (1 - limit), p * (1 - p)), hits / total - limit, decides)


def images_for_mean(found: Estimate, images: int, limit: float) -> int | None:
    """:func:`images_for_drop` for a mean over images, from its interval of 95 %, which is symmetric.

    n = ((z_0.975 + z_0.8) s / (limit - mean))**2, where s = half the interval * sqrt(images) / z_0.975.
    """
    variance = images * ((found.high - found.low) / (2 * Z95)) ** 2

    def decides(n: int) -> bool:
        return Z95 * math.sqrt(variance / n) < abs(found.value - limit)

    return _images_needed((variance, variance), found.value - limit, decides)


def _excludes(interval: Estimate, limit: float) -> bool:
    return not interval.low <= limit <= interval.high


def _images_needed(variances: tuple[float, float], distance: float, decides: Callable[[int], bool]) -> int | None:
    """The planned number of images, or the smallest that decides if that is larger.

    Args:
        variances: of one image, at the limit and as observed.
        decides: whether the interval of so many images excludes the limit.
    """
    at_limit, observed = (math.sqrt(max(variance, 0.0)) for variance in variances)
    root = (Z95 * at_limit + Z80 * observed) / abs(distance) if distance else math.inf
    if root**2 > MAX_IMAGES or not decides(MAX_IMAGES):
        return None
    planned = math.ceil(root**2)
    too_few, smallest = 1, MAX_IMAGES
    while smallest - too_few > 1:
        middle = (too_few + smallest) // 2
        too_few, smallest = (too_few, middle) if decides(middle) else (middle, smallest)
    return max(planned, smallest)


def proportion_percent(hits: float, total: int, z: float = Z95) -> Estimate:
    """The share of hits in per cent with Wilson's score interval.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22; method 3 of
    Newcombe 1998, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17.
    """
    p, zz = hits / total, z**2 / total
    centre = (p + zz / 2) / (1 + zz)
    half = z / (1 + zz) * math.sqrt((p * (1 - p) + zz / 4) / total)
    # At 0 and 100 % one limit equals the estimate; max and min remove the rounding error.
    return Estimate(100 * p, 100 * min(max(centre - half, 0.0), p), 100 * max(min(centre + half, 1.0), p))


class Sqnr:
    """Signal-to-quantization-noise ratio in dB, ``10 log10(sum s^2 / sum (s - t)^2)``, over any number of batches."""

    def __init__(self) -> None:
        self._signal: list[F64] = []
        self._noise: list[F64] = []

    def add(self, reference: npt.NDArray[np.floating], candidate: npt.NDArray[np.floating]) -> None:
        """Add one batch, with images along the first axis; two float64 sums per image are kept."""
        s = reference.astype(np.float64)
        self._signal.append(np.square(s).reshape(len(s), -1).sum(axis=1))
        self._noise.append(np.square(s - candidate).reshape(len(s), -1).sum(axis=1))

    @property
    def decibels(self) -> float:
        """The SQNR; inf where both are equal, -inf where the reference is all zero and the candidate is not."""
        signal, noise = (float(np.concatenate(rows).sum()) for rows in (self._signal, self._noise))
        if noise == 0:
            return math.inf
        return 10 * math.log10(signal / noise) if signal else -math.inf

    @property
    def signal(self) -> F64:
        """Power of each image's reference, float64 (N,)."""
        return np.concatenate(self._signal)

    @property
    def noise(self) -> F64:
        """Power of each image's difference, float64 (N,)."""
        return np.concatenate(self._noise)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval in dB over the choice of images; None with fewer than two images or no finite ratio.

        It is computed by the delta method for the logarithm of a ratio of means (Cochran 1977, "Sampling techniques",
        chapter 6).
        """
        if len(self.signal) < 2 or not math.isfinite(self.decibels):
            return None
        half = _half_interval_db(_shares(self.signal) - _shares(self.noise))
        return self.decibels - half, self.decibels + half


def paired_sqnr_loss_db(before: tuple[F64, F64], now: tuple[F64, F64], loss_db: float | None = None) -> Estimate | None:
    """By how much the SQNR fell between two candidates on the same images, in dB, by the delta method over images.

    An image that has the same signal and noise in both adds nothing to the width of the interval, so it is a point for
    a candidate that did not change.

    Args:
        before, now: power of the signal and of the noise of each image, each float64 (N,).
        loss_db: the loss, where it is known more precisely than from these powers.

    Returns:
        None with fewer than two images, or where only one of the two has noise.
    """
    if all(not noise.any() for _, noise in (before, now)):
        return Estimate(0.0, 0.0, 0.0)
    if len(now[0]) < 2 or not all(power.any() for side in (before, now) for power in side):
        return None
    if loss_db is None:
        was, is_ = (10 * math.log10(signal.sum() / noise.sum()) for signal, noise in (before, now))
        loss_db = was - is_
    signals, noises = (_shares(before[i]) - _shares(now[i]) for i in (0, 1))
    half = _half_interval_db(signals - noises)
    return Estimate(loss_db, loss_db - half, loss_db + half)


def _shares(power: F64) -> F64:
    """What each image adds to the logarithm of the mean power, but for a constant."""
    shares: F64 = power / power.mean()
    return shares


def _half_interval_db(terms: F64) -> float:
    """Half of the 95 % interval of a sum of logarithms of means, from what each image adds to it."""
    return float(Z95 * 10 / math.log(10) * np.std(terms, ddof=1) / math.sqrt(len(terms)))


def block_bootstrap(
    figure: Callable[..., float], *samples: F64, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of a figure of latencies (percentiles of the resampled figures).

    Consecutive latencies are correlated, so whole blocks are drawn. Block ``i`` of all samples was measured at the same
    time, so all take the same draw, and what slowed the machine down for all of them cancels in a ratio.

    Args:
        figure: computes the figure of one-dimensional samples.
        samples: each float64 (blocks, n), with any n.

    Source: Kuensch 1989, "The jackknife and the bootstrap for general stationary observations", Annals of
    Statistics 17.
    """
    blocks = len(samples[0])
    drawn = np.random.default_rng(seed).integers(0, blocks, (resamples, blocks))
    figures = [figure(*(sample[rows].reshape(-1) for sample in samples)) for rows in drawn]
    low, high = np.quantile(figures, [0.025, 0.975])
    return float(low), float(high)


def ratio_of_medians(numerator: F64, denominator: F64, *, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Ratio of the medians of float64 (blocks, n) and (blocks, m), with the interval of :func:`block_bootstrap`."""

    def figure(above: F64, below: F64) -> float:
        return float(np.median(above) / np.median(below))

    limits = block_bootstrap(figure, numerator, denominator, resamples=resamples, seed=seed)
    return Estimate(figure(numerator, denominator), *limits)


def resamplings(images: int, *, resamples: int = 1000, seed: int = 0) -> Iterator[F64]:
    """How often each image is drawn in each resampling with replacement, float64 (some, images), part by part."""
    draws = np.random.RandomState(seed)
    step = max(1, (1 << 22) // images)  # at a time, so that they take some 32 MB
    for start in range(0, resamples, step):
        chosen = draws.randint(0, images, (min(step, resamples - start), images))
        yield np.array([np.bincount(row, minlength=images) for row in chosen], np.float64)


def ratios_of_means(above: F64, below: F64, *, resamples: int = 1000, seed: int = 0) -> list[Estimate | None]:
    """Ratio of the means of two figures of the same images, by column, with a paired bootstrap interval of 95 %.

    Images are drawn with replacement, the same ones for both (Efron 1979); the limits are percentiles of the ratios.

    Args:
        above, below: float64 (N, K), not negative.

    Returns:
        None for a column whose mean below is zero, in the images or in a draw.
    """
    images, columns = below.shape
    sums = [(counts @ above, counts @ below) for counts in resamplings(images, resamples=resamples, seed=seed)]
    tops, bottoms = (np.concatenate(parts) for parts in zip(*sums, strict=True))
    found: list[Estimate | None] = []
    for column in range(columns):
        if not (below[:, column].any() and bottoms[:, column].all()):
            found.append(None)
            continue
        low, high = np.quantile(tops[:, column] / bottoms[:, column], [0.025, 0.975])
        found.append(Estimate(float(above[:, column].sum() / below[:, column].sum()), float(low), float(high)))
    return found
