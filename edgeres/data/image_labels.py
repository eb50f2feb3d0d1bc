"""Labels of images from a table: CSV or text with an image and its label in each line, or one label per line."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeres.data.base import Source, View, some
from edgeres.data.forms import is_image
from edgeres.data.labels import imagenet_classes, is_generic, plain
from edgeres.data.text import read_lines
from edgeres.errors import SourceError

_HOW = "write image,label in each line, or one label per line in the order of the images' names"
# Names of columns, without case, spaces and underscores; those in front are preferred.
_LABEL_COLUMNS = ("label", "labels", "class", "classname", "classid", "category", "target", "predictionstring", "y")
IMAGE_COLUMNS = ("image", "filename", "file", "path", "filepath", "imagepath", "imageid", "imagename", "img", "name")
_WNID = re.compile(r"(n\d{8})\b.*")
_NO_LABEL = ("", "-1", "-1.0", "nan", "NaN")


@dataclass(frozen=True)
class _Row:
    line: int
    image: str
    label: str


def label_images(source: Source, path: Path, spec_labels: tuple[str, ...]) -> Source:
    """The images that a table has labels for, with these labels; ``classes`` are the labels as they are written there.

    Lines are split at tabs, semicolons, commas or spaces; the first line may name the columns. Images are found by
    their path, by their file name, or by that without its ending. A table of one column has a label for every image, in
    the order of the images' names.

    Args:
        source: images without labels, in the order of their names.
        spec_labels: one name per output of the network.

    Raises:
        InputError: the table cannot be read.
        SourceError: it has another form, contradicts itself, or names none of the images.
    """
    lines = read_lines(path, "image labels", _HOW)
    names = [source.name(index) for index in range(len(source))]
    table, numbers = split_table(lines, path)
    notes: list[str] = []
    words = not set("\t;,") & set(lines[0]) and len(table) == len(names)  # class names of several words
    if len(table[0]) == 1 or (words and not _has_image(table, names)):
        texts = [line for line in lines if line]
        given = _in_order([_Row(n, "", text) for n, text in zip(numbers, texts, strict=True)], names, path)
        notes.append(f"{path.name}: labels are given in the order of names: {names[0]} is {given[0].label}")
    else:
        rows, strangers = _rows(table, numbers, names, path)
        given = rows
        if strangers:
            notes.append(f"{path.name}: {len(strangers):,} of its lines name no image here: {_some(strangers)}")
    _refuse_ilsvrc([row.label for row in given.values()], path, spec_labels)
    if missing := [name for index, name in enumerate(names) if index not in given]:
        without = f"{len(missing):,} of {len(names):,} images without a label in {path.name}"
        notes.append(f"left out: {without}: {_some(missing)}")
    positions = np.array(sorted(given), np.int64)
    classes = tuple(sorted({row.label for row in given.values()}))
    index_of = {name: index for index, name in enumerate(classes)}
    labels = np.array([index_of[given[index].label] for index in positions.tolist()], np.int64)
    given_to = f"{len(positions):,} labelled by {path.name}, {len(classes):,} classes"
    description = source.description.replace(", no labels", f", {given_to}", 1)
    description = description if given_to in description else f"{description}; {given_to}"
    view = View(source, positions, labels, classes, description)
    view.notes = (*source.notes, *notes)
    return view


def _some(names: Sequence[str]) -> str:
    return some(names, len(names), 3)


def split_table(lines: Sequence[str], path: Path) -> tuple[list[list[str]], list[int]]:
    """The cells of each line that is not empty, and the numbers of these lines.

    Raises:
        SourceError: it has no columns, or not as many in each line.
    """
    kept = [(number, line) for number, line in enumerate(lines, 1) if line]
    texts = [line for _, line in kept]
    mark = next((mark for mark in "\t;," if all(mark in line for line in texts)), None)
    try:
        if mark is not None:
            table = [[cell.strip() for cell in row] for row in csv.reader(texts, delimiter=mark, skipinitialspace=True)]
        else:
            table = [line.rsplit(None, 1) for line in texts]
    except csv.Error as error:
        raise SourceError(f"is no table ({error})", where=path, hint=_HOW) from None
    if len(table) != len(texts):
        raise SourceError("has cells of several lines", where=path, hint=_HOW)
    if mark is None and any(len(row) < 2 for row in table):
        table = [[line] for line in texts]
    width = Counter(map(len, table)).most_common(1)[0][0]
    for (number, _), row in zip(kept, table, strict=True):
        if len(row) != width:
            raise SourceError(f"line {number} has {len(row)} columns, others have {width}", where=path, hint=_HOW)
    return table, [number for number, _ in kept]


def _rows(
    table: list[list[str]], numbers: Sequence[int], names: Sequence[str], path: Path
) -> tuple[dict[int, _Row], list[str]]:
    """The row of each image by its index, and the images in the table that the source has not."""
    image, label, start = _columns(table, names, path)
    find = finder([row[image] for row in table[start:]], names)
    given: dict[int, _Row] = {}
    strangers = []
    for number, row in zip(numbers[start:], table[start:], strict=True):
        index, text = find(row[image]), _label(row[label])
        if index is None:
            strangers.append(row[image])
        elif text is not None:
            found = _Row(number, row[image], text)
            other = given.setdefault(index, found)
            if other.label != text:
                what = f"{names[index]} is {other.label} in line {other.line} and {text} in line {number}"
                raise SourceError(what, where=path, hint="keep one of them")
    if not given:
        what = f"names none of the images: it has {_some(strangers)}, and the images are {_some(names)}"
        raise SourceError(what, where=path, hint="give the folder that these names begin in")
    return given, strangers


def _columns(table: list[list[str]], names: Sequence[str], path: Path) -> tuple[int, int, int]:
    """The columns of images and labels, and the first row that is no header."""
    head = [plain(cell) for cell in table[0]]
    is_head = any(cell in (*_LABEL_COLUMNS, *IMAGE_COLUMNS) for cell in head) and not _has_image(table[:1], names)
    rows = table[1:] if is_head else table
    hits = [_hits([row[column] for row in rows[:1000]], names) for column in range(len(head))]
    label = next((head.index(name) for name in _LABEL_COLUMNS if name in head), None) if is_head else None
    named = [head.index(name) for name in IMAGE_COLUMNS if name in head] if is_head else []
    others = [column for column in range(len(head)) if column != label]
    image = max(others, key=lambda column: (hits[column], column in named, -column))
    if label is None and len(head) == 2:
        label = 1 - image
    if label is None:
        what = f"has {len(head)} columns, {', '.join(table[0])}, and none is called label"
        raise SourceError(what, where=path, hint="name the columns in the first line: image,label")
    return image, label, int(is_head)


def _has_image(table: list[list[str]], names: Sequence[str]) -> bool:
    return any(_hits([row[column] for row in table[:1000]], names) for column in range(len(table[0])))


def _hits(cells: Sequence[str], names: Sequence[str]) -> int:
    find = finder(cells, names)
    return sum(find(cell) is not None for cell in cells)


def finder(cells: Sequence[str], names: Sequence[str]) -> Callable[[str], int | None]:
    """What finds an image by a cell: by its path, file name or stem, whichever finds the most of these cells."""
    best: tuple[int, Callable[[str], int | None]] = (-1, lambda cell: None)
    counts = Counter(cells)
    for key in (_path, _file_name, _stem):
        keys = [key(name) for name in names]
        uses = Counter(keys)
        index = {text: position for position, text in enumerate(keys) if uses[text] == 1}

        def find(cell: str, key: Callable[[str], str] = key, index: dict[str, int] = index) -> int | None:
            return index.get(key(cell))

        found = sum(count for cell, count in counts.items() if find(cell) is not None)
        if found > best[0]:
            best = (found, find)
        if found == len(cells):
            break
    return best[1]


def _path(name: str) -> str:
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def _file_name(name: str) -> str:
    return _path(name).rpartition("/")[2]


def _stem(name: str) -> str:
    file = _file_name(name).casefold()
    return file.rpartition(".")[0] if is_image(file) else file


def _label(cell: str) -> str | None:
    """A label as a class name or a number; None where there is none."""
    if cell in _NO_LABEL:
        return None
    wnid = _WNID.fullmatch(cell)  # of ImageNet's LOC_val_solution.csv: n03995372 85 1 499 272
    return wnid[1] if wnid and " " in cell else re.sub(r"^(\d+)\.0$", r"\1", cell)


def _in_order(rows: Sequence[_Row], names: Sequence[str], path: Path) -> dict[int, _Row]:
    """The row of each image where the table has labels only."""
    if len(rows) == len(names) + 1 and plain(rows[0].label) in _LABEL_COLUMNS:
        rows = rows[1:]
    if len(rows) != len(names):
        what = f"has {len(rows):,} lines of one label for {len(names):,} images"
        raise SourceError(what, where=path, hint=_HOW)
    by_number = sorted(names, key=lambda name: [int(part) if part.isdecimal() else part for part in _pieces(name)])
    if by_number != list(names):
        here = next(i for i, (one, other) in enumerate(zip(names, by_number, strict=True)) if one != other)
        what = f"has labels only, and the order of images is not clear: {names[here]} or {by_number[here]} comes first"
        raise SourceError(what, where=path, hint="write image,label in each line")
    labels = [_label(row.label) for row in rows]
    return {
        index: _Row(row.line, "", label)
        for index, (row, label) in enumerate(zip(rows, labels, strict=True))
        if label is not None
    }


def _pieces(name: str) -> list[str]:
    """Text and numbers in turns: ``a10.png`` -> ["a", "10", ".png"]."""
    return re.split(r"(\d+)", name)


def _refuse_ilsvrc(labels: Sequence[str], path: Path, spec_labels: tuple[str, ...]) -> None:
    """Refuse the ids of ILSVRC's development kit, which have another order than the outputs of usual networks."""
    words = tuple(word for _, word in imagenet_classes())
    if len(spec_labels) != len(words) or not (spec_labels == words or is_generic(spec_labels)):
        return
    if not all(label.isdecimal() for label in labels):
        return
    numbers = {int(label) for label in labels}
    if min(numbers) >= 1 and (max(numbers) == len(words) or "ilsvrc" in path.name.lower()):
        what = "holds ILSVRC ids, 1 to 1,000 in the order of the development kit's meta.mat, not in that of the outputs"
        raise SourceError(what, where=path, hint="give WordNet ids: image,n01440764 in each line, or folders named so")
