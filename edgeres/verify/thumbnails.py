"""Small pictures of the images that INT8 gets wrong and FP32 right, for a person to look at."""

from __future__ import annotations

from edgeres.data.base import Source
from edgeres.data.thumbnails import encode, thumbnail
from edgeres.errors import SourceError
from edgeres.verify.accuracy import Comparison

MOST = 24


def thumbnails(source: Source, comparison: Comparison, headline: str) -> dict[str, str]:
    """JPEG files in base64 by the image's name, at most :data:`MOST`; those of the headline's graph come first."""
    table = comparison.table
    order = sorted(table.candidates, key=lambda name: name != headline)
    lost = dict.fromkeys(image.image for name in order for image in comparison.listed(name, table.lost(name)))
    index = {name: comparison.indices[i] for i, name in comparison.names.items() if i in comparison.indices}
    found: dict[str, str] = {}
    for name in [name for name in lost if name in index][:MOST]:
        try:
            found[name] = encode(thumbnail(source.image(index[name])))
        except SourceError:  # it could be read a moment ago; the report does without its picture
            continue
    return found
