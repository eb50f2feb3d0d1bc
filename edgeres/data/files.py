"""Image files in class folders, in a directory or in a .zip or .tar archive."""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
import threading
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeGuard

import numpy as np

from edgeres.data.base import Source
from edgeres.data.decode import decode
from edgeres.data.forms import READ_FORMS, why_no_image
from edgeres.data.headers import MOST_PIXELS, check_header
from edgeres.data.listing import Listing, Parts, list_folder, list_names, split
from edgeres.data.tree import Tree
from edgeres.errors import NO_MEMORY, EnvironmentError_, SourceError
from edgeres.errors import reading as boundary
from edgeres.files import LFS_POINTER, PULL, is_lfs_pointer_at, open_file, refuse_special
from edgeres.records import AS_RGB, U8, PixelReading

if TYPE_CHECKING:
    from PIL.Image import Image

Arrange = Callable[[Listing], Tree]
_UNPACK, _REPACK = "unpack it and give the directory", "fetch or pack it again"
_WRITE_AGAIN = "write it again with an image editor, smaller"
_TOO_MANY = f"more than {MOST_PIXELS // 1_000_000} million pixels"
_SMALL = 1 << 24
_LARGEST_FILE = 1 << 29  # bytes; a member of an archive that expands to more is not read
_LARGE_FILE, _USUAL_RATIO = 1 << 26, 20  # bytes; a larger member must not expand to more times its packed size


def read_image(file: str | Path | IO[bytes], name: str | None = None, reading: PixelReading = AS_RGB) -> U8:
    """Decode to (H, W, C) uint8 as :func:`edgeres.data.decode.decode` says; JPEG at full size, never a reduced one.

    Raises:
        SourceError: the image cannot be decoded; ``where`` is ``name`` or the file, ``what`` the cause.
    """
    from PIL import Image, UnidentifiedImageError

    hint = READ_FORMS
    try:
        if (claim := check_header(file)) is not None:
            raise SourceError(f"{claim}, which is not decoded", hint=_WRITE_AGAIN)
        with Image.open(file, formats=_formats()) as image:
            if image.width * image.height > MOST_PIXELS:
                raise SourceError(_TOO_MANY, hint=_WRITE_AGAIN)
            return decode(image, reading)
    except MemoryError:
        raise EnvironmentError_(NO_MEMORY, where=name or file, hint="give this process more of it") from None
    except SourceError as error:
        cause, hint = error.what, error.hint or hint
    except UnidentifiedImageError:
        cause, hint = why_no_image(_head(file))
    except Image.DecompressionBombError:
        cause, hint = _TOO_MANY, _WRITE_AGAIN
    except FileNotFoundError as error:
        link = Path(error.filename or "").is_symlink()
        cause, hint = "a link to a file that is not there" if link else str(error.strerror), "check the path"
    except OSError as error:
        cause = "truncated" if "truncated" in str(error).lower() else error.strerror or str(error)
    except Exception as error:  # decoders raise anything on damaged files: SyntaxError, struct.error, ValueError ...
        cause = f"{type(error).__name__}: {error}"
    raise SourceError(cause, where=name or file, hint=hint)


def is_pil(image: object) -> TypeGuard[Image]:
    """Whether it is an image of Pillow, which is not imported for this."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(image, module.Image)


def read_pil(image: Image, reading: PixelReading = AS_RGB) -> U8:
    """An image that Pillow has opened, as :func:`read_image` decodes its file.

    Raises:
        SourceError: its pixels cannot be decoded.
    """
    try:
        return decode(image, reading)
    except SourceError:
        raise
    except Exception as error:  # decoders raise anything on damaged files
        hint = "close its file after classifying it, and give an image that Pillow can convert to RGB"
        raise SourceError(f"{type(error).__name__}: {error}", where="image of Pillow", hint=hint) from None


def _head(file: str | Path | IO[bytes]) -> bytes:
    """The first bytes of a file."""
    if isinstance(file, str | Path):
        with open_file(file) as stream:
            return stream.read(64)
    file.seek(0)
    return file.read(64)


def open_folder(path: Path, arranged: Arrange) -> Source:
    """A directory in ``ImageFolder`` form; see :func:`edgeres.data.sources.open_source`."""
    return _Folder(path, arranged(list_folder(path)))


def open_archive(path: Path, arranged: Arrange) -> Source:
    """A .zip or .tar archive of such a directory, read in place."""
    if is_lfs_pointer_at(path):
        raise SourceError(f"is {LFS_POINTER}", where=path, hint=PULL)
    packed = _Zip if path.suffix.lower() == ".zip" else _Tar
    with boundary(path, f"cannot be opened as {path.suffix.lower()}", error=SourceError, hint=_REPACK):
        refuse_special(path)
        try:
            archive = packed(path)
        except UnicodeDecodeError:
            what = "a name in it is no valid UTF-8, so the archive cannot be opened"
            raise SourceError(what, where=path, hint=_UNPACK) from None
    found = list_names(archive.members, str(path), archive.peek)
    tree = arranged(found)
    if any(archive.is_encrypted(name) for name in tree.names):
        raise SourceError("is encrypted", where=path, hint=_UNPACK)
    return _Archived(archive, path.name, tree)


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
        kind = f"{len(set(tree.labels)):,} classes" if tree.classes else "no labels"
        self.description = f"{title}{tree.part}: {len(tree.names):,} images, {kind}{tree.left_out}"
        nested = f"{tree.nested} are taken as images of that class" if tree.nested else ""
        self.notes = tuple(filter(None, (self.description if tree.left_out else "", nested)))
        self._names = tree.names

    def name(self, index: int) -> str:
        return self._names[index]

    def image(self, index: int) -> U8:
        return self.image_as(index, AS_RGB)

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


def _file_itself(path: Path) -> tuple[str | int, ...]:
    try:
        at = path.stat()
    except OSError:
        return (str(path),)
    return at.st_dev, at.st_ino


class _Folder(_Files):
    def __init__(self, root: Path, tree: Tree) -> None:
        super().__init__(root.resolve().name, tree)
        self._root = root

    def origins(self) -> list[tuple[str | int, ...]]:
        """The file itself, which links and other paths to it share; its path where a link leads nowhere."""
        return [_file_itself(self._root / name) for name in self._names]

    def image_as(self, index: int, reading: PixelReading) -> U8:
        return read_image(self._root / self._names[index], self._names[index], reading)

    def _fingerprint(self, index: int) -> int:
        try:
            return (self._root / self._names[index]).stat().st_size
        except OSError:  # a dangling link: reported when it is read
            return -1


class _Archived(_Files):
    def __init__(self, archive: _Members, title: str, tree: Tree) -> None:
        super().__init__(title, tree)
        self._archive = archive

    def image_as(self, index: int, reading: PixelReading) -> U8:
        name = self._names[index]
        size, packed = self._archive.size(name), self._archive.packed_size(name)
        if size > _LARGEST_FILE or size > max(_LARGE_FILE, _USUAL_RATIO * packed):
            raise SourceError(f"expands to {size / 1e6:,.0f} MB", where=name)
        with boundary(name, "damaged in the archive", error=SourceError, hint=_REPACK):
            try:
                data = self._archive.read(name)
            except NotImplementedError as error:
                raise SourceError(f"cannot be unpacked: {error}", where=name, hint=_UNPACK) from None
        return read_image(io.BytesIO(data), name, reading)

    def _fingerprint(self, index: int) -> int:
        return self._archive.fingerprint(self._names[index])


class _Members(ABC):
    """The members of an archive, by their paths; of equal names the later one is taken, as when it is unpacked.

    Attributes:
        members: paths of files and folders; those of folders end with a slash.
    """

    members: Iterable[str]

    @abstractmethod
    def size(self, name: str) -> int: ...

    @abstractmethod
    def packed_size(self, name: str) -> int: ...

    @abstractmethod
    def fingerprint(self, name: str) -> int: ...

    @abstractmethod
    def read(self, name: str) -> bytes: ...

    def peek(self, parts: Parts) -> bytes:
        """The first bytes of a member; none where it is large or damaged."""
        name = "/".join(parts)
        with suppress(Exception):  # see _Archived.image
            return self.read(name)[:64] if self.size(name) < _SMALL else b""
        return b""

    def is_encrypted(self, name: str) -> bool:
        return False


class _Zip(_Members):
    def __init__(self, path: Path) -> None:
        self._archive = zipfile.ZipFile(path)
        self.members = self._of = {_inner(info.filename): info for info in self._archive.infolist()}
        self._lock = threading.Lock()

    def size(self, name: str) -> int:
        return self._of[name].file_size

    def packed_size(self, name: str) -> int:
        return self._of[name].compress_size

    def fingerprint(self, name: str) -> int:
        return self._of[name].CRC

    def is_encrypted(self, name: str) -> bool:
        return bool(self._of[name].flag_bits & 1)

    def read(self, name: str) -> bytes:
        with self._lock:  # for reading only: decoding takes most of the time and runs in parallel
            return self._archive.read(self._of[name])


class _Tar(_Members):
    """An archive without compression: a compressed one has no place to begin reading at but its start."""

    def __init__(self, path: Path) -> None:
        self._archive = tarfile.TarFile(path)
        found = self._archive.getmembers()
        self.members = self._of = {_inner(info.name) + "/" * info.isdir(): info for info in found}
        self._lock = threading.Lock()

    def size(self, name: str) -> int:
        return self._of[name].size

    def packed_size(self, name: str) -> int:
        return 0 if self._of[name].issparse() else self._of[name].size

    def fingerprint(self, name: str) -> int:
        return self._of[name].size

    def read(self, name: str) -> bytes:
        with self._lock:
            file = self._archive.extractfile(self._of[name])
            if file is None:
                raise ValueError("it is no file")
            return file.read()


def _inner(name: str) -> str:
    """A member's path as :func:`arrange` returns it; some Windows tools write backslashes."""
    name = name.replace("\\", "/")
    return "/".join(split(name)) + "/" * name.endswith("/")
