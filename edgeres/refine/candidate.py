"""A candidate plan: a float graph with a quantization plan for it, and how far its results are from FP32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from edgeres.device.memory import return_freed
from edgeres.quantize.rewrite import insert_pairs
from edgeres.records import F32, QuantPlan
from edgeres.runtime.ort import OrtRunner
from edgeres.runtime.rows import rows

_BATCH, _BATCH_BYTES = 32, 2 << 20  # 32 images at 32 px, 3 at 224 px


@dataclass(frozen=True)
class CandidatePlan:
    """A canonical graph and a plan for it; each refinement step takes one and returns another.

    Refinement may have changed the graph's biases, and equalization its weights.
    """

    graph: ModelProto
    plan: QuantPlan

    def quantized(self) -> ModelProto:
        """The Q/DQ graph with the plan's zero points: ONNX Runtime runs it, TensorRT does not."""
        return insert_pairs(self.graph, self.plan)


def logits(model: ModelProto, images: F32 | Sequence[F32]) -> F32:
    """The graph's outputs as rows, (N, classes), with float arithmetic between pairs.

    Args:
        images: inputs (N, ...) of the graph, in one part or several.
    """
    inputs = [images] if isinstance(images, np.ndarray) else images
    serialized = model.SerializeToString()
    del model  # making the session takes the same again: a caller's graph that nothing else holds makes room for it
    return_freed()
    with OrtRunner(serialized, integer=False) as runner:
        del serialized
        return_freed()  # what making the session took
        parts = (part for every in inputs for part in batches(every))
        return np.concatenate([rows(runner.infer({runner.input_name: part})) for part in parts])


def batches(images: F32, limit: int = _BATCH_BYTES) -> Iterator[F32]:
    """Parts of up to 32 images and up to ``limit`` bytes: activations of a part are in memory at once."""
    size = max(1, min(_BATCH, limit // images[:1].nbytes)) if len(images) else 1
    return (images[start : start + size] for start in range(0, len(images), size))


def typical_noise(reference: F32, found: F32) -> float:
    """Geometric mean over images of the noise power, which is the logits' squared error over their sum of squares.

    The precision of skips is judged by it. In the noise power of all images together, one image on which some tensor
    saturates can make up half of the noise of 64, and would decide. The geometric mean found the better one of two
    networks in 98 of 100 draws of 64 images, the noise power of all together in 92 (resnet20).
    """
    reference = reference.astype(np.float64)
    power = ((reference - found) ** 2).sum(axis=1) / np.maximum((reference**2).sum(axis=1), 1e-30)
    return float(np.exp(np.log(np.maximum(power, 1e-30)).mean()))
