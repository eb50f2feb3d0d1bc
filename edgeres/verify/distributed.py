"""FP32 against INT8 on a Dask cluster: workers run the graphs, this process judges.

Workers give back scores (4 bytes a class) and the mean of each image's channels, batch by batch as one machine would
run them; :func:`edgeres.verify.accuracy.compare` then reads them in order, as it reads a loader and runners, so every
figure comes from the same code and is the same to the last bit on one kind of processor. Latency is no matter of a
cluster and stays with :mod:`edgeres.verify.measure`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeres.calibrate.distributed import (
    Recipe,
    check_version,
    connect,
    hold,
    images_of,
    in_order,
    task_batches,
)
from edgeres.data.base import View
from edgeres.data.choose import DataChoice
from edgeres.data.loader import Batch, Loader, OnUnreadable
from edgeres.errors import SourceError
from edgeres.progress import SILENT, Progress
from edgeres.records import F32, I64, ModelSpec, Preprocess
from edgeres.runtime.runner import Feed, Runner
from edgeres.verify.accuracy import Comparison, compare
from edgeres.verify.answers import REFERENCE
from edgeres.verify.candidates import Candidates, OpenGraph


@dataclass(frozen=True)
class _BatchScores:
    """What a worker found on one batch: scores by graph, and images in the shape (B, 3, 1, 1) of the contract."""

    scores: Mapping[str, F32]
    means: npt.NDArray[np.float64]
    labels: I64
    indices: I64


@dataclass(frozen=True)
class _Piece:
    """What a worker found on some batches."""

    batches: tuple[_BatchScores, ...]
    unreadable: tuple[str, ...]
    backend: str


def compare_on(
    address: str,
    candidates: Candidates,
    spec: ModelSpec,
    data: DataChoice,
    loader: Loader,
    progress: Progress = SILENT,
) -> Comparison:
    """As :func:`edgeres.verify.accuracy.compare`, with the graphs run by the workers of a scheduler.

    Args:
        candidates: graphs; their files are sent to the workers.
        data: the user's words, by which workers open what ``loader`` has.
        loader: of the validation images, here.

    Raises:
        EnvironmentError_: the cluster cannot be reached, or fails.
        SourceError: workers do not see the same images; else as ``compare``.
    """
    with connect(address) as client:
        named = {REFERENCE: candidates.reference, **candidates.others}
        graphs = {name: one.graph.read_bytes() for name, one in named.items() if one.graph is not None}
        work = _Work(
            {name: named[name].integer for name in graphs},
            candidates.open_graph,
            loader.preprocess,
            loader.batch_size,
            loader.on_unreadable,
            Recipe(data, spec, loader.source.digest(), "validation").absolute(),
        )
        remote = _Remote(loader, client, work, graphs)
        replays = {name: _Replay() for name in graphs}
        remote.replays = replays
        runners: dict[str, Runner] = {name: replay for name, replay in replays.items() if name != REFERENCE}
        comparison = compare(replays[REFERENCE], runners, remote, spec, progress)
        loader.unreadable[:] = remote.unreadable
        return comparison


class _Replay:
    """Stands for a runner: gives the scores that a worker found on the batch at hand."""

    name = "ONNX Runtime CPU"
    input_name, output_name = "image", "scores"
    scores: F32

    def infer(self, feed: Feed) -> Feed:
        return {self.output_name: self.scores}

    def __enter__(self) -> _Replay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class _Remote(Loader):
    """Stands for the loader: the batches of the workers, in order."""

    replays: Mapping[str, _Replay]

    def __init__(self, loader: Loader, client: Any, work: _Work, graphs: Mapping[str, bytes]) -> None:
        super().__init__(loader.source, loader.preprocess, loader.batch_size, loader.on_unreadable)
        self._client, self._work, self._graphs = client, work, graphs

    def __iter__(self) -> Iterator[Batch]:
        self.unreadable.clear()
        client, count = self._client, len(self.source)
        size = self.batch_size * task_batches(client, -(-count // self.batch_size), self.batch_size)
        pieces = [np.arange(start, min(start + size, count), dtype=np.int64) for start in range(0, count, size)]
        held = [hold(client, graph) for graph in self._graphs.values()]
        for piece in in_order(client, _run, (held, self._work), pieces):
            self.unreadable.extend(piece.unreadable)
            for found in piece.batches:
                for name, replay in self.replays.items():
                    replay.name, replay.scores = piece.backend, found.scores[name]
                # A mean over one pixel is that pixel, so whoever averages finds the images' own means.
                yield Batch(found.means, found.labels, found.indices)


def _readable(loader: Loader) -> Iterator[Batch]:
    """The batches; none, where all of a part are left out that the whole is asked to go on without."""
    try:
        yield from loader
    except SourceError:
        if loader.on_unreadable == "fail" or len(loader.unreadable) < len(loader.source):
            raise


@dataclass(frozen=True)
class _Work:
    """What every worker needs besides graphs and positions.

    Attributes:
        integer: by graph, in the order in which they are given, whether it runs with integer kernels.
        open_graph: makes a runner of a graph.
        recipe: opens the images.
    """

    integer: Mapping[str, bool]
    open_graph: OpenGraph
    preprocess: Preprocess
    batch_size: int
    on_unreadable: OnUnreadable
    recipe: Recipe


def _run(graphs: list[bytes], work: _Work, version: str, positions: I64) -> _Piece:
    """Run every graph on some images; this is called on a worker."""
    check_version(version)
    source = images_of(work.recipe)
    view = View(source, positions, source.labels[positions], source.classes, source.description)
    loader = Loader(view, work.preprocess, work.batch_size, work.on_unreadable)
    axes = (2, 3) if work.preprocess.layout == "NCHW" else (1, 2)
    found = []
    with ExitStack() as stack:
        runners = {
            name: stack.enter_context(work.open_graph(graph, integer=integer))
            for (name, integer), graph in zip(work.integer.items(), graphs, strict=True)
        }
        for batch in _readable(loader):
            scores = {
                name: runner.infer({runner.input_name: batch.inputs})[runner.output_name]
                for name, runner in runners.items()
            }
            means = batch.inputs.mean(axis=axes, dtype=np.float64, keepdims=True)
            found.append(_BatchScores(scores, means, batch.labels, positions[batch.indices]))
        backend = runners[REFERENCE].name
    return _Piece(tuple(found), tuple(loader.unreadable), backend)
