"""From images to network inputs: sources, the preprocessing contract, and batches made of both."""

from edgeres.data.loader import Batch, Loader
from edgeres.data.sources import Source, match_labels, open_source, read_image, subset

__all__ = ["Batch", "Loader", "Source", "match_labels", "open_source", "read_image", "subset"]
