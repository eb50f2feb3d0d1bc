"""The records of what was found of a bundle's engines on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


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
class DeviceRun:
    """The engines of a bundle on this machine; empty where none runs.

    Attributes:
        reference: where the FP32 answers come from, in words; "" where it is the FP32 graph on this machine.
        samples: each engine beside its graph, by the engine's name.
        not_run: why an engine of the bundle does not run here, by its file.
    """

    reference: str = ""
    samples: Mapping[str, EngineSample] = field(default_factory=dict)
    not_run: Mapping[str, str] = field(default_factory=dict)
