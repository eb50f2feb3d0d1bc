"""Calibration and comparison on a Dask cluster: bit-identical results, even when workers die."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import write_images
from calibrations import CLASSES, PX, Command, write_tiny

pytest.importorskip("distributed", reason="the scale extra is not installed")

from distributed import LocalCluster

from edgeres.calibrate import distributed
from edgeres.calibrate.distributed import Recipe, connect, images_of
from edgeres.data.choose import DataChoice, choose_validation
from edgeres.data.corruptions import CORRUPTIONS
from edgeres.data.loader import Loader
from edgeres.errors import EnvironmentError_, SourceError
from edgeres.judge.asked import GateChoice
from edgeres.pipeline.build import build
from edgeres.pipeline.calibrate import CalibrateOptions, calibrate_file
from edgeres.pipeline.options import VerifyOptions
from edgeres.pipeline.take import ModelChoice, take
from edgeres.pipeline.verify import verify_bundle
from edgeres.progress import Advance, Silent
from edgeres.quantize.graphs import RangeChoice, quantize
from edgeres.runtime.ort import OrtRunner
from edgeres.verify import measure
from edgeres.verify.accuracy import compare
from edgeres.verify.candidates import Candidate, Candidates
from edgeres.verify.distributed import compare_on

IMAGES = 203


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny(tmp_path_factory.mktemp("made"))
    write_images(folder / "images.npz", IMAGES, PX, CLASSES)
    return folder


@pytest.fixture(scope="module")
def workers() -> Iterator[Any]:
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster:
        yield cluster


class Watcher(Silent):
    """Progress that records messages, and calls ``once`` after the first images."""

    def __init__(self, once: Any = None) -> None:
        self.once, self.steps, self.lines = once, list[int](), list[str]()

    @contextmanager
    def task(self, name: str, total: int | None) -> Iterator[Advance]:
        yield self.advance

    def advance(self, steps: int) -> None:
        if steps:
            self.steps.append(steps)
            if self.once and len(self.steps) == 1:
                self.once()

    def say(self, line: str) -> None:
        self.lines.append(line)


def calibrated(folder: Path, output: Path, scheduler: str | None, progress: Watcher) -> bytes:
    data = DataChoice(calibration=str(folder / "images.npz"))
    options = CalibrateOptions("minmax", 8, scheduler=scheduler)
    calibrate_file(ModelChoice(folder / "tiny.onnx"), data, options, output, progress)
    return output.read_bytes()


def kill_one(cluster: Any) -> None:
    """Kill one of the worker processes that the test started; its nanny starts another."""
    os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)


def test_a_cluster_gives_the_result_of_one_machine_even_if_a_worker_dies(
    made: Path, workers: Any, tmp_path: Path
) -> None:
    alone = calibrated(made, tmp_path / "alone.json", None, Watcher())
    watched = Watcher(once=lambda: kill_one(workers))
    together = calibrated(made, tmp_path / "together.json", workers.scheduler_address, watched)
    assert together == alone
    assert len(watched.steps) > 1, "the worker died after the last part"
    assert sum(watched.steps) == IMAGES
    assert {path.name for path in tmp_path.iterdir()} == {"alone.json", "together.json"}


def test_a_comparison_on_a_cluster_is_the_same_to_the_last_bit(made: Path, workers: Any, tmp_path: Path) -> None:
    fp32 = take(ModelChoice(made / "tiny.onnx"))
    data = DataChoice(validation=str(made / "images.npz"))
    source, _ = choose_validation(data, fp32.spec)
    loader = Loader(source, fp32.spec.preprocess, 16)
    done = quantize(fp32.graph, ["tensorrt", "cpu"], loader, RangeChoice("minmax"))
    graphs = {"fp32": tmp_path / "fp32.onnx"} | {style: tmp_path / f"{style}.onnx" for style in done.graphs}
    for graph, path in zip([fp32.graph, *done.graphs.values()], graphs.values(), strict=True):
        path.write_bytes(graph.SerializeToString())
    with (
        OrtRunner(graphs["fp32"]) as reference,
        OrtRunner(graphs["tensorrt"], integer=False) as tensorrt,
        OrtRunner(graphs["cpu"]) as cpu,
    ):
        alone = compare(reference, {"tensorrt": tensorrt, "cpu": cpu}, loader, fp32.spec)
    named = {
        name: Candidate(lambda threads, path=path: OrtRunner(path), path, integer=name != "tensorrt")
        for name, path in graphs.items()
    }
    candidates = Candidates(named.pop("fp32"), named, "cpu", OrtRunner)
    together = compare_on(workers.scheduler_address, candidates, fp32.spec, data, loader)
    assert np.array_equal(together.table.labels, alone.table.labels)
    assert (together.names, together.indices, together.pixels) == (alone.names, alone.indices, alone.pixels)
    for name in ("fp32", "tensorrt", "cpu"):
        assert np.array_equal(together.table.answers[name], alone.table.answers[name])
        assert together.scored[name] == alone.scored[name]
    assert together.images == IMAGES


def test_verify_on_a_cluster_reports_what_one_machine_does(
    made: Path, workers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brief = partial(measure.LatencyPlan, warmup_seconds=0.0, min_seconds=0.01, block_seconds=0.001)
    monkeypatch.setattr(measure, "LatencyPlan", brief)
    images = str(made / "images.npz")
    output = tmp_path / "tiny.edgeres"
    build(made / "tiny.onnx", calibration=images, validation=images, effort="fast", targets=("cpu",), output=output)
    reports = [
        verify_bundle(
            output, DataChoice(validation=images), VerifyOptions(GateChoice(corruptions=True), scheduler=address)
        )
        for address in (None, workers.scheduler_address)
    ]
    assert reports[0]["accuracy"] == reports[1]["accuracy"]
    assert reports[0]["corruptions"] == reports[1]["corruptions"]
    assert len(reports[0]["corruptions"]) == 1 + len(CORRUPTIONS)
    assert reports[0]["accuracy"]["graphs"]["cpu"]["images"] == IMAGES
    assert reports[1]["options"]["scheduler"] == workers.scheduler_address
    with pytest.raises(EnvironmentError_, match=r"tcp://127\.0\.0\.1:9"):
        verify_bundle(output, DataChoice(validation=images), VerifyOptions(scheduler="tcp://127.0.0.1:9"))


def test_workers_that_see_other_images_are_refused(made: Path, workers: Any) -> None:
    spec = take(ModelChoice(made / "tiny.onnx")).spec
    recipe = Recipe(DataChoice(calibration=str(made / "images.npz")), spec, "another digest")
    with connect(workers.scheduler_address) as client, pytest.raises(SourceError, match="a worker sees other images"):
        client.submit(images_of, recipe).result()
    gone = replace(recipe, data=DataChoice(calibration="/nowhere/images.npz"))
    with pytest.raises(SourceError, match="a worker cannot open it: does not exist; every worker must see the same"):
        images_of(gone)


def test_a_worker_of_another_version_is_refused(
    made: Path, workers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "__version__", "9.9")
    with pytest.raises(EnvironmentError_, match=r"and this is 9\.9; install one version everywhere"):
        calibrated(made, tmp_path / "c.json", workers.scheduler_address, Watcher())
    assert list(tmp_path.iterdir()) == []


def test_relative_paths_are_resolved_before_they_are_sent(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    spec = take(ModelChoice("tiny.onnx")).spec
    found = Recipe(DataChoice("images.npz", "signs:64"), spec, "").absolute()
    assert (found.data.calibration, found.data.validation) == (str((made / "images.npz").resolve()), "signs:64")


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "smoke://signals:1"])
def test_an_address_without_scheduler_is_reported_in_one_line(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], address: str
) -> None:
    monkeypatch.setattr(distributed, "_CONNECT_SECONDS", 0.5)
    command = Command(monkeypatch, capfd)
    words = ("calibrate", made / "tiny.onnx", "--calibration", made / "images.npz", "-o", tmp_path / "c.json")
    line = command.refused(*words, "--scheduler", address)
    assert line.startswith(f"edgeres: {address}: no Dask scheduler answers (")
    assert line.endswith("; start one with dask scheduler")
