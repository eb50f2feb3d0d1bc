"""What images look like in a few figures, so that a robot's images can be compared with those of the calibration.

Figures are of the pixels after resize and crop, before mean and std, each from about a thousand pixels of an image.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from edgeres.data.base import Source, evenly_spread
from edgeres.data.loader import Loader
from edgeres.documents import DocumentKind, require
from edgeres.errors import BundleError, SourceError
from edgeres.records import F32, F64, U8, Preprocess

SAMPLE = 128  # images of the calibration
_SIDE = 32  # rows and columns that are looked at


class Figures(NamedTuple):
    """Figures of one image, or of several. Bytes are 0 to 255.

    Attributes:
        red, green, blue: mean bytes.
        tint: mean of red minus blue.
        colour: mean of the largest minus the smallest channel; 0 for gray.
        contrast: standard deviation of green.
        detail: mean difference of green between neighbours in a row, as a share of ``contrast``.
        black, white: share of the bytes that are 0, or 255.
        largest: the largest byte.
    """

    red: float
    green: float
    blue: float
    tint: float
    colour: float
    contrast: float
    detail: float
    black: float
    white: float
    largest: float


@dataclass(frozen=True)
class Seen:
    """Figures over the calibration images, the content of pixels.json: by figure in the order of :class:`Figures`.

    Attributes:
        images: that were looked at.
        mean, std: over the images.
        low, high: the smallest and the largest of any image.
    """

    images: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        lists = (self.mean, self.std, self.low, self.high)
        require(all(len(values) == len(Figures._fields) for values in lists), "every figure must be there once")
        require(self.images > 1, "images must be 2 or more")


PIXELS_KIND = DocumentKind(Seen, "a pixels.json", "build it again", (1, 1), digest="optional", error=BundleError)


def some_rows(pixels: U8) -> U8:
    """The rows that figures are of, evenly spread; those of these rows are all of them."""
    step = max(len(pixels) // _SIDE, 1)
    return pixels[step // 2 :: step]


def figures_of(pixels: U8) -> Figures:
    """The figures of an image, (h, w, 3) uint8 RGB."""
    some, columns = some_rows(pixels), max(pixels.shape[1] // _SIDE, 1)
    green = some[..., 1].astype(np.int16)
    difference = float(np.abs(green[:, 1:] - green[:, :-1]).mean()) if green.shape[1] > 1 else 0.0
    few = np.moveaxis(some[:, columns // 2 :: columns], -1, 0).reshape(3, -1)
    red, green_mean, blue = few.mean(axis=1).tolist()
    colour = float((few.max(axis=0) - few.min(axis=0)).mean())
    black, white = (float(np.count_nonzero(few == byte) / few.size) for byte in (0, 255))
    contrast = float(few[1].std())
    detail = difference / contrast if contrast > 0 else 0.0
    return Figures(red, green_mean, blue, red - blue, colour, contrast, detail, black, white, float(few.max()))


def sample_seen(source: Source, preprocess: Preprocess) -> Seen | None:
    """Figures over up to :data:`SAMPLE` images, evenly spread over a source; unreadable ones are left out.

    None with fewer than two images, or where images have no three channels.
    """
    found: list[Figures] = []
    with suppress(SourceError):  # no image can be read; a later step reports it
        for batch in Loader(source.at(evenly_spread(len(source), SAMPLE)), preprocess, 16, on_unreadable="skip"):
            found += [figures_of(image) for image in bytes_of(batch.inputs, preprocess) if image.shape[-1] == 3]
    if len(found) < 2:
        return None
    table = np.array(found)
    return Seen(
        len(found),
        *(_rounded(values) for values in (table.mean(0), table.std(0, ddof=1))),
        *(_rounded(values) for values in (table.min(0), table.max(0))),
    )


def bytes_of(inputs: F32, p: Preprocess) -> U8:
    """The pixels (B, h, w, 3) uint8 RGB of network inputs."""
    last = np.moveaxis(inputs, 1, -1) if p.layout == "NCHW" else inputs
    pixels: U8 = np.rint((last * np.array(p.std) + np.array(p.mean)) / p.pixel_scale).clip(0, 255).astype(np.uint8)
    return pixels if p.channel_order == "RGB" else pixels[..., ::-1]


def _rounded(values: F64) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in values)
