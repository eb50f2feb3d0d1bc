"""Camera frames as RGB: ROS's ``sensor_msgs/Image``, GStreamer's ``video/x-raw``, V4L2 buffers.

Formats with one byte per channel become views: nothing is copied, and the resize reads the frame in place. Formats
with shared chroma are converted by the limited-range equations of ITU-R BT.601 in fixed point with 20 bits, as OpenCV's
``cvtColor`` and ROS's ``cv_bridge`` do. All pixels that share a chroma sample use it unchanged:

    y' = 1.164 max(y - 16, 0),   r = y' + 1.596 v,   g = y' - 0.813 v - 0.391 u,   b = y' + 2.018 u   (u, v less 128)

Worked number: (y, u, v) = (81, 90, 240), BT.601's red: y' = 75.66, r = 75.66 + 178.75 = 254.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeres.errors import InputError, UsageError
from edgeres.records import U8

# Bytes per pixel, and the positions of R, G and B among them.
_RGB, _BGR = slice(0, 3), slice(2, None, -1)
_PACKED = {"rgb8": (3, _RGB), "bgr8": (3, _BGR), "rgba8": (4, _RGB), "bgra8": (4, _BGR)}
# Rows of bytes per row of pixels (as a fraction), bytes per pixel in a row, and the steps of height and width.
_SHARED = dict.fromkeys(("yuyv", "uyvy"), ((1, 1), 2, (1, 2)))
_SHARED |= dict.fromkeys(("nv12", "nv21", "i420"), ((3, 2), 1, (2, 2)))
FORMATS = (*_PACKED, "mono8", *_SHARED)
# Other names that ROS and GStreamer use for these formats.
_ALIASES = {"rgb": "rgb8", "bgr": "bgr8", "rgba": "rgba8", "rgbx": "rgba8", "bgra": "bgra8", "bgrx": "bgra8"}
_ALIASES |= {"8uc1": "mono8", "gray8": "mono8", "8uc3": "bgr8", "8uc4": "bgra8"}
_ALIASES |= {"yuy2": "yuyv", "yuv422_yuy2": "yuyv", "yuv422": "uyvy"}
_BITS = 20
_CY, _CUB, _CUG, _CVG, _CVR = 1_220_542, 2_116_026, -409_993, -852_492, 1_673_527
_ROWS = 32  # rows converted at a time; more would not keep the int32 planes in the cache


@dataclass(frozen=True)
class Frame:
    """An image as a camera delivers it.

    ``Frame(message.data, message.encoding, message.height, message.width, message.step)`` takes a ROS message,
    ``Frame(array, "bgr8")`` what OpenCV reads.

    Attributes:
        data: the bytes, or a uint8 array: (H, W, 3 or 4), (H, W) for mono8, (H, W, 2) for yuyv and uyvy, (1.5 H, W) for
            nv12, nv21 and i420.
        format: one of :data:`FORMATS`, or ROS's or GStreamer's name for it, in any case: ``BGRx``, ``YUY2``, ``NV12``.
        height_px, width_px: needed where ``data`` is bytes.
        step_bytes: distance between rows where ``data`` is bytes; None: rows have no gap between them.
    """

    data: Any
    format: str
    height_px: int | None = None
    width_px: int | None = None
    step_bytes: int | None = None

    def rgb(self) -> U8:
        """(H, W, 3) uint8 RGB, a view where the format allows it.

        Raises:
            UsageError: the format is not known.
            InputError: the bytes do not fit the size and the format.
        """
        name = str(self.format).lower()
        name = _ALIASES.get(name, name)
        if name not in FORMATS:
            hint = "demosaic it first" if "bayer" in name else f"give one of {', '.join(FORMATS)}"
            raise UsageError(f"frame format {self.format!r} is not known", hint=hint)
        lines = self._lines(name)
        if name in _PACKED:
            return lines[..., _PACKED[name][1]]
        if name == "mono8":
            return np.broadcast_to(lines[..., None], (*lines.shape, 3))
        return _from_yuv(*_planes(name, lines))

    def _lines(self, name: str) -> U8:
        """The frame as an array with the shape of its format."""
        (up, down), pixel, (even_h, even_w) = _SHARED.get(name, ((1, 1), _PACKED.get(name, (1,))[0], (1, 1)))
        if isinstance(self.data, np.ndarray) and self.data.ndim > 1:
            shape, array = self.data.shape, self.data
            height, width = shape[0] * down // up, shape[1]
            wanted: tuple[int, ...] = (shape[0], width) if pixel == 1 else (shape[0], width, pixel)
            if array.dtype != np.uint8 or shape != wanted or shape[0] * down % up:
                raise self._misfit(f"an array {array.dtype} {shape}")
        elif isinstance(self.data, np.ndarray) and self.data.dtype != np.uint8:
            raise self._misfit(f"an array {self.data.dtype} {self.data.shape}")
        else:
            array, height, width = self._from_bytes(pixel, (up, down))
        if (self.height_px or height, self.width_px or width) != (height, width):
            raise self._misfit(f"{height} x {width} pixels")
        if height % even_h or width % even_w or not array.size:
            raise self._misfit(f"{height} x {width} pixels, which this format does not have")
        return array

    def _from_bytes(self, pixel: int, rows: tuple[int, int]) -> tuple[U8, int, int]:
        if not self.height_px or not self.width_px or self.height_px < 0 or self.width_px < 0:
            raise UsageError("a frame of bytes needs its height and width", hint="Frame(data, format, height, width)")
        try:
            flat = np.frombuffer(self.data, np.uint8)
        except (TypeError, ValueError, BufferError):
            raise self._misfit(f"{type(self.data).__name__}, not bytes") from None
        count, length = self.height_px * rows[0] // rows[1], self.width_px * pixel
        step = self.step_bytes or length
        if step < length or len(flat) < step * (count - 1) + length:
            raise self._misfit(f"{len(flat):,} bytes in steps of {step:,}")
        shape = (count, self.width_px) if pixel == 1 else (count, self.width_px, pixel)
        strides = (step, 1) if pixel == 1 else (step, pixel, 1)
        array = np.lib.stride_tricks.as_strided(flat, shape, strides, writeable=False)
        return array, self.height_px, self.width_px

    def _misfit(self, found: str) -> InputError:
        size = f" of {self.height_px} x {self.width_px} pixels" if self.height_px and self.width_px else ""
        return InputError(f"expected a {self.format} frame{size}, found {found}", hint="see edgeres.runtime.Frame")


def _planes(name: str, lines: U8) -> tuple[U8, U8, U8, int]:
    """Luma (H, W), both chroma planes (H or H/2, W/2), and the number of rows that share a chroma sample."""
    if name in ("yuyv", "uyvy"):
        luma, chroma = (0, 1) if name == "yuyv" else (1, 0)
        return lines[..., luma], lines[:, ::2, chroma], lines[:, 1::2, chroma], 1
    height, width = lines.shape[0] * 2 // 3, lines.shape[1]
    below = lines[height:]
    if name == "i420":
        if not below.flags.c_contiguous and height % 4:
            below = np.ascontiguousarray(below)
        first, second = below.reshape(2, height // 2, width // 2)
        return lines[:height], first, second, 2
    first, second = below[:, ::2], below[:, 1::2]
    return (lines[:height], first, second, 2) if name == "nv12" else (lines[:height], second, first, 2)


def _from_yuv(y: U8, u: U8, v: U8, shared: int) -> U8:
    rgb = np.empty((*y.shape, 3), np.uint8)
    for top in range(0, len(y), _ROWS):
        some = slice(top, top + _ROWS)
        half = slice(top // shared, (top + _ROWS) // shared)
        luma = np.maximum(y[some].astype(np.int32) - 16, 0) * _CY + (1 << (_BITS - 1))
        cu, cv = u[half].astype(np.int32) - 128, v[half].astype(np.int32) - 128
        for channel, chroma in enumerate((_CVR * cv, _CVG * cv + _CUG * cu, _CUB * cu)):
            both = luma.reshape(len(chroma), shared, -1, 2) + chroma[:, None, :, None]
            np.clip(both >> _BITS, 0, 255, out=both)
            rgb[some, :, channel] = both.reshape(luma.shape)
    return rgb
