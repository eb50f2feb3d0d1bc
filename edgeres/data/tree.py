"""Find the images of each class in a directory or an archive, by the names of files and folders alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from edgeres.data.base import Role, some
from edgeres.data.forms import SUFFIXES, is_hidden, is_image
from edgeres.errors import SourceError

CLASSES_BELOW = "give the folder whose sub-folders are the classes"
_SPLITS = {"calibration": ("train", "training"), "validation": ("val", "valid", "validation", "test", "testing")}

Parts = tuple[str, ...]


@dataclass(frozen=True)
class Tree:
    """Images sorted by class and name.

    Attributes:
        names: paths below the source.
        labels: indices into ``classes``, -1 where there are none.
        part: the folder of the source that is used, for its description: ``/val (of train, val)``.
        left_out: number and names of files that are not used, for its description.
    """

    names: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    part: str
    left_out: str


@dataclass
class _Listing:
    """All paths below a source by kind; ``hidden`` holds the outermost hidden folder or file of each path."""

    folders: set[Parts] = field(default_factory=set)
    images: list[Parts] = field(default_factory=list)
    others: list[Parts] = field(default_factory=list)
    hidden: set[Parts] = field(default_factory=set)


def split(path: str) -> Parts:
    """The parts of a path with slashes: ``./cat//1.jpg`` -> ("cat", "1.jpg")."""
    return tuple(part for part in path.split("/") if part not in ("", "."))


def arrange(entries: Iterable[str], where: str, role: Role) -> Tree:
    """Sort paths into classes: ``[wrapper/][split/]class/image``, or images without class folders and labels.

    Args:
        entries: paths below the source; folders end with a slash.
        where: the source's name in messages.

    Raises:
        SourceError: there are no images, a class has none, a class holds folders, or labels for validation are missing.
    """
    found = _find(entries)
    prefix, splits = _descend(found, where, role)
    depth = len(prefix) + 1
    inside = sorted(image for image in found.images if image[: len(prefix)] == prefix)
    in_class = [image for image in inside if len(image) == depth + 1]
    loose = [image for image in inside if len(image) == depth]
    outside = sorted(image for image in found.images if len(image) < depth)
    folders = sorted(folder for folder in found.folders if len(folder) == depth and folder[:-1] == prefix)

    if deeper := [image for image in inside if len(image) > depth + 1]:
        what = f"{len(deeper):,} images lie in folders inside a class, e.g. {'/'.join(deeper[0])}"
        raise SourceError(what, where=where, hint=CLASSES_BELOW)
    left_out = [_count(found.hidden, "hidden"), _count(found.others, "not images")]
    if in_class:
        if empty := sorted(folder[-1] for folder in set(folders) - {image[:-1] for image in in_class}):
            what = f"class folders without images ({len(empty):,}): {some(empty, len(empty))}"
            raise SourceError(what, where=where, hint="fill or remove them")
        left_out += [_count(outside + loose, "outside class folders")]
    else:
        _refuse_unlabelled(loose, "; ".join(filter(None, left_out)), where, role)
        left_out += [_count(outside, "outside that folder"), _count(folders, "folders without images")]

    index_of = {folder: index for index, folder in enumerate(folders)}
    listed = ", ".join(filter(None, left_out))
    return Tree(
        names=tuple("/".join(image) for image in in_class or loose),
        labels=tuple(index_of[image[:-1]] if in_class else -1 for image in in_class or loose),
        classes=tuple(folder[-1] for folder in folders) if in_class else (),
        part="".join("/" + part for part in prefix) + (f" (of {', '.join(splits)})" if splits else ""),
        left_out=f"; left out: {listed}" if listed else "",
    )


def _find(entries: Iterable[str]) -> _Listing:
    found = _Listing()
    for entry in entries:
        parts = split(entry)
        concealed = next((depth for depth, part in enumerate(parts, 1) if is_hidden(part)), None)
        if concealed:
            found.hidden.add(parts[:concealed])
            continue
        is_folder = entry.endswith("/")
        found.folders.update(parts[:depth] for depth in range(1, len(parts) + is_folder))
        if not is_folder:
            (found.images if is_image(parts[-1]) else found.others).append(parts)
    return found


def _descend(found: _Listing, where: str, role: Role) -> tuple[Parts, list[str]]:
    """The folder that holds the class folders; and the names of all splits, where it is one of several."""
    prefix: Parts = ()
    tops = {folder[0] for folder in found.folders}
    if len(tops) == 1 and min((len(image) for image in found.images if len(image) > 1), default=0) > 2:
        prefix = tuple(tops)  # one folder around all others, as in many archives
    below = len(prefix)
    splits = sorted({image[below] for image in found.images if len(image) > below + 1})
    known = {name for names in _SPLITS.values() for name in names}
    if len(splits) < 2 or not {top.lower() for top in splits} <= known:
        return prefix, []
    wanted = [top for name in _SPLITS[role] for top in splits if top.lower() == name]
    if not wanted:
        listed = ", ".join(top + "/" for top in splits)
        raise SourceError(f"has {listed}, none for {role}", where=where, hint="give one of these folders itself")
    return (*prefix, wanted[0]), splits


def _refuse_unlabelled(loose: list[Parts], left_out: str, where: str, role: Role) -> None:
    if not loose:
        what = f"holds no images ({left_out or 'it is empty'})"
        raise SourceError(what, where=where, hint=f"image files end in {', '.join(SUFFIXES)}")
    if role == "validation":
        what = f"holds images ({len(loose):,}) but no class folders, and validation needs labels"
        hint = "sort them into one folder per class; calibration takes them as they are"
        raise SourceError(what, where=where, hint=hint)


def _count(paths: Iterable[Parts], what: str) -> str:
    """``3 hidden (.git, a/.DS_Store, b/.DS_Store)``; "" without paths."""
    names = sorted("/".join(path) for path in paths)
    return f"{len(names):,} {what} ({some(names, len(names), 3)})" if names else ""
