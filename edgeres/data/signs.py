"""The generated demo set: road and warehouse signs, rendered from a seed with numpy and Pillow.

    face (polygons) -> scene in a pose -> supersampled canvas -> optics, light, sensor, JPEG -> image

An image is a function of (split, seed, index, px). The composition is the same at every resolution, and splits never
share a random stream. Only the sign's face differs between classes: surroundings, pose, light and damage do not depend
on the label. Mirroring an image may change its label (``keep_left``, ``exit_left``).
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
from PIL import Image

from edgeres.data.base import Source
from edgeres.data.sign_camera import expose, take_shot
from edgeres.data.sign_faces import faces
from edgeres.data.sign_scene import Canvas, paint
from edgeres.errors import SourceError
from edgeres.records import U8

Split = Literal["train", "calibration", "validation"]

CLASSES: tuple[str, ...] = tuple(face.name for face in faces())
# The next step for those who have other images, or other classes, than the network that comes with edgeres.
OWN_WEIGHTS = "the bundled weights know road signs; give your own, --weights FILE"
GENERATOR = 1  # part of every seed and of the digest; raise it whenever pixels change
SENSOR_PX = 96  # at least; smaller images are reduced from a multiple of their size, with noise and JPEG blocks
SUPERSAMPLING = 2
SPLITS: dict[str, int] = {"train": 0x7A41, "calibration": 0xCA11, "validation": 0x7E57}


def render(split: Split, seed: int, index: int, px: int) -> tuple[U8, int]:
    """One image and its label.

    Args:
        seed: of the whole set, >= 0.
        index: >= 0; labels cycle through the classes, so 16 consecutive indices hold each class once.
        px: height and width.

    Returns:
        (px, px, 3) uint8 RGB and the label, an index into :data:`CLASSES`.
    """
    sequence = np.random.SeedSequence((GENERATOR, SPLITS[split], seed, index))
    composition, sensor = (np.random.default_rng(s) for s in sequence.spawn(2))
    label, thumbnail = index % len(CLASSES), -(-SENSOR_PX // px)
    canvas = Canvas(SUPERSAMPLING * px * thumbnail)
    outdoors = paint(canvas, faces()[label], composition)
    photograph = expose(canvas.image, px * thumbnail, take_shot(composition, outdoors=outdoors), sensor)
    return np.array(Image.fromarray(photograph).reduce(thumbnail)), label


class Signs(Source):
    """``count`` rendered images. Nothing is stored: ``image(i)`` renders.

    Raises:
        SourceError: the count is below 1, the seed negative, or the resolution below 16 pixels.
    """

    classes = CLASSES

    def __init__(self, split: Split, count: int, px: int, seed: int = 0) -> None:
        if count < 1 or seed < 0 or px < 16:
            what = f"cannot render {count} images at {px} px from seed {seed}"
            raise SourceError(what, where="signs", hint="count >= 1, px >= 16 and seed >= 0 are needed")
        self.split, self.px, self.seed = split, px, seed
        self.labels = np.arange(count, dtype=np.int64) % len(CLASSES)
        rendered = f"{count:,} images rendered at {px} px from seed {seed}"
        self.description = f"signs {split}: {rendered}, {len(CLASSES)} classes"

    def name(self, index: int) -> str:
        return f"signs[{index}]"

    def image(self, index: int) -> U8:
        return render(self.split, self.seed, index, self.px)[0]

    def digest(self) -> str:
        parameters = f"signs {GENERATOR} {self.split} {len(self)} {self.px} {self.seed}"
        return hashlib.sha256(parameters.encode()).hexdigest()
