"""Download a file once: resume after a cut, check the digest, share the cache among all processes of a user.

For a file NAME the cache holds ``NAME``, complete and checked. During a download it holds ``NAME.part`` with the bytes
so far, ``NAME.part.tag`` with the server's validator for them, and ``NAME.lock``, which the downloading process holds.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from edgeres._version import __version__
from edgeres.errors import EnvironmentError_, WeightsError
from edgeres.files import sha256 as file_sha256
from edgeres.progress import SILENT, Progress
from edgeres.words import without

TIMEOUT_S = 30.0  # for a connection, and for each read
ATTEMPTS = 5
_CHUNK_BYTES = 1 << 18


def cache_dir() -> Path:
    """``EDGERES_CACHE``, else ``XDG_CACHE_HOME/edgeres``, else ``~/.cache/edgeres``."""
    own = os.environ.get("EDGERES_CACHE")
    return Path(own).expanduser() if own else _user_cache() / "edgeres"


def fetch(url: str, sha256: str | None = None, progress: Progress = SILENT) -> Path:
    """The local copy of a file on the web, downloaded where it is not in the cache.

    Args:
        url: http or https; a fragment ``#sha256=...`` replaces the next argument where that is None.
        sha256: the first 8 to 64 hex digits of the file's SHA-256, as far as its publisher states them; None: unknown,
            then the digest that was found is shown.

    Returns:
        A complete and checked file in :func:`cache_dir`, or in torch hub's folder where it is there already.

    Raises:
        WeightsError: there is no connection, no such file, or another digest; the message lists alternatives.
        EnvironmentError_: the cache cannot be written.
    """
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise WeightsError(f"is not a URL: {without(str(error), url)}", where=url) from error
    if parts.scheme not in ("http", "https"):
        raise WeightsError("only http and https URLs can be fetched", where=url)
    want = (sha256 or parts.fragment.removeprefix("sha256=")).lower() or None
    if want and not re.fullmatch("[0-9a-f]{8,64}", want):
        raise WeightsError(
            "what stands behind # is not a SHA-256", where=url, hint="end the URL with #sha256= and hex digits"
        )
    url = urllib.parse.urldefrag(url).url
    path = _cache_path(url, want)
    known = (path, _user_torch_hub() / path.name) if want else (path,)
    copy = next((copy for copy in known if _good(copy, want)), None) or _fetch_into(path, url, want, progress)
    if want is None:
        progress.say(f"{copy} has SHA-256 {file_sha256(copy)}; add #sha256=... to the URL to have it checked")
    return copy


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def _user_torch_hub() -> Path:
    """The folder in which ``torch.hub`` keeps checkpoints."""
    home = os.environ.get("TORCH_HOME")
    return (Path(home).expanduser() if home else _user_cache() / "torch") / "hub" / "checkpoints"


def _cache_path(url: str, want: str | None) -> Path:
    """Path in the cache: the publisher's file name where it holds the digest, else a name made from the URL."""
    name = re.sub(r"[^\w.-]", "_", Path(urllib.parse.urlsplit(url).path).name) or "file"
    unique = want is not None and want[:8] in name
    return cache_dir() / (name if unique else f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}")


def _good(path: Path, want: str | None) -> bool:
    return path.is_file() and (want is None or file_sha256(path).startswith(want))


def _fetch_into(path: Path, url: str, want: str | None, progress: Progress) -> Path:
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(path.name + ".lock"), progress):
            if not _good(path, want):  # another process may have fetched it meanwhile
                _download(url, part, progress)
                _check(part, want, url)
                part.replace(path)
                _tag_of(part).unlink(missing_ok=True)
    except OSError as error:  # of the disk; errors of the network are _NetworkError
        hint = "free some space" if error.errno == errno.ENOSPC else "set EDGERES_CACHE to a directory you can write"
        what = f"cannot be written: {error.strerror or error}"
        raise EnvironmentError_(what, where=path.parent, hint=hint) from error
    except _NetworkError as error:
        other = " in place of the file there, which has another SHA-256" if path.is_file() else ""
        hint = f"fetch it on another machine and put it at {path}{other}; or give a file with --weights FILE; or use "
        hint += "--weights signs where it is bundled (see edgeres models), else --weights random"
        raise WeightsError(f"cannot be fetched: {without(str(error), url)}", where=url, hint=hint) from error
    return path


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


def _check(part: Path, want: str | None, url: str) -> None:
    if want and not (found := file_sha256(part)).startswith(want):
        part.unlink()
        hint = "try again; if this repeats, the file was replaced, or a proxy changes it"
        raise WeightsError(
            f"SHA-256 is {found} where {want} is expected; the download was deleted", where=url, hint=hint
        )


class _NetworkError(Exception):
    """Why a download failed, with the server's status where it answered."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


def _download(url: str, part: Path, progress: Progress) -> None:
    """Complete ``part``; try again after a cut connection as long as each attempt brings more bytes."""
    for attempt in range(1, ATTEMPTS + 1):
        before = _size(part)
        try:
            _transfer(url, part, progress)
            return
        except _NetworkError as error:
            if error.status == 416 and attempt < ATTEMPTS and before:
                part.unlink()  # the file is not longer than this, but it was never checked: start again
            elif attempt == ATTEMPTS or _size(part) <= before:
                raise


def _transfer(url: str, part: Path, progress: Progress) -> None:
    """Request the rest of ``part`` where the server still has the same file, else the whole file."""
    have = _size(part) if _tag_of(part).is_file() else 0
    request = urllib.request.Request(url, headers={"User-Agent": f"edgeres/{__version__}"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", _tag_of(part).read_text(encoding="latin-1"))
    with _network_errors():
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    with response:
        if response.headers.get_content_type() == "text/html":
            hint = "give the URL of the file itself; a network that asks for a login also sends a web page"
            raise WeightsError("the server sent a web page, not a file", where=url, hint=hint)
        resumes = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        have = have if resumes else 0
        with part.open("ab" if resumes else "wb") as file:  # emptied before its tag changes, so that both always match
            _write_tag(part, response.headers)
            _receive(response, file, have, progress)


def _receive(response: http.client.HTTPResponse, file: BinaryIO, have: int, progress: Progress) -> None:
    total = None if response.length is None else have + response.length
    name = Path(file.name).name.removesuffix(".part")
    with progress.task(f"downloading {name}", total) as advance:
        advance(have)
        while True:
            with _network_errors():
                chunk = response.read1(_CHUNK_BYTES)
            if not chunk:
                break
            file.write(chunk)
            have += len(chunk)
            advance(len(chunk))
    if total is not None and have < total:
        raise _NetworkError(f"the connection was cut after {have:,} of {total:,} bytes")


@contextmanager
def _network_errors() -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError as error:
        raise _NetworkError(f"the server answered {error.code} {error.reason}", error.code) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise _NetworkError(str(getattr(reason, "strerror", None) or reason or type(reason).__name__)) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _tag_of(part: Path) -> Path:
    return part.with_name(part.name + ".tag")


def _write_tag(part: Path, headers: http.client.HTTPMessage) -> None:
    """Keep the validator for ``If-Range`` (RFC 9110, 13.1.5): a strong ETag, else the date, else none."""
    etag = headers.get("ETag", "")
    if validator := etag if etag.startswith('"') else headers.get("Last-Modified"):
        _tag_of(part).write_text(validator, encoding="latin-1")
    else:
        _tag_of(part).unlink(missing_ok=True)
