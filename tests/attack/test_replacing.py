"""What has a name is whole at every moment, is replaced only if it is a bundle, and has one writer."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from bundles import siblings, write_bundle

from edgeres import bundle as bundle_module
from edgeres import files as files_module
from edgeres.bundle import MANIFEST, Bundle, check_target, new_bundle, steady
from edgeres.errors import BundleError
from edgeres.files import write_file, write_files
from edgeres.quantize.inspect import inspect
from edgeres.runtime import Classifier

TESTS = Path(__file__).parents[1]


def webapp(path: Path) -> None:
    path.mkdir()
    (path / MANIFEST).write_text('{"name": "my web app", "manifest_version": 3}')
    (path / "thesis.txt").write_text("precious")


def unsealed(path: Path) -> None:
    write_bundle(path)
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**manifest, "digest": "0" * 64}))


def pipe(path: Path) -> None:
    path.mkdir()
    os.mkfifo(path / MANIFEST)


@pytest.mark.parametrize("make", [webapp, unsealed, pipe])
@pytest.mark.parametrize("force", [False, True])
def test_only_a_sealed_bundle_is_replaced(make: Callable[[Path], None], force: bool, tmp_path: Path) -> None:
    make(tmp_path / "x")
    before = {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*")}
    with pytest.raises(BundleError, match="left alone; choose another -o"), new_bundle(tmp_path / "x", force=force):
        pass
    assert {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_a_bundle_with_files_of_its_user_is_replaced_by_force_alone(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "x.edgeres", files={"labels.txt": b"old"})
    (path / "notes").mkdir()
    (path / "notes" / "todo.txt").write_text("mine")
    (path / "link").symlink_to("/")
    (path / ".DS_Store").write_text("of a file manager")
    with pytest.raises(BundleError, match=r"edgeres did not write \(link, notes/todo.txt\).*--force deletes"):
        write_bundle(path)
    assert (path / "notes" / "todo.txt").read_text() == "mine"
    assert check_target(path, force=True) == ("link", "notes/todo.txt")
    with new_bundle(path, force=True) as folder:
        shutil.copy(write_bundle(tmp_path / "y") / MANIFEST, folder)
    assert not (path / "notes").exists()


def test_a_file_that_appears_during_a_build_is_not_lost(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "x.edgeres")
    other = write_bundle(tmp_path / "y")
    with pytest.raises(BundleError, match="notes"), new_bundle(path) as folder:
        shutil.copy(other / MANIFEST, folder)
        (path / "notes").write_text("mine")
    assert (path / "notes").read_text() == "mine"
    Bundle(path).check()


def test_the_loser_is_told_who_builds(tmp_path: Path) -> None:
    path = tmp_path / "x.edgeres"
    with contextlib.suppress(ValueError), new_bundle(path) as folder:
        with pytest.raises(BundleError, match=rf"is being built by process {os.getpid()} on .* since .*; wait for it"):
            write_bundle(path)
        assert folder.is_dir()  # the loser deleted nothing
    assert siblings(path) == set()
    write_bundle(path)  # nobody holds it now


def test_a_file_system_without_locks_deletes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "hold", lambda handle, wait=False: None)
    path = tmp_path / "x.edgeres"
    with contextlib.suppress(ValueError), new_bundle(path) as first:
        write_bundle(path, files={"labels.txt": b"second"})
        assert first.is_dir()
    assert Bundle(path).file("labels.txt").read_bytes() == b"second"


REPLACING = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from bundles import classifier, write_bundle
if sys.argv[3] == "rename":
    from edgeres import bundle
    bundle.exchange = lambda one, other: False
graphs = [classifier(seed=0), classifier(seed=1)]
print("ready", flush=True)
turn = 0
while True:
    turn += 1
    write_bundle(Path(sys.argv[1]), files={"model.int8.cpu.onnx": graphs[turn % 2], "labels.txt": b"x" * (turn % 7)})
"""


@contextlib.contextmanager
def replacing(path: Path, how: str) -> object:
    """Another process replaces a bundle as often as it can."""
    argv = [sys.executable, "-c", REPLACING, str(path), str(TESTS), how]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        yield child
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("how", ["exchange", "rename"])
def test_readers_see_the_old_or_the_new_bundle_and_never_an_error(how: str, tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "x.edgeres")
    seen = set()
    with replacing(path, how):
        until = time.monotonic() + 2
        while time.monotonic() < until:
            Bundle(path).check()
            Classifier(path).close()
            inspect(path)
            seen.add(steady(path, lambda bundle: bundle.manifest.files["model.int8.cpu.onnx"]))
    assert len(seen) > 1


def test_killed_at_random_the_name_opens_old_or_new(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "x.edgeres")
    chance = random.Random(7)
    for _ in range(12):
        with replacing(path, "exchange") as child:
            time.sleep(chance.uniform(0, 0.05))
            child.send_signal(signal.SIGKILL)  # type: ignore[attr-defined]
            child.wait()  # type: ignore[attr-defined]
        Bundle(path).check()
    write_bundle(path)
    assert siblings(path) == set()


PAIRS = """
import sys
from pathlib import Path
from edgeres.files import write_files
print("ready", flush=True)
turn = 0
while True:
    turn += 1
    write_files(Path(sys.argv[1]), {"a": b"%d" % turn * 1000, "b": b"%d" % turn * 1000})
"""


def test_two_files_that_belong_together_are_switched_at_once(tmp_path: Path) -> None:
    folder, chance = tmp_path / "v", random.Random(3)
    write_files(folder, {"a": b"0", "b": b"0"})
    for _ in range(8):
        child = subprocess.Popen([sys.executable, "-c", PAIRS, str(folder)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(chance.uniform(0, 0.05))
        child.kill()
        child.wait()
        child.stdout.close()
        assert (folder / "a").read_bytes() == (folder / "b").read_bytes()


def test_other_files_of_a_folder_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    write_files(tmp_path, {"a": b"1", "b": b"1"})
    assert {p.name for p in tmp_path.iterdir()} == {"mine.txt", "a", "b"}
    (tmp_path / "mine.txt").unlink()
    monkeypatch.chdir(tmp_path)
    number = tmp_path.stat().st_ino
    write_files(Path(), {"a": b"2", "b": b"2"})
    assert tmp_path.stat().st_ino == number  # where a shell stands is not replaced
    assert [(tmp_path / name).read_bytes() for name in "ab"] == [b"2", b"2"]


def test_a_partial_file_of_a_live_writer_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, sync = tmp_path / "a.json", files_module.sync

    def another_writer(handle: int) -> None:
        monkeypatch.setattr(files_module, "sync", sync)
        write_file(path, b"second")
        sync(handle)

    monkeypatch.setattr(files_module, "sync", another_writer)
    write_file(path, b"first")
    assert path.read_bytes() == b"first"
    assert siblings(path) == set()
