"""The diagnosis of recorded machines (a bare one, a desktop, Jetsons) and of this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeres.device.cpu import Cpu, describe, usable_cores
from edgeres.device.gpu import Gpu
from edgeres.device.libraries import Availability, Flavour
from edgeres.doctor import Diagnosis, Machine, diagnose

GIB = 1 << 30
BASE = {"numpy": "1.26.4", "pillow": "10.2.0", "onnxruntime": "1.20.1"}
EXPORT = {"torch": "2.13.0", "onnx": "1.17.0", "safetensors": "0.4.5"}
NOT_THERE = "no NVIDIA driver (libcuda is not installed)"
ORIN_RELEASE = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025\n"


class Recorded(Machine):
    """A machine with recorded answers; anything else is missing."""

    def __init__(
        self,
        packages: dict[str, str],
        *,
        files: dict[str, str] | None = None,
        cpuinfo: str = "model name : Some CPU\nflags : avx2\n",
        gpu: Gpu | None = None,
        vendors: dict[str, str] | None = None,
    ) -> None:
        self.packages = packages
        self.files = {"/proc/meminfo": "MemTotal: 16000000 kB\nMemAvailable: 8388608 kB\n", **(files or {})}
        self.cpuinfo = cpuinfo
        self.found = gpu
        self.vendors = vendors or {}
        self.architecture = "aarch64" if "/etc/nv_tegra_release" in self.files else "x86_64"
        self.free, self.can_write = 100 * GIB, True
        self.commands = {"ssh", "rsync"}
        self.settings = {"ORT_DISABLE_TELEMETRY": "1"}

    def read(self, path: str) -> str | None:
        return self.files.get(path)

    def package(self, *distributions: str) -> str | None:
        return next((self.packages[name] for name in distributions if name in self.packages), None)

    def providers(self) -> tuple[str, ...]:
        return ("CUDA", "TensorRT") if "onnxruntime-gpu" in self.packages else ()

    def setting(self, name: str) -> str | None:
        return self.settings.get(name)

    def command(self, name: str) -> bool:
        return name in self.commands

    def cpu(self) -> Cpu:
        return describe(self.cpuinfo, self.architecture, 6)

    def gpu(self) -> tuple[Gpu | None, str]:
        return self.found, "" if self.found else NOT_THERE

    def vendor(self, flavour: Flavour) -> Availability:
        version = self.vendors.get(flavour)
        if version is None:
            return Availability(flavour, False, None, self.found, f"{flavour} is not installed", f"install {flavour}")
        return Availability(
            flavour, True, version, self.found, "" if self.found else NOT_THERE, "" if self.found else "driver"
        )

    def cache(self) -> Path:
        return Path("/home/someone/.cache/edgeres")

    def free_bytes(self, folder: Path) -> int:
        return self.free

    def writable(self, folder: Path) -> bool:
        return self.can_write


def checks(machine: Machine) -> dict[str, Diagnosis]:
    return {check.name: check for check in diagnose(machine)}


def abilities(found: dict[str, Diagnosis]) -> dict[str, bool]:
    """Whether each ability is given, by its name."""
    names = list(found)
    return {name: found[name].found == "yes" for name in names[names.index("export a checkpoint") :]}


def test_a_robot_with_the_base_install() -> None:
    found = checks(Recorded(BASE))
    assert [name for name, can in abilities(found).items() if can] == ["run on the CPU"]
    assert found["export a checkpoint"].next_step == "pip install 'edgeres[export]'"
    assert found["torch"] == Diagnosis("torch", None, "not installed", "pip install 'edgeres[export]'")
    assert found["gpu"].found == NOT_THERE
    assert "jetson" not in found
    assert all(check.ok is not False for check in found.values())


def test_telemetry_is_off_unless_the_user_decided_otherwise() -> None:
    machine = Recorded(BASE)
    assert checks(machine)["telemetry"].ok
    assert checks(machine)["telemetry"].found.startswith("off")
    machine.settings["ORT_DISABLE_TELEMETRY"] = "0"
    found = checks(machine)["telemetry"]
    assert found.ok is None
    assert "ORT_DISABLE_TELEMETRY='0'" in found.found
    assert "unset" in found.next_step


def test_a_desktop_with_everything() -> None:
    packages = {**BASE, **EXPORT, "onnxruntime-gpu": "1.20.1", "cuda-python": "12.6.0", "pycuda": "2024.1"}
    gpu = Gpu("NVIDIA GeForce RTX 4090", "8.9", 24 * GIB, "12.8")
    found = checks(Recorded(packages, gpu=gpu, vendors={"rtx": "1.7.1.116", "tensorrt": "10.13.3.9"}))
    assert all(abilities(found).values())
    assert found["gpu"].found == "NVIDIA GeForce RTX 4090, SM 8.9, 24.0 GiB, driver for CUDA 12.8"
    assert found["onnxruntime"].found == "1.20.1, providers CPU, CUDA, TensorRT"
    assert (
        found["cuda bindings"].found == "ctypes, no package needed (also installed: cuda-python 12.6.0, pycuda 2024.1)"
    )
    assert not any(check.next_step for check in found.values())


def test_a_jetson_with_jetpack_6() -> None:
    machine = Recorded(
        BASE,
        files={
            "/etc/nv_tegra_release": ORIN_RELEASE,
            "/proc/device-tree/model": "NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0",
        },
        cpuinfo="processor : 0\nFeatures : fp asimd asimddp\n",
        gpu=Gpu("Orin", "8.7", 16 * GIB, "12.6"),
        vendors={"tensorrt": "10.3.0"},
    )
    found = checks(machine)
    assert found["jetson"].ok
    assert found["jetson"].found == (
        "NVIDIA Jetson Orin NX Engineering Reference Developer Kit, L4T 36.4.3 (JetPack 6), target jetson-orin-nx"
    )
    assert found["cpu"].found == "aarch64, 6 cores, asimddp"
    assert [name for name, can in abilities(found).items() if can] == [
        "run on the CPU",
        "build TensorRT engines",
        "run TensorRT engines",
    ]
    assert found["cuda bindings"] == Diagnosis("cuda bindings", True, "ctypes, no package needed")


@pytest.mark.parametrize(
    ("asked", "packages", "found", "step"),
    [
        ("driver", {}, "ctypes", ""),
        ("pycuda", {"pycuda": "2026.1"}, "pycuda 2026.1, as EDGERES_CUDA asks", ""),
        ("pycuda", {}, "pycuda is not installed", "unset EDGERES_CUDA"),
        ("cupy", {}, "cupy is no library that edgeres knows", "unset EDGERES_CUDA"),
        ("cuda-python", {"cuda-python": "12.9.4"}, "cuda-python 12.9.4", ""),
        ("cuda-python", {"cuda-python": "13.4.4"}, "made for a newer driver", "pip install 'cuda-python==12.6.*'"),
    ],
)
def test_the_library_that_was_asked_for(asked: str, packages: dict[str, str], found: str, step: str) -> None:
    """Also cuda-python 13 on JetPack 6's driver, which has no cuEventElapsedTime_v2."""
    gpu = Gpu("Orin", "8.7", 16 * GIB, "12.6")
    machine = Recorded({**BASE, **packages}, gpu=gpu, vendors={"tensorrt": "10.3.0"})
    machine.settings["EDGERES_CUDA"] = asked
    said = checks(machine)
    assert found in said["cuda bindings"].found and step in said["cuda bindings"].next_step
    assert bool(step) is (said["cuda bindings"].ok is False) is (said["run TensorRT engines"].found == "no")


@pytest.mark.parametrize(
    ("commands", "found", "step"),
    [
        ({"ssh", "rsync"}, Diagnosis("ssh", True, "with rsync"), ""),
        ({"ssh"}, Diagnosis("ssh", True, "without rsync"), "install rsync here and there"),
        ({"rsync"}, Diagnosis("ssh", None, "not installed"), "OpenSSH's client, for edgeres remote"),
    ],
)
def test_what_remote_needs(commands: set[str], found: Diagnosis, step: str) -> None:
    machine = Recorded(BASE)
    machine.commands = commands
    check = checks(machine)["ssh"]
    assert (check.ok, check.found) == (found.ok, found.found)
    assert step in check.next_step and bool(check.next_step) is bool(step)


def test_a_jetson_nano_is_told_why_it_is_no_target() -> None:
    files = {
        "/etc/nv_tegra_release": "# R32 (release), REVISION: 7.4, GCID: 33514132\n",
        "/proc/device-tree/model": "NVIDIA Jetson Nano Developer Kit\0",
    }
    jetson = checks(Recorded(BASE, files=files))["jetson"]
    assert jetson.ok is False
    assert jetson.found.endswith("L4T 32.7.4 (JetPack 4)")
    assert "no INT8" in jetson.next_step


def test_a_carrier_board_that_is_not_known() -> None:
    files = {"/etc/nv_tegra_release": ORIN_RELEASE, "/proc/device-tree/model": "Someone's carrier board\0"}
    jetson = checks(Recorded(BASE, files=files))["jetson"]
    assert (jetson.ok, jetson.found) == (None, "Someone's carrier board, L4T 36.4.3 (JetPack 6)")


@pytest.mark.parametrize(
    ("cpuinfo", "words"),
    [
        ("model name : Old\nflags : avx2\n", "use only 7 bits (reduce_range)"),
        ("model name : New\nflags : avx2 avx512f avx512_vnni\n", "New, 6 cores, avx2, avx512f, avx512_vnni"),
    ],
)
def test_what_the_cpu_means_for_int8(cpuinfo: str, words: str) -> None:
    assert checks(Recorded(BASE, cpuinfo=cpuinfo))["cpu"].found.endswith(words)


def test_what_is_in_the_way_is_false_and_has_a_next_step() -> None:
    machine = Recorded({"numpy": "1.26.4", "pillow": "10.2.0"}, files={"/proc/meminfo": "MemAvailable: 400000 kB\n"})
    machine.python = ("3", "8", "10")
    machine.free = GIB
    bad = {name: check for name, check in checks(machine).items() if check.ok is False}
    assert list(bad) == ["python", "onnxruntime", "memory", "cache"]
    assert all(check.next_step for check in bad.values())
    machine.can_write = False
    assert checks(machine)["cache"].found == "/home/someone/.cache/edgeres cannot be written"


def test_this_machine_is_described_without_the_heavy_packages(tmp_path: Path) -> None:
    script = (
        "import sys; from edgeres.doctor import diagnose; found = diagnose(); print(len(found));"
        "sys.exit(bool({'torch', 'onnx', 'onnxruntime'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 15


def test_the_real_machine_answers_every_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGERES_CACHE", str(tmp_path / "new" / "cache"))
    found = checks(Machine())
    assert found["python"].found.startswith(f"{sys.version_info[0]}.{sys.version_info[1]}.")
    assert found["cache"].found.startswith(str(tmp_path))
    assert not (tmp_path / "new").exists()  # a diagnosis changes nothing
    assert found["numpy"].ok and found["onnxruntime"].ok
    assert Machine().read("/no/such/file") is None


def test_hyperthreads_of_a_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two cores with two threads each, this process may use three threads; a core without a file counts, too."""
    for number, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        folder = tmp_path / f"cpu{number}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{siblings}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2, 3})
    assert usable_cores(tmp_path) == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 4})
    assert usable_cores(tmp_path) == 3
