"""FP32 and INT8 of one bundle, side by side on the same image."""

from __future__ import annotations

import threading
import time
from base64 import b64encode
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from edgeres.bundle import FP32, Bundle, steady
from edgeres.data.files import read_image
from edgeres.data.preprocess import geometry
from edgeres.data.thumbnails import thumbnail
from edgeres.errors import InputError
from edgeres.records import CLASSIFICATION, F32, U8, ModelSpec
from edgeres.runtime.choose import Choice, graph_file, open_backend
from edgeres.runtime.classifier import check_task, outputs_of, predictions
from edgeres.runtime.ort import OrtRunner
from edgeres.runtime.prepared import taken
from edgeres.runtime.runner import Backend
from edgeres.signing import Anyone, permit_for
from edgeres.words import escaped

SHOWN_CLASSES = 5
_WARM = 3  # inferences of each network, until later ones take their usual time
_NO_FP32 = "edgeres predict classifies without it; edgeres build writes it"


class SideBySide:
    """The FP32 graph of a bundle on ONNX Runtime's CPU, and INT8 as :func:`edgeres.load` opens it.

    Args:
        bundle: directory of a bundle.
        backend: what runs INT8, as of :class:`edgeres.runtime.Classifier`.
        trust: keys, or anyone, as there.

    Attributes:
        name: of the network.
        fp32, int8: what runs each of them.
        passed_over: one line for each preferred backend that does not run here.

    Raises:
        BundleError: the bundle is incomplete or was changed, or is not signed by a trusted key.
        EngineError: there is no FP32 graph, or the backend that was asked for cannot run here.
    """

    def __init__(
        self, bundle: str | Path, *, backend: Choice = "auto", trust: str | Path | Anyone | None = None
    ) -> None:
        def open_in(bundle: Bundle) -> tuple[ModelSpec, Backend, Backend, tuple[str, ...]]:
            check_task(bundle, CLASSIFICATION)
            permit = permit_for(bundle, trust)
            fp32 = OrtRunner(graph_file(bundle, FP32, _NO_FP32))
            int8, passed_over = open_backend(bundle, backend, 0, 0, permit)
            return bundle.manifest.model, fp32, int8, passed_over

        def drop(opened: tuple[ModelSpec, Backend, Backend, tuple[str, ...]]) -> None:
            opened[1].close()
            opened[2].close()

        self._spec, self._fp32, self._int8, self.passed_over = steady(bundle, open_in, drop)
        self.name, self.fp32, self.int8 = self._spec.name, self._fp32.name, self._int8.name
        self._one_at_a_time = threading.Lock()
        p = self._spec.preprocess
        black = np.zeros((*p.crop_px, p.channels), np.uint8)
        for runner in (self._fp32, self._int8):
            for _ in range(_WARM):
                outputs_of(runner, taken(runner, black, p))

    def answer(self, content: bytes) -> dict[str, Any]:
        """What both networks say to an image; threads wait for each other.

        Args:
            content: of an image file.

        Returns:
            ``seen``, a small JPEG in base64 of what the networks take; ``prepare_ms``; ``fp32`` and ``int8``, each with
            ``ms`` of the inference alone and ``top``, classes with their probabilities, best first; ``same``, whether
            both name the same class first.

        Raises:
            SourceError: it cannot be decoded; InputError: a network gives no numbers for it.
        """
        with self._one_at_a_time:
            started = time.perf_counter()
            p = self._spec.preprocess
            pixels = geometry(read_image(BytesIO(content), "image", p.reading), p)
            feeds = [taken(runner, pixels, p) for runner in (self._fp32, self._int8)]
            prepare_ms = 1e3 * (time.perf_counter() - started)
            fp32, int8 = self._told(self._fp32, feeds[0]), self._told(self._int8, feeds[1])
        return {
            "seen": b64encode(thumbnail(_in_rgb(pixels, p.channel_order))).decode("ascii"),
            "prepare_ms": prepare_ms,
            "fp32": fp32,
            "int8": int8,
            "same": fp32["top"][0]["label"] == int8["top"][0]["label"],
        }

    def _told(self, runner: Backend, feed: F32 | U8) -> dict[str, Any]:
        started = time.perf_counter()
        outputs = outputs_of(runner, feed)
        ms = 1e3 * (time.perf_counter() - started)
        if not np.isfinite(outputs).all():
            raise InputError(f"{runner.name} gives no numbers for this image (NaN or infinity)")
        (one,) = predictions(outputs, self._spec.labels, probabilities=self._spec.output == "probabilities")
        best = one.top(SHOWN_CLASSES)
        return {"ms": ms, "top": [{"label": escaped(label), "score": score} for label, score in best]}

    def close(self) -> None:
        """Free both networks, after the image that is being classified."""
        with self._one_at_a_time:
            self._fp32.close()
            self._int8.close()

    def __enter__(self) -> SideBySide:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _in_rgb(pixels: U8, order: str) -> U8:
    return pixels[..., ::-1] if order == "BGR" and pixels.shape[-1] == 3 else pixels
