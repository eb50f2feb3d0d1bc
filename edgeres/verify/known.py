"""The FP32 reference's scores that travel with a bundle, so that a device need not compute them again."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

from edgeres.errors import BundleError
from edgeres.files import write_file
from edgeres.verify.candidates import KnownAnswers


def write_known(path: Path, known: KnownAnswers) -> None:
    """Write scores as an .npz that holds no pickled object."""
    stream = io.BytesIO()
    np.savez_compressed(stream, scores=known.scores, images=np.array(known.images), runner=np.array(known.runner))
    write_file(path, stream.getvalue())


def read_known(path: Path) -> KnownAnswers | None:
    """The scores in a bundle; None where it has none.

    Raises:
        BundleError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as found:
            scores, images, runner = found["scores"], str(found["images"]), str(found["runner"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(f"cannot be read ({error})", where=path, hint="build it again") from error
    if scores.ndim != 2 or scores.dtype != np.float32 or not np.isfinite(scores).all():
        raise BundleError("holds no scores", where=path, hint="build it again")
    return KnownAnswers(images, scores, runner)
