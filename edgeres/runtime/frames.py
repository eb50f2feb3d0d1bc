"""Camera frames as RGB: ROS's ``sensor_msgs/Image``, GStreamer's ``video/x-raw``, V4L2 buffers.

Formats with one byte per channel become views: nothing is copied, and the resize reads the frame in place. The others
are converted by :mod:`edgeres.data.colour`.

Nothing about the layout of bytes is guessed. Without offsets, the length must be exactly that of the planes one behind
the other (drivers may omit the gap behind the last row); any other length is refused, because the chroma would be read
from wrong rows.
"""

from __future__ import annotations

import math
import operator
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from edgeres.data.channels import WHITE
from edgeres.data.channels import to_bytes as of_full_scale
from edgeres.data.colour import PACKED_YUV, demosaic, from_yuv, to_bytes
from edgeres.data.headers import bounded
from edgeres.data.preprocess import Part
from edgeres.errors import InputError, UsageError
from edgeres.records import AS_RGB, BYTE_FORMATS, COLOURS, U8, Colour, FrameSpec, PixelReading

Plane = npt.NDArray[Any]


@dataclass(frozen=True)
class _PlaneForm:
    """A plane with one row per ``down`` rows of the picture and ``samples`` values per ``across`` columns."""

    down: int = 1
    across: int = 1
    samples: int = 1


_FULL, _PAIR = _PlaneForm(), _PlaneForm(samples=2)
_HALF, _HALF_PAIR = _PlaneForm(2, 2), _PlaneForm(2, 2, 2)
# Positions of R, G and B among a pixel's samples.
_RGB, _BGR = slice(0, 3), slice(2, None, -1)
_PACKED = {"rgb8": (3, _RGB), "bgr8": (3, _BGR), "rgba8": (4, _RGB), "bgra8": (4, _BGR)}
_PACKED |= {name.replace("8", "16"): order for name, order in _PACKED.items()}
_GRAY = ("mono8", "mono16", "16uc1")
# Row and column of the first red pixel.
_RED = {"rggb": (0, 0), "grbg": (0, 1), "gbrg": (1, 0), "bggr": (1, 1)}
_BAYER = {f"bayer_{order}{bits}": place for bits in (8, 16) for order, place in _RED.items()}
_PLANAR: dict[str, tuple[_PlaneForm, ...]] = {"nv12": (_FULL, _HALF_PAIR), "nv21": (_FULL, _HALF_PAIR)}
_PLANAR |= {"i420": (_FULL, _HALF, _HALF), "yv12": (_FULL, _HALF, _HALF)}
_FORMS: dict[str, tuple[_PlaneForm, ...]] = {name: (_PlaneForm(samples=many),) for name, (many, _) in _PACKED.items()}
_FORMS |= dict.fromkeys((*_GRAY, *_BAYER), (_FULL,)) | dict.fromkeys(PACKED_YUV, (_PAIR,)) | _PLANAR
FORMATS = tuple(_FORMS)
# Other names that ROS, GStreamer and V4L2 use for these formats.
_ALIASES = {"rgb": "rgb8", "bgr": "bgr8", "rgba": "rgba8", "rgbx": "rgba8", "bgra": "bgra8", "bgrx": "bgra8"}
_ALIASES |= {"8uc1": "mono8", "gray8": "mono8", "grey": "mono8", "8uc3": "bgr8", "8uc4": "bgra8"}
_ALIASES |= {"gray16_le": "mono16", "gray16_be": "mono16", "16uc3": "bgr16", "16uc4": "bgra16"}
_ALIASES |= {"yuy2": "yuyv", "yuv422_yuy2": "yuyv", "yuv422": "uyvy", "iyuv": "i420", "yu12": "i420"}
_ALIASES |= {order: f"bayer_{order}8" for order in _RED}
_FOURTH = ("rgba8", "bgra8", "rgba16", "bgra16")
_UNUSED = ("rgbx", "bgrx")  # names for these whose fourth value is not defined
_LEAST_SCALE = 1e-5  # below, every sample becomes 0
_ALIGNED = (2, 4, 8, 16, 32, 64, 128, 256)
_SEE = "see edgeres.runtime.Frame"


@dataclass(frozen=True)
class Frame:
    """An image as a camera delivers it.

    ``Frame(message.data, message.encoding, message.height, message.width, message.step)`` takes a ROS message,
    ``Frame(array, "bgr8")`` what OpenCV reads. ``Frame(data, "NV12", 1080, 1920, meta.stride, meta.offset)`` takes a
    GStreamer buffer with its ``GstVideoMeta``, and ``Frame(data, "nv12", 1080, 1920, 2048, (0, 2048 * 1088))`` a V4L2
    buffer with ``bytesperline`` 2048 and 1088 rows, of which 1080 are the picture.

    Attributes:
        data: the bytes, any object with a buffer of bytes; or a tuple of these with one entry per plane; or a uint8
            array: (H, W, 3 or 4), (H, W) for mono8 and bayer, (H, W, 2) for yuyv, yvyu and uyvy, (1.5 H, W) for nv12,
            nv21, i420 and yv12. uint16 for formats of 16 bits.
        format: one of :data:`FORMATS`, or the name of ROS, GStreamer or V4L2 for it, in any case: ``BGRx``, ``YUY2``.
        height_px, width_px: size of the picture; needed where ``data`` is not an array. Any kind of integer.
        step_bytes: where ``data`` is not an array, the distance between rows; None: rows have no gap between them. One
            per plane, or the first plane's, from which the others' follow: the same for nv12 and nv21, half of it for
            i420 and yv12.
        offsets_bytes: where each plane begins; None: each begins where the rows of the plane before end. Zeros behind
            those of the format's planes, as GStreamer has them, are ignored, here and in ``step_bytes``.
        scale: of formats with 16 bits: byte = sample * scale, rounded and limited to 255; None: 255 by the full scale
            of the bundle's preprocessing, which is 65535 unless it was built otherwise. 16UC1, which is depth in mm,
            has no default then: 255/5000 reaches to 5 m.
        big_endian: order of the bytes of 16-bit samples where ``data`` is not an array; ROS's ``is_bigendian``.
        colour: how YUV is meant: ``bt601`` or ``bt709``, with the levels of video, or of all bytes with ``-full``.
    """

    data: Any
    format: str
    height_px: SupportsIndex | None = None
    width_px: SupportsIndex | None = None
    step_bytes: SupportsIndex | Sequence[SupportsIndex] | None = None
    offsets_bytes: Sequence[SupportsIndex] | None = None
    scale: float | None = None
    big_endian: bool = False
    colour: Colour = "bt601"

    def rgb(self, part: Callable[[tuple[int, int]], Part] | None = None) -> U8:
        """(H, W, 3) uint8 RGB, a view where the format allows it.

        Args:
            part: gives the rows and columns, half open, that are needed of a picture of this height and width; YUV is
                converted there alone, and is black elsewhere. None: all of it.

        Raises:
            UsageError: the format is not known, or an argument is not of its type.
            InputError: the data do not fit the size and the format.
        """
        return self.pixels(AS_RGB, part)

    def pixels(self, reading: PixelReading, part: Callable[[tuple[int, int]], Part] | None = None) -> U8:
        """As :meth:`rgb`; (H, W, 4) RGBA where the network takes four channels and the format has a fourth.

        Args:
            reading: its ``full_scale`` holds for formats of 16 bits where the frame has no ``scale``.
            part: as in :meth:`rgb`.
        """
        name = self._checked()
        scale = self._scale(name, reading.full_scale)
        first, *others = _Reader(self, name).planes()
        if name in _BAYER:
            first = demosaic(first, _BAYER[name])
        if first.dtype != np.uint8:
            first = (
                _bytes_of_full_scale(reading.full_scale).take(first, mode="clip")
                if scale is None
                else to_bytes(first, scale)
            )
        if name in _FOURTH and reading.channels == 4 and str(self.format).lower() not in _UNUSED:
            return first[..., [2, 1, 0, 3]] if _PACKED[name][1] == _BGR else first
        if name in _PACKED:
            return first[..., _PACKED[name][1]]
        if name in _GRAY:
            return np.broadcast_to(first[..., None], (*first.shape, 3))
        if name in _BAYER:
            return first
        luma_and_chroma = _luma_and_chroma(name, first, others)
        return (
            _converted(luma_and_chroma, part(luma_and_chroma[0].shape), self.colour)
            if part
            else from_yuv(*luma_and_chroma, self.colour)
        )

    def _checked(self) -> str:
        """The format by its first name."""
        name = str(self.format).lower()
        name = _ALIASES.get(name, name)
        if name not in FORMATS:
            raise UsageError(f"frame format {self.format!r:.40} is not known", hint=f"give one of {', '.join(FORMATS)}")
        if self.colour not in COLOURS:
            raise UsageError(f"no colour of YUV is {self.colour!r:.80}", hint=f"give one of {', '.join(COLOURS)}")
        return name

    def spec(self) -> FrameSpec | None:
        """What an engine for such frames is built for, without gaps between rows; None: no engine can take them.

        Raises:
            UsageError, InputError: as :meth:`rgb`.
        """
        name = self._checked()
        if name not in BYTE_FORMATS:
            return None
        height, width = _Reader(self, name).planes()[0].shape[:2]
        try:
            return FrameSpec(name, height, width, width * _FORMS[name][0].samples, height, self._colour_of(name))
        except ValueError:  # too many rows or columns
            return None

    def _colour_of(self, name: str) -> Colour:
        """The colour, which only YUV has."""
        return self.colour if name in PACKED_YUV or name in _PLANAR else "bt601"

    def laid_as(self, spec: FrameSpec) -> U8 | None:
        """The bytes in an array of ``spec.shape``, without a copy where they lie so; None: another kind of frame.

        Raises:
            UsageError, InputError: as :meth:`rgb`.
        """
        name = self._checked()
        if name != spec.format or self._colour_of(name) != spec.colour:
            return None
        self._scale(name, WHITE)
        planes = _Reader(self, name).planes()
        if planes[0].shape[:2] != (spec.height_px, spec.width_px):
            return None
        view = _view(planes, spec)
        if view is None and planes[0].shape == spec.shape:
            return planes[0]
        return _copied(planes, spec) if view is None else view

    def _scale(self, name: str, full_scale: int) -> float | None:
        """What samples are multiplied with; None: they are bytes already, or have the full scale of the bundle."""
        if _sample_bytes(name) == 1:
            if self.scale is not None:
                raise UsageError(f"{self.format} has bytes, which take no scale", hint="leave out scale")
            return None
        if self.scale is None:
            if name == "16uc1" and full_scale == WHITE:
                hint = "for depth in mm up to 5 m: scale=255/5000, or build with --full-scale 5000; mono16 has 65,535"
                raise UsageError("a 16UC1 frame needs a scale from its samples to bytes", hint=hint)
            return None
        try:
            scale = math.nan if isinstance(self.scale, bool | np.bool_ | str | bytes) else float(self.scale)
        except (TypeError, ValueError, OverflowError):
            scale = math.nan
        if not _LEAST_SCALE <= scale <= 255:
            raise UsageError(f"scale is a number from {_LEAST_SCALE:g} to 255, found {self.scale!r:.80}", hint=_SEE)
        return scale


class _Reader:
    """Reads the planes of one frame; every size is a Python integer here, so that no product overflows."""

    def __init__(self, frame: Frame, name: str) -> None:
        self._frame, self._forms = frame, _FORMS[name]
        self._height = _size(frame.height_px, "height_px")
        self._width = _size(frame.width_px, "width_px")
        big_endian = _flag(frame.big_endian) or str(frame.format).lower().endswith("_be")
        self._dtype = np.dtype("u1" if _sample_bytes(name) == 1 else ">u2" if big_endian else "<u2")
        self._even = 2 if self._forms[-1].down == 2 else 1, 2 if name in _PLANAR or name in PACKED_YUV else 1
        self._least = 3 if name in _BAYER else 1

    def planes(self) -> list[Plane]:
        """(rows, columns) each, or (rows, columns, samples).

        Raises:
            InputError: they are not in the data.
        """
        data = self._frame.data
        if isinstance(data, np.ndarray) and data.ndim > 1:
            return self._of_array(data)
        if self._height is None or self._width is None:
            raise UsageError("a frame of bytes needs its height and width", hint="Frame(data, format, height, width)")
        self._check_size(self._height, self._width)
        separate = isinstance(data, tuple | list)
        if separate and len(data) != len(self._forms):
            raise self._misfit(f"{type(data).__name__}, not bytes, and not {len(self._forms)} planes")
        parts = [self._flat(part) for part in data] if separate else [self._flat(data)]
        return list(self._of_bytes(parts, self._height, self._width))

    def _of_array(self, image: Plane) -> list[Plane]:
        form, image = self._forms[0], bounded(image)
        shape, both = image.shape, len(self._forms) > 1
        height, width = (shape[0] * 2 // 3 if both else shape[0]), shape[1]
        wanted = (shape[0], width) if form.samples == 1 else (shape[0], width, form.samples)
        if image.dtype.newbyteorder("=") != self._dtype.newbyteorder("=") or shape != wanted:
            raise self._misfit(f"an array {image.dtype} {shape}")
        if both and shape[0] % 3:
            raise self._misfit(f"an array {image.dtype} {shape}, whose rows are not those of luma and half as many")
        if (self._height or height, self._width or width) != (height, width):
            offsets = ", (0, rows * step)" if both else ""
            hint = f"rows or columns beyond the picture: Frame(array.ravel(), format, height, width, step{offsets})"
            raise self._misfit(f"{height} x {width} pixels", hint if both else _SEE)
        self._check_size(height, width)
        step = self._frame.step_bytes
        own = step is None or (not _is_several(step) and _integer(step, "step_bytes") == image.strides[0])
        if self._frame.offsets_bytes is not None or not own:
            raise UsageError("an array has its own strides", hint="give step_bytes and offsets_bytes with bytes only")
        if not both:
            return [image]
        below = image[height:]
        if self._forms[1].samples == 2:
            return [image[:height], below.reshape(height // 2, width // 2, 2)]
        return [image[:height], *below.reshape(2, height // 2, width // 2)]

    def _of_bytes(self, parts: list[U8], height: int, width: int) -> Iterator[Plane]:
        item = self._dtype.itemsize
        rows = [height // form.down for form in self._forms]
        lengths = [width // form.across * form.samples * item for form in self._forms]
        steps = self._steps(lengths)
        given = self._offsets()
        offsets = given or _stacked(rows, steps, len(parts))
        ends = [
            at + step * (many - 1) + length
            for at, step, many, length in zip(offsets, steps, rows, lengths, strict=True)
        ]
        if len(parts) == 1:
            self._check_length(len(parts[0]), ends, offsets[-1] + steps[-1] * rows[-1], bool(given))
            if given:
                self._check_apart(list(zip(offsets, steps, rows, lengths, strict=True)))
        else:
            for part, at, step, many, end in zip(parts, offsets, steps, rows, ends, strict=True):
                self._check_length(len(part), [end], at + step * many, bool(given))
        for index, form in enumerate(self._forms):
            shape: tuple[int, ...] = (rows[index], width // form.across, form.samples)
            strides: tuple[int, ...] = (steps[index], form.samples * item, item)
            shape, strides = (shape[:2], strides[:2]) if form.samples == 1 else (shape, strides)
            # ndarray checks once more that all of it lies in the buffer, as as_strided does not
            yield np.ndarray(shape, self._dtype, parts[min(index, len(parts) - 1)], offsets[index], strides)

    def _steps(self, lengths: list[int]) -> list[int]:
        """The distance of rows in each plane."""
        found = self._frame.step_bytes
        if found is None:
            return lengths
        if _is_several(found):
            steps = self._several(found, "step_bytes")
        else:
            step = _integer(found, "step_bytes") or lengths[0]
            if step * lengths[-1] % lengths[0]:
                raise self._misfit(f"rows of {step:,} bytes, which chroma has no half of", "give one step per plane")
            steps = [step * length // lengths[0] for length in lengths]
        if any(step < length for step, length in zip(steps, lengths, strict=True)):
            raise self._misfit(f"steps of {_and(steps)} for rows of {_and(lengths)} bytes")
        if any(step % self._dtype.itemsize for step in steps):
            raise self._misfit(f"steps of {_and(steps)} bytes for samples of {self._dtype.itemsize}")
        return steps

    def _offsets(self) -> list[int] | None:
        found = self._frame.offsets_bytes
        if found is None:
            return None
        offsets = self._several(found if _is_several(found) else (found,), "offsets_bytes")
        if min(offsets) < 0:
            raise self._misfit(f"planes that begin at {_and(offsets)} bytes")
        return offsets

    def _several(self, values: Any, name: str) -> list[int]:
        """One integer per plane."""
        found, planes = [_integer(value, name) for value in values], len(self._forms)
        if len(found) < planes or any(found[planes:]):
            raise UsageError(f"{name} has {len(found)} values for {planes} planes", hint=_SEE)
        return found[:planes]

    def _check_length(self, length: int, ends: list[int], full: int, enough: bool) -> None:
        """Raise unless the planes are in ``length`` bytes, and, if ``enough`` is not enough, fill them."""
        if not (length >= max(ends) if enough else length in (max(ends), full)):
            steps = self._frame.step_bytes
            said = "" if steps is None else f" in steps of {steps!r:.80}"
            raise self._misfit(f"{length:,} bytes{said}, it has {max(ends):,}", self._advice(length))

    def _advice(self, length: int) -> str:
        """Which usual layout has this length: rows and their number are multiples of a power of two."""
        assert self._height is not None and self._width is not None
        lengths = [self._width // form.across * form.samples * self._dtype.itemsize for form in self._forms]
        found: dict[str, str] = {}
        for step, count in product((1, *_ALIGNED), (1, *_ALIGNED)):
            steps = [-(-length // step) * step for length in lengths]
            rows = [-(-self._height // count) * count // form.down for form in self._forms]
            if sum(map(operator.mul, steps, rows)) == length:
                offsets = f", offsets_bytes={tuple(_stacked(rows, steps, 1))}" if rows[0] > self._height else ""
                found[f"{rows[0]:,} rows of {steps[0]:,} bytes"] = f"step_bytes={_one_or_all(steps)}{offsets}"
        if found:
            is_or_are = "have this length; if that is so, give" if len(found) == 1 else "have this length; give"
            return f"{' and '.join(list(found)[:2])} {is_or_are} {' or '.join(list(found.values())[:2])}"
        return (
            "give the step_bytes and offsets_bytes that V4L2 or GstVideoMeta state, or cut what is behind the picture"
        )

    def _check_apart(self, planes: list[tuple[int, int, int, int]]) -> None:
        """Raise if bytes belong to two planes; rows of U and V side by side do not."""
        placed = sorted(planes)
        for (at, step, rows, length), (after, next_step, _, next_length) in pairwise(placed):
            gap = after - at
            beside = step == next_step and length <= gap % step and gap % step + next_length <= step
            if gap < step * (rows - 1) + length and not beside:
                raise self._misfit(f"planes that overlap, at {_and([place for place, *_ in planes])} bytes")

    def _check_size(self, height: int, width: int) -> None:
        even_h, even_w = self._even
        if height % even_h or width % even_w or min(height, width) < self._least:
            raise self._misfit(f"{height} x {width} pixels, which this format does not have")

    def _flat(self, data: object) -> U8:
        try:
            return flat_bytes(data)
        except (TypeError, ValueError, BufferError):
            array = f"an array {data.dtype} {data.shape}" if isinstance(data, np.ndarray) else ""
            raise self._misfit(array or f"{type(data).__name__}, not bytes") from None

    def _misfit(self, found: str, hint: str = _SEE) -> InputError:
        size = f" of {self._height} x {self._width} pixels" if self._height and self._width else ""
        return InputError(f"expected a {self._frame.format} frame{size}, found {found}", hint=hint)


def flat_bytes(data: object) -> U8:
    """(N,) uint8 view of an object's bytes; a copy where they are not in one piece.

    Raises:
        TypeError, ValueError, BufferError: it has no buffer, or one of other items than bytes.
    """
    view = memoryview(data)  # type: ignore[arg-type]
    if view.itemsize != 1 or view.format.lstrip("@=<>!|") not in ("B", "b", "c"):
        raise TypeError(f"items of type {view.format!r}")
    return np.frombuffer(view if view.c_contiguous else view.tobytes(), np.uint8) if view.nbytes else _NOTHING


_NOTHING: U8 = np.empty(0, np.uint8)


@lru_cache(maxsize=4)
def _bytes_of_full_scale(full_scale: int) -> U8:
    """The byte of every value of 16 bits, as files of 16 bits are read."""
    return of_full_scale(np.arange(WHITE + 1), full_scale)


def _one_or_all(steps: list[int]) -> int | tuple[int, ...]:
    return steps[0] if len(steps) == 1 else tuple(steps)


def _luma_and_chroma(name: str, first: Plane, others: list[Plane]) -> tuple[U8, U8, U8]:
    if name in PACKED_YUV:
        y, u, v = PACKED_YUV[name]
        return first[..., y], first[:, u // 2 :: 2, u % 2], first[:, v // 2 :: 2, v % 2]
    blue, red = (others[0][..., 0], others[0][..., 1]) if len(others) == 1 else others
    return (first, blue, red) if name in ("nv12", "i420") else (first, red, blue)


def _converted(planes: tuple[U8, U8, U8], part: Part, colour: Colour) -> U8:
    """RGB of luma and chroma inside a part, widened to whole groups of pixels that share their chroma."""
    luma, *chroma = planes
    down = len(luma) // len(chroma[0])
    (top, bottom), (left, right) = part
    top, bottom, left, right = top // down, -(-bottom // down), left // 2, (right + 1) // 2
    some = slice(down * top, down * bottom), slice(2 * left, 2 * right)
    if luma[some].shape == luma.shape:
        return from_yuv(luma, chroma[0], chroma[1], colour)
    u, v = (plane[top:bottom, left:right] for plane in chroma)
    converted = from_yuv(luma[some], u, v, colour)
    found: U8 = np.zeros((*luma.shape, 3), np.uint8)
    if converted.strides[1] == 1:  # in three planes
        found = np.moveaxis(np.zeros((3, *luma.shape), np.uint8), 0, -1)
    found[some] = converted
    return found


def _stacked(rows: list[int], steps: list[int], parts: int) -> list[int]:
    """Where planes begin that lie one behind the other, or each in a buffer of its own."""
    ends = [0]
    for many, step in zip(rows, steps, strict=True):
        ends.append(ends[-1] + many * step)
    return ends[:-1] if parts == 1 else [0] * len(rows)


def _sample_bytes(name: str) -> int:
    return 2 if "16" in name else 1


def _size(value: object, name: str) -> int | None:
    if value is None:
        return None
    number = _integer(value, name)
    if number < 1:
        raise UsageError(f"{name} is at least 1, found {number}", hint=_SEE)
    return number


def _integer(value: Any, name: str) -> int:
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise UsageError(f"{name} is an integer, found {type(value).__name__} {value!r:.80}", hint=_SEE) from None


def _flag(value: Any) -> bool:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    number = _integer(value, "big_endian")
    if number not in (0, 1):
        raise UsageError(f"big_endian is False or True, found {number}", hint=_SEE)
    return number == 1


def _is_several(value: object) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence | array) and not isinstance(value, str | bytes)


def _and(values: Sequence[int]) -> str:
    return ", ".join(f"{value:,}" for value in values)


def frame_from(spec: FrameSpec, data: U8) -> Frame:
    """The frame in an array of ``spec.shape``."""
    steps, offsets = _laid(spec)
    return Frame(data.reshape(-1), spec.format, spec.height_px, spec.width_px, steps, offsets, colour=spec.colour)


def _laid(spec: FrameSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The distance of rows in each plane, and where each begins."""
    planes = len(_FORMS[spec.format])
    steps = (spec.step_bytes, *[spec.step_bytes // (planes - 1 or 1)] * (planes - 1))
    rows = [spec.rows // form.down for form in _FORMS[spec.format]]
    return steps, tuple(_stacked(rows, list(steps), 1))


def _view(planes: list[Plane], spec: FrameSpec) -> U8 | None:
    """The planes and what is between them, if they lie as in ``spec``, in one piece of memory."""
    owner = planes[0]
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    start, length = _address(planes[0]), math.prod(spec.shape)
    for plane, step, at in zip(planes, *_laid(spec), strict=True):
        within = (plane.shape[2], 1) if plane.ndim == 3 else (1,)
        if _address(plane) - start != at or plane.strides != (step, *within):
            return None
    first = start - _address(owner)
    if not owner.flags.c_contiguous or not 0 <= first <= owner.nbytes - length:
        return None
    return owner.reshape(-1).view(np.uint8)[first : first + length].reshape(spec.shape)


def _copied(planes: list[Plane], spec: FrameSpec) -> U8:
    """The planes, copied to where ``spec`` has them."""
    found: U8 = np.zeros(math.prod(spec.shape), np.uint8)
    for plane, step, at in zip(planes, *_laid(spec), strict=True):
        within = (plane.shape[2], 1) if plane.ndim == 3 else (1,)
        np.ndarray(plane.shape, np.uint8, found, at, (step, *within))[...] = plane
    return found.reshape(spec.shape)


def _address(array: Plane) -> int:
    return int(array.__array_interface__["data"][0])


def frame_spec(text: str) -> FrameSpec:
    """A frame as the user writes it: ``WIDTHxHEIGHT:FORMAT``, then ``:step=BYTES``, ``:rows=ROWS`` and ``:bt709``.

    Raises:
        UsageError: it is written otherwise, or has values that the format does not have.

    >>> frame_spec("1920x1080:NV12:step=2048:rows=1088").shape
    (1632, 2048)
    """
    size, _, rest = text.partition(":")
    name, *more = rest.split(":")
    name = _ALIASES.get(name.lower(), name.lower())
    sides = re.fullmatch(r"(\d{1,6})x(\d{1,6})", size)
    if sides is None:
        raise UsageError(f"a frame is WIDTHxHEIGHT:FORMAT, found {text!r:.80}", hint="1280x720:bgr8")
    if name not in BYTE_FORMATS:
        known = "has no place in a graph" if name in FORMATS else "is not known"
        hint = f"give one of {', '.join(BYTE_FORMATS)}"
        raise UsageError(f"frame format {rest.partition(':')[0]!r:.80} {known}", hint=hint)
    found: dict[str, Any] = {}
    for part in more:
        key, given, value = part.lower().partition("=")
        key, value = (key, value) if given else ("colour", key)
        allowed = value in COLOURS if key == "colour" else key in ("step", "rows") and re.fullmatch(r"\d{1,7}", value)
        if not allowed or key in found:
            hint = f"step=BYTES, rows=ROWS, or one of {', '.join(COLOURS)}, each once"
            raise UsageError(f"{part!r:.80} says nothing of a frame", hint=hint)
        found[key] = value if key == "colour" else int(value)
    width, height = int(sides[1]), int(sides[2])
    tight = width * _FORMS[name][0].samples
    try:
        step, rows = found.get("step", tight), found.get("rows", height)
        return FrameSpec(name, height, width, step, rows, found.get("colour", "bt601"))
    except ValueError as error:
        raise UsageError(str(error), where=f"frame {text}") from None
