"""Why Python does not find TensorRT where the system has it: the cases of a first day on a Jetson, told apart.

JetPack's packages put TensorRT into the system's dist-packages, for the system's Python alone. PyPI's ``tensorrt`` is
a stub whose libraries come from NVIDIA's own index, and not for a Jetson.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

_STUB = re.compile(r"tensorrt([-_]cu\d+)?([-_](libs|bindings))?")


@dataclass(frozen=True)
class Interpreter:
    """A Python and what lies around it.

    Attributes:
        version: its minor version, e.g. ``3.10``.
        venv: its virtual environment; None outside one.
        path: where it looks for modules.
        stubs: distributions named tensorrt that pip installed here.
        root: folder that stands for ``/``.
    """

    version: str
    venv: Path | None
    path: tuple[str, ...]
    stubs: tuple[str, ...]
    root: Path = Path("/")

    @staticmethod
    def this() -> Interpreter:
        venv = Path(sys.prefix) if sys.prefix != sys.base_prefix else None
        # JetPack's own package has metadata of this name too, in dist-packages.
        names = {
            str(found.metadata["Name"])
            for found in distributions()
            if "dist-packages" not in Path(str(found.locate_file(""))).parts
        }
        stubs = tuple(sorted(name for name in names if _STUB.fullmatch(name)))
        return Interpreter(f"{sys.version_info[0]}.{sys.version_info[1]}", venv, tuple(sys.path), stubs)

    def systems(self) -> dict[str, Path]:
        """Folders with the system's TensorRT by the Python that it is for."""
        found: dict[str, Path] = {}
        for folder in sorted(self.root.glob("usr/lib/python3*/dist-packages")):
            package = folder / "tensorrt"
            if not package.is_dir():
                continue
            named = re.search(r"python(3\.\d+)$", folder.parent.name)
            tags = [re.search(r"\.cpython-3(\d+)-", file.name) for file in sorted(package.glob("tensorrt*.so"))]
            versions = [named[1]] if named else [f"3.{tag[1]}" for tag in tags if tag]
            found |= dict.fromkeys(versions or [self.version], folder)
        return found

    def libraries(self) -> bool:
        """Whether TensorRT's own libraries are installed, without which its Python package is nothing."""
        return any(self.root.glob("usr/lib/*/libnvinfer.so.1*"))


def why_missing(here: Interpreter) -> tuple[str, str] | None:
    """What keeps ``import tensorrt`` from working and the one step that helps; None: nothing that is known."""
    systems = here.systems()
    mine = systems.get(here.version)
    stubs = " ".join(here.stubs)
    if mine is not None and stubs and str(mine) in here.path:
        return f"pip's {stubs} hides the system's TensorRT in {mine}", f"pip uninstall {stubs}"
    if mine is not None and here.venv is not None and str(mine) not in here.path:
        setting = here.venv / "pyvenv.cfg"
        what = f"this virtual environment does not see the system's TensorRT in {mine}"
        step = f"sed -i 's/include-system-site-packages = false/include-system-site-packages = true/' {setting}"
        return what, f"{step}{f', and pip uninstall {stubs}' if stubs else ''}"
    if systems and mine is None:
        version, folder = next(iter(systems.items()))
        what = f"the system's TensorRT in {folder} is for Python {version}, and this is Python {here.version}"
        return what, f"make the virtual environment with it: python{version} -m venv --system-site-packages DIR"
    if here.libraries():
        return "TensorRT's libraries are installed, its Python package is not", "sudo apt install python3-libnvinfer"
    if stubs:
        what = f"pip's {', '.join(here.stubs)} is a stub, whose libraries come from NVIDIA's own index"
        step = "install TensorRT as NVIDIA's installation guide says"
        return what, f"{step}; on a Jetson take JetPack's: sudo apt install python3-libnvinfer"
    return None
