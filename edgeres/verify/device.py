"""The records of what was found of a bundle's engines on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Of the bytes behind a resize inside a graph: the contract's, but for rounding of ties.
LEAST_EQUAL_PERCENT, MOST_LEVELS = 99.9, 1


@dataclass(frozen=True)
class EngineSample:
    """One engine and its graph on the same sample.

    Attributes:
        graph: name of the graph: ``fp32``, or one of the stand-ins.
        images: size of the sample.
        sqnr_db: of the engine's logits, with the graph's as the signal; inf where they are equal.
        graph_db: of the graph's logits, with FP32's as the signal; inf for FP32 itself.
        same: how many images both put into the same class.
        parted: names of the images whose logits differ most in relation to their size, the worst first.
        limit_db: ``sqnr_db`` below this means that the engine does not compute what its graph says.
        file: path of the engine in the bundle.
        runner: name of what ran it.
    """

    graph: str
    images: int
    sqnr_db: float
    graph_db: float
    same: int
    parted: tuple[str, ...]
    limit_db: float
    file: str = ""
    runner: str = ""

    @property
    def agrees(self) -> bool:
        return self.sqnr_db >= self.limit_db


@dataclass(frozen=True)
class FrameSample:
    """An engine that takes frames, or its graph, beside the same network with the same frames prepared by the contract.

    Attributes:
        file: path of the engine in the bundle.
        runner: name of what ran it; "": its graph ran, on ONNX Runtime.
        same: of ``images``, how many both put into the same class.
        sqnr_db: of its logits, with those of the prepared images as the signal; inf where they are equal.
        limit_db: ``sqnr_db`` below this means that it does not compute the same.
        equal_percent: share of the bytes behind the graph's resize that are the contract's; None: not measured.
        worst_levels: the largest difference of a byte; None: not measured.
        parted: names of images in different classes.
        right: how many images it and the network with prepared images put into their labels' classes; None: no labels.
    """

    file: str
    runner: str
    images: int
    same: int
    sqnr_db: float
    limit_db: float
    equal_percent: float | None
    worst_levels: int | None
    parted: tuple[str, ...] = ()
    right: tuple[int, int] | None = None

    @property
    def agrees(self) -> bool:
        equal, worst = self.equal_percent, self.worst_levels
        prepared = equal is None or worst is None or (equal >= LEAST_EQUAL_PERCENT and worst <= MOST_LEVELS)
        return prepared and self.sqnr_db >= self.limit_db


@dataclass(frozen=True)
class DeviceRun:
    """The engines of a bundle on this machine; empty where none runs.

    Attributes:
        reference: where the FP32 answers come from, in words; "" where it is the FP32 graph on this machine.
        samples: each engine beside its graph, by the engine's name.
        not_run: why an engine of the bundle does not run here, by its file.
        frames: each engine that takes frames beside the contract, by its name.
    """

    reference: str = ""
    samples: Mapping[str, EngineSample] = field(default_factory=dict)
    not_run: Mapping[str, str] = field(default_factory=dict)
    frames: Mapping[str, FrameSample] = field(default_factory=dict)

    @property
    def ran(self) -> list[tuple[str, str]]:
        """File and runner of each engine that ran here."""
        every: list[EngineSample | FrameSample] = [*self.samples.values(), *self.frames.values()]
        return [(one.file, one.runner) for one in every if one.runner]
