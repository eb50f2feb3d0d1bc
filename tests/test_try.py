"""The page of ``edgeres try``: what it answers, whom it refuses, and how it works in a browser."""

from __future__ import annotations

import base64
import http.client
import io
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import onnx
import onnxruntime
import pytest
from browser import browser, needs_browser
from bundles import CLASSES, SIDE, classifier, spec, write_bundle
from click.testing import CliRunner
from PIL import Image

from edgeres.bundle import FP32
from edgeres.cli import cli
from edgeres.graph.forms import FORMS
from edgeres.live.server import MOST_BYTES, TryServer
from edgeres.live.side_by_side import SideBySide

NETWORKS = {"fp32": classifier(seed=1), "int8": classifier(seed=2)}
FILES = {FP32: NETWORKS["fp32"], FORMS["cpu"].file: NETWORKS["int8"]}
BYTES = {"Content-Type": "application/octet-stream"}


def picture(seed: int = 0, kind: str = "PNG", side: int = SIDE) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("try") / "tiny.edgeres", files=FILES)


@pytest.fixture
def server(bundle: Path) -> Iterator[TryServer]:
    with SideBySide(bundle) as pair, TryServer(pair, 0) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.02,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def ask(
    server: TryServer, method: str = "GET", path: str | None = None, **more: Any
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request(method, server.home if path is None else path, **more)
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


def classify(server: TryServer, content: bytes, **headers: str) -> tuple[int, Any]:
    status, _, body = ask(server, "POST", f"{server.home}classify", body=content, headers={**BYTES, **headers})
    return status, json.loads(body)


def test_the_answers_are_those_of_onnx_runtime(server: TryServer) -> None:
    content = picture()
    status, answer = classify(server, content)
    assert status == 200
    p = spec().preprocess
    pixels = np.asarray(Image.open(io.BytesIO(content)), np.float32) / 255
    feed = ((pixels - np.array(p.mean, np.float32)) / np.array(p.std, np.float32)).transpose(2, 0, 1)[None]
    for key, graph in NETWORKS.items():
        (scores,) = onnxruntime.InferenceSession(graph).run(None, {"pixels": feed.astype(np.float32)})
        powers = np.exp(scores[0] - scores[0].max())
        by_label = dict(zip(CLASSES, powers / powers.sum(), strict=True))
        best = sorted(by_label, key=lambda label: -by_label[label])[:5]
        assert [one["label"] for one in answer[key]["top"]] == best
        assert [one["score"] for one in answer[key]["top"]] == pytest.approx([by_label[b] for b in best], abs=1e-4)
        assert answer[key]["ms"] > 0
    assert answer["same"] == (answer["fp32"]["top"][0]["label"] == answer["int8"]["top"][0]["label"])
    assert (server.images, server.same) == (1, int(answer["same"]))


def test_the_small_picture_has_the_colours_of_the_photograph(tmp_path: Path) -> None:
    """Also where the network takes BGR."""
    red = io.BytesIO()
    Image.new("RGB", (64, 64), (250, 5, 5)).save(red, "PNG")
    made = write_bundle(tmp_path / "bgr.edgeres", spec(channel_order="BGR"), FILES)
    with SideBySide(made) as pair:
        seen = Image.open(io.BytesIO(base64.b64decode(pair.answer(red.getvalue())["seen"])))
    r, _, b = seen.resize((1, 1)).getpixel((0, 0))  # type: ignore[misc]
    assert r > 200 > 60 > b


OTHERS = {
    "no token": ("GET", "/", {}),
    "another token": ("GET", "/AAAAAAAAAAAAAAAAAAAAAA/", {}),
    "another file": ("GET", "{home}server.py", {}),
    "a path upwards": ("GET", "{home}../../../etc/passwd", {}),
    "a rebound name": ("GET", "{home}", {"Host": "evil.example:{port}"}),
    "a name that begins alike": ("GET", "{home}", {"Host": "127.0.0.1.evil.example:{port}"}),
    "a name with a user": ("GET", "{home}", {"Host": "127.0.0.1:{port}@evil.example"}),
    "no name": ("GET", "{home}", {"Host": ""}),
    "a page of another origin": ("GET", "{home}", {"Origin": "http://evil.example"}),
    "a local page on another port": ("POST", "{home}classify", {"Origin": "http://127.0.0.1:3000"}),
    "a sandboxed page": ("POST", "{home}classify", {"Origin": "null"}),
    "a form": ("POST", "{home}classify", {"Content-Type": "text/plain"}),
    "another site by the browser's word": ("POST", "{home}classify", {"Sec-Fetch-Site": "same-site"}),
    "a post without token": ("POST", "/classify", {}),
    "a preflight": ("OPTIONS", "{home}classify", {"Origin": "http://evil.example"}),
    "another method": ("PUT", "{home}classify", {}),
}


@pytest.mark.parametrize("who", OTHERS)
def test_others_are_refused_before_anything_is_classified(who: str, server: TryServer) -> None:
    method, path, changes = OTHERS[who]
    words = {"home": server.home, "port": server.server_port}
    headers = {**BYTES, **{key: value.format(**words) for key, value in changes.items()}}
    body = picture() if method != "GET" else None
    status, told, content = ask(server, method, path.format(**words), body=body, headers=headers)
    assert status in (403, 404, 415, 501)
    assert "Access-Control-Allow-Origin" not in told
    assert told["Content-Security-Policy"].startswith("default-src 'none'")
    assert server.home.strip("/") not in content.decode() and server.images == 0


def test_this_machine_s_names_are_taken(server: TryServer) -> None:
    """Whatever the port in them: it may have been forwarded."""
    for host in ("127.0.0.1:9000", f"localhost:{server.server_port}", "localhost"):
        assert ask(server, headers={"Host": host})[0] == 200
        assert classify(server, picture(), Host=host, Origin=f"http://{host}")[0] == 200


HEAD = "POST {home}classify HTTP/1.1\nHost: localhost\nContent-Type: application/octet-stream"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (HEAD, 411),
        (f"{HEAD}\nContent-Length: -1", 411),
        (f"{HEAD}\nContent-Length: ٣", 411),
        (f"{HEAD}\nContent-Length: 3\nContent-Length: 4", 411),
        (f"{HEAD}\nContent-Length: 3\nTransfer-Encoding: chunked", 411),
        (f"{HEAD}\nContent-Length: {MOST_BYTES + 1}", 413),
        (f"{HEAD}\nContent-Length: {'9' * 5000}", 413),
        ("GET {home} HTTP/1.1\nHost: localhost\nHost: evil.example", 403),
        ("GET {home} HTTP/1.1", 403),
        ("GET http://evil.example{home} HTTP/1.1\nHost: localhost", 404),
        ("GET {home} HTTP/9.9\nHost: localhost", 505),
        ("\x00\x01\x02", 400),
    ],
)
def test_requests_that_are_not_as_they_should_be(request_: str, status: int, server: TryServer) -> None:
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as connection:
        head = request_.format(home=server.home).replace("\n", "\r\n")
        connection.sendall(head.encode() + b"\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        found = b""
        while block := connection.recv(1 << 16):
            found += block
    assert f" {status} ".encode() in found.splitlines()[0]
    assert server.images == 0


def test_a_file_that_is_too_large_is_refused_and_its_sender_reads_why(server: TryServer) -> None:
    status, answer = classify(server, bytes(MOST_BYTES + 1))
    assert (status, server.images) == (413, 0)
    assert answer["error"] == "the file has 33.6 MB, at most 33.6 MB are taken"


def bomb(px: int = 60_000) -> bytes:
    """A small PNG that claims 3.6 billion pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">LLBBBBB", px, px, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "content",
    [b"", b"no image", picture(kind="JPEG", side=64)[:300], bomb(), b"<svg xmlns='http://www.w3.org/2000/svg'/>"],
    ids=["empty", "text", "cut off", "a bomb", "SVG"],
)
def test_what_is_no_image_gets_one_line(content: bytes, server: TryServer) -> None:
    status, answer = classify(server, content)
    assert status == 422 and answer.keys() == {"error"}
    assert 10 < len(answer["error"]) < 300 and "\n" not in answer["error"]
    assert classify(server, picture())[0] == 200  # it goes on


def test_a_network_that_gives_no_numbers_is_told(tmp_path: Path) -> None:
    model = onnx.load_from_string(classifier(seed=1))
    bias = next(one for one in model.graph.initializer if one.name == "fc_b")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(len(CLASSES), np.nan, np.float32), "fc_b"))
    made = write_bundle(tmp_path / "nan.edgeres", files={**FILES, FORMS["cpu"].file: model.SerializeToString()})
    with SideBySide(made) as pair, pytest.raises(Exception, match="gives no numbers for this image"):
        pair.answer(picture())


def test_one_image_at_a_time(server: TryServer) -> None:
    inside, most = 0, 0
    own = server.pair._int8
    lock = threading.Lock()

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(own, name)

        def infer(self, feed: Any) -> Any:
            nonlocal inside, most
            with lock:
                inside += 1
                most = max(most, inside)
            threading.Event().wait(0.02)
            with lock:
                inside -= 1
            return own.infer(feed)

    server.pair._int8 = Watched()  # type: ignore[assignment]
    threads = [threading.Thread(target=classify, args=(server, picture(seed))) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, server.images) == (1, 6)


def test_idle_connections_do_not_pile_up(server: TryServer) -> None:
    """Another page can open connections, though it gets no answer: from the 17th on they are closed at once."""
    idle = [socket.create_connection(("127.0.0.1", server.server_port), timeout=20) for _ in range(17)]
    assert idle[-1].recv(1) == b""
    for connection in idle:
        connection.close()
    for _ in range(200):
        try:
            assert ask(server)[0] == 200
            break
        except OSError:
            threading.Event().wait(0.02)
    else:
        pytest.fail("it does not answer any more")


def test_nothing_comes_from_elsewhere(server: TryServer) -> None:
    status, told, page = ask(server)
    assert status == 200 and told["Referrer-Policy"] == "no-referrer" and told["Cache-Control"] == "no-store"
    parts = [page, *(ask(server, path=f"{server.home}{name}")[2] for name in ("try.js", "try.css"))]
    assert all(len(part) > 500 for part in parts)
    assert set(re.findall(rb'(?:src|href|srcset|action)="(.*?)"', page)) == {b"data:,", b"try.css", b"try.js"}
    assert not any(word in part for part in parts for word in (b"http", b"url(", b"@import", b"import("))


def test_words_of_others_are_no_markup(tmp_path: Path) -> None:
    made = write_bundle(tmp_path / "b.edgeres", replace(spec(), name="<b>&$name\u202e"), FILES)
    with SideBySide(made) as pair, TryServer(pair, 0) as server:
        page = server.content[""].body.decode()
    assert "Try &lt;b&gt;&amp;$name\\u202e" in page and "<b>&" not in page


def test_a_bundle_without_fp32_gets_one_line(tmp_path: Path) -> None:
    made = write_bundle(tmp_path / "int8.edgeres")
    with pytest.raises(Exception, match=r"the bundle has no model.fp32.onnx; edgeres predict classifies without it"):
        SideBySide(made)


def test_a_port_in_use_gets_one_line(bundle: Path, server: TryServer) -> None:
    done = CliRunner().invoke(cli, ["try", str(bundle), "--port", str(server.server_port)])
    said = f"port {server.server_port} is in use; give another one by --port, or --port 0 for any that is free"
    assert str(done.exception) == said


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it_cleanly(bundle: Path, number: signal.Signals) -> None:
    # A program that was started in the background inherits that Ctrl-C is ignored.
    code = "import signal; signal.signal(2, signal.default_int_handler); from edgeres.cli import main; main()"
    command = [sys.executable, "-c", code, "try", str(bundle), "--port", "0", "--json"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
        ExitStack() as stack,
    ):
        stack.callback(process.kill)
        assert process.stdout is not None and process.stderr is not None
        lines = iter(process.stdout.readline, "")
        told = ""
        for line in lines:
            told += line
            if line == "}\n":
                break
        url = urlsplit(json.loads(told)["url"])
        connection = http.client.HTTPConnection("127.0.0.1", url.port or 0, timeout=20)
        connection.request("POST", f"{url.path}classify", body=picture(), headers=BYTES)
        assert connection.getresponse().status == 200
        process.send_signal(number)
        assert process.wait(timeout=30) == 0
        assert process.stderr.read().startswith("ended: 1 image, the same class for ")


class Elsewhere(BaseHTTPRequestHandler):
    """Another local page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>elsewhere</title>")

    def log_message(self, format: str, *args: object) -> None:
        pass


@needs_browser
def test_the_page_in_a_browser(server: TryServer, tmp_path: Path) -> None:
    """Photographs and the camera, on a desk and on a phone, light and dark; another page gets nothing."""
    photos = [tmp_path / "a <b>.png", tmp_path / "b.jpg", tmp_path / "notes.png"]
    for path, content in zip(photos, (picture(1), picture(2, "JPEG"), b"no image"), strict=True):
        path.write_bytes(content)
    fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    with browser(tmp_path / "profile") as tab:
        for px, dark, ground in ((1100, False, "rgb(244, 245, 247)"), (390, True, "rgb(16, 19, 23)")):
            tab.show(px, dark=dark)
            tab.open(server.url)
            assert tab.run("getComputedStyle(document.body).backgroundColor") == ground
            tab.choose("#files", *photos)
            tab.wait_for("document.getElementById('status').textContent.startsWith('2 images classified.')")
            assert "notes.png: " in tab.run("document.getElementById('status').textContent")
            assert tab.run("[...document.querySelectorAll('.answer h2')].map(h => h.firstChild.textContent)") == [
                "b.jpg: ",
                "a <b>.png: ",
            ]
            rows = "[...document.querySelectorAll('.answer:last-child .int8 li span')].map(l => l.textContent)"
            direct = classify(server, picture(1))[1]["int8"]["top"]
            assert tab.run(rows) == [one["label"] for one in direct]
            tab.run("document.getElementById('camera').click()")
            tab.wait_for("document.querySelector('#live-answer .answer')")
            assert tab.run(fits)
            tab.run("document.getElementById('camera').click()")
            tab.wait_for("document.getElementById('live').hidden")
        # the refusal of notes.png is what the browser notes, and nothing else
        assert [one for one in tab.complaints if "422" not in one] == []
        count = server.images
        with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as other:  # browsers connect ahead and say nothing
            thread = threading.Thread(target=other.serve_forever, args=(0.02,))
            thread.start()
            tab.open(f"http://127.0.0.1:{other.server_port}/")
            for mode in ("cors", "no-cors"):
                post = f"fetch('{server.url}classify', {{method: 'POST', body: 'x', mode: '{mode}'}})"
                tab.run(f"{post}.then(r => r.type, e => e.name)")
            tab.run(
                f"fetch('{server.url}classify', {{method: 'POST', body: 'x', "
                "headers: {'Content-Type': 'application/octet-stream'}}).then(r => r.status, e => e.name)"
            )
            other.shutdown()
            thread.join()
        assert server.images == count
