"""From a decoded image to the network's input: the same implementation in calibration, verification and runtime.

    uint8 RGB (H, W, 3) --resize--> --centre crop--> --channel order--> uint8 --table--> float32 (3, h, w) or (h, w, 3)

The geometry equals torchvision's ``Resize`` and ``CenterCrop`` on a PIL image to the last bit, so that a network gets
the same input as in training. Pixel values are normalized by a table of 256 entries per channel, each computed in
float64 and rounded once to float32. So results do not depend on the release of Pillow, the order of operations, the
compiler or the vector unit, and other languages reproduce them with the same table.

Pixels that the crop removes are not computed where that changes no other pixel; see :mod:`edgeres.data.window`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from edgeres.data.window import Window, window
from edgeres.errors import InputError, UsageError
from edgeres.records import F32, U8, Preprocess

if TYPE_CHECKING:
    from PIL.Image import Image

# Modes of Pillow's raw decoder, by the distances in bytes from pixel to pixel and from R to G.
_RAW_MODES = {(3, 1): "RGB", (3, -1): "BGR", (4, 1): "RGBX", (4, -1): "BGRX"}


def geometry(image: U8, p: Preprocess) -> U8:
    """Resize, crop at the centre and order the channels.

    With ``p.resize_px`` None the image is resized to ``p.crop_px``, or not changed where it has that size. Otherwise it
    is resized, keeping its aspect ratio, to just cover ``p.crop_px`` scaled by ``resize_px / min(crop_px)``. For a
    square crop that is the usual "shorter side to ``resize_px``". Where the result is smaller than the crop
    (``resize_px < min(crop_px)``), it is padded with black on all sides, as torchvision does.

    Args:
        image: (H, W, 3) uint8 RGB, in any memory layout. Views of a camera's buffer are read in place: padded rows,
            ``bgr[..., ::-1]``, ``rgba[..., :3]``, gray broadcast to three channels.

    Returns:
        (*p.crop_px, 3) uint8, contiguous.

    Raises:
        InputError: the array has another dtype or shape.
    """
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8 or not image.size:
        raise InputError(f"expected an RGB image, uint8 (H, W, 3), found {image.dtype} {image.shape}")
    size = p.crop_px if p.resize_px is None else _covering_size(image.shape[:2], p)
    if size != image.shape[:2] or size != p.crop_px:
        image = _resize_and_crop(image, size, p)
    return np.ascontiguousarray(image if p.channel_order == "RGB" else image[..., ::-1])


def normalize(pixels: U8, p: Preprocess, out: F32 | None = None) -> F32:
    """``(pixel * pixel_scale - mean) / std`` per channel, as float32.

    Args:
        pixels: (..., H, W, 3) uint8 in ``p.channel_order``.
        out: array for the result, of the returned shape; None: a new array.

    Returns:
        float32, contiguous: (..., 3, H, W) for the layout NCHW, (..., H, W, 3) for NHWC.

    Raises:
        UsageError: mean, std or pixel scale are not finite.
    """
    *leading, height, width, _ = pixels.shape
    if out is None:
        out = np.empty((*leading, 3, height, width) if p.layout == "NCHW" else pixels.shape, np.float32)
    planes = out if p.layout == "NCHW" else np.moveaxis(out, -1, -3)
    if (level := _level(p)) is not None:
        np.subtract(np.moveaxis(pixels, -1, -3), level, out=planes)
        return out
    for channel, values in enumerate(_table(p)):
        # A byte never exceeds 256 entries, so mode="clip" clips nothing; it avoids the default mode's buffering.
        np.take(values, pixels[..., channel], out=planes[..., channel, :, :], mode="clip")
    return out


def apply(image: U8, p: Preprocess, out: F32 | None = None) -> F32:
    """The network's input for an image: ``normalize(geometry(image))``, (3, h, w) or (h, w, 3)."""
    return normalize(geometry(image, p), p, out)


@lru_cache(maxsize=16)
def _table(p: Preprocess) -> F32:
    """(3, 256) float32: the normalized value of every byte, per channel."""
    mean, std = np.array(p.mean, np.float64), np.array(p.std, np.float64)
    if not np.isfinite([*mean, *std, p.pixel_scale]).all():
        raise UsageError(f"mean, std and pixel scale must be finite, found {p.mean}, {p.std}, {p.pixel_scale}")
    return ((np.arange(256) * p.pixel_scale - mean[:, None]) / std[:, None]).astype(np.float32)


@lru_cache(maxsize=16)
def _level(p: Preprocess) -> F32 | None:
    """Offsets (3, 1, 1) where the input is the byte minus an integer per channel, as with exact input; else None."""
    level = -_table(p)[:, :1]
    whole = (level == np.rint(level)).all() and (_table(p) == np.arange(256, dtype=np.float32) - level).all()
    return level[..., None] if whole else None


def _covering_size(shape: tuple[int, ...], p: Preprocess) -> tuple[int, int]:
    """(height, width) after the resize; the longer side is truncated, not rounded, as in torchvision's ``Resize``."""
    assert p.resize_px is not None
    height, width = shape
    box_height, box_width = (side * p.resize_px // min(p.crop_px) for side in p.crop_px)
    if height * box_width <= width * box_height:
        return box_height, int(box_height * width / height)
    return int(box_width * height / width), box_width


def _resize_and_crop(image: U8, size: tuple[int, int], p: Preprocess) -> U8:
    from PIL.Image import Resampling

    filter_ = Resampling[p.interpolation.upper()]
    corner = tuple(_offset(side, crop) for side, crop in zip(size, p.crop_px, strict=True))
    rows, columns = (
        window(have, want, (first, first + crop), p.interpolation)
        for have, want, first, crop in zip(image.shape[:2], size, corner, p.crop_px, strict=True)
    )
    part = image[rows.read[0] : rows.read[1], columns.read[0] : columns.read[1]]
    # Width first, then height, each rounded to bytes. Pillow 13 reverses this in a single call for some tall images.
    wide = _pillow(part).resize((columns.size, len(part)), filter_, box=(columns.box[0], 0, columns.box[1], len(part)))
    wide = _cut(wide, columns, 0)
    done = _cut(wide.resize((wide.width, rows.size), filter_, box=(0, rows.box[0], wide.width, rows.box[1])), rows, 1)
    found = np.asarray(done)
    found = found if found.ndim == 3 else np.broadcast_to(found[..., None], (*found.shape, 3))
    if found.shape[:2] == p.crop_px:
        return found
    top, left = (max(-first, 0) for first in corner)
    padded = np.zeros((*p.crop_px, 3), np.uint8)
    padded[top : top + found.shape[0], left : left + found.shape[1]] = found
    return padded


def _pillow(image: U8) -> Image:
    """The image for Pillow, gray as one channel. Pillow copies the pixels anyway and reorders their bytes then."""
    from PIL import Image

    height, width, _ = image.shape
    step, pixel, channel = image.strides
    if channel == 0:
        return Image.fromarray(image[..., 0])
    mode = _RAW_MODES.get((pixel, channel))
    lines = None if mode is None or step < pixel * width else _lines(image, step * (height - 1) + pixel * width)
    if lines is None:
        return Image.fromarray(np.ascontiguousarray(image))
    return Image.frombytes("RGB", (width, height), lines, "raw", mode, step)


def _lines(image: U8, length: int) -> U8 | None:
    """``length`` bytes from the first pixel on, with gaps; None where they are not all in the array's own memory."""
    owner = image
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    start = image.__array_interface__["data"][0] - owner.__array_interface__["data"][0] + min(2 * image.strides[2], 0)
    if not owner.flags.c_contiguous or not 0 <= start <= owner.nbytes - length:
        return None
    return owner.reshape(-1).view(np.uint8)[start : start + length]


def _cut(image: Image, window: Window, axis: int) -> Image:
    """The wanted rows or columns of a resized image."""
    first, last = window.keep
    if (first, last) == (0, image.size[axis]):
        return image
    return image.crop((first, 0, last, image.height) if axis == 0 else (0, first, image.width, last))


def _offset(side: int, crop: int) -> int:
    """Start of the crop as in torchvision's ``CenterCrop``, halves rounded to even; negative where it needs padding."""
    return round((side - crop) / 2) if side >= crop else -((crop - side) // 2)
