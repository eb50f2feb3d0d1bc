"""The records of the networks that verification measures: the FP32 reference and its candidates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from edgeres.records import F32, U8, FrameSpec
from edgeres.runtime.runner import Runner

Precision = Literal["fp32", "fp16", "int8"]


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
        timed: whether its latency is measured on this machine's processor.
        layers: whether its noise is measured layer by layer; False for a form that has the same codes as another.
        precision: of the graph, or of the graph that an engine was built from.
        file: path of an engine in the bundle; "" for a graph.
    """

    open: Callable[[int], Runner]
    graph: Path | None = None
    integer: bool = True
    timed: bool = False
    layers: bool = False
    precision: Precision = "int8"
    file: str = ""


@dataclass(frozen=True)
class FrameCandidate:
    """An engine that takes a camera's frame, or its graph where the engine does not run here.

    Attributes:
        name: such as ``rtx engine for 1280x720:bgr8``.
        file: path of the engine in the bundle.
        contract: gives the prepared bytes of a frame, by Pillow.
        by_frame: opens a runner for frames.
        prepared: opens the same network for prepared images.
        pixels: opens the graph's preprocessing alone, from frame to prepared bytes; None: onnx is not installed.
        precision: of the graph.
        stand_in: whether ``by_frame`` runs the graph.
    """

    name: str
    file: str
    frame: FrameSpec
    contract: Callable[[U8], U8]
    by_frame: Callable[[int], Runner]
    prepared: Callable[[int], Runner]
    pixels: Callable[[int], Runner] | None = None
    precision: Precision = "int8"
    stand_in: bool = False


@dataclass(frozen=True)
class KnownAnswers:
    """The FP32 reference's scores on images of an earlier run, by position.

    Attributes:
        images: SHA-256 of the images, as :meth:`edgeres.data.base.Source.digest` computes it.
        scores: float32 (N, classes), in the order of the source.
        runner: what computed them.
    """

    images: str
    scores: F32
    runner: str


@dataclass(frozen=True)
class Candidates:
    """The FP32 reference, and the networks to compare with it.

    Attributes:
        others: the candidates by name, the headline first where it is an engine.
        headline: name of the candidate whose figures come first in the report.
        open_graph: opens a graph with inner tensors added to its outputs.
        stand_ins: graphs of the engines among ``others``, computed on this machine's CPU: they run on a sample alone.
        graph_of: name in ``stand_ins`` of the graph that an engine was built from, by the engine's name.
        known: the reference's scores of an earlier run; None: it has to run.
        not_run: why an engine of the bundle does not run here, by its file.
        frames: the engines that take frames.
    """

    reference: Candidate
    others: Mapping[str, Candidate]
    headline: str
    open_graph: OpenGraph
    stand_ins: Mapping[str, Candidate] = field(default_factory=dict)
    graph_of: Mapping[str, str] = field(default_factory=dict)
    known: KnownAnswers | None = None
    not_run: Mapping[str, str] = field(default_factory=dict)
    frames: tuple[FrameCandidate, ...] = ()

    @property
    def engines(self) -> dict[str, Candidate]:
        """The candidates that are engines, by name."""
        return {name: candidate for name, candidate in self.others.items() if candidate.file}
