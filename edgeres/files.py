"""Opens files below a directory by names that others chose, writes files completely or not at all, computes digests."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import sys
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
FREE_SPACE = "free some space and run it again; no file is incomplete"
LFS_POINTER = "a Git LFS pointer, not the file it points to"
PULL = "run git lfs pull"


def is_lfs_pointer(head: bytes) -> bool:
    """Whether a file with these first bytes is what Git leaves in place of a large file that was not fetched."""
    return head.startswith(b"version https://git-lfs")


def refuse_special(path: str | Path) -> None:
    """Raise an OSError where a path names a pipe, a socket or a device, which may block or never end; opens nothing."""
    mode = Path(path).stat().st_mode
    special = next((words for words, is_kind in _SPECIAL if is_kind(mode)), None)
    if special is not None:
        raise OSError(errno.EINVAL, f"is a {special}, not a file", str(path))


def refuse_output(path: Path) -> None:
    """Raise an OSError where a file of this name would take the place of a pipe, a device or a name of the system.

    A file in the place of ``/dev/null`` or ``/dev/stdout`` breaks the machine.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        refuse_special(path)
    if path.parent.resolve() == Path("/dev"):
        raise OSError(errno.EINVAL, "is a name of the system, not a file", str(path))


_SPECIAL: tuple[tuple[str, Callable[[int], bool]], ...] = (
    ("named pipe", stat.S_ISFIFO),
    ("socket", stat.S_ISSOCK),
    ("device", stat.S_ISCHR),
    ("device", stat.S_ISBLK),
)


def open_file(path: str | Path) -> IO[bytes]:
    """Open a file for reading; pipes, sockets and devices are refused before they are opened.

    Raises:
        OSError: there is no such file, or it is none.
    """
    refuse_special(path)
    return Path(path).open("rb")


def read_file(path: str | Path, most: int = -1) -> bytes:
    """The content of a file, or its first ``most`` bytes; see :func:`open_file`."""
    with open_file(path) as stream:
        return stream.read(most)


def is_lfs_pointer_at(path: Path) -> bool:
    """:func:`is_lfs_pointer` of a file; False where it cannot be read."""
    try:
        with open_file(path) as stream:
            return is_lfs_pointer(stream.read(64))
    except OSError:
        return False


def sha256(path: Path) -> str:
    """SHA-256 of a file in hex."""
    with open_file(path) as stream:
        return sha256_of(stream)


def sha256_of(stream: IO[bytes]) -> str:
    """SHA-256 in hex of the rest of an open file."""
    hasher = hashlib.sha256()
    while block := stream.read(1 << 20):
        hasher.update(block)
    return hasher.hexdigest()


_LONGEST_PART, _LONGEST_NAME, _DEEPEST_NAME = 255, 1000, 16  # bytes, bytes, parts
_HAS_DIR_FD = os.open in os.supports_dir_fd and hasattr(os, "O_NOFOLLOW")  # all systems but Windows


def is_inside(name: str) -> bool:
    """Whether a name from a document, an archive or another machine may name a file below a directory.

    Parts are divided by ``/``. No part is empty, ``.`` or ``..``; there is no backslash, drive, control or bidi
    character, and no name that is too long for a file system.
    """
    parts = name.split("/")
    if {"", ".", ".."} & set(parts) or "\\" in name or re.match("[A-Za-z]:", name) or not name.isprintable():
        return False
    sizes = [len(part.encode()) for part in parts]
    return max(sizes) <= _LONGEST_PART and sum(sizes) <= _LONGEST_NAME and len(sizes) <= _DEEPEST_NAME


def open_below(folder: Path, name: str, *, new: bool = False) -> IO[bytes]:
    """Open a regular file by its name below ``folder``, without following any link below ``folder``.

    Args:
        new: open it for writing, and make it empty and its folders where they are missing; else for reading.

    Raises:
        FileNotFoundError: there is none.
        OSError: the name leads outside or through a link, or to something that is no file; ``strerror`` says which.
    """
    with _parent_of(folder, name, make=new) as (parent, base):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC if new else os.O_RDONLY
        flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        try:
            opened = os.open(base, flags, 0o666, dir_fd=parent)
        except OSError as error:
            raise _in_words(error, parent, base, name) from None
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError(errno.EINVAL, "is no regular file", name)
    return os.fdopen(opened, "wb" if new else "rb")


def write_below(folder: Path, name: str, content: bytes) -> None:
    """Write a file by its name below ``folder``, completely or not at all; no link below ``folder`` is followed.

    Raises:
        OSError: the name leads outside or through a link, or the file cannot be written.
    """
    with _parent_of(folder, name, make=True) as (parent, base):
        _write(folder / name, parent, base, content)


def remove_below(folder: Path, name: str) -> None:
    """Remove a file by its name below ``folder``, if it is there; of a link, the link itself is removed.

    Raises:
        OSError: the name leads outside or through a link, or the file cannot be removed.
    """
    with suppress(FileNotFoundError), _parent_of(folder, name) as (parent, base):
        os.unlink(base, dir_fd=parent)


@contextmanager
def _parent_of(folder: Path, name: str, *, make: bool = False) -> Iterator[tuple[int | None, str]]:
    """The directory of a file below ``folder``, and the file's name in it.

    Every part of the name is opened in the directory before it, so nobody can put a link in its place meanwhile. Where
    the system has no such calls, the directory is None, and the name a path whose parts were looked at before.
    """
    if not is_inside(name):
        raise OSError(errno.EINVAL, "is no name of a file in a folder", name)
    *parts, base = name.split("/")
    if not _HAS_DIR_FD:
        for depth in range(1, len(parts) + 1):
            if folder.joinpath(*parts[:depth]).is_symlink():
                raise OSError(errno.ELOOP, _IS_LINK, name)
        folder.joinpath(*parts).mkdir(parents=True, exist_ok=True) if make else None
        yield None, str(folder / name)
        return
    flags = os.O_RDONLY | os.O_DIRECTORY
    parent = os.open(folder, flags)
    try:
        for part in parts:
            with suppress(FileExistsError):
                os.mkdir(part, dir_fd=parent) if make else None
            try:
                inner = os.open(part, flags | os.O_NOFOLLOW, dir_fd=parent)
            except OSError as error:
                raise _in_words(error, parent, part, name) from None
            os.close(parent)
            parent = inner
        yield parent, base
    finally:
        os.close(parent)


_IS_LINK = "is a link or lies behind one, which is not followed"


def _in_words(error: OSError, parent: int | None, part: str, name: str) -> OSError:
    """The same error with the whole name; it says so where a link is the cause."""
    with suppress(OSError):
        if stat.S_ISLNK(os.stat(part, dir_fd=parent, follow_symlinks=False).st_mode):
            return OSError(errno.ELOOP, _IS_LINK, name)
    return type(error)(error.errno, error.strerror, name)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an indented JSON document in UTF-8 without NaN, completely or not at all."""
    write_file(path, json_bytes(content))


def json_bytes(content: dict[str, Any]) -> bytes:
    """An indented JSON document in UTF-8 without NaN."""
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def make_folder(path: Path) -> None:
    """Make a directory and those above it, where they are missing; NotADirectoryError where a file is in the way."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from None


def write_file(path: Path, content: bytes) -> None:
    """Write a file completely or not at all, even if the writer is killed.

    Raises:
        OSError: it cannot be written, or :func:`refuse_output`.
    """
    refuse_output(path)
    make_folder(path.parent)
    if not _HAS_DIR_FD:
        _write(path, None, str(path), content)
        return
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _write(path, parent, path.name, content)
    finally:
        os.close(parent)


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files that belong together into a directory, so that nobody finds some old and some new ones.

    A directory that is new, or has no other files, is replaced in one step. Where that cannot be done, all files are
    written beside their places first, and renamed one right after another.

    Raises:
        OSError: they cannot be written.
    """
    given, folder = folder, folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    try:
        make_folder(folder.parent)
    except OSError as error:
        error.filename = str(given)
        raise
    if _holds_only(folder, contents) and _switched(folder, contents):
        return
    staged = {name: folder / temporary_name(name, "partial") for name in contents}
    try:
        for name, path in staged.items():
            try:
                write_file(path, contents[name])
            except OSError as error:
                error.filename = str(folder / name)
                raise
        for name, path in staged.items():
            path.replace(folder / name)
        sync_path(folder)
    finally:
        for path in staged.values():
            path.unlink(missing_ok=True)


def _holds_only(folder: Path, names: Container[str]) -> bool:
    """Whether a directory may be replaced by another with these files: it is not where a shell stands."""
    with suppress(OSError):
        if folder == Path.cwd() or folder in Path.cwd().parents or folder.is_mount():
            return False
    return not folder.exists() or all(entry.name in names and entry.is_file() for entry in os.scandir(folder))


def _switched(folder: Path, contents: Mapping[str, bytes]) -> bool:
    """Put a new directory in the place of ``folder``; False where the system cannot."""
    new = folder.with_name(temporary_name(folder.name, "partial"))
    try:
        new.mkdir()
    except OSError:  # only the folder itself can be written
        return False
    try:
        for name, content in contents.items():
            write_file(new / name, content)
        if folder.exists():
            new.chmod(stat.S_IMODE(folder.stat().st_mode))
            is_done = exchange(new, folder)
        else:
            new.rename(folder)
            is_done = True
        sync_path(folder.parent)
        return is_done
    except OSError as error:
        if error.filename and Path(error.filename).parent == new:
            error.filename = str(folder / Path(error.filename).name)
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _write(path: Path, parent: int | None, base: str, content: bytes) -> None:
    """Write ``base`` in the directory ``parent`` through a hidden file beside it; ``path`` is its name in errors."""
    _clear_partial_files(path)
    folder, name = os.path.split(base)
    partial = os.path.join(folder, temporary_name(name, "partial"))  # noqa: PTH118  beside a descriptor
    try:
        try:
            with _new_file(partial, parent) as stream:
                stream.write(content)
                stream.flush()
                sync(stream.fileno())
                os.replace(partial, base, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(partial, dir_fd=parent)
            raise
        if parent is not None:
            sync(parent)
    except OSError as error:
        error.filename = str(path)  # a failed write has no file name, and that of the partial file would confuse
        error.filename2 = None
        raise


def _new_file(name: str, parent: int | None) -> IO[bytes]:
    """Create a file that nobody else has; it stays locked until it is closed, which shows that its writer lives."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    while True:
        stream = os.fdopen(os.open(name, flags, 0o666, dir_fd=parent), "wb")
        if not hold(stream.fileno()) or os.fstat(stream.fileno()).st_nlink:
            return stream
        stream.close()  # another process took it for abandoned just before it was locked


def temporary_name(name: str, kind: str) -> str:
    """A hidden name beside ``name`` that nobody else has, and that tells which start of which machine made it."""
    return f".{name}.{kind}-{_this_start()}-{os.urandom(6).hex()}"


def temporaries(target: Path, kind: str, *, ours: bool = True) -> list[Path]:
    """What writers of this machine left beside ``target`` since it started, or what those of other machines did."""
    shape = re.compile(rf"\.{re.escape(target.name)}\.{kind}-([0-9a-f]{{12}})-[0-9a-f]{{12}}")
    try:
        names = [entry.name for entry in os.scandir(target.parent) if entry.name.startswith(f".{target.name}.{kind}-")]
    except OSError:
        return []
    found = [(name, match[1]) for name in sorted(names) if (match := shape.fullmatch(name))]
    return [target.with_name(name) for name, start in found if (start == _this_start()) is ours]


@cache
def _this_start() -> str:
    """Tells this start of this machine from all others: process numbers and locks mean something only within it."""
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        start = platform.node()
    return hashlib.sha256(start.encode()).hexdigest()[:12]


def hold(handle: int, *, wait: bool = False) -> bool | None:
    """Lock an open file or directory until it is closed; the system frees the lock of a process that dies.

    Returns:
        True: it is locked; False: another process holds it; None: this file system has no locks.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def _clear_partial_files(path: Path) -> None:
    """Remove what killed writers of the same file left: what they would still hold if they lived."""
    for leftover in temporaries(path, "partial"):
        with suppress(OSError):
            handle = os.open(leftover, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
            try:
                if hold(handle) and stat.S_ISREG(os.fstat(handle).st_mode):
                    leftover.unlink()
            finally:
                os.close(handle)


def sync(handle: int) -> None:
    """Flush an open file or directory to disk."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # some file systems flush no directories
            raise


def sync_path(path: Path) -> None:
    """Flush a file, or the names in a directory, to disk, where the system can."""
    if path.is_dir() and not _HAS_DIR_FD:
        return
    handle = os.open(path, os.O_RDONLY if _HAS_DIR_FD else os.O_RDWR)
    try:
        sync(handle)
    finally:
        os.close(handle)


def exchange(one: Path, other: Path) -> bool:
    """Let two files or directories change their places in one step; False where the system cannot.

    Raises:
        OSError: one of them is missing, or the directory cannot be written.
    """
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    here, exchange_flag = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if libc.renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange_flag) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code), str(other))
