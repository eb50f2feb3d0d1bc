"""Small JPEG pictures for report pages."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
from PIL import Image

from edgeres.data.channels import with_channels
from edgeres.records import AS_RGB, THUMBNAIL_PX, U8


def thumbnail(pixels: U8) -> bytes:
    """A JPEG file of an image, (H, W, 1, 3 or 4) of bytes or 16 bits, with its longer side at most ``THUMBNAIL_PX``."""
    picture = Image.fromarray(np.ascontiguousarray(with_channels(pixels, AS_RGB)[..., :3]))
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BILINEAR)
    stream = BytesIO()
    picture.save(stream, "JPEG", quality=80)
    return stream.getvalue()


def encode(jpeg: bytes) -> str:
    """The picture as text for report.json."""
    return base64.b64encode(jpeg).decode("ascii")
