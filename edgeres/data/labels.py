"""Class names: those of ImageNet-1k, and how names are compared."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def imagenet_classes() -> tuple[tuple[str, str], ...]:
    """WordNet id and name of each of the 1,000 classes, e.g. ``("n01440764", "tench")``.

    Ids ascend. Names are those of torchvision's weights; all 1,000 differ.
    """
    lines = Path(__file__).with_name("imagenet.txt").read_text(encoding="utf-8").splitlines()
    return tuple((wnid, name) for wnid, _, name in (line.partition(" ") for line in lines))


def clean(name: str) -> str:
    r"""A folder's name as a label, which is one line of UTF-8: NFC, other bytes and control characters as escapes.

    >>> clean(chr(10) + "a" + chr(0xDCFF)) == r"\na\udcff"
    True
    """
    composed = unicodedata.normalize("NFC", name)
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in composed)


def plain(name: str) -> str:
    """A name without case, spaces, underscores and hyphens, and with each accented letter in one way of writing it.

    >>> plain("Stop_Sign") == plain("stop sign"), plain("cafe\\u0301") == plain("caf\\u00e9")
    (True, True)
    """
    return re.sub(r"[\s_-]", "", clean(name)).casefold()


def is_generic(labels: Sequence[str]) -> bool:
    """Whether labels name no classes: ``class 7``, as a network has them that came without names."""
    return all(re.fullmatch(r"class[ _]\d+", label) for label in labels)
