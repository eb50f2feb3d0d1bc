"""The bundle, a directory with a network's graphs, engines, ranges and report: reads, checks and writes it.

    manifest.json         schema, model, tensors, SHA-256 of every other file and of itself, environment
    model.fp32.onnx       the FP32 reference
    model.int8.onnx       Q/DQ for TensorRT             model.int8.cpu.onnx   Q/DQ for ONNX Runtime's CPU kernels
    engines/*.engine      named <runtime>-<version>-<compute capability>
    answers.fp32.npz      FP32's scores on the validation images, where they are few enough
    model.fp16.onnx       float16, for engines          probes.npz            images with FP32's scores for them
    calibration.json      ranges     report.json, report.html   verdict     labels.txt   one class per line
    pixels.json           what the calibration images look like
    sbom.cdx.json         what it is made of and by, see edgeres.pipeline.sbom
    signature.json        the manifest as it was signed, see edgeres.signing; not in the manifest

It is written to a hidden directory beside the target, which takes the target's place when it is complete. So a reader
always finds a complete bundle, the old or the new one, even if the writer is killed; :func:`steady` begins again where
a bundle was replaced while it was read. A file is checked against the manifest each time it is opened, and its name
leads nowhere outside.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, TypeVar

from edgeres.documents import DocumentKind, Json
from edgeres.errors import BundleError, EdgeresError, EnvironmentError_, UsageError
from edgeres.files import (
    DISK_FULL,
    FREE_SPACE,
    LFS_POINTER,
    PULL,
    exchange,
    hold,
    is_lfs_pointer,
    json_bytes,
    make_folder,
    open_below,
    refuse_special,
    remove_below,
    sha256,
    sync_path,
    temporaries,
    temporary_name,
    write_below,
    write_json,
)
from edgeres.graph.forms import GRAPH_FILES, forms_in
from edgeres.records import EngineRecord, FormRecord, Manifest, complete_preprocess

MANIFEST, SIGNATURE = "manifest.json", "signature.json"


def _upgrade(content: Json, schema: int) -> Json:
    model = content.get("model")
    return {**content, "model": complete_preprocess(model, schema)} if isinstance(model, dict) else content


MANIFEST_KIND = DocumentKind(
    Manifest, f"a {MANIFEST}", "build it again", (2, 4), digest="required", error=BundleError, upgrade=_upgrade
)
FP32 = "model.fp32.onnx"
FP16 = "model.fp16.onnx"
CALIBRATION = "calibration.json"
ANSWERS = "answers.fp32.npz"
REPORT, REPORT_PAGE = "report.json", "report.html"
LABELS = "labels.txt"
PIXELS = "pixels.json"
PROBES = "probes.npz"
SBOM = "sbom.cdx.json"
_OF_BYTES = ".bytes.onnx"  # ends the file of a graph that takes prepared bytes
ENGINES = "engines"
R = TypeVar("R")
_TRIES = 20  # readers and writers that meet, each time at the moment of a replacement
_GAP_CHECKS, _GAP_SECONDS = 20, 0.05
# Files in a bundle that nobody misses: of killed writers, of file managers, of NFS.
_LITTER = re.compile(r"\..+\.partial-[0-9a-f]{12}-[0-9a-f]{12}|\.DS_Store|Thumbs\.db|desktop\.ini|\.nfs[0-9a-f]+")


class Bundle:
    """A bundle on disk.

    Args:
        path: the directory.

    Raises:
        BundleError: the directory is missing, or has no valid manifest.
    """

    def __init__(self, path: str | Path) -> None:
        if not isinstance(path, str | os.PathLike) or "\0" in os.fspath(path):
            raise UsageError(f"a bundle is the path of a directory, found {path!r:.100}")
        self.path = Path(path)
        self._load()

    def _load(self) -> None:
        for left in reversed(range(_TRIES)):
            self._seen = _identity(self.path)
            try:
                self.manifest = _manifest_at(self.path)
            except BundleError:
                if not left or not self.was_moved():
                    raise
            else:
                return

    def was_moved(self) -> bool:
        """Whether another directory, or another manifest, has this name since the bundle was opened."""
        return _identity(self.path) != self._seen

    def was_replaced(self) -> bool:
        """Whether files of the bundle have others in their place since it was opened; added engines do not count."""
        if not self.was_moved():
            return False
        try:
            now = _manifest_at(self.path).files
        except BundleError:
            return True
        return any(now.get(name) != of for name, of in self.manifest.files.items())

    def has(self, name: str) -> bool:
        return name in self.manifest.files

    @property
    def forms(self) -> tuple[FormRecord, ...]:
        """The INT8 and FP16 graphs; a bundle of schema 2 names them by their files alone."""
        return self.manifest.forms or tuple(form.record(None) for form in forms_in(self.has).values())

    def default_form(self, runtime: str) -> FormRecord | None:
        """The form that a runtime gets where nothing was measured; None: the bundle has none for it."""
        fit = [form for form in self.forms if runtime in form.runtimes]
        name = self.manifest.default_form.get(runtime)
        return next((form for form in fit if name in (None, form.name)), None)

    def file(self, name: str) -> Path:
        """The path of a file of the bundle, after checking its hash; a graph's also of the files with its weights.

        Raises:
            BundleError: the bundle has no such file, the file is missing or was changed, or it is a graph that takes
                weights from a file that is not one of the bundle.
        """
        for other in self._checked(name):
            if other == name or other not in self.manifest.files:
                raise BundleError(f"{name} takes weights from another file", where=self.path, hint="build it again")
            self._checked(other)
        return self.path / name

    def for_engines(self, name: str) -> Path:
        """The graph that an engine is built from, checked as by :meth:`file`: for prepared bytes, where there is one.

        Args:
            name: of the graph that takes prepared values in float32.
        """
        return self.file(bytes_file(name) if self.has(bytes_file(name)) else name)

    def content(self, name: str) -> bytes | None:
        """The bytes of a file, of which the hash was checked: nobody changes them between the check and their use.

        Returns:
            None: it is a graph that takes weights from other files.

        Raises:
            BundleError: as :meth:`file`.
        """
        with self._opened(name) as stream:
            content = stream.read()
        return None if self._compared(name, io.BytesIO(content)) else content

    def _checked(self, name: str) -> frozenset[str]:
        """Check a file's hash; returns the files that it takes weights from."""
        with self._opened(name) as stream:
            return self._compared(name, stream)

    def _compared(self, name: str, stream: IO[bytes]) -> frozenset[str]:
        found, others = _digest(stream, name)
        if found != self.manifest.files[name]:
            raise BundleError(f"{name} was changed after it was written", where=self.path, hint="build it again")
        return others

    @contextmanager
    def _opened(self, name: str) -> Iterator[IO[bytes]]:
        if name not in self.manifest.files:
            raise BundleError(f"has no {name}", where=self.path)
        try:
            with open_below(self.path, name) as stream:
                if is_lfs_pointer(stream.read(64)):
                    raise BundleError(f"{name} is {LFS_POINTER}", where=self.path, hint=PULL)
                stream.seek(0)
                yield stream
        except FileNotFoundError:
            hint = "copy the whole directory, or build it again"
            raise BundleError(f"{name} is missing", where=self.path, hint=hint) from None
        except OSError as error:
            hint = "copy what it points to in its place" if error.errno == errno.ELOOP else "build it again"
            raise BundleError(f"{name} {error.strerror}", where=self.path, hint=hint) from None

    def check(self) -> None:
        """Check every file.

        Raises:
            BundleError: a file is missing, was changed, or has the name of a bundle's file and is not in the manifest;
                the message names the first one. Where another bundle has
                taken the name meanwhile, that one is opened and checked.
        """
        for left in reversed(range(_TRIES)):
            try:
                for name in self.manifest.files:
                    self.file(name)
                self.check_unlisted()
            except BundleError:
                if not left or not self.was_moved():
                    raise
                self._load()
            else:
                return

    def check_unlisted(self) -> None:
        """Refuse a file that would be read by its name, while no hash says that it belongs to the bundle."""
        graphs = (FP32, FP16, *GRAPH_FILES)
        known = {CALIBRATION, ANSWERS, REPORT, LABELS, PIXELS, PROBES, SBOM, *graphs, *map(bytes_file, graphs)}
        found = next((name for name in sorted(known) if os.path.lexists(self.path / name) and not self.has(name)), None)
        if found is not None:
            what = f"holds {found}, which its manifest does not list"
            raise BundleError(what, where=self.path, hint="remove this file, or build it again")

    def report(self) -> Json:
        """The content of report.json."""
        from edgeres.reports import read_report  # here, since a robot does not need it

        return read_report(self.file(REPORT))

    def add_engines(
        self, engines: Mapping[EngineRecord, bytes | None], logs: Mapping[str, bytes] | None = None
    ) -> None:
        """Replace earlier engines by new ones, and record them in the manifest.

        The earlier engines leave the manifest before their files are removed, so the manifest always matches the files,
        even if the writer is killed. Two writers at the same time take turns, and both add their engines.

        Args:
            logs: further files to write beside the engines, by path.
        """
        with _one_writer(self.path):
            now = Bundle(self.path).manifest
            graphs = {FP32, *GRAPH_FILES, *(form.file for form in (*self.forms, *Bundle(self.path).forms))}
            if any(now.files.get(graph) != self.manifest.files.get(graph) for graph in graphs):
                raise BundleError("was built again meanwhile, and these engines are of its old graphs", where=self.path)
            self.manifest = now
            try:
                self._add(engines, logs or {})
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                what, hint = f"{error.filename} {error.strerror}", "remove the link"
                raise BundleError(what, where=self.path, hint=hint) from None

    def _add(self, engines: Mapping[EngineRecord, bytes | None], logs: Mapping[str, bytes]) -> None:
        keys = {record.key for record in engines}
        runtimes = {record.runtime for record in engines if record.file}
        # Records of engines that were not built are dropped once an engine for their runtime is built.
        measured = {record.target for record in engines if record.trial}
        others = (old for old in self.manifest.engines if old.key not in keys and not (
            old.trial and not old.file and old.target in measured))  # fmt: skip
        kept = tuple(old for old in others if old.size_bytes or old.runtime not in runtimes)
        new = {record.file: data for record, data in engines.items() if record.file and data} | dict(logs)
        replaced = [record.file for record in self.manifest.engines if record.file and record.key in keys]
        old = {*replaced, *(log for log in map(log_of, replaced) if self.has(log))}
        files = {name: digest for name, digest in self.manifest.files.items() if name not in old | new.keys()}
        self._write_manifest(kept, files)
        for name in old - new.keys():
            remove_below(self.path, name)
        for name, data in new.items():
            write_below(self.path, name, data)
        files |= {name: hashlib.sha256(data).hexdigest() for name, data in new.items()}
        self._write_manifest((*kept, *engines), files)

    def _write_manifest(self, engines: tuple[EngineRecord, ...], files: dict[str, str]) -> None:
        built = {engine.target for engine in engines if engine.file and engine.precision == "int8"}
        left_out = tuple(target for target in self.manifest.left_out if target.target not in built)
        self.manifest = replace(self.manifest, engines=engines, files=files, left_out=left_out)
        write_below(self.path, MANIFEST, json_bytes(MANIFEST_KIND.content(self.manifest)))


# In protobuf: a key-value pair of TensorProto.external_data whose key is "location", and the length of its value, where
# the value follows and is shorter than 128 bytes.
_LOCATION = re.compile(rb"\x0a\x08location(?:\x12([\x00-\x7f]))?")
_LONGEST = 12 + 127


def _digest(stream: IO[bytes], name: str) -> tuple[str, frozenset[str]]:
    """SHA-256 in hex of an open file, and where a graph takes weights from: files' names, "" for what is no name."""
    hasher, tail, others, block = hashlib.sha256(), b"", set[str](), b"-"
    while block:
        block = stream.read(1 << 20)
        hasher.update(block)
        if name.endswith(".onnx"):
            window = tail + block
            end = max(len(window) - _LONGEST, 0) if block else len(window)
            found = (match for match in _LOCATION.finditer(window) if match.start() < end)
            others.update(_value(window, match) for match in found)
            tail = window[end:]
    return hasher.hexdigest(), frozenset(others)


def _value(window: bytes, key: re.Match[bytes]) -> str:
    length = ord(key[1]) if key[1] else 0
    return window[key.end() : key.end() + length].decode(errors="replace")


def keep_signature(bundle: Bundle, content: Json) -> None:
    """Write the signature of a bundle beside its manifest.

    Raises:
        BundleError: the bundle was changed or replaced since it was opened.
        OSError: it cannot be written.
    """
    with _one_writer(bundle.path):
        if bundle.was_moved():
            raise BundleError("was changed meanwhile", where=bundle.path, hint="sign it again")
        write_below(bundle.path, SIGNATURE, json_bytes(content))


def bytes_file(graph: str) -> str:
    """The file beside a graph with the same network for prepared bytes, uint8 (N, h, w, channels), as its input."""
    return f"{graph.removesuffix('.onnx')}{_OF_BYTES}"


def is_of_bytes(graph: Path | bytes) -> bool:
    """Whether a graph's file says that it takes prepared bytes."""
    return isinstance(graph, Path) and graph.name.endswith(_OF_BYTES)


def log_of(engine: str) -> str:
    """The file beside an engine with the messages of the vendor's builder."""
    return f"{engine.removesuffix('.engine')}.log"


def _manifest_at(folder: Path) -> Manifest:
    if folder.is_file() and (folder.parent / MANIFEST).is_file():
        raise BundleError("is a file inside a bundle", where=folder, hint=f"give {folder.parent}")
    if not folder.is_dir() and not reappeared(folder):
        _refuse_other(folder)
        raise BundleError("no such bundle", where=folder, hint="edgeres build -o DIR writes one")
    if not (folder / MANIFEST).is_file():
        _refuse_other(folder / MANIFEST)
        what = "not a bundle: it has no manifest.json"
        raise BundleError(what, where=folder, hint="give a directory that edgeres build wrote")
    return MANIFEST_KIND.read(folder / MANIFEST)


def _refuse_other(path: Path) -> None:
    """Say so where a pipe, a socket or a device is in the place of a bundle or its manifest."""
    try:
        refuse_special(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise BundleError(
            error.strerror or str(error), where=path, hint="give a directory that edgeres build wrote"
        ) from None


def _identity(folder: Path) -> tuple[int, ...]:
    """Differs between two bundles of the same name, and between two manifests of the same bundle."""
    try:
        own, manifest = folder.stat(), (folder / MANIFEST).stat()
    except OSError:
        return ()
    return own.st_dev, own.st_ino, manifest.st_ino, manifest.st_mtime_ns, manifest.st_size


def steady(path: str | Path, use: Callable[[Bundle], R], drop: Callable[[R], object] = lambda result: None) -> R:
    """What ``use`` makes of one bundle: it begins again where the bundle was replaced while ``use`` was reading it.

    Args:
        drop: gets a result that was made of files of two bundles.

    Raises:
        BundleError: there is no bundle; and whatever ``use`` raises.
    """
    for left in reversed(range(_TRIES)):
        bundle = Bundle(path)
        try:
            result = use(bundle)
        except (EdgeresError, OSError):
            if not left or not bundle.was_moved():
                raise
        else:
            if not left or not bundle.was_replaced():
                return result
            drop(result)
    raise AssertionError("the last round returns or raises")


def reappeared(folder: Path) -> bool:
    """Whether a bundle is back at its name, which is free for a moment where a system cannot exchange directories.

    If its writer does not put a new one there soon, it was killed, and the old bundle gets its name back.
    """
    folder = folder.resolve()
    for _ in range(_GAP_CHECKS):
        old = [*temporaries(folder, "old", ours=False), *temporaries(folder, "old")]
        if folder.is_dir() or not old:
            return folder.is_dir()
        time.sleep(_GAP_SECONDS)
    with suppress(OSError):  # the writer, or another reader, was faster
        old[-1].rename(folder)
    return folder.is_dir()


@contextmanager
def _one_writer(folder: Path) -> Iterator[None]:
    """Wait for other processes that change or replace this bundle."""
    if sys.platform == "win32" or not folder.is_dir():  # directories cannot be locked
        yield
        return
    while True:
        handle = os.open(folder, os.O_RDONLY)
        try:
            hold(handle, wait=True)
            if not folder.is_dir() or os.path.samestat(os.fstat(handle), folder.stat()):
                yield
                return
        finally:
            os.close(handle)


@contextmanager
def _one_build(target: Path) -> Iterator[bool]:
    """Be the only process that builds ``target``; gives whether that is sure: some file systems have no locks.

    Raises:
        BundleError: another process builds it; the message says which. Or the directory cannot be written.
    """
    path = target.with_name(f".{target.name}.lock")
    handle, is_ours = _take(path, target)
    try:
        yield is_ours
    finally:
        with suppress(OSError):
            path.unlink()  # before it is let go, so that nobody holds a file without a name
        os.close(handle)


def _take(path: Path, target: Path) -> tuple[int, bool]:
    """Open and lock a lock file, which may disappear meanwhile."""
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except OSError as error:
            raise _cannot_write(target, error) from error
        held = hold(handle)
        if held is False:
            owner = "".join(filter(str.isprintable, os.read(handle, 300).decode(errors="replace")))
            os.close(handle)
            what = f"is being built by {owner or 'another process'}"
            raise BundleError(what, where=target, hint="wait for it, or choose another -o")
        try:
            is_named = held is None or os.path.samestat(os.fstat(handle), path.stat())
        except OSError:
            is_named = False
        if is_named:
            with suppress(OSError):  # a full disk: others are then not told whose it is
                since = time.strftime("%Y-%m-%d %H:%M:%S %z")
                os.truncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {platform.node()} since {since}".encode())
            return handle, bool(held)
        os.close(handle)  # its holder removed it just before he let it go


@contextmanager
def new_bundle(target: str | Path, *, force: bool = False) -> Iterator[Path]:
    """An empty directory to fill with a bundle's files; it becomes ``target`` when the block ends without error.

    The block must call :func:`seal` last. On an error or an interrupt the directory is removed, and an existing
    ``target`` is not changed.

    Args:
        force: see :func:`check_target`.

    Raises:
        BundleError: ``target`` exists and may not be replaced, another process builds it, or its parent cannot be
            written.
        EnvironmentError_: the disk is full or fails.
    """
    check_target(target, force=force)
    target = Path(target).resolve()  # a link to a bundle is kept, and the bundle that it points to is replaced
    try:
        make_folder(target.parent)
    except OSError as error:
        raise _cannot_write(target, error) from error
    with _one_build(target) as is_ours:
        _clear_leftovers(target, is_ours)
        partial = target.with_name(temporary_name(target.name, "partial"))
        try:
            partial.mkdir()
        except OSError as error:
            raise _cannot_write(target, error) from error
        try:
            yield partial
            if not (partial / MANIFEST).is_file():
                raise ValueError("the bundle was not sealed")
            _publish(partial, target, force)
        except OSError as error:
            hint = FREE_SPACE if error.errno in DISK_FULL else None
            what = f"cannot be written ({error.strerror or error})"
            raise EnvironmentError_(what, where=target, hint=hint) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # after an exchange this is the older bundle


def _cannot_write(target: Path, error: OSError) -> BundleError:
    return BundleError(f"cannot be written ({error.strerror})", where=target, hint="choose another -o")


def check_target(target: str | Path, *, force: bool = False) -> tuple[str, ...]:
    """Refuse to replace what is not a bundle, or a bundle with files that edgeres did not write.

    A bundle is known by its sealed manifest: a manifest.json of another program is none.

    Args:
        force: replace a bundle with such files, which are lost then.

    Returns:
        The paths of these files in ``target``.

    Raises:
        BundleError: ``target`` is something else than a missing or empty directory or a bundle, or holds such files.
    """
    target, free = Path(target), "choose another -o"
    if not (target.exists() or target.is_symlink()) or (target.is_dir() and not any(target.iterdir())):
        return ()
    if not target.is_dir() or not (target / MANIFEST).is_file():
        raise BundleError("exists and is not a bundle, so it is left alone", where=target, hint=free)
    try:
        manifest = MANIFEST_KIND.read(target / MANIFEST)
    except BundleError as error:
        what = f"has a manifest.json that is not one of a bundle ({error.what}), so it is left alone"
        raise BundleError(what, where=target, hint=f"{free}, or remove it yourself") from None
    foreign = tuple(sorted(_foreign(target, manifest)))
    if foreign and not force:
        listed = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        what = f"holds what edgeres did not write ({listed}), so it is left alone"
        raise BundleError(what, where=target, hint=f"move it, {free}, or --force deletes it")
    return foreign


def _foreign(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Paths of files and links in a bundle that edgeres did not write."""
    for here, folders, files in os.walk(folder):
        links = [name for name in folders if Path(here, name).is_symlink()]
        for name in (*files, *links):
            path = Path(here, name).relative_to(folder).as_posix()
            if path not in {*manifest.files, MANIFEST, SIGNATURE} and not _LITTER.fullmatch(name):
                yield path


def seal(folder: Path, manifest: Manifest) -> None:
    """Write the manifest with the hashes of all other files in ``folder``, and flush all of them to disk."""
    not_sealed = {folder / MANIFEST, folder / SIGNATURE}
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path not in not_sealed]
    files = {path.relative_to(folder).as_posix(): sha256(path) for path in paths}
    for path in paths:
        sync_path(path)
    for inner in {path.parent for path in paths}:
        sync_path(inner)
    write_json(folder / MANIFEST, MANIFEST_KIND.content(replace(manifest, files=files)))


def _publish(partial: Path, target: Path, force: bool) -> None:
    """Put a complete bundle in its place; the older one is then at ``partial``, or removed."""
    with _one_writer(target):
        check_target(target, force=force)  # a build takes minutes, in which somebody may put a file there
        if not target.exists():
            partial.rename(target)
        elif not exchange(partial, target):
            _replace(partial, target)
    sync_path(target.parent)


def _replace(partial: Path, target: Path) -> None:
    """Rename into place; an older bundle is renamed first, and renamed back if the second rename fails."""
    aside = target.with_name(temporary_name(target.name, "old"))
    try:
        for left in reversed(range(_TRIES)):
            if target.exists():
                target.rename(aside)
            try:
                partial.rename(target)
                break
            except OSError as error:  # a reader who waited too long put the older one back
                if not left or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
    except BaseException:  # an interrupt between both renames
        if aside.exists() and not target.exists():
            aside.rename(target)
        raise
    finally:
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)


def _clear_leftovers(target: Path, is_ours: bool) -> None:
    """Clean up after killed writers of the same bundle: restore a renamed older bundle, remove what is abandoned.

    Only what was left since this machine started, and while no other process can be writing, is surely abandoned.
    """
    for old in (*temporaries(target, "old"), *temporaries(target, "old", ours=False)):
        if not target.exists():
            old.rename(target)
    for kind in ("old", "partial") if is_ours else ():
        for abandoned in temporaries(target, kind):
            shutil.rmtree(abandoned, ignore_errors=True)
