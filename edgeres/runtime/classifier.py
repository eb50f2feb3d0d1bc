"""Images in, labels out: what a robot embeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from edgeres.bundle import GRAPHS, Bundle
from edgeres.data.files import read_image
from edgeres.data.preprocess import apply
from edgeres.errors import BundleError
from edgeres.records import F32, U8
from edgeres.runtime.ort import OrtRunner


@dataclass(frozen=True)
class Prediction:
    """What the network says about one image.

    Attributes:
        scores: probabilities, float32 (classes,).
        logits: the network's raw output, float32 (classes,); equals ``scores`` where the graph ends in Softmax.
        labels: one name per class.
    """

    scores: F32
    logits: F32
    labels: tuple[str, ...]

    @property
    def index(self) -> int:
        return int(self.scores.argmax())

    @property
    def label(self) -> str:
        return self.labels[self.index]

    @property
    def score(self) -> float:
        return float(self.scores.max())

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The best classes with their probabilities, best first."""
        order = np.argsort(-self.scores, kind="stable")[:count]
        return [(self.labels[i], float(self.scores[i])) for i in order.tolist()]


class Classifier:
    """A bundle's INT8 network, ready to be called; a context manager.

    Args:
        bundle: directory of a bundle.
        threads: of one inference; 0 takes every core.

    Raises:
        BundleError: the bundle is incomplete or was changed.

    Example:
        >>> classify = Classifier("resnet18.edgeres")        # doctest: +SKIP
        >>> classify("photo.jpg").label                      # doctest: +SKIP
        'stop'
    """

    def __init__(self, bundle: str | Path | Bundle, *, threads: int = 0) -> None:
        self._bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
        spec = self._bundle.manifest.model
        self.labels = spec.labels
        self.preprocess = spec.preprocess
        self._probabilities = spec.output == "probabilities"
        style = next((style for style, graph in reversed(GRAPHS.items()) if self._bundle.has(graph)), None)
        if style is None:
            raise BundleError("holds no INT8 graph", where=self._bundle.path, hint="build it again")
        # As it was verified: the graph for TensorRT in float arithmetic between its Q/DQ pairs.
        self._runner = OrtRunner(self._bundle.file(GRAPHS[style]), threads=threads, integer=style == "cpu")
        self.backend = self._runner.name

    def __call__(self, image: U8 | str | Path) -> Prediction:
        """Classify one image: an array (H, W, 3) uint8 RGB, or a file."""
        return self.batch([image])[0]

    def batch(self, images: Sequence[U8 | str | Path]) -> list[Prediction]:
        """Classify several images in one inference; they may differ in size.

        Raises:
            InputError: an array is not an image; SourceError: a file cannot be decoded.
        """
        if not len(images):
            return []
        pixels = [image if isinstance(image, np.ndarray) else read_image(image) for image in images]
        feed = np.stack([apply(image, self.preprocess) for image in pixels])
        logits = self._runner.infer({self._runner.input_name: feed})[self._runner.output_name]
        scores = logits if self._probabilities else _softmax(logits)
        return [Prediction(s, row, self.labels) for s, row in zip(scores, logits, strict=True)]

    def __enter__(self) -> Classifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.__exit__(kind, error, trace)


def _softmax(logits: F32) -> F32:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: F32 = powers / powers.sum(axis=1, keepdims=True)
    return result
