"""One pass over the calibration images: ONNX Runtime computes, sketches count, the loader prepares the next images.

Each core runs a few images through the network and counts their values while they are in its cache. Unlike in one run
on all cores, no core waits for others at the end of every layer. Large images run one by one, so that their values do
not depend on the batch.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
import onnx

from edgeres.calibrate.activations import ActivationRunner, with_outputs
from edgeres.calibrate.record import Calibration
from edgeres.calibrate.sample import Split, phase_of, split
from edgeres.calibrate.sketch import Sketch, bins_of
from edgeres.data.loader import Loader
from edgeres.device.memory import return_freed
from edgeres.errors import ModelError
from edgeres.progress import SILENT, Progress
from edgeres.records import F32

__all__ = ["Observer", "observe", "with_outputs"]

# Activations of one run; every worker holds those of one run. Small images run several at a time, with fewer calls.
_RUN_BYTES = 8 << 20
# With more workers, Python's global lock costs more than a worker gains; each worker gets more threads instead.
_MOST_WORKERS = 8
# Values that are collected per tensor and weight before they are counted: each count has a fixed cost.
_PENDING = 1 << 17


def observe(model: onnx.ModelProto, tensors: Sequence[str], loader: Loader, progress: Progress = SILENT) -> Calibration:
    """Run every image once and sketch the named tensors.

    Args:
        model: a canonical graph; it is not changed.
        tensors: names of float32 tensors of the graph, with or without its input.

    Raises:
        SourceError: images cannot be read.
        ModelError: a tensor holds infinite or undefined values; the message names it.
    """
    with Observer(model, tensors) as observer, progress.task("calibrating", total=len(loader.source)) as advance:
        return_freed()  # what making the session took
        seen = 0
        for batch in loader:
            observer.add(batch.inputs)
            seen += len(batch.inputs)
            advance(len(batch.inputs))
        sketches = observer.sketches()
    return Calibration(sketches, seen, loader.source.description, loader.source.digest(), loader.preprocess)


class Observer:
    """Sketches tensors of a graph over the images that are added.

    Tensors of up to ``sample.WHOLE`` values per image are counted completely, larger ones as described in
    :mod:`edgeres.calibrate.sample`. Memory does not grow with the number of images: it holds the sketches, and per
    worker the activations of one image or of a few small ones.
    """

    def __init__(self, model: onnx.ModelProto, tensors: Sequence[str]) -> None:
        cores = os.cpu_count() or 1
        self._workers = min(cores, _MOST_WORKERS)
        self._counters = {name: _TensorCounter(name) for name in dict.fromkeys(tensors)}
        self._activations = ActivationRunner(model, list(self._counters), threads=cores // self._workers)
        self._images = max(1, _RUN_BYTES // max(self._activations.bytes_per_image, 1))
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="edgeres-observe")
        self._running: set[Future[None]] = set()

    def add(self, inputs: F32) -> None:
        """Count a batch of any size, (B, 3, h, w) or (B, h, w, 3). Its last images may still be running on return.

        Raises:
            ModelError: a tensor held infinite or undefined values, in this batch or the one before.
        """
        for start in range(0, len(inputs), self._images):
            self._settle(at_most=self._workers)  # each worker has one part waiting
            self._running.add(self._pool.submit(self._count, inputs[start : start + self._images]))

    def sketches(self) -> dict[str, Sketch]:
        """The sketches so far, by tensor.

        Raises:
            ModelError: as :meth:`add`.
        """
        self._settle()
        return {name: counter.flush() for name, counter in self._counters.items()}

    def _count(self, inputs: F32) -> None:
        phases = [phase_of(image) for image in inputs]
        for name, values in self._activations.infer(inputs).items():
            for found in split(values, phases):
                self._counters[name].add(found)

    def _settle(self, at_most: int = 0) -> None:
        """Wait until at most this many parts are running."""
        while len(self._running) > at_most:
            done, self._running = wait(self._running, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._activations.__exit__(*error)


@dataclass
class _TensorCounter:
    """The sketch of one tensor, and values that are collected until there are enough to be counted at once."""

    tensor: str
    sketch: Sketch = field(default_factory=Sketch)
    _waiting: dict[int, _Pending] = field(default_factory=lambda: defaultdict(_Pending))
    _lock: Lock = field(default_factory=Lock)

    def add(self, found: Split) -> None:
        """Count values of one image; may be called from any thread."""
        with self._lock:
            try:
                self.sketch.widen(found.low, found.high)
            except ValueError as error:
                raise ModelError(f"{error} on a calibration image", where=f"tensor {self.tensor}") from error
            for values, weight in ((found.outer, found.outer_weight), (found.body, found.body_weight)):
                waiting = self._waiting[weight]
                waiting.values.append(values)
                waiting.count += len(values)
                if waiting.count >= _PENDING:
                    self._settle(weight)

    def flush(self) -> Sketch:
        for weight in list(self._waiting):
            self._settle(weight)
        return self.sketch

    def _settle(self, weight: int) -> None:
        values = np.concatenate(self._waiting.pop(weight).values)
        for start in range(0, len(values), _PENDING):
            self.sketch.count_bins(bins_of(values[start : start + _PENDING]), weight)


@dataclass
class _Pending:
    values: list[F32] = field(default_factory=list)
    count: int = 0
