"""Data as it lies on disk: files of other forms, pointers, damaged archives; each with its cause and the next step."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image
from test_data import PETS, PNG, archive, directory

from edgeres.bundle import Bundle
from edgeres.data.base import subset
from edgeres.data.choose import Sources
from edgeres.data.files import read_image
from edgeres.data.loader import Loader
from edgeres.data.sources import open_source
from edgeres.errors import BundleError, EdgeresError, ModelError, SourceError
from edgeres.graph.normalize import load_onnx
from edgeres.records import Preprocess

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123456\n"


def line_of(error: pytest.ExceptionInfo[EdgeresError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("data", "cause", "advice"),
    [
        (POINTER, "a Git LFS pointer", "git lfs pull"),
        (b"", "empty, 0 bytes", "copy it again"),
        (bytes(4096), "zeros only", "copy it again"),
        (b"\n<!DOCTYPE html><title>404", "a web page", "fetch the image itself"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC photos", "heif-convert"),
        (b"\0\0\0\x1cftypisom\0\0\2\0isomiso2", "videos", "ffmpeg -i"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL", "djxl"),
        (b"\x93NUMPY\1\0v\0{'descr'", "NumPy arrays", "np.savez"),
        (b"\0\x05\x16\x07\0\2\0\0Mac OS X", "AppleDouble", "remove it"),
        (b"PK\x03\x04\x14\0\0\0", "archives", "unpack"),
        (b"one line of text", "not an image", "a JPEG, a PNG"),
    ],
)
def test_a_file_that_is_no_image_is_told_by_its_content(tmp_path, data, cause, advice):
    path = tmp_path / "1.jpg"
    path.write_bytes(data)
    with pytest.raises(SourceError) as caught:
        read_image(path)
    assert cause in caught.value.what and advice in (caught.value.hint or "")


def loading(path: Path) -> str:
    with pytest.raises(SourceError) as caught:
        list(Loader(open_source(path, role="validation", px=8), Preprocess((8, 8)), 4))
    return line_of(caught)


def test_advice_on_unreadable_images_is_that_of_their_cause(tmp_path):
    line = loading(directory(tmp_path, PETS | {"cat/c.png": POINTER}))
    assert "1 of 4 images cannot be read: cat/c.png (a Git LFS pointer" in line
    assert line.endswith("; run git lfs pull; or pass --skip-unreadable")
    assert loading(directory(tmp_path, dict.fromkeys((*PETS, "cat/c.png"), POINTER))).endswith("; run git lfs pull")


def test_links_to_nothing_are_told(tmp_path):
    (directory(tmp_path, PETS) / "cat" / "c.png").symlink_to("../moved.png")
    assert "cat/c.png (a link to a file that is not there)" in loading(tmp_path)


def encrypted(path: Path) -> Path:
    """The same archive with the bit of encryption set in the list of members, and in the members' own heads."""
    data = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        start = data.find(mark)
        while start >= 0:
            data[start + place] |= 1
            start = data.find(mark, start + 4)
    path.write_bytes(data)
    return path


def test_damaged_archives_are_refused_in_one_line(tmp_path):
    named = tmp_path / "named.zip"
    with zipfile.ZipFile(named, "w") as packed:
        packed.writestr("cat/\u00e9\u00e9.png", PNG)  # marked as UTF-8
    named.write_bytes(named.read_bytes().replace("\u00e9\u00e9".encode(), b"\xff\xfe\xff\xfe"))
    arrays = tmp_path / "set.npz"
    np.savez(arrays, images=np.zeros((2, 8, 8, 3), np.uint8), labels=[0, 1])
    method = tmp_path / "method.zip"
    with zipfile.ZipFile(method, "w") as packed:
        packed.writestr("images.npy", b"")
    unknown = method.read_bytes().replace(b"PK\x01\x02\x14\x03\x14\0\0\0\0\0", b"PK\x01\x02\x14\x03\x14\0\0\0\x63\0")
    (tmp_path / "method.npz").write_bytes(unknown)
    for path, words in (
        (named, "no valid UTF-8"),
        (encrypted(arrays), "is encrypted; unpack it"),
        (encrypted(archive(tmp_path, PETS)), "is encrypted; unpack it"),
        (tmp_path / "method.npz", "cannot be read as .npz (That compression method is not supported)"),
    ):
        with pytest.raises(SourceError) as caught:
            open_source(path, role="validation", px=8)
        assert words in line_of(caught) and str(path) in line_of(caught)


@pytest.mark.parametrize("name", ["set.zip", "set.npz"])
def test_pointers_in_place_of_archives_are_told(tmp_path, name):
    path = directory(tmp_path, {name: POINTER}) / name
    with pytest.raises(SourceError, match="is a Git LFS pointer, not the file it points to; run git lfs pull"):
        open_source(path, role="validation", px=8)


def test_pointers_in_place_of_graphs_and_their_weights_are_told(tmp_path):
    (tmp_path / "net.onnx").write_bytes(POINTER)
    with pytest.raises(ModelError, match=r"net\.onnx: is a Git LFS pointer.*; run git lfs pull"):
        load_onnx(tmp_path / "net.onnx")
    weights = helper.make_tensor("w", TensorProto.FLOAT, [64], np.zeros(64, np.float32).tobytes(), raw=True)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [64]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weights])
    path = tmp_path / "apart.onnx"
    onnx.save(helper.make_model(graph), str(path), save_as_external_data=True, location="w.bin", size_threshold=0)
    load_onnx(path)
    (tmp_path / "w.bin").write_bytes(POINTER)
    with pytest.raises(ModelError, match=r"its weights in w\.bin are a Git LFS pointer.*; run git lfs pull"):
        load_onnx(path)


def test_a_bundle_that_was_not_fetched_is_told(tmp_path):
    (tmp_path / "manifest.json").write_bytes(POINTER)
    with pytest.raises(BundleError, match=r"manifest\.json: is a Git LFS pointer.*; run git lfs pull"):
        Bundle(tmp_path)


def test_calibration_images_that_validate_too_are_counted(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        (tmp_path / "all" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "all" / name)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "link.png").symlink_to(tmp_path / "all" / "a" / "2.png")
    (tmp_path / "other" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "other" / "own.png")
    whole = open_source(str(tmp_path / "all"), role="validation", px=8)
    outputs = whole.at(np.arange(4)[::-1])
    for calibration, told in (
        (subset(whole, 3, 0), "3 of 3 "),
        (open_source(str(tmp_path / "other"), role="calibration", px=8), "1 of 3 "),
    ):
        (warning,) = Sources(calibration, outputs).warnings
        assert warning.startswith(f"{told}calibration images are validation images too")
    Image.new("RGB", (8, 8)).save(tmp_path / "own.png")
    (tmp_path / "other" / "link.png").unlink()
    assert Sources(open_source(str(tmp_path / "other"), role="calibration", px=8), outputs).warnings == []
