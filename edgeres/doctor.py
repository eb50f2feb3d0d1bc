"""Check what this machine can do, what is missing, and the next step.

Packages are looked up but not imported. The exceptions are the vendor's packages: only an import shows whether their
shared libraries load.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from edgeres.device.cpu import Cpu, this_cpu
from edgeres.device.gpu import Gpu, this_gpu
from edgeres.device.libraries import Availability, available
from edgeres.device.targets import Flavour, target_of_board
from edgeres.runtime.memory import LIBRARY
from edgeres.zoo.download import cache_dir

_JETPACK_OF_L4T = {"32": "4", "34": "5", "35": "5", "36": "6", "38": "7", "39": "7"}
_GIB = 1 << 30
_FOR_EXPORT = ("torch", "onnx", "safetensors")
_EXPORT = "pip install 'edgeres[export]'"
_ENOUGH_MEMORY = 2 * _GIB
_ENOUGH_DISK = 2 * _GIB  # weights of the largest ResNet, its graphs and its engines


@dataclass(frozen=True)
class Diagnosis:
    """The result of one check of the machine.

    Attributes:
        ok: True: present and usable; False: edgeres cannot work like this; None: missing, but not everyone needs it.
        found: what was found.
        next_step: how to fix it; "" where there is nothing to fix.
    """

    name: str
    ok: bool | None
    found: str
    next_step: str = ""


class Machine:
    """Access to this machine; tests replace it by recorded answers."""

    python = platform.python_version_tuple()

    def read(self, path: str) -> str | None:
        """A text file, None where it is missing."""
        try:
            return Path(path).read_text(errors="replace")
        except OSError:
            return None

    def package(self, *distributions: str) -> str | None:
        """Version of the first of these distributions that is installed."""
        for name in distributions:
            try:
                return version(name)
            except PackageNotFoundError:
                continue
        return None

    def providers(self) -> tuple[str, ...]:
        """Execution providers in ONNX Runtime's package besides the CPU's."""
        spec = find_spec("onnxruntime")
        folders = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
        libraries = " ".join(file.name for folder in folders for file in folder.glob("capi/*onnxruntime_providers_*"))
        return tuple(name for name in ("CUDA", "TensorRT") if f"providers_{name.lower()}." in libraries)

    def setting(self, name: str) -> str | None:
        """A variable of the environment, None where it is not set."""
        return os.environ.get(name)

    def command(self, name: str) -> bool:
        """Whether this program is installed."""
        return shutil.which(name) is not None

    def cpu(self) -> Cpu:
        return this_cpu()

    def gpu(self) -> tuple[Gpu | None, str]:
        return this_gpu()

    def vendor(self, flavour: Flavour) -> Availability:
        return available(flavour)

    def cache(self) -> Path:
        return cache_dir()

    def free_bytes(self, folder: Path) -> int:
        return shutil.disk_usage(folder).free

    def writable(self, folder: Path) -> bool:
        return os.access(folder, os.W_OK | os.X_OK)


def diagnose(machine: Machine | None = None) -> list[Diagnosis]:
    """All diagnoses, from Python to packages and hardware; the last ones say what can be done here."""
    m = machine or Machine()
    rtx, tensorrt = m.vendor("rtx"), m.vendor("tensorrt")
    packages, bindings = _packages(m), _cuda_bindings(m, m.gpu()[0])
    return [
        _python(m),
        *packages,
        _telemetry(m),
        _cpu(m.cpu()),
        _memory(m),
        _cache(m),
        _gpu(*m.gpu()),
        *_jetson(m),
        _vendor("tensorrt_rtx", rtx),
        _vendor("tensorrt", tensorrt),
        bindings,
        _ssh(m),
        *_abilities({one.name for one in packages if one.ok}, bindings, rtx, tensorrt),
    ]


def _python(m: Machine) -> Diagnosis:
    ok = tuple(int(part) for part in m.python[:2]) >= (3, 10)
    return Diagnosis("python", ok, ".".join(m.python), "" if ok else "edgeres needs Python 3.10 or later")


def _packages(m: Machine) -> list[Diagnosis]:
    diagnoses = []
    for name in ("numpy", "pillow", "onnxruntime", *_FOR_EXPORT):
        found = m.package(name, "onnxruntime-gpu") if name == "onnxruntime" else m.package(name)
        if found is None:
            ok, step = (None, _EXPORT) if name in _FOR_EXPORT else (False, f"pip install {name}")
            diagnoses.append(Diagnosis(name, ok, "not installed", step))
        else:
            providers = f", providers {', '.join(('CPU', *m.providers()))}" if name == "onnxruntime" else ""
            diagnoses.append(Diagnosis(name, True, found + providers))
    return diagnoses


def _telemetry(m: Machine) -> Diagnosis:
    """Whether ONNX Runtime may report to its vendor; ``import edgeres`` switches that off unless the user decided."""
    setting = m.setting("ORT_DISABLE_TELEMETRY")
    if setting in ("1", "true", "yes"):
        return Diagnosis("telemetry", True, f"off: ORT_DISABLE_TELEMETRY={setting}, set by edgeres unless you set it")
    found = f"left to ONNX Runtime: ORT_DISABLE_TELEMETRY={setting!r}"
    return Diagnosis("telemetry", None, found, "unset ORT_DISABLE_TELEMETRY, and edgeres switches it off")


def _cpu(cpu: Cpu) -> Diagnosis:
    found = f"{cpu.model}, {cpu.cores} cores, {', '.join(cpu.features) or 'no INT8 instructions'}"
    if cpu.saturates:
        found += "; INT8 products can saturate, so weights for this CPU use only 7 bits (reduce_range)"
    return Diagnosis("cpu", True, found)


def _memory(m: Machine) -> Diagnosis:
    match = re.search(r"MemAvailable:\s+(\d+) kB", m.read("/proc/meminfo") or "")
    if match is None:
        return Diagnosis("memory", None, "unknown")
    free = int(match[1]) * 1024
    ok = free >= _ENOUGH_MEMORY
    step = "" if ok else "close other programs: 2 GiB are needed"
    return Diagnosis("memory", ok, f"{free / _GIB:.1f} GiB free", step)


def _cache(m: Machine) -> Diagnosis:
    folder = m.cache()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if not m.writable(existing):
        return Diagnosis("cache", False, f"{folder} cannot be written", "set EDGERES_CACHE to a folder that can")
    free = m.free_bytes(existing)
    ok = free >= _ENOUGH_DISK
    step = "" if ok else "free some disk space, or set EDGERES_CACHE to another disk: 2 GiB are needed"
    return Diagnosis("cache", ok, f"{folder}, {free / _GIB:.1f} GiB free", step)


def _gpu(gpu: Gpu | None, reason: str) -> Diagnosis:
    if gpu is None:
        return Diagnosis("gpu", None, reason, "install the NVIDIA driver, if this machine has an NVIDIA GPU")
    found = f"{gpu.name}, SM {gpu.sm}, {gpu.memory_bytes / _GIB:.1f} GiB, driver for CUDA {gpu.cuda}"
    return Diagnosis("gpu", True, found)


def _jetson(m: Machine) -> list[Diagnosis]:
    """The board and its JetPack; empty where this machine is no Jetson."""
    board = (m.read("/proc/device-tree/model") or "").rstrip("\0\n")
    release = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", m.read("/etc/nv_tegra_release") or "")
    target = target_of_board(board)
    if target is None and release is None:
        return []
    found = board or "a Jetson"
    if release is not None:
        found += f", L4T {release[1]}.{release[2]} (JetPack {_JETPACK_OF_L4T.get(release[1], 'unknown')})"
    if target is None:
        return [Diagnosis("jetson", None, found, "this board is not among: edgeres targets")]
    if target.refused:
        return [Diagnosis("jetson", False, found, f"{target.title} cannot be a target: {target.refused}")]
    return [Diagnosis("jetson", True, f"{found}, target {target.name}")]


def _vendor(name: str, here: Availability) -> Diagnosis:
    if here.importable:
        return Diagnosis(name, True, str(here.version))
    return Diagnosis(name, None, here.reason.removeprefix(f"{name} is "), here.next_step)


def _cuda_bindings(m: Machine, gpu: Gpu | None) -> Diagnosis:
    """How the driver is called to run engines: through ctypes, or through the package that EDGERES_CUDA names."""
    found = {"cuda-python": m.package("cuda-python", "cuda-bindings"), "pycuda": m.package("pycuda")}
    chosen = m.setting(LIBRARY) or "driver"
    if chosen == "driver":
        others = ", ".join(f"{name} {release}" for name, release in found.items() if release)
        words = f"ctypes, no package needed{f' (also installed: {others})' if others else ''}"
        return Diagnosis("cuda bindings", None if gpu is None else True, words)
    version, step = found.get(chosen), f"unset {LIBRARY}"
    if version is None:
        what = "is not installed" if chosen in found else "is no library that edgeres knows"
        return Diagnosis("cuda bindings", False, f"{chosen} {what}, and {LIBRARY} asks for it", step)
    words = f"{chosen} {version}, as {LIBRARY} asks"
    if chosen == "cuda-python" and gpu is not None and _major(version) > _major(gpu.cuda):
        words += f"; it is made for a newer driver than this one for CUDA {gpu.cuda}, and fails where it times an event"
        return Diagnosis("cuda bindings", False, words, f"{step}, or pip install 'cuda-python=={gpu.cuda}.*'")
    return Diagnosis("cuda bindings", True, words)


def _major(version: str) -> int:
    """The first number of a version."""
    found = re.match(r"\d+", version)
    return int(found[0]) if found else 0


def _ssh(m: Machine) -> Diagnosis:
    """The programs that ``edgeres remote`` needs on this machine."""
    if not m.command("ssh"):
        return Diagnosis("ssh", None, "not installed", "install OpenSSH's client, for edgeres remote")
    if not m.command("rsync"):
        step = "install rsync here and there: edgeres remote then resumes copies"
        return Diagnosis("ssh", True, "without rsync", step)
    return Diagnosis("ssh", True, "with rsync")


def _abilities(packages: set[str], bindings: Diagnosis, rtx: Availability, tensorrt: Availability) -> list[Diagnosis]:
    """What can be done here, in the order of a build."""
    export = "" if packages.issuperset(_FOR_EXPORT) else _EXPORT
    quantize = "" if {"onnx", "onnxruntime"} <= packages else _EXPORT
    cpu = "" if "onnxruntime" in packages else "pip install onnxruntime"
    bound = bindings.ok is not False
    run_rtx, run_tensorrt = (
        "; ".join(step for step in (here.next_step, "" if bound else bindings.next_step) if step)
        for here in (rtx, tensorrt)
    )
    return [
        _ability("export a checkpoint", not export, export),
        _ability("calibrate and quantize a graph", not quantize, quantize),
        _ability("run on the CPU", not cpu, cpu),
        _ability("build RTX engines", rtx.can_build, rtx.next_step),
        _ability("run RTX engines", rtx.can_run and bound, run_rtx),
        _ability("build TensorRT engines", tensorrt.can_build, tensorrt.next_step),
        _ability("run TensorRT engines", tensorrt.can_run and bound, run_tensorrt),
    ]


def _ability(name: str, can: bool, next_step: str) -> Diagnosis:
    return Diagnosis(name, True if can else None, "yes" if can else "no", "" if can else next_step)
