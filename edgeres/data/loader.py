"""Batches of network inputs. Threads decode and resize images while the consumer computes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import numpy as np

from edgeres.data.base import Source, some
from edgeres.data.forms import READ_FORMS
from edgeres.data.preprocess import apply
from edgeres.errors import SourceError, UsageError
from edgeres.records import F32, I64, Preprocess

OnUnreadable = Literal["fail", "skip"]
_SKIP = "pass --skip-unreadable"


@dataclass(frozen=True)
class Batch:
    """Inputs in the network's layout with their labels.

    Attributes:
        inputs: float32 (B, C, h, w) or (B, h, w, C).
        labels: int64 (B,); -1 where unlabelled.
        indices: int64 (B,), positions in the source.
    """

    inputs: F32
    labels: I64
    indices: I64


@dataclass
class Loader:
    """An iterable of batches in the source's order; each iteration starts from the first image.

    At most one batch, and one image per thread, are prepared ahead of the consumer. Closing the iterator (or an
    exception in the loop's body) cancels what has not begun and waits for the image in each thread.

    Attributes:
        batch_size: the last batch may be smaller.
        on_unreadable: ``skip`` leaves unreadable images out. ``fail`` reads all images behind the first unreadable one
            too, then raises one error that names all.
        workers: number of threads.
        unreadable: images that could not be read, each with the cause: ``cat/001.jpg (truncated)``; complete after the
            iteration.
    """

    source: Source
    preprocess: Preprocess
    batch_size: int
    on_unreadable: OnUnreadable = "fail"
    workers: int = field(default_factory=lambda: min(4, os.cpu_count() or 1))
    unreadable: list[str] = field(default_factory=list, init=False)
    _advice: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.workers < 1:
            raise UsageError(f"batch size and workers must be at least 1, found {self.batch_size} and {self.workers}")

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches.

        Raises:
            SourceError: an image cannot be read and ``on_unreadable`` is ``fail``, or no image can be read.
        """
        self.unreadable.clear()
        self._advice.clear()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="edgeres-loader")
        try:
            yield from self._batches(pool)
        finally:
            pool.shutdown(cancel_futures=True)
        if self.unreadable and (self.on_unreadable == "fail" or len(self.unreadable) == len(self.source)):
            some_unreadable = some(self.unreadable, len(self.unreadable), 10)
            raise SourceError(
                f"{len(self.unreadable):,} of {len(self.source):,} images cannot be read: {some_unreadable}",
                where=self.source.description,
                hint=self._hint(),
            )

    def _batches(self, pool: ThreadPoolExecutor) -> Iterator[Batch]:
        inputs: list[F32] = []
        indices: list[int] = []
        for index, future in self._ahead(pool):
            try:
                pixels = future.result()
            except SourceError as error:
                self.unreadable.append(f"{self.source.name(index)} ({error.what})")
                self._advice.add(error.hint or "")
                continue
            if self.unreadable and self.on_unreadable == "fail":
                continue  # later images are read only to find all that are unreadable
            inputs.append(pixels)
            indices.append(index)
            if len(inputs) == self.batch_size:
                yield self._take(inputs, indices)
        if inputs and not (self.unreadable and self.on_unreadable == "fail"):
            yield self._take(inputs, indices)

    def _hint(self) -> str:
        """What to do about all unreadable images: what each of them needs, or to leave them out."""
        steps = sorted(self._advice - {"", READ_FORMS})
        if len(self.unreadable) == len(self.source):
            return "; ".join(steps) or READ_FORMS
        return f"{'; '.join(steps)}; or {_SKIP}" if steps else f"remove them or {_SKIP}"

    def _ahead(self, pool: ThreadPoolExecutor) -> Iterator[tuple[int, Future[F32]]]:
        """Futures of all images in order; a limited number of them are pending."""

        def load(index: int) -> F32:
            return apply(self.source.image_as(index, self.preprocess.reading), self.preprocess)

        todo = iter(range(len(self.source)))
        waiting: deque[tuple[int, Future[F32]]] = deque()
        while True:
            room = self.batch_size + self.workers - len(waiting)
            waiting.extend((index, pool.submit(load, index)) for index in islice(todo, room))
            if not waiting:
                return
            yield waiting.popleft()

    def _take(self, inputs: list[F32], indices: list[int]) -> Batch:
        """Stack a batch and empty the lists, so that no image is in memory twice while the consumer computes."""
        positions = np.array(indices, np.int64)
        batch = Batch(np.stack(inputs), self.source.labels[positions], positions)
        inputs.clear()
        indices.clear()
        return batch
