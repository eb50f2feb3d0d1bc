"""Images in arrays: an ``.npz`` file, and CIFAR-10 as published."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeres.data.base import Role, Source, check_labels_below, some
from edgeres.data.npz import check_sizes, read_array
from edgeres.errors import SourceError, reading
from edgeres.files import LFS_POINTER, PULL, is_lfs_pointer_at, open_file, refuse_special
from edgeres.inert import Inert, Make, read_pickle
from edgeres.records import I64, U8

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR10_BATCHES = {"calibration": tuple(f"data_batch_{n}" for n in range(1, 6)), "validation": ("test_batch",)}
_HOW = "write it with np.savez(path, images=..., labels=...): uint8 (N, H, W, 3) RGB and integers (N,)"
_NO_BATCH, _UNPACK = "is not a CIFAR-10 batch", "unpack CIFAR-10 again"

Array = npt.NDArray[Any]


class Arrays(Source):
    """Decoded images of one size, in memory: ``images`` is (N, H, W, 3) uint8 RGB."""

    def __init__(self, images: U8, labels: I64, classes: tuple[str, ...], title: str) -> None:
        found = len(np.unique(labels[labels >= 0]))
        self.images = images
        self.labels = labels
        self.classes = classes
        self.description = f"{title}: {len(images):,} images, {f'{found:,} classes' if found else 'no labels'}"

    def name(self, index: int) -> str:
        return f"images[{index}]"

    def image(self, index: int) -> U8:
        pixels: U8 = self.images[index]
        return pixels

    def digest(self) -> str:
        """Digest of pixels and labels; storage and compression do not change it."""
        return self._digest((self.images.shape, self.labels.tolist()))

    def digest_with_names(self) -> str:
        return self._digest((self.images.shape, self.labels.tolist(), self.classes))

    def _digest(self, head: tuple[object, ...]) -> str:
        digest = hashlib.sha256(repr(head).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        return digest.hexdigest()


def open_npz(path: Path, role: Role) -> Source:
    """An ``.npz`` with ``images`` (N, H, W, 3) uint8 RGB, ``labels`` (N,) of integers, and optional ``classes`` (C,).

    A calibration source needs no ``labels``. Without ``classes``, labels are indices of the network's outputs.
    """
    arrays = _read_npz(path)
    for key in ("images", "labels") if role == "validation" else ("images",):
        if key not in arrays:
            raise SourceError(f"has no {key!r}, only {', '.join(arrays) or 'nothing'}", where=path, hint=_HOW)
    images = _check_images(arrays["images"], path)
    named = arrays.get("classes", np.empty(0))
    if named.ndim != 1:
        raise SourceError(f"expected classes of text (C,), found {named.dtype} {named.shape}", where=path, hint=_HOW)
    classes = tuple(map(str, named))
    if "labels" not in arrays:
        return Arrays(images, np.full(len(images), -1, np.int64), classes, path.name)
    return Arrays(images, _check_labels(arrays["labels"], len(images), len(classes), path), classes, path.name)


def is_cifar10(path: Path) -> bool:
    """Whether a directory holds batches named as in ``cifar-10-batches-py`` or ``cifar-10-batches-bin``."""
    return any(_batches(path, role) for role in ("calibration", "validation"))


def open_cifar10(path: Path, role: Role) -> Source:
    """A CIFAR-10 directory as published: the training batches for calibration, the test batch for validation."""
    files = _batches(path, role)
    if not files:
        wanted = " or ".join(_CIFAR10_BATCHES[role])
        raise SourceError(f"has no {wanted} for {role}", where=path, hint="unpack the whole CIFAR-10 archive")
    batches = [_read_bin(file) if file.suffix == ".bin" else _read_pickle(file) for file in files]
    planes = np.concatenate([planes for planes, _ in batches])
    images = _check_images(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), path)
    labels = _check_labels(np.concatenate([labels for _, labels in batches]), len(images), len(CIFAR10_CLASSES), path)
    title = f"{path.resolve().name} ({some((file.name for file in files), len(files))})"
    return Arrays(np.ascontiguousarray(images), labels, CIFAR10_CLASSES, title)


def _read_npz(path: Path) -> dict[str, Array]:
    with reading(path, "cannot be read as .npz", error=SourceError, hint=_HOW):
        refuse_special(path)
        if is_lfs_pointer_at(path):
            raise SourceError(f"is {LFS_POINTER}", where=path, hint=PULL)
        if not zipfile.is_zipfile(path):
            with open_file(path) as stream:
                single = stream.read(6) == b"\x93NUMPY"
            raise ValueError("it is a single array" if single else "it is no zip archive, or was cut off")
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            wanted = {key: info for key, info in members.items() if key in ("images", "labels", "classes")}
            if any(info.flag_bits & 1 for info in wanted.values()):
                raise SourceError("is encrypted", where=path, hint="unpack it, and pack it without a password")
            check_sizes(wanted.values())
            empty = np.empty(0)
            return {key: read_array(archive, wanted[key]) if key in wanted else empty for key in members}


def _batches(path: Path, role: Role) -> list[Path]:
    for suffix in ("", ".bin"):
        files = [file for name in _CIFAR10_BATCHES[role] if (file := path / f"{name}{suffix}").is_file()]
        if files:
            return files
    return []


def _read_bin(path: Path) -> tuple[Array, Array]:
    """Records of 1 + 3,072 bytes: the label, then red, green and blue planes of 32x32."""
    with reading(path, _NO_BATCH, error=SourceError, hint=_UNPACK):
        refuse_special(path)
        records = np.fromfile(path, np.uint8).reshape(-1, 3073)
    return records[:, 1:], records[:, 0]


def _read_pickle(path: Path) -> tuple[Array, Array]:
    """``data`` (N, 3072) uint8, planes as in the binary form, and ``labels``, a list of N integers."""
    with reading(path, _NO_BATCH, error=SourceError, hint=_UNPACK):
        with open_file(path) as file:
            batch = read_pickle(file, _MAKERS, _refuse_persistent)
        if not isinstance(batch, dict):
            raise ValueError(f"it holds {batch.path if isinstance(batch, Inert) else type(batch).__name__}")
        content = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
        planes, labels = content.get("data"), content.get("labels")
        planes = planes.values if isinstance(planes, _Planes) else planes
        if not isinstance(planes, np.ndarray) or not isinstance(labels, list):
            asked = planes if isinstance(planes, Inert) else labels
            what = (
                f"it asks to run {asked.path}, which is not done" if isinstance(asked, Inert) else "no data or labels"
            )
            raise ValueError(what)
        if not all(type(label) is int and abs(label) < 2**31 for label in labels):
            raise ValueError("labels are no integers")
    return planes, np.array(labels, np.int64)


class _Planes:
    """The array of a batch: its pickle makes it first, and then gives shape, type and bytes."""

    values: Array | None = None

    def take_state(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        data = data.encode("latin-1") if isinstance(data, str) else data
        kind = dtype.args[0] if isinstance(dtype, Inert) and dtype.args else None
        if kind not in ("u1", "|u1") or fortran or not (isinstance(shape, tuple) and shape[1:] == (3072,)):
            raise ValueError(f"data is {kind} {shape!r:.60}, expected uint8 (N, 3072)")
        if not isinstance(data, bytes | bytearray) or len(data) != shape[0] * 3072:
            raise ValueError(f"data has {len(data):,} bytes, and claims to be {shape!r:.60}")
        self.values = np.frombuffer(data, np.uint8).reshape(-1, 3072)


def _encode(text: Any, *_: Any) -> Any:
    return text.encode("latin-1") if isinstance(text, str) else text  # how Python 3 writes bytes for Python 2


def _refuse_persistent(identifier: Any) -> Any:
    raise ValueError("it refers to something outside of the file")


_MAKERS: dict[str, Make] = {
    "_codecs.encode": _encode,
    **{f"numpy.{core}.multiarray._reconstruct": lambda *_: _Planes() for core in ("core", "_core")},
}


def _check_images(images: Array, path: Path) -> U8:
    shape = images.shape
    if images.ndim == 4 and shape[1] == 3 != shape[3]:
        hint = "transpose to (N, H, W, 3): images.transpose(0, 2, 3, 1)"
    elif images.ndim == 3 or (images.ndim == 4 and shape[3] == 1):
        hint = "repeat grayscale over three channels: np.repeat(images.reshape(N, H, W, 1), 3, axis=3)"
    elif images.ndim != 4 or shape[3] != 3:
        hint = _HOW
    elif images.dtype != np.uint8:
        hint = "store the pixels as decoded, 0 to 255, before any normalization"
    elif not images.size:
        hint = "it holds no images"
    else:
        return images
    raise SourceError(f"expected images of uint8 (N, H, W, 3), found {images.dtype} {shape}", where=path, hint=hint)


def _check_labels(labels: Array, count: int, classes: int, path: Path) -> I64:
    """Labels as int64 (N,), checked against the number of classes; 0: unknown."""
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        hint = "store labels.argmax(1)" if labels.ndim == 2 and labels.shape[1] > 1 else _HOW
        what = f"expected labels of integers (N,), found {labels.dtype} {labels.shape}"
        raise SourceError(what, where=path, hint=hint)
    if len(labels) != count:
        what = f"has {count:,} images but {len(labels):,} labels"
        raise SourceError(what, where=path, hint="store one label per image")
    check_labels_below(classes or 2**31, labels, "images[{}]".format, where=path)
    return labels.astype(np.int64)
