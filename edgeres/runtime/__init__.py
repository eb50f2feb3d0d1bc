"""Running a bundle. It needs numpy and one inference library, but neither torch nor onnx."""

from __future__ import annotations

from pathlib import Path

from edgeres.records import Prediction
from edgeres.runtime.classifier import Classifier
from edgeres.runtime.engine import EngineFile, TensorRTRunner
from edgeres.runtime.frames import Frame
from edgeres.runtime.ort import OrtRunner
from edgeres.runtime.runner import Backend, Feed, Runner, TensorSpec

__all__ = [
    "Backend",
    "Classifier",
    "EngineFile",
    "Feed",
    "Frame",
    "OrtRunner",
    "Prediction",
    "Runner",
    "TensorRTRunner",
    "TensorSpec",
    "load",
]


def load(bundle: str | Path) -> Classifier:
    """Load a bundle for inference: ``edgeres.load("resnet18.edgeres")(image).label``."""
    return Classifier(bundle)
