"""Images with numbers to compare a network's values with: from a table, an .npz, or the names of files."""

from __future__ import annotations

import hashlib
import math
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeres.data.base import Source, View, some
from edgeres.data.image_labels import IMAGE_COLUMNS, finder, split_table
from edgeres.data.labels import plain
from edgeres.data.npz import check_sizes, read_array
from edgeres.data.text import read_lines
from edgeres.errors import SourceError, reading
from edgeres.records import F64, I64

_HOW = "write image,y1,.. in each line: the image, and one number per output"
# As JetRacer's and JetBot's notebooks name images, in pixels of the image.
_JETRACER = re.compile(r"xy_(\d{1,5})_(\d{1,5})_[^/]+")
_GENERIC = re.compile(r"value \d+")


class Valued(View):
    """Images of another source with numbers.

    Attributes:
        values: float64 (N, K), finite; K is 0 where there are none.
        classes: names of the K numbers.
    """

    def __init__(
        self, source: Source, positions: I64, values: F64, names: tuple[str, ...], description: str = ""
    ) -> None:
        unlabelled = np.full(len(positions), -1, np.int64)
        super().__init__(source, positions, unlabelled, names, description or source.description)
        self.values = values

    def at(self, positions: I64, description: str = "") -> Valued:
        chosen = Valued(self, positions, self.values[positions], self.classes, description or self.description)
        chosen.notes = self.notes
        return chosen

    def digest(self) -> str:
        own = hashlib.sha256(super().digest().encode())
        own.update(np.ascontiguousarray(self.values).tobytes())
        return own.hexdigest()

    def digest_with_names(self) -> str:
        return self.digest()


def generic_names(count: int) -> tuple[str, ...]:
    """Names of values that came without: ``value 0``."""
    return tuple(f"value {index}" for index in range(count))


@dataclass(frozen=True)
class _ValueColumns:
    """A table's cells.

    Attributes:
        image: column of the images.
        values: columns of the numbers, in the order of the network's outputs.
        names: of the numbers; () where no line names the columns.
        start: first row that is no header.
    """

    image: int
    values: tuple[int, ...]
    names: tuple[str, ...]
    start: int


def with_values(source: Source, path: Path, outputs: tuple[str, ...]) -> Valued:
    """The images that a table has numbers for.

    Lines are split at tabs, semicolons, commas or spaces; the first line may name the columns. Images are found by
    their path, by their file name, or by that without its ending. Columns go to outputs by name where all outputs are
    among the columns, else by order.

    Args:
        outputs: one name per output of the network.

    Raises:
        InputError: the table cannot be read.
        SourceError: it has another form, a cell is no number, or it names none of the images.
    """
    table, numbers = split_table(read_lines(path, "values of images", _HOW), path)
    names = [source.name(index) for index in range(len(source))]
    columns = _columns(table, names, outputs, path)
    find = finder([row[columns.image] for row in table[columns.start :]], names)
    given: dict[int, tuple[float, ...]] = {}
    strangers = []
    for number, row in zip(numbers[columns.start :], table[columns.start :], strict=True):
        found = tuple(_number(row[column], number, path) for column in columns.values)
        index = find(row[columns.image])
        if index is None:
            strangers.append(row[columns.image])
        elif given.setdefault(index, found) != found:
            raise SourceError(f"{names[index]} has other values in line {number}", where=path, hint="keep one of them")
    if not given:
        what = f"names none of the images: it has {_some(strangers)}, and the images are {_some(names)}"
        raise SourceError(what, where=path, hint="give the folder that these names begin in")
    notes = (
        [f"{path.name}: {len(strangers):,} of its lines name no image here: {_some(strangers)}"] if strangers else []
    )
    if missing := [name for index, name in enumerate(names) if index not in given]:
        notes.append(f"left out: {len(missing):,} of {len(names):,} images are not in {path.name}: {_some(missing)}")
    positions = np.array(sorted(given), np.int64)
    values = np.array([given[index] for index in positions.tolist()], np.float64)
    described = f"{_plainly(source)}, {len(positions):,} with values of {path.name}"
    valued = Valued(source, positions, values, columns.names, described)
    valued.notes = (*source.notes, *notes)
    return valued


def from_npz(source: Source, path: Path, outputs: tuple[str, ...]) -> Valued | None:
    """The images of an .npz with its array ``values``, (N, K) or (N,) of numbers, and ``names`` (K,); None without.

    Raises:
        SourceError: the arrays have another form.
    """
    how = "write it with np.savez(path, images=..., values=...): numbers (N, K)"
    with reading(path, "cannot be read as .npz", error=SourceError, hint=how), zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        wanted = {key: members[key] for key in ("values", "names") if key in members}
        if "values" not in wanted:
            return None
        check_sizes(wanted.values())
        arrays = {key: read_array(archive, info) for key, info in wanted.items()}
    found = arrays["values"]
    found = found[:, None] if found.ndim == 1 else found
    if found.dtype.kind not in "iuf" or found.shape != (len(source), len(outputs)):
        what = f"has values of {found.dtype} {arrays['values'].shape} for {len(source):,} images and {len(outputs)}"
        raise SourceError(f"{what} output{'s' * (len(outputs) > 1)}", where=path, hint=how)
    values = found.astype(np.float64)
    if len(wrong := np.flatnonzero(~np.isfinite(values).all(axis=1))):
        raise SourceError(f"the value of images[{wrong[0]}] is not finite", where=path, hint="take it out")
    names = tuple(map(str, arrays.get("names", np.empty(0)).reshape(-1)))
    if names and len(names) != len(outputs):
        raise SourceError(f"has {len(names)} names for {len(outputs)} outputs", where=path, hint=how)
    return Valued(source, np.arange(len(source)), values, names or outputs, f"{_plainly(source)} with values")


def has_jetracer_names(names: Sequence[str]) -> bool:
    """Whether all images are named as JetRacer's notebook names them, ``xy_<x>_<y>_<id>.jpg``."""
    return bool(names) and all(_JETRACER.fullmatch(name.rpartition("/")[2]) for name in names)


def from_jetracer_names(source: Source, outputs: tuple[str, ...]) -> Valued:
    """The images with x and y of their names, from -1 to 1 over each image's width and height.

    This is what JetRacer's and JetBot's notebooks train on: ``(x - width / 2) / (width / 2)``, likewise y.

    Args:
        outputs: one name per output of the network; of one output, it is x.

    Raises:
        SourceError: an image cannot be read, or its point lies outside of it.
    """
    rows = []
    for index in range(len(source)):
        name = source.name(index)
        match = _JETRACER.fullmatch(name.rpartition("/")[2])
        assert match is not None
        height, width = source.image(index).shape[:2]
        x, y = int(match[1]), int(match[2])
        if x > width or y > height:
            what = f"the name says {x}, {y}, and the image has {width}x{height} pixels"
            raise SourceError(what, where=name, hint="give the images at the size at which they were labelled")
        rows.append((2 * x / width - 1, 2 * y / height - 1))
    positions = np.arange(len(source))
    names = ("x", "y") if all(map(_GENERIC.fullmatch, outputs)) else outputs
    described = f"{_plainly(source)}, x and y of their names"
    valued = Valued(source, positions, np.array(rows)[:, : len(outputs)], names[: len(outputs)], described)
    note = "x and y of the names are taken as JetRacer trains on them: from -1 to 1 over the image's width and height"
    valued.notes = (*source.notes, note)
    return valued


def numeric_columns(path: Path) -> list[list[str]]:
    """The columns of a table that hold numbers, but for the image's, as they are written; empty where it is no table.

    Raises:
        InputError: it cannot be read. SourceError: it is no table.
    """
    table, _ = split_table(read_lines(path, "labels", _HOW), path)
    rows = table[1:] if not any(_is_number(cell) for cell in table[0]) else table
    columns = [[row[column] for row in rows] for column in range(len(table[0]))]
    return [column for column in columns if column and all(map(_is_number, column))]


def _columns(table: list[list[str]], names: Sequence[str], outputs: tuple[str, ...], path: Path) -> _ValueColumns:
    """Which columns hold the image and the numbers."""
    head = [plain(cell) for cell in table[0]]
    is_head = not any(_is_number(cell) for cell in table[0]) and len(table) > 1
    rows = table[int(is_head) :]
    counts = [_hits([row[column] for row in rows[:1000]], names) for column in range(len(head))]
    named = [head[column] in IMAGE_COLUMNS and is_head for column in range(len(head))]
    image = max(range(len(head)), key=lambda column: (counts[column], named[column], -column))
    others = tuple(column for column in range(len(head)) if column != image)
    by_name = {name: column for column, name in enumerate(head) if is_head and column != image}
    wanted = [plain(name) for name in outputs]
    if set(wanted) <= by_name.keys():
        return _ValueColumns(image, tuple(by_name[name] for name in wanted), outputs, int(is_head))
    numeric = tuple(column for column in others if all(_is_number(row[column]) for row in rows))
    chosen = numeric if len(numeric) == len(outputs) else others
    if len(chosen) != len(outputs):
        shown = ", ".join(table[0][column] for column in others) if is_head else f"{len(others)}"
        what = f"has the columns {shown} beside the image, and the network has {len(outputs)} output"
        raise SourceError(f"{what}{'s' * (len(outputs) > 1)} ({some(outputs, len(outputs))})", where=path, hint=_HOW)
    if is_head and not all(map(_GENERIC.fullmatch, outputs)):
        shown = ", ".join(table[0][column] for column in chosen)
        what = f"has the columns {shown}, and the outputs are {', '.join(outputs)}"
        raise SourceError(what, where=path, hint="name the columns as the outputs, or build with --labels FILE")
    found = tuple(table[0][column] for column in chosen) if is_head else outputs
    return _ValueColumns(image, chosen, found, int(is_head))


def _hits(cells: Sequence[str], names: Sequence[str]) -> int:
    find = finder(cells, names)
    return sum(find(cell) is not None for cell in cells)


def _is_number(cell: str) -> bool:
    try:
        return bool(math.isfinite(float(cell)))
    except ValueError:
        return False


def _number(cell: str, line: int, path: Path) -> float:
    if not _is_number(cell):
        raise SourceError(f"line {line} has {cell!r}, which is no number", where=path, hint=_HOW)
    return float(cell)


def _plainly(source: Source) -> str:
    """The source's description without a word on labels."""
    return re.sub(r", (no labels|[\d,]+ classes)", "", source.description, count=1)


def _some(names: Sequence[str]) -> str:
    return some(names, len(names), 3)
