"""The user's choice of refinement; this module imports no onnx."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Effort = Literal["fast", "balanced", "best"]
EFFORTS: tuple[Effort, ...] = ("fast", "balanced", "best")
Residual = Literal["int8", "fp16", "auto"]
RESIDUALS: tuple[Residual, ...] = ("int8", "fp16", "auto")


@dataclass(frozen=True)
class RefineChoice:
    """How accuracy is recovered.

    Attributes:
        effort: ``fast`` only calibrates, ``balanced`` takes a few forward passes more, ``best`` learns for minutes.
        residual: precision of the skip inputs in the graph for TensorRT; in the CPU graph they are int8.
    """

    effort: Effort = "balanced"
    residual: Residual = "int8"
