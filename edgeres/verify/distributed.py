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
from pathlib import Path
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
from edgeres.data.choose import DataChoice
from edgeres.data.loader import Batch, Loader, OnUnreadable
from edgeres.errors import SourceError
from edgeres.progress import SILENT, Progress
from edgeres.records import F32, I64, ModelSpec, Preprocess
from edgeres.runtime.ort import OrtRunner
from edgeres.runtime.runner import Feed, Runner
from edgeres.verify.accuracy import Comparison, compare

_REFERENCE = "fp32"


@dataclass(frozen=True)
class _Seen:
    """What a worker found on one batch: scores by graph, and images in the shape (B, 3, 1, 1) of the contract."""

    scores: Mapping[str, F32]
    means: npt.NDArray[np.float64]
    labels: I64
    indices: I64


@dataclass(frozen=True)
class _Piece:
    """What a worker found on some batches."""

    batches: tuple[_Seen, ...]
    unreadable: tuple[str, ...]
    backend: str


def compare_on(
    address: str,
    graphs: Mapping[str, Path],
    spec: ModelSpec,
    data: DataChoice,
    loader: Loader,
    progress: Progress = SILENT,
) -> Comparison:
    """As :func:`edgeres.verify.accuracy.compare`, with the graphs run by the workers of a scheduler.

    Args:
        graphs: files by name, ``fp32`` the reference and the others by style.
        data: the user's words, by which workers open what ``loader`` has.
        loader: of the validation images, here.

    Raises:
        EnvironmentError_: the cluster cannot be reached, or fails.
        SourceError: workers do not see the same images; else as ``compare``.
    """
    with connect(address) as client:
        recipe = Recipe(data, spec, loader.source.digest(), "validation").absolute()
        remote = _Remote(loader, client, recipe, {name: path.read_bytes() for name, path in graphs.items()})
        replays = {name: _Replay() for name in graphs}
        remote.replays = replays
        runners: dict[str, Runner] = {name: replay for name, replay in replays.items() if name != _REFERENCE}
        comparison = compare(replays[_REFERENCE], runners, remote, spec, progress)
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

    def __init__(self, loader: Loader, client: Any, recipe: Recipe, graphs: Mapping[str, bytes]) -> None:
        super().__init__(loader.source, loader.preprocess, loader.batch_size, loader.on_unreadable)
        self._client, self._recipe, self._graphs = client, recipe, graphs

    def __iter__(self) -> Iterator[Batch]:
        self.unreadable.clear()
        client, count = self._client, len(self.source)
        size = self.batch_size * task_batches(client, -(-count // self.batch_size), self.batch_size)
        pieces = [np.arange(start, min(start + size, count), dtype=np.int64) for start in range(0, count, size)]
        held = [hold(client, graph) for graph in self._graphs.values()]
        how = (tuple(self._graphs), self.preprocess, self.batch_size, self.on_unreadable, self._recipe)
        for piece in in_order(client, _run, (held, how), pieces):
            self.unreadable.extend(piece.unreadable)
            for seen in piece.batches:
                for name, replay in self.replays.items():
                    replay.name, replay.scores = piece.backend, seen.scores[name]
                # A mean over one pixel is that pixel, so whoever averages finds the images' own means.
                yield Batch(seen.means, seen.labels, seen.indices)


def _readable(loader: Loader) -> Iterator[Batch]:
    """The batches; none, where all of a part are left out that the whole is asked to go on without."""
    try:
        yield from loader
    except SourceError:
        if loader.on_unreadable == "fail" or len(loader.unreadable) < len(loader.source):
            raise


_How = tuple[tuple[str, ...], Preprocess, int, OnUnreadable, Recipe]


def _run(graphs: list[bytes], how: _How, version: str, positions: I64) -> _Piece:
    """On a worker: every graph on some images."""
    check_version(version)
    names, preprocess, batch_size, on_unreadable, recipe = how
    source = images_of(recipe)
    loader = Loader(source.at(positions), preprocess, batch_size, on_unreadable)
    axes = (2, 3) if preprocess.layout == "NCHW" else (1, 2)
    found = []
    with ExitStack() as stack:
        runners = {
            name: stack.enter_context(OrtRunner(graph, integer=name in {_REFERENCE, "cpu"}))
            for name, graph in zip(names, graphs, strict=True)
        }
        for batch in _readable(loader):
            scores = {
                name: runner.infer({runner.input_name: batch.inputs})[runner.output_name]
                for name, runner in runners.items()
            }
            means = batch.inputs.mean(axis=axes, dtype=np.float64, keepdims=True)
            found.append(_Seen(scores, means, batch.labels, positions[batch.indices]))
        backend = runners[_REFERENCE].name
    return _Piece(tuple(found), tuple(loader.unreadable), backend)
