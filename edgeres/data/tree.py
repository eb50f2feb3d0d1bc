"""Find the images of each class in a directory or an archive, by the names of files and folders alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeres.data.base import Role
from edgeres.data.labels import is_generic, plain
from edgeres.data.listing import Listing, Parts, count
from edgeres.errors import SourceError

_SPLITS = {"calibration": ("train", "training"), "validation": ("val", "valid", "validation", "test", "testing")}
_SPLIT_NAMES = {name for names in _SPLITS.values() for name in names}
_FEW = 10  # a folder is around others if it has ten times more images below its folders than in itself


@dataclass(frozen=True)
class Tree:
    """Images sorted by class and name.

    Attributes:
        names: paths below the source.
        labels: indices into ``classes``, -1 where there are none.
        classes: names of the class folders, sorted; those without images too.
        part: the folder of the source that is used, for its description: ``/val (of train, val)``.
        left_out: number and names of files that are not used, for its description.
        nested: number of images in folders inside a class, with an example; "" without.
    """

    names: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...] = ()
    part: str = ""
    left_out: str = ""
    nested: str = ""


def arrange(found: Listing, role: Role, known: Sequence[str] = ()) -> Tree:
    """Sort paths into classes: ``[wrapper/][split/]class/[folders/]image``, or images without class folders and labels.

    Where images lie both in folders and beside them, the larger group is used.

    Args:
        known: class names of the network, which tell class folders from others.

    Raises:
        SourceError: there are no images, labels for validation are missing, or there is no split for the role.
    """
    found.refuse_empty()
    names = frozenset() if is_generic(known) else frozenset(map(plain, known))
    prefix, splits = _descend(found, role, names)
    depth = len(prefix)
    inside = sorted(image for image in found.images if image[:depth] == prefix)
    in_class, inner = _of_inner_split([image for image in inside if len(image) > depth + 1], depth, found, role)
    loose = [image for image in inside if len(image) == depth + 1]
    known_folder = any(plain(image[depth]) in names for image in in_class)
    part = "".join("/" + name for name in prefix) + (f" (of {', '.join(splits)})" if splits else "") + inner
    rest = [*found.left_out(), count(_outside(found, prefix, splits), "outside that folder")]
    empty = {folder for folder in found.folders if folder[:depth] == prefix and len(folder) == depth + 1}
    empty -= {image[: depth + 1] for image in inside}
    if not in_class or (len(loose) > len(in_class) and not known_folder):
        if role == "validation":
            raise _unlabelled(found, loose, in_class)
        left_out = [*rest, count(in_class, "in sub-folders"), count(empty, "folders without images")]
        return Tree(_joined(loose), (-1,) * len(loose), (), part, _listed(left_out))
    # Of session/class/image, too, the folders are classes that the network knows.
    level = -2 if not known_folder and all(plain(image[-2]) in names for image in in_class) else depth
    classes = sorted({image[level] for image in in_class} | {folder[-1] for folder in empty})
    index_of = {name: index for index, name in enumerate(classes)}
    left_out = [*rest, count(loose, "outside class folders"), count(empty, "class folders without images")]
    deeper = [] if level == -2 else [image for image in in_class if len(image) > depth + 2]
    return Tree(
        names=_joined(in_class),
        labels=tuple(index_of[image[level]] for image in in_class),
        classes=tuple(classes),
        part=part,
        left_out=_listed(left_out),
        nested=count(deeper, "images in folders inside a class"),
    )


def flat(found: Listing) -> Tree:
    """All images of a source, in the order of their paths, without labels.

    Raises:
        SourceError: there are no images.
    """
    found.refuse_empty()
    images = sorted(found.images)
    return Tree(_joined(images), (-1,) * len(images), left_out=_listed(list(found.left_out())))


def _joined(images: Sequence[Parts]) -> tuple[str, ...]:
    return tuple("/".join(image) for image in images)


def _listed(parts: Sequence[str]) -> str:
    listed = ", ".join(filter(None, parts))
    return f"; left out: {listed}" if listed else ""


def _descend(found: Listing, role: Role, names: frozenset[str]) -> tuple[Parts, list[str]]:
    """The folder that holds the class folders; and the names of all splits, where it is one of several."""
    prefix = _unwrap(found, (), names)
    below = len(prefix)
    inside = [image for image in found.images if image[:below] == prefix and len(image) > below + 1]
    tops = {image[below] for image in inside}
    splits = sorted(top for top in tops if top.lower() in _SPLIT_NAMES)
    holding = {image[below] for image in inside if len(image) > below + 2}
    all_are_splits = len(tops) > 1 and len(splits) == len(tops)
    if not (all_are_splits or holding & set(splits)) or all(plain(top) in names for top in tops):
        return prefix, []
    return _unwrap(found, (*prefix, _wanted(splits, found, role)), names), splits


def _unwrap(found: Listing, prefix: Parts, names: frozenset[str]) -> Parts:
    """Go down through folders that hold nothing but one folder around all others, as in many archives."""
    while True:
        depth = len(prefix)
        inside = [image for image in found.images if image[:depth] == prefix]
        below = [image for image in inside if len(image) > depth + 1]
        tops = {image[depth] for image in below}
        direct = sum(len(image) == depth + 2 for image in below)
        loose = len(inside) - len(below)
        if len(tops) != 1 or loose > len(below) or direct * _FEW > len(below) - direct:
            return prefix
        (top,) = tops
        if plain(top) in names:
            return prefix
        prefix = (*prefix, top)


def _wanted(splits: Sequence[str], found: Listing, role: Role) -> str:
    """The split for a role."""
    wanted = [split for name in _SPLITS[role] for split in splits if split.lower() == name]
    if not wanted:
        listed = ", ".join(f"{split}/" for split in splits)
        raise SourceError(f"has {listed}, none for {role}", where=found.where, hint="give one of these folders itself")
    return wanted[0]


def _of_inner_split(in_class: list[Parts], depth: int, found: Listing, role: Role) -> tuple[list[Parts], str]:
    """Of ``class/train/image`` and ``class/val/image`` the images for the role, with words for the description."""
    inner = {image[depth + 1] for image in in_class if len(image) > depth + 2}
    if len(inner) < 2 or not {name.lower() for name in inner} <= _SPLIT_NAMES:
        return in_class, ""
    wanted = _wanted(sorted(inner), found, role)
    kept = [image for image in in_class if len(image) > depth + 2 and image[depth + 1] == wanted]
    return kept, f" ({wanted} of {', '.join(sorted(inner))} in each class)"


def _outside(found: Listing, prefix: Parts, splits: Sequence[str]) -> list[Parts]:
    """The images that lie neither below the prefix nor in another split."""
    if not prefix:
        return []
    depth = len(prefix)
    other = {(*prefix[:level], name) for level in range(depth) for name in splits}
    return [
        image
        for image in found.images
        if image[:depth] != prefix and not any(image[:level] in other for level in range(1, len(image)))
    ]


def _unlabelled(found: Listing, loose: Sequence[Parts], in_class: Sequence[Parts]) -> SourceError:
    """The error for validation images without labels."""
    if in_class:
        what = (
            f"holds {count(loose, 'images beside its folders')} and only {count(in_class, 'in folders')}, "
            "so the folders are no classes, and validation needs labels"
        )
    else:
        what = f"holds {count(loose, 'images')} but no class folders, and validation needs labels"
    tables = ["/".join(parts) for parts in sorted(found.others) if parts[-1].lower().endswith((".csv", ".tsv", ".txt"))]
    table = tables[0] if len(tables) == 1 else "FILE"
    hint = f"sort them into one folder per class, or give their labels with --validation-labels {table}"
    return SourceError(what, where=found.where, hint=hint)
