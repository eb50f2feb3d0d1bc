"""The contract every inference backend keeps, so that comparing two of them is data and not code."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Protocol

import numpy.typing as npt

Feed = dict[str, npt.NDArray[Any]]


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
        ...

    def __enter__(self) -> Runner: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
