"""Warn before a build that is likely to fail on its target, for want of memory or by the ONNX opset.

Weights are counted with NumPy alone; activations and opsets need onnx, and are left out where it is not installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from edgeres.bundle import FP32
from edgeres.device.gpu import this_gpu
from edgeres.device.targets import Target, this_board
from edgeres.graph.forms import form_for
from edgeres.graph.trial import read_graph

if TYPE_CHECKING:
    import onnx

# Memory that a Jetson's system and desktop take: assumed, not measured.
SYSTEM_BYTES = int(1.5e9)
_COPIES = 3  # of the weights while an engine is built: the parser's, the builder's, the engine's
_GB = 1e9


@dataclass(frozen=True)
class MemoryNeed:
    """Memory that a build takes at its peak, in bytes.

    Attributes:
        weights: size of the FP32 graph's weights; its engine is built beside the INT8 one.
        activations: the most that are alive at once at the largest batch, in float32; None: onnx is not installed.
        workspace: scratch memory that one layer may take.
    """

    weights: int
    activations: int | None
    workspace: int

    @property
    def total(self) -> int:
        return _COPIES * self.weights + (self.activations or 0) + self.workspace

    @property
    def basis(self) -> str:
        """What was counted, in words."""
        activations = "activations not counted: onnx is not installed"
        if self.activations is not None:
            activations = f"{_gb(self.activations)} of float32 activations alive at once"
        return f"{_COPIES} x {_gb(self.weights)} of weights, {activations}, {_gb(self.workspace)} of workspace"


def warnings(folder: Path, target: Target, max_batch: int, workspace_mb: int | None = None) -> Iterator[str]:
    """One line for each reason why a build for this target from the graphs in ``folder`` is likely to fail."""
    if target.runtime == "onnxruntime":
        return
    yield from _opsets(folder, target)
    memories = _memories(target)
    need = memory_need(folder / FP32, max_batch, 0) if memories else MemoryNeed(0, None, 0)
    for memory in memories:
        own = target.workspace_bytes(memory) or 0  # the vendor's default: all memory that is left
        workspace = own if workspace_mb is None else workspace_mb << 20
        system = SYSTEM_BYTES if target.shared_memory else 0
        full = MemoryNeed(need.weights, need.activations, workspace)
        if full.total + system > memory:
            what = f"batch {max_batch} is not likely to fit {_gb(memory)} of memory"
            basis = full.basis + (f", {_gb(system)} for the system" if system else "")
            yield f"{what}: it needs about {_gb(full.total + system)} ({basis}); lower --max-batch or --workspace-mb"


def _memories(target: Target) -> list[int]:
    """Bytes of this device's memory if it is the target, else of every variant that the target is sold with."""
    gpu, _ = this_gpu()
    if gpu is not None and (this_board() is target or target.name == target.runtime):
        return [gpu.memory_bytes]
    return [int(size * _GB) for size in target.board.memory_gb]


def _opsets(folder: Path, target: Target) -> Iterator[str]:
    if target.tensorrt is None:  # TensorRT-RTX builds here, and its own parser reports the opset
        return
    try:
        import onnx

        from edgeres.graph.graph import opset_of
    except ImportError:
        return
    for name in (form_for(target.runtime).file, FP32):
        path = folder / name
        if not path.is_file():
            continue
        opset = opset_of(onnx.load_from_string(read_graph(path)))
        if opset > target.max_opset:
            documented = f"TensorRT {target.tensorrt[0]} documents up to {target.max_opset}"
            yield f"{name} has opset {opset}, and {documented}: export the model with opset {min(target.max_opset, 17)}"


def memory_need(graph: Path, max_batch: int, workspace: int) -> MemoryNeed:
    """The memory of a build, from the sizes of a float graph's tensors; without onnx, from the size of its file."""
    try:
        import onnx
    except ImportError:
        return MemoryNeed(graph.stat().st_size, None, workspace)
    model = onnx.load_from_string(read_graph(graph))
    weights = sum(prod(tensor.dims) * 4 for tensor in model.graph.initializer)
    return MemoryNeed(weights, peak_activations(model, max_batch), workspace)


def peak_activations(model: onnx.ModelProto, batch: int) -> int:
    """The most bytes of float32 tensors that are alive at once.

    Nodes run in their order, a tensor is freed after its last reader, and a ReLU works in place.
    """
    from edgeres.graph.graph import Graph

    graph = Graph(model)
    # An unknown size is the batch on the first axis, and counts as 1 on any other.
    known = {
        name: [size or (1 if axis else batch) for axis, size in enumerate(graph.shape(name))] for name in graph.types
    }
    sizes = {name: 4 * prod(shape) for name, shape in known.items()}
    alive = {name: sizes[name] for name in graph.inputs if name in sizes}
    peak = sum(alive.values())
    for index, node in enumerate(graph.nodes):
        ended = {name for name in node.input if graph.last_use(name) == index}
        kept = {name: size for name, size in alive.items() if name not in ended}
        made = {name: sizes[name] for name in node.output if name in sizes}
        peak = max(peak, sum(((kept if node.op_type == "Relu" else alive) | made).values()))
        alive = kept | made
    return peak


def _gb(count: int) -> str:
    return f"{count / _GB:.2g} GB" if count < _GB else f"{count / _GB:.1f} GB"
