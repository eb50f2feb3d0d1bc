"""What a graph may cost before a library reads it: its sizes are added up, and graphs that nobody can run are refused.

What arithmetic cannot tell is found in another process with limits, :mod:`edgeres.graph.confined`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from math import prod
from pathlib import Path

from edgeres.errors import NO_MEMORY, EnvironmentError_, ModelError
from edgeres.files import is_inside, open_below, open_file
from edgeres.graph.confined import ALONE
from edgeres.graph.sizes import Sizes, sizes_of
from edgeres.graph.skeleton import Damaged, Declared, Skeleton

_NODES, _PLAIN_NODES = 20_000, 6_000  # a ResNet-1202 has 4,000
# Values alive at once for one image, float32: 2 GB and 0.5 GB. A ResNet-50 has 2.4 million (1024 px: 50).
_ALIVE, _PLAIN_ALIVE = 1 << 29, 1 << 27
# Multiplications for one image. A ResNet-152 takes 12 billion at 224 px, 240 billion at 1024.
_WORK, _PLAIN_WORK, _PLAIN_FOLDED = 5 * 10**11, 4 * 10**10, 10**10
_PLAIN_LISTED = 1 << 22
FREE_PX = 256  # where height and width are the user's to choose
_MESSAGE = 2 << 30  # the most bytes of a protobuf message: of a file, or of a graph with its weights


def admit(content: bytes, where: object, *, free_px: int = FREE_PX, often: bool = False) -> str:
    """Add up what a graph needs for one image.

    Args:
        content: the serialized graph; weights in other files need not be in it.
        free_px: height and width where the graph leaves them free.
        often: whether it is going to run several times before anything else is known of it.

    Returns:
        Why a graph must be tried with limits, in words; "": arithmetic tells that it is harmless.

    Raises:
        ModelError: it is damaged, or needs more memory or work than any residual network.
    """
    try:
        skeleton = Skeleton(content)
        nodes = skeleton.expanded()
        if nodes > _NODES:
            what = f"it has {nodes:,} nodes, and at most {_NODES:,} are read"
            raise ModelError(what, where=where, hint=ALONE)
        tensors = [*skeleton.initializers, *skeleton.constants, *skeleton.elsewhere]
        sizes = sizes_of(skeleton, free_px)
    except Damaged as error:
        raise ModelError(f"not a valid ONNX file ({error})", where=where, hint="export or copy it again") from None
    except MemoryError:
        raise EnvironmentError_(NO_MEMORY, where=where, hint="give this process more of it") from None
    _refuse(sizes, tensors, where)
    if nodes > _PLAIN_NODES or sizes.unknown:
        return sizes.unknown or f"{nodes:,} nodes"
    heavy = sizes.alive > _PLAIN_ALIVE or sizes.folded > _PLAIN_FOLDED or sizes.listed > _PLAIN_LISTED
    heavy |= often and sizes.work > _PLAIN_WORK
    return f"{sizes.largest} is large" if heavy else ""


def _refuse(sizes: Sizes, tensors: Iterable[Declared], where: object) -> None:
    if sizes.alive > _ALIVE:
        what = f"one image would take {sizes.alive * 4 / 1e9:,.0f} GB, most of it for {sizes.largest}"
        raise ModelError(what, where=where, hint=ALONE)
    if sizes.work > _WORK:
        what = f"one image would take {sizes.work / 1e9:,.0f} billion multiplications, most of them in {sizes.largest}"
        raise ModelError(what, where=where, hint=ALONE)
    # What is stored in the file was held to its bytes; what is not stored must be written out.
    written = sum(prod(tensor.dims) for tensor in tensors if tensor.values is None and tensor.external is None)
    if written > _MESSAGE:
        raise ModelError(f"its constants claim {written:,} values", where=where, hint=ALONE)


def check_external(content: bytes, folder: Path) -> None:
    """Hold what a graph reads from other files to the size of those files.

    Raises:
        OSError, ValueError: it is more than is there, more than 2 GB, or a file is mostly holes.
    """
    skeleton, sizes, total = Skeleton(content), dict[str, int](), 0
    for tensor in (*skeleton.initializers, *skeleton.constants, *skeleton.elsewhere):
        if tensor.external is None:
            continue
        name = tensor.external.file.removeprefix("./")
        if not is_inside(name):
            continue  # refused where it is opened
        if name not in sizes:
            sizes[name] = _size(folder, name)
        offset, length = tensor.external.offset, tensor.external.length
        if offset < 0 or offset + (length or 0) > sizes[name]:
            raise ValueError(f"{name} has {sizes[name]} bytes, and {tensor.name} lies at {offset} with length {length}")
        total += sizes[name] - offset if length is None else length
        needed = -(-prod(tensor.dims) * tensor.bits // 8)
        if length is not None and needed > max(length, 0):
            raise ValueError(f"constant {tensor.name} claims {needed:,} bytes, and {length:,} are stored")
    if total > min(2 * sum(sizes.values()), _MESSAGE):
        raise ValueError(f"its constants take {total:,} bytes from files of {sum(sizes.values()):,}")


def _size(folder: Path, name: str) -> int:
    """Bytes of a file that is not mostly holes."""
    with open_below(folder, name) as stream:
        found = os.fstat(stream.fileno())
    stored = getattr(found, "st_blocks", found.st_size) * 512
    if found.st_size > 20 * stored + (64 << 20):
        raise ValueError(f"{name} has {found.st_size:,} bytes, and {stored:,} are stored")
    return found.st_size


def read_bounded(path: Path) -> bytes:
    """The bytes of a graph's file.

    Raises:
        OSError: it is no file, or larger than a protobuf message may be.
    """
    with open_file(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > _MESSAGE:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes, and an ONNX file has at most {_MESSAGE:,}", str(path))
        return stream.read()
