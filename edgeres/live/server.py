"""The page's server, for this machine's browsers alone.

It listens on 127.0.0.1. Other pages in the same browser, and other users of the machine, can reach that address, too:
so the path holds a token that only the terminal shows; a name in ``Host`` that is not this machine's own is refused
(DNS rebinding), and so is a request that says it comes from another page (``Origin``, ``Sec-Fetch-Site``).
"""

from __future__ import annotations

import errno
import hmac
import json
import secrets
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from string import Template
from typing import Any, NamedTuple

from edgeres.errors import NO_MEMORY, EdgeresError, EnvironmentError_
from edgeres.live.side_by_side import SideBySide
from edgeres.report.markup import join, page_style

ADDRESS = "127.0.0.1"
PORT = 8765
MOST_BYTES = 32 << 20  # of a photograph's file
_NAMES = ("127.0.0.1", "localhost")
_SECONDS = 30  # for a request to arrive
_CONNECTIONS = 16  # at the same time
_CHUNK = 1 << 16
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; "
    "media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(self)",
    "Cache-Control": "no-store",
}


class _Content(NamedTuple):
    kind: str
    body: bytes


class TryServer(ThreadingHTTPServer):
    """Serves the page of a pair; ``serve_forever`` runs until the process is interrupted.

    Args:
        pair: what answers; it stays open, whatever becomes of the server.
        port: 0: any that is free.

    Attributes:
        url: the page's address, with the token.
        images, same: how many images were answered, and for how many both networks named the same class.

    Raises:
        EnvironmentError_: the port is in use, or needs rights that this user has not.
    """

    daemon_threads = True
    request_queue_size = _CONNECTIONS
    allow_reuse_address = sys.platform != "win32"  # there it would let two processes share a port

    def __init__(self, pair: SideBySide, port: int = PORT) -> None:
        self.pair = pair
        self.images = self.same = 0
        self._counted = threading.Lock()
        self._free = threading.BoundedSemaphore(_CONNECTIONS)
        try:
            super().__init__((ADDRESS, port), TryHandler)
        except OSError as error:
            known = {errno.EADDRINUSE: "is in use", errno.EACCES: "may be used by root alone"}
            what = known.get(error.errno or 0, error.strerror or str(error))
            hint = "give another one by --port, or --port 0 for any that is free"
            raise EnvironmentError_(f"port {port} {what}", hint=hint) from None
        self.home = f"/{secrets.token_urlsafe(16)}/"
        self.url = f"http://{ADDRESS}:{self.server_port}{self.home}"
        self.content = _page(pair)

    def server_bind(self) -> None:
        """Bind without the look-up of this address's name, which may ask a name server."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(self.allow_reuse_address))
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = ADDRESS, self.server_address[1]

    def answer(self, content: bytes) -> dict[str, Any]:
        """See :meth:`SideBySide.answer`; the answer is counted."""
        found = self.pair.answer(content)
        with self._counted:
            self.images += 1
            self.same += found["same"]
        return found

    def process_request(self, request: Any, client_address: Any) -> None:
        """Take a connection, or close it where too many are open."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away is no fault."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class TryHandler(BaseHTTPRequestHandler):
    """One request: the page and its parts by GET, an image by POST; one request a connection."""

    server: TryServer
    timeout = _SECONDS

    def do_GET(self) -> None:
        if self._is_refused():
            return
        found = self.server.content.get(self.path.removeprefix(self.server.home)) if self._has_token() else None
        if found is None:
            self._say(HTTPStatus.NOT_FOUND, "there is no such page; open the address that the terminal shows")
        else:
            self._send(HTTPStatus.OK, found)

    def do_POST(self) -> None:
        if self._is_refused():
            return
        if not self._has_token() or self.path != f"{self.server.home}classify":
            self._say(HTTPStatus.NOT_FOUND, "there is no such page; open the address that the terminal shows")
        elif self.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
            self._say(HTTPStatus.FORBIDDEN, "this comes from another page")
        elif self.headers.get("Content-Type") != "application/octet-stream":
            self._say(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send the file as application/octet-stream")
        elif (length := self._length()) is None:
            self._say(HTTPStatus.LENGTH_REQUIRED, "state one Content-Length")
        elif length > MOST_BYTES:
            what = f"the file has {length / 1e6:,.1f} MB, at most {MOST_BYTES / 1e6:,.1f} MB are taken"
            self._say(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, what)
        else:
            self._classify(length)

    def _classify(self, length: int) -> None:
        content = self._body(length)
        if content is None:
            return
        try:
            answer = self.server.answer(content)
        except EdgeresError as error:
            self._say(HTTPStatus.UNPROCESSABLE_ENTITY, f"{error.what}{f'; {error.hint}' if error.hint else ''}")
        except MemoryError:
            self._say(HTTPStatus.INSUFFICIENT_STORAGE, NO_MEMORY)
        except Exception as error:
            self._say(HTTPStatus.INTERNAL_SERVER_ERROR, f"this is a fault of edgeres ({type(error).__name__})")
            raise
        else:
            self._send(HTTPStatus.OK, _json(answer))

    def _is_refused(self) -> bool:
        """Answer a request that another page may have made, and tell so."""
        hosts = self.headers.get_all("Host", [])
        name, _, port = hosts[0].partition(":") if len(hosts) == 1 else ("", "", "")
        if name not in _NAMES or not (port or "80").encode().isdigit():
            self._say(HTTPStatus.FORBIDDEN, f"this page is at {ADDRESS} alone")
            return True
        if self.headers.get_all("Origin", [f"http://{hosts[0]}"]) != [f"http://{hosts[0]}"]:
            self._say(HTTPStatus.FORBIDDEN, "this comes from another page")
            return True
        return False

    def _has_token(self) -> bool:
        home = self.server.home
        return hmac.compare_digest(self.path[: len(home)].encode(errors="replace"), home.encode())

    def _length(self) -> int | None:
        given = self.headers.get_all("Content-Length", [])
        if len(given) != 1 or "Transfer-Encoding" in self.headers or not (given[0].isascii() and given[0].isdecimal()):
            return None
        return int(given[0]) if len(given[0]) < 12 else MOST_BYTES + 1

    def _body(self, length: int) -> bytes | None:
        """The content; None: it did not arrive, in time or whole."""
        parts, left, until = [], length, time.monotonic() + _SECONDS
        while left and time.monotonic() < until and (part := self.rfile.read1(min(left, _CHUNK))):
            parts.append(part)
            left -= len(part)
        return None if left else b"".join(parts)

    def _say(self, status: HTTPStatus, what: str) -> None:
        self._send(status, _json({"error": what}))
        if self.command == "POST" and (left := min(self._length() or 0, 2 * MOST_BYTES)):
            # Closed while its sender still writes, a connection is reset, and the sender never reads why.
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_WR)
                self._body(left)

    def _send(self, status: HTTPStatus, content: _Content) -> None:
        self.send_response(status)
        more = {"Content-Type": content.kind, "Content-Length": str(len(content.body))}
        for name, value in {**_HEADERS, **more}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what is no request, or one by another method, with our headers and without its words."""
        status, self.request_version = HTTPStatus(code), self.protocol_version  # of 0.9 there are no headers
        self._send(status, _json({"error": status.phrase}))

    def version_string(self) -> str:
        return "edgeres"

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: the terminal is the user's."""


def _json(content: Mapping[str, Any]) -> _Content:
    return _Content("application/json", json.dumps(content, allow_nan=False).encode())


def _page(pair: SideBySide) -> dict[str, _Content]:
    """What can be read, by its name below the token."""

    def text(name: str) -> str:
        return files("edgeres.live").joinpath(name).read_text(encoding="utf-8")

    shown = {"name": pair.name, "fp32": pair.fp32, "int8": pair.int8, "most_bytes": MOST_BYTES}
    page = Template(text("page.html")).substitute({key: join(value) for key, value in shown.items()})
    style = page_style() + text("try.css")
    return {
        "": _Content("text/html; charset=utf-8", page.encode()),
        "try.js": _Content("text/javascript; charset=utf-8", text("try.js").encode()),
        "try.css": _Content("text/css; charset=utf-8", style.encode()),
    }
