"""Small JPEG pictures for report pages."""

from __future__ import annotations

import base64
from io import BytesIO

from PIL import Image

from edgeres.records import THUMBNAIL_PX, U8


def thumbnail(pixels: U8) -> bytes:
    """A JPEG file of an image, (H, W, 3) uint8 RGB, with its longer side at most ``THUMBNAIL_PX``."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BILINEAR)
    stream = BytesIO()
    picture.save(stream, "JPEG", quality=80)
    return stream.getvalue()


def encode(jpeg: bytes) -> str:
    """The picture as text for report.json."""
    return base64.b64encode(jpeg).decode("ascii")
