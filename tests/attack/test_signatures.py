"""Only what a trusted key signed loads with trust=, and engines that were added later are known."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundles import CLASSES, classifier, write_bundle
from fake_gpu import Gpu, installed, plan

import edgeres
from edgeres.bundle import MANIFEST, MANIFEST_KIND, SIGNATURE, Bundle, seal
from edgeres.cli import main
from edgeres.documents import digest
from edgeres.errors import BundleError, EngineError, EnvironmentError_, InputError
from edgeres.records import EngineRecord, Portability
from edgeres.runtime import ANYONE, Classifier
from edgeres.runtime.engine import EngineFile
from edgeres.signing import check_all, sign, verify_signature

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="there is no ssh-keygen")
ENGINE = EngineRecord(
    "tensorrt", "tensorrt", "10.3.0", "int8", "built", "engines/a.engine", 5, Portability(("8.6",), True)
)


IMAGE = np.full((9, 9, 3), 100, np.uint8)


def make_key(path: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", "me", "-f", str(path)], check=True)
    return path


def public(key: Path) -> Path:
    return key.with_name(f"{key.name}.pub")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return make_key(tmp_path / "key")


@pytest.fixture
def path(tmp_path: Path, key: Path) -> Path:
    made = write_bundle(tmp_path / "x.edgeres", files={"model.int8.cpu.onnx": classifier(), "labels.txt": b"ant"})
    sign(Bundle(made), key)
    return made


def change_manifest(path: Path, **changes: object) -> None:
    """As an attacker would: sealed again, so that nothing but the signature can tell."""
    seal(path, replace(Bundle(path).manifest, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_a_signed_bundle_loads(kind: str, tmp_path: Path) -> None:
    key, path = make_key(tmp_path / "key", kind), write_bundle(tmp_path / "x.edgeres")
    assert sign(Bundle(path), key).startswith(f"{kind.upper()} SHA256:")
    named = tmp_path / "allowed"
    named.write_text(f'# robots\n\n*@lab.org namespaces="edgeres-bundle" {public(key).read_text()}')
    for trust, name in ((public(key), "trusted"), (named, "*@lab.org")):
        assert check_all(Bundle(path), trust).signer == name
        with edgeres.load(path, trust=trust) as classify:
            assert classify(IMAGE).logits.shape == (len(CLASSES),)
    write_bundle(path)  # a signature is no file of its user
    with pytest.raises(BundleError, match=r"is not signed; edgeres sign .* --key KEY"):
        edgeres.load(path, trust=public(key))


def test_another_key(path: Path, tmp_path: Path) -> None:
    other = public(make_key(tmp_path / "other"))
    with pytest.raises(BundleError, match=r"is signed by ED25519 SHA256:\S+, which .*other\.pub does not trust"):
        edgeres.load(path, trust=other)
    other.write_text(f'me namespaces="git" {public(tmp_path / "key").read_text()}')
    with pytest.raises(BundleError, match="does not trust"):
        edgeres.load(path, trust=other)
    other.write_text(f'me valid-before="20200101" {public(tmp_path / "key").read_text()}')
    with pytest.raises(BundleError, match="does not trust"):
        edgeres.load(path, trust=other)


def test_changed_after_it_was_signed(path: Path, key: Path) -> None:
    (path / "labels.txt").write_bytes(b"bee")
    with pytest.raises(BundleError, match=r"labels.txt was changed after it was written"):
        check_all(Bundle(path), public(key))
    change_manifest(path)
    Bundle(path).check()
    with pytest.raises(BundleError, match=r"changed after it was signed: labels\.txt; take it"):
        edgeres.load(path, trust=public(key))


def test_words_of_the_manifest_are_signed_too(path: Path, key: Path) -> None:
    model = replace(Bundle(path).manifest.model, labels=tuple(reversed(CLASSES)))
    change_manifest(path, model=model)
    with pytest.raises(BundleError, match=r"changed after it was signed: what manifest\.json says of the network"):
        edgeres.load(path, trust=public(key))


def test_an_added_file_is_a_change(path: Path, key: Path) -> None:
    (path / "model.int8.onnx").write_bytes(classifier(seed=1))
    with pytest.raises(BundleError, match=r"holds model\.int8\.onnx, which its manifest does not list; remove"):
        check_all(Bundle(path), public(key))
    change_manifest(path)
    with pytest.raises(BundleError, match=r"signed: model\.int8\.onnx"):
        edgeres.load(path, trust=public(key))


def test_a_forged_signature_file(path: Path, key: Path) -> None:
    kept = json.loads((path / SIGNATURE).read_text())
    (path / "labels.txt").write_bytes(b"bee")
    change_manifest(path)
    for forged, words in (
        ({**kept, "manifest": (path / MANIFEST).read_text()}, "signature.json was changed after it was signed"),
        ({**kept, "signature": kept["signature"][:60]}, "signature.json was changed after it was signed"),
        ({**kept, "signature": "none"}, "signature must be one of ssh-keygen"),
        ({**kept, "schema": 2}, "upgrade edgeres"),
        ({}, "states no schema"),
    ):
        (path / SIGNATURE).write_text(json.dumps(forged))
        with pytest.raises(BundleError, match=words):
            verify_signature(Bundle(path), public(key))
    (path / SIGNATURE).unlink()
    (path / SIGNATURE).symlink_to("/dev/zero")
    with pytest.raises(BundleError, match="is a link"):
        verify_signature(Bundle(path), public(key))


def test_a_manifest_does_not_name_its_signature(path: Path) -> None:
    document = json.loads((path / MANIFEST).read_text())
    document["files"][SIGNATURE] = "0" * 64
    body = {key: value for key, value in document.items() if key != "digest"}
    with pytest.raises(BundleError, match="must not name the signature"):
        MANIFEST_KIND.decode({**body, "digest": digest(body)}, "x")


def test_engines_that_were_added_later(path: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They leave the signature valid, are listed, and do not run where trust is asked for."""
    data, gpu, trust = plan(classifier(), portable=True), Gpu(), public(key)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Bundle(path).add_engines({replace(ENGINE, size_bytes=len(data)): data})
    with installed(monkeypatch, gpu, "cuda-python", "tensorrt"):
        assert check_all(Bundle(path), trust).unsigned == (ENGINE.file,)
        with pytest.raises(EngineError, match="added after the bundle was signed"):
            Classifier(path, backend="tensorrt", trust=trust)
        with Classifier(path, trust=trust) as classify:
            assert "CPU" in classify.backend
            assert any("added after the bundle was signed" in line for line in classify.passed_over)
        assert gpu.code_was_run == 0
        sign(Bundle(path), key)
        assert check_all(Bundle(path), trust).engines == (ENGINE.file,)
        with Classifier(path, backend="tensorrt", trust=trust) as classify:
            classify(IMAGE)
        assert gpu.code_was_run == 1
        other = plan(classifier(seed=1), portable=True)
        Bundle(path).add_engines({replace(ENGINE, size_bytes=len(other)): other})
        with pytest.raises(EngineError, match="added after"):
            Classifier(path, backend="tensorrt", trust=trust)
        with Classifier(path, backend="tensorrt", trust=ANYONE):
            assert gpu.code_was_run == 2


def test_a_graph_that_is_swapped_after_the_check_does_not_run(
    path: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Classifier(path, trust=public(key)) as classify:
        signed = classify(IMAGE).logits

    check, swapped = Bundle.content, classifier(seed=1)

    def checked(bundle: Bundle, name: str) -> bytes | None:
        found = check(bundle, name)
        (path / name).write_bytes(swapped)
        return found

    monkeypatch.setattr(Bundle, "content", checked)
    with Classifier(path, trust=public(key)) as classify:
        assert (path / "model.int8.cpu.onnx").read_bytes() == swapped
        assert np.array_equal(classify(IMAGE).logits, signed)


def test_an_engine_that_is_swapped_after_the_check_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.engine").write_bytes(b"swapped")
    file = EngineFile(tmp_path / "a.engine", record=ENGINE, sha256=hashlib.sha256(b"checked").hexdigest())
    with pytest.raises(EngineError, match="was changed after it was written"):
        file.read()


def test_keys_that_cannot_be_used(path: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (path / SIGNATURE).read_bytes()
    locked = make_key(tmp_path / "locked", passphrase="secret")
    for bad, words in (
        (tmp_path / "nowhere", "no such key"),
        (path / "labels.txt", "this key cannot sign"),
    ):
        with pytest.raises(InputError, match=words):
            sign(Bundle(path), bad)
    code = "import sys; from edgeres.cli import main; main()"
    argv = [sys.executable, "-c", code, "sign", str(path), "--key", str(locked)]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, start_new_session=True)
    assert (done.returncode, done.stdout) == (3, "")
    assert "its passphrase is needed" in done.stderr and done.stderr.count("\n") == 1
    assert (path / SIGNATURE).read_bytes() == before
    empty = tmp_path / "empty"
    for content in ("", "# none\n", "me\n", "ssh-ed25519 short\n", "\x00\xff", "ssh-ed25519\n"):
        empty.write_text(content)
        with pytest.raises(InputError, match="holds no public key"):
            edgeres.load(path, trust=empty)
    with pytest.raises(InputError, match="is a private key"):
        edgeres.load(path, trust=key)
    with pytest.raises(InputError, match="cannot be read"):
        edgeres.load(path, trust=tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    for use in (lambda: sign(Bundle(path), key), lambda: verify_signature(Bundle(path), public(key))):
        with pytest.raises(EnvironmentError_, match="ssh-keygen, which is not installed; install OpenSSH"):
            use()


def test_commands(path: Path, key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: object) -> tuple[object, str, str]:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
            patch.setattr(sys, "argv", ["edgeres", *map(str, arguments)])
            main()
        return stop.value.code, *capsys.readouterr()

    code, out, _ = run("sign", path, "--key", key)
    assert code == 0 and out.startswith("signed with ED25519 SHA256:")
    code, out, err = run("verify-signature", path, "--trust", public(key))
    assert (code, err) == (0, "") and "signed by trusted with ED25519" in out
    _, out, _ = run("verify-signature", path, "--trust", public(key), "--json")
    assert json.loads(out)["unsigned"] == []
    code, _, err = run("predict", path, path, "--trust", public(key), "--host-code")
    assert code == 2 and "give one of them" in err
    (path / SIGNATURE).unlink()
    code, out, err = run("predict", path, path, "--trust", public(key))
    assert (code, out) == (3, "") and "is not signed" in err
