"""Makes small pictures for the report of the images that INT8 gets wrong and FP32 right."""

from __future__ import annotations

from edgeres.data.base import Source
from edgeres.data.thumbnails import encode, thumbnail
from edgeres.errors import SourceError
from edgeres.verify.accuracy import Comparison

MAX_COUNT = 24


def thumbnails(source: Source, comparison: Comparison, headline: str) -> dict[str, str]:
    """JPEG files in base64 by the image's name, at most :data:`MAX_COUNT`; losses of the headline's graph first."""
    table = comparison.table
    order = sorted(table.candidates, key=lambda name: name != headline)
    lost = dict.fromkeys(image.image for name in order for image in comparison.disagreements(name, table.lost(name)))
    index = {name: comparison.indices[i] for i, name in comparison.names.items() if i in comparison.indices}
    pictures: dict[str, str] = {}
    for name in [name for name in lost if name in index][:MAX_COUNT]:
        try:
            pictures[name] = encode(thumbnail(source.image(index[name])))
        except SourceError:  # it became unreadable during the run; the report leaves its picture out
            continue
    return pictures
