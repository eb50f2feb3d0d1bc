"""Open the source of images that ``--calibration`` or ``--validation`` names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from edgeres.data.arrays import is_cifar10, open_cifar10, open_npz
from edgeres.data.base import FORMS, Role, Source
from edgeres.data.files import open_archive, open_folder
from edgeres.data.forms import form_of, is_image
from edgeres.data.tree import arrange, flat
from edgeres.errors import SourceError, reading
from edgeres.files import LFS_POINTER, PULL, is_lfs_pointer_at, refuse_special

_SIGNS = re.compile(r"signs(?::(?P<count>\d+))?(?:@(?P<seed>\d+))?")
_SIGNS_COUNT = {"calibration": 512, "validation": 1000}


def open_source(text: str | Path, *, role: Role, px: int, known: Sequence[str] = (), labelled: bool = False) -> Source:
    """Open images for calibration or validation.

    ``signs[:count][@seed]``
        the generated demo set (512 images for calibration and 1,000 for validation, seed 0); write ``./signs`` for a
        directory of that name.
    directory, or ``.zip`` or ``.tar`` of one
        ``class/image`` as torchvision's ``ImageFolder``, classes in sorted order; folders inside a class belong to it.
        One folder around all class folders is skipped. Of ``train/`` and ``val/`` (or ``test/``) the one for ``role``
        is used. Images directly in the directory have no labels and can only calibrate; where there are images both in
        folders and beside them, the larger group is used. Links are followed, but not in a circle.
    ``.npz``
        ``images`` uint8 (N, H, W, 3) RGB, ``labels`` (N,), optional ``classes``; held in memory.
    CIFAR-10 directory
        ``cifar-10-batches-py`` (read without running code in its pickles) or ``cifar-10-batches-bin``: the training
        batches for calibration, the test batch for validation.

    ``Source.notes`` and ``Source.description`` count and name what is left out: hidden files, files that are not
    images, images outside class folders.

    Args:
        text: path or name, ``~`` expanded.
        role: what the images are for; validation needs labels.
        px: side of the images that ``signs`` renders; other sources keep their sizes.
        known: class names of the network, which tell class folders from others.
        labelled: labels come from a table: all images of a directory or an archive are taken, whatever folder they lie
            in, and none needs a label.

    Raises:
        SourceError: it does not exist, has none of these forms, or its content is inconsistent.
    """
    path = locate(text)
    if path is None:
        return _open_signs(str(text), role, px)
    suffix = path.suffix.lower()
    if path.is_dir() and is_cifar10(path):
        return open_cifar10(path, role)
    if path.is_dir() or suffix in (".zip", ".tar"):
        arranged = flat if labelled else partial(arrange, role=role, known=known)
        return (open_folder if path.is_dir() else open_archive)(path, arranged)
    if not path.is_file():
        with reading(path, error=SourceError, hint=f"expected {FORMS}"):
            refuse_special(path)
        raise SourceError("is neither a file nor a directory", where=path, hint=f"expected {FORMS}")
    if suffix == ".npz":
        return open_npz(path, "calibration" if labelled else role)
    raise SourceError("is no source of images", where=path, hint=_instead(path))


def _instead(path: Path) -> str:
    """What to give in place of a file that is no source."""
    if is_lfs_pointer_at(path):
        return f"it is {LFS_POINTER}: {PULL}"
    if is_image(path.name):
        return "give the directory it lies in"
    if path.suffix.lower() in (".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"):
        return "unpack it and give the directory"
    form = form_of(path.name)
    return f"expected {FORMS}" if form is None else form.advice


def _open_signs(text: str, role: Role, px: int) -> Source:
    from edgeres.data.signs import Signs

    match = _SIGNS.fullmatch(text)
    count = int(match["count"] or _SIGNS_COUNT[role]) if match else 0
    if not match or not count:
        raise SourceError("is not a generated set", where=text, hint="write signs[:count][@seed], e.g. signs:2000@7")
    return Signs(role, count, px, int(match["seed"] or 0))


def locate(text: str | Path) -> Path | None:
    """The path of a source; None for the generated set.

    Raises:
        SourceError: it does not exist; the message has the most similar name.
    """
    if isinstance(text, str) and re.match(r"signs($|[:@])", text):
        return None
    try:
        path = Path(text).expanduser()
        if path.exists():
            return path
        missing = next(p for p in (path, *path.parents) if p.parent.is_dir())
        near = difflib.get_close_matches(missing.name, [p.name for p in missing.parent.iterdir()], n=1)
    except (OSError, RuntimeError) as error:  # a parent folder without permission, or a user without a home
        hint = "check the path and its permissions"
        raise SourceError(f"cannot be looked up: {error}", where=text, hint=hint) from None
    hint = f"did you mean {missing.parent / near[0]}?" if near else f"expected {FORMS}"
    raise SourceError("does not exist", where=path, hint=hint)
