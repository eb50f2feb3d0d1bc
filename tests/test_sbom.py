"""Bills of materials: valid CycloneDX, and true of the bundle and of what is installed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from bundles import spec, write_bundle
from click.testing import CliRunner

from edgeres._version import __version__
from edgeres.bundle import SBOM, Bundle, new_bundle, seal
from edgeres.cli.sbom import command
from edgeres.device import packages
from edgeres.device.packages import installed
from edgeres.errors import BundleError
from edgeres.pipeline.sbom import bundle_sbom, own_sbom, write_sbom
from edgeres.records import EngineRecord, Manifest
from edgeres.zoo.registry import find_weights


def valid(document: dict[str, Any]) -> bool:
    """Held to CycloneDX's own schemas, which cyclonedx-python-lib holds."""
    pytest.importorskip("cyclonedx")
    from jsonschema import Draft7Validator, FormatChecker
    from referencing import Registry, Resource

    folder = files("cyclonedx") / "schema" / "_res"
    names = ("bom-1.6", "spdx", "jsf-0.82", "cryptography-defs")
    schemas = {name: json.loads((folder / f"{name}.SNAPSHOT.schema.json").read_text()) for name in names}
    known = [(f"http://cyclonedx.org/schema/{n}.SNAPSHOT.schema.json", s) for n, s in schemas.items()]
    known += [(schema["$id"], schema) for schema in schemas.values()]
    registry: Any = Registry().with_resources([(uri, Resource.from_contents(schema)) for uri, schema in known])
    checker = Draft7Validator(schemas["bom-1.6"], registry=registry, format_checker=FormatChecker())
    errors = [f"{'/'.join(map(str, error.path))}: {error.message:.200}" for error in checker.iter_errors(document)]
    assert errors == []
    references = [c["bom-ref"] for c in (document["metadata"]["component"], *document["components"])]
    assert len(set(references)) == len(references)
    named = {ref for part in document["dependencies"] for ref in (part["ref"], *part.get("dependsOn", ()))}
    assert named <= set(references)
    return True


def made_at(path: Path) -> Path:
    """A bundle of resnet18's bundled weights, as far as its bill is concerned."""
    weights = find_weights("resnet18", "signs")
    manifest = Manifest(replace(spec(), weights="signs", weights_sha256=weights.sha256), {}, {}, {}, {})
    with new_bundle(path) as folder:
        for name in ("model.fp32.onnx", "labels.txt", "report.json"):
            (folder / name).write_text(name)
        write_sbom(folder, manifest)
        seal(folder, manifest)
    return path


def parts(document: dict[str, Any], kind: str) -> dict[str, Any]:
    return {part["name"]: part for part in document["components"] if part["type"] == kind}


def test_the_bill_of_a_bundle_names_files_weights_and_packages(tmp_path: Path) -> None:
    bundle = Bundle(made_at(tmp_path / "b"))
    bill = bundle_sbom(bundle)
    assert valid(bill) and json.loads((bundle.path / SBOM).read_text()) == bill
    listed = {name: part["hashes"][0]["content"] for name, part in parts(bill, "file").items()}
    assert listed == {n: of for n, of in bundle.manifest.files.items() if n not in (SBOM, "report.json")}
    assert listed["labels.txt"] == hashlib.sha256(b"labels.txt").hexdigest()
    models = parts(bill, "machine-learning-model")
    assert models["weights signs"]["hashes"][0]["content"] == find_weights("resnet18", "signs").sha256
    libraries = parts(bill, "library")
    for name in ("numpy", "pillow", "onnxruntime", "msgspec", "torch", "protobuf"):
        assert libraries[name]["version"] == importlib.metadata.version(name)
    assert "pytest" not in libraries and "ruff" not in libraries
    assert parts(bill, "application")["edgeres"]["version"] == __version__
    assert parts(bill, "platform")["python"]["version"] == platform.python_version()


def test_engines_are_listed_as_they_are_now(tmp_path: Path) -> None:
    bundle = Bundle(made_at(tmp_path / "b"))
    before = bundle_sbom(bundle)
    name = "engines/rtx-1.7-12.0.engine"
    record = EngineRecord("rtx", "rtx", "1.7.1", "int8", "built, not run here", name, 3)
    bundle.add_engines({record: b"abc"}, {"engines/rtx-1.7-12.0.log": b"said"})
    after = bundle_sbom(bundle)
    assert valid(after) and after["serialNumber"] != before["serialNumber"]
    engine = parts(after, "file")[name]
    assert engine["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(b"abc").hexdigest()}]
    assert {"name": "edgeres:runtime version", "value": "1.7.1"} in engine["properties"]
    assert parts(after, "file").keys() - parts(before, "file").keys() == {name, "engines/rtx-1.7-12.0.log"}


def test_the_bill_of_an_installation(tmp_path: Path) -> None:
    done = CliRunner().invoke(command, ["--json"])
    bill = json.loads(done.output)
    CliRunner().invoke(command, ["-o", str(tmp_path / "own.cdx.json")])
    assert json.loads((tmp_path / "own.cdx.json").read_text())["components"] == bill["components"]
    rows = [line.split() for line in CliRunner().invoke(command, []).output.splitlines()]
    assert ["numpy", "library", importlib.metadata.version("numpy")] in [row[:3] for row in rows]
    assert valid(bill) and bill["metadata"]["component"]["purl"] == f"pkg:pypi/edgeres@{__version__}"
    assert parts(bill, "library")["rich"]["purl"] == f"pkg:pypi/rich@{importlib.metadata.version('rich')}"


def test_the_bill_depends_on_the_content_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    one, other = (bundle_sbom(Bundle(made_at(tmp_path / name))) for name in "ab")
    assert one == other and one["metadata"]["timestamp"] == "2023-11-14T22:13:20+00:00"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000001")
    assert own_sbom()["serialNumber"] != one["serialNumber"]


def test_a_bill_that_is_missing_or_was_changed(tmp_path: Path) -> None:
    write_bundle(tmp_path / "old")
    with pytest.raises(BundleError, match=r"wrote no sbom\.cdx\.json; build it again; edgeres sbom without BUNDLE"):
        bundle_sbom(Bundle(tmp_path / "old"))
    bundle = Bundle(made_at(tmp_path / "b"))
    (bundle.path / SBOM).write_text("{}")
    with pytest.raises(BundleError, match=r"sbom\.cdx\.json was changed after it was written"):
        bundle_sbom(bundle)


class Stated:
    """A distribution with these fields."""

    def __init__(self, version: str, requires: list[str], **stated: str) -> None:
        self.version, self.requires = version, requires
        self.metadata = self
        self._stated = {key.replace("_", "-"): [value] for key, value in stated.items()}

    def get_all(self, key: str) -> list[str] | None:
        return self._stated.get(key)


def test_what_is_needed_is_found_through_others(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        "edgeres": Stated("1", ["A.b_c>=2; python_version > '3'", "gone", "d; extra == 'report'", 'e; extra == "dev"']),
        "a-b-c": Stated("2", ["f ; extra == 'more'", "d[all] (>=1)"], License="MIT"),
        "d": Stated("3+cpu", ["a_b.c"], License_Expression="BSD-3-Clause AND MIT"),
        "e": Stated("4", []),
        "f": Stated("5", []),
    }

    def distribution(name: str) -> Stated:
        if name not in known:
            raise importlib.metadata.PackageNotFoundError(name)
        return known[name]

    find: Callable[[str], Stated] = distribution
    monkeypatch.setattr(packages, "distribution", find)
    found = {one.name: one for one in installed()}
    assert found.keys() == {"edgeres", "a-b-c", "d"}
    assert found["edgeres"].needs == ("a-b-c", "d") and found["d"].needs == ("a-b-c",)
    assert (found["a-b-c"].license, found["a-b-c"].is_spdx) == ("MIT", False)
    assert (found["d"].license, found["d"].is_spdx) == ("BSD-3-Clause AND MIT", True)
    assert {part["purl"] for part in own_sbom()["components"]} >= {"pkg:pypi/d@3%2Bcpu", "pkg:pypi/a-b-c@2"}


@pytest.mark.parametrize(
    "wrong", [{"hashes": 5}, {"licenses": [{"license": "MIT"}]}, {"name": None}, {"hashes": ["x"]}]
)
def test_a_bill_whose_components_have_other_types_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    bill = own_sbom()
    bill["components"][1] |= wrong
    path = write_bundle(tmp_path / "x.edgeres", files={SBOM: json.dumps(bill).encode()})
    with pytest.raises(BundleError, match=r"components\[1\] must be one of CycloneDX"):
        bundle_sbom(Bundle(path))
