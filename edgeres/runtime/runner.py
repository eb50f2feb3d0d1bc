"""The contract of every inference backend. All backends can be measured and compared by the same code.

:mod:`edgeres.runtime.conformance` tests whether a backend keeps the contract, also a backend of your own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgeres.errors import InputError, UsageError

Feed = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class TensorSpec:
    """An input or output.

    Attributes:
        shape: the first axis is the batch; None where a size is free.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {_sizes(self.shape)}"


class Runner(Protocol):
    """One graph or engine, ready to run; a context manager that frees what it holds.

    Attributes:
        name: of the backend with its version, e.g. ``ONNX Runtime 1.32 CPU``.
        input_name, output_name: of the graph's one input and of the output that holds the class scores.
    """

    name: str
    input_name: str
    output_name: str

    def infer(self, feed: Feed) -> Feed:
        """Run one batch: arrays by input name in, arrays by output name out."""

    def __enter__(self) -> Runner: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Backend(Runner, Protocol):
    """A runner for applications.

    Any number of threads may call ``infer`` at the same time, with the same results as one thread gets. Returned
    arrays belong to the caller: no later call writes into them. Input arrays need not be contiguous. A name, dtype or
    shape that the graph does not take is an InputError, a call after ``close`` a UsageError, each in one line.

    Attributes:
        inputs, outputs: all tensors of the graph.
        max_batch: largest batch that runs at once; larger batches are run in parts. None: any.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch: int | None

    def close(self) -> None:
        """Free everything; threads that are inferring finish first. A second call does nothing."""

    def __enter__(self) -> Backend: ...


def check_feed(feed: Feed, inputs: tuple[TensorSpec, ...]) -> int:
    """The batch size of a feed.

    Raises:
        InputError: a name, dtype or shape does not match the inputs.
    """
    if feed.keys() != {tensor.name for tensor in inputs}:
        wanted, found = (", ".join(names) or "nothing" for names in ([t.name for t in inputs], map(str, feed)))
        raise InputError(f"the network takes {wanted}, found {found}")
    batch = None
    for tensor in inputs:
        array = feed[tensor.name]
        if not isinstance(array, np.ndarray):
            raise InputError(f"input {tensor.name} takes {tensor}, found {type(array).__name__}")
        fits = len(array.shape) == len(tensor.shape) and all(
            want is None or have == want for have, want in zip(array.shape, tensor.shape, strict=True)
        )
        if array.dtype != tensor.dtype or not fits or not array.size:
            raise InputError(f"input {tensor.name} takes {tensor}, found {array.dtype} {_sizes(array.shape)}")
        size = array.shape[0] if array.ndim else 1
        if batch not in (None, size):
            raise InputError(f"inputs disagree on the batch: {tensor.name} holds {size}, others {batch}")
        batch = size
    return batch or 0


def any_batch(inputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """The same inputs with a free batch, for a runner that cuts batches into parts itself."""
    return tuple(replace(tensor, shape=(None, *tensor.shape[1:])) for tensor in inputs)


def parts(batch: int, smallest: int, largest: int) -> Iterator[slice]:
    """Slices that cut a batch into parts of ``smallest`` to ``largest`` images.

    Raises:
        InputError: there is no such cut.

    >>> [(part.start, part.stop) for part in parts(9, 2, 4)]
    [(0, 4), (4, 7), (7, 9)]
    """
    count = -(-batch // largest)
    if batch < smallest * count:
        takes = f"{smallest}" if smallest == largest else f"{smallest} to {largest}"
        raise InputError(f"the engine takes batches of {takes}, and {batch} cannot be cut into such batches")
    start = 0
    for index in range(count):
        left = count - index - 1
        stop = min(start + largest, batch - left * smallest)
        yield slice(start, stop)
        start = stop


def closed(name: str) -> UsageError:
    """The error of a call after ``close``."""
    return UsageError(f"{name} is closed", hint="load it again, and keep it open while threads use it")


def _sizes(shape: tuple[int | None, ...]) -> str:
    return f"({', '.join('N' if size is None else str(size) for size in shape)})"
