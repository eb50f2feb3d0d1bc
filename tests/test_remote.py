"""A bundle built and verified through a real ssh server on this machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import classifier, write_bundle, write_images
from click.testing import CliRunner
from PIL import Image
from sshd import Server, server

from edgeres import __version__
from edgeres.bundle import FP32, Bundle, log_of
from edgeres.cli.remote import command
from edgeres.errors import BundleError, EdgeresError, EngineError, EnvironmentError_, InputError, UsageError
from edgeres.graph.forms import FORMS, GRAPH_FILES
from edgeres.progress import Silent
from edgeres.remote.session import RemoteChoice, RemoteResult, build_there
from edgeres.remote.ssh import Host
from edgeres.signing import KeyChoice, check_all, sign, verify_signature

NAME = "my robot's.edgeres"
HERE = (sys.executable, "-m", "edgeres")


class Heard(Silent):
    """Progress that keeps what was said, and may press Ctrl-C at a line."""

    def __init__(self, stop_at: str = "\0") -> None:
        self.lines: list[str] = []
        self.stop_at = stop_at

    @contextmanager
    def task(self, name: str, total: int | None) -> Iterator[Any]:
        yield lambda steps: None

    def say(self, line: str) -> None:
        self.lines.append(line)
        if self.stop_at in line:
            raise KeyboardInterrupt

    def heard(self, words: str) -> bool:
        return any(words in line for line in self.lines)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    graph = classifier()
    return write_bundle(tmp_path / "here" / NAME, files={FP32: graph, **dict.fromkeys(GRAPH_FILES, graph)})


@pytest.fixture
def robot(sshd: Server) -> Host:
    return Host("robot", tuple(sshd.ssh.split()))


def choice(tmp_path: Path, **changes: Any) -> RemoteChoice:
    return RemoteChoice(**{"directory": str(tmp_path / "over there"), "edgeres": HERE, **changes})


def go(host: Host, bundle: Path, wanted: RemoteChoice, progress: Any = None) -> RemoteResult:
    return build_there(host, bundle, bundle.parent / "report", wanted, progress or Heard())


def engines(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("engines/*")}


@dataclass(frozen=True)
class Built:
    """What the one real build of this file left: ``there`` on the robot, ``here`` at home."""

    here: Path
    there: Path
    result: RemoteResult
    wanted: RemoteChoice


@pytest.fixture(scope="module")
def built(sshd: Server, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """An engine built over there by TensorRT-RTX."""
    pytest.importorskip("tensorrt_rtx", reason="builds a real engine at the other end")
    folder = tmp_path_factory.mktemp("built")
    graph = classifier()
    here = write_bundle(folder / "here" / NAME, files={FP32: graph, **dict.fromkeys(GRAPH_FILES, graph)})
    wanted = choice(folder, target="rtx", engine=("--also", "fp32"))
    result = go(Host("robot", tuple(sshd.ssh.split())), here, wanted)
    return Built(here, folder / "over there" / NAME, result, wanted)


def check_home(bundle: Path, there: Path, result: RemoteResult) -> None:
    """Every engine and log of the other end is here to the byte, sealed, and its manifest beside the report."""
    home = Bundle(bundle)
    home.check()
    records = [record for record in home.manifest.engines if record.file]
    assert {record.precision for record in records} == {"int8", "fp32"}
    assert {record.file for record in result.engines} == {record.file for record in records}
    for record in records:
        for name in (str(record.file), log_of(str(record.file))):
            assert (there / name).read_bytes() == home.file(name).read_bytes()
    assert json.loads((bundle.parent / "report" / "manifest.json").read_text())["files"] == Bundle(there).manifest.files


def test_an_engine_is_built_there_and_brought_home(built: Built) -> None:
    check_home(built.here, built.there, built.result)


def test_what_is_built_is_not_built_again(robot: Host, built: Built) -> None:
    if not shutil.which("rsync"):
        pytest.skip("rsync is not installed")
    before, again = engines(built.there), Heard()
    go(robot, built.here, built.wanted, again)
    assert not again.heard("files go by tar")
    assert again.lines[-2:] == ["robot: the bundle is there already", "robot: the engine is built already"]
    assert engines(built.there) == before


def test_files_go_by_tar_where_there_is_no_rsync(
    robot: Host, bundle: Path, built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There and back; the engines are those that were built for the test above."""
    which, first = shutil.which, Heard()
    monkeypatch.setattr(shutil, "which", lambda name, **more: None if name == "rsync" else which(name, **more))
    body = f"""cp -r "{built.there}/engines" "{built.there}/manifest.json" "$2"; echo '[]';;"""
    result = go(robot, bundle, choice(tmp_path, edgeres=script(tmp_path, body)), first)
    assert first.heard("files go by tar")
    there = tmp_path / "over there" / NAME
    Bundle(there).check()  # the graphs that were sent are those of the manifest
    check_home(bundle, there, result)


def test_a_bundle_is_verified_there(robot: Host, bundle: Path, tmp_path: Path) -> None:
    graph = classifier()
    bundle = write_bundle(bundle, files={FP32: graph, FORMS["tensorrt"].file: graph})  # whose latency is not measured
    images = write_images(tmp_path / "val set.npz", 12)
    wanted = choice(tmp_path, target="cpu", validation=str(images), verify=("--max-drop", "off", "--allow", "fp32"))
    result, again = go(robot, bundle, wanted), Heard()
    assert result.passed and result.report
    assert result.report["accuracy"]["fp32"]["total"] == 12
    assert json.loads((bundle.parent / "report" / "report.json").read_text()) == result.report
    assert go(robot, bundle, wanted, again).report == result.report
    told = ("the bundle is there", "the images are there", "it is verified")
    assert [line.partition(", see")[0] for line in again.lines[-3:]] == [f"robot: {what} already" for what in told]


def test_labels_of_loose_images_travel_with_them(robot: Host, bundle: Path, tmp_path: Path) -> None:
    graph = classifier()
    bundle = write_bundle(bundle, files={FP32: graph, FORMS["tensorrt"].file: graph})
    (tmp_path / "loose").mkdir()
    for number in range(12):
        Image.fromarray(np.full((9, 9, 3), 20 * number, np.uint8)).save(tmp_path / "loose" / f"{number}.png")
    table = tmp_path / "labels of mine.csv"
    given = {"target": "cpu", "validation": str(tmp_path / "loose"), "labels": table}
    wanted = choice(tmp_path, verify=("--max-drop", "off", "--allow", "fp32", "--allow", "labels"), **given)
    for count in (12, 8):  # a table that was changed is copied again
        table.write_text("".join(f"{number}.png,0\n" for number in range(count)))
        report = go(robot, bundle, wanted).report
        assert report and report["accuracy"]["fp32"]["total"] == count


def test_an_interrupted_run_goes_on_where_it_stopped(robot: Host, bundle: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "val.npz", 12)
    wanted = choice(tmp_path, target="cpu", validation=str(images), edgeres=script(tmp_path, "exit 3;;"))

    def until_verifying(path: Path) -> Heard:
        heard = Heard("verifying")
        with pytest.raises(KeyboardInterrupt):
            go(robot, path, wanted, heard)
        return heard

    first, second = until_verifying(bundle), until_verifying(bundle)
    assert first.heard("copying the bundle") and first.heard("copying 1 file")
    assert second.heard("the bundle is there already") and second.heard("the images are there already")
    (tmp_path / "over there" / NAME / "manifest.json").unlink()  # what was done is not there any more
    assert until_verifying(bundle).heard("copying the bundle")
    changed = write_bundle(bundle, files={FP32: classifier(seed=1), FORMS["cpu"].file: classifier(seed=1)})
    last = until_verifying(changed)
    assert last.heard("copying the bundle") and last.heard("the images are there already")


def script(tmp_path: Path, body: str) -> tuple[str, ...]:
    """Something at the other end in place of edgeres."""
    path = tmp_path / "edgeres.sh"
    path.write_text(f"""
        case $1 in
        --version) echo "edgeres, version {__version__}";;
        doctor) echo '[]';;
        *) {body}
        esac
    """)
    return ("sh", str(path))


_ADD = """
import sys
from edgeres.bundle import Bundle
from edgeres.records import EngineRecord
record = EngineRecord("rtx", "rtx", "1.7.1", "int8", "built, not run here", "engines/rtx-1.7.1.engine", 3)
Bundle(sys.argv[1]).add_engines({record: b"abc"}, {"engines/rtx-1.7.1.log": b"said"})
"""


@pytest.fixture
def signing(tmp_path: Path) -> RemoteChoice:
    """An edgeres over there that checks signatures, and whose engines are three bytes."""
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed")
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "me", "-f", str(tmp_path / "key")]
    subprocess.run(command, check=True)
    (tmp_path / "add.py").write_text(_ADD)
    body = f"""case $1 in
        engine) "{sys.executable}" "{tmp_path / "add.py"}" "$2" && echo '[]';;
        verify-signature) exec "{sys.executable}" -m edgeres "$@";;
        *) echo '{{}}';;
        esac;;"""
    keys = KeyChoice(tmp_path / "key.pub", tmp_path / "key")
    return choice(tmp_path, edgeres=script(tmp_path, body), keys=keys)


def test_what_came_back_is_signed_here_and_trusted_there(
    robot: Host, bundle: Path, tmp_path: Path, signing: RemoteChoice
) -> None:
    sign(Bundle(bundle), tmp_path / "key")
    heard, trust = Heard(), tmp_path / "key.pub"
    go(robot, bundle, replace(signing, keys=KeyChoice(trust)), heard)
    assert heard.heard("robot: signed by trusted with ED25519")
    assert verify_signature(Bundle(bundle), trust).unsigned == ("engines/rtx-1.7.1.engine",)
    go(robot, bundle, signing, heard)
    for place in (bundle, tmp_path / "over there" / NAME):
        found = check_all(Bundle(place), trust)
        assert (found.engines, found.unsigned) == (("engines/rtx-1.7.1.engine",), ())


def test_nothing_is_sent_that_no_trusted_key_signed(
    robot: Host, bundle: Path, tmp_path: Path, signing: RemoteChoice
) -> None:
    with pytest.raises(BundleError, match="is not signed"):
        go(robot, bundle, signing)
    sign(Bundle(bundle), tmp_path / "key")
    write_bundle(bundle, files={FP32: classifier(seed=3)})
    with pytest.raises(BundleError, match=r"is not signed|was changed"):
        go(robot, bundle, signing)
    missing = replace(signing, keys=KeyChoice(None, tmp_path / "no key"))
    with pytest.raises(InputError, match="no such key"):
        go(robot, bundle, missing)
    assert not (tmp_path / "over there").exists()


def test_what_was_swapped_over_there_is_found(robot: Host, bundle: Path, tmp_path: Path, signing: RemoteChoice) -> None:
    sign(Bundle(bundle), tmp_path / "key")
    go(robot, bundle, signing)
    there = tmp_path / "over there" / NAME
    (there / FP32).write_bytes(classifier(seed=5))
    with pytest.raises(EngineError, match="was changed after it was written"):
        go(robot, bundle, signing)


def test_what_failed_there_is_not_signed(
    robot: Host, bundle: Path, tmp_path: Path, signing: RemoteChoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign(Bundle(bundle), tmp_path / "key")
    monkeypatch.setattr(RemoteResult, "passed", False)
    heard = Heard()
    go(robot, bundle, signing, heard)
    assert heard.heard("not signed, since it failed there")
    assert verify_signature(Bundle(bundle), tmp_path / "key.pub").unsigned == ("engines/rtx-1.7.1.engine",)


def test_ctrl_c_stops_what_runs_over_there(robot: Host, bundle: Path, tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    body = f"""trap 'echo yes > "{stopped}"; exit 130' TERM; echo begun >&2; i=0
        while [ $i -lt 300 ]; do sleep 0.1; i=$((i+1)); done;;"""
    with pytest.raises(KeyboardInterrupt):
        go(robot, bundle, choice(tmp_path, edgeres=script(tmp_path, body)), Heard("begun"))
    for _ in range(100):
        if stopped.exists():
            break
        robot.run(["sleep", "0.1"])
    assert stopped.read_text() == "yes\n"


def test_what_edgeres_says_over_there_is_said_here(robot: Host, bundle: Path, tmp_path: Path) -> None:
    wanted = choice(tmp_path, edgeres=script(tmp_path, "echo 'edgeres: no GPU; buy one' >&2; exit 3;;"))
    with pytest.raises(EngineError, match=r"^robot: no GPU; buy one$"):
        go(robot, bundle, wanted)
    wanted = choice(tmp_path, edgeres=script(tmp_path, "echo 'write: No space left on device' >&2; exit 3;;"))
    with pytest.raises(EnvironmentError_, match=r"^robot: the disk there is full; free some space"):
        go(robot, bundle, wanted)


def test_a_machine_that_can_build_nothing_gets_no_copy(robot: Host, bundle: Path, tmp_path: Path) -> None:
    check = {"name": "build RTX engines", "ok": None, "found": "no", "next_step": "pip install 'edgeres[rtx]'"}
    path = tmp_path / "doctor.json"
    path.write_text(json.dumps([check]))
    (tmp_path / "edgeres.sh").write_text(
        f'[ "$1" = doctor ] && cat "{path}" || echo "edgeres, version {__version__}"\n'
    )
    with pytest.raises(EngineError, match=r"robot: no engine can be built there; pip install 'edgeres\[rtx\]'"):
        go(robot, bundle, choice(tmp_path, edgeres=("sh", str(tmp_path / "edgeres.sh"))))
    assert list((tmp_path / "over there").iterdir()) == []


def test_no_edgeres_and_another_edgeres(robot: Host, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentError_, match="no edgeres that answers to: /no/edgeres --version; install it there"):
        go(robot, bundle, choice(tmp_path, edgeres=("/no/edgeres",)))
    (tmp_path / "old.sh").write_text("echo edgeres, version 0.0.1")
    with pytest.raises(EnvironmentError_, match=rf"robot: has edgeres 0\.0\.1, and this is {__version__}; install"):
        go(robot, bundle, choice(tmp_path, edgeres=("sh", str(tmp_path / "old.sh"))))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"Port": "1"}, "robot: no ssh server answers there; check the port"),
        ({"IdentityFile": "stranger"}, "robot: it refuses your key; ssh-copy-id robot"),
        ({"UserKnownHostsFile": "/dev/null"}, "robot: its host key is not known; ssh -F {config} robot once"),
    ],
)
def test_a_machine_that_lets_nobody_in(
    sshd: Server, bundle: Path, tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    changes = {
        key: str(sshd.config.with_name(value)) if value == "stranger" else value for key, value in changes.items()
    }
    ssh = sshd.other("-".join(changes), **changes)
    with pytest.raises(EnvironmentError_) as caught:
        go(Host("robot", tuple(ssh.split())), bundle, choice(tmp_path))
    assert str(caught.value).startswith(words.format(config=ssh.split()[-1])) and "\n" not in str(caught.value)


def test_a_disk_that_is_full(bundle: Path, tmp_path: Path, robot: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Host, "free_bytes", lambda self, folder: 100)
    with pytest.raises(EnvironmentError_, match=r"needs 0 MB there, and 0 MB are free; free some space"):
        go(robot, bundle, choice(tmp_path, target="cpu"))
    full = tmp_path / "ssh"
    full.write_text(
        "#!/bin/sh\ncat > /dev/null\necho 'tar: x: Wrote only 512 bytes: No space left on device' >&2; exit 2\n"
    )
    full.chmod(0o755)
    with pytest.raises(EnvironmentError_, match="robot: the disk there is full"):
        Host("robot", (str(full),), rsync=False).send(bundle, ["labels.txt", FP32], "x")


def test_a_file_that_was_cut_goes_on(robot: Host, tmp_path: Path) -> None:
    """rsync finds the part in .rsync-partial and sends the rest."""
    if not shutil.which("rsync"):
        pytest.skip("rsync is not installed")
    (tmp_path / "from").mkdir()
    (tmp_path / "to" / ".rsync-partial").mkdir(parents=True)
    content = bytes(range(256)) * 4000
    (tmp_path / "from" / "a b").write_bytes(content)
    (tmp_path / "to" / ".rsync-partial" / "a b").write_bytes(content[:700_000])
    robot.send(tmp_path / "from", ["a b"], str(tmp_path / "to"))
    assert (tmp_path / "to" / "a b").read_bytes() == content
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["a b"]


def test_words_of_a_login_script_are_left_out(robot: Host, tmp_path: Path) -> None:
    noisy = tmp_path / "ssh"
    noisy.write_text(f'#!/bin/sh\necho "Welcome to Ubuntu"\nexec {" ".join(robot.ssh)} "$@"\n')
    noisy.chmod(0o755)
    done = Host("robot", (str(noisy),)).run(["printf", "%s|", "a b", "$HOME", "it's"])
    assert (done.code, done.out) == (0, "a b|$HOME|it's|")


@pytest.mark.parametrize("name", ["-oProxyCommand=x", "a b", "", "host:22", "me@host/x"])
def test_what_is_no_host(name: str) -> None:
    with pytest.raises(UsageError, match="is not a host"):
        Host(name)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ssh", '"'], "--ssh: is not a command"),
        (["--ssh", " "], "--ssh: names no command"),
        (["--ssh", "no-such-ssh -p 1"], "no such command: no-such-ssh"),
        (["--validation", "/no/where"], "/no/where: does not exist"),
        (["--", "--max-drop", "1"], "options behind --: are for edgeres verify, which needs images"),
        (["--to", "~/bundles"], "--to: is relative to the home folder there anyway"),
    ],
)
def test_the_command_refuses_what_cannot_work_at_once(bundle: Path, arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(command, ["robot", str(bundle), *arguments])
    assert isinstance(done.exception, EdgeresError)
    assert words in str(done.exception)


def test_options_travel(sshd: Server, bundle: Path, tmp_path: Path) -> None:
    """What was said about engines and gates is what edgeres over there is told."""
    asked = tmp_path / "asked"
    body = f"""echo "$@" >> "{asked}"; [ $1 = engine ] && echo '[]' || {{ echo 'edgeres: enough' >&2; exit 3; }};;"""
    fake = " ".join(script(tmp_path, body))
    arguments = ["robot", str(bundle), "--ssh", sshd.ssh, "--edgeres", fake, "--to", str(tmp_path / "there")]
    options = ["--also", "fp16", "--also", "fp32", "--builder-level", "5", "--version-compatible"]
    options += ["--form", "half", "--no-tune", "--time-budget", "90", "--min-sqnr", "12"]
    done = CliRunner().invoke(command, [*arguments, *options, "--validation", "signs:4", "--", "--max-drop", "0.5"])
    assert str(done.exception) == "robot: enough"
    there = f"{tmp_path}/there/{NAME}"
    assert asked.read_text().splitlines() == [
        f"engine {there} --also fp16 --also fp32 --builder-level 5 --version-compatible --form half --no-tune "
        "--time-budget 90.0 --min-sqnr 12.0 --json",
        f"verify {there} --validation signs:4 --max-drop 0.5 --json",
    ]


def test_a_failed_gate_there_fails_here() -> None:
    assert RemoteResult((), None, []).passed
    assert [RemoteResult((), {"passed": passed}, []).passed for passed in (True, False)] == [True, False]
