"""The driver through ctypes, against a library that is compiled with NVIDIA's own cuda.h."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import pytest

from edgeres.runtime.memory import libcuda

ROOT = Path(__file__).resolve().parents[1]
STAND_IN = ROOT / "tests/cpp/libcuda.c"
IN_C: dict[Any, str] = {
    ctypes.c_int: "int",
    ctypes.c_uint: "unsigned int",
    ctypes.c_size_t: "size_t",
    ctypes.c_uint64: "unsigned long long",
    ctypes.c_float: "float",
    ctypes.c_char_p: "char *",
    ctypes.c_void_p: "void *",
}


def header_folder() -> Path:
    """The folder of cuda.h, from the package nvidia-cuda-runtime or a CUDA toolkit."""
    for package in ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12"):
        try:
            found = [file for file in files(package) or () if file.name == "cuda.h"]
        except PackageNotFoundError:
            continue
        if found:
            return Path(str(found[0].locate())).parent
    if Path("/usr/local/cuda/include/cuda.h").is_file():
        return Path("/usr/local/cuda/include")
    pytest.skip("cuda.h is not installed: pip install nvidia-cuda-runtime")


def compiled(source: Path, *options: str) -> None:
    compiler = shutil.which("cc") or pytest.skip("no C compiler is installed (gcc)")
    command = [compiler, "-Wall", "-Werror", "-I", str(header_folder()), str(source), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with libcuda.so.1."""
    folder = tmp_path_factory.mktemp("driver")
    compiled(STAND_IN, "-shared", "-fPIC", "-o", str(folder / "libcuda.so.1"))
    return folder


def run(stand_in: Path, program: str, **settings: str) -> str:
    """What a new process prints whose driver is the stand-in."""
    path = os.pathsep.join((str(ROOT), str(ROOT / "benchmarks")))
    environment = {**os.environ, "LD_LIBRARY_PATH": str(stand_in), "PYTHONPATH": path, **settings}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("integrated", [False, True])
def test_the_checks_of_memory_pass_on_a_compiled_driver(stand_in: Path, integrated: bool) -> None:
    program = """
from gpu_day import MEMORY_CHECKS
from edgeres.runtime.memory import default_device
device = default_device()
for name, check in MEMORY_CHECKS.items():
    if name != "contexts":  # it is about torch
        check(device)
print(device.name, device.gpu, device.sm, device.integrated)
"""
    settings = {"STAND_IN_INTEGRATED": "1"} if integrated else {}
    assert run(stand_in, program, **settings) == f"CUDA driver 12.6 Stand-in 8.7 {integrated}\n"


def test_errors_of_a_compiled_driver_are_its_own_words(stand_in: Path) -> None:
    program = """
from edgeres.errors import EngineError
from edgeres.runtime.memory import default_device
def said(work):
    try:
        work()
    except EngineError as error:
        print(error)
said(lambda: default_device(3))
device = default_device()
with device.active():
    said(lambda: device.buffer(2 << 30))
said(lambda: device.call(device.cuda.cuCtxPushCurrent, 0))
"""
    assert run(stand_in, program, EDGERES_GPU_WAIT="block").splitlines() == [
        "CUDA: invalid device ordinal (cuDeviceGet); see: edgeres doctor",
        "CUDA: out of memory (cuMemAlloc); close other programs, or lower the batch",
        "CUDA: no such error (cuCtxPushCurrent); see: edgeres doctor",
    ]


def test_the_gpu_of_this_machine_is_found_through_the_same_library(stand_in: Path) -> None:
    program = "from edgeres.device.gpu import find_gpu; print(find_gpu()[0])"
    assert run(stand_in, program) == "Gpu(name='Stand-in', sm='8.7', memory_bytes=8589934592, cuda='12.6')\n"


def test_prototypes_are_those_of_the_header(tmp_path: Path) -> None:
    """Each parameter has the size and the class (number, float, pointer) that cuda.h gives it, in its place."""
    lines = ["#define __CUDA_API_VERSION_INTERNAL", "#include <cuda.h>"]
    for number, (symbol, parameters) in enumerate([*libcuda.PROTOTYPES.values(), libcuda.NAME_PROTOTYPE]):
        kinds = [f"{IN_C[kind._type_]} *" if hasattr(kind, "contents") else IN_C[kind] for kind in parameters]
        names = ", ".join(f"{kind} a{place}" for place, kind in enumerate(kinds))
        # A handle is a pointer to a type of its own in C, so pointers go through void *; sizes are checked below.
        arguments = ", ".join(
            f"(void *)a{place}" if kind.endswith("*") else f"a{place}" for place, kind in enumerate(kinds)
        )
        lines.append(f"int call{number}({names}) {{ return {symbol}({arguments}); }}")
    lines += [
        f'_Static_assert(sizeof({kind}) == {ctypes.sizeof(of)}, "{kind}");'
        for kind, of in {
            "CUdevice": ctypes.c_int,
            "CUdeviceptr": ctypes.c_uint64,
            "CUcontext": ctypes.c_void_p,
            "CUstream": ctypes.c_void_p,
            "CUresult": ctypes.c_int,
        }.items()
    ]
    constants = {
        "CU_MEMHOSTALLOC_DEVICEMAP": libcuda.LibCuda.CU_MEMHOSTALLOC_DEVICEMAP,
        **{
            name: value
            for group in (
                libcuda.LibCuda.CUstream_flags,
                libcuda.LibCuda.CUevent_flags,
                libcuda.LibCuda.CUstreamCaptureMode,
                libcuda.LibCuda.CUctx_flags,
                libcuda.LibCuda.CUdevice_attribute,
            )
            for name, value in vars(group).items()
        },
    }
    lines += [f'_Static_assert({name} == {value}, "{name}");' for name, value in constants.items()]
    source = tmp_path / "prototypes.c"
    source.write_text("\n".join(lines) + "\n")
    compiled(source, "-c", "-Wconversion", "-o", str(tmp_path / "prototypes.o"))
