"""What people publish holds no secret of a URL and no home folder."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from bundles import write_images
from hypothesis import given
from hypothesis import strategies as st

import edgeres
from edgeres.errors import WeightsError
from edgeres.words import public, shown_argument, shown_path, without, without_secrets
from edgeres.zoo.download import fetch
from edgeres.zoo.resnet import create

SECRET = "TOPSECRET"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"https://h/a.th?X-Amz-Signature={SECRET}", "https://h/a.th?..."),
        (f"https://me:{SECRET}@h:8/a.th", "https://h:8/a.th"),
        (f"https://{SECRET}@h/a.th: not found", "https://h/a.th: not found"),
        (f"https://h/a?x='{SECRET}", "https://h/a?..."),
        (f"see 'https://h/a?x={SECRET}&y=1', then ftp://u:{SECRET}@i/b", "see 'https://h/a?...', then ftp://i/b"),
        (f"https://h/a#token={SECRET}", "https://h/a"),
        (f"https://h/a?t={SECRET}#sha256={'0' * 64}", f"https://h/a?...#sha256={'0' * 64}"),
        ("https://h/pkg@1.2/a.th", "https://h/pkg@1.2/a.th"),
        ("what? no: a//b", "what? no: a//b"),
    ],
)
def test_urls_have_no_secrets(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


@given(st.text(st.characters(codec="ascii", exclude_characters="#\n\r\t "), min_size=3).map(lambda t: f"S3CR3T{t}"))
def test_no_query_gets_through(query: str) -> None:
    assert "S3CR3T" not in without_secrets(f"https://host/file.th?sig={query}")


def test_a_message_on_a_url_has_none_of_its_secrets() -> None:
    url = f"http://me:{SECRET}@host:1/a?sig=ALSOSECRET&x=1"
    said = f"nonnumeric port: '{SECRET}@host:1'; '/a?sig=ALSOSECRET&x=1' has control characters"
    assert "SECRET" not in without(said, url)
    assert "has control characters" in without(said, url)


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{SECRET}@127.0.0.1:9/x.th",
        f"http://127.0.0.1:9/x.th?sig={SECRET}",
        f"http://127.0.0.1:9/x y.th?sig={SECRET}",
        f"http://127.0.0.1:99999/x?sig={SECRET}",
        f"http://user:{SECRET}@[::1/x",
        f"http://user:{SECRET}\u2100@h/x",
        f"ftp://user:{SECRET}@h/x?{SECRET}",
        f"http://127.0.0.1:9/x#sha256={SECRET}",
    ],
)
def test_errors_of_downloads_have_no_secrets(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGERES_CACHE", str(tmp_path))
    with pytest.raises(WeightsError) as caught:
        fetch(url)
    assert SECRET not in str(caught.value)
    assert SECRET not in str(caught.value.where)


def test_paths_are_relative_or_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here := tmp_path / "alice" / "project").mkdir(parents=True)
    monkeypatch.chdir(here)
    assert shown_path(here / "data" / "val") == "data/val"
    assert shown_path(tmp_path / "alice" / "other" / "val.npz") == "val.npz"
    assert shown_path("../val") == "../val"
    assert shown_argument(f"--validation={here}/val") == "--validation=val"
    assert shown_argument(f"-o{tmp_path}/alice/x") == "-ox"
    assert shown_argument(f"https://h/a?{SECRET}") == "https://h/a?..."
    monkeypatch.setenv("HOME", str(tmp_path / "alice"))
    said = {"reasons": [f"{here}/m.onnx: no", f"see {tmp_path}/alice/x", "/m/0123", 5, None]}
    assert public(said) == {"reasons": ["m.onnx: no", "see ~/x", "/m/0123", 5, None]}


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_nothing_that_a_build_writes_or_prints_tells_of_its_builder(tmp_path: Path) -> None:
    (here := tmp_path / "home" / "alice" / "secret-project").mkdir(parents=True)
    (served := tmp_path / "served").mkdir()
    torch.manual_seed(0)
    torch.save(create("resnet20", 10).state_dict(), served / "w.th")
    write_images(tmp_path / "home" / "alice" / "images.npz", count=10, px=32, classes=10)
    program = (
        "import sys, functools; from edgeres.verify import measure\n"
        "brief = dict(warmup_seconds=0.0, min_seconds=0.01, block_seconds=0.001)\n"
        "measure.LatencyPlan = functools.partial(measure.LatencyPlan, **brief)\n"
        "from edgeres.cli import main; main()"
    )
    images = str(tmp_path / "home" / "alice" / "images.npz")

    def run(*words: str) -> str:
        environment = {
            "PYTHONPATH": str(Path(edgeres.__file__).parents[1]),
            "HOME": str(here.parent),
            "PATH": "/usr/bin",
        }
        argv = [sys.executable, "-c", program, *words]
        done = subprocess.run(argv, cwd=here, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1), done.stderr
        return done.stdout + done.stderr

    with serving(served) as host:
        url = f"http://{host}/w.th?X-Amz-Signature={SECRET}"
        said = run(
            *("build", "--model", "resnet20", "--weights", url, "--calibration", images, "--validation", images),
            *("--calibration-size", "8", "--effort", "fast", "--target", "cpu", "--max-drop", "off", "-o", "x.edgeres"),
        )
    said += run(
        "verify", "x.edgeres", "--validation", images, "-o", str(here / "v"), "--markdown", "m.md", "--junit", "j.xml"
    )
    run("baseline", "accept", "x.edgeres", "-o", "baseline.json")
    written = [path for path in here.rglob("*") if path.is_file() and ".cache" not in path.parts]
    assert {"manifest.json", "report.html", "baseline.json", "m.md", "j.xml"} <= {path.name for path in written}
    for path in written:
        for secret in (SECRET.encode(), b"alice"):
            assert secret not in path.read_bytes(), path.name
    assert SECRET not in said
    assert json.loads((here / "x.edgeres" / "report.json").read_text())["options"]["validation"] == "images.npz"
