"""Tests every class for a loss of accuracy, with p-values corrected for the number of classes.

Each class has an exact one-sided test, and Holm's correction of the p-values keeps the probability of any false alarm
below alpha, with 16 classes as with 1,000.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeres.records import I64
from edgeres.verify.statistics import fisher_tail, holm, sign_tail

# Probability of a false alarm in any class of a graph, one-sided: on the same images that of a 95 % interval. On other
# images it is lower, because each run is a new sample: with a run per day, one false alarm in about three years.
ALPHA_PAIRED, ALPHA_UNPAIRED = 0.025, 0.001
LISTED = 10

Row = tuple[int, int, int, int]  # hits before, images before, hits after, images after


@dataclass(frozen=True)
class ClassFall:
    """One class that lost accuracy.

    Attributes:
        label: index of the class.
        before, after: number of images answered right, of ``total_before`` and ``total`` images.
        p: one-sided p-value of this class alone.
        p_holm: p-value corrected for all classes.
    """

    label: int
    before: int
    total_before: int
    after: int
    total: int
    p: float
    p_holm: float

    @property
    def drop_pp(self) -> float:
        """Accuracy lost in percentage points."""
        return 100 * (self.before / self.total_before - self.after / self.total)

    def to_dict(self, names: tuple[str, ...]) -> dict[str, Any]:
        return asdict(self) | {"name": names[self.label], "drop_pp": self.drop_pp}


@dataclass(frozen=True)
class ClassFalls:
    """The classes that lost accuracy, lowest p-value first.

    Attributes:
        alpha: the loss of a class is significant where its ``p_holm`` is below.
        judged: number of classes with images.
        largest: number of images in the largest class.
        least_found: number of images in the smallest class whose loss would be significant with all lost, none gained.
    """

    falls: tuple[ClassFall, ...]
    alpha: float
    judged: int
    largest: int
    least_found: int

    def to_dict(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Plain JSON types; lists classes with ``p_holm`` below twice alpha, then the largest losses of the others."""
        likely = [fall for fall in self.falls if fall.p_holm < 2 * self.alpha]
        others = sorted(self.falls[len(likely) :], key=lambda fall: -fall.drop_pp)
        listed = likely + others[: max(0, LISTED - len(likely))]
        own = {name: getattr(self, name) for name in ("alpha", "judged", "largest", "least_found")}
        return own | {"falling": [fall.to_dict(names) for fall in listed]}


def paired_falls(labels: I64, before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_], classes: int) -> ClassFalls:
    """Test two graphs on the same images, each class by the exact one-sided McNemar test.

    Args:
        labels: int64 (N,), -1 where unlabelled.
        before, after: whether each answer is right, bool (N,).
    """
    known = labels >= 0
    sizes, hits_before, hits, lost = (
        np.bincount(labels[known & chosen], minlength=classes).tolist()
        for chosen in (known, before, after, before & ~after)
    )
    present = [c for c in range(classes) if sizes[c]]
    rows: list[Row] = [(hits_before[c], sizes[c], hits[c], sizes[c]) for c in present]
    p_values = [sign_tail(lost[c], hits[c] - hits_before[c] + lost[c]) for c in present]
    least_found = math.floor(math.log2(max(1, len(present)) / ALPHA_PAIRED)) + 1
    return _falls(present, rows, p_values, ALPHA_PAIRED, least_found)


def unpaired_falls(hits_before: I64, sizes_before: I64, hits: I64, sizes: I64) -> ClassFalls:
    """Test two samples of different images, each class by Fisher's exact one-sided test; all int64 (classes,)."""
    present = np.flatnonzero((sizes_before > 0) & (sizes > 0)).tolist()
    columns = (column[present].tolist() for column in (hits_before, sizes_before, hits, sizes))
    rows: list[Row] = list(zip(*columns, strict=True))
    p_values = [fisher_tail(after, total, before, total_before) for before, total_before, after, total in rows]
    least_found = next(n for n in range(1, 64) if max(1, len(present)) < ALPHA_UNPAIRED * math.comb(2 * n, n))
    return _falls(present, rows, p_values, ALPHA_UNPAIRED, least_found)


def _falls(present: list[int], rows: list[Row], p_values: list[float], alpha: float, least_found: int) -> ClassFalls:
    corrected = zip(present, rows, p_values, holm(p_values), strict=True)
    changes = [ClassFall(label, *row, p, p_holm) for label, row, p, p_holm in corrected]
    falls = tuple(sorted((fall for fall in changes if fall.drop_pp > 0), key=lambda fall: (fall.p, -fall.drop_pp)))
    return ClassFalls(falls, alpha, len(present), max((row[3] for row in rows), default=0), least_found)
