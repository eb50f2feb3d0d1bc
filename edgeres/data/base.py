"""The contract of image sources, and selections from them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgeres.errors import SourceError, UsageError
from edgeres.records import I64, U8, PixelReading

Role = Literal["calibration", "validation"]
FORMS = "a directory, .zip or .tar with one folder per class, an .npz, a CIFAR-10 directory, or signs[:count][@seed]"


class Source(ABC):
    """Random access to images and labels. Opening it is cheap; images are decoded on demand, from any thread.

    Attributes:
        classes: class names in label order; () where the source has no labels or does not name them. Labels without
            names are indices of a network's outputs.
        labels: int64 (N,); -1 where unlabelled.
        description: one line for messages, e.g. ``cifar10_test1000.npz: 1,000 images, 10 classes``.
        notes: what the user has to know of how it was read: what was left out, what was taken for what.
    """

    classes: tuple[str, ...]
    labels: I64
    description: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """The name of an image in messages: ``cat/001.jpg``, ``images[17]``."""

    @abstractmethod
    def image(self, index: int) -> U8:
        """The decoded image, (H, W, 3) uint8 RGB; of arrays also what :func:`edgeres.data.preprocess.geometry` takes.

        Raises:
            SourceError: it cannot be decoded; ``where`` is the image's name and ``what`` the cause.
        """

    def image_as(self, index: int, reading: PixelReading) -> U8:
        """The image with the channels, orientation and depth that a network takes, where a file leaves the choice."""
        return self.image(index)

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 in hex that identifies images, class indices and their order; class names do not change it."""

    def digest_with_names(self) -> str:
        """The digest that documents of earlier versions hold, which depends on class names; to compare with these."""
        return self.digest()

    def origins(self) -> list[tuple[str | int, ...]]:
        """Where each image comes from, whatever its label and place: equal for the same image of two sources."""
        digest = self.digest()
        return [(digest, index) for index in range(len(self))]

    def at(self, positions: I64, description: str = "") -> Source:
        """The images at these positions, in this order; described as the source where ``description`` is empty."""
        return View(self, positions, self.labels[positions], self.classes, description or self.description)


class View(Source):
    """Images of another source, in another order and with other labels.

    Attributes:
        classes_before: the class names that documents of earlier versions were written with.
    """

    def __init__(self, source: Source, indices: I64, labels: I64, classes: tuple[str, ...], description: str) -> None:
        self.classes = classes
        self.labels = labels
        self.description = description
        self.notes = source.notes
        self.classes_before = classes
        self._source = source
        self._indices = indices

    def name(self, index: int) -> str:
        return self._source.name(int(self._indices[index]))

    def image(self, index: int) -> U8:
        return self._source.image(int(self._indices[index]))

    def image_as(self, index: int, reading: PixelReading) -> U8:
        return self._source.image_as(int(self._indices[index]), reading)

    def origins(self) -> list[tuple[str | int, ...]]:
        origins = self._source.origins()
        return [origins[index] for index in self._indices.tolist()]

    def digest(self) -> str:
        parts = (self._source.digest(), self._indices.tolist(), self.labels.tolist())
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def digest_with_names(self) -> str:
        parts = (self._source.digest_with_names(), self._indices.tolist(), self.labels.tolist(), self.classes_before)
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def subset(source: Source, count: int, seed: int) -> Source:
    """``count`` images chosen at random, as evenly over the classes as they allow.

    The order cycles through the classes, so that every prefix is balanced too, and a larger subset of the same seed
    begins with the smaller one. A source of ``count`` images or fewer is returned unchanged.

    Raises:
        UsageError: ``count`` is less than one.
    """
    if count < 1:
        raise UsageError(f"a subset needs at least one image, asked for {count}")
    if count >= len(source):
        return source
    # RandomState never changes (NumPy's NEP 19), so a seed gives the same images in every version of NumPy.
    order = np.random.RandomState(seed % 2**32).permutation(len(source))
    rank = _rank_in_class(source.labels[order])
    chosen = order[np.argsort(rank, kind="stable")][:count].astype(np.int64)
    return source.at(chosen, f"{count:,} of {source.description}")


def evenly_spread(total: int, count: int) -> I64:
    """At most ``count`` of the positions 0 to ``total`` - 1, evenly spread, first and last included.

    >>> evenly_spread(10, 4).tolist()
    [0, 3, 6, 9]
    """
    return np.unique(np.linspace(0, total - 1, count).astype(np.int64))


def some(names: Iterable[str], total: int, limit: int = 5) -> str:
    """The first names and the number of others: ``a, b, c and 12 more``."""
    shown = ", ".join(islice(names, limit))
    return f"{shown} and {total - limit:,} more" if total > limit else shown


def check_labels_below(limit: int, labels: npt.NDArray[np.integer], name: Callable[[int], str], where: object) -> None:
    """Raise a SourceError that counts and names the images whose label is not in [0, limit)."""
    wrong = np.flatnonzero((labels < 0) | (labels >= limit))
    if wrong.size:
        named = some((f"{name(int(i))} has {labels[i]}" for i in wrong), wrong.size)
        what = f"{wrong.size:,} of {labels.size:,} labels are out of range 0 to {limit - 1:,}: {named}"
        raise SourceError(what, where=where, hint="labels count from 0 in the order of the model's outputs")


def _rank_in_class(labels: I64) -> I64:
    """The number of earlier elements with the same label: [2, 7, 2, 2, 7] -> [0, 0, 1, 2, 1]."""
    by_label = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[by_label], return_index=True, return_counts=True)
    rank = np.empty(len(labels), np.int64)
    rank[by_label] = np.arange(len(labels)) - np.repeat(starts, counts)
    return rank
