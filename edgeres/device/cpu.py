"""The CPU of this machine and its INT8 instructions."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

# Instructions that multiply uint8 by int8 and add into 32 bits without an intermediate result of 16 bits.
_DOT_PRODUCTS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
_SHOWN = ("avx2", "avx512f", *_DOT_PRODUCTS)


@dataclass(frozen=True)
class Cpu:
    """Facts from ``/proc/cpuinfo``.

    Attributes:
        model: the maker's name of it; the architecture where the file has no name (Arm).
        cores: logical cores that this process may use.
        features: instruction sets that INT8 kernels use, in the kernel's names.
        saturates: whether INT8 kernels multiply with ``VPMADDUBSW``, which adds two products in a saturating int16;
            None where the file does not say.
    """

    model: str
    cores: int
    features: tuple[str, ...]
    saturates: bool | None


def describe(cpuinfo: str, machine: str, cores: int) -> Cpu:
    """Read the text of ``/proc/cpuinfo``, "" where there is none, on a machine of this ``platform.machine()``."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    features = tuple(name for name in _SHOWN if name in flags)
    saturates: bool | None = None
    if machine in ("aarch64", "arm64"):
        saturates = False  # NEON widens before it adds, with or without dot-product instructions
    elif flags:
        saturates = not flags & set(_DOT_PRODUCTS)
    return Cpu(fields.get("model name", machine), cores, features, saturates)


def usable_cores(root: Path = Path("/sys/devices/system/cpu")) -> int:
    """Physical cores that this process may use; hyperthreads of one core count once."""
    numbers = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    siblings = set()
    for number in numbers:
        try:
            siblings.add((root / f"cpu{number}/topology/thread_siblings_list").read_text())
        except OSError:
            siblings.add(str(number))
    return len(siblings)


def this_cpu() -> Cpu:
    """The CPU that this process runs on."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(errors="replace") if path.is_file() else ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return describe(text, platform.machine(), cores)


def has_vnni() -> bool | None:
    """Whether this CPU sums uint8 x int8 products without saturation: x86 with VNNI or AMX, and any 64-bit Arm.

    Where this is False, ONNX Runtime's int8 kernels can clip the sum of two products (255 * 127 * 2 > 32767), so
    weights must use only 7 bits (``reduce_range``). None: unknown.
    """
    saturates = this_cpu().saturates
    return None if saturates is None else not saturates
