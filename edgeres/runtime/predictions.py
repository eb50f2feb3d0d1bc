"""Results of ``edgeres predict``: find images in files and folders, with their labels, and classify them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from edgeres.data.arrays import Arrays
from edgeres.data.files import read_image
from edgeres.data.forms import SUFFIXES, is_hidden
from edgeres.data.matching import match_labels
from edgeres.data.thumbnails import thumbnail
from edgeres.errors import SourceError
from edgeres.records import U8, ImageFile, ImagePrediction, UnreadableImage
from edgeres.runtime.classifier import Classifier

_AT_ONCE = 16  # full-size images in memory at a time


def find_images(paths: Sequence[Path], labels: tuple[str, ...]) -> list[ImageFile]:
    """The named files, and all images below the named directories, in the order of their paths.

    Where every folder below a directory matches a label of the network of its own, folders give the images' labels;
    see :func:`edgeres.data.matching.match_labels`.

    Raises:
        SourceError: a directory holds no image, or cannot be read.
    """
    files: list[ImageFile] = []
    for path in paths:
        files += _below(path, labels) if path.is_dir() else [ImageFile(path, named=True)]
    return files


def _below(root: Path, labels: tuple[str, ...]) -> list[ImageFile]:
    images = sorted(_walk(root))
    if not images:
        hint = f"image files end in {', '.join(SUFFIXES)}"
        raise SourceError("holds no images, nor do the folders in it", where=root, hint=hint)
    found = _labels(root, images, labels)
    return [ImageFile(path, named=False, label=label) for path, label in zip(images, found, strict=True)]


def _walk(root: Path) -> Iterator[Path]:
    """Images below a folder, without hidden files; links to folders are not followed, as they may form a circle."""

    def refuse(error: OSError) -> None:
        raise SourceError(error.strerror or str(error), where=error.filename, hint="check its permissions")

    for folder, folders, files in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not is_hidden(name)]
        yield from (Path(folder, name) for name in files if name.lower().endswith(SUFFIXES) and not is_hidden(name))


def _labels(root: Path, images: Sequence[Path], labels: tuple[str, ...]) -> list[str | None]:
    """The label of each image by its folder's name; None for all where folders do not match the labels."""
    names = [path.parent.name for path in images]
    classes = tuple(sorted(set(names)))
    indices = np.array([classes.index(name) for name in names], np.int64)
    no_pixels = np.empty((len(names), 0, 0, 3), np.uint8)
    try:
        matched = match_labels(Arrays(no_pixels, indices, classes, str(root)), labels)
    except SourceError:
        return [None] * len(images)
    return [labels[index] for index in matched.labels.tolist()]


def classify_all(
    classify: Classifier, images: Sequence[ImageFile], *, pictures: bool = False, advance: Callable[[int], None]
) -> Iterator[ImagePrediction | UnreadableImage]:
    """Classify images in their order, some files at a time.

    Args:
        pictures: whether to make a small picture of each.

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
            for file, image in zip(some, read, strict=True):
                yield UnreadableImage(file, image) if isinstance(image, str) else ImagePrediction(file, *next(answers))
            advance(len(some))


def _read(found: ImageFile) -> U8 | str:
    """The image, or the reason why it cannot be read."""
    try:
        return read_image(found.path)
    except SourceError as error:
        if found.named:
            raise
        return error.what
