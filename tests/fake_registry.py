"""A registry of containers on this machine: the parts of the OCI distribution specification that a push and a pull use.

It may ask for a token first, as public registries do: 401 with a challenge, a token from another path for a user and
password, and then the request again. ``wrong`` gives other bytes for a path, and ``statuses`` another status.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USER = ("robot", "s3cret")


class FakeRegistry(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *, login: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.login = login
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.wrong: dict[str, bytes] = {}
        self.statuses: dict[str, int] = {}
        self.asked: list[str] = []

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeRegistry

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _any(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body, registry = self.rfile.read(length), self.server
        path, _, query = self.path.partition("?")
        registry.asked.append(f"{self.command} {path}")
        if path == "/token":
            basic = "Basic " + base64.b64encode(":".join(USER).encode()).decode()
            if self.headers.get("Authorization") != basic:
                return self._reply(401)
            return self._reply(200, json.dumps({"token": "t0ken"}).encode())
        if registry.login and self.headers.get("Authorization") != "Bearer t0ken":
            challenge = f'Bearer realm="http://{registry.host}/token",service="fake",scope="repository:x:pull,push"'
            return self._reply(401, WWW_Authenticate=challenge)
        if path in registry.statuses:
            return self._reply(registry.statuses[path])
        return self._stored(path, query, body)

    do_GET = do_HEAD = do_POST = do_PUT = _any

    def _stored(self, path: str, query: str, body: bytes) -> None:
        registry = self.server
        found = re.fullmatch(r"/v2/(.+)/(manifests|blobs/uploads|blobs)/(.*)", path)
        assert found is not None, path
        kind, last = found[2], found[3]
        if self.command == "POST":
            return self._reply(202, Location=f"{path}session?state=1")
        if self.command == "PUT" and kind == "blobs/uploads":
            digest = query.rpartition("digest=")[2]
            if f"sha256:{hashlib.sha256(body).hexdigest()}" != digest:
                return self._reply(400)
            registry.blobs[digest] = body
            return self._reply(201)
        if self.command == "PUT":
            for layer in [*json.loads(body)["layers"], json.loads(body)["config"]]:
                if layer["digest"] not in registry.blobs:
                    return self._reply(404)
            registry.manifests[last] = registry.manifests[f"sha256:{hashlib.sha256(body).hexdigest()}"] = body
            return self._reply(201)
        content = registry.wrong.get(last, (registry.manifests if kind == "manifests" else registry.blobs).get(last))
        return self._reply(404) if content is None else self._reply(200, content)


@contextmanager
def serving(*, login: bool = False) -> Iterator[FakeRegistry]:
    registry = FakeRegistry(login=login)
    threading.Thread(target=registry.serve_forever, daemon=True).start()
    try:
        yield registry
    finally:
        registry.shutdown()
        registry.server_close()
