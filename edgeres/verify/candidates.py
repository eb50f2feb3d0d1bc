"""What verification measures: runners that are opened by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgeres.runtime.runner import Runner


class OpenGraph(Protocol):
    """Opens an ONNX graph as a runner on this machine's CPU."""

    def __call__(self, model: Path | bytes, *, threads: int = 0, integer: bool = True) -> Runner:
        """Open it; see :class:`edgeres.runtime.ort.OrtRunner` for the arguments."""
        ...


@dataclass(frozen=True)
class Candidate:
    """One network to measure.

    Attributes:
        open: gives its runner; the argument is how many CPU threads it may use, 0 for all cores.
        graph: the ONNX file behind it, for what needs the graph itself; None for an engine.
        integer: whether the graph runs with integer kernels.
        timed: whether its latency on this machine says something.
        layers: whether noise is measured layer by layer; a form that is rewritten from another repeats its codes.
    """

    open: Callable[[int], Runner]
    graph: Path | None = None
    integer: bool = True
    timed: bool = False
    layers: bool = False


@dataclass(frozen=True)
class Candidates:
    """The FP32 reference and what is compared with it, by name.

    Attributes:
        headline: the candidate whose figures stand first in the report.
        open_graph: opens a graph that verification changed, to read inner tensors.
    """

    reference: Candidate
    others: Mapping[str, Candidate]
    headline: str
    open_graph: OpenGraph
