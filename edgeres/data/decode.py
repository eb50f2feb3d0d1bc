"""Pillow's images as pixels: orientation, depth and channels, by one rule for files, archives and bytes in memory."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from edgeres.data.channels import to_bytes, with_channels
from edgeres.errors import SourceError
from edgeres.records import U8, PixelReading

if TYPE_CHECKING:
    from PIL.Image import Image

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
        pixels = np.asarray(image.convert(_MODES[reading.channels]))
        return pixels if pixels.ndim == 3 else pixels[..., None]
    values = np.asarray(image)
    if image.mode == "I" and not 0 <= values.min() <= values.max() <= 65535:
        what = f"values from {values.min():,} to {values.max():,}, and 16 bits hold 0 to 65,535"
        raise SourceError(what, hint="write it as 16-bit PNG")
    return with_channels(to_bytes(values, reading.full_scale)[..., None], reading)
