"""The whole way on a simulated device behind a real ssh server: remote, engine, tune, verify, gates, report."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import foreign_graphs
import onnx
import pytest
from bundles import write_images
from click.testing import CliRunner, Result
from onnx import numpy_helper
from sshd import Server, server

from edgeres import build
from edgeres.bundle import Bundle
from edgeres.cli.remote import command
from edgeres.reports import read_report

IMAGES = 40
# What the device takes for the graph in each file, unless a test says otherwise: every INT8 form, FP16, FP32.
TIMES_MS = {"model.fp32.onnx": 60.0, "model.fp16.onnx": 30.0}
INT8_MS = 20.0
# Noise has no classes that FP32 could be right about.
GATES = ("--", "--max-drop", "off", "--max-class-drop", "off", "--allow", "fp32")


@dataclass
class Robot:
    """The device; ``folder`` is in its file system and in ours."""

    sshd: Server
    folder: Path
    bundle: Path

    @property
    def report(self) -> dict[str, Any]:
        return read_report(self.folder / "report" / "report.json")

    def forms(self, runtime: str = "tensorrt") -> dict[str, str]:
        """File of each form for a runtime."""
        return {form.name: form.file for form in Bundle(self.bundle).forms if runtime in form.runtimes}

    def remote(self, planted: dict[str, dict[str, Any]], *options: str, flavour: str = "tensorrt") -> Result:
        """Run ``edgeres remote`` with what the GPU does with the forms, by name."""
        told = {"model.fp32.onnx": {"ms": 60.0}}
        for seed, (name, file) in enumerate(self.forms(flavour).items()):
            ms = TIMES_MS.get(file, INT8_MS)
            told[file] = {"ms": ms, "spread": 0.02, "seed": seed, **planted.get(name, {})}
        faults, plan = self.folder / "faults", self.folder / "planted.json"
        plan.write_text(json.dumps({"planted": told, "flavours": [flavour], "faults": str(faults)}))
        script = Path(__file__).with_name("simulated_device.py")
        edgeres = f"env EDGERES_CACHE='{self.folder}/cache' {sys.executable} {script} '{plan}'"
        there = ("--ssh", self.sshd.ssh, "--edgeres", edgeres, "--to", str(self.folder / "there"))
        images = ("--validation", str(self.folder / "images.npz"), "-o", str(self.folder / "report"))
        ran = CliRunner().invoke(command, ["robot", str(self.bundle), *there, *images, *options])
        if ran.exception is not None and not isinstance(ran.exception, SystemExit):
            raise ran.exception
        assert faults.read_text() == ""
        return ran

    def trials(self) -> dict[str, dict[str, Any]]:
        return {engine["trial"]["form"]: engine["trial"] for engine in self.report["engines"] if "trial" in engine}

    def check(self, name: str) -> dict[str, Any]:
        (found,) = [one for one in self.report["checks"] if one["name"] == name]
        return dict(found)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture(scope="module")
def made(sshd: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle for the device, as it is built on a host without a GPU, and images."""
    folder = tmp_path_factory.mktemp("made")
    onnx.save(foreign_graphs.option_a(), str(folder / "net.onnx"))
    images = write_images(folder / "images.npz", IMAGES, px=foreign_graphs.PX)
    build(
        folder / "net.onnx",
        calibration=str(images),
        validation=str(images),
        targets=("jetson-orin-nano",),
        effort="fast",
        max_drop=None,
        output=folder / "net.edgeres",
    )
    return folder


@pytest.fixture
def robot(sshd: Server, made: Path, tmp_path: Path) -> Robot:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return Robot(sshd, tmp_path, tmp_path / "net.edgeres")


def negated(graph: Path, output: Path) -> str:
    """A graph whose classes are in another order of their scores."""
    model = onnx.load(graph)
    last = next(node for node in reversed(model.graph.node) if node.op_type == "Gemm")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == last.input[1])
    weight.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weight), weight.name))
    onnx.save(model, output)
    return str(output)


def test_the_fastest_right_form_is_built_verified_and_brought_home(robot: Robot) -> None:
    """``mixed`` is fastest but wrong, ``head`` does not build; ``half`` and ``tensorrt`` differ by noise alone."""
    forms = robot.forms()
    assert {"tensorrt", "fp16", "head", "mixed"} <= forms.keys()
    wrong = negated(robot.bundle / "model.fp32.onnx", robot.folder / "wrong.onnx")
    ran = robot.remote(
        {
            "mixed": {"ms": 2.0, "answers": wrong},
            "head": {"refused": "Error Code 10: no implementation for node fc"},
            "tensorrt": {"ms": 10.0, "spread": 0.05},
            "half": {"ms": 10.0, "spread": 0.05},
        },
        *(*GATES, "--min-speedup", "2", "--min-speedup-fp16", "1.5"),
    )
    report, trials = robot.report, robot.trials()
    assert trials.keys() == forms.keys()
    (taken,) = [name for name, trial in trials.items() if trial["chosen"]]
    close = {name: trials[name]["sqnr_db"] for name in ("tensorrt", "half")}
    assert taken == max(close, key=lambda name: close[name])  # both take 10 ms, so the more accurate
    assert trials["mixed"]["p50_ms"] is None and " on the probes" in trials["mixed"]["why"]
    assert trials["head"]["why"].startswith("not built: TensorRT built no engine")
    assert (report["accuracy"]["graph"], report["passed"], ran.exit_code) == ("tensorrt int8 engine", True, 0)
    assert report["latency"]["speedup"] == pytest.approx(61.25 / 11.25, rel=0.03)
    assert report["latency"]["speedup_fp16"] == pytest.approx(31.25 / 11.25, rel=0.03)
    assert robot.check("engine")["outcome"] == "passed"
    gates = {verdict["gate"]["metric"]: verdict["outcome"] for verdict in report["verdicts"]}
    assert gates == {"speedup": "passed", "speedup_fp16": "passed"}
    home = Bundle(robot.bundle)
    home.check()
    assert {one.precision for one in home.manifest.engines if one.file} == {"int8", "fp16", "fp32"}
    assert home.manifest.engines == Bundle(robot.folder / "there" / "net.edgeres").manifest.engines
    page = re.sub(r"<[^>]*>", " ", (robot.folder / "report" / "report.html").read_text().partition("<body")[2])
    for text in (ran.output.partition("edgeres 0.")[2], page):
        assert text.index("tensorrt int8 engine") < text.index("half")  # the table of forms comes behind
    assert "taken: the fastest" in " ".join(ran.output.split())


def test_an_engine_that_computes_something_else_is_caught(robot: Robot) -> None:
    """Without a trial on the probes, verification finds it."""
    wrong = negated(robot.bundle / "model.fp32.onnx", robot.folder / "wrong.onnx")
    ran = robot.remote({"tensorrt": {"answers": wrong}}, "--no-tune", *GATES)
    check = robot.check("engine")
    assert (ran.exit_code, check["outcome"]) == (1, "failed")
    assert "tensorrt int8 engine" in check["reason"] and " dB" in check["reason"]
    assert not robot.report["passed"] and "engine" in ran.output


def test_int8_that_is_slower_than_fp16_is_told_first(robot: Robot) -> None:
    ran = robot.remote({name: {"ms": 20.0 if name == "fp16" else 50.0} for name in robot.forms()}, *GATES)
    report = robot.report
    assert (report["accuracy"]["graph"], robot.trials()["fp16"]["chosen"]) == ("tensorrt fp16 engine", True)
    assert report["latency"]["speedup_fp16"] == pytest.approx(21.25 / 51.25, rel=0.03)
    words = " ".join(ran.output.partition("edgeres 0.")[2].split())
    assert "INT8 is slower than FP16 here: 0.4" in words.partition("validated on")[0]  # above all figures
    page = (robot.folder / "report" / "report.html").read_text()
    assert page.index("INT8 is slower than FP16 here: 0.4") < page.index("Accuracy")
    assert "speedup of INT8 over FP16" in words and "Speedup of INT8 over FP16" in page
