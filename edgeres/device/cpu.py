"""The CPU of this machine, as far as INT8 arithmetic depends on it."""

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
    """What ``/proc/cpuinfo`` says.

    Attributes:
        model: as the maker writes it; the architecture where the file does not say (Arm).
        cores: logical cores that this process may use.
        features: instruction sets that matter to INT8, in the kernel's names.
        saturates: whether INT8 kernels multiply with ``VPMADDUBSW``, which adds two products in a saturating int16;
            None where it cannot be told.
    """

    model: str
    cores: int
    features: tuple[str, ...]
    saturates: bool | None


def describe(cpuinfo: str, machine: str, cores: int) -> Cpu:
    """Read the text of ``/proc/cpuinfo`` ("" where there is none) for a ``platform.machine()``."""
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


def this_cpu() -> Cpu:
    """The CPU that this process runs on."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(errors="replace") if path.is_file() else ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return describe(text, platform.machine(), cores)


def has_vnni() -> bool | None:
    """Whether uint8 x int8 products are summed without saturation here: x86 with VNNI or AMX, and any 64-bit Arm.

    Where this is False, ONNX Runtime's int8 kernels can clip a pair of products (255 * 127 * 2 > 32767), and weights
    must keep to 7 bits (``reduce_range``). None: the CPU does not say.
    """
    saturates = this_cpu().saturates
    return None if saturates is None else not saturates
