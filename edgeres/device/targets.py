"""The targets that edgeres builds for: what each device can run, and where its engine is built.

Sources: NVIDIA's support matrices of TensorRT 8.5, 10.3 to 11.4 and TensorRT-RTX 1.7, the JetPack release notes, and
the data sheets of the Jetson modules.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from edgeres.errors import UsageError
from edgeres.records import Style

# The runtimes of engines, the preferred one first.
Flavour = Literal["tensorrt", "rtx"]
Runtime = Literal["onnxruntime", Flavour]
RUNTIME_TITLES: dict[str, str] = {"onnxruntime": "ONNX Runtime", "rtx": "TensorRT-RTX", "tensorrt": "TensorRT"}

# Compute capabilities that TensorRT-RTX builds for; by default an engine runs on all of them but Turing (7.5).
RTX_COMPUTE_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
RTX_PORTABLE = RTX_COMPUTE_CAPABILITIES[1:]

_ON_DEVICE = "copy the bundle to the device and run there: edgeres engine BUNDLE"
_BY_TRTEXEC = (
    "copy model.int8.onnx to the device and run there: trtexec --onnx=model.int8.onnx --int8 --saveEngine=model.engine"
    " (JetPack 5 has TensorRT 8.5 and Python 3.8, which edgeres does not run on)"
)


@dataclass(frozen=True)
class JetsonModule:
    """The Jetson module of a target; the default stands for a target that is no Jetson.

    Attributes:
        model: the part of ``/proc/device-tree/model`` that names it.
        jetpack: first and last JetPack that it is described for.
        dla: fewest and most DLA cores among its variants.
        memory_gb: memory sizes of its variants; CPU and GPU share the memory.
    """

    model: str = ""
    jetpack: tuple[str, str] | None = None
    dla: tuple[int, int] = (0, 0)
    memory_gb: tuple[int, ...] = ()


@dataclass(frozen=True)
class Target:
    """A device, or a runtime on this machine.

    Attributes:
        name: as ``--target`` takes it.
        title: its name in text.
        style: the placement of Q/DQ that its runtime needs.
        runtime: what runs the INT8 graph or engine.
        where: where its engine is built, and how.
        sm: compute capabilities; empty: no GPU, or any that the runtime supports.
        tensorrt: first and last version of TensorRT that it is described for; None where it uses no TensorRT.
        max_opset: the newest ONNX opset that every TensorRT of that range documents.
        refused: why it cannot be a target; "" where it can.
    """

    name: str
    title: str
    style: Style
    runtime: Runtime
    where: str
    sm: tuple[str, ...] = ()
    tensorrt: tuple[str, str] | None = None
    max_opset: int = 20
    refused: str = ""
    board: JetsonModule = JetsonModule()

    @property
    def int8(self) -> bool:
        """Whether its hardware multiplies in INT8."""
        return not self.refused

    @property
    def shared_memory(self) -> bool:
        """Whether CPU and GPU share one memory, as on every Jetson."""
        return bool(self.board.model)

    def workspace_bytes(self, memory_bytes: int) -> int | None:
        """Scratch memory of a layer: a quarter of a shared memory; None: the vendor's default, all of the GPU's."""
        return memory_bytes // 4 if self.shared_memory else None

    def accepts(self, sm: str) -> bool:
        """Whether an engine for this target can be built on a GPU of this compute capability."""
        return not self.sm or sm in self.sm

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with the board's facts beside the others."""
        board = asdict(self.board)
        return {**asdict(self), "board": board.pop("model"), **board, "int8": self.int8}


def _jetson(name: str, sm: str, tensorrt: tuple[str, str], board: JetsonModule, **others: Any) -> Target:
    title = f"NVIDIA Jetson {board.model.removeprefix('Jetson ')}"
    facts = {"where": _ON_DEVICE, "sm": (sm,), "tensorrt": tensorrt, "board": board, **others}
    return Target(f"jetson-{name}", title, "tensorrt", "tensorrt", **facts)


def _orin(name: str, title: str, tensorrt: str, dla: tuple[int, int], memory_gb: tuple[int, ...]) -> Target:
    return _jetson(name, "8.7", ("10.3", tensorrt), JetsonModule(title, ("6.1", "7.2"), dla, memory_gb))


def _xavier(name: str, title: str, memory_gb: tuple[int, ...]) -> Target:
    board = JetsonModule(title, ("5.1", "5.1"), (2, 2), memory_gb)
    return _jetson(name, "7.2", ("8.5", "8.5"), board, where=_BY_TRTEXEC, max_opset=17)


_THOR = JetsonModule("Thor", ("7.0", "7.2"), memory_gb=(64, 128))
_NANO = JetsonModule("Jetson Nano", ("4.6", "4.6"), memory_gb=(4,))
_NO_INT8 = "its Maxwell GPU (SM 5.3) has no INT8 arithmetic; that begins with SM 6.1"
_ANY_RTX, _THIS_GPU = "NVIDIA RTX GPU, TensorRT-RTX", "the NVIDIA GPU of this machine, TensorRT"
_HERE = "on this machine, with or without a GPU"
_HERE_WITH_GPU = "on this machine where it has an NVIDIA GPU; else " + _ON_DEVICE
_ALL = (
    Target("cpu", "ONNX Runtime on a CPU", "cpu", "onnxruntime", "no engine: model.int8.cpu.onnx runs as it is"),
    Target("rtx", _ANY_RTX, "tensorrt", "rtx", _HERE, sm=RTX_COMPUTE_CAPABILITIES),
    Target("tensorrt", _THIS_GPU, "tensorrt", "tensorrt", _HERE_WITH_GPU, tensorrt=("10.3", "11.4")),
    _xavier("xavier-nx", "Xavier NX", (8, 16)),
    _xavier("agx-xavier", "AGX Xavier", (32, 64)),
    _orin("orin-nano", "Orin Nano", "10.16", (0, 0), (4, 8)),
    _orin("orin-nx", "Orin NX", "10.16", (1, 2), (8, 16)),
    _orin("agx-orin", "AGX Orin", "11.4", (2, 2), (32, 64)),
    _jetson("thor", "11.0", ("10.13", "11.4"), _THOR),
    _jetson("nano", "5.3", ("8.2", "8.2"), _NANO, where="nowhere", max_opset=13, refused=_NO_INT8),
)

TARGETS: dict[str, Target] = {target.name: target for target in _ALL}
JETSON_SM = frozenset(sm for target in _ALL if target.board.model for sm in target.sm)


def get_target(name: str) -> Target:
    """The target of this name.

    Raises:
        UsageError: there is no such target, or it cannot run INT8; the message has similar names, or the reason.
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
    return next((t for t in _ALL if t.board.model and t.board.model in model), None)


def this_board(model: Path = Path("/proc/device-tree/model")) -> Target | None:
    """The target of this machine where it is a Jetson; None for other machines and for a Jetson that is no target."""
    try:
        target = target_of_board(model.read_text(errors="replace"))
    except OSError:
        return None
    return None if target is None or target.refused else target
