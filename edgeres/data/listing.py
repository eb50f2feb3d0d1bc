"""What lies in a directory or an archive, by the names of files and folders."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edgeres.data.base import some
from edgeres.data.forms import SUFFIXES, form_of, is_hidden, is_image
from edgeres.errors import SourceError

_DEEPEST = 32  # folders
_VISITS = 8  # of one folder, through links
_CIRCLES = "links to folders that are read already"
_NOWHERE = "links to themselves"
_SPECIAL = "special files"
_ALIKE = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"BM": ".bmp", b"RIFF": ".webp"}

Parts = tuple[str, ...]


@dataclass
class Listing:
    """All paths below a source by kind, each as its parts.

    Attributes:
        where: the source's name in messages.
        hidden: the outermost hidden folder or file of each path.
        others: files that are not taken for images.
        passed_by: links and files that are not followed or opened, by the reason.
        peek: reads the first bytes of a file.
    """

    where: str
    folders: set[Parts] = field(default_factory=set)
    images: list[Parts] = field(default_factory=list)
    others: list[Parts] = field(default_factory=list)
    hidden: set[Parts] = field(default_factory=set)
    passed_by: dict[str, list[Parts]] = field(default_factory=dict)
    peek: Callable[[Parts], bytes] = field(default=lambda parts: b"")

    def add(self, parts: Parts) -> None:
        """Add a file and the folders that it lies in."""
        self.folders.update(parts[:depth] for depth in range(1, len(parts)))
        (self.images if is_image(parts[-1]) else self.others).append(parts)

    def left_out(self) -> Iterator[str]:
        """Counts, with examples, of everything that is no image."""
        yield count(self.hidden, "hidden")
        forms = {parts: form_of(parts[-1]) for parts in self.others}
        for form in dict.fromkeys(form for form in forms.values() if form is not None):
            yield count((parts for parts in self.others if forms[parts] is form), form.name)
        yield count((parts for parts in self.others if forms[parts] is None), "not images")
        for reason, paths in self.passed_by.items():
            yield count(paths, reason)

    def refuse_empty(self) -> None:
        """Raise a SourceError with the next step if there are no images."""
        if self.images:
            return
        listed = ", ".join(filter(None, self.left_out()))
        hint = f"image files end in {', '.join(SUFFIXES)}"
        forms = Counter(form for form in (form_of(parts[-1]) for parts in self.others) if form is not None)
        if forms:
            hint = forms.most_common(1)[0][0].advice
        elif self.others:
            head = self.peek(min(self.others))
            ending = next((ending for start, ending in _ALIKE.items() if head.startswith(start)), None)
            if ending is not None:
                hint = f"{'/'.join(min(self.others))} is an image by its content: let the names end in {ending}"
        raise SourceError(f"holds no images ({listed or 'it is empty'})", where=self.where, hint=hint)


def split(path: str) -> Parts:
    """The parts of a path with slashes: ``./cat//1.jpg`` -> ("cat", "1.jpg")."""
    return tuple(part for part in path.split("/") if part not in ("", "."))


def count(paths: Iterable[Parts], what: str) -> str:
    """``3 hidden (.git, a/.DS_Store, b/.DS_Store)``; "" without paths."""
    names = sorted("/".join(path) for path in paths)
    return f"{len(names):,} {what} ({some(names, len(names), 3)})" if names else ""


def list_names(entries: Iterable[str], where: str, peek: Callable[[Parts], bytes]) -> Listing:
    """The listing of an archive: paths with slashes, those of folders end with one."""
    found = Listing(where, peek=peek)
    for entry in entries:
        parts = split(entry)
        concealed = next((depth for depth, part in enumerate(parts, 1) if is_hidden(part)), None)
        if concealed:
            found.hidden.add(parts[:concealed])
        elif entry.endswith("/"):
            found.folders.update(parts[:depth] for depth in range(1, len(parts) + 1))
        elif parts:
            found.add(parts)
    return found


def list_folder(root: Path) -> Listing:
    """The listing of a directory. Links are followed, also to folders, but not in a circle.

    Raises:
        SourceError: a folder cannot be read.
    """

    def peek(parts: Parts) -> bytes:
        with root.joinpath(*parts).open("rb") as file:
            return file.read(64)

    found = Listing(str(root), peek=peek)
    visits: Counter[tuple[int, int]] = Counter()
    try:
        todo: list[tuple[Parts, tuple[tuple[int, int], ...]]] = [((), (_identity(root.stat()),))]
        while todo:
            here, above = todo.pop()
            with os.scandir(root.joinpath(*here)) as entries:
                todo += _sort_in(entries, found, (here, above), visits)
    except OSError as error:
        what = error.strerror or str(error)
        raise SourceError(what, where=error.filename or root, hint="check its permissions") from None
    return found


def _sort_in(
    entries: Iterable[os.DirEntry[str]],
    found: Listing,
    place: tuple[Parts, tuple[tuple[int, int], ...]],
    visits: Counter[tuple[int, int]],
) -> Iterator[tuple[Parts, tuple[tuple[int, int], ...]]]:
    """Add the entries of one folder to the listing; yields the folders to read next, with the folders above each."""
    here, above = place
    for entry in entries:
        parts = (*here, entry.name)
        if is_hidden(entry.name):
            found.hidden.add(parts)
        elif _leads_nowhere(entry):
            found.passed_by.setdefault(_NOWHERE, []).append(parts)
        elif entry.is_dir():
            own = _identity(entry.stat())
            visits[own] += 1
            if own in above or visits[own] > _VISITS or len(parts) > _DEEPEST:
                found.passed_by.setdefault(_CIRCLES, []).append(parts)
                continue
            found.folders.add(parts)
            yield parts, (*above, own)
        elif entry.is_file() or entry.is_symlink():  # a link to nothing is told when it is read
            found.add(parts)
        else:
            found.passed_by.setdefault(_SPECIAL, []).append(parts)


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a link to itself, by way of others or not."""
    try:
        entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return True
        raise
    return False


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
