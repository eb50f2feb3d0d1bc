"""Arrays of an ``.npz``, read within the sizes that its archive states."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeres.files import open_file

_LARGE, _USUAL_RATIO = 1 << 29, 20  # bytes; larger arrays must not expand to more times their packed size


def check_sizes(members: Iterable[zipfile.ZipInfo], free: int = _LARGE) -> None:
    """Refuse members that expand to far more than they take in the archive.

    Args:
        free: bytes that they may have in any case.

    Raises:
        ValueError: with the sizes.
    """
    members = list(members)
    size, packed = sum(info.file_size for info in members), sum(info.compress_size for info in members)
    if size > max(free, _USUAL_RATIO * packed):
        raise ValueError(f"its arrays expand to {size / 1e6:,.0f} MB, {size / max(packed, 1):,.0f} times their size")


def read_arrays(path: Path, free: int = _LARGE) -> dict[str, npt.NDArray[Any]]:
    """All arrays of a file by their names; ``free`` as of :func:`check_sizes`.

    Raises:
        OSError, ValueError: it is a pipe or a device, its arrays expand to far more than they take, or as
            :func:`read_array`.
    """
    with open_file(path) as stream, zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
        check_sizes(members, free)
        return {info.filename.removesuffix(".npy"): read_array(archive, info) for info in members}


def read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> npt.NDArray[Any]:
    """An array whose header claims no more bytes than its member has; no Python objects, which could run code.

    Raises:
        ValueError: it claims more, or holds objects. What zipfile and NumPy raise for damaged files.
    """
    formats = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in formats:
            raise ValueError(f"{info.filename} has an unknown form")
        shape, _, dtype = formats[version](stream)
        if dtype.hasobject:
            raise ValueError(f"{info.filename} holds Python objects, which could run code")
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > info.file_size:
            raise ValueError(f"{info.filename} claims to be {dtype} {shape}, and holds {info.file_size:,} bytes")
    with archive.open(info) as stream:
        found: npt.NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
        return found
