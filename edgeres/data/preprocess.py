"""From a decoded image to the network's input: the same implementation in calibration, verification and runtime.

    uint8 (H, W, C) --resize--> --crop, pad--> --channel order--> uint8 --table--> float32 (C, h, w) or (h, w, C)

The geometry equals what the network was trained with to the last bit: torchvision's ``Resize`` and ``CenterCrop`` on a
PIL image, timm's, Ultralytics' letterbox, or a resize by OpenCV; :func:`geometry` has the rules.
Pixel values are normalized by a table of 256 entries per channel, each computed in float64 and rounded once to float32.
So results do not depend on the release of Pillow, the order of operations, the compiler or the vector unit, and other
languages reproduce them with the same table.

Pixels that the crop removes are not computed where that changes no other pixel; see :mod:`edgeres.data.window`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from edgeres.data.channels import Pixels, with_channels
from edgeres.data.cv2_resize import cv2_bilinear
from edgeres.data.window import Window, window
from edgeres.errors import InputError, UsageError
from edgeres.records import F32, U8, Interpolation, Preprocess

if TYPE_CHECKING:
    from PIL.Image import Image

# Modes of Pillow's raw decoder, by the distances in bytes from pixel to pixel and from R to G.
_RAW_MODES = {(3, 1): "RGB", (3, -1): "BGR", (4, 1): "RGBX", (4, -1): "BGRX"}


def geometry(image: Pixels, p: Preprocess) -> U8:
    """Resize, crop or pad, and order the channels.

    By ``p.resize_mode``:

    crop, one ``resize_px``
        The shorter side becomes ``resize_px``, the longer one is truncated; cropped at the centre, and padded with
        black where the result is smaller: torchvision's ``Resize(int)`` and ``CenterCrop``.
    crop, two sides
        The image just covers both, rounded, and is cropped at the centre: timm's ``ResizeKeepRatio``.
    squash
        Resized to ``crop_px``; or to two sides of ``resize_px``, and then cropped at the centre.
    letterbox
        Fits into ``crop_px``, rounded, centred, with ``p.fit.fill`` around: Ultralytics' ``LetterBox``.

    Args:
        image: (H, W, 3) uint8 RGB, in any memory layout. Views of a camera's buffer are read in place: padded rows,
            ``bgr[..., ::-1]``, ``rgba[..., :3]``, gray broadcast to three channels. uint16 is scaled to bytes. For a
            network that takes gray also (H, W) and (H, W, 1), for one of four channels (H, W, 4).

    Returns:
        (*p.crop_px, p.channels) uint8, contiguous.

    Raises:
        InputError: the array has another dtype or shape.
    """
    given = image
    image = with_channels(image, p.reading)
    if image.ndim != 3 or image.shape[-1] != p.channels or image.dtype != np.uint8 or not image.size:
        kind = {1: "a gray or RGB", 3: "an RGB", 4: "an RGB or RGBA"}[p.channels]
        shape = f"(H, W, {p.channels})"
        hint = _how_to_fit(given, p.channels)
        raise InputError(f"expected {kind} image, uint8 {shape}, found {given.dtype} {given.shape}", hint=hint)
    size = _resized_size(image.shape[:2], p)
    if size != image.shape[:2] or size != p.crop_px:
        image = _resize_and_crop(image, _placed(size, p), p)
    if p.channel_order == "BGR":
        image = image[..., [2, 1, 0, *range(3, p.channels)]] if p.channels > 3 else image[..., ::-1]
    return np.ascontiguousarray(image)


# Rows and columns, half open.
Part: TypeAlias = "tuple[tuple[int, int], tuple[int, int]]"


@dataclass(frozen=True)
class PlacedImage:
    """Where an image comes to lie in the network's input; rows first, then columns.

    Attributes:
        size_px: of the resized image.
        keep: the rows and columns of the resized image inside the input, half open.
        before: rows and columns of the input before them, which are black or filled.
    """

    size_px: tuple[int, int]
    keep: Part
    before: tuple[int, int]


def placed_image(image_px: tuple[int, ...], p: Preprocess) -> PlacedImage:
    """Where an image of this height and width comes to lie; see :func:`geometry`."""
    return _placed(_resized_size(image_px, p), p)


def _placed(size: tuple[int, int], p: Preprocess) -> PlacedImage:
    """The same for the resized image's height and width."""
    top, left = (_offset(side, crop) for side, crop in zip(size, p.crop_px, strict=True))
    (height, width), (h, w) = size, p.crop_px
    rows, columns = (max(top, 0), min(top + h, height)), (max(left, 0), min(left + w, width))
    return PlacedImage(size, (rows, columns), (max(-top, 0), max(-left, 0)))


def pixels_read(image_px: tuple[int, int], p: Preprocess) -> Part:
    """The rows and columns, half open, of an image of this height and width that :func:`geometry` reads."""
    if p.interpolation == "cv2-bilinear":
        return (0, image_px[0]), (0, image_px[1])
    where = placed_image(image_px, p)
    sides = zip(image_px, where.size_px, where.keep, strict=True)
    rows, columns = (window(have, want, keep, p.interpolation).read for have, want, keep in sides)
    return rows, columns


def _how_to_fit(image: Pixels, channels: int) -> str:
    """The next step for an array that is no image for a network of so many channels."""
    many = image.shape[-1] if image.ndim == 3 else 0
    if image.ndim == 4:
        return "classify.batch(images) takes several"
    if not image.size:
        return "it is empty: check where it comes from"
    if image.ndim == 3 and image.shape[0] in (1, 3, 4) and min(image.shape[1:]) > 4:
        return "the channels come last: image.transpose(1, 2, 0)"
    if image.dtype.kind == "f":
        return "give bytes from 0 to 255 as decoded, before any normalization"
    if image.dtype != np.uint8 and image.dtype != np.uint16:
        return "give bytes from 0 to 255: image.astype(np.uint8)"
    if image.ndim == 2:
        return 'gray, for a network of colours: Frame(image, "mono8")'
    return "leave out the fourth channel: image[..., :3]" if many == 4 and channels < 4 else "see docs/runtime.md"


def normalize(pixels: U8, p: Preprocess, out: F32 | None = None) -> F32:
    """``(pixel * pixel_scale - mean) / std`` per channel, as float32.

    Args:
        pixels: (..., H, W, C) uint8 in ``p.channel_order``.
        out: array for the result, of the returned shape; None: a new array.

    Returns:
        float32, contiguous: (..., C, H, W) for the layout NCHW, (..., H, W, C) for NHWC.

    Raises:
        UsageError: mean, std or pixel scale are not finite.
    """
    *leading, height, width, channels = pixels.shape
    if out is None:
        out = np.empty((*leading, channels, height, width) if p.layout == "NCHW" else pixels.shape, np.float32)
    planes = out if p.layout == "NCHW" else np.moveaxis(out, -1, -3)
    if (level := _level(p)) is not None:
        np.subtract(np.moveaxis(pixels, -1, -3), level, out=planes)
        return out
    for channel, values in enumerate(_table(p)):
        # A byte never exceeds 256 entries, so mode="clip" clips nothing; it avoids the default mode's buffering.
        np.take(values, pixels[..., channel], out=planes[..., channel, :, :], mode="clip")
    return out


def apply(image: Pixels, p: Preprocess, out: F32 | None = None) -> F32:
    """The network's input for an image: ``normalize(geometry(image))``, (C, h, w) or (h, w, C)."""
    return normalize(geometry(image, p), p, out)


def resized(known: Preprocess, size_px: tuple[int, int]) -> Preprocess:
    """The same preprocessing for another size: the crop takes the same share of the resized image."""
    resize = known.resize_px
    if resize is not None:
        before = resize if isinstance(resize, tuple) else (resize, resize)
        base = known.crop_px if isinstance(resize, tuple) else (min(known.crop_px),) * 2
        height, width = (max(1, round(b * s / c)) for b, s, c in zip(before, size_px, base, strict=True))
        resize = height if height == width and known.fit.keep_aspect else (height, width)
    return replace(known, crop_px=size_px, resize_px=resize)


@lru_cache(maxsize=16)
def _table(p: Preprocess) -> F32:
    """(C, 256) float32: the normalized value of every byte, per channel."""
    mean, std = np.array(p.mean, np.float64), np.array(p.std, np.float64)
    if not np.isfinite([*mean, *std, p.pixel_scale]).all():
        raise UsageError(f"mean, std and pixel scale must be finite, found {p.mean}, {p.std}, {p.pixel_scale}")
    return ((np.arange(256) * p.pixel_scale - mean[:, None]) / std[:, None]).astype(np.float32)


@lru_cache(maxsize=16)
def _level(p: Preprocess) -> F32 | None:
    """Offsets (C, 1, 1) where the input is the byte minus an integer per channel, as with exact input; else None."""
    level = -_table(p)[:, :1]
    whole = (level == np.rint(level)).all() and (_table(p) == np.arange(256, dtype=np.float32) - level).all()
    return level[..., None] if whole else None


def _resized_size(shape: tuple[int, ...], p: Preprocess) -> tuple[int, int]:
    """(height, width) after the resize, with the arithmetic of those whose rule it is."""
    (height, width), box = shape, p.crop_px
    if p.resize_mode == "letterbox":
        ratio = min(box[0] / height, box[1] / width)
        return max(round(height * ratio), 1), max(round(width * ratio), 1)
    if p.resize_px is None:
        return box
    if isinstance(p.resize_px, int):
        short = p.resize_px
        if height <= width:
            return short, int(short * width / height)
        return int(short * height / width), short
    if not p.fit.keep_aspect:
        return p.resize_px
    ratio = min(height / p.resize_px[0], width / p.resize_px[1])
    return round(height / ratio), round(width / ratio)


def _resize_and_crop(image: U8, where: PlacedImage, p: Preprocess) -> U8:
    """The resized image, of which the part inside ``p.crop_px`` is computed; black or ``fill`` around."""
    fill, size, keep = p.fit.fill, where.size_px, where.keep
    if p.interpolation == "cv2-bilinear":
        part = (slice(*keep[0]), slice(*keep[1]))
        found = image[part] if size == image.shape[:2] else cv2_bilinear(image, size, keep)
    else:
        found = _resize_with_pillow(image, size, keep, p.interpolation)
    if found.shape[:2] == p.crop_px:
        return found
    top, left = where.before
    padded = np.empty((*p.crop_px, p.channels), np.uint8)
    padded[:] = 0 if fill is None else fill
    padded[top : top + found.shape[0], left : left + found.shape[1]] = found
    return padded


def _resize_with_pillow(
    image: U8, size: tuple[int, int], keep: tuple[tuple[int, int], tuple[int, int]], interpolation: Interpolation
) -> U8:
    from PIL.Image import Resampling

    filter_ = Resampling[interpolation.upper()]
    rows, columns = (
        window(have, want, part, interpolation) for have, want, part in zip(image.shape[:2], size, keep, strict=True)
    )
    part = image[rows.read[0] : rows.read[1], columns.read[0] : columns.read[1]]
    wide = _pillow(part)
    premultiplied = image.shape[-1] == 4 and interpolation != "nearest" and size != image.shape[:2]
    if premultiplied:  # as Pillow's resize does
        wide = wide.convert("RGBa")
    # Width first, then height, each rounded to bytes. Pillow 13 reverses this in a single call for some tall images.
    wide = wide.resize((columns.size, len(part)), filter_, box=(columns.box[0], 0, columns.box[1], len(part)))
    wide = _cut(wide, columns, 0)
    done = _cut(wide.resize((wide.width, rows.size), filter_, box=(0, rows.box[0], wide.width, rows.box[1])), rows, 1)
    found = np.asarray(done.convert("RGBA") if premultiplied else done)
    return found if found.ndim == 3 else np.broadcast_to(found[..., None], (*found.shape, image.shape[-1]))


def _pillow(image: U8) -> Image:
    """The image for Pillow, gray as one channel. Pillow copies the pixels anyway and reorders their bytes then."""
    from PIL import Image

    height, width, channels = image.shape
    step, pixel, channel = image.strides
    if channel == 0 or channels == 1:
        return Image.fromarray(image[..., 0])
    if channels == 3 and pixel == 1:  # planes, as converted YUV has them
        return Image.merge("RGB", [Image.fromarray(np.ascontiguousarray(image[..., plane])) for plane in range(3)])
    mode = _RAW_MODES.get((pixel, channel)) if channels == 3 else None
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
