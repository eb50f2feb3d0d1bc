"""Small pictures of the images that INT8 gets wrong and FP32 right, for a person to look at."""

from __future__ import annotations

import base64
from io import BytesIO

from PIL import Image

from edgeres.data.base import Source
from edgeres.errors import SourceError
from edgeres.records import U8
from edgeres.verify.accuracy import Comparison

MOST, SIDE_PX = 24, 128


def thumbnails(source: Source, comparison: Comparison, headline: str) -> dict[str, str]:
    """JPEG files in base64 by the image's name, at most :data:`MOST`; those of the headline's graph come first."""
    order = sorted(comparison.candidates, key=lambda name: name != headline)
    lost = dict.fromkeys(image.image for name in order for image in comparison.lost(name))
    index = {name: comparison.indices[i] for i, name in comparison.names.items() if i in comparison.indices}
    found: dict[str, str] = {}
    for name in [name for name in lost if name in index][:MOST]:
        try:
            found[name] = encode(thumbnail(source.image(index[name])))
        except SourceError:  # it could be read a moment ago; the report does without its picture
            continue
    return found


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
