"""What is installed where: what pip chooses for each platform, edgeres as a wheel, and its way onto a robot by ssh."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bundles import classifier, write_bundle
from click.testing import CliRunner
from sshd import Server, server

from edgeres import __version__
from edgeres.bundle import FP32
from edgeres.cli.remote import command
from edgeres.errors import EdgeresError, EnvironmentError_, InputError
from edgeres.graph.forms import FORMS
from edgeres.remote import install, wheels
from edgeres.remote.ssh import Host
from edgeres.remote.wheels import RemotePython, chosen, own_wheel

ROOT = Path(__file__).resolve().parents[1]
SYSTEM = "/usr/bin/python3"
JETPACK_6 = RemotePython("3.10.12", "aarch64", "2.35")
JETPACK_7 = RemotePython("3.12.3", "aarch64", "2.39")


def or_skip(work: Any) -> Any:
    """What needs a package index, which not every machine has."""
    try:
        return work()
    except EnvironmentError_ as error:
        if "No matching distribution" in str(error) or "network" in str(error):
            pytest.skip(f"no package index: {error}")
        raise


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(or_skip(lambda: own_wheel(tmp_path_factory.mktemp("own"))))


PLATFORMS = {
    "JetPack 6": (JETPACK_6, {"numpy": "1.", "cuda-python": "12.", "onnxruntime": "1.23.", "tomli": "2."}),
    "JetPack 7": (JETPACK_7, {"numpy": "2.", "cuda-python": "13.", "onnxruntime": "1."}),
    "Arm, Python 3.11": (RemotePython("3.11.2", "aarch64", "2.36"), {"numpy": "2.", "onnxruntime": "1."}),
    "Arm, Python 3.13": (RemotePython("3.13.5", "aarch64", "2.41"), {"numpy": "2.", "onnxruntime": "1."}),
    "PC, Python 3.10": (RemotePython("3.10.12", "x86_64", "2.35"), {"numpy": "2.", "cuda-python": "1", "tomli": "2."}),
    "PC, Python 3.11": (RemotePython("3.11.2", "x86_64", "2.36"), {"numpy": "2.", "onnxruntime": "1."}),
    "PC, Python 3.12": (RemotePython("3.12.3", "x86_64", "2.39"), {"numpy": "2.", "onnxruntime": "1."}),
    "PC, Python 3.13": (RemotePython("3.13.5", "x86_64", "2.41"), {"numpy": "2.", "onnxruntime": "1."}),
}
# The others differ from these in nothing that a marker asks for; they take 10 s each.
SAMPLE = ("JetPack 6", "JetPack 7")


@pytest.mark.parametrize("name", PLATFORMS)
def test_what_pip_chooses(own: Path, tmp_path: Path, name: str) -> None:
    """From the package index as it is: every dependency has a wheel, and numpy and CUDA's bindings fit JetPack."""
    if name not in SAMPLE and "EDGERES_ALL_PLATFORMS" not in os.environ:
        pytest.skip("EDGERES_ALL_PLATFORMS=1 tries all of them")
    python, wanted = PLATFORMS[name]
    found = or_skip(lambda: chosen(python, [f"{own}[cuda]"], tmp_path / "nowhere"))
    assert found["edgeres"] == __version__
    assert {"click", "msgspec", "numpy", "onnxruntime", "pillow", "rich"} <= found.keys()
    assert {package: found[package] for package, start in wanted.items() if not found[package].startswith(start)} == {}
    assert ("tomli" in found) is (python.minor == "3.10")


def test_markers_of_the_other_machine_count(own: Path) -> None:
    """Read from the wheel by packaging, for every platform: what is asked for besides the names."""
    from packaging.requirements import Requirement

    with zipfile.ZipFile(own) as archive:
        metadata = archive.read(f"edgeres-{__version__}.dist-info/METADATA").decode()
    needs = [Requirement(line.partition(": ")[2]) for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    limits = {
        name: {
            str(need.specifier)
            for need in needs
            if need.marker is None or any(need.marker.evaluate({**python.markers(), "extra": e}) for e in ("", "cuda"))
            if str(need.specifier).startswith("<")
        }
        for name, (python, _) in PLATFORMS.items()
    }
    assert limits.pop("JetPack 6") == {"<2", "<13"}
    assert set(map(frozenset, limits.values())) == {frozenset()}


def test_a_package_that_is_not_there_for_that_machine(tmp_path: Path, own: Path) -> None:
    with pytest.raises(EnvironmentError_, match=r"no wheels for Python 3\.10 on riscv64, glibc 2\.35 \(") as caught:
        chosen(RemotePython("3.10.12", "riscv64", "2.35"), ["numpy"], tmp_path)
    assert "\n" not in str(caught.value)


def test_the_wheel_and_the_sdist_hold_the_same_package(own: Path, tmp_path: Path) -> None:
    """The source distribution has what a wheel is built from, and the wheel every file of the package."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "edgeres", copy / "edgeres", ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta; print(build_meta.build_sdist('dist'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=copy, capture_output=True, text=True, check=False)
    if "No module named 'setuptools'" in done.stderr:
        pytest.skip("setuptools is not installed")
    assert done.returncode == 0, done.stderr
    with tarfile.open(copy / "dist" / done.stdout.split()[-1]) as archive:
        sent = {name.partition("/")[2] for name in archive.getnames()}
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "edgeres").rglob("*") if path.is_file()}
    there = {name for name in there if "__pycache__" not in name}
    with zipfile.ZipFile(own) as packed:
        inside = {name for name in packed.namelist() if ".dist-info/" not in name}
    assert inside == there
    assert sent >= there | {"pyproject.toml", "README.md", "LICENSE"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty home."""
    return tmp_path_factory.mktemp("robot")


@pytest.fixture(scope="module")
def sshd(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A robot on this machine: its commands run in the empty home, without any network where the kernel lets us."""
    cut = subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode == 0
    force = (
        f'cd {home} && HOME={home} PATH=/usr/bin:/bin exec {"unshare -n " if cut else ""}sh -c "$SSH_ORIGINAL_COMMAND"'
    )
    with server(tmp_path_factory.mktemp("sshd"), force) as running:
        yield running


@pytest.fixture
def robot(sshd: Server) -> Host:
    return Host("robot", tuple(sshd.ssh.split()))


class Heard:
    """Progress that keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def task(self, name: str, total: int | None) -> Any:
        raise NotImplementedError

    def say(self, line: str) -> None:
        self.lines.append(line)


def test_a_robot_without_edgeres_and_without_internet(
    robot: Host, home: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its Python gets edgeres as it is here, loads a bundle, and is left alone the second time."""
    monkeypatch.setattr(wheels, "own_wheel", lambda folder: shutil.copy(own, folder))
    first, second = Heard(), Heard()
    found = or_skip(lambda: install.install(robot, "edge res", None, first))
    assert found.edgeres == ("edge res/venv/bin/python", "-m", "edgeres")
    assert first.lines[-1] == "robot: installing edgeres in edge res/venv"
    assert robot.run([*found.edgeres, "--version"]).out == f"edgeres, version {__version__}\n"
    graph = classifier()
    bundle = write_bundle(home / "b.edgeres", files={FP32: graph, FORMS["cpu"].file: graph})
    program = (
        "import edgeres, numpy, sys; print(edgeres.__file__);"
        "print(edgeres.load(sys.argv[1])(numpy.zeros((9, 9, 3), numpy.uint8)).label)"
    )
    said = robot.run([found.edgeres[0], "-c", program, str(bundle)]).out.splitlines()
    assert Path(said[0]).is_relative_to(home / "edge res/venv") and len(said) == 2
    checks = {check["name"]: check for check in json.loads(robot.run([*found.edgeres, "doctor", "--json"]).out)}
    assert checks["run on the CPU"]["found"] == "yes"
    install.install(robot, "edge res", None, second)
    assert second.lines[-1] == "robot: edgeres is installed already"
    again = "from edgeres.remote.wheels import own_wheel; from pathlib import Path; print(own_wheel(Path('.')))"
    packed = robot.run([found.edgeres[0], "-c", again]).out.strip()
    with zipfile.ZipFile(own) as one, zipfile.ZipFile(home / packed) as other:
        assert {n for n in one.namelist() if n.startswith("edgeres/")} == {
            n for n in other.namelist() if n.startswith("edgeres/")
        }


def python(home: Path, answer: str) -> str:
    """A Python on the robot that answers like this."""
    path = home / "python"
    path.write_text(f"#!/bin/sh\n{answer}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (
            """echo '{"python": "3.8.10", "machine": "aarch64", "glibc": "2.31"}'""",
            EnvironmentError_,
            r"python is Python 3\.8\.10, and edgeres needs 3\.10; install one there, or say where it is: --python PATH",
        ),
        ("echo hello", InputError, "robot: .*python"),
        ("""echo '{"python": "3.10.1", "machine": "a b; rm", "glibc": "2.35"}'""", InputError, "machine is a word"),
        ("""echo '{"python": "3.10.1", "machine": "aarch64", "glibc": ""}'""", InputError, "glibc is a version"),
        ("echo broken >&2; exit 1", EnvironmentError_, r"does not run \(broken\)"),
    ],
)
def test_a_python_that_does_not_do(robot: Host, home: Path, answer: str, kind: type[EdgeresError], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        install.install(robot, "edgeres", python(home, answer))
    assert "\n" not in str(caught.value)


def test_an_environment_that_cannot_be_made(robot: Host, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Ubuntu without python3-venv."""

    def fetched(python: RemotePython, folder: Path) -> list[str]:
        names = ["edgeres-1-py3-none-any.whl", "pip-1-py3-none-any.whl"]
        for name in names:
            with zipfile.ZipFile(folder / name, "w") as archive:
                archive.writestr("content", name)
        return names

    monkeypatch.setattr(install, "fetch", fetched)
    answer = """[ "$1" = -c ] && echo '{"python": "3.10.1", "machine": "aarch64", "glibc": "2.35"}' && exit
        echo 'No module named venv' >&2; exit 1"""
    with pytest.raises(
        EnvironmentError_, match=r"installed there \(No module named venv\); sudo apt install python3-v"
    ):
        install.install(robot, "edgeres", python(home, answer))


def test_no_python_at_all(robot: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "_FIND", "exit 1")
    with pytest.raises(EnvironmentError_, match=r"robot: has no Python 3\.10 or later; install one there"):
        install.install(robot, "edgeres")


def test_what_contradicts_install(robot: Host, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b.edgeres", files={FP32: classifier()})
    done = CliRunner().invoke(command, ["robot", str(bundle), "--install", "--edgeres", "edgeres"])
    assert "leave out --edgeres or --install" in str(done.exception)
