"""Download a file once, by its digest: resume after a cut, share the cache among all processes of a user.

For a file NAME the cache holds ``NAME``, complete and checked, and ``NAME.sha256`` with its digest where nobody had
stated all of it: that of the first download, which every later one has to have. During a download it holds
``NAME.part`` and ``NAME.part.tag`` (see :mod:`edgeres.zoo.transfer`), and ``NAME.lock``, which the downloading process
holds.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import sys
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgeres.documents import is_sha256
from edgeres.errors import EnvironmentError_, WeightsError
from edgeres.files import read_file, write_file
from edgeres.files import sha256 as file_sha256
from edgeres.progress import SILENT, Progress
from edgeres.words import without
from edgeres.zoo.transfer import DownloadLimits, TransferError, download, remove_part

_WHOLE = 64  # hex digits of a SHA-256
_NAME_CHARACTERS = 120
_LEAST_LIMIT_BYTES, _COPIES = 128 << 20, 16


def cache_dir() -> Path:
    """``EDGERES_CACHE``, else ``XDG_CACHE_HOME/edgeres``, else ``~/.cache/edgeres``."""
    own = os.environ.get("EDGERES_CACHE")
    return Path(own).expanduser() if own else _user_cache() / "edgeres"


def limits_for(params: int) -> DownloadLimits:
    """Limits for a checkpoint of a network: room for 16 copies in float32, such as averages; 128 MB at least."""
    return DownloadLimits(size_bytes=max(_LEAST_LIMIT_BYTES, 4 * params * _COPIES))


def fetch(
    url: str,
    sha256: str | None = None,
    progress: Progress = SILENT,
    limits: DownloadLimits | None = None,
    copies: Sequence[Path] = (),
) -> Path:
    """The local copy of a file on the web, downloaded where it is not in the cache.

    Args:
        url: http or https; a fragment ``#sha256=...`` replaces the next argument where that is None.
        sha256: the first 8 to 64 hex digits of the file's SHA-256, as far as its publisher states them. Where that is
            not all of it, the digest of the first download is shown and kept, and later downloads need to have it.
        copies: where the file may lie already. Such a copy, as one in torch hub's folder, is taken only by its whole
            digest: a known one, or the one that it is named by, as in the cache of the Hugging Face hub.

    Returns:
        A complete and checked file, in :func:`cache_dir` or one of the copies.

    Raises:
        WeightsError: there is no connection, no such file, another digest, or a limit was met; the message lists
            alternatives.
        EnvironmentError_: the cache cannot be written.
    """
    url, want = _parse(url, sha256)
    path = _cache_path(url, want)
    try:
        expected = _expected(path, want)
        if _good(path, expected):
            return _pinned(path, expected, progress)
        hub = _torch_hub_copy(url)
        for copy in (hub, *copies):
            digest = _stated(copy, expected)
            if digest and _good(copy, digest):
                return _pinned(path, expected, progress, copy)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(path.name + ".lock"), progress):
            expected = _expected(path, want)
            if not _good(path, expected):  # another process may have fetched it meanwhile
                _download(url, path, expected, limits or DownloadLimits(), progress)
            return _pinned(path, expected, progress)
    except OSError as error:  # of the disk; errors of the network are TransferErrors
        hint = "free some space" if error.errno == errno.ENOSPC else "set EDGERES_CACHE to a directory you can write"
        what = f"cannot be written: {error.strerror or error}"
        raise EnvironmentError_(what, where=path.parent, hint=hint) from error
    except TransferError as error:
        raise WeightsError(
            f"cannot be fetched: {without(str(error), url)}", where=url, hint=_otherwise(path, hub)
        ) from error


def _parse(url: str, sha256: str | None) -> tuple[str, str]:
    """A URL without its fragment, and the digits of the digest that are stated."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise WeightsError(f"is not a URL: {without(str(error), url)}", where=url) from error
    if parts.scheme not in ("http", "https"):
        raise WeightsError("only http and https URLs can be fetched", where=url)
    want = (sha256 or parts.fragment.removeprefix("sha256=")).lower()
    if want and not re.fullmatch("[0-9a-f]{8,64}", want):
        raise WeightsError(
            "what stands behind # is not a SHA-256", where=url, hint="end the URL with #sha256= and hex digits"
        )
    return urllib.parse.urldefrag(url).url, want


def _otherwise(path: Path, hub: Path) -> str:
    other = " in place of the file there, which has another SHA-256" if path.is_file() else ""
    hint = f"fetch it on another machine and put it at {path}{other}; or give a file with --weights FILE; or use "
    hint += "--weights signs where it is bundled (see edgeres models), else --weights random"
    if hub.is_file():
        hint += f"; {hub} has its name, but its whole digest is not stated: give it with --weights if you trust it"
    return hint


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def _torch_hub_copy(url: str) -> Path:
    """Where ``torch.hub`` would keep the file."""
    home = os.environ.get("TORCH_HOME")
    folder = (Path(home).expanduser() if home else _user_cache() / "torch") / "hub" / "checkpoints"
    return folder / _file_name(url)


def _file_name(url: str) -> str:
    """The last part of a URL's path as a file's name on any system."""
    name = urllib.parse.urlsplit(url).path.rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)[-_NAME_CHARACTERS:].lstrip(".") or "file"


def _cache_path(url: str, want: str) -> Path:
    """Path in the cache: the publisher's file name where it holds the known digest, else a name made from the URL."""
    name = _file_name(url)
    unique = len(want) == _WHOLE and want[:8] in name
    return cache_dir() / (name if unique else f"{hashlib.sha256(url.encode(errors='replace')).hexdigest()[:12]}-{name}")


def _pin_of(path: Path) -> Path:
    """The file with the digest of the first download, as ``sha256sum --check`` reads it."""
    return path.with_name(path.name + ".sha256")


def _expected(path: Path, want: str) -> str:
    """The digest that a file needs to have, as far as it is known: as the caller states it, else that of the first."""
    pin = _pin_of(path)
    if len(want) == _WHOLE or not pin.is_file():
        return want
    digest = read_file(pin, _WHOLE).decode("ascii", "replace")
    if not is_sha256(digest):
        raise WeightsError("holds no SHA-256", where=pin, hint=f"remove it, and {path.name}, to fetch the file again")
    return digest if digest.startswith(want) else want


def _good(path: Path, expected: str) -> bool:
    return path.is_file() and (not expected or file_sha256(path).startswith(expected))


def _stated(copy: Path, expected: str) -> str:
    """The whole digest that a file in another cache needs to have; empty where nobody states it."""
    if len(expected) == _WHOLE:
        return expected
    name = copy.resolve().name
    return name if is_sha256(name) and name.startswith(expected) else ""


def _pinned(path: Path, expected: str, progress: Progress, copy: Path | None = None) -> Path:
    """Keep the digest of a file, or of its copy, where nobody had stated all of it, or other than what was kept."""
    file, pin = copy or path, _pin_of(path)
    known = len(expected) == _WHOLE
    if known and (not pin.is_file() or read_file(pin, _WHOLE) == expected.encode()):
        return file
    digest = expected if known else file_sha256(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(pin, f"{digest}  {path.name}\n".encode())
    if not known:
        progress.say(f"{file} has SHA-256 {digest}, which is kept: this URL has to give the same from now on")
    return file


@contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    """Wait for a lock file and hold it; the kernel releases it when its holder dies."""
    with path.open("ab") as handle:
        if sys.platform != "win32":  # on Windows only the digest protects against two writers
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress.say(f"waiting for another process that fetches {path.stem}")
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _download(url: str, path: Path, expected: str, limits: DownloadLimits, progress: Progress) -> None:
    """Fetch a file to its place. What was left of an earlier download is thrown away where it does not fit."""
    part = path.with_name(path.name + ".part")
    for _ in range(2 if part.is_file() else 1):
        download(url, part, bool(expected), limits, progress)
        found = file_sha256(part)
        if found.startswith(expected):
            break
        remove_part(part)
    else:
        raise _another_digest(url, path, found, expected)
    part.replace(path)
    remove_part(part)


def _another_digest(url: str, path: Path, found: str, expected: str) -> WeightsError:
    what = f"SHA-256 is {found} where {expected} is expected"
    hint = "try again; if this repeats, the file was replaced, or a proxy changes it"
    if _pin_of(path).is_file() and _expected(path, "") == expected:
        what += ", as this URL gave it first"
        hint = f"find out why it changed; to take the new file, give #sha256={found} or remove {_pin_of(path)}"
    return WeightsError(f"{what}; the download was deleted", where=url, hint=hint)
