"""Mean colours of images, to detect that calibration and validation swap red and blue."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from edgeres.data.base import Source, evenly_spread
from edgeres.data.loader import Loader
from edgeres.errors import SourceError
from edgeres.records import F32, F64, Preprocess

SAMPLE = 64  # images; the standard error of their mean is an eighth of the standard deviation


@dataclass(frozen=True)
class Pixels:
    """Means over preprocessed images, converted back to bytes.

    Attributes:
        mean: red, green, blue, 0 to 255.
        red_minus_blue: mean over the images; ``error`` is its standard error.
    """

    images: int
    mean: tuple[float, float, float]
    red_minus_blue: float
    error: float


class PixelTally:
    """Collects the mean colours of images, batch by batch."""

    def __init__(self, preprocess: Preprocess) -> None:
        self._preprocess = preprocess
        self._means: list[F64] = []

    def add(self, inputs: F32) -> None:
        """Add a batch of network inputs, (B, C, h, w) or (B, h, w, C) by the contract's layout."""
        contract = self._preprocess
        if contract.channels < 3:  # gray has no colour to compare
            return
        positions = (2, 3) if contract.layout == "NCHW" else (1, 2)
        means = inputs.mean(axis=positions, dtype=np.float64)
        pixels: F64 = (means * np.array(contract.std) + np.array(contract.mean)) / contract.pixel_scale
        self._means.append(pixels[:, :3] if contract.channel_order == "RGB" else pixels[:, 2::-1])

    @property
    def pixels(self) -> Pixels | None:
        """None with fewer than two images, or of gray ones."""
        if sum(map(len, self._means)) < 2:
            return None
        means = np.concatenate(self._means)
        red_minus_blue = means[:, 0] - means[:, 2]
        error = red_minus_blue.std(ddof=1) / np.sqrt(len(means))
        mean = tuple(float(channel) for channel in means.mean(axis=0))
        found = float(red_minus_blue.mean()), float(error)
        return Pixels(len(means), mean, *found)  # type: ignore[arg-type]  # three channels, as every image has


def sample_pixels(source: Source, preprocess: Preprocess) -> Pixels | None:
    """Mean colours of :data:`SAMPLE` images, evenly spread over a source; unreadable ones are left out."""
    sample = source.at(evenly_spread(len(source), SAMPLE))
    means = PixelTally(preprocess)
    with suppress(SourceError):  # no image can be read; a later step reports it
        for batch in Loader(sample, preprocess, 16, on_unreadable="skip"):
            means.add(batch.inputs)
    return means.pixels
