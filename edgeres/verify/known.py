"""The FP32 reference's scores that travel with a bundle, so that a device need not compute them again."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from edgeres.data.npz import read_arrays
from edgeres.errors import BundleError, reading
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
    with reading(path, error=BundleError, hint="build it again"):
        found = read_arrays(path)
        scores, images, runner = found["scores"], str(found["images"]), str(found["runner"])
    if scores.ndim != 2 or scores.dtype != np.float32 or not np.isfinite(scores).all():
        raise BundleError("holds no scores", where=path, hint="build it again")
    return KnownAnswers(images, scores, runner)
