"""Decoded images with one byte per channel, and as many channels as a network takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgeres.records import U8, PixelReading

Pixels = npt.NDArray[Any]
WHITE = 65535  # of 16 bits
# Pillow's weights of red, green and blue in gray, in units of 2^-16.
GRAY_WEIGHTS, GRAY_BITS = (19_595, 38_470, 7_471), 16


def to_bytes(values: Pixels, full_scale: int = WHITE) -> U8:
    """16-bit values as bytes: ``full_scale`` and above become 255, others ``255 value / full_scale``, rounded.

    >>> to_bytes(np.array([0, 128, 129, 65535])).tolist()
    [0, 0, 1, 255]
    """
    limited = np.minimum(values, full_scale).astype(np.uint32)
    return ((limited * 255 + full_scale // 2) // full_scale).astype(np.uint8)


def with_channels(image: Pixels, reading: PixelReading) -> Pixels:
    """The image with the bytes and channels that a network takes.

    Gray becomes RGB by repeating, RGB becomes gray by Pillow's weights (ITU-R 601, 16 bits), and a fourth channel is
    255 where there is none. Anything else is returned unchanged: a fourth channel is not dropped.

    Args:
        image: (H, W, 1, 3 or 4), or (H, W) where the network takes gray; uint8 or uint16.
    """
    if image.dtype == np.uint16:
        image = to_bytes(image, reading.full_scale)
    wanted = reading.channels
    if image.ndim == 2 and wanted == 1:
        image = image[..., None]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in {1, 3, 4} - {wanted}:
        return image
    if wanted == 1:
        return _gray(image) if image.shape[-1] == 3 else image
    if image.shape[-1] == 1:
        image = np.broadcast_to(image, (*image.shape[:2], 3))
    if wanted == 4 and image.shape[-1] == 3:
        return np.concatenate([image, np.full((*image.shape[:2], 1), 255, np.uint8)], axis=-1)
    return image


def _gray(image: U8) -> U8:
    """(H, W, 1): Pillow's ``convert("L")``. A gray image seen as RGB stays as it is."""
    if image.strides[-1] == 0:
        return image[..., :1]
    red, green, blue = (image[..., channel].astype(np.uint32) for channel in range(3))
    of_red, of_green, of_blue = GRAY_WEIGHTS
    total = red * of_red + green * of_green + blue * of_blue + (1 << (GRAY_BITS - 1))
    return (total >> GRAY_BITS).astype(np.uint8)[..., None]
