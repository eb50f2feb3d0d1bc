"""Running a bundle, with numpy and one inference library: no torch, no onnx."""

from __future__ import annotations

from pathlib import Path

from edgeres.runtime.classifier import Classifier, Prediction
from edgeres.runtime.ort import OrtRunner
from edgeres.runtime.runner import Feed, Runner

__all__ = ["Classifier", "Feed", "OrtRunner", "Prediction", "Runner", "load"]


def load(bundle: str | Path) -> Classifier:
    """Load a bundle for inference: ``edgeres.load("resnet18.edgeres")(image).label``."""
    return Classifier(bundle)
