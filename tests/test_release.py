"""What a release is made of: one version, a wheel with every file of the package, a workflow that publishes it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from edgeres._version import __version__
from edgeres.cli import cli
from edgeres.device.environment import environment

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this checkout, built without a network."""
    copy, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "edgeres", copy / "edgeres", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run([sys.executable, "-c", BUILD, str(made)], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(made.glob("*.whl")))


def test_the_wheel_holds_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    here = {p.relative_to(ROOT).as_posix() for p in (ROOT / "edgeres").rglob("*") if p.is_file()}
    here = {name for name in here if "__pycache__" not in name}
    assert {name for name in wheel.namelist() if name.startswith("edgeres/")} == here


def test_the_version_comes_from_one_place(wheel: zipfile.ZipFile) -> None:
    stated = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = message_from_bytes(wheel.read(stated))
    assert metadata["Version"] == __version__ and metadata["License-Expression"] == "Apache-2.0"
    others = [
        p for p in (ROOT / "edgeres").rglob("*.py") if p.name != "_version.py" and f'"{__version__}"' in p.read_text()
    ]
    assert others == []


def test_the_version_in_words_and_as_json() -> None:
    assert CliRunner().invoke(cli, ["--version"]).output == f"edgeres, version {__version__}\n"
    for words in (["--version", "--json"], ["--json", "--version"]):
        assert json.loads(CliRunner().invoke(cli, words).output) == environment()
    wrong = CliRunner().invoke(cli, ["--json", "models"])
    assert wrong.exit_code == 2 and "--json goes with --version, or behind the command" in wrong.output


def test_a_tag_publishes_what_was_tested() -> None:
    assert (ROOT / "docs/examples/deploy/Dockerfile.x86_64").is_file()
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    jobs = workflow["jobs"]
    assert workflow[True]["push"]["tags"] == ["v*"]  # YAML 1.1 reads "on" as true
    assert workflow["permissions"] == {"contents": "read"}
    steps = [step.get("run", "") for step in jobs["build"]["steps"]]
    order = ["_version.py", ".ci/run", ".ci/audit --strict", "twine check --strict", "pip install --constraint"]
    places = [next(i for i, step in enumerate(steps) if word in step) for word in order]
    assert places == sorted(places)
    assert jobs["pypi"]["needs"] == jobs["container"]["needs"] == "build"
    check = steps[places[0]].removeprefix("test ").replace("$GITHUB_REF_NAME", f"v{__version__}")
    assert subprocess.run(["sh", "-c", f"test {check}"], cwd=ROOT).returncode == 0
    for script in (".ci/run", ".ci/audit"):
        assert (ROOT / script).stat().st_mode & 0o111
