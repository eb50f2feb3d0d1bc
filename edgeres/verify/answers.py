"""The table of answers: the class that each candidate gives to each image.

A live run, an accepted baseline and a report that was read back all have one. Every figure that compares answers image
by image is computed from it.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeres.errors import InputError
from edgeres.records import F64, I64
from edgeres.verify.classes import ClassFalls, paired_falls
from edgeres.verify.statistics import Z95, Estimate, paired_drop_pp, proportion_percent

REFERENCE = "fp32"
_LABELS = "labels"
_TYPE = np.dtype("<i4")
_STEPS, _NO_POWER = 256, -(1 << 15)  # codes of powers: steps per octave, and the code of zero
_MAX_BYTES = 1 << 30  # decompressed, so that a damaged document cannot fill the memory

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Confusion:
    """How many images of class ``label`` the reference and the candidate put into class ``answer``."""

    label: int
    answer: int
    reference: int
    candidate: int


@dataclass(frozen=True)
class AnswerTable:
    """Labels, and one column of answers per candidate.

    Attributes:
        labels: int64 (N,), -1 where an image has no label.
        num_classes: outputs of the network.
        answers: int64 (N,) by candidate; :data:`REFERENCE` is the key of the FP32 reference.
    """

    labels: I64
    num_classes: int
    answers: Mapping[str, I64]

    @staticmethod
    def unpack(packed: Mapping[str, str], num_classes: int) -> AnswerTable:
        """Read the strings that :meth:`pack` wrote.

        Raises:
            InputError: a column is damaged or has another length than the labels, or there is no reference.
        """
        columns = {name: unpack(text) for name, text in packed.items()}
        labels = columns.pop(_LABELS, None)
        if labels is None or REFERENCE not in columns:
            raise InputError(f"answers need the columns {_LABELS} and {REFERENCE}")
        for name, column in columns.items():
            if len(column) != len(labels):
                raise InputError(f"there are {len(column):,} answers of {name} for {len(labels):,} labels")
        return AnswerTable(labels, num_classes, columns)

    def pack(self) -> dict[str, str]:
        """Every column as a string for a JSON document."""
        return {_LABELS: pack(self.labels), **{name: pack(column) for name, column in self.answers.items()}}

    @property
    def candidates(self) -> tuple[str, ...]:
        """Names of all columns but the reference's."""
        return tuple(name for name in self.answers if name != REFERENCE)

    @property
    def images(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> int:
        """How many images have a label."""
        return int((self.labels >= 0).sum())

    @property
    def class_sizes(self) -> I64:
        """Labelled images by class, int64 (num_classes,); labels outside the classes are not counted."""
        return self._by_class(self.labels >= 0)

    def right(self, name: str) -> Mask:
        """Whether each image is answered right, bool (N,); False where it has no label."""
        right: Mask = (self.answers[name] == self.labels) & (self.labels >= 0)
        return right

    def hits(self, name: str) -> I64:
        """Right answers by class, int64 (num_classes,)."""
        return self._by_class(self.right(name))

    def lost(self, candidate: str) -> Mask:
        """The images that the reference gets right and the candidate wrong, bool (N,)."""
        return self.right(REFERENCE) & ~self.right(candidate)

    def gained(self, candidate: str) -> Mask:
        """The images that the reference gets wrong and the candidate right, bool (N,)."""
        return self.right(candidate) & ~self.right(REFERENCE)

    def same(self, candidate: str) -> int:
        """How many images, labelled or not, the candidate and the reference put into the same class."""
        return int((self.answers[candidate] == self.answers[REFERENCE]).sum())

    def drop_pp(self, candidate: str, z: float = Z95) -> Estimate | None:
        """Top-1 lost against the reference in percentage points; None where there are no labels.

        Args:
            z: half-width of the interval in standard errors.
        """
        lost, gained = int(self.lost(candidate).sum()), int(self.gained(candidate).sum())
        return paired_drop_pp(lost, gained, self.labelled, z) if self.labelled else None

    def agreement(self, candidate: str) -> Estimate:
        """Per cent of all images that the candidate and the reference put into the same class."""
        return proportion_percent(self.same(candidate), self.images)

    def falls(self, candidate: str) -> ClassFalls | None:
        """Classes on which the candidate is worse than the reference; None where there are no labels."""
        if not self.labelled:
            return None
        return paired_falls(self.labels, self.right(REFERENCE), self.right(candidate), self.num_classes)

    def confusions(self, candidate: str) -> list[Confusion]:
        """The wrong answers that the candidate gives more or less often than the reference, largest change first."""
        known = self.labels >= 0
        pairs = (self.labels[known] * self.num_classes + self.answers[name][known] for name in (REFERENCE, candidate))
        before, after = (dict(zip(*map(list, np.unique(p, return_counts=True)), strict=True)) for p in pairs)
        changed = [pair for pair in before.keys() | after.keys() if before.get(pair, 0) != after.get(pair, 0)]
        counts = [
            Confusion(*divmod(int(pair), self.num_classes), int(before.get(pair, 0)), int(after.get(pair, 0)))
            for pair in changed
        ]
        wrong = [c for c in counts if c.label != c.answer]
        return sorted(wrong, key=lambda c: (-abs(c.candidate - c.reference), c.label, c.answer))

    def _by_class(self, chosen: Mask) -> I64:
        inside = chosen & (self.labels < self.num_classes)
        return np.bincount(self.labels[inside], minlength=self.num_classes)


def pack(values: I64) -> str:
    """One integer per image as base64 of the zlib-compressed little-endian int32 values; 60 kB for 50,000 images.

    >>> unpack(pack(np.array([3, -1, 70000]))).tolist()
    [3, -1, 70000]
    """
    return base64.b64encode(zlib.compress(values.astype(_TYPE).tobytes(), 9)).decode("ascii")


def pack_power(power: F64) -> str:
    """Power of each image, float64 (N,), as :func:`pack` of round(256 log2 power), so to 0.14 %; 3 bytes per image.

    >>> unpack_power(pack_power(np.array([0.0, 1.0, 4.0]))).tolist()
    [0.0, 1.0, 4.0]
    """
    codes = np.full(len(power), _NO_POWER, np.int64)
    some = power > 0
    codes[some] = np.clip(np.rint(_STEPS * np.log2(power[some])), _NO_POWER + 1, -_NO_POWER)
    return pack(codes)


def unpack_power(text: str) -> F64:
    """The power that :func:`pack_power` packed, float64 (N,).

    Raises:
        InputError: the text was not written by it, or is damaged.
    """
    codes = unpack(text)
    if (np.abs(codes) > -_NO_POWER).any():
        raise InputError("powers of images are out of range")
    return np.where(codes == _NO_POWER, 0.0, np.exp2(codes / _STEPS))


def unpack(text: str) -> I64:
    """The values that :func:`pack` packed, int64 (N,).

    Raises:
        InputError: the text was not written by :func:`pack`, or is damaged.
    """
    try:
        stream = zlib.decompressobj()
        data = stream.decompress(base64.b64decode(text, validate=True), _MAX_BYTES)
        if not stream.eof or stream.unused_data:
            raise ValueError("too long, or cut off")
        return np.frombuffer(data, _TYPE).astype(np.int64)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise InputError(f"answers cannot be unpacked ({error})") from error
