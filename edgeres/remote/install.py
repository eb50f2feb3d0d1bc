"""Install edgeres on another machine over ssh: no clone, no index and no internet are needed there.

Its Python is asked what it is, wheels for it are fetched here and copied, and a virtual environment is made from them.
The environment sees the system's packages, where JetPack has TensorRT; what edgeres needs itself comes from the wheels.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from edgeres.documents import DocumentKind
from edgeres.errors import EnvironmentError_
from edgeres.progress import SILENT, Progress
from edgeres.remote.ssh import Host
from edgeres.remote.wheels import OLDEST_PYTHON, RemotePython, fetch

_ASK = (
    "import json, platform; print(json.dumps({'python': platform.python_version(), 'machine': platform.machine(),"
    " 'glibc': platform.libc_ver()[1]}))"
)
# The first Python that is new enough. The system's own comes first, because JetPack's TensorRT is for that one.
_FIND = r"""
for p in python3 python3.13 python3.12 python3.11 python3.10; do
  "$p" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && command -v "$p" && exit 0
done
exit 1
"""
# $1 folder, $2 python, $3 digest of the wheels, $4 pip's wheel; then the wheels. The digest is written at the end.
_INSTALL = r"""
cd "$1" || exit 1
python=$2; digest=$3; pip=$4; shift 4
rm -rf venv
"$python" -m venv --without-pip --system-site-packages venv || exit 3
PIP_CONFIG_FILE=/dev/null PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 venv/bin/python "wheels/$pip/pip" install \
  --quiet --no-index --ignore-installed --no-warn-script-location "$@" || exit 4
for old in wheels/*; do
  case "$old" in "wheels/$pip") continue ;; esac
  for kept in "$@"; do [ "$old" = "$kept" ] && continue 2; done
  rm -f "$old"
done
printf '%s' "$digest" > venv/edgeres-wheels
"""
_VENV_FAILED = 3
_KIND = DocumentKind(RemotePython, "an answer about a Python", "it must be CPython 3.10 or later on Linux with glibc")


@dataclass(frozen=True)
class Installed:
    """The environment on the other machine.

    Attributes:
        edgeres: the command that runs edgeres there.
        python: what it was made with.
        wheels: names of the wheels in it.
    """

    edgeres: tuple[str, ...]
    python: RemotePython
    wheels: tuple[str, ...]


def install(host: Host, directory: str, python: str | None = None, progress: Progress = SILENT) -> Installed:
    """Make ``directory/venv`` on another machine, with edgeres as it is here; nothing is done where it is there.

    Args:
        directory: remote folder, relative to the user's home.
        python: the remote Python to make it with; None: ``python3``, or the next one that is new enough.

    Raises:
        EnvironmentError_: the machine cannot be reached, has no such Python, there are no wheels for it, or its disk
            is full.
    """
    progress.say(f"{host.name}: connecting")
    with host.shared() as shared:
        found = python or _find(shared)
        there = _ask(shared, found)
        with TemporaryDirectory(prefix="edgeres-wheels-") as folder:
            progress.say(f"{host.name}: fetching wheels for {there}")
            wheels = fetch(there, Path(folder))
            _send(shared, directory, found, Path(folder), wheels, progress)
    return Installed((f"{directory}/venv/bin/python", "-m", "edgeres"), there, tuple(wheels))


def _find(host: Host) -> str:
    found = host.run(["sh", "-c", _FIND])
    if found.code or not found.out.strip():
        what = f"has no Python {OLDEST_PYTHON} or later"
        raise EnvironmentError_(what, where=host.name, hint="install one there, or say where it is: --python PATH")
    return found.out.strip().splitlines()[-1]


def _ask(host: Host, python: str) -> RemotePython:
    done = host.run([python, "-c", _ASK])
    if done.code:
        raise EnvironmentError_(f"{python} does not run ({done.why})", where=host.name, hint="--python PATH")
    found = _KIND.decode(done.out.strip().encode(), f"{host.name}: {python}")
    if not found.new_enough:
        what = f"{python} is Python {found.python}, and edgeres needs {OLDEST_PYTHON}"
        raise EnvironmentError_(what, where=host.name, hint="install one there, or say where it is: --python PATH")
    return found


def _send(host: Host, directory: str, python: str, folder: Path, wheels: Sequence[str], progress: Progress) -> None:
    digest = _digest(folder, wheels)
    if host.run(["cat", f"{directory}/venv/edgeres-wheels"]).out == digest:
        progress.say(f"{host.name}: edgeres is installed already")
        return
    size = sum((folder / name).stat().st_size for name in wheels)
    progress.say(f"{host.name}: copying {len(wheels)} wheels, {size / 1e6:.0f} MB")
    made = host.run(["sh", "-c", 'mkdir -p "$1/wheels"', "sh", directory])
    if made.code:
        raise EnvironmentError_(f"{directory} cannot be made ({made.why})", where=host.name, hint="--to DIR")
    both = shutil.which("rsync") is not None and host.run(["sh", "-c", "command -v rsync"]).code == 0
    replace(host, rsync=both).send(folder, wheels, f"{directory}/wheels")
    progress.say(f"{host.name}: installing edgeres in {directory}/venv")
    pip = next(name for name in wheels if name.startswith("pip-"))
    others = [f"wheels/{name}" for name in wheels if name != pip]
    done = host.run(["sh", "-c", _INSTALL, "sh", directory, python, digest, pip, *others])
    if done.code:
        step = (
            "sudo apt install python3-venv there"
            if done.code == _VENV_FAILED
            else "free some space there, run it again"
        )
        raise EnvironmentError_(f"edgeres cannot be installed there ({done.why})", where=host.name, hint=step)


def _digest(folder: Path, wheels: Sequence[str]) -> str:
    """Of the files in the wheels; times and compression do not count."""
    content = []
    for name in wheels:
        with zipfile.ZipFile(folder / name) as archive:
            files = sorted(
                (info.filename, info.CRC) for info in archive.infolist() if not info.filename.endswith("RECORD")
            )
        content.append([name, files])
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
