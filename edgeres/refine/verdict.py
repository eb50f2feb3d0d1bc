"""Decide from errors image by image whether a refinement step is kept.

    typical   geometric mean of the noise power       must fall       on the images held back from calibration and step
    mean      noise power of all images together      must not rise   on these, nor on images that the step has used
    worst     noise power of the worst 5 % of images  must not rise   likewise

The geometric mean is the most reliable of the three: it found the better one of two networks in 98 of 100 draws of 64
images, the mean in 92 (resnet20). But it does not see a few images on which a tensor saturates, and a step may trade
these for the others: the typical error falls while the mean rises. On resnet20, refinement by the typical error alone
raised the error on the worst 5 % of 1,000 other images by 3.6 dB. Saturation shows on the images that no range was
measured on; where it shows even on images that the step has fitted, it is no chance.

Whether an error rises is answered by the bootstrap (Efron 1979): images are drawn with replacement, the same ones
before and after, and a step is refused if the error rises in more than ``RISES`` of the draws. A standard error would
not do: if a single image rises, the mean is always within one standard error of no change, however far it rises. The
bootstrap draws that image in 63 % of its draws. What happens to fewer images than one in those held back cannot be
seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from edgeres.device.memory import return_freed
from edgeres.graph.graph import Graph
from edgeres.records import F32, F64
from edgeres.refine.candidate import CandidatePlan, logits
from edgeres.runtime.rows import weights

WORST = 0.05
RISES = 0.6
_DRAWS = 1000


@dataclass(frozen=True)
class ImageErrors:
    """Squared error of the logits by image, (N,); the images that were held back come first.

    Attributes:
        relative: over the image's own sum of squares.
        absolute: over the mean sum of squares of all images.
        held: how many images were held back.
    """

    relative: F64
    absolute: F64
    held: int

    @property
    def typical(self) -> float:
        """Geometric mean of the noise power, on the images that were held back."""
        return float(np.exp(np.log(self.relative[: self.held]).mean()))


class ImageJudge:
    """Measures candidates against FP32 on ``held`` images and on ``used`` ones, (N, ...) inputs of the graphs.

    ``reference`` has FP32's logits, (N, classes), of both in this order. Of several outputs each counts the same.
    """

    def __init__(self, model: ModelProto, held: F32, used: F32) -> None:
        self._images = (held, used)
        self.reference = logits(model, self._images)
        self._weights = weights(self.reference, Graph(model).output_shapes())

    def errors(self, candidate: CandidatePlan) -> ImageErrors:
        return_freed()  # what the step took
        reference = self.reference.astype(np.float64)
        noise = logits(candidate.quantized(), self._images) - reference
        if self._weights is not None:
            noise, reference = noise * self._weights, reference * self._weights
        squares, power = (noise**2).sum(axis=1), (reference**2).sum(axis=1)
        floor = 1e-30
        relative = np.maximum(squares / np.maximum(power, floor), floor)
        return ImageErrors(relative, squares / max(power.mean(), floor), len(self._images[0]))


def why_refused(before: ImageErrors, after: ImageErrors, start: ImageErrors | None = None) -> str:
    """Why a step is not kept; "" where it is.

    ``start`` is what the first step began with: small rises that each are within the noise must not add up.
    """
    if not after.typical < before.typical:
        return "no gain on the held-back images"
    for earlier in (before, start or before):
        for part in (slice(before.held), slice(before.held, None)):
            why = _why_rises(earlier.absolute[part], after.absolute[part])
            if why:
                return why
    return ""


def _why_rises(before: F64, after: F64) -> str:
    """Whether the mean error, or that of the worst images, rises, and by how much; "" where neither does."""
    if not len(before):
        return ""
    chosen = np.random.RandomState(0).randint(0, len(before), (_DRAWS, len(before)))
    if (after[chosen].mean(axis=1) > before[chosen].mean(axis=1)).mean() > RISES:
        return f"the mean error rises by {_rise(before, after):.1f} dB"
    if (_worst(after[chosen]) > _worst(before[chosen])).mean() > RISES:
        change = _rise(_worst(before[None]), _worst(after[None]))
        return f"the error on the worst {WORST:.0%} of the images rises by {change:.1f} dB"
    return ""


def _worst(errors: F64) -> F64:
    """The mean over the largest errors of each row."""
    count = math.ceil(WORST * errors.shape[1])
    mean: F64 = np.sort(errors, axis=1)[:, -count:].mean(axis=1)
    return mean


def _rise(before: F64, after: F64) -> float:
    return 10 * math.log10(max(float(after.mean()), 1e-30) / max(float(before.mean()), 1e-30))
