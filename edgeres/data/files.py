"""Image files in class folders, in a directory or in a zip archive."""

from __future__ import annotations

import hashlib
import io
import os
import threading
import zipfile
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np

from edgeres.data.base import Role, Source
from edgeres.data.forms import READ_FORMS, is_hidden, why_no_image
from edgeres.data.tree import CLASSES_BELOW, Tree, arrange, split
from edgeres.errors import SourceError
from edgeres.files import LFS_POINTER, PULL, is_lfs_pointer_at
from edgeres.records import U8

_DEEPEST = 4  # folders: a wrapper, a split, a class, and one more for the error message
_UNPACK, _REPACK = "unpack it and give the directory", "fetch or pack it again"
_LARGEST_FILE = 1 << 29  # bytes; a member of an archive that expands to more is not read


def read_image(file: str | Path | IO[bytes], name: str | None = None) -> U8:
    """Decode to (H, W, 3) uint8 RGB as torchvision's ``ImageFolder`` does: ``Image.open(file).convert("RGB")``.

    So EXIF orientation is ignored, transparency is dropped, palettes are resolved, and 16-bit grayscale saturates at
    255 (Pillow clips it). JPEG is decoded at full size, never at a reduced scale.

    Raises:
        SourceError: the image cannot be decoded; ``where`` is ``name`` or the file, ``what`` the cause.
    """
    from PIL import Image, UnidentifiedImageError

    hint = READ_FORMS
    try:
        with Image.open(file, formats=_formats()) as image:
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:
        cause, hint = why_no_image(_head(file))
    except Image.DecompressionBombError:
        cause = f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000} million pixels"
    except FileNotFoundError as error:
        cause = "a link to a file that is not there" if Path(error.filename or "").is_symlink() else "no such file"
    except OSError as error:
        cause = "truncated" if "truncated" in str(error).lower() else error.strerror or str(error)
    except Exception as error:  # decoders raise anything on damaged files: SyntaxError, struct.error, ValueError ...
        cause = f"{type(error).__name__}: {error}"
    raise SourceError(cause, where=name or file, hint=hint)


def _head(file: str | Path | IO[bytes]) -> bytes:
    """The first bytes of a file."""
    if isinstance(file, str | Path):
        with Path(file).open("rb") as stream:
            return stream.read(64)
    file.seek(0)
    return file.read(64)


def open_folder(path: Path, role: Role) -> Source:
    """A directory in ``ImageFolder`` form; see :func:`edgeres.data.sources.open_source`."""
    return _Folder(path, arrange(_walk(path), str(path), role))


def open_zip(path: Path, role: Role) -> Source:
    """A zip archive of such a directory, read in place."""
    if is_lfs_pointer_at(path):
        raise SourceError(f"is {LFS_POINTER}", where=path, hint=PULL)
    try:
        archive = zipfile.ZipFile(path)
    except UnicodeDecodeError:
        what = "a name in it is no valid UTF-8, so the archive cannot be opened"
        raise SourceError(what, where=path, hint=_UNPACK) from None
    except Exception as error:  # zipfile raises many kinds for damaged archives
        cause = str(error) or type(error).__name__
        raise SourceError(f"cannot be opened as .zip ({cause})", where=path, hint=_REPACK) from None
    return _Zip(archive, path, role)


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """The decoders that are used; others are excluded, to offer hostile files fewer decoders to attack.

    All are loaded first: Pillow loads them on demand, and can miss one that another thread is just loading. WebP is
    missing where Pillow was built without it.
    """
    from PIL import Image

    Image.init()
    return tuple(form for form in ("JPEG", "PNG", "BMP", "PPM", "WEBP", "TIFF", "GIF") if form in Image.OPEN)


class _Files(Source):
    """Images by name; subclasses read them."""

    def __init__(self, title: str, tree: Tree) -> None:
        self.classes = tree.classes
        self.labels = np.array(tree.labels, np.int64)
        kind = f"{len(tree.classes):,} classes" if tree.classes else "no labels"
        self.description = f"{title}{tree.part}: {len(tree.names):,} images, {kind}{tree.left_out}"
        self._names = tree.names

    def name(self, index: int) -> str:
        return self._names[index]

    def digest(self) -> str:
        """Digest of every image's name in its class folder, label and size (in a zip: CRC-32); pixels are not read."""
        return self._digest(b"", [self._name_in_class(index) for index in range(len(self))])

    def digest_with_names(self) -> str:
        return self._digest(repr(self.classes).encode(), self._names)

    def _name_in_class(self, index: int) -> str:
        name, label = self._names[index], int(self.labels[index])
        folder = self.classes[label] if 0 <= label < len(self.classes) else ""
        parts = name.split("/")
        return "/".join(parts[parts.index(folder) + 1 :]) if folder in parts[:-1] else name

    def _digest(self, head: bytes, names: Sequence[str]) -> str:
        digest = hashlib.sha256(head)
        for index, (name, label) in enumerate(zip(names, self.labels, strict=True)):
            digest.update(f"{name}\0{label}\0{self._fingerprint(index)}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    @abstractmethod
    def _fingerprint(self, index: int) -> int: ...


class _Folder(_Files):
    def __init__(self, root: Path, tree: Tree) -> None:
        super().__init__(root.resolve().name, tree)
        self._root = root

    def image(self, index: int) -> U8:
        return read_image(self._root / self._names[index], self._names[index])

    def _fingerprint(self, index: int) -> int:
        try:
            return (self._root / self._names[index]).stat().st_size
        except OSError:  # a dangling link: reported when it is read
            return -1


class _Zip(_Files):
    def __init__(self, archive: zipfile.ZipFile, path: Path, role: Role) -> None:
        members = {_member_name(info): info for info in archive.infolist()}  # the later one of equal names
        tree = arrange(members, str(path), role)
        super().__init__(path.name, tree)
        self._archive = archive
        self._members = [members[name] for name in tree.names]
        self._lock = threading.Lock()
        if any(info.flag_bits & 1 for info in self._members):
            raise SourceError("is encrypted", where=path, hint=_UNPACK)

    def image(self, index: int) -> U8:
        info, name = self._members[index], self._names[index]
        if info.file_size > _LARGEST_FILE:
            raise SourceError(f"expands to {info.file_size / 1e6:,.0f} MB", where=name)
        try:
            with self._lock:  # for reading only: decoding takes most of the time and runs in parallel
                data = self._archive.read(info)
        except NotImplementedError as error:
            raise SourceError(f"cannot be unpacked: {error}", where=name, hint=_UNPACK) from None
        except Exception as error:  # zipfile and the decompressors raise many kinds for damaged members
            cause = str(error) or type(error).__name__
            raise SourceError(f"damaged in the archive: {cause}", where=name, hint=_REPACK) from None
        return read_image(io.BytesIO(data), name)

    def _fingerprint(self, index: int) -> int:
        return self._members[index].CRC


def _member_name(info: zipfile.ZipInfo) -> str:
    """A member's path as :func:`arrange` returns it; some Windows tools write backslashes."""
    name = info.filename.replace("\\", "/")
    return "/".join(split(name)) + "/" * name.endswith("/")


def _walk(root: Path) -> Iterator[str]:
    """Every path below ``root``; folders end with a slash. Links are followed, hidden folders are skipped."""

    def refuse(error: OSError) -> None:
        raise SourceError(error.strerror or str(error), where=error.filename, hint="check its permissions")

    for path, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        here = Path(path).relative_to(root)
        prefix = f"{here.as_posix()}/" if here.parts else ""
        yield from (f"{prefix}{folder}/" for folder in folders)
        yield from (f"{prefix}{file}" for file in files)
        folders[:] = [folder for folder in folders if not is_hidden(folder)]
        if len(here.parts) == _DEEPEST and folders:  # this also ends links that form a circle
            raise SourceError(f"folders are nested too deep: {prefix}{folders[0]}", where=root, hint=CLASSES_BELOW)
