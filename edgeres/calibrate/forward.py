"""One pass over the calibration images: ONNX Runtime computes, sketches count, the loader prepares what comes next."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
import onnx

from edgeres.calibrate.record import Calibration
from edgeres.calibrate.sample import WHOLE, phase_of, split
from edgeres.calibrate.sketch import U32, Sketch, bins_of
from edgeres.calibrate.taps import Taps, with_outputs
from edgeres.data.loader import Loader
from edgeres.errors import ModelError
from edgeres.progress import SILENT, Progress
from edgeres.records import F32

__all__ = ["Observer", "observe", "with_outputs"]

# Of activations in one run; twice that is held, one run being counted while the next is computed.
_RUN_BYTES = 64 << 20
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
    says. Memory does not grow with the images: the activations of two runs of a few images each, and the sketches.

    Example:
        >>> with Observer(model, tensors) as observer:                              # doctest: +SKIP
        ...     observer.add(inputs)
        ...     observer.sketches()["input"].high
    """

    def __init__(self, model: onnx.ModelProto, tensors: Sequence[str]) -> None:
        self._tallies = {name: _Tally(name) for name in dict.fromkeys(tensors)}
        self._taps = Taps(model, list(self._tallies))
        self._images = max(1, _RUN_BYTES // max(self._taps.bytes_per_image, 1))
        # Beside the threads of the forward pass: one for two cores keeps up with it.
        self._workers = max(1, min(4, (os.cpu_count() or 1) // 2))
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="edgeres-count")
        self._counting: list[Future[None]] = []

    def add(self, inputs: F32) -> None:
        """Run a batch, (B, 3, h, w) or (B, h, w, 3), of any size, and count while the next one is computed.

        Raises:
            ModelError: a tensor held infinite or undefined values, on this batch or the one before.
        """
        for start in range(0, len(inputs), self._images):
            part = inputs[start : start + self._images]
            found = self._taps.infer(part)
            phases = [phase_of(image) for image in part]
            self._wait()
            names = sorted(found, key=lambda name: found[name].size)
            self._counting = [
                self._pool.submit(self._count, {name: found[name] for name in names[worker :: self._workers]}, phases)
                for worker in range(self._workers)
            ]

    def sketches(self) -> dict[str, Sketch]:
        """What was counted so far, by tensor.

        Raises:
            ModelError: as :meth:`add`.
        """
        self._wait()
        return {name: tally.flush() for name, tally in self._tallies.items()}

    def _count(self, found: Mapping[str, F32], phases: Sequence[int]) -> None:
        for name, values in found.items():
            self._tallies[name].add(values, phases)

    def _wait(self) -> None:
        counting, self._counting = self._counting, []
        for future in counting:
            future.result()

    def __enter__(self) -> Observer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._taps.__exit__(kind, error, trace)


@dataclass
class _Tally:
    """The sketch of one tensor, with bins that wait until there are enough of them to be counted at once."""

    tensor: str
    sketch: Sketch = field(default_factory=Sketch)
    _pending: dict[int, list[U32]] = field(default_factory=dict)

    def add(self, values: F32, phases: Sequence[int]) -> None:
        """Count a tensor's values, (B, n), of images with the given phases."""
        try:
            if values.shape[1] <= WHOLE:
                self.sketch.widen(float(values.min()), float(values.max()))
                self._wait(values.reshape(-1), 1)
                return
            for image, phase in zip(values, phases, strict=True):
                parts = split(image, phase)
                self.sketch.widen(parts.low, parts.high)
                self._wait(parts.outer, parts.outer_weight)
                self._wait(parts.body, parts.body_weight)
        except ValueError as error:
            raise ModelError(f"{error} on a calibration image", where=f"tensor {self.tensor}") from error

    def flush(self) -> Sketch:
        for weight in self._pending:
            self._settle(weight)
        return self.sketch

    def _wait(self, values: F32, weight: int) -> None:
        waiting = self._pending.setdefault(weight, [])
        waiting.append(bins_of(values))
        if sum(map(len, waiting)) >= _PENDING:
            self._settle(weight)

    def _settle(self, weight: int) -> None:
        waiting = self._pending[weight]
        bins = np.concatenate(waiting) if waiting else np.empty(0, np.uint32)
        waiting.clear()
        for start in range(0, len(bins), _PENDING):
            self.sketch.count_bins(bins[start : start + _PENDING], weight)
