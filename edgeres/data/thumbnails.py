"""Small JPEG pictures for a page."""

from __future__ import annotations

import base64
from io import BytesIO

from PIL import Image

from edgeres.records import U8

SIDE_PX = 128


def thumbnail(pixels: U8) -> bytes:
    """A JPEG file of an image, (H, W, 3) uint8 RGB, with its longer side at most :data:`SIDE_PX`."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR)
    stream = BytesIO()
    picture.save(stream, "JPEG", quality=80)
    return stream.getvalue()


def encode(jpeg: bytes) -> str:
    """As it stands in a page and in report.json."""
    return base64.b64encode(jpeg).decode("ascii")
