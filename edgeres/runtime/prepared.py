"""Prepared images as a network takes them: normalized, in float32, or as the bytes before that.

An engine normally takes the bytes, uint8 (N, h, w, channels), and normalizes them itself: a quarter of the copy to the
GPU. Graphs take float32, as do engines of bundles that have no graphs for bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeres.data.preprocess import normalize
from edgeres.errors import InputError
from edgeres.records import F32, U8, Preprocess
from edgeres.runtime.runner import Runner, TensorSpec

_OFF = 0.01  # of a level: float32 holds the normalized value of a byte far better


def takes_bytes(runner: Runner) -> bool:
    """Whether prepared images go into a runner as bytes."""
    inputs: Sequence[TensorSpec] = getattr(runner, "inputs", ())
    return len(inputs) > 0 and inputs[0].dtype == np.uint8


def bytes_of(inputs: F32, p: Preprocess) -> U8:
    """The bytes, (N, h, w, channels), nearest to those that network inputs, (N, C, h, w) or (N, h, w, C), are of."""
    return np.clip(np.round(_levels(inputs, p)), 0, 255).astype(np.uint8)


def taken(runner: Runner, pixels: U8, p: Preprocess) -> F32 | U8:
    """The input of a runner for one prepared image, (h, w, channels)."""
    return pixels[None] if takes_bytes(runner) else normalize(pixels[None], p)


def fed(runner: Runner, inputs: F32, p: Preprocess) -> F32 | U8:
    """Network inputs in the form that a runner takes.

    Raises:
        InputError: the runner takes bytes, and these inputs are not of bytes.
    """
    if not takes_bytes(runner):
        return inputs
    levels = _levels(inputs, p)
    if not (np.abs(levels - np.clip(np.round(levels), 0, 255)) <= _OFF).all():
        raise InputError(f"{runner.name} takes images of bytes, and these inputs are not of bytes")
    return np.round(levels).astype(np.uint8)


def _levels(inputs: F32, p: Preprocess) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    last = np.moveaxis(inputs, 1, -1) if p.layout == "NCHW" else inputs
    return np.ascontiguousarray((last.astype(np.float64) * np.asarray(p.std) + np.asarray(p.mean)) / p.pixel_scale)
