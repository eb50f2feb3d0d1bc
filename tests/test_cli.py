"""The command line: output on stdout and stderr, exit codes, and files."""

from __future__ import annotations

import functools
import json
import os
import pickle
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import siblings, write_images
from engine_graphs import resnet
from PIL import Image

import edgeres
from edgeres.bundle import FP32, Bundle, seal
from edgeres.cli import COMMANDS, main
from edgeres.cli.progress import Notes, progress
from edgeres.data.seen import PIXELS_KIND
from edgeres.device.libraries import available
from edgeres.errors import UsageError
from edgeres.graph.forms import FORMS, GRAPH_FILES
from edgeres.pipeline.take import InputChoice
from edgeres.records import Preprocess
from edgeres.verify import measure

PX, CLASSES = 16, 10


@dataclass(frozen=True)
class Ended:
    """The result of a command."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line on stderr, without those of stages."""
        assert self.err.endswith("\n"), self
        lines = [line for line in self.err.splitlines() if not re.match(r"\d/\d \w", line)]
        lines = [line for line in lines if "calibration images are validation images too" not in line]
        assert len(lines) == 1, self
        return lines[0]


def brief() -> Any:
    """A latency plan with very short measurements."""
    return functools.partial(measure.LatencyPlan, warmup_seconds=0.0, min_seconds=0.01, block_seconds=0.001)


@pytest.fixture
def edge(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """Runs a command in this process: ``edge("predict", bundle, image)`` or ``edge("models --json")``."""
    monkeypatch.setattr(measure, "LatencyPlan", brief())
    before = signal.getsignal(signal.SIGTERM)

    def run(*words: object) -> Ended:
        arguments = shlex.split(str(words[0])) + [str(word) for word in words[1:]]
        monkeypatch.setattr(sys, "argv", ["edgeres", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capfd.readouterr()
        return Ended(int(stop.value.code or 0), out, err)

    yield run
    signal.signal(signal.SIGTERM, before)


def in_new_process(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    # A process in the background of a shell ignores Ctrl-C, and its children inherit that.
    code = "import signal; signal.signal(2, signal.default_int_handler); from edgeres.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options})


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small network, images, labels and a bundle of them."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "tiny.onnx").write_bytes(resnet(quantized=False, width=4, px=PX).SerializeToString())
    write_images(folder / "images.npz", 20, PX, CLASSES)
    (folder / "labels.txt").write_text("".join(f"thing {i}\n" for i in range(CLASSES)))
    Image.fromarray(np.full((20, 24, 3), 90, np.uint8)).save(folder / "photo.jpg")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "LatencyPlan", brief())
        edgeres.build(
            folder / "tiny.onnx",
            calibration=folder / "images.npz",
            validation=folder / "images.npz",
            labels=folder / "labels.txt",
            targets=("cpu", "jetson-orin-nx"),
            effort="fast",
            max_drop=None,
            output=folder / "robot.edgeres",
        )
    return folder


@pytest.fixture
def work(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder as working directory, which a test may change."""
    folder = tmp_path / "wörk ing"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    return folder


# The network is random, so the check that FP32 sees the images fails rightly.
BUILD = "build --calibration images.npz --validation images.npz --effort fast --allow fp32 --model"


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(p): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


# ---- what works ----------------------------------------------------------------------------------------------------


def test_the_demo_end_to_end(tmp_path: Path) -> None:
    """The README's build on few images: bundled weights, generated set, all files of the bundle."""
    data = ["--calibration", "signs:16", "--validation", "signs:16@1", "--max-drop", "100"]
    build = in_new_process("build", "--model", "resnet20", "--int8", "--effort", "fast", *data, cwd=tmp_path)
    out, err = build.communicate()
    assert build.returncode == 0, err
    assert "resnet20: weights signs, 16 classes\n" in err
    assert "PASSED" in out or "Passed, not certain: " in out
    assert "\x1b" not in out + err
    path = tmp_path / "resnet20.edgeres"
    assert list(tmp_path.iterdir()) == [path]
    bundle = Bundle(path)
    bundle.check()
    assert {FP32, *GRAPH_FILES} - {"model.int8.onnx"} <= set(bundle.manifest.files)
    labels = (path / "labels.txt").read_text().splitlines()
    assert tuple(labels) == bundle.manifest.model.labels
    assert "stop" in labels
    assert PIXELS_KIND.read(bundle.file("pixels.json")).images == 16
    report = bundle.report()
    assert report["accuracy"]["fp32"]["total"] == 16
    assert report["latency"]["speedup"] > 0
    assert report["command"] == shlex.join(["edgeres", *build.args[3:]])  # type: ignore[index]


def test_build_prints_its_report_as_json_and_writes_the_same(edge: Any, work: Path) -> None:
    done = edge(f"{BUILD} tiny.onnx --target cpu --max-drop 100 --labels labels.txt -o new.edgeres --json")
    shared = "20 of 20 calibration images are validation images too, which makes INT8 look better than it is"
    assert (done.code, done.err) == (0, f"{shared}\n")
    assert json.loads(done.out) == Bundle(work / "new.edgeres").report()
    assert done.out == (work / "new.edgeres" / "report.json").read_text()
    assert json.loads(done.out)["options"]["labels"] == "labels.txt"


def test_a_bundle_gets_class_names_from_folders_where_the_network_has_none(edge: Any, work: Path) -> None:
    names = [f"sign {letter}" for letter in "abcdefghij"]
    for index, name in enumerate(names):
        for day in ("day1", "day2"):
            (work / "val" / name / day).mkdir(parents=True)
            pixels = np.random.default_rng(index).integers(0, 256, (PX, PX, 3), np.uint8)
            Image.fromarray(pixels).save(work / "val" / name / day / f"{index}.png")
    (work / "val" / "readme.md").touch()
    done = edge(f"{BUILD} tiny.onnx --validation val --target cpu --max-drop 100 -o new.edgeres")
    assert (work / "new.edgeres" / "labels.txt").read_text().splitlines() == names
    assert Bundle(work / "new.edgeres").manifest.model.labels == tuple(names)
    assert "note: validation: val: 20 images, 10 classes; left out: 1 not images (readme.md)" in done.err
    assert "edgeres" in edge("verify new.edgeres --validation val --max-drop 100 --allow fp32").out


def test_a_failed_gate_is_exit_code_1_and_the_bundle_says_so(edge: Any, work: Path) -> None:
    done = edge(f"{BUILD} tiny.onnx --target cpu --max-size-mb 0.001 -o new.edgeres")
    assert done.code == 1
    assert "FAILED" in done.out
    assert Bundle(work / "new.edgeres").report()["passed"] is False
    verified = edge("verify new.edgeres --validation images.npz --min-speedup 1e9 --max-drop 100 --json")
    assert verified.code == 1
    verdicts = {v["gate"]["metric"]: v["passed"] for v in json.loads(verified.out)["verdicts"]}
    assert verdicts == {"drop_pp": True, "class_drop_pp": True, "speedup": False}


def test_verify_leaves_the_bundle_alone_and_writes_its_report_elsewhere(edge: Any, work: Path) -> None:
    before = snapshot(work / "robot.edgeres")
    done = edge("verify robot.edgeres --validation images.npz --max-drop 100 --allow fp32 -o reports/today --json")
    assert (done.code, done.err) == (0, "")
    assert (work / "reports" / "today" / "report.json").read_text() == done.out
    assert (work / "reports" / "today" / "report.html").is_file()
    assert snapshot(work / "robot.edgeres") == before


def test_verify_holds_a_bundle_against_the_accepted_one(edge: Any, work: Path) -> None:
    accepted = edge("baseline accept robot.edgeres --json")
    assert (accepted.code, accepted.err) == (0, "")
    assert json.loads(accepted.out)["images"] == 20
    (work / "pyproject.toml").write_text(
        '[tool.edgeres]\nbaseline = "baseline.json"\nmax-drop = 100\nallow = ["fp32"]\n'
    )
    files = "--junit out/edgeres.xml --markdown out/summary.md"
    done = edge(f"verify robot.edgeres --validation images.npz --max-regression 100 --max-slowdown off {files}")
    where = work.resolve() / "pyproject.toml"
    told = f"reads [tool.edgeres] in {where}; weaker than the default: max-drop, allow"
    assert (done.code, done.err.splitlines()[0]) == (0, told)
    assert "top-1 since baseline" in done.out
    assert (work / "out" / "edgeres.xml").read_text().startswith("<?xml")
    assert (work / "out" / "summary.md").read_text().startswith("## ")
    strict = edge("verify robot.edgeres --validation images.npz --max-slowdown off --on-unsure fail --json")
    report = json.loads(strict.out)
    assert (strict.code, report["outcome"], report["passed"]) == (1, "unsure", False)  # too few images for the gate
    assert report["baseline"]["graphs"]["cpu"]["drop_pp"] == 0
    again = edge("baseline accept robot.edgeres -o other.json")
    assert again.out.startswith("other.json: tiny, 20 images of ")


def test_predict_names_the_best_classes_of_each_image(edge: Any, work: Path) -> None:
    done = edge("predict robot.edgeres photo.jpg photo.jpg --top 3")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert [lines[0], lines[4]] == ["photo.jpg"] * 2
    assert lines[1:4] == lines[5:8]
    top = json.loads(edge("predict robot.edgeres photo.jpg --top 99 --json").out)[0]["top"]
    assert len(top) == CLASSES
    assert sum(entry["score"] for entry in top) == pytest.approx(1, rel=1e-4)
    assert lines[1] == f"  {100 * top[0]['score']:5.1f} %  {top[0]['label']}"


def test_export_writes_what_it_says(edge: Any, work: Path) -> None:
    done = edge("export --model resnet20 --weights random --num-classes 7 -o out/net.onnx --json")
    assert done.code == 0
    said = json.loads(done.out)
    assert said["bytes"] == (work / "out" / "net.onnx").stat().st_size
    assert len(said["model"]["labels"]) == 7
    assert said["max_error"] < 1e-4
    inspected = json.loads(edge("inspect out/net.onnx --json").out)[0]
    assert inspected["style"] is None
    assert inspected["operators"]["Conv"] == 19


@pytest.mark.parametrize(("target", "style"), [("cpu", "cpu"), ("jetson-orin-nx", "tensorrt")])
def test_quantize_makes_a_graph_that_inspect_explains(edge: Any, work: Path, target: str, style: str) -> None:
    done = edge(f"quantize tiny.onnx --calibration images.npz --target {target} -o q.onnx --json")
    assert (done.code, done.err) == (0, "")
    said = json.loads(done.out)
    assert (said["style"], said["images"], said["bytes"]) == (style, 20, (work / "q.onnx").stat().st_size)
    inspected = json.loads(edge("inspect q.onnx --json").out)[0]
    assert (inspected["style"], inspected["refused"]) == (style, [])
    assert len(inspected["quantized"]) == said["activations"]
    shown = edge("inspect q.onnx").out
    assert all(q["tensor"] in shown for q in inspected["quantized"])  # complete names, so that they can be searched for


def test_skipped_images_are_named(edge: Any, work: Path) -> None:
    for name in "ab":
        (work / "photos" / name).mkdir(parents=True)
        shutil.copy("photo.jpg", work / "photos" / name / "1.jpg")
    (work / "photos" / "a" / "2.jpg").write_bytes((work / "photo.jpg").read_bytes()[:300])
    refused = edge("quantize tiny.onnx --calibration photos --target cpu -o q.onnx")
    assert (refused.code, "a/2.jpg (truncated)" in refused.line) == (3, True)
    skipped = edge("quantize tiny.onnx --calibration photos --target cpu -o q.onnx --skip-unreadable")
    assert (skipped.code, skipped.line) == (0, "unreadable images, left out: a/2.jpg (truncated)")
    assert "2 images" in skipped.out


@pytest.mark.skipif(not available("rtx").importable, reason="TensorRT-RTX is not installed")
def test_engine_adds_to_the_bundle(edge: Any, work: Path) -> None:
    done = edge("engine robot.edgeres --target rtx --max-batch 2 --json")
    assert done.code == 0
    assert done.line.startswith("rtx: forms are not measured here") or not done.err  # the latter on a GPU
    file = next(record["file"] for record in json.loads(done.out) if record["precision"] == "int8")
    bundle = Bundle(work / "robot.edgeres")
    bundle.check()
    assert bundle.file(file).stat().st_size > 0
    assert {record.target for record in bundle.manifest.engines} == {"jetson-orin-nx", "rtx"}
    shown = edge("engine robot.edgeres --target rtx")
    assert f"robot.edgeres/{file}: " in shown.out


@pytest.mark.parametrize("command", ["models", "targets", "doctor", "inspect robot.edgeres"])
def test_lists_come_as_text_and_as_json(edge: Any, work: Path, command: str) -> None:
    text, data = edge(command), edge(f"{command} --json")
    assert (text.code, text.err, data.code, data.err) == (0, "", 0, "")
    assert isinstance(json.loads(data.out), list)
    assert "\x1b" not in text.out
    for entry in json.loads(data.out):
        assert str(entry.get("name", entry.get("file"))) in text.out


def test_home_and_foreign_letters_in_paths(edge: Any, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = work / "日本 hôme"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    shutil.move(work / "tiny.onnx", home / "mödel.onnx")
    shutil.move(work / "images.npz", home)
    done = edge("quantize ~/mödel.onnx --calibration ~/images.npz --target cpu --output=~/q.onnx")
    assert (done.code, [line for line in done.err.splitlines() if not re.match(r"\d/\d \w", line)]) == (0, [])
    assert (home / "q.onnx").is_file()
    assert not (work / "~").exists()


def test_mean_and_std_are_red_green_blue_whatever_the_network_takes() -> None:
    rgb = Preprocess(crop_px=(8, 8), mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    bgr = Preprocess(crop_px=(8, 8), mean=(0.3, 0.2, 0.1), std=(3.0, 2.0, 1.0), channel_order="BGR")
    assert InputChoice(channel_order="BGR").over(rgb) == bgr
    assert InputChoice(channel_order="RGB").over(bgr) == rgb
    assert InputChoice().over(bgr) == bgr
    other = InputChoice(mean=(7.0, 8.0, 9.0)).over(bgr)
    assert (other.mean, other.std) == ((9.0, 8.0, 7.0), (3.0, 2.0, 1.0))
    assert InputChoice(mean=(7.0, 8.0, 9.0)).over(rgb).mean == (7.0, 8.0, 9.0)


# ---- what does not ---------------------------------------------------------------------------------------------------


class Hostile:
    """Its pickle asks to run a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch owned",)


def spoil(folder: Path) -> None:
    """All files that the table below names."""
    data = dict(np.load(folder / "images.npz"))
    np.savez(folder / "high.npz", images=data["images"], labels=data["labels"] + 7)
    np.savez(folder / "nchw.npz", images=data["images"].transpose(0, 3, 1, 2), labels=data["labels"])
    np.savez(folder / "nolabels.npz", images=data["images"])
    np.savez(folder / "short.npz", images=data["images"], labels=data["labels"][:-1])
    for name in ("cut.npz", "tiny.onnx", "photo.jpg"):
        whole = (folder / name.replace("cut.npz", "images.npz")).read_bytes()
        (folder / name.replace("cut.npz", "cut.npz").replace("tiny", "cut").replace("photo", "cut")).write_bytes(
            whole[:400]
        )
    for name in ("empty.npz", "empty.onnx", "empty.pth", "empty.jpg", "file"):
        (folder / name).touch()
    for name in ("folder/inner", "foreign", "changed.edgeres", "bare.edgeres"):
        (folder / name).mkdir(parents=True)
    (folder / "foreign" / "thesis.tex").touch()
    shutil.copytree(folder / "robot.edgeres", folder / "changed.edgeres", dirs_exist_ok=True)
    (folder / "changed.edgeres" / FORMS["cpu"].file).write_bytes(b"other")
    shutil.copytree(folder / "robot.edgeres", folder / "cpu.edgeres")
    (folder / "cpu.edgeres" / FORMS["tensorrt"].file).unlink()
    seal(folder / "cpu.edgeres", Bundle(folder / "cpu.edgeres").manifest)
    (folder / "hostile.pth").write_bytes(pickle.dumps({"state_dict": Hostile()}))
    (folder / "two.txt").write_text("one\ntwo\n")


QUANTIZE = "quantize tiny.onnx -o q.onnx --calibration"
PREVENTED = [
    # the model
    (f"{BUILD} nowhere.onnx", "nowhere.onnx: no such file; edgeres export"),
    (f"{BUILD} empty.onnx", "empty.onnx: the file is empty"),
    (f"{BUILD} cut.onnx", "cut.onnx: not a valid ONNX file"),
    (f"{BUILD} tiny.onnx --labels nowhere.txt", "nowhere.txt: labels cannot be read (No such file or directory)"),
    (f"{BUILD} tiny.onnx --labels two.txt", "tiny: 2 labels for 10 classes; one label per output"),
    # checkpoints
    ("export --model resnet20 -o o.onnx --weights hostile.pth", "reading it would run"),
    ("export --model resnet20 -o o.onnx --weights empty.pth", "empty.pth: is empty"),
    ("export --model resnet20 -o o.onnx --weights folder", "folder: is a directory; give the checkpoint's file"),
    ("export --model resnet20 -o o.onnx --weights nowhere.pth", "nowhere.pth: no such file; or name one of"),
    ("export --model resnet20 -o o.onnx --weights imagenot", "resnet20: no weights 'imagenot'; there are"),
    # images
    (f"{QUANTIZE} nowhere", "nowhere: does not exist; expected a directory"),
    (f"{QUANTIZE} image.npz", "image.npz: does not exist; did you mean images.npz?"),
    (f"{QUANTIZE} folder", "folder: holds no images"),
    (f"{QUANTIZE} file", "file: is no source of images; expected a directory"),
    (f"{QUANTIZE} photo.jpg", "photo.jpg: is no source of images; give the directory it lies in"),
    (f"{QUANTIZE} nchw.npz", "nchw.npz: expected images of uint8 (N, H, W, 3), found uint8 (20, 3, 16, 16); transpose"),
    (f"{QUANTIZE} short.npz", "short.npz: has 20 images but 19 labels; store one label per image"),
    (f"{QUANTIZE} cut.npz", "cut.npz: cannot be read as .npz"),
    (f"{QUANTIZE} empty.npz", "empty.npz: cannot be read as .npz"),
    (f"{QUANTIZE} signs:many", "signs:many: is not a generated set; write signs[:count][@seed]"),
    (f"{BUILD} tiny.onnx --validation high.npz", "labels are out of range 0 to 9: images[3] has 10"),
    (f"{BUILD} tiny.onnx --validation nolabels.npz", "nolabels.npz: has no 'labels', only images"),
    (f"{BUILD} tiny.onnx --validation nowhere", "nowhere: does not exist"),
    # where to write
    (f"{BUILD} tiny.onnx -o foreign", "foreign: exists and is not a bundle, so it is left alone; choose another -o"),
    (f"{BUILD} tiny.onnx -o file", "file: exists and is not a bundle"),
    (f"{BUILD} tiny.onnx -o file/x.edgeres", "file: Not a directory; check the path"),
    ("quantize tiny.onnx --calibration images.npz -o file/q.onnx", "file: Not a directory; check the path"),
    ("verify robot.edgeres --validation images.npz -o file/x", "file: Not a directory; check the path"),
    # bundles
    ("predict nowhere.edgeres photo.jpg", "nowhere.edgeres: no such bundle; edgeres build"),
    ("predict file photo.jpg", "file: no such bundle"),
    ("predict bare.edgeres photo.jpg", "bare.edgeres: not a bundle: it has no manifest.json; give a directory"),
    ("predict changed.edgeres photo.jpg", "changed.edgeres: model.int8.cpu.onnx was changed after it was written"),
    ("verify changed.edgeres --validation images.npz", "was changed after it was written; build it again"),
    ("verify robot.edgeres --validation images.npz --baseline nowhere.json", "nowhere.json: cannot be read"),
    (
        "verify robot.edgeres --validation images.npz --baseline two.txt",
        "two.txt: is not a baseline of edgeres: Expecting",
    ),
    ("baseline accept nowhere.edgeres", "nowhere.edgeres: no such bundle"),
    ("baseline accept two.txt", "two.txt: is not a report of edgeres: Expecting value"),
    ("baseline accept robot.edgeres -o file/b.json", "file: Not a directory; check the path"),
    ("inspect changed.edgeres", "was changed after it was written; build it again"),
    ("inspect nowhere", "nowhere: no such file"),
    ("inspect photo.jpg", "photo.jpg: not a valid ONNX file"),
    ("engine cpu.edgeres", "cpu.edgeres: has no graph for TensorRT; build it with --target"),
    ("engine robot.edgeres --target jetson-orin-nx", "jetson-orin-nx: not built here; copy the bundle to the device"),
    ("engine robot.edgeres --target cpu", "cpu: no engine: model.int8.cpu.onnx runs as it is"),
    # images to classify
    ("predict robot.edgeres nowhere.jpg", "nowhere.jpg: No such file or directory; check the path"),
    ("predict robot.edgeres photo.jpg cut.jpg", "cut.jpg: truncated; give a JPEG"),
    ("predict robot.edgeres empty.jpg", "empty.jpg: empty, 0 bytes; copy it again"),
    ("predict robot.edgeres folder", "folder: holds no images (it is empty); image files end in"),
    ("predict robot.edgeres photo.jpg --sheet file/s.html", "file: Not a directory; check the path"),
    ("predict robot.edgeres/manifest.json photo.jpg", "is a file inside a bundle; give robot.edgeres"),
    (
        "predict robot.edgeres photo.jpg --backend rtx",
        "the bundle holds no engine for it; edgeres engine robot.edgeres",
    ),
    ("export --model resnet18 -o o.onnx --num-classes 5", "has 16 classes, not 5; the bundled weights know road signs"),
]
MISUSED = [
    ("build --model resnet21", "resnet21: no such architecture; did you mean resnet"),
    (
        "build --model weights.pth",
        "a checkpoint holds weights, not the architecture; --model resnet18 --weights weights.pth",
    ),
    (f"{BUILD} tiny.onnx --weights random", "an ONNX file brings its own weights and classes; drop --weights"),
    ("build --model tiny.onnx", "tiny (tiny.onnx) needs validation images; --validation SRC: a directory"),
    (f"{BUILD} tiny.onnx --target jetson-orin", "no target is named 'jetson-orin'; did you mean jetson-orin-n"),
    (f"{BUILD} tiny.onnx --target jetson-nano", "Jetson Nano cannot be a target: its Maxwell GPU"),
    (f"{BUILD} tiny.onnx --compute-capability 9.9", "does not build for compute capability 9.9; use"),
    (f"{QUANTIZE} images.npz --std 0 0 0", "std and pixel scale must be above zero"),
    (
        f"{QUANTIZE} images.npz --pixel-scale 0",
        "std and pixel scale must be above zero",
    ),
    ("build --model folder", "folder: is a directory, not a model; give a FILE.onnx"),
    ("build --model two.txt", "two.txt: is neither an ONNX file nor an architecture; give a FILE.onnx"),
    ("build --model robot.edgeres", "robot.edgeres: is a bundle, built already; edgeres verify robot.edgeres"),
    (f"{BUILD} tiny.onnx --max-drop -3", "max_drop: -3 is below zero; write 1 for a loss of 1 pp"),
    (f"{BUILD} tiny.onnx --min-agreement 101", "min_agreement: 101 % is more than all images"),
    ("export --model resnet20 -o x.pth", "x.pth: is not named .onnx; -o x.onnx"),
    ("verify robot.edgeres --allow wieghts", "there is no check 'wieghts' to allow; did you mean weights"),
    ("quantize tiny.onnx -o q.onnx", "calibration images are needed; --calibration SRC"),
    ("quantize resnet20 -o q.onnx --calibration images.npz", "resnet20: is not named .onnx; edgeres export writes"),
    ("quantize tiny.onnx -o ./tiny.onnx --calibration images.npz", "would overwrite the FP32 graph"),
    ("verify robot.edgeres --allow everything", "there is no check 'everything' to allow; choose one of labels"),
    ("verify robot.edgeres", "tiny (tiny.onnx) needs validation images; --validation SRC"),
    (
        "verify robot.edgeres --validation images.npz -o robot.edgeres",
        "robot.edgeres: is a bundle, and its report is not overwritten",
    ),
]


@pytest.mark.parametrize(
    ("command", "words", "code"),
    [(c, w, 3) for c, w in PREVENTED] + [(c, w, 2) for c, w in MISUSED],
    ids=[c.replace(BUILD, "build ...").replace(QUANTIZE, "quantize ...") for c, _ in PREVENTED + MISUSED],
)
def test_errors_are_one_line_and_leave_nothing(edge: Any, work: Path, command: str, words: str, code: int) -> None:
    spoil(work)
    before = snapshot(work)
    done = edge(command)
    assert (done.code, done.out) == (code, "")
    assert done.line.startswith("edgeres: ")
    assert words in done.line
    assert len(done.line) <= 300
    assert snapshot(work) == before


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("biuld", "No such command 'biuld'. Did you mean 'build'?"),
        ("build", "Missing option '--model'"),
        ("build --model resnet18 --weight x", "No such option '--weight'"),
        (f"{QUANTIZE} images.npz --method best", "'best' is not one of 'mse', 'entropy', 'percentile', 'minmax'"),
        (f"{QUANTIZE} images.npz --calibration-size 0", "0 is not in the range x>=1"),
        (f"{QUANTIZE} images.npz --mean 1 2", "--mean: 2 values for a network with 3 channels"),
        (f"{QUANTIZE} images.npz --channel-order GBR", "'GBR' is not one of 'RGB', 'BGR'"),
        ("predict robot.edgeres", "Missing argument 'IMAGE|DIR...'"),
        ("verify robot.edgeres --max-drop much", "'much' is neither a number nor off"),
        ("verify robot.edgeres --on-unsure panic", "'panic' is not one of 'warn', 'fail'"),
        ("baseline forget robot.edgeres", "'forget' is not one of 'accept', 'check'"),
        ("export --model resnet20 -o .", "is a directory"),
    ],
)
def test_wrong_usage_is_exit_code_2(edge: Any, work: Path, command: str, words: str) -> None:
    before = snapshot(work)
    done = edge(command)
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert "Traceback" not in done.err
    assert snapshot(work) == before


@pytest.mark.parametrize("command", ["--debug inspect nowhere", "inspect nowhere --debug"])
def test_debug_shows_the_traceback_and_the_same_line(edge: Any, work: Path, command: str) -> None:
    plain, debug = edge("inspect nowhere"), edge(command)
    assert debug.code == plain.code == 3
    assert debug.err.startswith("Traceback (most recent call last):\n")
    assert debug.err.endswith(plain.err)


def test_a_fault_of_ours_does_not_look_like_a_failed_gate(edge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("edgeres.zoo.registry.list_models", broken)
    done = edge("models")
    assert (done.code, done.out) == (70, "")
    assert done.err.startswith("Traceback")
    assert done.err.endswith("this is a fault of edgeres (ZeroDivisionError); please report it with the lines above\n")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            MemoryError("Unable to allocate 9 GiB"),
            "there is not enough memory (Unable to allocate 9 GiB); use a smaller",
        ),
        (MemoryError(), "there is not enough memory; use a smaller --batch"),
        (RecursionError(), "the input is nested too deeply to be read; write it again"),
    ],
    ids=repr,
)
def test_what_is_too_large_is_one_line(
    edge: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def broken() -> None:
        raise error

    monkeypatch.setattr("edgeres.zoo.registry.list_models", broken)
    done = edge("models")
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith(f"edgeres: {words}")
    assert len(done.err.splitlines()) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        process = in_new_process("targets", stdout=full)
        _, err = process.communicate()
    assert (process.returncode, err.count("\n")) == (3, 1)
    assert err.startswith("edgeres: No space left on device; free some space")


@pytest.mark.parametrize("command", ["models", "doctor", "inspect robot.edgeres --json"])
def test_a_reader_that_has_gone_ends_it_quietly(work: Path, command: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = in_new_process(*command.split(), stdout=writing)
    os.close(writing)
    _, err = process.communicate()
    assert (process.returncode, err) == (128 + signal.SIGPIPE, "")


def test_closed_streams_are_no_fault(work: Path) -> None:
    close = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    command = [sys.executable, "-m", "edgeres", "inspect", "robot.edgeres"]
    assert subprocess.run([*close, *command], check=False).returncode == 0


@pytest.mark.parametrize("setting", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colours_on_terminals_that_want_them(setting: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    process = in_new_process("doctor", stdout=theirs, env={**kept, "TERM": "xterm", **setting})
    os.close(theirs)
    shown = b""
    with open(ours, "rb", buffering=0) as terminal:  # noqa: PTH123
        while True:
            try:
                block = terminal.read(4096)
            except OSError:  # how Linux says that the other side has closed
                break
            if not block:
                break
            shown += block
    assert process.wait() == 0
    assert b"python" in shown
    assert (b"\x1b[" in shown) is (not setting)


# ---- interrupts and company ------------------------------------------------------------------------------------------


def wait_for(folder: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_build_leaves_what_was_there(work: Path, number: signal.Signals) -> None:
    before = snapshot(work)
    process = in_new_process(*shlex.split(f"{BUILD} tiny.onnx --target cpu -o robot.edgeres"))
    wait_for(work, ".robot.edgeres.partial-*/model.int8.cpu.onnx", process)
    process.send_signal(number)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert err.strip().splitlines()[-1] == "edgeres: interrupted; nothing is half-written"
    assert "Traceback" not in err
    assert snapshot(work) == before


def test_two_builds_of_one_bundle_at_once(work: Path) -> None:
    code = (
        "import functools; from edgeres.verify import measure\n"
        "brief = dict(warmup_seconds=0.0, min_seconds=0.01, block_seconds=0.001)\n"
        "measure.LatencyPlan = functools.partial(measure.LatencyPlan, **brief)\n"
        "from edgeres.cli import main; main()"
    )
    arguments = shlex.split(f"{BUILD} tiny.onnx --target cpu --max-drop 100 -o robot.edgeres")
    command = [sys.executable, "-c", code, *arguments]
    others = siblings(work / "robot.edgeres")
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ended = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 3], ended
    loser = ended[[process.returncode for process in both].index(3)]
    assert "robot.edgeres: is being built by process" in loser
    Bundle(work / "robot.edgeres").check()
    assert siblings(work / "robot.edgeres") == others


# ---- the same from Python --------------------------------------------------------------------------------------------


def test_build_from_python_gives_the_report_and_the_path(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "LatencyPlan", brief())
    images = work / "images.npz"
    given: dict[str, Any] = {"calibration": images, "validation": images, "effort": "fast", "targets": "cpu"}
    result = edgeres.build(work / "tiny.onnx", max_size_mb=0.001, **given)
    assert result.path == Path("tiny.edgeres")
    assert result.passed is False
    assert result.report == Bundle(result.path).report()
    assert result.report["options"]["calibration"] == "images.npz"
    with edgeres.load(result.path) as classify:
        assert classify("photo.jpg").label in {f"class {i}" for i in range(CLASSES)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metod": "mse"}, "build: no such option: metod"),
        ({"method": "best"}, "build: no such method: 'best'; one of mse, entropy"),
        ({"channel_order": "GBR"}, "build: no such channel_order: 'GBR'; one of RGB, BGR"),
        ({"on_unreadable": "ignore"}, "build: no such on_unreadable: 'ignore'; one of fail, skip"),
        ({"targets": ["cpu", "gpu"]}, "no target is named 'gpu'"),
        ({"compute_capabilities": ("9.9",)}, "does not build for compute capability 9.9"),
    ],
)
def test_wrong_options_from_python_are_told_before_anything_is_done(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words.replace("[", r"\[")):
        edgeres.build("nowhere.onnx", **options)


@pytest.mark.parametrize("quiet", [False, True])
def test_notes_go_to_stderr_also_beside_json(capsys: pytest.CaptureFixture[str], quiet: bool) -> None:
    show = progress(quiet=quiet)
    with show.task("waiting", 2) as advance:
        advance(1)
    show.say("note: [bold] is no markup")
    assert capsys.readouterr() == ("", "note: [bold] is no markup\n")
    assert not isinstance(show, Notes) or show.notes == ["[bold] is no markup"]


def test_what_was_left_out_is_said_beside_json_and_in_it(edge: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a/1.png", "b/2.png", "beside.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / "images" / name)
    given = f"--calibration {tmp_path / 'images'} --json -o {tmp_path}"
    edge(f"export --model resnet20 -o {tmp_path}/net.onnx")
    for command in (
        f"quantize {tmp_path}/net.onnx {given}/int8.onnx --target cpu --effort fast",
        f"calibrate resnet20 {given}/calibration.json",
        f"build --model resnet20 {given}/net.edgeres --target cpu --effort fast --validation signs:16",
    ):
        done = edge(command)
        found = json.loads(done.out)
        notes = found["notes"] if "notes" in found else found["data"]["calibration"]["notes"]
        assert [note for note in notes if "1 outside class folders (beside.png)" in note]
        assert "1 outside class folders (beside.png)" in done.err


def test_help_of_every_command_fits_a_terminal(edge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    examples: Sequence[str] = ("edgeres ", "git ")
    for name in COMMANDS:
        done = edge(f"{name} --help")
        assert (done.code, done.err) == (0, "")
        lines = done.out.splitlines()
        assert [line for line in lines if len(line) > 80 and not line.strip().startswith(tuple(examples))] == []


def test_a_package_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    """torch raises RuntimeError where memory is short, and others what they like."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise RuntimeError('Unable to make a type')\n")
    command = [sys.executable, "-m", "edgeres", "export", "--model", "resnet20", "-o", str(tmp_path / "m.onnx")]
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith(
        "edgeres: torch cannot be loaded (RuntimeError: Unable to make a type); python -c 'import torch' has to work"
    )
    assert "Traceback" not in done.stderr
