"""Writes files completely or not at all, and computes their digests."""

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
FREE_SPACE = "free some space and run it again; no file is incomplete"
LFS_POINTER = "a Git LFS pointer, not the file it points to"
PULL = "run git lfs pull"


def is_lfs_pointer(head: bytes) -> bool:
    """Whether a file with these first bytes is what Git leaves in place of a large file that was not fetched."""
    return head.startswith(b"version https://git-lfs")


def is_lfs_pointer_at(path: Path) -> bool:
    """:func:`is_lfs_pointer` of a file; False where it cannot be read."""
    try:
        with path.open("rb") as stream:
            return is_lfs_pointer(stream.read(64))
    except OSError:
        return False


def sha256(path: Path) -> str:
    """SHA-256 of a file in hex."""
    hasher = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an indented JSON document in UTF-8 without NaN, completely or not at all."""
    write_file(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def write_file(path: Path, content: bytes) -> None:
    """Write a file completely or not at all, even if the writer is killed."""
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
        error.filename = str(path)  # a failed write has no file name, and that of the partial file would confuse
        raise
    finally:
        partial.unlink(missing_ok=True)


def abandoned(target: Path, kind: str) -> Iterator[Path]:
    """Files and directories that a process left beside ``target`` when it was killed."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.{kind}-*"):
        pid = path.name.rpartition("-")[2]
        if pid.isdecimal() and not _alive(int(pid)):
            yield path


def _alive(pid: int) -> bool:
    """Whether another process has this id."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except OSError as error:  # also raised for processes of other users, which are alive
        return not isinstance(error, ProcessLookupError)
    return True


def sync(path: Path) -> None:
    """Flush a file to disk."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
