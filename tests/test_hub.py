"""Bundles in a registry of containers: what arrives is what was sent, or nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bundles import siblings, write_bundle
from click.testing import CliRunner
from fake_registry import USER, FakeRegistry, serving
from hypothesis import given
from hypothesis import strategies as st

from edgeres.bundle import MANIFEST, SIGNATURE, Bundle
from edgeres.cli import pull, push
from edgeres.errors import BundleError, EdgeresError, EnvironmentError_, UsageError
from edgeres.hub.address import Address
from edgeres.hub.bundles import pull_bundle, push_bundle
from edgeres.signing import sign

pytest.importorskip("oras", reason="needs edgeres[hub]")


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with serving() as one:
        yield one


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "net.edgeres")


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_pulled_bundle_is_the_pushed_one(registry: FakeRegistry, bundle: Path, tmp_path: Path) -> None:
    to = f"oci://{registry.host}/robots/net:1.2"
    pushed = push_bundle(bundle, to)
    body = registry.manifests["1.2"]
    assert str(pushed.address) == f"{to}@sha256:{hashlib.sha256(body).hexdigest()}"
    assert pushed.sent == pushed.size == sum(map(len, content(bundle).values()))
    for address in (to, str(pushed.address), str(pushed.address).replace(":1.2@", "@")):
        pulled = pull_bundle(address, tmp_path / "there", force=False)
        assert content(tmp_path / "there") == content(bundle)
        assert pulled.address.digest == pushed.address.digest
    again = push_bundle(bundle, f"oci://{registry.host}/robots/net")
    assert again.sent == 0
    assert again.address.tag == "latest"
    assert again.address.digest == pushed.address.digest  # the same bundle has the same digest


def test_a_registry_asks_for_a_login_first(bundle: Path, home: Path, tmp_path: Path) -> None:
    with serving(login=True) as registry:
        to = f"oci://{registry.host}/net:1"
        with pytest.raises(EnvironmentError_, match=f"docker login {registry.host}") as told:
            push_bundle(bundle, to)
        assert USER[1] not in str(told.value)
        (home / ".docker").mkdir(parents=True)
        auth = base64.b64encode(":".join(USER).encode()).decode()
        (home / ".docker" / "config.json").write_text(json.dumps({"auths": {registry.host: {"auth": auth}}}))
        push_bundle(bundle, to)
        pull_bundle(to, tmp_path / "there")
    assert content(tmp_path / "there") == content(bundle)


def document(registry: FakeRegistry) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(registry.manifests["1"])
    return found


def _cut(registry: FakeRegistry, layer: dict[str, Any]) -> None:
    registry.wrong[layer["digest"]] = registry.blobs[layer["digest"]][:-1]


def _longer(registry: FakeRegistry, layer: dict[str, Any]) -> None:
    registry.wrong[layer["digest"]] = registry.blobs[layer["digest"]] + b"more" * 100_000


def _other(registry: FakeRegistry, layer: dict[str, Any]) -> None:
    changed = bytearray(registry.blobs[layer["digest"]])
    changed[-1] ^= 1
    registry.wrong[layer["digest"]] = bytes(changed)


@pytest.mark.parametrize("damage", [_cut, _longer, _other])
@pytest.mark.parametrize("name", [MANIFEST, "model.int8.cpu.onnx"])
def test_other_bytes_are_refused_and_nothing_is_left(
    registry: FakeRegistry, bundle: Path, tmp_path: Path, damage: Any, name: str
) -> None:
    push_bundle(bundle, f"oci://{registry.host}/net:1")
    damage(registry, next(one for one in document(registry)["layers"] if one["annotations"].popitem()[1] == name))
    with pytest.raises(BundleError, match="sent other bytes than those of sha256:"):
        pull_bundle(f"oci://{registry.host}/net:1", tmp_path / "there")
    assert siblings(tmp_path / "there") <= {"net.edgeres", "home"}


def _without_title(layers: list[dict[str, Any]]) -> None:
    del layers[0]["annotations"]


def _outside(layers: list[dict[str, Any]]) -> None:
    layers[0]["annotations"] = {"org.opencontainers.image.title": "../outside"}


def _twice(layers: list[dict[str, Any]]) -> None:
    layers.append(layers[0])


def _missing(layers: list[dict[str, Any]]) -> None:
    del layers[0]


def _one_more(layers: list[dict[str, Any]]) -> None:
    layers.append({**layers[0], "annotations": {"org.opencontainers.image.title": "run.sh"}})


def _large(layers: list[dict[str, Any]]) -> None:
    layers[0]["size"] = 1 << 60


def _negative(layers: list[dict[str, Any]]) -> None:
    layers[0]["size"] = -1


def _no_digest(layers: list[dict[str, Any]]) -> None:
    layers[0]["digest"] = "../../etc/passwd"


def _no_manifest(layers: list[dict[str, Any]]) -> None:
    layers[:] = [layer for layer in layers if MANIFEST not in layer["annotations"].values()]


def _many(layers: list[dict[str, Any]]) -> None:
    layers += [{**layers[0], "annotations": {"org.opencontainers.image.title": f"{i}"}} for i in range(300)]


@pytest.mark.parametrize(
    "change",
    [_without_title, _outside, _twice, _missing, _one_more, _large, _negative, _no_digest, _no_manifest, _many],
)
def test_a_registry_may_say_anything(registry: FakeRegistry, bundle: Path, tmp_path: Path, change: Any) -> None:
    push_bundle(bundle, f"oci://{registry.host}/net:1")
    changed = document(registry)
    change(changed["layers"])
    registry.manifests["1"] = json.dumps(changed).encode()
    before = len(registry.asked)
    with pytest.raises(BundleError) as told:
        pull_bundle(f"oci://{registry.host}/net:1", tmp_path / "there")
    assert str(told.value).startswith(f"oci://{registry.host}/net:1: ")
    fetched = [line for line in registry.asked[before:] if "/blobs/" in line]
    assert len(fetched) <= 1  # no large file before its name and digest are known to be right
    assert siblings(tmp_path / "there") <= {"net.edgeres", "home"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[" * 100_000, "no JSON object"),
        (b"[]", "no JSON object"),
        (b"{}", "is no bundle of edgeres"),
        (b" " * (2 << 20), "more than"),
        (b'{"artifactType": "application/vnd.edgeres.bundle.v1", "layers": 5}', "has no manifest"),
    ],
)
def test_what_is_no_bundle_is_refused(registry: FakeRegistry, tmp_path: Path, body: bytes, words: str) -> None:
    registry.manifests["1"] = body
    with pytest.raises(BundleError, match=words):
        pull_bundle(f"oci://{registry.host}/net:1", tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_a_digest_leads_to_nothing_else(registry: FakeRegistry, bundle: Path, tmp_path: Path) -> None:
    address = push_bundle(bundle, f"oci://{registry.host}/net:1").address
    registry.wrong[address.digest] = b"{}"
    with pytest.raises(BundleError, match="another manifest than the digest's"):
        pull_bundle(str(address), tmp_path / "there")
    with pytest.raises(UsageError, match="a digest is what a push gives"):
        push_bundle(bundle, str(address))


def test_answers_become_one_line_and_the_older_bundle_stays(
    registry: FakeRegistry, bundle: Path, tmp_path: Path
) -> None:
    older = write_bundle(tmp_path / "older.edgeres")
    before = content(older)
    with pytest.raises(BundleError, match="there is no such bundle in the registry"):
        pull_bundle(f"oci://{registry.host}/net:1", older)
    registry.statuses["/v2/net/manifests/1"] = 503
    with pytest.raises(EnvironmentError_, match="the registry answers 503"):
        pull_bundle(f"oci://{registry.host}/net:1", older)
    with pytest.raises(EnvironmentError_, match=r"cannot be reached \(Connection refused\)"):
        pull_bundle("oci://127.0.0.1:9/net:1", older)
    assert content(older) == before
    (older / "mine.txt").write_text("kept")
    with pytest.raises(BundleError, match=r"holds what edgeres did not write \(mine\.txt\)"):
        pull_bundle(f"oci://{registry.host}/net:1", older)


def test_a_changed_bundle_is_not_pushed(registry: FakeRegistry, bundle: Path) -> None:
    (bundle / "model.int8.cpu.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match="was changed after it was written"):
        push_bundle(bundle, f"oci://{registry.host}/net:1")
    assert not registry.asked


def test_a_signature_is_checked_before_the_large_files_are_fetched(
    registry: FakeRegistry, bundle: Path, tmp_path: Path
) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("needs ssh-keygen")
    for name in ("key", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    to = f"oci://{registry.host}/net:1"
    push_bundle(bundle, to)
    trusted, others = tmp_path / "key.pub", tmp_path / "other.pub"
    for keys in (trusted, others):
        with pytest.raises(BundleError, match="net:1: "):
            pull_bundle(to, tmp_path / "there", trust=keys)  # nobody signed it
    sign(Bundle(bundle), tmp_path / "key")
    push_bundle(bundle, to)
    before = len(registry.asked)
    with pytest.raises(BundleError):
        pull_bundle(to, tmp_path / "there", trust=others)
    assert sum("/blobs/" in line for line in registry.asked[before:]) == 2
    done = pull_bundle(to, tmp_path / "there", trust=trusted)
    assert done.signer
    assert (tmp_path / "there" / SIGNATURE).read_bytes() == (bundle / SIGNATURE).read_bytes()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("registry.example/net", "is no address of a bundle"),
        ("oci://registry.example", "is no address of a bundle"),
        ("oci://registry.example/Net", "names in small letters"),
        ("oci://registry.example/../net", "is no address of a bundle"),
        ("oci://registry.example/net:a:b", "is no address of a bundle"),
        ("oci://registry.example/net@sha256:12", "is no address of a bundle"),
        ("oci://user:s3cret@registry.example/net", "an address has no user and password"),
        ("oci://registry.example/net?x=1", "is no address of a bundle"),
        ("oci://registry.example/net\n", "is no address of a bundle"),
    ],
)
def test_wrong_addresses(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as told:
        Address.of(text)
    assert "s3cret" not in str(told.value)


@given(st.text(max_size=60))
def test_an_address_is_read_back_as_it_is_shown_or_refused(text: str) -> None:
    try:
        found = Address.of(f"oci://{text}")
    except EdgeresError as error:
        assert "\n" not in str(error)
    else:
        assert Address.of(str(found)) == found


def test_the_commands(registry: FakeRegistry, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pushed = CliRunner().invoke(push.command, [str(bundle), f"oci://{registry.host}/robots/net:1", "--json"])
    said = json.loads(pushed.stdout)
    assert said["sent_bytes"] == said["bytes"]
    pulled = CliRunner().invoke(pull.command, [said["address"]])
    assert pulled.exit_code == 0 and said["address"] in pulled.stdout
    assert content(tmp_path / "net.edgeres") == content(bundle)
