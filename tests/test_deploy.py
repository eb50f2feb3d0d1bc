"""A bundle for other programs: what they would read, held against their own formats and formulas."""

from __future__ import annotations

import configparser
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import CLASSES, SIDE, classifier, spec, write_bundle
from click.testing import CliRunner
from fake_gpu import plan
from test_backends import RECORD

from edgeres.bundle import FP32, Bundle, log_of
from edgeres.cli.deploy import PROGRAMS as NAMES
from edgeres.cli.deploy import command
from edgeres.data.preprocess import apply
from edgeres.deploy.programs import PROGRAMS
from edgeres.errors import BundleError, EngineError, ModelError, UsageError
from edgeres.graph.forms import FORMS
from edgeres.pipeline.deploy import deploy
from edgeres.records import Fit, PixelReading, Portability

MODEL = classifier()
# Keys of the group [property] that gstnvinfer_property_parser.h of DeepStream 6 names, of those for classifiers.
NVINFER = {
    "gie-unique-id",
    "process-mode",
    "interval",
    "labelfile-path",
    "gpu-id",
    "output-tensor-meta",
    "enable-dla",
    "use-dla-core",
    "batch-size",
    "network-mode",
    "model-engine-file",
    "workspace-size",
    "output-blob-names",
    "network-type",
    "infer-dims",
    "model-color-format",
    "net-scale-factor",
    "offsets",
    "maintain-aspect-ratio",
    "symmetric-padding",
    "scaling-filter",
    "scaling-compute-hw",
    "network-input-order",
    "onnx-file",
    "classifier-type",
    "classifier-threshold",
}


def bundle(folder: Path, graphs: tuple[str, ...] = ("cpu", "tensorrt"), **changes: Any) -> Path:
    files = {FP32: MODEL, **{FORMS[name].file: MODEL for name in graphs}}
    return write_bundle(folder / "my robot.edgeres", spec(**changes), files)


def with_engines(path: Path, *gpus: str, largest: int | None = 4) -> Path:
    from dataclasses import replace

    for gpu in gpus:
        name = f"engines/tensorrt-{gpu}.engine"
        record = replace(RECORD, file=name, portability=Portability((gpu,)))
        log = f"# TensorRT\n# batch: min 1, opt 1, max {largest}\n".encode()
        Bundle(path).add_engines({record: plan(MODEL)}, {log_of(name): log} if largest else {})
    return path


def run(path: Path, to: str, *more: str) -> tuple[Path, list[str]]:
    out = path.parent / to
    done = CliRunner().invoke(command, [str(path), "--to", to, "-o", str(out), "--json", *more])
    assert done.exception is None, done.output
    said = json.loads(done.stdout)
    assert {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()} == set(said["files"])
    return out, said["notes"]


def test_triton_reads_its_model_configuration(tmp_path: Path) -> None:
    """By NVIDIA's protobuf where its package is installed, else by its lines."""
    out, notes = run(with_engines(bundle(tmp_path), "8.7", "11.0"), "triton")
    folder = out / "my-robot"
    assert (folder / "labels.txt").read_text().splitlines() == list(CLASSES)
    assert sorted(path.name for path in (folder / "1").iterdir()) == ["model.sm110.plan", "model.sm87.plan"]
    assert (folder / "1/model.sm87.plan").read_bytes() == plan(MODEL)
    text = (folder / "config.pbtxt").read_text()
    assert 'backend: "tensorrt"\nmax_batch_size: 4\n' in text and "dynamic_batching" in text
    assert any("a client sends NCHW RGB, resized to 8x8" in note for note in notes)
    assert "Triton must have TensorRT 10.3.0, which built the engines" in notes
    model = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="Triton's protobuf: tritonclient[grpc]")
    from google.protobuf import text_format

    config = text_format.Parse(text, model.ModelConfig())
    assert dict(config.cc_model_filenames) == {"8.7": "model.sm87.plan", "11.0": "model.sm110.plan"}
    assert [(one.name, list(one.dims)) for one in config.input] == [("pixels", [3, SIDE, SIDE])]
    assert [(one.name, one.label_filename) for one in config.output] == [("scores", "labels.txt")]


def test_triton_takes_the_graph_for_the_cpu_where_there_is_no_engine(tmp_path: Path) -> None:
    out, notes = run(bundle(tmp_path), "triton", "--max-batch", "1")
    text = (out / "my-robot/config.pbtxt").read_text()
    assert 'backend: "onnxruntime"\nmax_batch_size: 1\n' in text and "KIND_CPU" in text
    assert "dynamic_batching" not in text and "the bundle has no TensorRT engine" in notes[-1]
    assert (out / "my-robot/1/model.onnx").read_bytes() == MODEL


def nvinfer(out: Path) -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(out / "my-robot.txt")
    assert parser.sections() == ["property"] and set(parser["property"]) <= NVINFER
    return dict(parser["property"])


@pytest.mark.parametrize(
    ("changes", "off"),
    [
        ({"mean": (0.0,) * 3, "std": (1.0,) * 3}, 0.0),
        ({"mean": (128.0,) * 3, "std": (1.0,) * 3, "pixel_scale": 1.0}, 0.0),
        ({"mean": (0.4, 0.5, 0.6), "std": (0.25,) * 3, "channel_order": "BGR"}, 0.0),
        ({}, 0.05),
    ],
)
def test_nvinfers_formula_is_the_contracts(tmp_path: Path, changes: dict[str, Any], off: float) -> None:
    """``scale * (pixel - offset)`` on every byte, against the function that edgeres prepares images with."""
    path = bundle(tmp_path, **changes)
    out, notes = run(path, "deepstream")
    keys = nvinfer(out)
    preprocess = Bundle(path).manifest.model.preprocess
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    image[0, 0], image[0, 1] = 0, 255
    wanted = apply(image, preprocess)
    planes = image.transpose(2, 0, 1)[:: -1 if keys["model-color-format"] == "1" else 1].astype(np.float64)
    offsets = np.array([float(word) for word in keys["offsets"].split(";")])
    found = float(keys["net-scale-factor"]) * (planes - offsets[:, None, None])
    worst = float(np.abs(found - wanted).max())
    assert worst <= max(off, 1e-4)
    said = [float(match[1]) for note in notes if (match := re.search(r"up to ([\d.]+) off", note))]
    assert said == ([] if off == 0 else [pytest.approx(worst, abs=0.001)])
    assert keys["infer-dims"] == f"3;{SIDE};{SIDE}" and keys["output-blob-names"] == "scores"
    assert (out / "labels.txt").read_text() == f"{';'.join(CLASSES)}\n"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resize_px": 12}, "nvinfer squashes the whole frame; the network was built to see 12 px cut to 8x8"),
        ({"fit": Fit(fill=(114,) * 3)}, "nvinfer pads with black, and the network was built with 114"),
        ({}, "nvinfer resizes without antialiasing, which this network's bilinear resize has"),
        ({}, "the scores are logits"),
    ],
)
def test_what_nvinfer_does_otherwise_is_said_and_stands_in_the_file(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    out, notes = run(bundle(tmp_path, **changes), "deepstream")
    assert any(note.startswith(words) for note in notes)
    assert f"# {words}" in (out / "my-robot.txt").read_text()


def test_nvinfer_with_an_engine_and_a_letterbox(tmp_path: Path) -> None:
    path = with_engines(bundle(tmp_path, fit=Fit(fill=(0,) * 3), output="probabilities"), "8.7")
    out, notes = run(path, "deepstream", "--max-batch", "2")
    keys = nvinfer(out)
    assert (keys["maintain-aspect-ratio"], keys["symmetric-padding"]) == ("1", "1")
    assert (keys["batch-size"], keys["model-engine-file"]) == ("2", "model.engine")
    assert "model.engine is for SM 8.7 and TensorRT 10.3.0; elsewhere nvinfer builds" in notes
    assert not any("logits" in note or "pads" in note for note in notes)


def test_the_script_starts_trtexec(tmp_path: Path) -> None:
    """From any folder; further options come last."""
    out, _ = run(bundle(tmp_path), "trtexec", "--max-batch", "4")
    fake = tmp_path / "bin/trtexec"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nls; printf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    path = f"{fake.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [out / "build.sh", "--verbose"], env={"PATH": path}, cwd="/", capture_output=True, text=True, check=True
    )
    said = done.stdout.splitlines()
    assert said[:2] == ["build.sh", "model.int8.onnx"] and said[-1] == "--verbose"
    assert f"--maxShapes=pixels:4x3x{SIDE}x{SIDE}" in said and "--stronglyTyped" in said


def test_what_cannot_be_written(tmp_path: Path) -> None:
    path = with_engines(bundle(tmp_path / "a"), "8.7")
    with pytest.raises(EngineError, match="an engine takes at most 4 images at once, not 8"):
        deploy(path, "triton", tmp_path / "out", 8)
    with pytest.raises(EngineError, match="neither a TensorRT engine nor a graph for the CPU"):
        deploy(bundle(tmp_path / "b", ("tensorrt",)), "triton", tmp_path / "out")
    for to in ("deepstream", "trtexec"):
        with pytest.raises(EngineError, match="has no INT8 graph for TensorRT"):
            deploy(bundle(tmp_path / to, ("cpu",)), to, tmp_path / "out")
    with pytest.raises(BundleError, match="holds no INT8 graph"):
        deploy(bundle(tmp_path / "c", ()), "triton", tmp_path / "out")
    with pytest.raises(UsageError, match="no program is named 'ros'"):
        deploy(path, "ros", tmp_path / "out")
    four = {"mean": (0.0,) * 4, "std": (1.0,) * 4, "reading": PixelReading(channels=4)}
    with pytest.raises(ModelError, match="no images of 4 channels"):
        deploy(bundle(tmp_path / "d", **four), "deepstream", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="exists already; give another folder"):
        deploy(path, "triton", tmp_path / "out")


def test_a_file_that_was_changed_is_not_written(tmp_path: Path) -> None:
    path = with_engines(bundle(tmp_path), "8.7")
    (path / "engines/tensorrt-8.7.engine").write_bytes(b"other")
    with pytest.raises(BundleError, match="was changed after it was written"):
        deploy(path, "triton", tmp_path / "out")


def test_an_engine_without_a_log_has_batch_1(tmp_path: Path) -> None:
    out, notes = run(with_engines(bundle(tmp_path), "8.7", largest=None), "triton")
    assert "max_batch_size: 1\n" in (out / "my-robot/config.pbtxt").read_text()
    assert any("does not say an engine's largest batch" in note for note in notes)


def test_the_command_names_what_there_is() -> None:
    assert tuple(PROGRAMS) == NAMES


HOSTILE = "x\ncustom-lib-path=model.engine\r[evil]\u2028\x1b"


@pytest.mark.parametrize("to", NAMES)
def test_no_text_of_a_bundle_begins_a_line_of_its_own(to: str, tmp_path: Path) -> None:
    """A line of nvinfer's file names a library to load; a line of labels shifts the classes after it."""
    from dataclasses import replace

    path = tmp_path / "b.edgeres"
    model = replace(spec(), labels=(HOSTILE, *CLASSES[1:]))
    write_bundle(path, model, {FP32: MODEL, **{FORMS[name].file: MODEL for name in ("cpu", "tensorrt")}})
    record = replace(RECORD, version=HOSTILE, file="engines/a.engine", portability=Portability(("8.7/../../x",)))
    Bundle(path).add_engines({record: plan(MODEL)}, {})
    made = deploy(path, to, tmp_path / "out")
    kinds = (".txt", ".pbtxt", ".sh", ".py", ".xml", ".cfg", ".yaml")
    texts = {name: text.decode() for name, text in made.files.items() if name.endswith(kinds) and text}
    assert texts and not any(path.name == "x.plan" for path in tmp_path.rglob("*"))
    for name, text in texts.items():
        assert "\n".join(text.splitlines()) + "\n" == text and text.replace("\n", "").isprintable()
        assert not re.search(r"^(custom-lib-path|\[evil)", text, re.MULTILINE)
        if name.endswith("labels.txt"):
            assert len(text.replace(";", "\n").splitlines()) == len(CLASSES)


def test_names_that_a_program_would_read_as_two_are_refused(tmp_path: Path) -> None:
    import onnx

    graph = onnx.load_from_string(MODEL)
    for node in graph.graph.node:
        node.output[:] = ["a;b" if name == "scores" else name for name in node.output]
    graph.graph.output[0].name = "a;b"
    files = {FP32: graph.SerializeToString(), FORMS["tensorrt"].file: graph.SerializeToString()}
    path = write_bundle(tmp_path / "b.edgeres", spec(), files)
    with pytest.raises(ModelError, match="nvinfer cannot name the output 'a;b'"):
        deploy(path, "deepstream", tmp_path / "out")
