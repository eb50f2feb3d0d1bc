"""Bills of materials in CycloneDX 1.6: what a bundle, or this installation, is made of.

The bill of a bundle is its file sbom.cdx.json, written by the build: the files with their SHA-256, the weights that it
was made from, and the packages that made it. It is sealed and signed with the others. Nothing in it depends on the time
of the build but its timestamp.
"""

from __future__ import annotations

import platform
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from edgeres._version import __version__
from edgeres.bundle import ENGINES, REPORT, REPORT_PAGE, SBOM, Bundle
from edgeres.device.environment import recorded_time
from edgeres.device.packages import Package, installed
from edgeres.documents import OPTIONAL, DocumentKind, Json, digest, named, require
from edgeres.errors import BundleError
from edgeres.files import json_bytes, read_file, sha256, write_file
from edgeres.records import EngineRecord, Manifest
from edgeres.words import public
from edgeres.zoo.registry import list_models

_VERSION = "1.6"
_SCHEMA = f"http://cyclonedx.org/schema/bom-{_VERSION}.schema.json"
_TOP = "bundle"  # its reference inside of the document


@dataclass(frozen=True)
class BillOfMaterials:
    """The keys of a CycloneDX document that edgeres writes."""

    schema_url: str = field(metadata=named("$schema"))
    bom_format: str = field(metadata=named("bomFormat"))
    spec_version: str = field(metadata=named("specVersion"))
    serial_number: str = field(metadata=named("serialNumber"))
    version: int
    metadata: Mapping[str, Any]
    components: tuple[Mapping[str, Any], ...]
    dependencies: tuple[Mapping[str, Any], ...] = field(default=(), metadata=OPTIONAL)

    def __post_init__(self) -> None:
        for index, part in enumerate(self.components):
            require(_is_component(part), f"components[{index}] must be one of CycloneDX: name, type, hashes, licenses")


def _is_component(part: Mapping[str, Any]) -> bool:
    """Whether what is shown of a component has the types of CycloneDX's schema."""
    hashes, licenses = part.get("hashes", []), part.get("licenses", [])
    lists = isinstance(hashes, list | tuple) and isinstance(licenses, list | tuple)
    if not lists or not all(isinstance(one, Mapping) for one in (*hashes, *licenses)):
        return False
    texts = [part.get("name"), part.get("type"), part.get("version", ""), *(one.get("content") for one in hashes)]
    stated = [one.get("license", {}) for one in licenses]
    return all(isinstance(text, str) for text in texts) and all(isinstance(one, Mapping) for one in stated)


_KIND = DocumentKind(BillOfMaterials, f"a {SBOM}", "build the bundle again", error=BundleError)


def write_sbom(folder: Path, manifest: Manifest) -> None:
    """Write sbom.cdx.json for the files in the directory of a new bundle; the last one before it is sealed."""
    files = {
        path.relative_to(folder).as_posix(): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (REPORT, REPORT_PAGE)  # they hold measured times
    }
    bill = _bill(_network(manifest), [*_weights(manifest), *_files(files, manifest.engines)])
    write_file(folder / SBOM, json_bytes(public(_KIND.content(bill))))


def bundle_sbom(bundle: Bundle) -> Json:
    """The bill of a bundle, with the engines as they are now.

    Raises:
        BundleError: it has none, or it was changed.
    """
    if not bundle.has(SBOM):
        hint = "build it again; edgeres sbom without BUNDLE lists what is installed here"
        raise BundleError(f"was built by an edgeres that wrote no {SBOM}", where=bundle.path, hint=hint)
    bill = _KIND.decode(read_file(bundle.file(SBOM)), bundle.path / SBOM)
    manifest = bundle.manifest
    engines = {name: of for name, of in manifest.files.items() if name.startswith(f"{ENGINES}/")}
    others = [one for one in bill.components if not str(one.get("name")).startswith(f"{ENGINES}/")]
    now = [*others, *_files(engines, manifest.engines)]
    return _KIND.content(_numbered(bill, now))


def own_sbom() -> Json:
    """The bill of this installation of edgeres."""
    return _KIND.content(_bill({**_edgeres(), "bom-ref": _TOP}, []))


def _bill(about: Json, parts: list[Json]) -> BillOfMaterials:
    """A document on something that is made of these parts, by the packages that are installed here."""
    packages = {one.name: one for one in installed() if one.name != "edgeres"}
    maker = [_edgeres()] if parts else []
    metadata = {
        "timestamp": recorded_time(),
        "lifecycles": [{"phase": "build" if parts else "operations"}],
        "tools": {"components": [{"type": "application", "name": "edgeres", "version": __version__}]},
        "component": about,
    }
    used = [*maker, *(_library(one) for one in packages.values()), _python()]
    tree = [
        {"ref": _reference(one), "dependsOn": [_reference(packages[name]) for name in one.needs]}
        for one in packages.values()
    ]
    needed = {name for one in packages.values() for name in one.needs}
    direct = [_reference(one) for one in packages.values() if one.name not in needed] + [_python()["bom-ref"]]
    if parts:
        tree.append({"ref": maker[0]["bom-ref"], "dependsOn": direct})
        direct = [maker[0]["bom-ref"]]
    top = {"ref": _TOP, "dependsOn": direct}
    return _numbered(
        BillOfMaterials(_SCHEMA, "CycloneDX", _VERSION, "", 1, metadata, (), (top, *tree)), [*parts, *used]
    )


def _numbered(bill: BillOfMaterials, components: Sequence[Mapping[str, Any]]) -> BillOfMaterials:
    """A document with these components, and the number that belongs to its content."""
    bill = replace(bill, components=tuple(components), serial_number="")
    return replace(bill, serial_number=f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, digest(_KIND.content(bill)))}")


def _network(manifest: Manifest) -> Json:
    model = manifest.model
    card = {"modelParameters": {"task": "image classification", "modelArchitecture": model.name}}
    return {"type": "machine-learning-model", "bom-ref": _TOP, "name": model.name, "modelCard": card}


def _weights(manifest: Manifest) -> list[Json]:
    """The checkpoint that the network was taken from; its licence where edgeres knows who published it."""
    model = manifest.model
    if not model.weights_sha256:
        return []
    known = [w for m in list_models() for w in m.weights.values() if model.weights_sha256.startswith(w.sha256)]
    licence = {"licenses": [{"license": {"id": known[0].license}}]} if known else {}
    hashes = [{"alg": "SHA-256", "content": model.weights_sha256}]
    what = {"type": "machine-learning-model", "bom-ref": "weights", "name": f"weights {model.weights}"}
    return [{**what, "hashes": hashes, **licence}]


def _files(digests: Mapping[str, str], engines: tuple[EngineRecord, ...]) -> list[Json]:
    """The files of a bundle; of an engine also what built it."""
    built = {record.file: record for record in engines if record.file}
    parts = []
    for name, of in sorted(digests.items()):
        part: Json = {"type": "file", "bom-ref": f"file:{name}", "name": name}
        part["hashes"] = [{"alg": "SHA-256", "content": of}]
        if record := built.get(name):
            facts = {"runtime": record.runtime, "runtime version": record.version, "target": record.target}
            part["properties"] = [{"name": f"edgeres:{key}", "value": value} for key, value in facts.items()]
        parts.append(part)
    return parts


def _edgeres() -> Json:
    purl = f"pkg:pypi/edgeres@{quote(__version__, safe='')}"
    part = {"type": "application", "bom-ref": purl, "name": "edgeres", "version": __version__, "purl": purl}
    return {**part, "licenses": [{"license": {"id": "Apache-2.0"}}]}


def _library(one: Package) -> Json:
    purl = _reference(one)
    part: Json = {"type": "library", "bom-ref": purl, "name": one.name, "version": one.version, "purl": purl}
    if one.license:
        stated = {"expression": one.license} if one.is_spdx else {"license": {"name": one.license}}
        part["licenses"] = [stated]
    return part


def _reference(one: Package) -> str:
    return f"pkg:pypi/{one.name}@{quote(one.version, safe='')}"


def _python() -> Json:
    version = platform.python_version()
    purl = f"pkg:generic/python@{quote(version, safe='')}"
    return {"type": "platform", "bom-ref": purl, "name": "python", "version": version, "purl": purl}
