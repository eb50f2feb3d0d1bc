"""One file over HTTP, within limits: its bytes, the time for all of it, a least rate, few redirects, none of them down
from https to http. The server is trusted with nothing: it may lie, stall, never end, or send other bytes than before.

A file is written as ``NAME.part``; ``NAME.part.tag`` holds the server's validator for the bytes so far, with which a
later call goes on.
"""

from __future__ import annotations

import errno
import http.client
import shutil
import socket
import string
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urljoin, urlsplit

from edgeres._version import __version__
from edgeres.errors import WeightsError
from edgeres.progress import Progress
from edgeres.words import shown_url, without

ATTEMPTS = 5
REDIRECTS = 5
_ADDRESSES = 4  # of one name that are tried
_CHUNK_BYTES = 1 << 18
_MOVED = (301, 302, 303, 307, 308)


@dataclass(frozen=True)
class DownloadLimits:
    """What a download may take.

    Attributes:
        size_bytes: of the file.
        seconds: for all attempts together.
        patience_s: for a connection; also the span of a transfer over which its rate is measured.
        rate: least rate, in bytes of the file per second, from the request on.
    """

    size_bytes: int = 4 << 30
    seconds: float = 3600.0
    patience_s: float = 15.0
    rate: float = 1000.0


class TransferError(Exception):
    """Why a download failed, with the server's status where it answered; ``final`` where another try is of no use."""

    def __init__(self, reason: str, status: int | None = None, *, final: bool = False) -> None:
        super().__init__(reason)
        self.status = status
        self.final = final


def download(url: str, part: Path, checked: bool, limits: DownloadLimits, progress: Progress) -> None:
    """Complete ``part``; try again after a cut connection as long as each attempt brings more bytes.

    Args:
        checked: the file's digest is known. A file of unknown length is taken only then: a cut would not be noticed.

    Raises:
        TransferError: the server, the network or a limit ended it. ``part`` is kept where the rest can be fetched.
        WeightsError: the server sent a web page.
        OSError: of the disk.
    """
    with _Watchdog(limits) as watch:
        for attempt in range(1, ATTEMPTS + 1):
            before = _size(part)
            try:
                _transfer(url, part, checked, watch, progress)
                return
            except TransferError as error:
                if error.status == 416 and attempt < ATTEMPTS and before:
                    remove_part(part)  # the file is not longer than this, but it was never checked: start again
                elif error.final or attempt == ATTEMPTS or _size(part) <= before:
                    raise


def remove_part(part: Path) -> None:
    """Remove an incomplete or unwanted file and its validator."""
    for path in (part, tag_of(part)):
        path.unlink(missing_ok=True)


def tag_of(part: Path) -> Path:
    """The file with the server's validator for ``part``."""
    return part.with_name(part.name + ".tag")


class _Watchdog:
    """Cuts connections that are too slow or take too long, from a thread of its own.

    Timeouts of sockets are not enough: they count from the last byte, and one byte now and then resets them.
    """

    def __init__(self, limits: DownloadLimits) -> None:
        self.limits = limits
        self.reason: str | None = None
        self.received = 0
        self._since, self._before = time.monotonic(), 0
        self._end = self._since + limits.seconds
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edgeres-download", daemon=True)

    def __enter__(self) -> _Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        for sock in self._sockets:
            sock.close()

    def begin(self) -> None:
        """A new attempt: its span of time begins now."""
        with self._lock:
            self._since, self._before = time.monotonic(), self.received

    def connect(self, address: tuple[str, int], *_: object) -> socket.socket:
        """A connection to one of a name's addresses, all within the patience for one."""
        places = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[:_ADDRESSES]
        for place in places:
            try:
                sock = socket.create_connection((str(place[4][0]), address[1]), self.limits.patience_s / len(places))
                break
            except OSError as error:
                failed = error
        else:
            raise failed
        sock.settimeout(self.limits.patience_s)
        with self._lock:
            self._sockets.append(sock.dup())  # TLS takes the first one over
        return sock

    def _run(self) -> None:
        limits = self.limits
        while not self._done.wait(min(0.5, limits.patience_s / 10)):
            now = time.monotonic()
            with self._lock:
                if now > self._end:
                    self.reason = f"it took longer than {limits.seconds / 60:.3g} minutes"
                elif now - self._since >= limits.patience_s:
                    came = self.received - self._before
                    if came < limits.rate * limits.patience_s:
                        self.reason = f"the server sent {came:,} bytes in {limits.patience_s:g} s, which is too slow"
                    self._since, self._before = now, self.received
                if self.reason:
                    for sock in self._sockets:
                        with suppress(OSError):
                            sock.shutdown(socket.SHUT_RDWR)


def _transfer(url: str, part: Path, checked: bool, watch: _Watchdog, progress: Progress) -> None:
    """Request the rest of ``part`` where the server still has the same file, else the whole file."""
    have = _size(part) if tag_of(part).is_file() else 0
    headers = {"User-Agent": f"edgeres/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": tag_of(part).read_text(encoding="latin-1")}
    watch.begin()
    with _open(url, headers, watch) as response:
        resumes = response.status == 206
        _refuse(response, have, url)
        have = have if resumes else 0
        total = None if response.length is None else have + response.length
        _refuse_size(part, have, total, watch.limits)
        if total is None and not getattr(response, "chunked", False) and not checked:
            what = "the server does not say how long the file is, so that a cut would not be noticed; end the URL with"
            raise TransferError(f"{what} #sha256= and the file's digest", final=True)
        with part.open("ab" if resumes else "wb") as file:  # emptied before its tag changes, so that both always match
            _write_tag(part, response.headers)
            _receive(response, file, (have, total), watch, progress)


def _refuse(response: http.client.HTTPResponse, have: int, url: str) -> None:
    """Refuse what is not the file, or not the part of it that was asked for."""
    status, encoding = response.status, response.headers.get("Content-Encoding", "identity").strip().lower()
    if status not in (200, 206):
        raise TransferError(f"the server answered {status} {response.reason}", status)
    if response.headers.get_content_type() == "text/html":
        hint = "give the URL of the file itself; a network that asks for a login also sends a web page"
        raise WeightsError("the server sent a web page, not a file", where=url, hint=hint)
    if encoding not in ("identity", ""):
        raise TransferError(f"the server sent it packed ({encoding:.20}), which was not asked for", final=True)
    if status == 206:
        asked = f"bytes {have}-"
        if not have or not response.headers.get("Content-Range", "").startswith(asked):
            raise TransferError("the server sent another part of the file than was asked for", final=True)


def _refuse_size(part: Path, have: int, total: int | None, limits: DownloadLimits) -> None:
    """Refuse a file that is too large, or larger than the disk has room for, before it is read."""
    if total is None:
        return
    if total > limits.size_bytes:
        raise TransferError(_too_large(f"has {_mb(total)}", limits), final=True)
    if total - have > shutil.disk_usage(part.parent).free:
        raise OSError(errno.ENOSPC, f"no space for the {_mb(total)} of the file")


def _too_large(what: str, limits: DownloadLimits) -> str:
    most = f"where {_mb(limits.size_bytes)} are expected at most"
    return f"the file {what} {most}; fetch it by other means and give --weights FILE if that is right"


def _mb(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


def _receive(
    response: http.client.HTTPResponse,
    file: BinaryIO,
    size: tuple[int, int | None],
    watch: _Watchdog,
    progress: Progress,
) -> None:
    """Write a response to a file; ``size`` is how much of it there is already, and how much there will be."""
    have, total = size
    with progress.task(f"downloading {Path(file.name).name.removesuffix('.part')}", total) as advance:
        advance(have)
        while True:
            with _network_errors(watch):
                chunk = response.read1(_CHUNK_BYTES)
            if not chunk:
                break
            have += len(chunk)
            if have > watch.limits.size_bytes:
                file.close()
                remove_part(Path(file.name))
                raise TransferError(_too_large("goes on after", watch.limits), final=True)
            file.write(chunk)
            watch.received += len(chunk)
            advance(len(chunk))
    if watch.reason:
        raise TransferError(f"{watch.reason}; {have:,} bytes came", final=True)
    if total is not None and have < total:
        raise TransferError(f"the connection was cut after {have:,} of {total:,} bytes")
    if not have:
        raise TransferError("the server sent an empty file", final=True)


@contextmanager
def _open(url: str, headers: dict[str, str], watch: _Watchdog) -> Iterator[http.client.HTTPResponse]:
    """The answer at the end of the redirects. Bodies of redirects and of errors are not read."""
    opener = urllib.request.OpenerDirector()  # it neither follows redirects nor raises for a status
    for handler in (urllib.request.ProxyHandler(), _Watched(watch)):
        opener.add_handler(handler)
    for _ in range(REDIRECTS + 1):
        with _network_errors(watch, url):
            response: http.client.HTTPResponse = opener.open(
                urllib.request.Request(url, headers=headers), timeout=watch.limits.patience_s
            )
        with response:
            if watch.reason:  # the cut looked like the end of the headers
                raise TransferError(watch.reason, final=True)
            if response.status not in _MOVED:
                yield response
                return
            url = _next(url, response.headers.get("Location"))
    raise TransferError(f"the server redirects more than {REDIRECTS} times", final=True)


def _next(url: str, location: str | None) -> str:
    """The URL that a redirect leads to."""
    if not location:
        raise TransferError("the server redirects, and does not say where to", final=True)
    try:
        there = urljoin(url, quote(location, encoding="iso-8859-1", safe=string.punctuation))
        scheme = urlsplit(there).scheme
    except ValueError as error:
        raise TransferError("the server redirects to what is no URL", final=True) from error
    if scheme not in ("http", "https"):
        raise TransferError(f"the server redirects to {scheme}: URLs", final=True)
    if scheme == "http" and urlsplit(url).scheme == "https":
        what = f"the server redirects from https to {shown_url(there)}, where others can change it on the way"
        raise TransferError(f"{what}; fetch it by other means and give --weights FILE", final=True)
    return there


class _Watched(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens http and https URLs by connections that a watchdog can cut."""

    def __init__(self, watch: _Watchdog) -> None:
        super().__init__()
        self._watch = watch

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(self._connection, http.client.HTTPConnection), req)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(self._connection, http.client.HTTPSConnection), req)

    def _connection(self, kind: Any, host: str, **options: Any) -> Any:
        connection = kind(host, **options)
        connection._create_connection = self._watch.connect
        return connection


@contextmanager
def _network_errors(watch: _Watchdog, url: str | None = None) -> Iterator[None]:
    """Errors of sockets and of HTTP as one; ``url``: their text may hold parts of it."""
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = getattr(error, "reason", error)
        words = watch.reason or str(getattr(cause, "strerror", None) or cause or type(cause).__name__)
        raise TransferError(without(words, url) if url else words, final=bool(watch.reason)) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _write_tag(part: Path, headers: http.client.HTTPMessage) -> None:
    """Keep the validator for ``If-Range`` (RFC 9110, 13.1.5): a strong ETag, else the date, else none."""
    etag = headers.get("ETag", "")
    if validator := etag if etag.startswith('"') else headers.get("Last-Modified"):
        tag_of(part).write_text(validator, encoding="latin-1")
    else:
        tag_of(part).unlink(missing_ok=True)
