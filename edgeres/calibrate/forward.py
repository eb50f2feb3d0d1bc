"""One pass over the calibration images: ONNX Runtime computes, sketches count, the loader prepares what comes next.

Each core takes a few images through the network by itself and counts them while they are in its cache. Against one run
on all cores beside a thread that counts, no core waits for another at the end of every layer, and a large image is
computed alone, so that its values do not depend on the batch that it came in.
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

from edgeres.calibrate.activations import Taps, with_outputs
from edgeres.calibrate.record import Calibration
from edgeres.calibrate.sample import Split, phase_of, split
from edgeres.calibrate.sketch import Sketch, bins_of
from edgeres.data.loader import Loader
from edgeres.errors import ModelError
from edgeres.progress import SILENT, Progress
from edgeres.records import F32

__all__ = ["Observer", "observe", "with_outputs"]

# Of activations in one run; every worker holds those of one. More images a run spare calls where images are small.
_RUN_BYTES = 8 << 20
# Beyond these, Python's own lock around what is not array arithmetic eats what another worker brings: they get more
# threads each.
_MOST_WORKERS = 8
# Bins that wait to be counted, per tensor and weight: counting few at a time is dear.
_PENDING = 1 << 17


def observe(model: onnx.ModelProto, tensors: Sequence[str], loader: Loader, progress: Progress = SILENT) -> Calibration:
    """Run every image once and sketch the named tensors.

    Args:
        model: a canonical graph; it is not changed.
        tensors: names of float32 tensors of the graph, its input among them or not.

    Raises:
        SourceError: images cannot be read.
        ModelError: a tensor holds infinite or undefined values; names it.
    """
    with Observer(model, tensors) as observer, progress.task("calibrating", total=len(loader.source)) as advance:
        seen = 0
        for batch in loader:
            observer.add(batch.inputs)
            seen += len(batch.inputs)
            advance(len(batch.inputs))
        sketches = observer.sketches()
    return Calibration(sketches, seen, loader.source.description, loader.source.digest(), loader.preprocess)


class Observer:
    """Sketches tensors of a graph over the images that it is given.

    Tensors of up to ``sample.WHOLE`` values an image are counted whole, larger ones as :mod:`edgeres.calibrate.sample`
    says. Memory does not grow with the images: the activations of one image, or a few small ones, per worker, and the
    sketches.
    """

    def __init__(self, model: onnx.ModelProto, tensors: Sequence[str]) -> None:
        cores = os.cpu_count() or 1
        self._workers = min(cores, _MOST_WORKERS)
        self._tallies = {name: _Tally(name) for name in dict.fromkeys(tensors)}
        self._taps = Taps(model, list(self._tallies), threads=cores // self._workers)
        self._images = max(1, _RUN_BYTES // max(self._taps.bytes_per_image, 1))
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="edgeres-observe")
        self._running: set[Future[None]] = set()

    def add(self, inputs: F32) -> None:
        """Count a batch, (B, 3, h, w) or (B, h, w, 3), of any size; its last images may still be under way on return.

        Raises:
            ModelError: a tensor held infinite or undefined values, on this batch or the one before.
        """
        for start in range(0, len(inputs), self._images):
            self._settle(at_most=self._workers)  # one part waits for each worker but the idle ones
            self._running.add(self._pool.submit(self._count, inputs[start : start + self._images]))

    def sketches(self) -> dict[str, Sketch]:
        """What was counted so far, by tensor.

        Raises:
            ModelError: as :meth:`add`.
        """
        self._settle()
        return {name: tally.flush() for name, tally in self._tallies.items()}

    def _count(self, inputs: F32) -> None:
        phases = [phase_of(image) for image in inputs]
        for name, values in self._taps.infer(inputs).items():
            for found in split(values, phases):
                self._tallies[name].add(found)

    def _settle(self, at_most: int = 0) -> None:
        """Wait until no more than so many parts are under way."""
        while len(self._running) > at_most:
            done, self._running = wait(self._running, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._taps.__exit__(*error)


@dataclass
class _Tally:
    """The sketch of one tensor, with values that wait until there are enough of them to be counted at once."""

    tensor: str
    sketch: Sketch = field(default_factory=Sketch)
    _waiting: dict[int, _Waiting] = field(default_factory=lambda: defaultdict(_Waiting))
    _lock: Lock = field(default_factory=Lock)

    def add(self, found: Split) -> None:
        """Count what an image has of the tensor; from any thread."""
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
class _Waiting:
    values: list[F32] = field(default_factory=list)
    count: int = 0
