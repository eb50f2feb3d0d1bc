"""The errors of edgeres: each tells the user what happened, where, and what to do next.

    EdgeresError                    exit code 3: the input or the environment prevents it
    ├── InputError                  a file, an image, a checkpoint, a graph is not what was expected
    │   ├── SourceError             calibration or validation data
    │   ├── WeightsError            a checkpoint or its download
    │   ├── ModelError              an ONNX graph or an architecture
    │   └── BundleError             a bundle is incomplete, changed, or made for something else
    └── EnvironmentError_           a package, a GPU, disk space is missing
        └── EngineError             the TensorRT builder or runtime refused
    UsageError                      exit code 2: options that contradict each other

``str(error)`` is one line with all three parts, and the command line prints exactly that line. Public functions raise
no other errors, except for bugs.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeres.words import escaped, public, shown_url, without_secrets

__all__ = [
    "BundleError",
    "EdgeresError",
    "EngineError",
    "EnvironmentError_",
    "InputError",
    "ModelError",
    "SourceError",
    "UsageError",
    "WeightsError",
]


class EdgeresError(Exception):
    """An error that says in one line what happened, where, and the next step.

    >>> str(EdgeresError("image cannot be decoded", where="cat/001.jpg", hint="remove or replace it"))
    'cat/001.jpg: image cannot be decoded; remove or replace it'
    """

    exit_code = 3

    def __init__(self, what: str, *, where: object = None, hint: str | None = None) -> None:
        self.what = escaped(" ".join(without_secrets(what).split()))
        self.where = None if where is None else escaped(shown_url(str(where)))
        self.hint = hint
        line = self.what if self.where is None else f"{self.where}: {self.what}"
        if hint:
            line = f"{line}; {escaped(without_secrets(hint))}"
        super().__init__(" ".join(line.split()))


class UsageError(EdgeresError):
    """Options that contradict each other or name something that does not exist."""

    exit_code = 2


class InputError(EdgeresError):
    """A file, an image, a checkpoint or a graph is not what was expected."""


class SourceError(InputError):
    """Calibration or validation data cannot be used as it is."""


class WeightsError(InputError):
    """A checkpoint cannot be found, fetched, trusted or matched to the architecture."""


class ModelError(InputError):
    """An ONNX graph or an architecture that edgeres does not support."""


class BundleError(InputError):
    """A bundle is incomplete, was changed after it was written, or is made for something else."""


class EnvironmentError_(EdgeresError):
    """A package, a GPU, memory or disk space is missing on this machine."""


class EngineError(EnvironmentError_):
    """TensorRT or TensorRT-RTX refused to build or run; the message explains why."""


def needs(extra: str, package: str) -> EnvironmentError_:
    """The error for a missing optional dependency, naming the extra that brings it."""
    return EnvironmentError_(
        f"this step needs {package}, which is not installed", hint=f"pip install 'edgeres[{extra}]'"
    )


def why_left_out(error: Exception) -> str:
    """One line on an error of whatever kind, for a part that is left out while the others are kept.

    Raises:
        MemoryError, OSError: the machine is the cause, which what follows would meet, too.
    """
    if isinstance(error, MemoryError | OSError):
        raise error
    why = str(error) if isinstance(error, EdgeresError) else f"{type(error).__name__}: {error}"
    return escaped(" ".join(public(why).split()))


# Causes of a failed read that lie in the machine: another file would fail, too.
_MACHINE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EROFS: "set TMPDIR to a directory that can be written",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs",
    errno.EIO: "check the disk",
}
# What C++ says where it has no memory left; its exceptions share no class.
_NO_ROOM = re.compile("bad_alloc|bad allocation|[Ff]ailed to allocate memory|[Oo]ut of memory|Cannot allocate memory")
NO_MEMORY = "there is not enough memory for it"
_FULL_BELOW_BYTES = 1 << 16


@contextmanager
def temporary_space(folder: str | Path | None) -> Iterator[None]:
    """Name a full disk where a library wrote to ``folder`` and failed: it says "serialization failed", and no more.

    Raises:
        EnvironmentError_: the disk is full; whatever else was raised stays as it is.
    """
    try:
        yield
    except InputError:
        if folder is not None and shutil.disk_usage(folder).free < _FULL_BELOW_BYTES:
            what, hint = os.strerror(errno.ENOSPC), "free some space, or set TMPDIR to another directory"
            raise EnvironmentError_(what, where=Path(folder).parent, hint=hint) from None
        raise


@contextmanager
def reading(
    where: object,
    what: str = "cannot be read",
    *,
    error: type[EdgeresError] = InputError,
    hint: str | None = None,
    short: Callable[[Exception], str] = lambda failed: str(failed).partition("\n")[0],
) -> Iterator[None]:
    """The boundary of a reader: what a library raises for a damaged or hostile file becomes one error that names it.

    Libraries raise any kind for such files. The machine's own limits keep their name: memory, disk space, open files.

    Args:
        where: the file.
        what: what cannot be done with it; the cause stands behind it in parentheses.
        error: what is raised where the file is the cause.
        short: what a library said, in one line.

    Raises:
        EdgeresError: of class ``error``, or EnvironmentError_ where the machine is the cause.
    """
    try:
        yield
    except EdgeresError:
        raise
    except MemoryError:
        raise EnvironmentError_(NO_MEMORY, where=where, hint="give this process more of it") from None
    except RecursionError:
        raise error(f"{what} (it is nested too deeply)", where=where, hint=hint) from None
    except Exception as failed:
        if _NO_ROOM.search(str(failed)):
            raise EnvironmentError_(NO_MEMORY, where=where, hint="give this process more of it") from failed
        number = failed.errno if isinstance(failed, OSError) else None
        reason = getattr(failed, "strerror", None) or short(failed)
        if isinstance(failed, LookupError):  # its words are the key alone
            reason = f"{type(failed).__name__} {reason}"
        if (other := getattr(failed, "filename", None)) is not None and str(other) != str(where):
            reason = f"{other}: {reason}"
        if number in _MACHINE:
            raise EnvironmentError_(f"{what} ({reason})", where=where, hint=_MACHINE[number]) from failed
        raise error(f"{what} ({reason[:200] or type(failed).__name__})", where=where, hint=hint) from failed
