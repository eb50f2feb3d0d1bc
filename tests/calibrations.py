"""A small network with images, and the command line in this process, for the tests of calibration."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from bundles import write_images
from engine_graphs import resnet

from edgeres.calibrate.forward import with_outputs
from edgeres.calibrate.identity import Identity, identify
from edgeres.calibrate.record import CalibrationFile, TensorEntry
from edgeres.calibrate.shards import CalibrationJob
from edgeres.cli import main
from edgeres.data.base import Source
from edgeres.data.choose import DataChoice, choose_calibration
from edgeres.data.loader import Loader
from edgeres.pipeline.take import Fp32Model, ModelChoice, take
from edgeres.quantize.graphs import wanted_by_all
from edgeres.records import Preprocess

PX, CLASSES, IMAGES, BATCH = 16, 10, 45, 8


def write_tiny(folder: Path) -> Path:
    """``tiny.onnx`` and ``images.npz`` of 45 images: six batches of eight, the last of five."""
    folder.mkdir(exist_ok=True)
    (folder / "tiny.onnx").write_bytes(resnet(quantized=False, width=4, px=PX).SerializeToString())
    write_images(folder / "images.npz", IMAGES, PX, CLASSES)
    return folder


def tiny(folder: Path) -> tuple[Fp32Model, Source, CalibrationJob]:
    """The network, its images, and the calibration of one on the other."""
    fp32 = take(ModelChoice(folder / "tiny.onnx"))
    source = choose_calibration(DataChoice(str(folder / "images.npz")), fp32.spec)
    wanted = wanted_by_all(fp32.graph)
    model, contract = identify(fp32.graph, "tiny"), fp32.spec.preprocess
    job = CalibrationJob(model, contract, source.description, source.digest(), len(source), BATCH, wanted)
    return fp32, source, job


def calibration(tensors: Mapping[str, TensorEntry]) -> CalibrationFile:
    """The content of a calibration.json of some network with these tensors."""
    model, contract = Identity("0" * 64, 1, 0.5, 1.5, "some"), Preprocess((PX, PX))
    return CalibrationFile("mse", 8, "noise", "1" * 64, contract, model, BATCH, tensors=tensors)


def activations(fp32: Fp32Model, source: Source, tensors: list[str]) -> dict[str, Any]:
    """Every value of the named tensors on every image, by ONNX Runtime in one batch."""
    session = ort.InferenceSession(with_outputs(fp32.graph, tensors), providers=["CPUExecutionProvider"])
    batch = next(iter(Loader(source, fp32.spec.preprocess, len(source))))
    name = fp32.graph.graph.input[0].name
    inner = [tensor for tensor in tensors if tensor != name]
    found = dict(zip(inner, session.run(inner, {name: batch.inputs}), strict=True))
    return {name: batch.inputs, **found}


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str


class Command:
    """Runs edgeres in this process: ``command("calibrate", model, "-o", path)``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capfd = monkeypatch, capfd

    def __call__(self, *words: object) -> Ended:
        self._monkeypatch.setattr(sys, "argv", ["edgeres", *map(str, words)])
        before = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as stop:
                main()
        finally:
            signal.signal(signal.SIGTERM, before)
        out, err = self._capfd.readouterr()
        return Ended(int(stop.value.code or 0), out, err)

    def refused(self, *words: object) -> str:
        """The last line on stderr of a command that ends with an error."""
        ended = self(*words)
        assert ended.code in {2, 3}, ended
        assert "Traceback" not in ended.err
        return ended.err.splitlines()[-1]


def same_values(left: Any, right: Any) -> bool:
    """Whether two arrays are the same, bit for bit."""
    return left.dtype == right.dtype and np.array_equal(left, right)
