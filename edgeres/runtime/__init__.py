"""Running a bundle. It needs numpy and one inference library, but neither torch nor onnx."""

from __future__ import annotations

from pathlib import Path

from edgeres.records import Prediction
from edgeres.runtime.choose import Choice
from edgeres.runtime.classifier import Classifier, Predictor
from edgeres.runtime.engine import EngineFile, TensorRTRunner
from edgeres.runtime.frames import Frame
from edgeres.runtime.health import Health
from edgeres.runtime.ort import OrtRunner
from edgeres.runtime.runner import Backend, Feed, Runner, TensorSpec
from edgeres.runtime.stream import Batcher
from edgeres.signing import ANYONE, Anyone

__all__ = [
    "ANYONE",
    "Backend",
    "Batcher",
    "Classifier",
    "EngineFile",
    "Feed",
    "Frame",
    "Health",
    "OrtRunner",
    "Prediction",
    "Predictor",
    "Runner",
    "TensorRTRunner",
    "TensorSpec",
    "load",
]


def load(
    bundle: str | Path,
    *,
    backend: Choice = "auto",
    health: bool = True,
    trust: str | Path | Anyone | None = None,
) -> Classifier:
    """Load a classifier's bundle: ``load("resnet18.edgeres")(image).label``; :func:`edgeres.load` takes any task's.

    Args:
        backend: what runs it: ``tensorrt``, ``rtx``, ``cuda`` or ``cpu``; ``auto`` takes the first that runs here.
            ``ort-tensorrt`` and ``ort-rtx`` build an engine inside ONNX Runtime when they start.
        health: whether some of the images are looked at for ``classify.health()``.
        trust: a file of public keys; only a bundle that one of their owners signed is loaded. None: any bundle, without
            version-compatible engines, which hold code for the CPU. :data:`ANYONE`: any bundle, and that code runs.
    """
    return Classifier(bundle, backend=backend, health=health, trust=trust)
