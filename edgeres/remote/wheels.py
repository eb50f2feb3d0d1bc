"""Wheels for another machine's Python, chosen and fetched on this one: edgeres' own, and those that it depends on.

pip chooses for another platform by itself, but reads a dependency's markers (``python_version < "3.11"``) for the
Python that it runs on. So it is started here with the other machine's values in their place.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory

from edgeres._version import __version__
from edgeres.documents import require
from edgeres.errors import EnvironmentError_

_PIP = (
    "import json, sys; from pip._vendor.packaging import markers; values = json.loads(sys.argv.pop(1));"
    "markers.default_environment = lambda: dict(values);"
    "from pip._internal.cli.main import main; sys.exit(main(sys.argv[1:]))"
)
OLDEST_PYTHON = "3.10"
_OLDEST_GLIBC = 17  # manylinux2014
# What a wheel is built from. The checkout's own build/ may hold modules that are gone.
_SOURCES = ("pyproject.toml", "README.md", "LICENSE", "edgeres")
_TIMEOUT_S = 1800.0
_NO_INDEX = r"(?i)could not fetch URL|No matching distribution|NameResolution|Connection|timed out|Network is unreach"


@dataclass(frozen=True)
class RemotePython:
    """The Python of a machine that wheels are for.

    Attributes:
        python: its version, e.g. ``3.10.12``.
        machine: as ``uname -m``: ``aarch64`` or ``x86_64``.
        glibc: version of the C library, e.g. ``2.35``.
    """

    python: str
    machine: str
    glibc: str

    def __post_init__(self) -> None:
        require(re.fullmatch(r"3\.\d{1,2}\.\d{1,3}\w{0,8}", self.python) is not None, "python is a version 3.x.y")
        require(re.fullmatch(r"\w{1,20}", self.machine) is not None, "machine is a word")
        require(re.fullmatch(r"2\.\d{1,3}", self.glibc) is not None, "glibc is a version 2.x")

    @property
    def minor(self) -> str:
        return ".".join(self.python.split(".")[:2])

    @property
    def new_enough(self) -> bool:
        return int(self.minor.split(".")[1]) >= int(OLDEST_PYTHON.split(".")[1])

    def __str__(self) -> str:
        return f"Python {self.minor} on {self.machine}, glibc {self.glibc}"

    def markers(self) -> dict[str, str]:
        """The values of environment markers (PEP 508) there."""
        return {
            "implementation_name": "cpython",
            "implementation_version": self.python,
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": self.python,
            "python_version": self.minor,
            "sys_platform": "linux",
        }

    def options(self) -> list[str]:
        """pip's options for wheels that run there, the newest platform first."""
        newest = int(self.glibc.split(".")[1])
        platforms = [f"manylinux_2_{minor}_{self.machine}" for minor in range(newest, _OLDEST_GLIBC - 1, -1)]
        platforms += [f"manylinux2014_{self.machine}", f"linux_{self.machine}"]
        words = [word for platform in platforms for word in ("--platform", platform)]
        return ["--only-binary=:all:", "--python-version", self.minor, "--implementation", "cp", *words]


def chosen(python: RemotePython, requirements: Sequence[str], folder: Path) -> dict[str, str]:
    """What pip would install there for these requirements: versions by lower-case name. Nothing is installed.

    Args:
        folder: pip wants one to install into; it stays empty.

    Raises:
        EnvironmentError_: there is no package index, or no such wheel for that machine.
    """
    report = ["--dry-run", "--ignore-installed", "--quiet", "--report", "-", "--target", str(folder)]
    text = _pip(python, ["install", *report, *python.options(), *requirements])
    items = [item["metadata"] for item in json.loads(text)["install"]]
    return {re.sub(r"[-_.]+", "-", item["name"]).lower(): item["version"] for item in items}


def fetch(python: RemotePython, folder: Path) -> list[str]:
    """Put edgeres' own wheel, those that it needs there, and pip's into a folder; their names.

    Raises:
        EnvironmentError_: there is no package index, or no such wheel for that machine.
    """
    _pip(python, ["download", "--quiet", "--dest", str(folder), *python.options(), str(own_wheel(folder)), "pip"])
    return sorted(path.name for path in folder.glob("*.whl"))


def own_wheel(folder: Path) -> Path:
    """edgeres as it runs here, as a wheel: built from a checkout, or packed again from what was installed.

    Raises:
        EnvironmentError_: neither is possible.
    """
    package = Path(__file__).resolve().parents[1]
    project = package.parent / "pyproject.toml"
    if project.is_file():
        return _built(project.parent, folder)
    try:
        files = distribution("edgeres").files or []
    except PackageNotFoundError:
        files = []
    info = next((file.parent for file in files if file.name == "METADATA"), None)
    if info is None:
        what = "edgeres was not installed by pip here, so there is no wheel of it to send"
        raise EnvironmentError_(what, hint="pip install it here, or install it there by hand")
    wheel = folder / f"edgeres-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            if ".." not in file.parts and file.suffix != ".pyc" and file.name not in ("INSTALLER", "direct_url.json"):
                archive.write(str(file.locate()), str(file))
    return wheel


def _built(checkout: Path, folder: Path) -> Path:
    with TemporaryDirectory(prefix="edgeres-build-") as copy:
        for name in _SOURCES:
            source, to = checkout / name, Path(copy) / name
            if source.is_dir():
                shutil.copytree(source, to, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
            elif source.is_file():
                shutil.copy2(source, to)
        _run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), copy])
    return next(iter(folder.glob("edgeres-*.whl")))


def _pip(python: RemotePython, arguments: Sequence[str]) -> str:
    return _run([sys.executable, "-c", _PIP, json.dumps(python.markers()), *arguments], str(python))


def _run(command: Sequence[str], what: str = "edgeres") -> str:
    """What pip printed.

    Raises:
        EnvironmentError_: it failed; the message is its own last error.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise EnvironmentError_(f"pip did not finish in {_TIMEOUT_S:.0f} s", hint="check the network") from error
    if done.returncode == 0:
        return done.stdout
    said = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if "ERROR: " in line]
    if "No module named pip" in done.stderr:
        raise EnvironmentError_("this Python has no pip", hint="python -m ensurepip")
    why = said[-1] if said else (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    hint = "check the network and pip's index" if re.search(_NO_INDEX, done.stderr) else None
    raise EnvironmentError_(f"pip finds no wheels for {what} ({why})", hint=hint)
