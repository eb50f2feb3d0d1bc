"""What edgeres builds for: each device with what it can run and where its engine is made.

Sources: NVIDIA's support matrices of TensorRT 8.5, 10.3 to 11.4 and TensorRT-RTX 1.7, the JetPack release notes, and
the data sheets of the Jetson modules.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from edgeres.errors import UsageError
from edgeres.records import Style

Runtime = Literal["onnxruntime", "rtx", "tensorrt"]

# Compute capabilities that TensorRT-RTX builds for; an engine without a choice of its own runs on all but Turing (7.5).
RTX_COMPUTE_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
RTX_PORTABLE = RTX_COMPUTE_CAPABILITIES[1:]

_ON_DEVICE = "copy the bundle to the device and run there: edgeres engine BUNDLE"
_BY_TRTEXEC = (
    "copy model.int8.onnx to the device and run there: trtexec --onnx=model.int8.onnx --int8 --saveEngine=model.engine"
    " (JetPack 5 has TensorRT 8.5 and Python 3.8, which edgeres does not run on)"
)


@dataclass(frozen=True)
class Target:
    """A device, or a runtime on this machine.

    Attributes:
        name: as ``--target`` takes it.
        title: for people.
        style: placement of Q/DQ that its runtime wants.
        runtime: what runs the result.
        where: where the engine is built, and how.
        sm: compute capabilities; empty: any that the runtime supports, or no GPU.
        jetpack, tensorrt: first and last version it is described for; None where there is none.
        max_opset: the newest ONNX opset that every TensorRT of that range documents.
        dla: fewest and most DLA cores among its variants.
        memory_gb: sizes it is sold with, shared by CPU and GPU on a Jetson; empty: unknown.
        refused: why it cannot be a target, "" where it can.
        board: the part of ``/proc/device-tree/model`` that names it, "" where it is no Jetson.
    """

    name: str
    title: str
    style: Style
    runtime: Runtime
    where: str
    sm: tuple[str, ...] = ()
    jetpack: tuple[str, str] | None = None
    tensorrt: tuple[str, str] | None = None
    max_opset: int = 20
    dla: tuple[int, int] = (0, 0)
    memory_gb: tuple[int, ...] = ()
    refused: str = ""
    board: str = ""

    @property
    def int8(self) -> bool:
        """Whether it multiplies in INT8."""
        return not self.refused

    @property
    def shared_memory(self) -> bool:
        """Whether CPU and GPU share one memory, as on every Jetson."""
        return bool(self.board)

    def workspace_bytes(self, memory_bytes: int) -> int | None:
        """Scratch memory that a layer may take on a device with so much: a quarter where the system needs the rest.

        None: the vendor's default, all of the GPU's own memory.
        """
        return memory_bytes // 4 if self.shared_memory else None

    def accepts(self, sm: str) -> bool:
        """Whether an engine for this target can be built on a GPU of this compute capability."""
        return not self.sm or sm in self.sm


def _orin(name: str, title: str, tensorrt: str, dla: tuple[int, int], memory_gb: tuple[int, ...]) -> Target:
    return Target(
        name=f"jetson-{name}",
        title=f"NVIDIA Jetson {title}",
        style="tensorrt",
        runtime="tensorrt",
        where=_ON_DEVICE,
        sm=("8.7",),
        jetpack=("6.1", "7.2"),
        tensorrt=("10.3", tensorrt),
        dla=dla,
        memory_gb=memory_gb,
        board=title,
    )


def _xavier(name: str, title: str, memory_gb: tuple[int, ...]) -> Target:
    return Target(
        name=f"jetson-{name}",
        title=f"NVIDIA Jetson {title}",
        style="tensorrt",
        runtime="tensorrt",
        where=_BY_TRTEXEC,
        sm=("7.2",),
        jetpack=("5.1", "5.1"),
        tensorrt=("8.5", "8.5"),
        max_opset=17,
        dla=(2, 2),
        memory_gb=memory_gb,
        board=title,
    )


_ALL = (
    Target(
        name="cpu",
        title="ONNX Runtime on a CPU",
        style="cpu",
        runtime="onnxruntime",
        where="no engine: model.int8.cpu.onnx runs as it is",
    ),
    Target(
        name="rtx",
        title="NVIDIA RTX GPU, TensorRT-RTX",
        style="tensorrt",
        runtime="rtx",
        where="on this machine, with or without a GPU",
        sm=RTX_COMPUTE_CAPABILITIES,
    ),
    Target(
        name="tensorrt",
        title="the NVIDIA GPU of this machine, TensorRT",
        style="tensorrt",
        runtime="tensorrt",
        where="on this machine where it has an NVIDIA GPU; else " + _ON_DEVICE,
        tensorrt=("10.3", "11.4"),
    ),
    _xavier("xavier-nx", "Xavier NX", (8, 16)),
    _xavier("agx-xavier", "AGX Xavier", (32, 64)),
    _orin("orin-nano", "Orin Nano", "10.16", (0, 0), (4, 8)),
    _orin("orin-nx", "Orin NX", "10.16", (1, 2), (8, 16)),
    _orin("agx-orin", "AGX Orin", "11.4", (2, 2), (32, 64)),
    Target(
        name="jetson-thor",
        title="NVIDIA Jetson Thor",
        style="tensorrt",
        runtime="tensorrt",
        where=_ON_DEVICE,
        sm=("11.0",),
        jetpack=("7.0", "7.2"),
        tensorrt=("10.13", "11.4"),
        memory_gb=(64, 128),
        board="Thor",
    ),
    Target(
        name="jetson-nano",
        title="NVIDIA Jetson Nano",
        style="tensorrt",
        runtime="tensorrt",
        where="nowhere",
        sm=("5.3",),
        jetpack=("4.6", "4.6"),
        tensorrt=("8.2", "8.2"),
        max_opset=13,
        memory_gb=(4,),
        refused="its Maxwell GPU (SM 5.3) has no INT8 arithmetic; that begins with SM 6.1",
        board="Jetson Nano",
    ),
)

TARGETS: dict[str, Target] = {target.name: target for target in _ALL}
JETSON_SM = frozenset(sm for target in _ALL if target.board for sm in target.sm)


def get_target(name: str) -> Target:
    """The target of this name.

    Raises:
        UsageError: there is none (the nearest names are given), or it cannot run INT8 (the reason is given).
    """
    if name not in TARGETS:
        near = ", ".join(get_close_matches(name, TARGETS, n=3, cutoff=0.4) or TARGETS)
        raise UsageError(f"no target is named {name!r}", hint=f"did you mean {near}? edgeres targets lists all")
    target = TARGETS[name]
    if target.refused:
        raise UsageError(f"{target.title} cannot be a target: {target.refused}", hint="see: edgeres targets")
    return target


def target_of_board(model: str) -> Target | None:
    """The Jetson that ``/proc/device-tree/model`` names, e.g. ``NVIDIA Jetson Orin NX Engineering Reference Kit``."""
    return next((target for target in _ALL if target.board and target.board in model), None)


def this_board(model: Path = Path("/proc/device-tree/model")) -> Target | None:
    """The Jetson that this machine is; None for any other machine, and for a Jetson that cannot be a target."""
    try:
        target = target_of_board(model.read_text(errors="replace"))
    except OSError:
        return None
    return None if target is None or target.refused else target
