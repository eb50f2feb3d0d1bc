"""Names in manifests, graphs and answers of other machines lead nowhere outside of their folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import classifier, write_bundle
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgeres.bundle import MANIFEST, Bundle
from edgeres.documents import digest
from edgeres.errors import BundleError, EdgeresError, ModelError
from edgeres.files import is_inside, open_below, remove_below, write_below
from edgeres.graph.normalize import load_onnx
from edgeres.records import EngineRecord

BAD = (
    "../victim.txt",
    "engines/../../victim.txt",
    "/etc/passwd",
    "//etc/passwd",
    "engines//a.engine",
    "./a.engine",
    "engines/.",
    "..",
    "",
    "engines\\..\\..\\victim.txt",
    "C:/victim.txt",
    "C:victim.txt",
    "a\0b",
    "a\nb",
    "a\x1b]0;title\x07",
    "a\u202etxt.engine",
    "a\u2066b",
    "a" * 256,
    "é" * 128,
    "/".join("a" * 200 for _ in range(6)),
    "/".join("a" * 17),
    "\ud800",
)


def resealed(path: Path, **changes: object) -> Path:
    """Change a manifest, and its digest with it, as an attacker does."""
    data = {key: value for key, value in json.loads((path / MANIFEST).read_text()).items() if key != "digest"}
    data |= changes
    (path / MANIFEST).write_text(json.dumps({**data, "digest": digest(data)}))
    return path


def record(file: str) -> dict[str, object]:
    made = EngineRecord("rtx", "rtx", "1", "int8", "built", "engines/a.engine", 3).to_dict()
    return {**made, "file": file}


@pytest.mark.parametrize("name", BAD)
def test_names_that_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "victim.txt").write_text("precious")
    assert not is_inside(name)
    for touch in (open_below, remove_below, lambda folder, name: write_below(folder, name, b"x")):
        with pytest.raises(OSError, match="no name of a file"):
            touch(folder, name)
    assert (tmp_path / "victim.txt").read_text() == "precious"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", [*BAD, "model.fp32.onnx", "manifest.json", "labels.txt", "engines/a.log"])
def test_a_manifest_cannot_name_an_engine_outside_of_engines(name: str, tmp_path: Path) -> None:
    (tmp_path / "victim.txt").write_text("precious")
    path = write_bundle(tmp_path / "x.edgeres")
    files = json.loads((path / MANIFEST).read_text())["files"]
    resealed(path, engines=[record(name)], files={**files, name: "0" * 64})
    with pytest.raises(BundleError) as caught:
        Bundle(path)
    assert str(caught.value).isprintable()
    assert (tmp_path / "victim.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("a.txt", "A.TXT"), "differ in case alone"),
        (("stra\u00dfe", "STRASSE"), "differ in case alone"),
        (("e\u0301", "\u00e9"), "differ in case alone"),
        (("a", "a/b"), "named as folders of others"),
        (("manifest.json",), "must not name the manifest"),
    ],
)
def test_names_that_collide_are_refused(names: tuple[str, ...], words: str, tmp_path: Path) -> None:
    path = resealed(write_bundle(tmp_path / "x.edgeres"), files=dict.fromkeys(names, "0" * 64))
    with pytest.raises(BundleError, match=words):
        Bundle(path)


def linked_file(path: Path, outside: Path) -> None:
    (path / "engines" / "a.engine").rename(outside / "a.engine")
    (path / "engines" / "a.engine").symlink_to(outside / "a.engine")


def linked_folder(path: Path, outside: Path) -> None:
    (path / "engines" / "a.engine").rename(outside / "a.engine")
    (path / "engines").rmdir()
    (path / "engines").symlink_to("../outside")


@pytest.mark.parametrize("link", [linked_file, linked_folder])
def test_links_in_a_bundle_are_not_followed(link: Callable[[Path, Path], None], tmp_path: Path) -> None:
    made = EngineRecord("rtx", "rtx", "1", "int8", "built", "engines/a.engine", 3)
    path = write_bundle(tmp_path / "x.edgeres")
    Bundle(path).add_engines({made: b"abc"})
    (outside := tmp_path / "outside").mkdir()
    link(path, outside)
    with pytest.raises(BundleError, match="is a link or lies behind one"):
        Bundle(path).file("engines/a.engine")
    newer = EngineRecord("rtx", "rtx", "2", "int8", "built", "engines/b.engine", 3)
    try:
        Bundle(path).add_engines({newer: b"new"})
    except EdgeresError as error:
        assert "link" in str(error)
    assert {p.name: p.read_bytes() for p in outside.iterdir()} == {"a.engine": b"abc"}


def test_a_link_to_a_whole_bundle_is_the_users_own_word(tmp_path: Path) -> None:
    write_bundle(tmp_path / "x.edgeres")
    (tmp_path / "current").symlink_to("x.edgeres")
    Bundle(tmp_path / "current").check()


def test_devices_and_pipes_are_no_files_of_a_bundle(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "x.edgeres", files={"labels.txt": b"ant\n"})
    (path / "labels.txt").unlink()
    os.mkfifo(path / "labels.txt")
    with pytest.raises(BundleError, match=r"labels\.txt is no regular file"):
        Bundle(path).file("labels.txt")


def with_external(location: str, *, offset: int = 0, length: int = 16) -> bytes:
    """x + w, with w in another file."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        weight.external_data.add(key=key, value=value)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A folder for a graph: weights in it, others outside, and links to these."""
    values = np.arange(4, dtype=np.float32).tobytes()
    (folder := tmp_path / "model").mkdir()
    (tmp_path / "secret.bin").write_bytes(values)
    (folder / "w.bin").write_bytes(bytes(8) + values)
    (folder / "link.bin").symlink_to("../secret.bin")
    (folder / "up").symlink_to("..")
    return folder


@pytest.mark.parametrize(
    "location", ["../secret.bin", "/dev/zero", "link.bin", "up/secret.bin", "w.bin/../../secret.bin", "none.bin"]
)
def test_a_graph_takes_weights_from_its_own_folder_only(location: str, beside: Path) -> None:
    (beside / "m.onnx").write_bytes(with_external(location))
    with pytest.raises(ModelError, match="not a valid ONNX file") as caught:
        load_onnx(beside / "m.onnx")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("location", ["w.bin", "./w.bin"])
def test_weights_beside_a_graph_are_read(location: str, beside: Path) -> None:
    (beside / "m.onnx").write_bytes(with_external(location, offset=8))
    read = load_onnx(beside / "m.onnx").graph.initializer[0]
    assert onnx.numpy_helper.to_array(read).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("offset", "length"), [(-8, 16), (16, 16), (0, 1 << 40), (1 << 62, 16)])
def test_weights_that_are_not_in_their_file_are_refused(offset: int, length: int, beside: Path) -> None:
    (beside / "m.onnx").write_bytes(with_external("w.bin", offset=offset, length=length))
    with pytest.raises(ModelError, match=r"w\.bin has 24 bytes"):
        load_onnx(beside / "m.onnx")


def test_a_bundles_graph_takes_no_weights_from_outside(tmp_path: Path) -> None:
    """Older versions of ONNX Runtime follow such a name wherever it leads."""
    path = write_bundle(tmp_path / "x.edgeres", files={"model.int8.cpu.onnx": with_external("../../secret.bin")})
    with pytest.raises(BundleError, match="takes weights from another file"):
        Bundle(path).file("model.int8.cpu.onnx")
    plain = write_bundle(tmp_path / "y.edgeres", files={"model.int8.cpu.onnx": classifier()})
    Bundle(plain).check()


@given(st.text(st.sampled_from("ab./\\:\0\u202e"), max_size=12))
def test_a_name_is_inside_only_if_its_path_is(name: str) -> None:
    if is_inside(name):
        assert os.path.normpath(f"/folder/{name}") == f"/folder/{name}"
        assert name.isprintable()


def test_a_written_file_is_whole_and_its_folders_are_made(tmp_path: Path) -> None:
    write_below(tmp_path, "engines/deep/a.engine", b"abc")
    with open_below(tmp_path, "engines/deep/a.engine") as stream:
        assert hashlib.sha256(stream.read()).hexdigest() == hashlib.sha256(b"abc").hexdigest()
    remove_below(tmp_path, "engines/deep/a.engine")
    remove_below(tmp_path, "engines/deep/a.engine")
    assert [p.name for p in tmp_path.rglob("*")] == ["engines", "deep"]
