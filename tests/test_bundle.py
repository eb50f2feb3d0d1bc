"""Bundles are complete or absent even if their writer is killed, and are checked when they are read."""

from __future__ import annotations

import errno
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bundles import CLASSES, siblings, spec, write_bundle, write_images
from engine_graphs import resnet

from edgeres import bundle as bundle_module
from edgeres import files as files_module
from edgeres.bundle import MANIFEST, Bundle, new_bundle, seal
from edgeres.documents import digest
from edgeres.errors import BundleError, EnvironmentError_
from edgeres.files import temporary_name, write_file
from edgeres.records import EngineRecord, FormRecord, Manifest

NAME = "robot [v1].edgeres"  # brackets mean something to glob


def files(text: str) -> dict[str, bytes]:
    return {"model.int8.cpu.onnx": text.encode(), "engines/a.engine": b"engine of " + text.encode()}


def content(path: Path) -> str:
    """The text that a bundle was written with, after checking all its files."""
    bundle = Bundle(path)
    bundle.check()
    return bundle.file("model.int8.cpu.onnx").read_text()


def leave(path: Path, kind: str, text: str | None = None, *, name: str | None = None) -> Path:
    """The hidden directory that a killed writer leaves; a complete bundle where ``text`` is given."""
    hidden = path.with_name(name or temporary_name(path.name, kind))
    if text is None:
        hidden.mkdir()
        (hidden / "model.fp32.onnx").write_bytes(b"half")
    else:
        write_bundle(path.with_name("made"), files=files(text)).rename(hidden)
    return hidden


def test_the_manifest_names_every_other_file_with_its_hash(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / NAME, files=files("one"))
    manifest = json.loads((path / MANIFEST).read_text())
    found = {p.relative_to(path).as_posix(): p for p in path.rglob("*") if p.is_file() and p.name != MANIFEST}
    assert manifest["files"] == {name: hashlib.sha256(p.read_bytes()).hexdigest() for name, p in found.items()}
    assert manifest["schema"] == 4
    assert Bundle(path).manifest.model == spec()
    assert Bundle(path).manifest.model.labels == CLASSES
    assert siblings(path) == set()


def form(name: str, *runtimes: str, file: str | None = None) -> FormRecord:
    return FormRecord(name, file or f"model.{name}.onnx", runtimes, "int8", "full", "float32", f"the {name} form")


def test_the_forms_of_a_bundle_are_read_back(tmp_path: Path) -> None:
    forms = (form("plain", "tensorrt"), form("fast", "tensorrt", "rtx"))
    path = write_bundle(tmp_path / NAME, forms=forms, default_form={"tensorrt": "fast"})
    bundle = Bundle(path)
    assert bundle.forms == forms
    assert bundle.default_form("tensorrt") == forms[1]
    assert bundle.default_form("rtx") == forms[1]
    assert bundle.default_form("onnxruntime") is None


def test_a_bundle_of_schema_2_names_its_forms_by_its_files(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / NAME, files={"model.int8.onnx": b"t", "model.int8.cpu.onnx": b"c"})
    manifest = json.loads((path / MANIFEST).read_text())
    body = {**{key: value for key, value in manifest.items() if key != "digest"}, "schema": 2}
    (path / MANIFEST).write_text(json.dumps({**body, "digest": digest(body)}))
    found = {record.file: record.runtimes for record in Bundle(path).forms}
    assert found == {"model.int8.onnx": ("tensorrt",), "model.int8.cpu.onnx": ("onnxruntime",)}


@pytest.mark.parametrize(
    ("forms", "default", "why"),
    [
        ((form("a", "rtx"), form("a", "cpu")), {}, "names of their own"),
        ((form("a", "rtx"),), {"rtx": "b"}, "default_form of rtx"),
        ((form("a", "rtx"),), {"tensorrt": "a"}, "default_form of tensorrt"),
    ],
    ids=["twice", "unknown", "of another runtime"],
)
def test_forms_that_do_not_fit_are_refused(forms: tuple[FormRecord, ...], default: dict[str, str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Manifest(spec(), {}, {}, {}, {}, forms=forms, default_form=default)
    with pytest.raises(ValueError, match="paths inside the bundle"):
        form("a", "rtx", file="../a.onnx")


def test_a_newer_bundle_replaces_all_of_an_older_one(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / NAME, files={**files("one"), "report.json": b"{}"})
    write_bundle(path, files=files("two"))
    assert content(path) == "two"
    assert not (path / "report.json").exists()
    assert siblings(path) == set()


def test_an_empty_directory_may_become_a_bundle_and_missing_parents_are_created(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert content(write_bundle(tmp_path / "empty", files=files("one"))) == "one"
    assert content(write_bundle(tmp_path / "new" / "folder" / NAME, files=files("one"))) == "one"


@pytest.mark.parametrize(
    "stop", [OSError(errno.EIO, "I/O error"), ValueError("fault"), KeyboardInterrupt(), SystemExit()]
)
@pytest.mark.parametrize("before", [None, "one"])
def test_a_writer_that_fails_leaves_an_older_bundle_unchanged(
    tmp_path: Path, stop: BaseException, before: str | None
) -> None:
    path = tmp_path / NAME
    if before:
        write_bundle(path, files=files(before))
    with pytest.raises((type(stop), EnvironmentError_)), new_bundle(path) as folder:
        write_file(folder / "model.int8.cpu.onnx", b"two")
        raise stop
    assert siblings(path) == set()
    assert content(path) == before if before else not path.exists()


def test_a_bundle_without_a_manifest_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not sealed"), new_bundle(tmp_path / NAME) as folder:
        write_file(folder / "model.fp32.onnx", b"...")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_that_names_the_bundle(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentError_) as caught, new_bundle(tmp_path / NAME):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(caught.value).startswith(f"{tmp_path / NAME}: cannot be written (No space left on device); free some")
    assert list(tmp_path.iterdir()) == []


def a_file(path: Path) -> None:
    path.write_text("mine")


def a_directory(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("mine")


def a_dangling_link(path: Path) -> None:
    path.symlink_to("/nowhere")


@pytest.mark.parametrize("make", [a_file, a_directory, a_dangling_link])
def test_other_files_are_not_overwritten(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / NAME
    make(path)
    before = [(p, p.lstat().st_ino, p.lstat().st_mtime_ns) for p in sorted(tmp_path.rglob("*"))]
    with pytest.raises(BundleError, match="left alone; choose another -o"):
        write_bundle(path)
    assert [(p, p.lstat().st_ino, p.lstat().st_mtime_ns) for p in sorted(tmp_path.rglob("*"))] == before


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    a_file(tmp_path / "file")
    with pytest.raises(BundleError, match="cannot be written"):
        write_bundle(tmp_path / "file" / NAME)


def test_a_link_to_a_bundle_is_kept(tmp_path: Path) -> None:
    real = write_bundle(tmp_path / "disk" / NAME, files=files("one"))
    link = tmp_path / "current"
    link.symlink_to(real)
    write_bundle(link, files=files("two"))
    assert link.is_symlink()
    assert content(link) == content(real) == "two"
    assert siblings(link) == {"disk"}
    assert siblings(real) == set()


def test_leftovers_of_killed_writers_are_removed_and_others_kept(tmp_path: Path) -> None:
    path = tmp_path / NAME
    leave(path, "partial")
    leave(path, "partial")
    leave(path, "old", "zero")
    elsewhere = f".{NAME}.partial-{'0' * 12}-{'1' * 12}"  # another machine on the same volume may be writing it now
    kept = {
        leave(path, "partial", name=elsewhere),
        leave(path, "partial", name=f".{NAME}.partial-mine"),
        leave(tmp_path / "x", "partial"),
    }
    write_bundle(path, files=files("one"))
    assert content(path) == "one"
    assert siblings(path) == {p.name for p in kept}


def test_an_older_bundle_is_restored_by_the_next_writer(tmp_path: Path) -> None:
    path = tmp_path / NAME
    leave(path, "old", "one")
    with pytest.raises(KeyboardInterrupt), new_bundle(path):
        raise KeyboardInterrupt
    assert content(path) == "one"
    assert siblings(path) == set()


def test_an_interrupt_between_both_renames_restores_the_older_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_bundle(tmp_path / NAME, files=files("one"))
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    monkeypatch.setattr(bundle_module, "exchange", lambda one, other: False)  # a system that cannot
    with pytest.raises(KeyboardInterrupt):
        write_bundle(path, files=files("two"))
    assert content(path) == "one"
    assert siblings(path) == set()


KILLED_ANYWHERE = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from bundles import siblings, write_bundle
from test_bundle import content, files
from edgeres import bundle
if sys.argv[3] == "rename":
    bundle.exchange = lambda one, other: False

path = Path(sys.argv[1]) / "robot [v1].edgeres"
EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.scandir", "shutil.rmtree", "os.fsync"}

def killed_at(step, text):
    '''Writes in a child that dies at its step-th call into the file system; whether it lived.'''
    child = os.fork()
    if child == 0:
        left = step
        def count(event, arguments):
            nonlocal left
            if event in EVENTS:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(count)
        write_bundle(path, files=files(text))
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0

for before in (None, "one") if sys.argv[3] == "exchange" else ("one",):
    seen, step, done = set(), 0, False
    if before:
        write_bundle(path, files=files(before))
    while not done:
        step += 1 if sys.argv[3] == "exchange" else 2
        done = killed_at(step, "two")
        state = content(path) if path.exists() else None
        if sys.argv[3] == "rename" and before and state is None:
            state = content(path)  # between the two renames there is no bundle; its reader puts the older one back
        assert state in (before, "two"), (step, state)
        seen.add(state)
        write_bundle(path, files=files("next"))
        assert content(path) == "next" and not siblings(path), (step, siblings(path))
        if before:
            write_bundle(path, files=files(before))
        else:
            import shutil; shutil.rmtree(path)
    assert step > 20 and {before, "two"} <= seen, (step, seen)
print("survived")
"""


@pytest.mark.parametrize("how", ["exchange", "rename"])
def test_killed_at_any_call_into_the_file_system(tmp_path: Path, how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED_ANYWHERE, str(tmp_path), str(Path(__file__).parent), how],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "survived\n", done.stderr


KILLED_BUILD = """
import functools, os, signal, sys
from pathlib import Path
folder, tests, stages = Path(sys.argv[1]), sys.argv[2], sys.argv[3].split()
sys.path.insert(0, tests)
os.chdir(folder)
from bundles import siblings
from edgeres.pipeline import build, make, network
from edgeres.bundle import Bundle
from edgeres.verify import measure
measure.LatencyPlan = functools.partial(measure.LatencyPlan, warmup_seconds=0.0, min_seconds=0.01)
output = folder / "robot.edgeres"

def built(stop=None):
    child = os.fork()
    if child == 0:
        if stop:
            def killed(*arguments, **named):
                result = original(*arguments, **named)
                os.kill(os.getpid(), signal.SIGKILL)
            module, name = stop.split(".")
            module = {"build": build, "make": make, "network": network}[module]
            original = getattr(module, name)
            setattr(module, name, killed)
        result = build.build("tiny.onnx", calibration="images.npz", validation="images.npz", targets=("cpu",),
                                max_drop=None, output=output)
        os._exit(0)
    return os.waitpid(child, 0)[1]

for stop in stages:
    assert built(stop) == signal.SIGKILL, stop
    assert not output.exists(), stop
assert built() == 0
Bundle(output).check()
assert {p.name for p in folder.iterdir()} == {"robot.edgeres", "tiny.onnx", "images.npz"}
print("survived")
"""
STAGES = (
    "network.take",
    "build.choose_images",
    "make.write_file",
    "make._write_graphs",
    "make.build_engines",
    "build.measure_bundle",
    "build.write_report",
    "build.seal",
)


def test_a_build_killed_after_any_stage_leaves_no_bundle_and_the_next_one_works(tmp_path: Path) -> None:
    (tmp_path / "tiny.onnx").write_bytes(resnet(quantized=False, width=4, px=16).SerializeToString())
    write_images(tmp_path / "images.npz", count=10, px=16, classes=10)
    done = subprocess.run(
        [sys.executable, "-c", KILLED_BUILD, str(tmp_path), str(Path(__file__).parent), " ".join(STAGES)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "survived\n", done.stderr


def changed(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("harm", "words"),
    [(changed, "was changed"), (cut, "was changed"), (Path.unlink, "is missing")],
    ids=["changed", "cut", "removed"],
)
@pytest.mark.parametrize("name", files("x"))
def test_a_changed_file_is_refused(tmp_path: Path, name: str, harm: Callable[[Path], None], words: str) -> None:
    path = write_bundle(tmp_path / NAME, files=files("one"))
    harm(path / name)
    bundle = Bundle(path)
    with pytest.raises(BundleError, match=rf"{name} {words}.*build it again"):
        bundle.file(name)
    with pytest.raises(BundleError, match=words):
        bundle.check()
    for other in files("x").keys() - {name}:
        assert bundle.file(other).is_file()


def test_a_file_outside_the_manifest_is_refused(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / NAME)
    (path / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"has no notes\.txt"):
        Bundle(path).file("notes.txt")
    assert not Bundle(path).has("notes.txt")
    Bundle(path).check()


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (None, "not a bundle: it has no manifest.json; give a directory"),
        ("{", "is not a manifest.json: Expecting"),
        ("[1]", "is not a manifest.json; build it again"),
        ("{}", "is not a manifest.json: it states no schema"),
        ('{"schema": "new"}', "is not a manifest.json: it states no schema"),
        ('{"schema": null}', "is not a manifest.json: it states no schema"),
        ('{"schema": 1, "model": {}}', "written in format 1, this edgeres reads 4; build it again"),
        ('{"schema": 2}', "was changed after it was written: its digest differs; build it again"),
        ('{"schema": 2, "schema": 2}', "$.schema: is there twice"),
        ('{"schema": 99}', "written in format 99, this edgeres reads 4; upgrade edgeres"),
        (b"\xff\xfe", "is not a manifest.json: 'utf-8' codec"),
    ],
)
def test_an_invalid_manifest_is_refused_in_one_line(tmp_path: Path, manifest: str | bytes | None, words: str) -> None:
    path = write_bundle(tmp_path / NAME)
    if manifest is None:
        (path / MANIFEST).unlink()
    else:
        (path / MANIFEST).write_bytes(manifest if isinstance(manifest, bytes) else manifest.encode())
    with pytest.raises(BundleError) as caught:
        Bundle(path)
    line = str(caught.value)
    assert line.startswith(f"{path}{'' if manifest is None else '/manifest.json'}: {words}")
    assert "\n" not in line


@pytest.mark.parametrize("make", [a_file, a_dangling_link, lambda path: None])
def test_a_missing_directory_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / NAME)
    with pytest.raises(BundleError, match="no such bundle"):
        Bundle(tmp_path / NAME)


def sealed(path: Path, **changes: object) -> None:
    """Change a manifest, and its digest with it."""
    data = {key: value for key, value in json.loads((path / MANIFEST).read_text()).items() if key != "digest"}
    data |= changes
    (path / MANIFEST).write_text(json.dumps({**data, "digest": digest(data)}))


def test_a_changed_manifest_is_refused(tmp_path: Path) -> None:
    """A misspelt key would silently use ImageNet's mean."""
    path = write_bundle(tmp_path / NAME)
    text = (path / MANIFEST).read_text()
    for before, after in (('"mean"', '"maen"'), ("0.485", "0.495"), ('"NCHW"', '"NHWC"'), ('"ant"', '"aunt"')):
        assert text.count(before) == 1
        (path / MANIFEST).write_text(text.replace(before, after))
        with pytest.raises(BundleError, match="was changed after it was written: its digest differs; build it again"):
            Bundle(path)
    (path / MANIFEST).write_text(text.replace("\n", "").replace("0.485", "4.85e-1"))
    assert Bundle(path).manifest.model == spec()  # the same document, written otherwise


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"invented_later": 1}, "$.invented_later: is not a known key"),
        ({"files": {"../../etc/passwd": 64 * "0"}}, "files must be named by paths inside the bundle"),
        ({"files": {"/etc/passwd": 64 * "0"}}, "files must be named by paths inside the bundle"),
        ({"files": {"a\0b": 64 * "0"}}, "files must be named by paths inside the bundle"),
        ({"files": {"a": "0"}}, "digests must have 64 hex digits"),
        ({"inputs": {"x": {"dtype": "float32", "shape": [0]}}}, "$.inputs.x: sizes in shape must be 1 or more"),
        ({"engines": [{}]}, "$.engines[0].target: is missing"),
    ],
)
def test_invalid_values_in_a_manifest_are_refused(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    path = write_bundle(tmp_path / NAME)
    sealed(path, **changes)
    with pytest.raises(BundleError) as caught:
        Bundle(path)
    assert str(caught.value).startswith(f"{path / MANIFEST}: {words}")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("std", [0.2, 0.2, 0.0], "std and pixel_scale must be above 0"),
        ("mean", [0.2, 0.2], "mean and std must have three values each"),
        ("crop_px", [0, 8], "crop_px and resize_px must be 1 to 65536"),
        ("crop_px", [8, 10**9], "crop_px and resize_px must be 1 to 65536"),
        ("resize_px", -1, "crop_px and resize_px must be 1 to 65536"),
    ],
)
def test_preprocessing_has_bounds(tmp_path: Path, key: str, value: object, words: str) -> None:
    path = write_bundle(tmp_path / NAME)
    model = json.loads((path / MANIFEST).read_text())["model"]
    sealed(path, model={**model, "preprocess": {**model["preprocess"], key: value}})
    with pytest.raises(BundleError, match=rf"manifest\.json: \$\.model\.preprocess: {words}; build it again"):
        Bundle(path)


def test_a_file_is_written_completely_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "out.onnx"
    write_file(path, b"one")
    hidden = path.with_name(temporary_name(path.name, "partial"))
    hidden.write_bytes(b"half")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left") as caught:
        patch.setattr(files_module, "sync", full)
        write_file(path, b"two")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"one"
    assert siblings(path) == set()  # the leftover of the dead has gone, too
    write_file(path, b"two")
    assert path.read_bytes() == b"two"


def engine(name: str, precision: str = "int8", version: str = "1") -> EngineRecord:
    return EngineRecord("rtx", "rtx", version, precision, "built, not run here", f"engines/{name}", 3)  # type: ignore[arg-type]


def test_engines_replace_earlier_ones_of_their_kind(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / NAME, files=files("one"))
    Bundle(path).add_engines({engine("1.engine"): b"old", engine("1-fp32.engine", "fp32"): b"old32"})
    size_only = EngineRecord("rtx", "rtx", "2", "fp16", "built for its size, not kept", None, 5)
    Bundle(path).add_engines({engine("2.engine", version="2"): b"new", size_only: None})
    bundle = Bundle(path)
    bundle.check()
    assert [(e.precision, e.version) for e in bundle.manifest.engines] == [("fp32", "1"), ("int8", "2"), ("fp16", "2")]
    assert bundle.file("engines/2.engine").read_bytes() == b"new"
    assert bundle.file("engines/1-fp32.engine").read_bytes() == b"old32"
    assert not bundle.has("engines/1.engine")
    assert {p.name for p in (path / "engines").iterdir()} == {"a.engine", "1-fp32.engine", "2.engine"}


def test_a_bundle_stays_valid_wherever_writing_engines_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_bundle(tmp_path / NAME, files=files("one"))
    Bundle(path).add_engines({engine("1.engine"): b"old"})
    write = bundle_module.write_below
    for step in range(1, 4):  # the manifest, the engine, the manifest
        left = step

        def stop(folder: Path, name: str, data: bytes) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise KeyboardInterrupt
            write(folder, name, data)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(bundle_module, "write_below", stop)
            Bundle(path).add_engines({engine("1.engine"): f"new {step}".encode()})
        Bundle(path).check()
    Bundle(path).add_engines({engine("1.engine"): b"new"})
    assert Bundle(path).file("engines/1.engine").read_bytes() == b"new"
    assert [e.file for e in Bundle(path).manifest.engines] == ["engines/1.engine"]


def test_sealing_again_lists_all_files_but_the_manifest(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / NAME, files=files("one"))
    (path / "labels.txt").write_text("ant\n")
    seal(path, Manifest(spec(), {}, {}, {}, {}))
    assert set(Bundle(path).manifest.files) == {*files("x"), "labels.txt"}
