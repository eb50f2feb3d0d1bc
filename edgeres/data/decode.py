"""Pillow's images as pixels: orientation, depth and channels, by one rule for files, archives and bytes in memory."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from edgeres.data.channels import to_bytes, with_channels
from edgeres.errors import SourceError
from edgeres.records import U8, PixelReading

if TYPE_CHECKING:
    from PIL.Image import Image

_LARGE_PIXELS, _STRIP_PIXELS = 16_000_000, 4_000_000
_LARGE_IMAGES = threading.Lock()
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def decode(image: Image, reading: PixelReading) -> U8:
    """(H, W, C) uint8 with ``reading.channels`` channels, in the order RGB.

    The orientation in a file's EXIF data is applied where ``reading.exif`` says so (Pillow applies a TIFF's always).
    16-bit gray is scaled; of 16-bit colour Pillow reads the upper byte. Palettes are resolved, and transparency is
    dropped where the network takes no fourth channel.

    Raises:
        SourceError: its values are of a kind that cannot be scaled.
    """
    if reading.exif:
        from PIL import ImageOps

        with suppress(Exception):  # damaged EXIF data, which other readers ignore too; the pixels are read below
            image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        what = "floating-point pixels, whose scale is not known"
        raise SourceError(what, hint="write them as 16-bit PNG, and give the value of full scale")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        pixels = _converted(image, _MODES[reading.channels])
        return pixels if pixels.ndim == 3 else pixels[..., None]
    values = np.asarray(image)
    if image.mode == "I" and not 0 <= values.min() <= values.max() <= 65535:
        what = f"values from {values.min():,} to {values.max():,}, and 16 bits hold 0 to 65,535"
        raise SourceError(what, hint="write it as 16-bit PNG")
    return with_channels(to_bytes(values, reading.full_scale)[..., None], reading)


def _converted(image: Image, mode: str) -> U8:
    """(H, W, C) or (H, W). Of large images one at a time, and in strips: several copies of each would not fit."""
    if image.width * image.height <= _LARGE_PIXELS:
        return np.asarray(image.convert(mode))
    with _LARGE_IMAGES:
        image.load()
        channels = len(mode)
        pixels = np.empty((image.height, image.width, channels)[: 2 if channels == 1 else 3], np.uint8)
        rows = max(1, _STRIP_PIXELS // image.width)
        for top in range(0, image.height, rows):
            strip = image.crop((0, top, image.width, min(top + rows, image.height)))
            pixels[top : top + rows] = np.asarray(strip.convert(mode))
        return pixels
