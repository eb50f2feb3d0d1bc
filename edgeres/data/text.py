"""Text files that people write: class names one a line. Any line ends, a byte order mark, UTF-8 or UTF-16."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeres.data.base import some
from edgeres.errors import InputError, reading
from edgeres.files import LFS_POINTER, PULL, is_lfs_pointer, read_file

_MOST_BYTES = 1 << 28
_NUMBERED = re.compile(r"(\d{1,7})\s*[\s,;:]\s*(\S.*)")


@dataclass(frozen=True)
class ClassNames:
    """One name per output; ``notes`` say what of the file was left out or taken for something else."""

    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_lines(path: str | Path, what: str, hint: str) -> list[str]:
    """The lines of a text file, stripped, without empty ones at the end.

    Args:
        what: what the file holds, for messages: ``labels``.
        hint: how the file has to be.

    Raises:
        InputError: it cannot be read, or is no text.
    """
    with reading(path, f"{what} cannot be read", hint=hint):
        content = read_file(path, _MOST_BYTES + 1)
    if is_lfs_pointer(content):
        raise InputError(f"is {LFS_POINTER}", where=path, hint=PULL)
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if len(content) > _MOST_BYTES or (b"\0" in content and not wide):
        raise InputError(f"{what} cannot be read (it is no text)", where=path, hint=hint)
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{what} cannot be read ({error})", where=path, hint=hint) from error
    lines = [line.strip() for line in re.split("\r\n|\r|\n", text)]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise InputError(f"{what} cannot be read (it is empty)", where=path, hint=hint)
    return lines


def read_class_names(path: str | Path) -> ClassNames:
    """Class names from a text file with one name per line, in the order of a network's outputs.

    Where every line begins with the number of its output, ``0 stop`` or ``1: yield``, numbers give the order and are no
    part of the names. They may count from one.

    Raises:
        InputError: the file cannot be read, or is no such text.
    """
    lines = read_lines(path, "labels", "UTF-8 text, one label per line")
    if lines[0].startswith(("{", "[")) and lines[-1].endswith(("}", "]")):
        raise InputError("labels cannot be read (it is JSON)", where=path, hint="write one name per line, as text")
    names = [line for line in lines if line]
    empty = [str(number) for number, line in enumerate(lines, 1) if not line]
    notes = [f"{Path(path).name}: {len(empty):,} empty lines are left out ({some(empty, len(empty))})"] if empty else []
    matches = [match for match in map(_NUMBERED.fullmatch, names) if match]
    numbers = [int(match[1]) for match in matches]
    first = min(numbers, default=0)
    if len(matches) == len(names) > 1 and first <= 1 and sorted(numbers) == list(range(first, first + len(names))):
        names = [match[2] for _, match in sorted(zip(numbers, matches, strict=True), key=lambda pair: pair[0])]
        notes.append(f"{Path(path).name}: lines are numbered from {first}; the numbers give the order of the outputs")
    return ClassNames(tuple(names), tuple(notes))


def repeated_names(names: Sequence[str]) -> list[str]:
    """A note where outputs have the same name."""
    seen: dict[str, list[int]] = {}
    for output, name in enumerate(names):
        seen.setdefault(name, []).append(output)
    twice = [f"{name!r} (outputs {', '.join(map(str, found))})" for name, found in seen.items() if len(found) > 1]
    if not twice:
        return []
    return [
        f"several outputs have the same label: {some(twice, len(twice))}; a class of that name matches none of them"
    ]
