"""Classes that fell, looked for in all classes at once without crying over the unluckiest of many.

Each class is tested by itself, exactly, and the p-values are Holm's: the chance that any class whose accuracy did not
fall is named stays below alpha, with 16 classes as with 1,000.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeres.records import I64
from edgeres.verify.statistics import fisher_tail, holm, sign_tail

# One-sided, over all classes of a graph together. On the same images it is what a 95 % interval allows on one side; on
# other images every run draws anew, and a run a day should not cry once a quarter.
ALPHA_PAIRED, ALPHA_OTHERS = 0.025, 0.001
LISTED = 10

Row = tuple[int, int, int, int]  # right before, images before, right after, images after


@dataclass(frozen=True)
class ClassFall:
    """One class before and after.

    Attributes:
        label: index of the class.
        before, after: images that were answered right, of ``total_before`` and ``total``.
        p: one-sided, of this class alone.
        p_holm: adjusted for all classes.
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
    """The classes that fell, most telling first.

    Attributes:
        alpha: a class is named where its ``p_holm`` lies below.
        judged: classes with images.
        largest: images in the largest of them.
        least_found: with so many images, all lost and none gained, a class would just be named.
    """

    falls: tuple[ClassFall, ...]
    alpha: float
    judged: int
    largest: int
    least_found: int

    def to_dict(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Those that would be named at twice alpha, and the largest of the others."""
        telling = [fall for fall in self.falls if fall.p_holm < 2 * self.alpha]
        others = sorted(self.falls[len(telling) :], key=lambda fall: -fall.drop_pp)
        listed = telling + others[: max(0, LISTED - len(telling))]
        own = {name: getattr(self, name) for name in ("alpha", "judged", "largest", "least_found")}
        return own | {"falling": [fall.to_dict(names) for fall in listed]}


def paired_falls(labels: I64, before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_], classes: int) -> ClassFalls:
    """Both graphs on the same images; each class by the exact one-sided McNemar test.

    Args:
        labels: int64 (N,), -1 where unlabelled.
        before, after: bool (N,), whether the answer is right.
    """
    known = labels >= 0
    totals, was, now, lost = (
        np.bincount(labels[known & chosen], minlength=classes).tolist()
        for chosen in (known, before, after, before & ~after)
    )
    present = [c for c in range(classes) if totals[c]]
    tails = [sign_tail(lost[c], now[c] - was[c] + lost[c]) for c in present]
    rows: list[Row] = [(was[c], totals[c], now[c], totals[c]) for c in present]
    least = math.floor(math.log2(max(1, len(present)) / ALPHA_PAIRED)) + 1
    return _falls(present, rows, tails, ALPHA_PAIRED, least)


def unpaired_falls(hits_before: I64, sizes_before: I64, hits: I64, sizes: I64) -> ClassFalls:
    """Different images of the same classes, int64 (classes,) each; each class by Fisher's exact one-sided test."""
    present = np.flatnonzero((sizes_before > 0) & (sizes > 0)).tolist()
    columns = [column.tolist() for column in (hits_before, sizes_before, hits, sizes)]
    rows: list[Row] = [(columns[0][c], columns[1][c], columns[2][c], columns[3][c]) for c in present]
    tails = [fisher_tail(now, total, was, total_before) for was, total_before, now, total in rows]
    least = next(n for n in range(1, 64) if max(1, len(present)) < ALPHA_OTHERS * math.comb(2 * n, n))
    return _falls(present, rows, tails, ALPHA_OTHERS, least)


def _falls(present: list[int], rows: list[Row], tails: list[float], alpha: float, least: int) -> ClassFalls:
    adjusted = holm(tails)
    changes = [ClassFall(c, *row, p, p_holm) for c, row, p, p_holm in zip(present, rows, tails, adjusted, strict=True)]
    falls = tuple(sorted((fall for fall in changes if fall.drop_pp > 0), key=lambda fall: (fall.p, -fall.drop_pp)))
    return ClassFalls(falls, alpha, len(present), max((row[3] for row in rows), default=0), least)
