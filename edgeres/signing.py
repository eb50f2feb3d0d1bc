"""Signatures of bundles: who made what is in it, by OpenSSH's ``ssh-keygen -Y`` with the namespace ``edgeres-bundle``.

What is signed is the text of manifest.json, which seals every other file by SHA-256. The file signature.json holds that
text and its signature, so that engines which are added later on the device leave it valid: everything but engines must
be as it was signed, and an added engine is an unsigned one. ssh-keygen reads keys, asks for passphrases and talks to
ssh-agent; no key passes through edgeres.
"""

from __future__ import annotations

import base64
import binascii
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from edgeres.bundle import ENGINES, MANIFEST, MANIFEST_KIND, SIGNATURE, Bundle, keep_signature
from edgeres.documents import DocumentKind, require
from edgeres.errors import BundleError, EngineError, EnvironmentError_, InputError
from edgeres.files import open_below, read_file
from edgeres.progress import SILENT, Progress
from edgeres.records import EngineRecord, Manifest

NAMESPACE = "edgeres-bundle"
_NAME = "trusted"  # of the keys in a file that gives them no name
_KEY = re.compile(r"(?:ssh|ecdsa|sk)-[\w.@-]+ +([A-Za-z0-9+/]+=*)(?: |$)")
_FINGERPRINT = re.compile(r"with (\S+) key (SHA256:\S+)")
_SECONDS = 60
_LARGEST_KEYS = 1 << 20
_SIGN_AGAIN = "edgeres sign BUNDLE --key KEY, by somebody who trusts what is in it"


@dataclass(frozen=True)
class SignedManifest:
    """The content of signature.json.

    Attributes:
        manifest: the text of manifest.json when it was signed.
        signature: of that text in UTF-8, as ``ssh-keygen -Y sign`` writes it.
    """

    manifest: str
    signature: str

    def __post_init__(self) -> None:
        require(self.signature.startswith("-----BEGIN SSH SIGNATURE-----"), "signature must be one of ssh-keygen")


SIGNATURE_KIND = DocumentKind(SignedManifest, f"a {SIGNATURE}", "sign it again", (1, 1), error=BundleError)


@dataclass(frozen=True)
class Signed:
    """What a trusted signature says of a bundle.

    Attributes:
        signer: its name in the file of trusted keys.
        key: kind and fingerprint of its key.
        engines: files of the engines that are signed.
        unsigned: files of the engines that were added or replaced since.
    """

    signer: str
    key: str
    engines: tuple[str, ...]
    unsigned: tuple[str, ...]


@dataclass(frozen=True)
class Permit:
    """What of a bundle may run.

    Attributes:
        signed: what a trusted signature says of the bundle; None: no signature is asked for.
        host_code: whether code for the CPU in engines may run though nobody signed it.
    """

    signed: Signed | None = None
    host_code: bool = False

    def allows_host_code(self, record: EngineRecord) -> bool:
        """Whether code for the CPU in this engine may run.

        Raises:
            EngineError: a signature is asked for, and this engine has none.
        """
        if self.signed is not None and record.file not in self.signed.engines:
            what = "this engine was added after the bundle was signed, so nobody signed it"
            raise EngineError(what, where=record.file, hint=_SIGN_AGAIN)
        return self.host_code or self.signed is not None


@dataclass(frozen=True)
class KeyChoice:
    """The keys of a step that adds engines to a bundle.

    Attributes:
        trust: public keys, one of which has to have signed the bundle as it is before; None: that is not asked.
        key: signs the bundle after the step; None: the new engines stay unsigned.
    """

    trust: Path | None = None
    key: Path | None = None

    def check(self, bundle: Bundle, progress: Progress = SILENT) -> None:
        """Before the step: check the signature and every file, and that there is such a key.

        Raises:
            BundleError, InputError, EnvironmentError_: as :func:`check_all` and :func:`sign` do.
        """
        if self.key is not None and not self.key.is_file():
            raise _no_key(self.key)
        if self.trust is not None:
            signed = check_all(bundle, self.trust)
            progress.say(f"{bundle.path}: signed by {signed.signer} with {signed.key}")

    def sign(self, path: Path, progress: Progress = SILENT) -> None:
        """After the step: sign what is in the bundle now."""
        if self.key is not None:
            progress.say(f"{path}: signed with {sign(Bundle(path), self.key)}, engines included")


NOBODY = Permit()
BUILT_HERE = Permit(host_code=True)


class Anyone(Enum):
    """The type of :data:`ANYONE`."""

    ANYONE = "anyone"


ANYONE = Anyone.ANYONE  # trusts whoever built a bundle as one trusts a program that one runs


def permit_for(bundle: Bundle, trust: str | Path | Anyone | None) -> Permit:
    """What of a bundle may run where these keys, anyone or nobody is trusted.

    Raises:
        BundleError, InputError, EnvironmentError_: as :func:`verify_signature` does.
    """
    if isinstance(trust, Anyone):
        return BUILT_HERE
    return NOBODY if trust is None else Permit(verify_signature(bundle, Path(trust)))


def sign(bundle: Bundle, key: Path) -> str:
    """Check every file of a bundle, and sign all of it.

    Args:
        key: a private key of OpenSSH, or the public half of one that ssh-agent or a security key holds.

    Returns:
        Kind and fingerprint of the key.

    Raises:
        BundleError: a file is missing or was changed, or the bundle was replaced meanwhile.
        InputError: the key cannot be used.
        EnvironmentError_: there is no ssh-keygen.
    """
    bundle.check()
    content = _text(bundle)
    if MANIFEST_KIND.decode(content.encode(), bundle.path / MANIFEST) != bundle.manifest:
        raise BundleError("was replaced meanwhile", where=bundle.path, hint="sign it again")
    if not key.is_file():
        raise _no_key(key)
    with _files(message=content) as folder:
        message = folder / "message"
        done = _keygen(["-Y", "sign", "-n", NAMESPACE, "-f", str(key.resolve()), str(message)], asks=True)
        made = message.with_name("message.sig")
        if done.returncode or not made.is_file():
            raise _cannot_sign(key, done.stderr)
        signature = made.read_text()
        found = _keygen(["-Y", "check-novalidate", "-n", NAMESPACE, "-s", str(made)], feed=content)
    keep_signature(bundle, SIGNATURE_KIND.content(SignedManifest(content, signature)))
    return _fingerprint(found.stdout)


def _no_key(key: Path) -> InputError:
    return InputError("no such key", where=key, hint="ssh-keygen -t ed25519 -f KEY makes one")


def _text(bundle: Bundle) -> str:
    with open_below(bundle.path, MANIFEST) as stream:
        return stream.read(MANIFEST_KIND.max_bytes).decode()


def _cannot_sign(key: Path, said: str) -> InputError:
    if "passphrase" in said:
        hint = f"run it on a terminal, or ssh-add {key} and give {key}.pub"
        return InputError("its passphrase is needed, and was not given or is wrong", where=key, hint=hint)
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith("Signing")]
    return InputError(f"this key cannot sign ({lines[-1] if lines else 'no reason given'})", where=key, hint=_AGENT)


_AGENT = "give a private key of OpenSSH, or the .pub of one that ssh-agent holds"


def verify_signature(bundle: Bundle, trust: Path) -> Signed:
    """Check that a trusted key signed a bundle, and that all but its engines is as it was signed.

    The files are held to the manifest when they are opened, see :meth:`edgeres.bundle.Bundle.file`.

    Args:
        trust: a file of public keys, as ``ssh-keygen`` writes them to ``KEY.pub`` or as its ALLOWED SIGNERS.

    Raises:
        BundleError: it is not signed, by another key, or was changed after it was signed.
        InputError: ``trust`` holds no keys.
        EnvironmentError_: there is no ssh-keygen.
    """
    keys = _allowed_signers(trust)
    found = _read(bundle)
    with _files(keys=keys, signature=found.signature) as folder:
        signer, key = _signer(found, folder, bundle, trust)
    signed = MANIFEST_KIND.decode(found.manifest.encode(), bundle.path / SIGNATURE)
    now = bundle.manifest
    if _without_engines(signed) != _without_engines(now):
        raise BundleError(f"was changed after it was signed: {_changed(signed, now)}", where=bundle.path, hint=_AGAIN)
    built = [record for record in now.engines if record.file]
    same = {
        r.file for r in built if r in signed.engines and signed.files.get(str(r.file)) == now.files.get(str(r.file))
    }
    names = [str(record.file) for record in built]
    return Signed(signer, key, tuple(n for n in names if n in same), tuple(n for n in names if n not in same))


def check_all(bundle: Bundle, trust: Path) -> Signed:
    """As :func:`verify_signature`, and check every file; the signature comes first."""
    signed = verify_signature(bundle, trust)
    bundle.check()
    return signed


_AGAIN = "take it from its signer again"


def _read(bundle: Bundle) -> SignedManifest:
    try:
        with open_below(bundle.path, SIGNATURE) as stream:
            content = stream.read(SIGNATURE_KIND.max_bytes + 1)
    except FileNotFoundError:
        hint = f"edgeres sign {bundle.path} --key KEY"
        raise BundleError("is not signed", where=bundle.path, hint=hint) from None
    except OSError as error:
        raise BundleError(f"{SIGNATURE} {error.strerror}", where=bundle.path, hint="sign it again") from None
    return SIGNATURE_KIND.decode(content, bundle.path / SIGNATURE)


def _signer(found: SignedManifest, folder: Path, bundle: Bundle, trust: Path) -> tuple[str, str]:
    """Name of the trusted key that signed, and its fingerprint."""
    keys, signature = str(folder / "keys"), str(folder / "signature")
    named = _keygen(["-Y", "find-principals", "-f", keys, "-s", signature])
    patterns = [name for line in named.stdout.splitlines() for name in line.split(",") if name and name[0] != "!"]
    for name in patterns if named.returncode == 0 else ():
        arguments = ["-Y", "verify", "-n", NAMESPACE, "-f", keys, f"-I{name}", "-s", signature]
        done = _keygen(arguments, feed=found.manifest)
        if done.returncode == 0:
            return name, _fingerprint(done.stdout)
    done = _keygen(["-Y", "check-novalidate", "-n", NAMESPACE, "-s", signature], feed=found.manifest)
    if done.returncode:
        what = f"{SIGNATURE} was changed after it was signed, or its signature is for something else"
        raise BundleError(what, where=bundle.path, hint=_AGAIN)
    what = f"is signed by {_fingerprint(done.stdout)}, which {trust} does not trust"
    raise BundleError(what, where=bundle.path, hint="add its public key there if you trust its owner")


def _fingerprint(said: str) -> str:
    found = _FINGERPRINT.search(said)
    return " ".join(found.groups()) if found else "an unknown key"


def _without_engines(manifest: Manifest) -> Manifest:
    files = {name: digest for name, digest in manifest.files.items() if not name.startswith(f"{ENGINES}/")}
    return replace(manifest, engines=(), left_out=(), files=files)


def _changed(signed: Manifest, now: Manifest) -> str:
    one, other = _without_engines(signed).files, _without_engines(now).files
    names = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more if names else f"what {MANIFEST} says of the network"


def _allowed_signers(trust: Path) -> str:
    """The keys of a file in the form that ssh-keygen takes; a key without a name gets one."""
    try:
        content = read_file(trust, _LARGEST_KEYS + 1)
        if len(content) > _LARGEST_KEYS:
            raise InputError(f"is larger than {_LARGEST_KEYS:,} bytes", where=trust, hint=_KEYS)
        lines = content.decode().splitlines()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=trust, hint=_KEYS) from None
    except UnicodeDecodeError:
        raise InputError("holds no public keys", where=trust, hint=_KEYS) from None
    lines = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    if any("PRIVATE KEY" in line for line in lines):
        raise InputError("is a private key; trust takes the public one", where=trust, hint=f"give {trust}.pub")
    for number, line in enumerate(lines):
        key = _KEY.match(line) or re.search(f" {_KEY.pattern}", line)
        if key is None or not _is_key(key[1]):
            raise InputError(f"line {number + 1} holds no public key", where=trust, hint=_KEYS)
    if not lines:
        raise InputError("holds no public keys", where=trust, hint=_KEYS)
    return "".join(f"{_NAME} {line}\n" if _KEY.match(line) else f"{line}\n" for line in lines)


_KEYS = "give a KEY.pub, or a file of ALLOWED SIGNERS (man ssh-keygen)"


def _is_key(text: str) -> bool:
    try:
        return len(base64.b64decode(text, validate=True)) > 32
    except binascii.Error:
        return False


@contextmanager
def _files(**contents: str) -> Iterator[Path]:
    """A folder that only this user can read, for files that ssh-keygen reads."""
    with tempfile.TemporaryDirectory(prefix="edgeres-") as folder:
        for name, text in contents.items():
            Path(folder, name).write_bytes(text.encode())
        yield Path(folder)


def _keygen(arguments: Sequence[str], *, feed: str = "", asks: bool = False) -> subprocess.CompletedProcess[str]:
    """Run ssh-keygen.

    Args:
        asks: it may ask for a passphrase or a touch, on the terminal.
    """
    program = shutil.which("ssh-keygen")
    if program is None:
        hint = "install OpenSSH 8.2 or later (openssh-client)"
        raise EnvironmentError_("signatures need ssh-keygen, which is not installed", hint=hint)
    argv, waits = [program, *arguments], None if asks and sys.stdin is not None and sys.stdin.isatty() else _SECONDS
    try:
        if asks:  # on the terminal; without one, standard input is no place to read a passphrase from
            return subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=waits
            )
        return subprocess.run(
            argv, input=feed, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=waits
        )
    except subprocess.TimeoutExpired:
        raise EnvironmentError_(f"ssh-keygen did not end within {_SECONDS} s", hint="try it by hand") from None
