"""What the user says about refinement, apart so that it costs no import of onnx."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Effort = Literal["fast", "balanced", "best"]
EFFORTS: tuple[Effort, ...] = ("fast", "balanced", "best")
Residual = Literal["int8", "fp16", "auto"]
RESIDUALS: tuple[Residual, ...] = ("int8", "fp16", "auto")


@dataclass(frozen=True)
class RefineChoice:
    """How much is done to recover accuracy.

    Attributes:
        effort: ``fast`` is the calibration pass alone, ``balanced`` costs a few passes more, ``best`` learns at length.
        residual: precision of the skip inputs in the graph for TensorRT; the CPU graph is int8 throughout.
    """

    effort: Effort = "balanced"
    residual: Residual = "int8"
