"""Push a bundle to an OCI registry, and pull it.

A bundle is one OCI artifact: each file is a layer with its name as title, and the layers' digests are those in the
bundle's own manifest. The same bundle has the same digest in every registry.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeres.bundle import MANIFEST, MANIFEST_KIND, SIGNATURE, Bundle, check_target, new_bundle, steady
from edgeres.errors import BundleError, EdgeresError, UsageError
from edgeres.files import is_inside, json_bytes, open_below, sha256, sync
from edgeres.hub.address import Address
from edgeres.hub.registry import MANIFEST_TYPE, Blob, Registry
from edgeres.progress import SILENT, Progress
from edgeres.signing import verify_signature

ARTIFACT = "application/vnd.edgeres.bundle.v1"
_TITLE = "org.opencontainers.image.title"
_EMPTY = Blob("sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a", 2)  # of {}, as OCI has it
_MOST_FILES, _MOST_BYTES, _MOST_HEAD_BYTES = 256, 16 << 30, 16 << 20
_NO_BUNDLE = "edgeres push writes one"


@dataclass(frozen=True)
class Moved:
    """A bundle that was pushed or pulled.

    Attributes:
        address: with the digest of exactly this bundle.
        folder: of the bundle on this machine.
        files, size: how many, and their bytes.
        sent: bytes that were not there yet.
        signer: who signed it, where keys were given.
    """

    address: Address
    folder: Path
    files: int
    size: int
    sent: int
    signer: str = ""


def push_bundle(bundle: str | Path, address: str, *, plain: bool = False, progress: Progress = SILENT) -> Moved:
    """Write a bundle into a registry; the tag leads to it once all of it is there.

    Args:
        address: ``oci://HOST[:PORT]/NAME[:TAG]``.
        plain: without TLS, which a registry on this machine is always spoken to.

    Raises:
        UsageError: the address is wrong, or has a digest.
        BundleError: the bundle is incomplete or was changed.
        EnvironmentError_: the registry does not answer or refuses, or oras is not installed.
    """
    to = Address.of(address)
    if to.digest:
        raise UsageError("a digest is what a push gives", where=to, hint="give a tag")
    return steady(bundle, lambda found: _push(found, to, plain, progress))


def _push(bundle: Bundle, to: Address, plain: bool, progress: Progress) -> Moved:
    bundle.check()
    blobs = {name: _blob(bundle.path, name) for name in _names(bundle)}
    changed = [name for name, of in bundle.manifest.files.items() if blobs[name].digest != f"sha256:{of}"]
    if changed:
        raise BundleError(f"{changed[0]} was changed meanwhile", where=bundle.path, hint="push it again")
    sent = 0
    with Registry(to, plain=plain) as registry:
        for name, blob in blobs.items():
            if not registry.has(blob):
                progress.say(f"sending {name} ({blob.size / 1e6:.1f} MB)")
                with open_below(bundle.path, name) as stream:
                    registry.put(blob, stream)
                sent += blob.size
        if not registry.has(_EMPTY):
            registry.put(_EMPTY, io.BytesIO(b"{}"))
        digest = registry.put_manifest(json_bytes(_document(bundle, blobs)))
    return Moved(to.pinned(digest), bundle.path, len(blobs), sum(blob.size for blob in blobs.values()), sent)


def _names(bundle: Bundle) -> list[str]:
    signed = (bundle.path / SIGNATURE).is_file()
    return [*sorted(bundle.manifest.files), MANIFEST, *([SIGNATURE] if signed else [])]


def _blob(folder: Path, name: str) -> Blob:
    return Blob(f"sha256:{sha256(folder / name)}", (folder / name).stat().st_size)


def _document(bundle: Bundle, blobs: Mapping[str, Blob]) -> dict[str, Any]:
    """The OCI manifest, which has nothing of this machine and no time, so that the same bundle has the same digest."""
    model = bundle.manifest.model
    layers = [
        {
            "mediaType": "application/octet-stream",
            "digest": blob.digest,
            "size": blob.size,
            "annotations": {_TITLE: name},
        }
        for name, blob in blobs.items()
    ]
    config = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": _EMPTY.digest, "size": _EMPTY.size}
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT,
        "config": config,
        "layers": layers,
        "annotations": {"dev.edgeres.model": model.name, "dev.edgeres.weights": model.weights},
    }


def pull_bundle(
    address: str,
    output: str | Path,
    *,
    trust: str | Path | None = None,
    force: bool = False,
    plain: bool = False,
    progress: Progress = SILENT,
) -> Moved:
    """Take a bundle from a registry; it has its name once all of it is there and checked.

    Args:
        address: ``oci://HOST[:PORT]/NAME[:TAG]``, or with ``@sha256:DIGEST``, which nobody can change.
        output: directory; an older bundle is replaced.
        trust: a file of public keys, one of whose owners must have signed the bundle; checked before the large files
            are fetched.
        force, plain: as of :func:`edgeres.bundle.new_bundle` and :func:`push_bundle`.

    Raises:
        UsageError: the address is wrong.
        BundleError: there is no such bundle, it is damaged, or is not signed by a trusted key; nothing is left behind.
        EnvironmentError_: the registry does not answer or refuses, the disk is full, or oras is not installed.
    """
    source = Address.of(address)
    check_target(output, force=force)
    with Registry(source, plain=plain) as registry:
        document, digest = registry.manifest()
        layers = _layers(document, source)
        with new_bundle(output, force=force) as folder:
            fetched = [name for name in (MANIFEST, SIGNATURE) if name in layers]
            for name in fetched:
                _fetch(registry, folder, name, layers[name])
            signer = _checked(folder, layers, source, trust)
            for name in sorted(layers.keys() - set(fetched)):
                progress.say(f"fetching {name} ({layers[name].size / 1e6:.1f} MB)")
                _fetch(registry, folder, name, layers[name])
            with _at(source):
                Bundle(folder).check()
    size = sum(blob.size for blob in layers.values())
    return Moved(source.pinned(digest), Path(output), len(layers), size, size, signer)


def _layers(document: Mapping[str, Any], source: Address) -> dict[str, Blob]:
    """The files of a bundle, by name, none of which leads outside of it.

    Raises:
        BundleError: it is something else, or has more or larger files than a bundle.
    """
    if document.get("artifactType") != ARTIFACT:
        raise BundleError("is no bundle of edgeres", where=source, hint=_NO_BUNDLE)
    found: dict[str, Blob] = {}
    layers = document.get("layers")
    for layer in layers if isinstance(layers, list) else ():
        blob = _stated(layer)
        if blob is None or blob[0] in found:
            raise BundleError("a file of it has no name, no size, no digest, or that of another", where=source)
        found[blob[0]] = blob[1]
    head = max(found[name].size if name in found else 0 for name in (MANIFEST, SIGNATURE))
    if MANIFEST not in found or len(found) > _MOST_FILES or head > _MOST_HEAD_BYTES:
        raise BundleError("has no manifest of a bundle, or too many files", where=source, hint=_NO_BUNDLE)
    if (size := sum(blob.size for blob in found.values())) > _MOST_BYTES:
        raise BundleError(f"has {size / 1e9:.0f} GB, more than {_MOST_BYTES >> 30} GiB", where=source)
    return found


def _stated(layer: Any) -> tuple[str, Blob] | None:
    if not isinstance(layer, dict) or not isinstance(layer.get("annotations"), dict):
        return None
    name, digest, size = layer["annotations"].get(_TITLE), layer.get("digest"), layer.get("size")
    if not isinstance(name, str) or not is_inside(name) or not isinstance(digest, str) or type(size) is not int:
        return None
    return (name, Blob(digest, size)) if size >= 0 and re.fullmatch("sha256:[0-9a-f]{64}", digest) else None


def _fetch(registry: Registry, folder: Path, name: str, blob: Blob) -> None:
    with open_below(folder, name, new=True) as stream:
        registry.get(blob, stream)
        stream.flush()
        sync(stream.fileno())


def _checked(folder: Path, layers: Mapping[str, Blob], source: Address, trust: str | Path | None) -> str:
    """Hold the layers against the bundle's manifest, and its signature against the keys, before they are fetched."""
    with _at(source):
        files = MANIFEST_KIND.read(folder / MANIFEST).files
        stated = {name: blob.digest for name, blob in layers.items() if name not in (MANIFEST, SIGNATURE)}
        if stated != {name: f"sha256:{of}" for name, of in files.items()}:
            raise BundleError("its files are not those of its manifest", where=source, hint="push it again")
        return "" if trust is None else str(verify_signature(Bundle(folder), Path(trust)).signer)


@contextmanager
def _at(source: Address) -> Iterator[None]:
    """Name the address in an error, in place of the hidden directory that is being filled."""
    try:
        yield
    except EdgeresError as error:
        raise type(error)(error.what, where=source, hint=error.hint) from error
