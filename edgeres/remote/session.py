"""Build and verify a bundle's engine on a remote machine over ssh: copy, engine, verify, fetch.

A small file beside the remote bundle records which steps are done, so that the same command continues where it stopped.
A step is repeated where the bundle, the options or the remote TensorRT changed. Nothing that the remote machine answers
is trusted: all of it is decoded into records with types and bounds.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeres._version import __version__
from edgeres.bundle import ENGINES, MANIFEST, MANIFEST_KIND, REPORT, SIGNATURE, Bundle, log_of
from edgeres.documents import GROUPED, DocumentKind, Json, require
from edgeres.errors import BundleError, EngineError, EnvironmentError_, InputError
from edgeres.files import FREE_SPACE, open_below, remove_below, sha256, write_json
from edgeres.progress import SILENT, Progress
from edgeres.records import EngineRecord
from edgeres.remote.ssh import Done, Host
from edgeres.reports import read_report, report_kind
from edgeres.signing import KeyChoice, Signed

_PROBE = r"""
d=$1; n=$2; shift 2
v=$("$@" --version 2>/dev/null); r=$?
printf 'edgeres %s %s\n' "$r" "$v"
[ "$r" = 0 ] || exit 0
command -v rsync >/dev/null && echo rsync
mkdir -p "$d" || exit 1
[ -f "$d/$n/manifest.json" ] && [ -f "$d/.$n.remote" ] && printf 'state %s\n' "$(cat "$d/.$n.remote")"
exit 0
"""


@dataclass(frozen=True)
class RemoteChoice:
    """What to do on the remote machine.

    Attributes:
        directory: remote folder of bundles, relative to the user's home.
        edgeres: the remote command that runs edgeres.
        target: of the engine; None: what the machine can build; ``cpu``: no engine.
        engine, verify: more options of ``edgeres engine`` and ``edgeres verify``.
        validation: images to verify on: a local folder or file, which is copied, or a generated set; None: no verify.
        labels: a local table with the labels of these images, which is copied, too.
        any_version: accept another version of edgeres there.
        keys: that the bundle is checked with first, here and there, and signed with at the end.
    """

    directory: str = "edgeres"
    edgeres: tuple[str, ...] = ("edgeres",)
    target: str | None = None
    engine: tuple[str, ...] = ()
    verify: tuple[str, ...] = ()
    validation: str | None = None
    labels: Path | None = None
    any_version: bool = False
    keys: KeyChoice = KeyChoice()


@dataclass(frozen=True)
class RemoteCheck:
    """One line of the remote ``edgeres doctor``; see :mod:`edgeres.doctor`."""

    name: str
    ok: bool | None
    found: str
    next_step: str

    def __post_init__(self) -> None:
        require(all(map(str.isprintable, (self.name, self.found, self.next_step))), "its texts must be printable")


@dataclass(frozen=True)
class _DoctorAnswer:
    checks: tuple[RemoteCheck, ...]


@dataclass(frozen=True)
class _SignatureAnswer:
    bundle: str
    signed: Signed = field(metadata=GROUPED)


@dataclass(frozen=True)
class _StepsDone:
    """Digests of what each step was done with; "" where it is not done."""

    bundle: str = ""
    validation: str = ""
    engine: str = ""
    verify: str = ""


_CHECKS = DocumentKind(_DoctorAnswer, "an answer of edgeres doctor", "install the same version of edgeres there")
_SIGNED = DocumentKind(_SignatureAnswer, "an answer of edgeres verify-signature", "install the same version there")
_STEPS = DocumentKind(_StepsDone, "a record of steps", "run it again")


@dataclass(frozen=True)
class RemoteResult:
    """What came back.

    Attributes:
        engines: those of the remote manifest; they are in the local bundle too.
        report: of the remote verification; None where none was asked for.
        checks: of the remote ``edgeres doctor``.
    """

    engines: tuple[EngineRecord, ...]
    report: Json | None
    checks: tuple[RemoteCheck, ...]

    @property
    def passed(self) -> bool:
        return self.report is None or bool(self.report["passed"])


def build_there(
    host: Host, bundle: Path, output: Path, choice: RemoteChoice, progress: Progress = SILENT
) -> RemoteResult:
    """Copy a bundle to a remote machine, build and verify it there, and fetch the results.

    The engine and its log go into ``bundle``, the report and the remote manifest into ``output``.

    Raises:
        EnvironmentError_: the machine cannot be reached, has no edgeres or another version, or its disk is full.
        EngineError: the machine cannot build an engine, or the vendor refuses.
        BundleError, InputError: the bundle is incomplete, or an answer is not valid.
    """
    opened = Bundle(bundle)
    opened.check()
    choice.keys.check(opened, progress)
    session = _Session.open(host, opened, choice, progress)
    with session.host.shared() as session.host:
        session.free_bytes = session.host.free_bytes(choice.directory)
        checks = session.doctor()
        session.copy()
        session.copy_signature()
        validation = session.copy_validation()
        session.build(checks)
        report = session.verify(validation, output, checks)
        result = RemoteResult(session.bring_home(output), report, checks)
        session.sign(result)
    return result


@dataclass
class _Session:
    """One bundle on one remote machine; ``state`` says which steps are done."""

    host: Host
    bundle: Bundle
    choice: RemoteChoice
    progress: Progress
    state: _StepsDone
    free_bytes: int = 1 << 62

    @property
    def name(self) -> str:
        return self.bundle.path.resolve().name

    @property
    def there(self) -> str:
        return f"{self.choice.directory}/{self.name}"

    @staticmethod
    def open(host: Host, bundle: Bundle, choice: RemoteChoice, progress: Progress) -> _Session:
        name = bundle.path.resolve().name
        progress.say(f"{host.name}: connecting")
        done = host.run(["sh", "-c", _PROBE, "sh", choice.directory, name, *choice.edgeres])
        if done.code:
            what = f"{choice.directory} cannot be made ({done.why})"
            raise EnvironmentError_(what, where=host.name, hint="--to DIR")
        said = dict(re.findall(r"^(edgeres|rsync|state)\b ?(.*)$", done.out, re.MULTILINE))
        _check_version(host, choice, said.get("edgeres", "127 "))
        both = "rsync" in said and shutil.which("rsync") is not None
        if not both:
            progress.say(f"{host.name}: no rsync on both sides, so files go by tar, and a cut one begins anew")
        return _Session(replace(host, rsync=both), bundle, choice, progress, _steps(said.get("state", "")))

    def doctor(self) -> tuple[RemoteCheck, ...]:
        """What the machine can do. Raises before anything is copied if it cannot build an engine."""
        text = _printed(self.host, self._edgeres("doctor", "--json"))
        checks = _CHECKS.decode(f'{{"checks": {text}}}'.encode(), f"{self.host.name}: edgeres doctor").checks
        found = {check.name: check for check in checks}
        fit = [found[name] for name in ("jetson", "gpu", "cpu") if name in found and found[name].ok]
        if fit:
            self.progress.say(f"{self.host.name}: {fit[0].found}")
        if self.choice.target == "cpu":
            return checks
        builds = [check for name, check in found.items() if re.fullmatch(r"build \w+ engines", name)]
        if builds and not any(check.ok for check in builds):
            steps = "; ".join(dict.fromkeys(check.next_step for check in builds if check.next_step))
            raise EngineError("no engine can be built there", where=self.host.name, hint=steps or "see: edgeres doctor")
        return checks

    def copy(self) -> None:
        """Copy the bundle, its manifest last: a remote bundle with a manifest is complete."""
        files = {name: of for name, of in self.bundle.manifest.files.items() if not name.startswith(f"{ENGINES}/")}
        key = _digest(list(files.items()))
        if self.state.bundle == key:
            self.progress.say(f"{self.host.name}: the bundle is there already")
            return
        self._room(sum((self.bundle.path / name).stat().st_size for name in files))
        self.progress.say(f"{self.host.name}: copying the bundle")
        self.host.run(
            ["sh", "-c", f'rm -rf "$1/{MANIFEST}" "$1/{SIGNATURE}" "$1/{ENGINES}"; mkdir -p "$1"', "sh", self.there]
        )
        self.host.send(self.bundle.path, list(files), self.there)
        manifest = replace(self.bundle.manifest, engines=(), files=files)
        self._write(f"{self.there}/{MANIFEST}", json.dumps(MANIFEST_KIND.content(manifest), indent=2) + "\n")
        self.state = _StepsDone(validation=self.state.validation)
        self._did("bundle", key)

    def copy_signature(self) -> None:
        """Copy the signature, which covers all but the engines there, and check it there where keys are trusted."""
        if (self.bundle.path / SIGNATURE).is_file():
            self.host.send(self.bundle.path, [SIGNATURE], self.there)
        trust = self.choice.keys.trust
        if trust is None:
            return
        keys = f"{self.choice.directory}/.{self.name}.keys"
        self._write(keys, trust.read_text())
        argv = self._edgeres("verify-signature", self.there, "--trust", keys, "--json")
        said = _printed(self.host, argv).encode()
        found = _SIGNED.decode(said, f"{self.host.name}: edgeres verify-signature").signed
        self.progress.say(f"{self.host.name}: signed by {found.signer} with {found.key}")
        for name in found.unsigned:
            self.progress.say(f"{self.host.name}: {name} was added after that, and is not signed")

    def sign(self, result: RemoteResult) -> None:
        """Sign the bundle with what came back, and take the signature there."""
        if self.choice.keys.key is None:
            return
        if not result.passed:
            self.progress.say("not signed, since it failed there")
            return
        self.choice.keys.sign(self.bundle.path, self.progress)
        self.copy_signature()

    def copy_validation(self) -> str | None:
        """Copy the validation images, unless they are generated, and return their remote path."""
        given = self.choice.validation
        if given is None or not Path(given).exists():
            return given
        path = Path(given).resolve()
        folder = path if path.is_dir() else path.parent
        paths = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        names = [p.relative_to(folder).as_posix() for p in paths]
        stats = [p.stat() for p in paths]
        key = _digest([[name, s.st_size, s.st_mtime_ns] for name, s in zip(names, stats, strict=True)])
        to = f"{self.choice.directory}/{self.name}.validation"
        if self.state.validation == key:
            self.progress.say(f"{self.host.name}: the images are there already")
        else:
            self._room(sum(s.st_size for s in stats))
            self.progress.say(f"{self.host.name}: copying {len(names)} {'images' if path.is_dir() else 'file'}")
            self.host.run(["mkdir", "-p", to])
            self.host.send(folder, names, to)
            self._did("validation", key)
        return to if path.is_dir() else f"{to}/{names[0]}"

    def copy_labels(self) -> tuple[str, ...]:
        """Copy the table of labels, and return the options that name it there."""
        if self.choice.labels is None:
            return ()
        table = self.choice.labels.resolve()
        to = f"{self.choice.directory}/{self.name}.labels/{sha256(table)[:16]}"  # so a changed table is another file
        self.host.run(["mkdir", "-p", to])
        self.host.send(table.parent, [table.name], to)
        return "--validation-labels", f"{to}/{table.name}"

    def build(self, checks: Sequence[RemoteCheck]) -> None:
        """Run the remote ``edgeres engine``, unless it was done with the same options and the same TensorRT."""
        if self.choice.target == "cpu":
            return
        target = () if self.choice.target is None else ("--target", self.choice.target)
        argv = self._edgeres("engine", self.there, *target, *self.choice.engine, "--json")
        key = _digest([self.state.bundle, argv, _machine(checks)])
        if self.state.engine == key:
            self.progress.say(f"{self.host.name}: the engine is built already")
            return
        self.progress.say(f"{self.host.name}: building the engine")
        _printed(self.host, argv, self.host.watch(argv, self._tell))
        self._did("engine", key)

    def verify(self, validation: str | None, output: Path, checks: Sequence[RemoteCheck]) -> Json | None:
        """The report of the remote ``edgeres verify``, or the local copy where that step is done."""
        if validation is None:
            return None
        images = ("--validation", validation, *self.copy_labels())
        argv = self._edgeres("verify", self.there, *images, *self.choice.verify, "--json")
        key = _digest([self.state.bundle, self.state.engine, self.state.validation, argv, _machine(checks)])
        kept = output / REPORT
        if self.state.verify == key and kept.is_file():
            self.progress.say(f"{self.host.name}: it is verified already, see {kept}")
            return read_report(kept)
        self.progress.say(f"{self.host.name}: verifying")
        from edgeres.pipeline.render import write_report

        text = _printed(self.host, argv, self.host.watch(argv, self._tell), codes=(0, 1))
        report = report_kind().content(report_kind().decode(text.encode(), f"{self.host.name}: edgeres verify"))
        output.mkdir(parents=True, exist_ok=True)
        write_report(output, report)
        self._did("verify", key)
        return report

    def bring_home(self, output: Path) -> tuple[EngineRecord, ...]:
        """Fetch engines and their logs into the local bundle, and the remote manifest into ``output``."""
        path = f"{self.there}/{MANIFEST}"
        there = MANIFEST_KIND.decode(self.host.run(["cat", path]).out.encode(), f"{self.host.name}:{path}")
        engines, digests = there.engines, there.files
        write_json(output / MANIFEST, MANIFEST_KIND.content(there))
        built = [record for record in engines if record.file]
        files = {name for record in built for name in (str(record.file), log_of(str(record.file))) if name in digests}
        wanted = sorted(name for name in files if self.bundle.manifest.files.get(name) != digests[name])
        if wanted:
            self._fetch(engines, wanted, digests)
        return engines

    def _fetch(self, engines: Sequence[EngineRecord], wanted: list[str], digests: Mapping[str, str]) -> None:
        self.progress.say(f"{self.host.name}: fetching {', '.join(wanted)}")
        here = self.bundle.path.resolve()
        waiting = here.with_name(f".{here.name}.fetched")  # stays after an interrupt: the next run continues it
        if waiting.is_symlink():
            raise BundleError("is a link, so nothing is fetched into it", where=waiting, hint="remove it")
        waiting.mkdir(exist_ok=True)
        self.host.fetch(self.there, wanted, waiting)
        contents = {}
        for name in wanted:
            with open_below(waiting, name) as stream:
                contents[name] = stream.read()
            if hashlib.sha256(contents[name]).hexdigest() != digests[name]:
                remove_below(waiting, name)
                raise BundleError(f"{name} did not arrive whole", where=self.host.name, hint="run it again")
        records = {r: contents.get(r.file) if r.file else None for r in engines if r.file is None or r.file in contents}
        self.bundle.add_engines(records, {name: data for name, data in contents.items() if name.endswith(".log")})
        shutil.rmtree(waiting, ignore_errors=True)

    def _tell(self, line: str) -> None:
        if not line.startswith("edgeres: "):  # the remote error line, which is raised here later
            self.progress.say(line)

    def _edgeres(self, *arguments: str) -> list[str]:
        return [*self.choice.edgeres, *arguments]

    def _room(self, needed: int) -> None:
        if needed > self.free_bytes:
            what = f"needs {needed / 1e6:.0f} MB there, and {self.free_bytes / 1e6:.0f} MB are free"
            raise EnvironmentError_(what, where=f"{self.host.name}:{self.choice.directory}", hint=FREE_SPACE)

    def _did(self, step: str, key: str) -> None:
        self.state = replace(self.state, **{step: key})
        self._write(f"{self.choice.directory}/.{self.name}.remote", json.dumps(_STEPS.content(self.state)) + "\n")

    def _write(self, path: str, text: str) -> None:
        """Write a small remote file completely or not at all."""
        done = self.host.run(["sh", "-c", 'cat > "$1.part" && mv "$1.part" "$1"', "sh", path], feed=text)
        if done.code:
            full = "No space left" in done.err
            what = "the disk there is full" if full else f"{path} cannot be written ({done.why})"
            raise EnvironmentError_(what, where=self.host.name, hint=FREE_SPACE if full else "check its permissions")


def _check_version(host: Host, choice: RemoteChoice, said: str) -> None:
    code, _, text = said.partition(" ")
    found = re.search(r"version ([\w.+-]+)", text)
    called = shlex.join(choice.edgeres)
    if code != "0" or found is None:
        hint = "install it there (pip install), or say where it is: --edgeres PATH or --python PATH"
        raise EnvironmentError_(f"there is no edgeres that answers to: {called} --version", where=host.name, hint=hint)
    if found[1] != __version__ and not choice.any_version:
        what = f"has edgeres {found[1]}, and this is {__version__}"
        raise EnvironmentError_(what, where=host.name, hint="install the same version there, or --any-version")


def _printed(host: Host, argv: Sequence[str], done: Done | None = None, codes: tuple[int, ...] = (0,)) -> str:
    """What a remote command of edgeres printed.

    Raises:
        EnvironmentError_, EngineError: the command failed; the message is its own error line.
    """
    done = done or host.run(argv)
    if done.code in codes:
        return done.out
    own = [line.removeprefix("edgeres: ") for line in done.err.splitlines() if line.startswith("edgeres: ")]
    if "No space left on device" in done.err:
        raise EnvironmentError_("the disk there is full", where=host.name, hint=FREE_SPACE)
    raise EngineError(own[-1] if own else f"{shlex.join(argv)} failed ({done.why})", where=host.name)


def _machine(checks: Sequence[RemoteCheck]) -> list[Any]:
    """What an engine depends on."""
    return [[c.name, c.found] for c in checks if c.name in ("gpu", "jetson", "tensorrt", "tensorrt_rtx")]


def _steps(text: str) -> _StepsDone:
    """The steps in a remote record; none where it is missing or damaged."""
    with suppress(InputError):
        return _STEPS.decode(text.encode(), "the record of steps")
    return _StepsDone()


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
