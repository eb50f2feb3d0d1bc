"""Several cameras on one network: images are collected into batches, and none waits longer than was agreed."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np

from edgeres.errors import UsageError
from edgeres.records import U8, Prediction
from edgeres.runtime.frames import Frame

if TYPE_CHECKING:
    from edgeres.runtime.classifier import Classifier, Picture

_BATCH = 8  # where the backend takes any


@dataclass
class _Waiting:
    """An image in the queue: prepared pixels, or a frame that an engine takes as it is."""

    image: U8 | Frame
    since: float
    answer: Future[Prediction] = field(default_factory=Future)


class Batcher:
    """Classifies what any number of threads submit; a context manager.

    A batch is run as soon as it is full, or when its first image has waited ``max_delay_ms``. Images are prepared in
    the thread that submits them, so several cameras use several cores; one thread runs the network.

    Args:
        classify: it must stay open until this is closed.
        max_delay_ms: how long an image waits for others at most, while the network is free. 0: for none, so only what
            arrived during an inference is batched.
        max_batch: the largest batch; None: the backend's, 8 where it takes any.
        max_waiting: images that may wait while the network is busy. One more, and the oldest is dropped: its future is
            cancelled.

    Raises:
        UsageError: a figure is out of range.

    Example:
        >>> with Batcher(classify, max_delay_ms=5) as batcher:       # doctest: +SKIP
        ...     batcher.submit(frame).add_done_callback(lambda done: publish(done.result()))
    """

    def __init__(
        self, classify: Classifier, *, max_delay_ms: float = 5.0, max_batch: int | None = None, max_waiting: int = 64
    ) -> None:
        if not 0 <= max_delay_ms < float("inf") or (max_batch is not None and max_batch < 1) or max_waiting < 1:
            found = f"found {max_delay_ms}, {max_batch} and {max_waiting}"
            raise UsageError(f"max_delay_ms is 0 or more, max_batch and max_waiting 1 or more, {found}")
        self._classify, self._delay_s, self._most = classify, max_delay_ms / 1e3, max_waiting
        self._batch = max_batch or classify.max_batch or _BATCH
        self._queue: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="edgeres-batcher", daemon=True)
        self._thread.start()

    def submit(self, image: Picture) -> Future[Prediction]:
        """Classify an image soon. A frame that an engine takes as it is must not be written to until it is done.

        Returns:
            Its answer; the error where inference fails. Cancelled where too many images wait.

        Raises:
            InputError: it is no image; SourceError: a file or its bytes cannot be decoded.
            UsageError: this is closed.
        """
        since = monotonic()
        if isinstance(image, Frame) and any(image.laid_as(spec) is not None for spec in self._classify.frames):
            waiting = _Waiting(image, since)
        else:
            waiting = _Waiting(np.array(self._classify.prepare(image)), since)  # the camera may use its memory again
        with self._changed:
            if self._closed:
                raise UsageError("the batcher is closed", hint="keep it open while threads submit")
            self._queue.append(waiting)
            late = self._queue.popleft() if len(self._queue) > self._most else None
            self._changed.notify()
        if late is not None:
            late.answer.cancel()
        return waiting.answer

    def close(self) -> None:
        """Answer what waits, then end; a second call does nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:  # the callback of an answer may close it
            self._thread.join()

    def __enter__(self) -> Batcher:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _run(self) -> None:
        while batch := self._next():
            running = [one for one in batch if one.answer.set_running_or_notify_cancel()]
            try:
                answers = self._answers([one.image for one in running])
            except BaseException as error:  # whoever waits has to hear of it
                for one in running:
                    one.answer.set_exception(error)
            else:
                for one, answer in zip(running, answers, strict=True):
                    one.answer.set_result(answer)

    def _next(self) -> list[_Waiting]:
        """The images of the next batch; none where this is closed and all are answered."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            while self._queue and len(self._queue) < self._batch and not self._closed:
                left = self._queue[0].since + self._delay_s - monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            return [self._queue.popleft() for _ in range(min(self._batch, len(self._queue)))]

    def _answers(self, images: list[U8 | Frame]) -> list[Prediction]:
        frames = [image for image in images if isinstance(image, Frame)]
        pixels = [image for image in images if not isinstance(image, Frame)]
        found = {True: iter(self._classify.batch(frames)), False: iter(self._classify.batch_of_prepared(pixels))}
        return [next(found[isinstance(image, Frame)]) for image in images]
