"""The records of the networks that verification measures: the FP32 reference and its candidates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgeres.runtime.runner import Runner


class OpenGraph(Protocol):
    """Opens an ONNX graph as a runner on this machine's CPU."""

    def __call__(self, model: Path | bytes, *, threads: int = 0, integer: bool = True) -> Runner:
        """Open the graph; :class:`edgeres.runtime.ort.OrtRunner` describes the arguments."""
        ...


@dataclass(frozen=True)
class Candidate:
    """One network to measure.

    Attributes:
        open: opens a runner; the argument is the number of CPU threads it may use, 0 for all cores.
        graph: its ONNX file, for checks that need the graph itself; None for an engine.
        integer: whether the graph runs with integer kernels.
        timed: whether its latency is measured on this machine.
        layers: whether its noise is measured layer by layer; False for a form that has the same codes as another.
    """

    open: Callable[[int], Runner]
    graph: Path | None = None
    integer: bool = True
    timed: bool = False
    layers: bool = False


@dataclass(frozen=True)
class Candidates:
    """The FP32 reference, and the networks to compare with it.

    Attributes:
        others: the candidates by name.
        headline: name of the candidate whose figures come first in the report.
        open_graph: opens a graph with inner tensors added to its outputs.
    """

    reference: Candidate
    others: Mapping[str, Candidate]
    headline: str
    open_graph: OpenGraph
