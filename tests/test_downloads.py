"""Downloads from servers that lie, stall, never end, redirect in circles, or change their files."""

from __future__ import annotations

import hashlib
import os
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from edgeres.errors import WeightsError
from edgeres.words import without_secrets
from edgeres.zoo.download import cache_dir, fetch, limits_for
from edgeres.zoo.registry import list_models
from edgeres.zoo.transfer import DownloadLimits

CONTENT = np.random.default_rng(1).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = DownloadLimits(size_bytes=1_000_000, seconds=5.0, patience_s=0.4, rate=1000.0)
Send = Callable[[bytes], None]


def answer(body: bytes = CONTENT, status: str = "200 OK", length: int | None = None, more: str = "") -> bytes:
    """A whole response."""
    count = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {count}\r\n{more}\r\n".encode() + body


def without_length(send: Send) -> None:
    send(b"HTTP/1.1 200 OK\r\n\r\n" + CONTENT)


def endless(send: Send) -> None:
    send(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        send(bytes(100_000))


def endless_in_chunks(send: Send) -> None:
    send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        send(b"186a0\r\n" + bytes(100_000) + b"\r\n")


def dripping(head: bytes, drop: bytes = b"x") -> Callable[[Send], None]:
    def send_all(send: Send) -> None:
        send(head)
        while True:
            send(drop)
            time.sleep(0.05)

    return send_all


def endless_redirect(send: Send) -> None:
    send(b"HTTP/1.1 302 Found\r\nLocation: /good\r\nContent-Length: 9999999999\r\n\r\n")
    while True:
        send(bytes(100_000))


class Server(socketserver.ThreadingTCPServer):
    """Answers each path as ``scripts`` says; ``asked`` are the requests as they came."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.scripts: dict[str, bytes | Callable[[Send], None]] = {"/good": answer()}
        self.asked: list[bytes] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(socketserver.BaseRequestHandler):
    server: Server

    def handle(self) -> None:
        request = b""
        with suppress(OSError):
            while b"\r\n\r\n" not in request and (more := self.request.recv(65536)):
                request += more
            self.server.asked.append(request)
            script = self.server.scripts[request.split()[1].decode().partition("?")[0]]
            if isinstance(script, bytes):
                self.request.sendall(script)
            else:
                script(self.request.sendall)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("EDGERES_CACHE", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path


class Lines:
    """A Progress that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def task(self, name: str, total: int | None) -> object:
        return suppress_task()

    def say(self, line: str) -> None:
        self.said.append(line)


class suppress_task:
    def __enter__(self) -> Callable[[int], None]:
        return lambda count: None

    def __exit__(self, *_: object) -> None:
        pass


def nothing_is_left() -> bool:
    return [p.name for p in cache_dir().iterdir() if p.suffix != ".lock"] == []


REFUSED: dict[str, tuple[bytes | Callable[[Send], None], str]] = {
    "endless in chunks": (endless_in_chunks, "the file goes on after where 1 MB are expected at most"),
    "larger than it may be": (answer(b"", length=10**13), "the file has 10,000,000 MB where 1 MB are expected at most"),
    "no length": (without_length, "does not say how long the file is"),
    "endless": (endless, "does not say how long the file is"),
    "negative length": (answer(length=-5), "does not say how long the file is"),
    "a length that is no number": (b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\nx", "does not say how long"),
    "nothing": (answer(b""), "an empty file"),
    "mute": (lambda send: time.sleep(3), "0 bytes in 0.4 s, which is too slow|timed out"),
    "byte by byte": (
        dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n"),
        r"the server sent \d+ bytes in 0.4 s, which is too slow",
    ),
    "headers without end": (dripping(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"), "too slow|more than 100 headers"),
    "a header byte by byte": (dripping(b"HTTP/1.1 200 OK\r\nX: "), "too slow"),
    "100 Continue without end": (dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), "too slow"),
    "trailers without end": (
        dripping(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", b"a: b\r\n"),
        "too slow",
    ),
    "packed": (answer(bytes(99), more="Content-Encoding: gzip\r\n"), r"sent it packed \(gzip\)"),
    "no status": (b"garbage\r\n\r\n", "garbage"),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", "the server answered 204"),
    "a part that was not asked for": (
        answer(CONTENT[:100], "206 Partial Content", more="Content-Range: bytes 0-99/300000\r\n"),
        "another part of the file",
    ),
    "words to the terminal": (b"HTTP/1.1 404 \x1b[31mEvil\x07\r\nContent-Length: 0\r\n\r\n", r"404 \\x1b\[31mEvil"),
    "redirects in a circle": (b"HTTP/1.1 302 Found\r\nLocation: /x.pth\r\n\r\n", "redirects more than 5 times"),
    "redirect to a file": (b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n", "redirects to file: URLs"),
    "redirect to ftp": (b"HTTP/1.1 302 Found\r\nLocation: ftp://127.0.0.1:1/x\r\n\r\n", "redirects to ftp: URLs"),
    "redirect to nowhere": (b"HTTP/1.1 302 Found\r\n\r\n", "does not say where to"),
    "redirect to no URL": (b"HTTP/1.1 302 Found\r\nLocation: http://[::bad/x\r\n\r\n", "redirects to what is no URL"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_server_may_not_do(server: Server, case: str) -> None:
    server.scripts["/x.pth"], words = REFUSED[case]
    with pytest.raises(WeightsError, match=words) as caught:
        fetch(f"{server.url}/x.pth?token=SECRET", limits=QUICK)
    assert "SECRET" not in str(caught.value) and "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
    assert not any(p.suffix == ".pth" for p in cache_dir().iterdir())
    assert sum(p.stat().st_size for p in cache_dir().iterdir()) <= 1_000_000
    assert not [t for t in threading.enumerate() if t.name == "edgeres-download"]


def test_a_known_digest_stands_for_a_length_and_the_limit_still_holds(server: Server) -> None:
    server.scripts |= {"/x.pth": without_length, "/y.pth": endless}
    assert fetch(f"{server.url}/x.pth#sha256={SHA256}", limits=QUICK).read_bytes() == CONTENT
    with pytest.raises(WeightsError, match="goes on after"):
        fetch(f"{server.url}/y.pth#sha256={SHA256}", limits=QUICK)
    assert not [p for p in cache_dir().iterdir() if ".part" in p.name]


def test_the_time_for_all_of_it_is_limited(server: Server) -> None:
    server.scripts["/x.pth"] = dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n", bytes(500))
    with pytest.raises(WeightsError, match=r"it took longer than 0\.0167 minutes"):
        fetch(f"{server.url}/x.pth", limits=DownloadLimits(seconds=1.0, patience_s=0.4, rate=1000.0))


def test_the_body_of_a_redirect_is_not_read(server: Server) -> None:
    server.scripts["/x.pth"] = endless_redirect
    assert fetch(f"{server.url}/x.pth", limits=QUICK).read_bytes() == CONTENT


def test_a_wrong_length_is_a_cut(server: Server) -> None:
    server.scripts["/x.pth"] = answer(length=len(CONTENT) + 1)
    with pytest.raises(WeightsError, match="cut after 300,000 of 300,001 bytes"):
        fetch(f"{server.url}/x.pth", limits=QUICK)
    server.scripts["/x.pth"] = answer(length=len(CONTENT) - 1)
    with pytest.raises(WeightsError, match="is expected"):
        fetch(f"{server.url}/x.pth#sha256={SHA256}", limits=QUICK)
    assert nothing_is_left()


def test_a_rest_of_another_file_is_fetched_anew(server: Server) -> None:
    def cut(send: Send) -> None:
        send(answer(bytes(1000), length=300_000, more='ETag: "same"\r\n'))

    def rest(send: Send) -> None:
        start = b"bytes=1000-" in server.asked[-1]
        part = CONTENT[1000:] if start else CONTENT
        more = "Content-Range: bytes 1000-299999/300000\r\n" if start else ""
        send(answer(part, "206 Partial Content" if start else "200 OK", more=more))

    url = f"{server.url}/x.pth#sha256={SHA256}"
    server.scripts["/x.pth"] = cut
    with pytest.raises(WeightsError, match="cut after 1,000"):
        fetch(url, limits=QUICK)
    server.scripts["/x.pth"] = rest
    assert fetch(url, limits=QUICK).read_bytes() == CONTENT


@pytest.mark.parametrize("stated", ["", f"#sha256={SHA256[:8]}"])
def test_a_digest_that_nobody_stated_is_kept_and_said(server: Server, stated: str) -> None:
    progress = Lines()
    url = f"{server.url}/good{stated}"
    path = fetch(url, progress=progress, limits=QUICK)
    pin = path.with_name(path.name + ".sha256")
    assert pin.read_text() == f"{SHA256}  {path.name}\n"
    assert [SHA256 in line and "is kept" in line for line in progress.said] == [True]
    assert fetch(url, progress=progress, limits=QUICK) == path and len(progress.said) == 1

    path.unlink()
    server.scripts["/good"] = answer(b"changed")
    changed = hashlib.sha256(b"changed").hexdigest()
    with pytest.raises(WeightsError, match=f"SHA-256 is {changed} where {SHA256} is expected, as this URL gave it"):
        fetch(f"{server.url}/good", limits=QUICK)
    assert not path.exists() and pin.exists()
    assert fetch(f"{server.url}/good#sha256={changed}", limits=QUICK).read_bytes() == b"changed"
    assert fetch(f"{server.url}/good", limits=QUICK).read_bytes() == b"changed"


def test_a_cached_file_that_was_changed_is_fetched_again(server: Server) -> None:
    path = fetch(f"{server.url}/good", limits=QUICK)
    path.write_bytes(CONTENT[:-1] + b"!")
    assert fetch(f"{server.url}/good", limits=QUICK).read_bytes() == CONTENT


def test_a_damaged_pin_is_named(server: Server) -> None:
    path = fetch(f"{server.url}/good", limits=QUICK)
    path.with_name(path.name + ".sha256").write_bytes(b"\xff")
    with pytest.raises(WeightsError, match=r"\.sha256: holds no SHA-256; remove it"):
        fetch(f"{server.url}/good", limits=QUICK)


def test_a_colliding_short_digest_does_not_reach_another_url(server: Server, home: Path) -> None:
    """Eight digits can be forged: what one URL gave under them is not taken for another one's file."""
    name = f"net-{SHA256[:8]}.pth"
    server.scripts |= {f"/one/{name}": answer(), f"/two/{name}": answer(b"other")}
    fetch(f"{server.url}/one/{name}#sha256={SHA256[:8]}", limits=QUICK)
    with pytest.raises(WeightsError, match="is expected"):
        fetch(f"{server.url}/two/{name}#sha256={SHA256[:8]}", limits=QUICK)


def test_copies_elsewhere_are_taken_by_their_whole_digest(home: Path, server: Server) -> None:
    hub = home / "TORCH_HOME" / "hub" / "checkpoints" / f"net-{SHA256[:8]}.pth"
    blob, other = home / SHA256, home / ("0" * 64)
    hub.parent.mkdir(parents=True)
    for path in (hub, blob, other):
        path.write_bytes(CONTENT)
    link = home / "model.safetensors"
    link.symlink_to(other)
    server.scripts[f"/{hub.name}"] = answer()
    assert fetch(f"{server.url}/{hub.name}", SHA256[:8], limits=QUICK).parent == cache_dir()
    assert fetch(f"{server.url}/{hub.name}", SHA256[:8], limits=QUICK, copies=(link,)).parent == cache_dir()
    link.unlink()
    link.symlink_to(blob)
    progress = Lines()
    assert fetch("http://127.0.0.1:9/m", progress=progress, copies=(link,)) == link
    assert fetch("http://127.0.0.1:9/m", progress=progress, copies=(link,)) == link
    assert len(progress.said) == 1 and SHA256 in progress.said[0]
    blob.write_bytes(b"changed")
    with pytest.raises(WeightsError, match="cannot be fetched"):
        fetch("http://127.0.0.1:9/m", copies=(link,), limits=QUICK)


@pytest.mark.parametrize(
    "name", ["a" * 5000, "..%2f..%2fetc%2fx", "\u2603.pth", ".hidden", "a%00b", "x" * 300 + ".pth", ""]
)
def test_odd_names_stay_in_the_cache(server: Server, name: str) -> None:
    server.scripts = dict.fromkeys((f"/d/{name}",), answer())
    if not name.isascii():
        with pytest.raises(WeightsError, match="cannot be fetched"):
            fetch(f"{server.url}/d/{name}", limits=QUICK)
        return
    path = fetch(f"{server.url}/d/{name}", limits=QUICK)
    assert path.parent == cache_dir() and path.read_bytes() == CONTENT and len(path.name) < 200


def test_the_query_is_in_no_name_and_no_line(server: Server) -> None:
    progress = Lines()
    path = fetch(f"{server.url}/good?X-Amz-Signature=SECRET", progress=progress, limits=QUICK)
    names = [p.name for p in cache_dir().iterdir()]
    assert path.exists() and "SECRET" not in " ".join([*names, *progress.said])
    server.scripts["/good"] = b"HTTP/1.1 302 Found\r\nLocation: /x\r\ny?sig=SECRET\r\n\r\n"
    with pytest.raises(WeightsError) as caught:
        fetch(f"{server.url}/good?other", limits=QUICK)
    assert "SECRET" not in str(caught.value)


def test_an_error_keeps_the_digest_that_was_stated() -> None:
    assert without_secrets("http://h/a.th?k=v#sha256=12fc: is short") == "http://h/a.th?...#sha256=12fc: is short"
    assert "SECRET" not in without_secrets("http://h/a.th#sha256=SECRET: is short")


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A key and a certificate for 127.0.0.1, which this process trusts."""
    key, pem = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(pem)]
    command += ["-days", "1", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)
    return context


def test_https_is_checked_and_not_left_for_http(server: Server, certificate: ssl.SSLContext) -> None:
    with Server() as secure:
        secure.socket = certificate.wrap_socket(secure.socket, server_side=True)
        threading.Thread(target=secure.serve_forever, args=(0.01,), daemon=True).start()
        url = secure.url.replace("http:", "https:")
        secure.scripts["/down"] = f"HTTP/1.1 302 Found\r\nLocation: {server.url}/good?sig=SECRET\r\n\r\n".encode()
        secure.scripts["/slow"] = dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n")
        server.scripts["/up"] = f"HTTP/1.1 302 Found\r\nLocation: {url}/good\r\n\r\n".encode()
        assert fetch(f"{url}/good", limits=QUICK).read_bytes() == CONTENT
        assert fetch(f"{server.url}/up", limits=QUICK).read_bytes() == CONTENT
        with pytest.raises(WeightsError, match="redirects from https to http://127") as caught:
            fetch(f"{url}/down", limits=QUICK)
        assert "SECRET" not in str(caught.value) and len(server.asked) == 1
        with pytest.raises(WeightsError, match="too slow"):
            fetch(f"{url}/slow", limits=QUICK)
        os.environ["SSL_CERT_FILE"] = os.devnull
        with pytest.raises(WeightsError, match=r"certificate|CERTIFICATE"):
            fetch(f"{url}/again#sha256={SHA256}", limits=QUICK)
        secure.shutdown()


def test_a_handshake_that_never_ends_is_cut() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(WeightsError, match=r"too slow|timed out"):
        fetch(f"https://127.0.0.1:{listener.getsockname()[1]}/x", limits=QUICK)


def test_the_limit_of_a_tag_fits_its_network() -> None:
    for model in list_models():
        size = 4 * model.architecture.size.params
        assert size * 8 < limits_for(model.architecture.size.params).size_bytes <= max(16 * size, 128 << 20)
