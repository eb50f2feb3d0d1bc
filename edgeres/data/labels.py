"""Class names of ImageNet-1k, in the order of a network's outputs."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def imagenet_classes() -> tuple[tuple[str, str], ...]:
    """WordNet id and name of each of the 1,000 classes, e.g. ``("n01440764", "tench")``.

    Ids ascend. Names are those of torchvision's weights; all 1,000 differ.
    """
    lines = Path(__file__).with_name("imagenet.txt").read_text(encoding="utf-8").splitlines()
    return tuple((wnid, name) for wnid, _, name in (line.partition(" ") for line in lines))
