"""Images in files and folders through a bundle: answers, what the folders say they should be, what cannot be read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeres.data.base import Source
from edgeres.data.files import read_image
from edgeres.data.matching import match_labels
from edgeres.data.thumbnails import thumbnail
from edgeres.data.tree import SUFFIXES, is_hidden
from edgeres.errors import SourceError
from edgeres.records import U8
from edgeres.runtime.classifier import Classifier, Prediction

_AT_ONCE = 16  # images that are decoded, in full size, at a time
SORTS = ("path", "sure", "unsure", "class")


@dataclass(frozen=True)
class Found:
    """An image file.

    Attributes:
        path: as it is shown.
        named: whether the user named it, and not only a folder above it.
        label: the class that its folder stands for; None where folders are no classes.
    """

    path: Path
    named: bool
    label: str | None = None


@dataclass(frozen=True)
class Answer:
    """What the network says about one image.

    Attributes:
        jpeg: a small picture; empty where nobody asked for one.
    """

    found: Found
    prediction: Prediction
    jpeg: bytes = b""

    @property
    def wrong(self) -> bool:
        return self.found.label not in (None, self.prediction.label)


@dataclass(frozen=True)
class Unreadable:
    """A file that is no image that can be decoded, and why."""

    found: Found
    why: str


def find_images(paths: Sequence[Path], labels: tuple[str, ...]) -> list[Found]:
    """Files as they are named, and every image below a directory, in the order of their paths.

    Where the folders that directly hold a directory's images match the network's labels, all of them and each another,
    they say what each image is; see :func:`edgeres.data.matching.match_labels`.

    Raises:
        SourceError: a directory holds no image, or cannot be read.
    """
    found: list[Found] = []
    for path in paths:
        found += _below(path, labels) if path.is_dir() else [Found(path, named=True)]
    return found


def _below(root: Path, labels: tuple[str, ...]) -> list[Found]:
    images = sorted(_walk(root))
    if not images:
        hint = f"image files end in {', '.join(SUFFIXES)}"
        raise SourceError("holds no images, nor do the folders in it", where=root, hint=hint)
    told = _told(root, images, labels)
    return [Found(path, named=False, label=label) for path, label in zip(images, told, strict=True)]


def _walk(root: Path) -> Iterator[Path]:
    """Images below a folder; hidden ones are left out, links to folders not followed, so that no circle is walked."""

    def refuse(error: OSError) -> None:
        raise SourceError(error.strerror or str(error), where=error.filename, hint="check its permissions")

    for folder, folders, files in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not is_hidden(name)]
        yield from (Path(folder, name) for name in files if name.lower().endswith(SUFFIXES) and not is_hidden(name))


class _Folders(Source):
    """Folders as the classes of a source, to match their names with a network's labels."""

    def __init__(self, root: Path, images: Sequence[Path]) -> None:
        names = [path.parent.name for path in images]
        self.classes = tuple(sorted(set(names)))
        self.labels = np.array([self.classes.index(name) for name in names], np.int64)
        self.description = str(root)

    def name(self, index: int) -> str:
        raise IndexError(index)

    def image(self, index: int) -> U8:
        raise IndexError(index)

    def digest(self) -> str:
        return ""


def _told(root: Path, images: Sequence[Path], labels: tuple[str, ...]) -> list[str | None]:
    try:
        matched = match_labels(_Folders(root, images), labels)
    except SourceError:
        return [None] * len(images)
    return [labels[index] for index in matched.labels.tolist()]


def classify_all(
    classify: Classifier, images: Sequence[Found], *, pictures: bool = False, advance: Callable[[int], None]
) -> Iterator[Answer | Unreadable]:
    """Answers in the order of ``images``, some files read at a time.

    Args:
        pictures: make a small picture of each.

    Raises:
        SourceError: an image that the user named cannot be read.
    """
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for start in range(0, len(images), _AT_ONCE):
            some = images[start : start + _AT_ONCE]
            read = list(pool.map(_read, some))
            pixels = [image for image in read if isinstance(image, np.ndarray)]
            small = pool.map(thumbnail, pixels) if pictures else iter([b""] * len(pixels))
            answers = zip(classify.batch(pixels), small, strict=True)
            for found, image in zip(some, read, strict=True):
                yield Unreadable(found, image) if isinstance(image, str) else Answer(found, *next(answers))
            advance(len(some))


def _read(found: Found) -> U8 | str:
    """The image, or why there is none."""
    try:
        return read_image(found.path)
    except SourceError as error:
        if found.named:
            raise
        return error.what


def in_order(answers: Sequence[Answer], by: str) -> list[Answer]:
    """Sorted by one of :data:`SORTS`; within a class the least sure comes first."""
    keys: dict[str, Callable[[Answer], tuple[object, ...]]] = {
        "sure": lambda a: (-a.prediction.score,),
        "unsure": lambda a: (a.prediction.score,),
        "class": lambda a: (a.prediction.index, a.prediction.score),
        "path": lambda a: (),
    }
    return sorted(answers, key=keys[by])
