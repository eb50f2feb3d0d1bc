"""Results of ``edgeres predict``: find images in files and folders, with their labels, and classify them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeres.data.arrays import Arrays
from edgeres.data.files import read_image
from edgeres.data.listing import Listing, list_folder
from edgeres.data.matching import match_labels
from edgeres.data.thumbnails import thumbnail
from edgeres.data.tree import arrange
from edgeres.errors import SourceError
from edgeres.records import U8, ImageFile, ImagePrediction, UnreadableImage
from edgeres.runtime.classifier import Predictor

_AT_ONCE = 16  # images of one batch


@dataclass(frozen=True)
class FoundImages:
    """Images to classify; ``notes`` say what was left out of the directories."""

    files: tuple[ImageFile, ...]
    notes: tuple[str, ...] = ()


def find_images(paths: Sequence[Path], labels: tuple[str, ...]) -> FoundImages:
    """The named files, and all images below the named directories, in the order of their paths.

    Directories are read as those of calibration and validation images are. Where every folder below a directory matches
    a label of the network of its own, folders give the images' labels; see
    :func:`edgeres.data.matching.match_labels`.

    Raises:
        SourceError: a directory holds no image, or cannot be read; a file is an archive.
    """
    files: list[ImageFile] = []
    notes: list[str] = []
    for path in paths:
        if not path.is_dir():
            if path.suffix.lower() in (".zip", ".tar", ".npz"):
                raise SourceError("is no image but many", where=path, hint="unpack it and give the directory")
            files.append(ImageFile(path, named=True))
            continue
        found = list_folder(path)
        files += _below(path, found, labels)
        left_out = ", ".join(filter(None, found.left_out()))
        notes += [f"{path}: left out: {left_out}"] if left_out else []
    return FoundImages(tuple(files), tuple(notes))


def _below(root: Path, found: Listing, labels: tuple[str, ...]) -> list[ImageFile]:
    found.refuse_empty()
    images = sorted(found.images)
    names = [image[-2] if len(image) > 1 else root.name for image in images]
    given = _labels(root, names, labels)
    if not any(given):  # folders inside of classes
        with suppress(SourceError):
            tree = arrange(found, "calibration", labels)
            of = dict(
                zip(tree.names, _labels(root, [tree.classes[i] for i in tree.labels if i >= 0], labels), strict=False)
            )
            given = [of.get("/".join(image)) for image in images]
    return [
        ImageFile(root.joinpath(*image), named=False, label=label) for image, label in zip(images, given, strict=True)
    ]


def _labels(root: Path, names: Sequence[str], labels: tuple[str, ...]) -> list[str | None]:
    """The label of each image by its folder's name; None for all where folders do not match the labels."""
    classes = tuple(sorted(set(names)))
    index = {name: position for position, name in enumerate(classes)}
    no_pixels = np.empty((len(names), 0, 0, 3), np.uint8)
    indices = np.array([index[name] for name in names], np.int64)
    try:
        matched = match_labels(Arrays(no_pixels, indices, classes, str(root)), labels)
    except SourceError:
        return [None] * len(names)
    return [labels[index] for index in matched.labels.tolist()]


def classify_all(
    classify: Predictor[Any], images: Sequence[ImageFile], *, pictures: bool = False, advance: Callable[[int], None]
) -> Iterator[ImagePrediction | UnreadableImage]:
    """Answer images in their order, some files at a time.

    Args:
        pictures: whether to make a small picture of each.

    Raises:
        SourceError: an image that the user named cannot be read.
    """
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for start in range(0, len(images), _AT_ONCE):
            some = images[start : start + _AT_ONCE]
            read = list(pool.map(lambda file: _read(classify, file, pictures=pictures), some))
            pixels = [one.pixels for one in read if isinstance(one, _Prepared)]
            predictions = iter(classify.batch_of_prepared(pixels))
            for file, one in zip(some, read, strict=True):
                if isinstance(one, _Prepared):
                    yield ImagePrediction(file, next(predictions), one.picture)
                else:
                    yield UnreadableImage(file, one)
            advance(len(some))


class _Prepared(NamedTuple):
    """What is kept of an image: the pixels that the network takes, and a small picture."""

    pixels: U8
    picture: bytes


def _read(classify: Predictor[Any], found: ImageFile, *, pictures: bool) -> _Prepared | str:
    """The image, or the reason why it cannot be read. No more than one image a thread is in memory at full size."""
    try:
        pixels = read_image(found.path, None, classify.preprocess.reading)
    except SourceError as error:
        if found.named:
            raise
        return error.what
    return _Prepared(classify.prepare(pixels), thumbnail(pixels) if pictures else b"")
