"""From a decoded image to the network's input: one implementation for calibration, verification and the robot.

    uint8 RGB (H, W, 3) --resize--> --centre crop--> --channel order--> uint8 --table--> float32 (3, h, w) or (h, w, 3)

Geometry is what torchvision's ``Resize`` and ``CenterCrop`` do to a PIL image, to the last bit, so that a network sees
here what it saw in training. Pixel values are normalized through a table of 256 entries per channel, each computed in
float64 and rounded once to float32. No release of Pillow, order of operations, compiler or vector unit can change a
result, and another language reproduces it with the same table.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from edgeres.errors import InputError, UsageError
from edgeres.records import F32, U8, Preprocess


def geometry(image: U8, p: Preprocess) -> U8:
    """Resize, crop at the centre and order the channels.

    With ``p.resize_px`` None the image is resized to ``p.crop_px``, or left untouched where it has that size. Otherwise
    it is resized, keeping its aspect ratio, to just cover ``p.crop_px`` scaled by ``resize_px / min(crop_px)``. For a
    square crop that is the usual "shorter side to ``resize_px``". Where the result is smaller than the crop
    (``resize_px < min(crop_px)``) it is padded with black on all sides, as torchvision does.

    Args:
        image: (H, W, 3) uint8 RGB.

    Returns:
        (*p.crop_px, 3) uint8, contiguous.

    Raises:
        InputError: the array is not an image of that form.
    """
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8 or not image.size:
        raise InputError(f"expected an RGB image, uint8 (H, W, 3), found {image.dtype} {image.shape}")
    size = p.crop_px if p.resize_px is None else _covering_size(image.shape[:2], p)
    if size != image.shape[:2] or size != p.crop_px:
        image = _resize_and_crop(image, size, p)
    return np.ascontiguousarray(image if p.channel_order == "RGB" else image[..., ::-1])


def normalize(pixels: U8, p: Preprocess) -> F32:
    """``(pixel * pixel_scale - mean) / std`` per channel, as float32.

    Args:
        pixels: (..., H, W, 3) uint8 in ``p.channel_order``.

    Returns:
        float32, contiguous: (..., 3, H, W) for the layout NCHW, (..., H, W, 3) for NHWC.

    Raises:
        UsageError: mean and std do not describe three channels, or cannot be divided by.
    """
    *leading, height, width, _ = pixels.shape
    out = np.empty((*leading, 3, height, width) if p.layout == "NCHW" else pixels.shape, np.float32)
    planes = out if p.layout == "NCHW" else np.moveaxis(out, -1, -3)
    for channel, values in enumerate(_table(p)):
        # mode="clip" never clips a byte in 256 entries; it spares the buffering that the default mode needs.
        np.take(values, pixels[..., channel], out=planes[..., channel, :, :], mode="clip")
    return out


def apply(image: U8, p: Preprocess) -> F32:
    """An image as the network takes it: ``normalize(geometry(image))``, (3, h, w) or (h, w, 3)."""
    return normalize(geometry(image, p), p)


@lru_cache(maxsize=16)
def _table(p: Preprocess) -> F32:
    """(3, 256) float32: the normalized value of every byte, per channel."""
    mean, std = np.array(p.mean, np.float64), np.array(p.std, np.float64)
    if mean.shape != (3,) or std.shape != (3,):
        raise UsageError(f"mean and std need three values each, found {p.mean} and {p.std}")
    if not np.isfinite([*mean, *std, p.pixel_scale]).all() or not (std.all() and p.pixel_scale):
        raise UsageError(
            "mean, std and pixel scale must be finite, std and pixel scale not zero, "
            f"found {p.mean}, {p.std}, {p.pixel_scale}"
        )
    return ((np.arange(256) * p.pixel_scale - mean[:, None]) / std[:, None]).astype(np.float32)


def _covering_size(shape: tuple[int, ...], p: Preprocess) -> tuple[int, int]:
    """(height, width) after the resize; the other side is truncated, not rounded, as in torchvision's ``Resize``."""
    assert p.resize_px is not None
    height, width = shape
    box_height, box_width = (side * p.resize_px // min(p.crop_px) for side in p.crop_px)
    if height * box_width <= width * box_height:
        return box_height, int(box_height * width / height)
    return int(box_width * height / width), box_width


def _resize_and_crop(image: U8, size: tuple[int, int], p: Preprocess) -> U8:
    filter_ = Image.Resampling[p.interpolation.upper()]
    # Width, then height, each rounded to bytes: one call did so until Pillow 13 reversed it for some tall images.
    resized = Image.fromarray(image).resize((size[1], image.shape[0]), filter_).resize(size[::-1], filter_)
    top, left = (_offset(side, crop) for side, crop in zip(size, p.crop_px, strict=True))
    return np.asarray(resized.crop((left, top, left + p.crop_px[1], top + p.crop_px[0])))


def _offset(side: int, crop: int) -> int:
    """Where the crop starts, as in torchvision's ``CenterCrop``: half to even; minus the padding of a larger crop."""
    return round((side - crop) / 2) if side >= crop else -((crop - side) // 2)
