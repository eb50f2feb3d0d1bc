"""The frame that a camera would deliver of a picture: to try frames where there are only images."""

from __future__ import annotations

import numpy as np
from PIL import Image

from edgeres.data.colour import PACKED_YUV, RULES, YUV_BITS
from edgeres.records import F64, PLANAR, U8, FrameSpec


def filmed(picture: U8, frame: FrameSpec) -> U8:
    """uint8, ``frame.shape``: the picture, resized and cut to cover the frame, in the frame's format.

    Args:
        picture: (H, W, 3) RGB.
    """
    rgb = _covering(picture, (frame.height_px, frame.width_px))
    if frame.format == "mono8":
        return _in_rows(np.asarray(Image.fromarray(rgb).convert("L")), frame)
    if frame.format in ("rgb8", "bgr8", "rgba8", "bgra8"):
        ordered = rgb if frame.format.startswith("rgb") else rgb[..., ::-1]
        fourth = np.full((*rgb.shape[:2], frame.pixel_bytes - 3), 255, np.uint8)
        return _in_rows(np.concatenate([ordered, fourth], axis=-1), frame)
    y, u, v = _yuv(rgb, frame)
    if frame.format not in PLANAR:
        pairs = np.empty((len(y), frame.width_px // 2, 4), np.uint8)
        at_y, at_u, at_v = PACKED_YUV[frame.format]
        pairs[..., at_y], pairs[..., at_y + 2], pairs[..., at_u], pairs[..., at_v] = y[:, ::2], y[:, 1::2], u, v
        return _in_rows(pairs.reshape(*y.shape, 2), frame)
    found = np.zeros(frame.shape, np.uint8)
    found[: frame.height_px, : frame.width_px] = y
    below, (first_plane, second) = found[frame.rows :], (u, v) if frame.format in ("nv12", "i420") else (v, u)
    if frame.format in ("nv12", "nv21"):
        below[: len(u), : frame.width_px : 2], below[: len(u), 1 : frame.width_px : 2] = first_plane, second
    else:
        halves = below.reshape(2, frame.rows // 2, frame.step_bytes // 2)
        halves[0, : len(u), : u.shape[1]], halves[1, : len(u), : u.shape[1]] = first_plane, second
    return found


def _covering(picture: U8, size_px: tuple[int, int]) -> U8:
    (height, width), (h, w) = picture.shape[:2], size_px
    ratio = max(h / height, w / width)
    sides = max(round(width * ratio), w), max(round(height * ratio), h)
    left, top = (sides[0] - w) // 2, (sides[1] - h) // 2
    image = Image.fromarray(np.ascontiguousarray(picture)).resize(sides, Image.Resampling.BICUBIC)
    return np.asarray(image.crop((left, top, left + w, top + h)))


def _in_rows(pixels: U8, frame: FrameSpec) -> U8:
    """With the gap behind each row, if there is one."""
    if frame.step_bytes == frame.row_bytes:
        return np.ascontiguousarray(pixels)
    found = np.zeros((frame.height_px, frame.step_bytes), np.uint8)
    found[:, : frame.row_bytes] = pixels.reshape(frame.height_px, -1)
    return found


def _yuv(rgb: U8, frame: FrameSpec) -> tuple[U8, U8, U8]:
    """Luma, and the chroma that two or four pixels share; from the inverse of the colour's matrix."""
    rule = RULES[frame.colour]
    columns = [[rule.luma, *factors] for factors in (rule.red, rule.green, rule.blue)]
    yuv: F64 = rgb.astype(np.float64) @ np.linalg.inv(np.array(columns) / (1 << YUV_BITS)).T
    down = 2 if frame.format in PLANAR else 1
    height, width = rgb.shape[:2]
    chroma = yuv[..., 1:].reshape(height // down, down, width // 2, 2, 2).mean(axis=(1, 3)) + 128
    y, both = (np.rint(part).clip(0, 255).astype(np.uint8) for part in (yuv[..., 0] + rule.black, chroma))
    return y, both[..., 0], both[..., 1]
