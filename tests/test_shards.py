"""Calibration in parts: dealt out, interrupted, and put together again without a trace."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calibrations import BATCH, CLASSES, IMAGES, PX, Command, activations, tiny, write_tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgeres.calibrate.record import to_json
from edgeres.calibrate.run import collect, here, observe_batches
from edgeres.calibrate.shards import CalibrationJob, State, merge_files, read_state
from edgeres.errors import InputError, SourceError
from edgeres.progress import Advance
from edgeres.records import I64

BATCHES = 6


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def parts(made: Path) -> list[bytes]:
    """Each batch by itself, packed."""
    fp32, source, job = tiny(made)
    one = (np.array([number]) for number in range(BATCHES))
    return [observe_batches(job, fp32.graph, source, batch, lambda steps: None).pack() for batch in one]


METHOD = "percentile"  # the quickest that looks at the histogram


@pytest.fixture(scope="module")
def run(made: Path) -> State:
    """One run that is not interrupted."""
    fp32, source, job = tiny(made)
    return collect(job, here(job, fp32.graph, source), made / "none")


@pytest.fixture(scope="module")
def whole(run: State) -> str:
    """Its calibration.json."""
    return to_json(run.document(METHOD))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capfd)


def test_one_run_sees_every_value_of_every_image(made: Path, whole: str) -> None:
    fp32, source, _ = tiny(made)
    document = json.loads(whole)
    found = activations(fp32, source, list(document["tensors"]))
    for name, entry in document["tensors"].items():
        if "observed" not in entry:
            continue
        seen, values = entry["observed"], found[name]
        assert (seen["low"], seen["high"]) == (values.min(), values.max())
        assert (seen["values"], seen["zeros"]) == (values.size, (values == 0).sum())
    assert document["samples"] == IMAGES


@pytest.mark.parametrize("count", [1, 2, 5, BATCHES, BATCHES + 3])
def test_shards_deal_out_every_image_once(made: Path, count: int) -> None:
    _, _, job = tiny(made)
    dealt = [job.positions(job.shard(index, count)) for index in range(1, count + 1)]
    assert sorted(np.concatenate(dealt).tolist()) == list(range(IMAGES))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 2 * BATCH - 1


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), groups=st.integers(1, BATCHES))
def test_any_grouping_in_any_order_gives_the_same_state(parts: list[bytes], run: State, seed: int, groups: int) -> None:
    order = list(parts)
    random.Random(seed).shuffle(order)
    merged = [State.unpack(part) for part in order[:groups]]
    for number, part in enumerate(order[groups:]):
        merged[number % groups].merge(State.unpack(part))
    state = State.unpack(merged[0].pack())
    for other in merged[1:]:
        state.merge(State.unpack(other.pack()))
    assert (state.done, state.samples, list(state.sketches)) == (run.done, run.samples, list(run.sketches))
    for sketch, expected in zip(state.sketches.values(), run.sketches.values(), strict=True):
        assert np.array_equal(sketch.counts, expected.counts)
        assert (sketch.low, sketch.high) == (expected.low, expected.high)


def test_the_commands_give_what_one_run_gives(made: Path, command: Command, tmp_path: Path) -> None:
    model, images = made / "tiny.onnx", ("--calibration", made / "images.npz", "--method", METHOD)
    assert command("calibrate", model, *images, "-o", tmp_path / "one.json").code == 0
    paths = [tmp_path / f"part{index}.npz" for index in (1, 2, 3)]
    for index, path in enumerate(paths, 1):
        assert command("calibrate", model, *images, "--shard", f"{index}/3", "-o", path).code == 0
    assert command("calibrate", "--merge", *paths[::-1], *images[2:], "-o", tmp_path / "merged.json").code == 0
    assert (tmp_path / "merged.json").read_bytes() == (tmp_path / "one.json").read_bytes()
    # States keep whole histograms, so another method costs no images.
    assert command("calibrate", "--merge", *paths, "--method", "minmax", "-o", tmp_path / "minmax.json").code == 0
    assert command("calibrate", model, *images[:2], "--method", "minmax", "-o", tmp_path / "again.json").code == 0
    assert (tmp_path / "minmax.json").read_bytes() == (tmp_path / "again.json").read_bytes()
    assert all(not path.name.startswith(".") for path in tmp_path.iterdir())


def state_file(path: Path, state: State) -> Path:
    path.write_bytes(state.pack())
    return path


def test_parts_that_do_not_belong_together_are_refused(parts: list[bytes], tmp_path: Path) -> None:
    first, second = State.unpack(parts[0]), State.unpack(parts[1])
    here_ = state_file(tmp_path / "a.npz", first)
    other_model = replace(first.job, model=replace(first.job.model, weights_sum_abs=1.0))
    cases = {
        "other images": replace(second, job=replace(first.job, source_digest="00")),
        "with other weights": replace(second, job=other_model),
        "another --batch": replace(second, job=replace(first.job, batch=4), samples=4),
        "1 batches are in two of the parts": first,
    }
    for words, state in cases.items():
        with pytest.raises(InputError, match=words):
            merge_files([here_, state_file(tmp_path / "b.npz", state)])


def test_missing_shards_are_named(parts: list[bytes], tmp_path: Path) -> None:
    paths = []
    for number in (0, 2, 3):
        state = replace(State.unpack(parts[number]), shard=(number + 1, BATCHES))
        paths.append(state_file(tmp_path / f"{number}.npz", state))
    with pytest.raises(InputError, match=r"21 of 45 images are in none.*shards 2/6, 5/6, 6/6 are missing"):
        merge_files(paths)


def test_damaged_states_are_refused(parts: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    wrong = [b"", b"no archive", parts[0][: len(parts[0]) // 2], b"{}"]
    np.savez(path, images=np.zeros(3))
    wrong.append(path.read_bytes())
    for content in wrong:
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"state\.npz: is not a state of a calibration, or damaged"):
            read_state(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_state(tmp_path / "nowhere.npz")


def test_states_of_other_bins_are_refused(parts: list[bytes], tmp_path: Path) -> None:
    """A later edgeres may count in other bins; adding those up would be wrong without a sign of it."""
    path = tmp_path / "state.npz"
    path.write_bytes(parts[0])
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    header = np.load(path)["header"].tobytes()
    changed = json.loads(header) | {"bins": {"counts": [7]}, "edgeres": "9.9"}
    arrays = {name.removesuffix(".npy"): np.load(path)[name.removesuffix(".npy")] for name in files}
    np.savez(path, **arrays | {"header": np.frombuffer(json.dumps(changed).encode(), np.uint8)})
    with pytest.raises(InputError, match=r"written by edgeres 9\.9"):
        read_state(path)


class Stopped(Exception):
    """Whatever ends a run early."""


def watched(made: Path, asked: list[int], stop_after: int | None = None) -> Any:
    """A backend of one batch a part, that notes what it is asked and may stop."""
    fp32, source, job = tiny(made)

    def backend(todo: I64, advance: Advance) -> Iterator[State]:
        for done, number in enumerate(todo.tolist()):
            if done == stop_after:
                raise KeyboardInterrupt
            asked.append(number)
            yield observe_batches(job, fp32.graph, source, np.array([number]), advance)

    return backend


def test_an_interrupted_run_goes_on_where_it_stopped(made: Path, whole: str, tmp_path: Path) -> None:
    _, _, job = tiny(made)
    keep, asked = tmp_path / ".out.state", list[int]()
    with pytest.raises(KeyboardInterrupt):
        collect(job, watched(made, asked, stop_after=4), keep)
    assert asked == [0, 1, 2, 3]
    assert keep.is_file()
    state = collect(job, watched(made, asked), keep)
    assert asked == list(range(BATCHES))
    assert to_json(state.document(METHOD)) == whole


def test_a_killed_run_goes_on_from_the_last_saved_state(made: Path, whole: str, tmp_path: Path) -> None:
    keep = tmp_path / ".out.state"
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from calibrations import tiny; from edgeres.calibrate.run import *\n"
        "import numpy as np\n"
        "fp32, source, job = tiny(Path(sys.argv[2]))\n"
        "def backend(todo, advance):\n"
        "    for number in todo[:3]: yield observe_batches(job, fp32.graph, source, np.array([number]), advance)\n"
        "    os._exit(9)\n"
        "collect(job, backend, Path(sys.argv[3]), save_seconds=0)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent), str(made), str(keep)], check=False)
    assert killed.returncode == 9
    _, _, job = tiny(made)
    asked: list[int] = []
    state = collect(job, watched(made, asked), keep)
    assert asked == [3, 4, 5]
    assert to_json(state.document(METHOD)) == whole


def test_another_calibration_does_not_take_the_state(made: Path, tmp_path: Path) -> None:
    _, _, job = tiny(made)
    keep = tmp_path / ".out.state"
    with pytest.raises(KeyboardInterrupt):
        collect(job, watched(made, [], stop_after=4), keep)
    others: list[tuple[CalibrationJob, tuple[int, int]]] = [
        (replace(job, source_digest="00"), (1, 1)),
        (replace(job, model=replace(job.model, graph="0" * 64)), (1, 1)),
        (job, (1, 2)),
    ]
    for other, shard in others:
        asked: list[int] = []
        with pytest.raises(InputError, match="different calibrations") if other != job else pytest.raises(Stopped):
            collect(other, partial(first_then_stop, watched(made, asked)), keep, shard)
        assert asked[0] == 0


def first_then_stop(backend: Any, todo: I64, advance: Advance) -> Iterator[State]:
    yield next(iter(backend(todo, advance)))
    raise Stopped


def test_the_command_leaves_its_state_and_takes_it_up(
    made: Path, whole: str, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, state = tmp_path / "c.json", tmp_path / ".c.json.state"
    images = ("--calibration", made / "images.npz", "--method", METHOD)
    words = ("calibrate", made / "tiny.onnx", *images, "-o", output)
    monkeypatch.setattr("edgeres.pipeline.calibrate.here", lambda *of: watched_as(*of, stop_after=2))
    ended = command(*words)
    assert ended.code == 130
    assert "16 images are done; the same command continues from there" in ended.err
    assert (state.is_file(), output.exists()) == (True, False)
    monkeypatch.setattr("edgeres.pipeline.calibrate.here", lambda *of: watched_as(*of, stop_after=None))
    ended = command(*words)
    assert "continuing after 16 images" in ended.err
    assert (state.exists(), output.is_file()) == (False, True)
    entries = json.loads(output.read_text())["tensors"]
    for name, entry in json.loads(whole)["tensors"].items():
        assert entries[name] == entry or "cpu" not in entry["ranges"], name


def watched_as(job: CalibrationJob, graph: Any, source: Any, stop_after: int | None) -> Any:
    def backend(todo: I64, advance: Advance) -> Iterator[State]:
        for done, number in enumerate(todo.tolist()):
            if done == stop_after:
                raise KeyboardInterrupt
            yield observe_batches(job, graph, source, np.array([number]), advance)

    return backend


def write_folder(folder: Path, readable: set[int], count: int = 20) -> Path:
    for number in range(count):
        path = folder / str(number % CLASSES) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (PX, PX, 3), np.uint8)
        Image.fromarray(pixels).save(path) if number in readable else path.write_bytes(b"no image")
    return folder


def test_unreadable_images_are_left_out_even_where_a_part_has_no_others(
    made: Path, tmp_path: Path, command: Command
) -> None:
    images = write_folder(tmp_path / "images", readable=set(range(12)))
    words = ("calibrate", made / "tiny.onnx", "--calibration", images, "--batch", "1", "--method", METHOD)
    assert "images cannot be read: 2/12.png (not an image)" in command.refused(*words, "-o", tmp_path / "strict.json")
    ended = command(*words, "--skip-unreadable", "-o", tmp_path / "one.json")
    assert ended.code == 0
    for index in range(1, 21):
        assert command(*words, "--skip-unreadable", "--shard", f"{index}/20", "-o", tmp_path / f"{index}.npz").code == 0
    shards = [tmp_path / f"{index}.npz" for index in range(1, 21)]
    assert command("calibrate", "--merge", *shards, "--method", METHOD, "-o", tmp_path / "merged.json").code == 0
    document = json.loads((tmp_path / "merged.json").read_text())
    assert (document["samples"], len(document["unreadable"])) == (12, 8)
    assert (tmp_path / "merged.json").read_bytes() == (tmp_path / "one.json").read_bytes()


def test_a_calibration_without_a_readable_image_is_none(made: Path, tmp_path: Path) -> None:
    _, _, job = tiny(made)
    with pytest.raises(SourceError, match="none of 45 images can be read"):
        State.empty(job).document(METHOD)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("calibrate a b -o x", "MODEL: takes one file, 2 are given; only --merge takes several files"),
        ("calibrate a --merge --export ort -o x", "--merge and --export: exclude each other; give one of them"),
        ("calibrate a --merge --shard 1/2 -o x", "--merge and --shard: exclude each other; give one of them"),
        ("calibrate a --merge -o x", "a: cannot be read (No such file or directory); check the path"),
    ],
)
def test_wrong_usage_is_told_in_one_line(command: Command, words: str, line: str) -> None:
    assert command.refused(*words.split()) == f"edgeres: {line}"


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3"])
def test_shards_that_do_not_exist_are_refused(command: Command, shard: str) -> None:
    assert "write 1/8 to 8/8" in command.refused("calibrate", "m.onnx", f"--shard={shard}", "-o", "x")
