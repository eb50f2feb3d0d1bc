"""The probe images of a bundle: network inputs with the scores that FP32 gives for them, to try an engine on.

probes.npz   steps   uint8 (N, h, w, channels), in the network's channel order, after resize and crop: each pixel less
                     the one on its left, modulo 256, which packs into three quarters of the bytes
             pixels  uint8 (N, h, w, channels): the pixels as they are, in place of steps, in bundles of 0.1
             inputs  float32, as the network takes them: in place of steps where pixels do not give them exactly
             scores  float32 (N, classes), or rows of values of the outputs, see :mod:`edgeres.runtime.rows`
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeres.bundle import PROBES, Bundle
from edgeres.data.npz import read_arrays
from edgeres.data.preprocess import normalize
from edgeres.errors import BundleError, reading
from edgeres.records import F32, U8, Preprocess
from edgeres.runtime.prepared import bytes_of
from edgeres.runtime.rows import width

_LARGE = 1 << 26  # bytes; float32 inputs take four times as many
_LEFT = np.uint8(0)  # of the first pixel of a row


@dataclass(frozen=True)
class ProbeSet:
    """Network inputs, float32 (N, C, h, w) or (N, h, w, C), and the outputs of FP32, float32 (N, classes)."""

    inputs: F32
    scores: F32

    def to_npz(self, preprocess: Preprocess) -> bytes:
        """The content of a probes.npz."""
        pixels = exact_bytes(self.inputs, preprocess)
        images = {"inputs": self.inputs} if pixels is None else {"steps": np.diff(pixels, axis=2, prepend=_LEFT)}
        with io.BytesIO() as file:
            np.savez_compressed(file, scores=self.scores, **images)
            return file.getvalue()


def read_probes(bundle: Bundle) -> ProbeSet:
    """The probe images of a bundle.

    Raises:
        BundleError: the bundle has none, or they do not fit its network.
    """
    path, model = bundle.file(PROBES), bundle.manifest.model
    with reading(bundle.path, f"{PROBES} cannot be read", error=BundleError, hint="build it again"):
        arrays = read_arrays(path, _LARGE)
        scores = arrays["scores"]
        inputs = _inputs(arrays, model.preprocess)
    fits = inputs.shape[1:] == model.preprocess.shape and scores.shape[1:] == (_values(bundle),)
    if not (fits and len(inputs) == len(scores) > 0 and inputs.dtype == scores.dtype == np.float32):
        what = f"{PROBES} holds inputs {inputs.shape} and scores {scores.shape}, which are not of this network"
        raise BundleError(what, where=bundle.path, hint="build it again")
    return ProbeSet(inputs, scores)


def _inputs(arrays: Mapping[str, Any], p: Preprocess) -> F32:
    if "inputs" in arrays:
        return np.asarray(arrays["inputs"])
    if "steps" not in arrays:
        return normalize(arrays["pixels"], p)
    steps = np.asarray(arrays["steps"])
    if steps.dtype != np.uint8:
        raise TypeError(f"steps are {steps.dtype}, not uint8")
    return normalize(np.cumsum(steps, axis=2, dtype=np.uint8), p)


def _values(bundle: Bundle) -> int:
    """How many values of the outputs are kept of one image."""
    return sum(map(width, bundle.manifest.shapes().values()))


def exact_bytes(inputs: F32, p: Preprocess) -> U8 | None:
    """The bytes that give these inputs; None where there are none that give them exactly."""
    pixels = bytes_of(inputs, p)
    return pixels if np.array_equal(normalize(pixels, p), inputs) else None
