"""The GPU of this machine.

A child process asks the CUDA driver, so that a broken driver can neither block nor crash the caller. The driver library
works the same on a desktop and on a Jetson, where ``nvidia-smi`` is missing or prints nothing.
"""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

Runner = Callable[[Sequence[str]], "str | None"]

_NAME_BYTES = 256
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute of cuda.h


@dataclass(frozen=True)
class Gpu:
    """The first CUDA device.

    Attributes:
        sm: compute capability, e.g. ``8.7``.
        cuda: the newest CUDA version that the driver can run, e.g. ``12.6``.
    """

    name: str
    sm: str
    memory_bytes: int
    cuda: str

    def __post_init__(self) -> None:
        if self.memory_bytes < 0 or not all(re.fullmatch(r"\d{1,3}\.\d{1,3}", text) for text in (self.sm, self.cuda)):
            raise ValueError("memory_bytes is not negative, and sm and cuda are versions")


@dataclass(frozen=True)
class _GpuAnswer:
    """What the child process found: a GPU, or the reason why there is none."""

    gpu: Gpu | None
    reason: str

    def __post_init__(self) -> None:
        if not self.reason.isprintable():
            raise ValueError("reason is one line")


def run_command(argv: Sequence[str], timeout_s: float = 10.0) -> str | None:
    """Standard output of a command; None where it is missing, fails, or does not answer in time."""
    try:
        child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace")
    except OSError:
        return None
    try:
        output, _ = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        child.kill()  # do not wait for it: a process inside a hanging driver call does not end
        return None
    return output if child.returncode == 0 else None


def find_gpu(run: Runner = run_command) -> tuple[Gpu | None, str]:
    """The GPU, or None and the reason why there is none."""
    answer = run([sys.executable, "-I", __file__])
    if answer is None:
        return None, "the NVIDIA driver does not answer"
    from edgeres.documents import DocumentKind  # not above: the child runs this file alone
    from edgeres.errors import InputError

    try:
        found = DocumentKind(_GpuAnswer, "an answer about a GPU", "see: nvidia-smi").decode(
            answer.encode(), "the GPU's driver"
        )
    except InputError as error:
        return None, str(error)
    return found.gpu, found.reason


@cache
def this_gpu() -> tuple[Gpu | None, str]:
    """:func:`find_gpu`, asked once in a process."""
    return find_gpu()


def _ask_driver() -> dict[str, object]:
    """Fields of :class:`Gpu`, or ``{"reason": ...}``."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return {"reason": "no NVIDIA driver (libcuda is not installed)"}
    device, version = ctypes.c_int(), ctypes.c_int()
    for status in (cuda.cuInit(0), cuda.cuDeviceGet(ctypes.byref(device), 0)):
        if status:
            return {"reason": f"the NVIDIA driver finds no usable GPU ({_words(cuda, status)})"}
    name, memory = ctypes.create_string_buffer(_NAME_BYTES), ctypes.c_size_t()
    major, minor = ctypes.c_int(), ctypes.c_int()
    cuda.cuDeviceGetName(name, _NAME_BYTES, device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, device)
    cuda.cuDriverGetVersion(ctypes.byref(version))
    return {
        "name": name.value.decode(errors="replace"),
        "sm": f"{major.value}.{minor.value}",
        "memory_bytes": memory.value,
        "cuda": f"{version.value // 1000}.{version.value % 1000 // 10}",
    }


def _words(cuda: ctypes.CDLL, status: int) -> str:
    text = ctypes.c_char_p()
    cuda.cuGetErrorString(status, ctypes.byref(text))
    return (text.value or f"CUDA error {status}".encode()).decode(errors="replace")


if __name__ == "__main__":
    said = _ask_driver()
    sys.stdout.write(json.dumps({"gpu": None if "reason" in said else said, "reason": said.get("reason", "")}))
