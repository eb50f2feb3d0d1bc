"""Load a bundle of any task for inference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeres.bundle import Bundle, steady
from edgeres.runtime.choose import Choice
from edgeres.runtime.classifier import Predictor
from edgeres.signing import Anyone
from edgeres.task import task_of


def load(
    bundle: str | Path,
    *,
    backend: Choice = "auto",
    health: bool = True,
    trust: str | Path | Anyone | None = None,
) -> Predictor[Any]:
    """Load a bundle for inference: ``edgeres.load("resnet18.edgeres")(image).label``.

    What it gives depends on the bundle's task: a :class:`~edgeres.records.Prediction` with ``label`` and ``score``, or
    values, as docs/tasks.md says.

    Args:
        backend: what runs it: ``tensorrt``, ``rtx``, ``cuda`` or ``cpu``; ``auto`` takes the first that runs here.
        health: whether some of the images are looked at for ``health()``.
        trust: a file of public keys; only a bundle that one of their owners signed is loaded. None: any bundle, without
            version-compatible engines, which hold code for the CPU. :data:`~edgeres.runtime.ANYONE`: any bundle, and
            that code runs.
    """

    def task(found: Bundle) -> type[Predictor[Any]]:
        return task_of(found.manifest.model).predictor

    return steady(bundle, task)(bundle, backend=backend, health=health, trust=trust)
