"""What belongs to the repository and not to the package: what CI installs of the system, and the quick tests."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SYSTEM = REPOSITORY / ".ci" / "system"


def needs() -> dict[str, str]:
    """The Debian package for each program that .ci/system looks for."""
    (table,) = re.findall(r'^NEEDS="\n(.*?)^"', SYSTEM.read_text(encoding="utf-8"), re.S | re.M)
    rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines()]
    assert all(len(row) == 3 for row in rows)
    return {name: package for names, package, _ in rows for name in names.split()}


def run_system(folder: Path, *, user: int, apt_get: str | None) -> tuple[list[str], list[str]]:
    """What .ci/system prints and what it passes to apt-get, on a machine that has none of the programs."""
    programs = {"id": f"echo {user}"} | ({"apt-get": apt_get} if apt_get else {})
    for name, body in programs.items():
        (folder / name).write_text(f"#!/bin/bash\necho {name} $* >> {folder}/calls\n{body}\n")
        (folder / name).chmod(0o755)
    for name in ("bash", "tail", "rm", "chmod"):
        (folder / name).symlink_to(str(shutil.which(name)))
    (folder / "system").write_text(
        SYSTEM.read_text().replace(":/usr/sbin:/sbin", "").replace("/usr/include/", "/none/")
    )
    env = {"PATH": str(folder), "POLICY_RC_D": str(folder / "policy")}
    done = subprocess.run([folder / "bash", folder / "system"], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (folder / "policy").exists()
    calls = (folder / "calls").read_text().splitlines()
    return done.stdout.splitlines(), [call for call in calls if call.startswith("apt-get")]


def test_what_is_missing_is_installed_and_said(tmp_path: Path) -> None:
    services_stay_off = f"""case "$*" in *install*) [ "$({tmp_path}/policy; echo $?)" = 101 ];; esac"""
    lines, calls = run_system(tmp_path, user=0, apt_get=services_stay_off)
    packages = list(dict.fromkeys(needs().values()))
    assert [line.split(" (")[0] for line in lines] == [f"{package}: installing" for package in packages]
    assert calls[0].endswith(" update")
    assert calls[1].endswith(f"install --yes --no-install-recommends {' '.join(packages)}")


@pytest.mark.parametrize(("user", "apt_get"), [(1000, "true"), (0, None)], ids=["not root", "no apt-get"])
def test_without_root_or_apt_get_it_only_says_what_is_missing(tmp_path: Path, user: int, apt_get: str | None) -> None:
    lines, calls = run_system(tmp_path, user=user, apt_get=apt_get)
    assert calls == []
    said = [line.split(" (")[0] for line in lines]
    assert said == [f"{p}: not installed, tests that need it are skipped" for p in dict.fromkeys(needs().values())]


def test_it_goes_on_where_apt_get_fails(tmp_path: Path) -> None:
    lines, _ = run_system(tmp_path, user=0, apt_get="echo E: no such host >&2; exit 100")
    assert lines[-1] == "apt-get failed, tests that need these packages are skipped: E: no such host"


def test_what_is_there_is_not_named(tmp_path: Path) -> None:
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n")
    (tmp_path / "id").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}:/usr/sbin:/sbin"
    done = subprocess.run(["bash", SYSTEM], env={"PATH": path}, capture_output=True, text=True, check=True)
    there = {package for name, package in needs().items() if shutil.which(name, path=path)}
    assert "git" in there
    assert [line for line in done.stdout.splitlines() if line.split(":")[0] in there] == []


def test_every_program_that_tests_look_for_is_installed_by_ci() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (REPOSITORY / "tests").rglob("*.py")]
    wanted = {name for source in sources for name in re.findall(r'shutil\.which\("([\w+.-]+)"', source)}
    assert {"sshd", "rsync", "chromium", "cmake"} <= wanted
    # ssh-keygen comes with ssh. hadolint and colcon are not in Debian, and a variable asks for the emulated Jetson.
    assert wanted - needs().keys() - {"ssh-keygen", "hadolint", "colcon", "qemu-aarch64-static"} == set()


# make quick


def quick_modules() -> frozenset[str]:
    spec = importlib.util.spec_from_file_location("settings_of_tests", REPOSITORY / "tests" / "conftest.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names: frozenset[str] = module.QUICK
    return names


def test_quick_modules_exist() -> None:
    assert quick_modules() <= {path.name for path in (REPOSITORY / "tests").iterdir()}


def test_a_quick_run_starts_nothing_and_imports_nothing_slow(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    shutil.copy(REPOSITORY / "tests" / "conftest.py", tmp_path / "tests")
    quick, other = sorted(quick_modules())[0], "test_other.py"
    attempts = {
        "process": "subprocess.run(['true'])",
        "worker": "multiprocessing.get_context('spawn').Process(target=print).start()",
        "fork": "os.fork() or os._exit(0)",
        "server": "socket.create_server(('127.0.0.1', 0))",
        "model": "importlib.import_module('torch')",
        "engine": "importlib.import_module('tensorrt_rtx')",
        "nothing": "pass",
    }
    source = "import importlib, multiprocessing, os, socket, subprocess\n"
    source += "".join(
        f"def test_{name}():\n    try: {line}\n    except Exception: pass\n" for name, line in attempts.items()
    )
    for name in (quick, other):
        (tmp_path / "tests" / name).write_text(source)
    words = [sys.executable, "-m", "pytest", "--quick", "-rs", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert "1 passed, 6 skipped" in done.stdout, done.stdout
    reasons = ["starts a process", "starts a server", "imports torch", "imports tensorrt_rtx"]
    assert [f"not quick: {reason}" in done.stdout for reason in reasons] == [True] * 4
