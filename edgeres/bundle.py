"""The bundle, a directory with a network's graphs, engines, ranges and report: reads, checks and writes it.

    manifest.json         schema, model, tensors, SHA-256 of every other file and of itself, environment
    model.fp32.onnx       the FP32 reference
    model.int8.onnx       Q/DQ for TensorRT             model.int8.cpu.onnx   Q/DQ for ONNX Runtime's CPU kernels
    engines/*.engine      named <runtime>-<version>-<compute capability>
    calibration.json      ranges     report.json, report.html   verdict     labels.txt   one class per line

It is written to a hidden directory beside the target and renamed when complete, so a reader always finds a complete
bundle or none, even if the writer is killed. A file is checked against the manifest each time it is opened.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from edgeres.documents import DocumentKind, Json
from edgeres.errors import BundleError, EnvironmentError_
from edgeres.files import (
    DISK_FULL,
    FREE_SPACE,
    LFS_POINTER,
    PULL,
    abandoned,
    is_lfs_pointer_at,
    sha256,
    sync,
    write_file,
    write_json,
)
from edgeres.graph.forms import GRAPH_FILES
from edgeres.records import EngineRecord, Manifest

MANIFEST = "manifest.json"
MANIFEST_KIND = DocumentKind(Manifest, f"a {MANIFEST}", "build it again", (2, 2), digest="required", error=BundleError)
FP32 = "model.fp32.onnx"
CALIBRATION = "calibration.json"
REPORT, REPORT_PAGE = "report.json", "report.html"
LABELS = "labels.txt"
ENGINES = "engines"


class Bundle:
    """A bundle on disk.

    Args:
        path: the directory.

    Raises:
        BundleError: the directory is missing, or has no valid manifest.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise BundleError("no such bundle", where=path, hint="edgeres build -o DIR writes one")
        if not (self.path / MANIFEST).is_file():
            what = "not a bundle: it has no manifest.json"
            raise BundleError(what, where=path, hint="give a directory that edgeres build wrote")
        self.manifest = MANIFEST_KIND.read(self.path / MANIFEST)

    def has(self, name: str) -> bool:
        return name in self.manifest.files

    def file(self, name: str) -> Path:
        """The path of a file of the bundle, after checking its hash.

        Raises:
            BundleError: the bundle has no such file, or the file is missing or was changed.
        """
        expected = self.manifest.files.get(name)
        if expected is None:
            raise BundleError(f"has no {name}", where=self.path)
        path = self.path / name
        if not path.is_file():
            raise BundleError(f"{name} is missing", where=self.path, hint="copy the whole directory, or build it again")
        if is_lfs_pointer_at(path):
            raise BundleError(f"{name} is {LFS_POINTER}", where=self.path, hint=PULL)
        if sha256(path) != expected:
            raise BundleError(f"{name} was changed after it was written", where=self.path, hint="build it again")
        return path

    def check(self) -> None:
        """Check every file.

        Raises:
            BundleError: a file is missing or was changed; the message names the first one.
        """
        for name in self.manifest.files:
            self.file(name)

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
            if any(now.files.get(graph) != self.manifest.files.get(graph) for graph in (FP32, *GRAPH_FILES)):
                raise BundleError("was built again meanwhile, and these engines are of its old graphs", where=self.path)
            self.manifest = now
            self._add(engines, logs or {})

    def _add(self, engines: Mapping[EngineRecord, bytes | None], logs: Mapping[str, bytes]) -> None:
        keys = {record.key for record in engines}
        runtimes = {record.runtime for record in engines if record.file}
        # Records of engines that were not built are dropped once an engine for their runtime is built.
        others = (old for old in self.manifest.engines if old.key not in keys)
        kept = tuple(old for old in others if old.size_bytes or old.runtime not in runtimes)
        new = {record.file: data for record, data in engines.items() if record.file and data} | dict(logs)
        replaced = [record.file for record in self.manifest.engines if record.file and record.key in keys]
        old = {*replaced, *(log for log in map(log_of, replaced) if self.has(log))}
        files = {name: digest for name, digest in self.manifest.files.items() if name not in old | new.keys()}
        self._write_manifest(kept, files)
        for name in old - new.keys():
            (self.path / name).unlink(missing_ok=True)
        for name, data in new.items():
            write_file(self.path / name, data)
        files |= {name: hashlib.sha256(data).hexdigest() for name, data in new.items()}
        self._write_manifest((*kept, *engines), files)

    def _write_manifest(self, engines: tuple[EngineRecord, ...], files: dict[str, str]) -> None:
        built = {engine.target for engine in engines if engine.file and engine.precision == "int8"}
        left_out = tuple(target for target in self.manifest.left_out if target.target not in built)
        self.manifest = replace(self.manifest, engines=engines, files=files, left_out=left_out)
        write_json(self.path / MANIFEST, MANIFEST_KIND.content(self.manifest))


def log_of(engine: str) -> str:
    """The file beside an engine with the messages of the vendor's builder."""
    return f"{engine.removesuffix('.engine')}.log"


@contextmanager
def _one_writer(folder: Path) -> Iterator[None]:
    """Wait for other processes that change this bundle; the system frees the lock of a process that dies."""
    if sys.platform == "win32":  # directories cannot be locked
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def new_bundle(target: str | Path) -> Iterator[Path]:
    """An empty directory to fill with a bundle's files; it becomes ``target`` when the block ends without error.

    The block must call :func:`seal` last. On an error or an interrupt the directory is removed, and an existing
    ``target`` is not changed.

    Raises:
        BundleError: ``target`` exists and is not a bundle, or its parent cannot be written.
        EnvironmentError_: the disk is full or fails.
    """
    check_target(target)
    target = Path(target).resolve()  # a link to a bundle is kept, and the bundle that it points to is replaced
    _clear_leftovers(target)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise BundleError(f"cannot be written ({error.strerror})", where=target, hint="choose another -o") from error
    try:
        yield partial
        if not (partial / MANIFEST).is_file():
            raise ValueError("the bundle was not sealed")
        _publish(partial, target)
    except OSError as error:
        hint = FREE_SPACE if error.errno in DISK_FULL else None
        raise EnvironmentError_(f"cannot be written ({error.strerror or error})", where=target, hint=hint) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_target(target: str | Path) -> None:
    """Refuse to overwrite something that is not a bundle.

    Raises:
        BundleError: ``target`` is a file, or a directory with other files.
    """
    target = Path(target)
    if target.is_dir() and ((target / MANIFEST).is_file() or not any(target.iterdir())):
        return
    if target.exists() or target.is_symlink():
        raise BundleError("exists and is not a bundle, so it is left alone", where=target, hint="choose another -o")


def seal(folder: Path, manifest: Manifest) -> None:
    """Write the manifest with the hashes of all other files in ``folder``, and flush all of them to disk."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / MANIFEST]
    files = {path.relative_to(folder).as_posix(): sha256(path) for path in paths}
    for path in paths:
        sync(path)
    write_json(folder / MANIFEST, MANIFEST_KIND.content(replace(manifest, files=files)))


def _publish(partial: Path, target: Path) -> None:
    """Rename into place; an older bundle is renamed first, and renamed back if the second rename fails."""
    aside = target.with_name(f".{target.name}.old-{os.getpid()}")
    try:
        if target.exists():
            target.rename(aside)
        partial.rename(target)
    except BaseException:  # an interrupt between both renames, or another writer was faster
        if aside.exists() and not target.exists():
            aside.rename(target)
        raise
    finally:
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)


def _clear_leftovers(target: Path) -> None:
    """Clean up after killed writers of the same bundle: restore a renamed older bundle, remove partial ones."""
    for old in abandoned(target, "old"):
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(target)
    for partial in abandoned(target, "partial"):
        shutil.rmtree(partial, ignore_errors=True)
