"""A pipe or a device in the place of any file is named as that, by every command, and opened by none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import workshop
from bundles import write_bundle
from click.testing import CliRunner

from edgeres.cli import cli
from edgeres.cli.config import read_config
from edgeres.errors import EdgeresError, EnvironmentError_, ModelError, reading, temporary_space
from edgeres.files import write_file
from edgeres.report.markdown import _cell

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
COMMANDS = {
    "model": ["quantize", "PIPE.onnx", *workshop.SIGNS, "-o", "q.onnx"],
    "inspected": ["inspect", "PIPE"],
    "bundle": ["predict", "PIPE", "a.png"],
    "bundle, verified": ["verify", "PIPE", "--validation", "signs:8"],
    "compared": ["compare", "PIPE", "b.edgeres"],
    "ranges": ["quantize", "net.onnx", "--calibration-file", "PIPE", "-o", "q.onnx"],
    "imported": ["calibrate", "net.onnx", "--import", "PIPE", "-o", "c.json"],
    "merged": ["calibrate", "--merge", "PIPE", "-o", "c.json"],
    "exported": ["calibrate", "PIPE", "--export", "trt-cache", "-o", "t.cache"],
    "baseline": ["baseline", "check", "--baseline", "PIPE"],
    "accepted": ["baseline", "accept", "PIPE", "-o", "k.json"],
    "images": ["calibrate", "net.onnx", "--calibration", "PIPE", "-o", "c.json"],
    "an image": ["predict", "b.edgeres", "PIPE"],
    "labels": ["quantize", "net.onnx", "--labels", "PIPE", *workshop.SIGNS, "-o", "q.onnx"],
    "output": ["calibrate", "net.onnx", *workshop.SIGNS, "-o", "PIPE"],
    "output, text": ["verify", "b.edgeres", "--validation", "signs:8", "--markdown", "PIPE"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("special")
    (path / "net.onnx").write_bytes(workshop.network())
    (path / "a.png").write_bytes(workshop.image("PNG"))
    write_bundle(path / "b.edgeres")
    os.mkfifo(path / "pipe")
    (path / "pipe.onnx").symlink_to("pipe")
    (path / "device.onnx").symlink_to("/dev/zero")
    (path / "device").symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize(("place", "words"), [("pipe", "is a named pipe"), ("device", "is a device")])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_pipe_and_a_device_are_named(
    name: str, place: str, words: str, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(folder)
    arguments = [argument.replace("PIPE", place) for argument in COMMANDS[name]]
    ran = CliRunner().invoke(cli, arguments)
    assert isinstance(ran.exception, EdgeresError | OSError), ran.output
    assert words in str(ran.exception)


@pytest.mark.parametrize("command", ["verify-signature b.edgeres", "predict b.edgeres a.png", "engine b.edgeres"])
def test_a_pipe_of_trusted_keys_is_named(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    ran = CliRunner().invoke(cli, [*command.split(), "--trust", "pipe"])
    assert "pipe: cannot be read (is a named pipe" in str(ran.exception)


def test_a_file_takes_no_place_of_the_system(tmp_path: Path) -> None:
    """As root, a rename would put it there."""
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", Path("/dev/null"), Path("/dev/no-such-name")):
        with pytest.raises(OSError, match="not a file"):
            write_file(place, b"x")
    assert (tmp_path / "pipe").is_fifo()
    assert not Path("/dev/no-such-name").exists()
    assert Path("/dev/null").is_char_device()


def test_a_manifest_that_is_a_pipe_is_named(tmp_path: Path) -> None:
    write_bundle(tmp_path / "b.edgeres")
    (tmp_path / "b.edgeres" / "manifest.json").unlink()
    os.mkfifo(tmp_path / "b.edgeres" / "manifest.json")
    ran = CliRunner().invoke(cli, ["inspect", str(tmp_path / "b.edgeres")])
    assert "manifest.json: is a named pipe" in str(ran.exception)


def test_a_pipe_does_not_switch_the_gates_off(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pyproject.toml")
    with pytest.raises(EdgeresError, match=r"pyproject\.toml: cannot be read \(is a named pipe"):
        read_config(tmp_path)


def test_a_key_of_thousands_of_parts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_bytes(b"[tool.edgeres" + b".a" * 400_000 + b"]\n")
    with pytest.raises(EdgeresError, match="a line has more than 500 dots"):
        read_config(tmp_path)


@pytest.mark.parametrize("text", ["https://evil.example", "www.evil.example", "GH-12", "$x^2$", "evil/repo#1", "@all"])
def test_no_text_becomes_a_link_or_a_formula(text: str) -> None:
    assert text not in _cell(text)
    assert "".join(_cell(text).split("\\")).replace("\u200b", "") == text


def test_a_full_disk_is_named_where_a_library_names_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> None:
        with temporary_space(tmp_path / "scratch"), reading("net.onnx", "cannot be loaded", error=ModelError):
            raise RuntimeError("Protobuf serialization failed.")

    (tmp_path / "scratch").mkdir()
    with pytest.raises(ModelError, match="serialization failed"):
        failing()
    monkeypatch.setattr("shutil.disk_usage", lambda folder: shutil._ntuple_diskusage(2 << 20, 2 << 20, 0))
    with pytest.raises(
        EnvironmentError_, match=rf"^{tmp_path}: No space left on device; free some space, or set TMPDIR"
    ):
        failing()


@pytest.mark.parametrize("said", ["std::bad_alloc", "Failed to allocate memory for requested buffer of size 9"])
def test_a_library_without_memory_is_named_as_that(said: str) -> None:
    with pytest.raises(EnvironmentError_, match=r"^net\.onnx: there is not enough memory"), reading("net.onnx"):
        raise RuntimeError(said)
