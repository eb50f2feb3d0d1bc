"""The camera of the demo set: optics, light, sensor and JPEG turn a painted scene into a photograph."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from edgeres.records import F64, U8


@dataclass(frozen=True)
class Shot:
    """Camera and light of one image; lengths in image widths.

    Attributes:
        defocus: standard deviation of the Gaussian blur.
        motion: path of the scene during the exposure, (x, y).
        gain: brightness, 1 for a well exposed image.
        slope: change of the brightness across the image, (x, y).
        cast: factors for red, green and blue, (3,).
        noise: standard deviation at mid grey, in 8-bit steps.
        quality: of the JPEG file.
    """

    defocus: float
    motion: tuple[float, float]
    gain: float
    slope: tuple[float, float]
    cast: F64
    noise: float
    quality: int


def take_shot(rng: np.random.Generator, *, outdoors: bool) -> Shot:
    """Draw the conditions of one photograph; indoors the light is warmer."""
    angle, path = rng.uniform(0, np.pi), max(0.0, rng.normal(-0.015, 0.03))
    return Shot(
        defocus=min(rng.exponential(0.006), 0.025),
        motion=(path * np.cos(angle), path * np.sin(angle)),
        gain=float(np.exp(rng.normal(-0.1, 0.4)).clip(0.25, 1.6)),
        slope=(rng.normal(0, 0.35), rng.normal(0, 0.25)),
        cast=np.exp(rng.normal(0, 0.07, 3)) * ((1, 1, 1) if outdoors else (1.05, 1.0, 0.9)),
        noise=rng.gamma(2.0, 4.0),
        quality=int(rng.integers(35, 93)),
    )


def expose(scene: Image.Image, px: int, shot: Shot, rng: np.random.Generator) -> U8:
    """Photograph a supersampled scene; returns the decoded image, (px, px, 3) uint8."""
    image = smear(scene, shot.motion).reduce(scene.width // px)
    if shot.defocus * px > 0.2:  # less is not visible
        image = image.filter(ImageFilter.GaussianBlur(shot.defocus * px))
    across = np.linspace(-1, 1, px, dtype=np.float32)
    light = shot.gain * np.exp2(shot.slope[0] * across[None, :] + shot.slope[1] * across[:, None])
    pixels = np.asarray(image, dtype=np.float32) * light[..., None] * shot.cast.astype(np.float32)
    # A sensor's noise has a floor and a part that grows as the root of the light (photon noise).
    grain = rng.standard_normal(pixels.shape, dtype=np.float32)
    grain *= np.sqrt(0.3 + 0.7 / 128 * pixels) * np.float32(shot.noise)
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=shot.quality)
    return np.array(Image.open(file).convert("RGB"))


def smear(image: Image.Image, motion: tuple[float, float]) -> Image.Image:
    """The mean of the image along a path; ``motion`` in image widths."""
    size = image.width
    half_path = int(max(abs(motion[0]), abs(motion[1])) * size / 2)
    if half_path < 1:
        return image
    steps, reach = min(half_path, 7), half_path + 1
    padded = np.pad(np.asarray(image), ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    total = np.zeros((size, size, 3), dtype=np.uint16)
    for t in np.linspace(-0.5, 0.5, steps + 1):
        x, y = reach + round(motion[0] * size * t), reach + round(motion[1] * size * t)
        total += padded[y : y + size, x : x + size]
    return Image.fromarray((total // (steps + 1)).astype(np.uint8))
