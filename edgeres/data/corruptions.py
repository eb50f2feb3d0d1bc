"""What a robot's camera meets: images darkened, blurred, noised, compressed and rotated, in three strengths each.

A corruption changes the decoded image at its full size, before the preprocessing resizes it. All are deterministic: the
noise and the direction of a rotation depend on the seed, the corruption and the image's place in its source, so every
worker makes the same pixels.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import numpy as np

from edgeres.data.base import Source, subset
from edgeres.errors import UsageError
from edgeres.records import U8, PixelReading, Preprocess

IMAGES = 200  # that are corrupted, of larger sources
_ROWS_BYTES = 1 << 22  # of noise at a time, as float32

# Strengths by kind: factor of the pixels; standard deviation as a share of the shorter side; standard deviation in
# units of a byte; quality of the JPEG; degrees.
STRENGTHS = {
    "dark": (0.5, 0.25, 0.12),
    "blur": (0.0075, 0.015, 0.03),
    "noise": (8.0, 16.0, 32.0),
    "jpeg": (50, 25, 10),
    "rotation": (3.0, 6.0, 10.0),
}
KINDS = tuple(STRENGTHS)


@dataclass(frozen=True)
class Corruption:
    """One of :data:`CORRUPTIONS`: a kind, and its strength from 1 to 3."""

    kind: str
    strength: int

    @property
    def value(self) -> float:
        return STRENGTHS[self.kind][self.strength - 1]


CORRUPTIONS = tuple(Corruption(kind, strength) for kind in KINDS for strength in (1, 2, 3))


class Corrupted(Source):
    """At most :data:`IMAGES` images of a source, evenly over its classes, under a corruption; None: as they are."""

    def __init__(self, original: Source, corruption: Corruption | None, seed: int) -> None:
        self.original, self.corruption, self.seed = original, corruption, seed
        self._images = subset(original, IMAGES, seed)
        self.classes, self.labels, self.description = self._images.classes, self._images.labels, original.description

    def name(self, index: int) -> str:
        return self._images.name(index)

    def image(self, index: int) -> U8:
        return self._corrupted(self._images.image(index), index)

    def image_as(self, index: int, reading: PixelReading) -> U8:
        return self._corrupted(self._images.image_as(index, reading), index)

    def _corrupted(self, image: U8, index: int) -> U8:
        return image if self.corruption is None else corrupt(image, self.corruption, (self.seed, index))

    def digest(self) -> str:
        parts = (self._images.digest(), self.corruption, self.seed)
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def check_corruptible(p: Preprocess) -> None:
    """Refuse a network whose images have more than colours; a fourth channel may be anything.

    Raises:
        UsageError: it takes four channels.
    """
    if p.channels not in (1, 3):
        what = f"images of {p.channels} channels are not corrupted, only RGB and gray"
        raise UsageError(what, where="--corruptions", hint="leave it out for this network")


def corrupt(image: U8, corruption: Corruption, key: tuple[int, int]) -> U8:
    """The image under a corruption.

    Args:
        image: uint8, RGB (H, W, 3) or gray (H, W) or (H, W, 1).
        key: seed and place of the image.

    Returns:
        uint8, of the image's shape.

    Raises:
        UsageError: the image has another form.
    """
    planes = image.shape[2:] or (1,)
    if image.ndim not in (2, 3) or planes[0] not in (1, 3) or image.dtype != np.uint8:
        what = f"images can be corrupted as uint8 (H, W, 3) or (H, W), found {image.dtype} {image.shape}"
        raise UsageError(what, where="--corruptions", hint="leave it out for this network")
    drawn = np.random.Generator(np.random.PCG64([*key, KINDS.index(corruption.kind), corruption.strength]))
    plain = image if planes[0] == 3 else image.reshape(image.shape[:2])  # Pillow takes gray without an axis of channels
    return _APPLY[corruption.kind](plain, corruption.value, drawn).reshape(image.shape)


def _dark(image: U8, factor: float, drawn: np.random.Generator) -> U8:
    """Every byte times the factor, rounded."""
    table: U8 = np.rint(np.arange(256) * factor).astype(np.uint8)
    return table[image]


def _blur(image: U8, share: float, drawn: np.random.Generator) -> U8:
    """Pillow's Gaussian blur; its radius is the standard deviation in pixels."""
    from PIL import Image, ImageFilter

    sigma = share * min(image.shape[:2])
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))


def _noise(image: U8, sigma: float, drawn: np.random.Generator) -> U8:
    """Gaussian noise of its own for every pixel and channel, in rows, so that little memory is needed."""
    found = np.empty_like(image)
    rows = max(1, _ROWS_BYTES // (4 * image[:1].size))
    for start in range(0, len(image), rows):
        part = image[start : start + rows]
        noisy = part + np.float32(sigma) * drawn.standard_normal(part.shape, np.float32)
        found[start : start + rows] = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    return found


def _jpeg(image: U8, quality: float, drawn: np.random.Generator) -> U8:
    from PIL import Image

    stream = BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=int(quality))
    return np.asarray(Image.open(stream))


def _rotation(image: U8, degrees: float, drawn: np.random.Generator) -> U8:
    """A rotation about the centre to either side, enlarged so far that no corner is empty; bilinear."""
    from PIL import Image

    height, width = image.shape[:2]
    angle = math.radians(degrees if drawn.integers(2) else -degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    shrink = 1 / (cos + abs(sin) * max(width / height, height / width))
    a, b = cos * shrink, sin * shrink
    x, y = width / 2, height / 2
    matrix = (a, b, x - a * x - b * y, -b, a, y + b * x - a * y)
    turned = Image.fromarray(image).transform(
        (width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    return np.asarray(turned)


_APPLY: dict[str, Callable[[U8, float, np.random.Generator], U8]] = {
    "dark": _dark,
    "blur": _blur,
    "noise": _noise,
    "jpeg": _jpeg,
    "rotation": _rotation,
}
