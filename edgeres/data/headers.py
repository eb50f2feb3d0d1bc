"""What an image file says of itself, looked at before it is decoded: sizes that a few bytes can claim are refused."""

from __future__ import annotations

import os
import struct
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy.typing as npt

from edgeres.errors import InputError
from edgeres.files import open_file

MOST_PIXELS = 100_000_000
_MOST_SCANS = 64  # of a progressive JPEG, which has about ten; each passes over all pixels
_MOST_EXIF = 1 << 20  # bytes
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


def bounded(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same array; an array may be a view that repeats few values in memory, and is copied whole.

    Raises:
        InputError: it has more than MOST_PIXELS pixels.
    """
    if prod(image.shape[:2]) > MOST_PIXELS:
        what = f"an array {image.shape} has more than {MOST_PIXELS // 1_000_000} million pixels"
        raise InputError(what, hint="make it smaller")
    return image


def check_header(file: str | Path | IO[bytes]) -> str | None:
    """Why an image is not decoded: what it claims is out of proportion to the file; None: nothing is known against it.

    A stream is read from its start, and stands there again afterwards. The number of pixels is not looked at.

    Raises:
        OSError: the file cannot be read, or is a pipe or a device.
    """
    if isinstance(file, str | Path):
        with open_file(file) as stream:
            return _check(stream)
    try:
        return _check(file)
    finally:
        file.seek(0)


def _check(stream: IO[bytes]) -> str | None:
    stream.seek(0)
    head = stream.read(4)
    if head[:2] == b"\xff\xd8":
        return _check_jpeg(stream)
    return _check_tiff(stream, head) if head in _TIFF else None


def _check_jpeg(stream: IO[bytes]) -> str | None:
    """Count scans, and add up bytes of EXIF: Pillow joins its parts, and each of its tags may name all of them."""
    stream.seek(2)
    exif = scans = 0
    while (marker := stream.read(2))[:1] == b"\xff" and len(marker) == 2:
        kind = marker[1]
        if kind == 0xFF:
            stream.seek(-1, os.SEEK_CUR)
            continue
        if kind == 0xDA:  # the rest is scans: of their markers only the code is looked for
            scans = _count(stream, b"\xff\xda") + 1
            break
        size = stream.read(2)
        if len(size) < 2 or kind == 0xD9:
            break
        length = int.from_bytes(size, "big") - 2
        exif += length if kind == 0xE1 else 0
        stream.seek(max(length, 0), os.SEEK_CUR)
    if exif > _MOST_EXIF:
        return f"it has {exif:,} bytes of EXIF"
    return f"it has {scans:,} scans, a progressive JPEG has about ten" if scans > _MOST_SCANS else None


def _count(stream: IO[bytes], code: bytes) -> int:
    found, last = 0, b""
    while block := stream.read(1 << 20):
        found += (last + block).count(code)
        last = block[-1:]
    return found


_TIFF = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}


def _check_tiff(stream: IO[bytes], head: bytes) -> str | None:
    """Values of the first directory's tags must not add up to more than the file: each may name the same bytes."""
    order, is_big = _TIFF[head], b"+" in head
    size = stream.seek(0, os.SEEK_END)
    stream.seek(8 if is_big else 4)
    try:
        (start,) = struct.unpack(order + ("Q" if is_big else "L"), stream.read(8 if is_big else 4))
        stream.seek(min(start, size))
        (count,) = struct.unpack(order + ("Q" if is_big else "H"), stream.read(8 if is_big else 2))
        shape = order + ("HHQ8x" if is_big else "HHL4x")
        entries = stream.read(min(count, size) * struct.calcsize(shape))
        whole = entries[: len(entries) - len(entries) % struct.calcsize(shape)]
        total = sum(values * _TYPE_BYTES.get(kind, 1) for _, kind, values in struct.iter_unpack(shape, whole))
    except struct.error:
        return None  # cut off: Pillow says so
    return f"its tags claim {total:,} bytes of {size:,}" if total > 2 * size + 4096 else None
