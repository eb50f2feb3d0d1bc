"""Files that are written completely or not at all, and their digests."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
FREE_SPACE = "free some space and run it again, nothing was half-written"


def sha256(path: Path) -> str:
    """SHA-256 of a file in hex."""
    hasher = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON document for people: indented, UTF-8, no NaN; complete or not at all."""
    _replace(path, _json(content))


def write_file(path: Path, content: bytes) -> None:
    """Write a file that is complete or not there, whenever the writer is killed."""
    _replace(path, content)


def abandoned(target: Path, kind: str) -> Iterator[Path]:
    """Siblings named after a process that lives no more."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.{kind}-*"):
        pid = path.name.rpartition("-")[2]
        if pid.isdecimal() and not _alive(int(pid)):
            yield path


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _replace(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent)) from None
    for leftover in abandoned(path, "partial"):
        if leftover.is_file():
            leftover.unlink(missing_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_bytes(content)
        sync(partial)
        partial.replace(path)
    except OSError as error:
        error.filename = str(path)  # a failed write names no file, and the partial one is nobody's business
        raise
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Force a file to disk."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()
