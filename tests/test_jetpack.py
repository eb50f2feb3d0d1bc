"""Why Python does not find the system's TensorRT: each case has its own words and one step."""

from __future__ import annotations

import subprocess
import sys
import venv
from dataclasses import replace
from pathlib import Path

import pytest

from edgeres.device import libraries
from edgeres.device.jetpack import Interpreter, why_missing
from edgeres.errors import EngineError


def jetpack(root: Path, version: str = "3.10", *, tag: str = "", folder: str = "") -> Path:
    """A system with TensorRT's package for a Python; its dist-packages."""
    packages = root / "usr/lib" / (folder or f"python{version}") / "dist-packages"
    (packages / "tensorrt").mkdir(parents=True)
    (packages / "tensorrt" / f"tensorrt{tag}.so").write_text("")
    return packages


def libraries_of(root: Path) -> None:
    folder = root / "usr/lib/aarch64-linux-gnu"
    folder.mkdir(parents=True)
    (folder / "libnvinfer.so.10").write_text("")


@pytest.fixture
def here(tmp_path: Path) -> Interpreter:
    """A virtual environment that sees itself alone."""
    return Interpreter("3.10", Path("/home/me/venv"), ("/home/me/venv/lib/python3.10/site-packages",), (), tmp_path)


def test_a_virtual_environment_that_does_not_see_the_system(here: Interpreter, tmp_path: Path) -> None:
    packages = jetpack(tmp_path)
    assert why_missing(here) == (
        f"this virtual environment does not see the system's TensorRT in {packages}",
        "sed -i 's/include-system-site-packages = false/include-system-site-packages = true/' /home/me/venv/pyvenv.cfg",
    )
    found = why_missing(replace(here, stubs=("tensorrt",)))
    assert found is not None and found[1].endswith("pyvenv.cfg, and pip uninstall tensorrt")


def test_a_stub_in_front_of_the_system(here: Interpreter, tmp_path: Path) -> None:
    packages = jetpack(tmp_path)
    sees = replace(here, path=(*here.path, str(packages)), stubs=("tensorrt", "tensorrt-cu12"))
    assert why_missing(sees) == (
        f"pip's tensorrt tensorrt-cu12 hides the system's TensorRT in {packages}",
        "pip uninstall tensorrt tensorrt-cu12",
    )


@pytest.mark.parametrize("how", [{"version": "3.12"}, {"folder": "python3", "tag": ".cpython-312-aarch64-linux-gnu"}])
def test_the_system_has_it_for_another_python(here: Interpreter, tmp_path: Path, how: dict[str, str]) -> None:
    packages = jetpack(tmp_path, **how)
    found = why_missing(here)
    assert found is not None
    assert found[0] == f"the system's TensorRT in {packages} is for Python 3.12, and this is Python 3.10"
    assert found[1].endswith("python3.12 -m venv --system-site-packages DIR")


def test_libraries_without_the_python_package(here: Interpreter, tmp_path: Path) -> None:
    libraries_of(tmp_path)
    assert why_missing(here) == (
        "TensorRT's libraries are installed, its Python package is not",
        "sudo apt install python3-libnvinfer",
    )


def test_a_stub_alone_and_nothing_at_all(here: Interpreter) -> None:
    found = why_missing(replace(here, stubs=("tensorrt",)))
    assert found == (
        "pip's tensorrt is a stub, whose libraries come from NVIDIA's own index",
        "install TensorRT as NVIDIA's installation guide says; on a Jetson take JetPack's:"
        " sudo apt install python3-libnvinfer",
    )
    assert why_missing(here) is None


def test_the_error_and_doctor_say_it(here: Interpreter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = jetpack(tmp_path)
    monkeypatch.setattr(libraries.Interpreter, "this", staticmethod(lambda: here))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match="tensorrt is not installed: this virtual environment does not see") as caught:
        libraries.load("tensorrt")
    assert str(packages) in str(caught.value) and "\n" not in str(caught.value)
    found = libraries.available("tensorrt")
    assert not found.importable and found.next_step.startswith("sed -i")


def test_the_step_is_right_for_a_real_virtual_environment(tmp_path: Path) -> None:
    """After the sed line, Python sees what its system has; the setting is the one that venv writes."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    root = tmp_path / "root"
    jetpack(root, f"3.{sys.version_info[1]}")
    python = tmp_path / "venv/bin/python"

    def asked() -> str:
        program = (
            "import sys; from dataclasses import replace; from pathlib import Path\n"
            "from edgeres.device.jetpack import Interpreter, why_missing\n"
            f"found = why_missing(replace(Interpreter.this(), root=Path({str(root)!r}), stubs=()))\n"
            "print(found[1] if found else None)\n"
            "import site; print(site.ENABLE_USER_SITE is not None, any('site-packages' in p for p in sys.path"
            " if not p.startswith(sys.prefix)))"
        )
        return subprocess.run(
            [python, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(Path.cwd())}
        ).stdout

    step, seen = asked().splitlines()
    assert seen == "True False"
    subprocess.run(step, shell=True, check=True)
    assert asked().splitlines()[1] == "True True"
