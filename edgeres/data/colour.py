"""Colours from what sensors and encoders give: YUV with shared chroma, Bayer mosaics, samples of 16 bits.

Each function gives the bits of OpenCV's ``cvtColor``, which ROS's ``cv_bridge`` calls. YUV is ITU-R BT.601 with its
limited range, in fixed point with 20 bits; :data:`RULES` has the others. All pixels that share a chroma sample use it
unchanged:

    y' = 1.164 max(y - 16, 0),   r = y' + 1.596 v,   g = y' - 0.813 v - 0.391 u,   b = y' + 2.018 u   (u, v less 128)

Worked number: (y, u, v) = (81, 90, 240), BT.601's red: y' = 75.66, r = 75.66 + 178.75 = 254.

A Bayer mosaic has one colour per pixel; the others are means of the two or four nearest pixels that have them, halves
rounded up. The outermost rows and columns repeat their inner neighbours.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeres.records import U8, Colour

YUV_BITS = 20
# Places of Y (the first of two), U and V among the four bytes of two pixels; the second Y is two bytes behind.
PACKED_YUV: Mapping[str, tuple[int, int, int]] = {"yuyv": (0, 1, 3), "yvyu": (0, 3, 1), "uyvy": (1, 0, 2)}
_ROWS = 32  # rows converted at a time; more would not keep the int32 planes in the cache


@dataclass(frozen=True)
class YuvRule:
    """``luma (y - black)`` and the chroma terms of R, G and B, in units of 2^-20.

    Attributes:
        luma: factor of y, which is black at ``black`` and below.
        red, green, blue: factors of u and v, less 128 each.
    """

    black: int
    luma: int
    red: tuple[int, int]
    green: tuple[int, int]
    blue: tuple[int, int]


def _rule(kr: float, kb: float, *, full: bool) -> YuvRule:
    """From the weights of red and blue in luma; luma has 219 levels and chroma 224, or 255 each."""
    luma, chroma = (1.0, 1.0) if full else (255 / 219, 255 / 224)
    kg, blue, red = 1 - kr - kb, 2 * (1 - kb), 2 * (1 - kr)
    factors = luma, chroma * red, -chroma * blue * kb / kg, -chroma * red * kr / kg, chroma * blue
    y, rv, gu, gv, bu = (round(factor * (1 << YUV_BITS)) for factor in factors)
    return YuvRule(0 if full else 16, y, (0, rv), (gu, gv), (bu, 0))


RULES: Mapping[Colour, YuvRule] = {
    # OpenCV's factors, which have three digits.
    "bt601": YuvRule(16, 1_220_542, (0, 1_673_527), (-409_993, -852_492), (2_116_026, 0)),
    "bt601-full": _rule(0.299, 0.114, full=True),
    "bt709": _rule(0.2126, 0.0722, full=False),
    "bt709-full": _rule(0.2126, 0.0722, full=True),
}


def from_yuv(y: U8, u: U8, v: U8, colour: Colour = "bt601") -> U8:
    """(H, W, 3) RGB from luma (H, W) and chroma planes (H or H/2, W/2); in memory in three planes or by pixels.

    Where the program has imported OpenCV, OpenCV converts BT.601, if it gives the same bits on this processor.
    """
    cv2 = _opencv() if colour == "bt601" else None
    return _from_yuv(y, u, v, RULES[colour]) if cv2 is None else _from_yuv_by_opencv(cv2, y, u, v)


def _opencv() -> Any | None:
    """OpenCV; None where nobody has imported it, which takes long, or where its bits are others."""
    cv2 = sys.modules.get("cv2")
    return cv2 if cv2 is not None and _same_bits(cv2) else None


@lru_cache(maxsize=1)
def _same_bits(cv2: Any) -> bool:
    """Whether OpenCV gives our bits for both kinds of chroma: other processors have other code for it."""
    y, u, v = np.random.default_rng(0).integers(0, 256, (3, 256, 512), np.uint8)
    samples = [(y, plane[:, ::2], other[:, ::2]) for plane, other in ((u, v), (u[::2], v[::2]))]
    try:
        return all(
            np.array_equal(_from_yuv_by_opencv(cv2, *some), _from_yuv(*some, RULES["bt601"])) for some in samples
        )
    except (AttributeError, getattr(cv2, "error", AttributeError)):  # it is being imported, or lacks a function
        return False


def _from_yuv_by_opencv(cv2: Any, y: U8, u: U8, v: U8) -> U8:
    if len(u) < len(y):
        found = cv2.cvtColorTwoPlane(np.ascontiguousarray(y), np.stack([u, v], -1), cv2.COLOR_YUV2RGB_NV12)
    else:
        packed = np.empty((*y.shape, 2), np.uint8)
        packed[..., 0], packed[:, ::2, 1], packed[:, 1::2, 1] = y, u, v
        found = cv2.cvtColor(packed, cv2.COLOR_YUV2RGB_YUYV)
    rgb: U8 = found
    return rgb


def _from_yuv(y: U8, u: U8, v: U8, rule: YuvRule) -> U8:
    shared, width = len(y) // len(u), y.shape[1]
    planes = np.empty((3, *y.shape), np.uint8)
    for top in range(0, len(y), _ROWS):
        some = slice(top, top + _ROWS)
        half = slice(top // shared, (top + _ROWS) // shared)
        luma = np.maximum(y[some].astype(np.int32) - rule.black, 0) * rule.luma + (1 << (YUV_BITS - 1))
        luma = luma.reshape(-1, shared, width)
        cu, cv = u[half].astype(np.int32) - 128, v[half].astype(np.int32) - 128
        wide, both = np.empty((len(cu), 1, width), np.int32), np.empty_like(luma)
        for channel, (of_u, of_v) in enumerate((rule.red, rule.green, rule.blue)):
            # Even and odd columns one after the other: to repeat each value by broadcasting takes three times as long.
            wide[..., ::2] = wide[..., 1::2] = (
                of_v * cv + of_u * cu if of_u and of_v else of_u * cu if of_u else of_v * cv
            )[:, None]
            np.add(luma, wide, out=both)
            np.right_shift(both, YUV_BITS, out=both)
            np.clip(both, 0, 255, out=both)
            planes[channel, some] = both.reshape(-1, width)
    return np.moveaxis(planes, 0, -1)


def demosaic(mosaic: npt.NDArray[Any], red: tuple[int, int]) -> npt.NDArray[Any]:
    """(H, W, 3) RGB of the mosaic's dtype, uint8 or uint16.

    Args:
        mosaic: (H, W), three rows and columns or more.
        red: row and column of the first red pixel, 0 or 1 each: (0, 0) for RGGB.
    """
    height, width = mosaic.shape
    rgb = np.empty((height, width, 3), mosaic.dtype)
    for top in range(1, height - 1, _ROWS):
        stop = min(top + _ROWS, height - 1)
        near = mosaic[top - 1 : stop + 1].astype(np.uint32)
        _bilinear(near, rgb[top:stop], ((red[0] - top) % 2, red[1]))
    rgb[0], rgb[-1] = rgb[1], rgb[-2]
    rgb[:, 0], rgb[:, -1] = rgb[:, 1], rgb[:, -2]
    return rgb


def _bilinear(near: npt.NDArray[Any], rgb: npt.NDArray[Any], red: tuple[int, int]) -> None:
    """Fill rows of ``rgb``, but not their ends. ``near`` has one row more on either side, ``red`` counts in ``rgb``."""
    here, across, down = near[1:-1], near[1:-1, :-2] + near[1:-1, 2:], near[:-2] + near[2:]
    beside, above = (across + 1) >> 1, (down + 1) >> 1
    cross, corners = (across + down[:, 1:-1] + 2) >> 2, (down[:, :-2] + down[:, 2:] + 2) >> 2
    for row in (0, 1):
        for column in (1, 2):
            some = slice(row, None, 2), slice(column, -1, 2)
            inner = slice(row, None, 2), slice(column - 1, None, 2)
            in_row, in_column = row == red[0], column % 2 == red[1]
            if in_row == in_column:  # a red or a blue pixel
                first, second = (0, 2) if in_row else (2, 0)
                rgb[(*some, first)], rgb[(*some, 1)] = here[some], cross[inner]
                rgb[(*some, second)] = corners[inner]
            else:
                side, other = (0, 2) if in_row else (2, 0)
                rgb[(*some, side)], rgb[(*some, 1)] = beside[inner], here[some]
                rgb[(*some, other)] = above[some]


def to_bytes(samples: npt.NDArray[Any], scale: float) -> U8:
    """uint16 samples as bytes: ``sample * scale`` in float32, rounded (halves to even) and limited to 255."""
    # A sample never exceeds 65536 entries, so mode="clip" clips nothing; it avoids the default mode's buffering.
    return _bytes_of(scale).take(samples, mode="clip")


@lru_cache(maxsize=16)
def _bytes_of(scale: float) -> U8:
    table: U8 = np.rint(np.arange(1 << 16, dtype=np.float32) * np.float32(scale)).clip(0, 255).astype(np.uint8)
    return table
