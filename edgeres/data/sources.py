"""Open the source of images that ``--calibration`` or ``--validation`` names."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from edgeres.data.arrays import is_cifar10, open_cifar10, open_npz
from edgeres.data.base import FORMS, Role, Source
from edgeres.data.files import open_folder, open_zip
from edgeres.data.forms import SUFFIXES
from edgeres.errors import SourceError

_SIGNS = re.compile(r"signs(?::(?P<count>\d+))?(?:@(?P<seed>\d+))?")
_SIGNS_COUNT = {"calibration": 512, "validation": 1000}


def open_source(text: str | Path, *, role: Role, px: int) -> Source:
    """Open images for calibration or validation.

    ``signs[:count][@seed]``
        the generated demo set (512 images for calibration and 1,000 for validation, seed 0); write ``./signs`` for a
        directory of that name.
    directory, or ``.zip`` of one
        ``class/image`` as torchvision's ``ImageFolder``, classes in sorted order. One folder around all class folders
        is skipped. Of ``train/`` and ``val/`` (or ``test/``) the one for ``role`` is used. Images directly in the
        directory have no labels and can only calibrate. Links are followed.
    ``.npz``
        ``images`` uint8 (N, H, W, 3) RGB, ``labels`` (N,), optional ``classes``; held in memory.
    CIFAR-10 directory
        ``cifar-10-batches-py`` (read without running code in its pickles) or ``cifar-10-batches-bin``: the training
        batches for calibration, the test batch for validation.

    ``Source.description`` counts and names what is left out: hidden files, files that are not images, images outside
    class folders.

    Args:
        text: path or name, ``~`` expanded.
        role: what the images are for; validation needs labels.
        px: side of the images that ``signs`` renders; other sources keep their sizes.

    Raises:
        SourceError: it does not exist, has none of these forms, or its content is inconsistent.
    """
    path = locate(text)
    if path is None:
        return _open_signs(str(text), role, px)
    if path.is_dir():
        return (open_cifar10 if is_cifar10(path) else open_folder)(path, role)
    suffix = path.suffix.lower()
    if suffix in (".zip", ".npz"):
        return (open_zip if suffix == ".zip" else open_npz)(path, role)
    hint = "unpack it and give the directory" if suffix in (".gz", ".tgz", ".tar") else f"expected {FORMS}"
    hint = "give the directory it lies in" if suffix in SUFFIXES else hint
    raise SourceError("is no source of images", where=path, hint=hint)


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
