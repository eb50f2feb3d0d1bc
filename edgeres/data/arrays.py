"""Images in arrays: an ``.npz`` file, and CIFAR-10 as published."""

from __future__ import annotations

import codecs
import hashlib
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeres.data.base import Role, Source, check_labels_below, some
from edgeres.errors import SourceError
from edgeres.files import LFS_POINTER, PULL, is_lfs_pointer_at
from edgeres.records import I64, U8

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR10_BATCHES = {"calibration": tuple(f"data_batch_{n}" for n in range(1, 6)), "validation": ("test_batch",)}
_HOW = "write it with np.savez(path, images=..., labels=...): uint8 (N, H, W, 3) RGB and integers (N,)"

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
    classes = tuple(map(str, arrays.get("classes", ())))
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
    if is_lfs_pointer_at(path):
        raise SourceError(f"is {LFS_POINTER}", where=path, hint=PULL)
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no zip archive, or was cut off")
        archive = np.load(path, allow_pickle=False)  # a pickled object could run code
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        with archive:
            wanted = ("images", "labels", "classes")
            return {key: np.asarray(archive[key]) if key in wanted else np.empty(0) for key in archive.files}
    except Exception as error:  # zipfile, zlib and NumPy's parser of headers raise many kinds for damaged files
        if "encrypted" in str(error):
            raise SourceError("is encrypted", where=path, hint="unpack it, and pack it without a password") from None
        cause = str(error) or type(error).__name__
        raise SourceError(f"cannot be read as .npz ({cause})", where=path, hint=_HOW) from None


def _batches(path: Path, role: Role) -> list[Path]:
    for suffix in ("", ".bin"):
        files = [file for name in _CIFAR10_BATCHES[role] if (file := path / f"{name}{suffix}").is_file()]
        if files:
            return files
    return []


def _read_bin(path: Path) -> tuple[Array, Array]:
    """Records of 1 + 3,072 bytes: the label, then red, green and blue planes of 32x32."""
    try:
        records = np.fromfile(path, np.uint8).reshape(-1, 3073)
    except (OSError, ValueError) as error:
        raise SourceError(f"is not a CIFAR-10 batch: {error}", where=path, hint="unpack CIFAR-10 again") from None
    return records[:, 1:], records[:, 0]


def _read_pickle(path: Path) -> tuple[Array, Array]:
    """``data`` (N, 3072) uint8, planes as in the binary form, and ``labels``, a list of N integers."""
    try:
        with path.open("rb") as file:
            batch = _PlainUnpickler(file, encoding="bytes").load()
        content = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
        planes, labels = np.asarray(content["data"]), np.asarray(content["labels"])
        if planes.dtype != np.uint8 or planes.ndim != 2 or planes.shape[1] != 3072:
            raise ValueError(f"data is {planes.dtype} {planes.shape}, expected uint8 (N, 3072)")
    except Exception as error:  # a damaged or hostile pickle raises anything
        cause = f"{type(error).__name__}: {error}"
        raise SourceError(f"is not a CIFAR-10 batch: {cause}", where=path, hint="unpack CIFAR-10 again") from None
    return planes, labels


class _PlainUnpickler(pickle.Unpickler):
    """Builds containers and NumPy arrays, and refuses any other call that a pickle asks for."""

    _reconstruct = np.empty(0).__reduce__()[0]
    _allowed = {  # noqa: RUF012
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,  # NumPy 1
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,  # NumPy 2
        ("_codecs", "encode"): codecs.encode,  # how Python 3 writes bytes for Python 2
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it asks to run {module}.{name}, refused")
        return self._allowed[module, name]


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
