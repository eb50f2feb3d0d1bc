"""Save the state of learning to disk, so that it goes on after an interruption."""

from __future__ import annotations

import io
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from edgeres.files import write_file

_EVERY_SECONDS = 5.0
_FORGET_SECONDS = 14 * 24 * 3600.0


class Resume:
    """The file of one learning run, named by ``key``: a digest of its start, its targets and its options.

    It lies in the folder of all runs, where files older than two weeks are removed; without a folder nothing is saved.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self._path = None if folder is None else folder / f"{key}.pt"
        self._saved = time.monotonic()
        if folder is not None:
            _forget(folder)

    def load(self) -> dict[str, Any] | None:
        """The state of an earlier run that was interrupted; None if there is none that can be read."""
        if self._path is not None and self._path.is_file():
            with suppress(Exception):  # written by another torch, or damaged: learning starts again
                return dict(torch.load(self._path, weights_only=True))
        return None

    def is_due(self) -> bool:
        return self._path is not None and time.monotonic() - self._saved > _EVERY_SECONDS

    def save(self, state: dict[str, Any]) -> None:
        """Save tensors and plain values. If the disk cannot be written, learning goes on and cannot be resumed."""
        if self._path is None:
            return
        buffer = io.BytesIO()
        torch.save(state, buffer)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_file(self._path, buffer.getvalue())
        except OSError:
            self._path = None
        self._saved = time.monotonic()

    def finish(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _forget(folder: Path) -> None:
    for path in folder.glob("*.pt"):
        with suppress(OSError):  # another process removed it first
            if time.time() - path.stat().st_mtime > _FORGET_SECONDS:
                path.unlink(missing_ok=True)
