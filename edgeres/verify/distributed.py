"""Compares FP32 with INT8 on a Dask cluster: workers run the graphs, this process compares the answers.

Workers run the same batches as one machine would, and return scores (4 bytes per class) and the channel means of each
image. :func:`edgeres.verify.accuracy.compare` reads them in order through a loader and runners that replay them, so
every figure comes from the same code and is bit-identical on the same kind of processor. Latency is not measured here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeres.calibrate.distributed import Recipe, check_version, connect, hold, images_of, in_order, task_batches
from edgeres.data.choose import DataChoice
from edgeres.data.corruptions import Corrupted, Corruption
from edgeres.data.loader import Batch, Loader, OnUnreadable
from edgeres.errors import SourceError
from edgeres.graph.shared_weights import whole_graph
from edgeres.progress import SILENT, Progress
from edgeres.records import F32, I64, ModelSpec, Preprocess
from edgeres.runtime.runner import Feed, Runner
from edgeres.verify.accuracy import Comparison, compare
from edgeres.verify.answers import REFERENCE
from edgeres.verify.candidates import Candidates, OpenGraph


@dataclass(frozen=True)
class _TaskResult:
    """A worker's result for one task.

    Attributes:
        batches: each batch with its scores by graph, float32 (B, classes); in place of the inputs it has the mean of
            each image's channels, as float64 inputs of one pixel, so that compare() gets the mean colours.
        backend: name of the runner.
    """

    batches: tuple[tuple[Batch, Mapping[str, F32]], ...]
    unreadable: tuple[str, ...]
    backend: str


def compare_on(
    address: str, candidates: Candidates, spec: ModelSpec, data: DataChoice, loader: Loader, progress: Progress = SILENT
) -> Comparison:
    """Do what :func:`edgeres.verify.accuracy.compare` does, with the graphs run by the workers of a scheduler.

    Args:
        candidates: the graphs; their files are sent to the workers.
        data: the user's choice of images; workers open the images of ``loader`` by it.
        loader: loads the validation images in this process.

    Raises:
        EnvironmentError_: the cluster cannot be reached, or fails.
        SourceError: workers do not find the same images.
        ModelError, SourceError: as in ``compare``.
    """
    source = loader.source
    original = source.original if isinstance(source, Corrupted) else source
    with connect(address) as client:
        named = {REFERENCE: candidates.reference, **candidates.others}
        graphs = {name: whole_graph(entry.graph) for name, entry in named.items() if entry.graph is not None}
        job = _CompareJob(
            {name: named[name].integer for name in graphs},
            candidates.open_graph,
            loader.preprocess,
            loader.batch_size,
            loader.on_unreadable,
            Recipe(data, spec, original.digest(), "validation").absolute(),
            (source.corruption, source.seed) if isinstance(source, Corrupted) else None,
        )
        replays = {name: _ReplayRunner() for name in graphs}
        remote = _RemoteLoader(loader, client, job, graphs, replays)
        runners: dict[str, Runner] = {name: replay for name, replay in replays.items() if name != REFERENCE}
        comparison = compare(replays[REFERENCE], runners, remote, spec, progress)
        loader.unreadable[:] = remote.unreadable
        return comparison


class _ReplayRunner:
    """A runner that returns the scores a worker computed for the current batch."""

    name = "ONNX Runtime CPU"
    input_name, output_name = "image", "scores"
    scores: F32

    def infer(self, feed: Feed) -> Feed:
        return {self.output_name: self.scores}

    def __enter__(self) -> _ReplayRunner:
        return self

    def __exit__(self, *error: object) -> None:
        return None


class _RemoteLoader(Loader):
    """A loader that yields the workers' batches in order, and sets the scores of each batch in ``replays``."""

    def __init__(
        self,
        loader: Loader,
        client: Any,
        job: _CompareJob,
        graphs: Mapping[str, bytes],
        replays: Mapping[str, _ReplayRunner],
    ) -> None:
        super().__init__(loader.source, loader.preprocess, loader.batch_size, loader.on_unreadable)
        self._client, self._job, self._graphs, self._replays = client, job, graphs, replays

    def __iter__(self) -> Iterator[Batch]:
        self.unreadable.clear()
        client, count = self._client, len(self.source)
        size = self.batch_size * task_batches(client, -(-count // self.batch_size), self.batch_size)
        tasks = [np.arange(start, min(start + size, count), dtype=np.int64) for start in range(0, count, size)]
        held = [hold(client, graph) for graph in self._graphs.values()]
        for result in in_order(client, _run, (held, self._job), tasks):
            self.unreadable.extend(result.unreadable)
            for batch, scores in result.batches:
                for name, replay in self._replays.items():
                    replay.name, replay.scores = result.backend, scores[name]
                yield batch


def _readable(loader: Loader) -> Iterator[Batch]:
    """The batches; with ``skip``, none where no image of the task can be read: other tasks may have readable ones."""
    try:
        yield from loader
    except SourceError:
        if loader.on_unreadable == "fail" or len(loader.unreadable) < len(loader.source):
            raise


@dataclass(frozen=True)
class _CompareJob:
    """What a worker needs besides the graphs and the positions of its images.

    Attributes:
        integer: whether each graph runs with integer kernels, by name, in the order of the graphs.
        open_graph: opens a runner for a graph.
        recipe: says how to open the images.
        corrupted: corruption and seed where the images are corrupted; None where they are taken as they are.
    """

    integer: Mapping[str, bool]
    open_graph: OpenGraph
    preprocess: Preprocess
    batch_size: int
    on_unreadable: OnUnreadable
    recipe: Recipe
    corrupted: tuple[Corruption | None, int] | None = None


def _run(graphs: list[bytes], job: _CompareJob, version: str, positions: I64) -> _TaskResult:
    """Run every graph on the images at ``positions``; called on a worker."""
    check_version(version)
    source = images_of(job.recipe)
    if job.corrupted is not None:
        source = Corrupted(source, *job.corrupted)
    loader = Loader(source.at(positions), job.preprocess, job.batch_size, job.on_unreadable)
    axes = (2, 3) if job.preprocess.layout == "NCHW" else (1, 2)
    batches = []
    with ExitStack() as stack:
        runners = {
            name: stack.enter_context(job.open_graph(graph, integer=integer))
            for (name, integer), graph in zip(job.integer.items(), graphs, strict=True)
        }
        for batch in _readable(loader):
            scores = {
                name: runner.infer({runner.input_name: batch.inputs})[runner.output_name]
                for name, runner in runners.items()
            }
            means = batch.inputs.mean(axis=axes, dtype=np.float64, keepdims=True)
            batches.append((Batch(means, batch.labels, positions[batch.indices]), scores))
        backend = runners[REFERENCE].name
    return _TaskResult(tuple(batches), tuple(loader.unreadable), backend)
