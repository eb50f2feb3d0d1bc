"""Read activations from ONNX Runtime in the layout of its kernels, without conversion.

On x86 ONNX Runtime computes convolutions in a blocked layout (NCHWc: 8 or 16 channels side by side) and converts every
graph output to NCHW. For tens of tensors this takes a tenth of the network's time, and counting does not need an order.
So ONNX Runtime writes its optimized graph to a file, and the blocked tensors become the outputs of that graph. Where
there are none (another processor, another release), the original graph runs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeres.errors import ModelError, reading, temporary_space
from edgeres.records import F32

if TYPE_CHECKING:
    import onnx

# The widest block. With other channel counts blocks are padded with zeros, which must not be counted.
_BLOCK = 16


class ActivationRunner:
    """Runs a graph and returns the values of the named tensors, in any order within an image.

    Args:
        model: a canonical graph; it is not changed.
        tensors: names of float32 tensors of the graph whose first axis is the batch.
        threads: per inference; several inferences may run at once.

    Raises:
        ModelError: ONNX Runtime cannot load the graph.

    Attributes:
        bytes_per_image: of all named tensors; 0 where their shapes are unknown.
    """

    def __init__(self, model: onnx.ModelProto, tensors: Sequence[str], threads: int = 0) -> None:
        self._input = str(model.graph.input[0].name)
        inner = [name for name in tensors if name != self._input]
        serialized = with_outputs(model, inner)
        self._fetched = {name: name for name in inner}
        with tempfile.TemporaryDirectory(prefix="edgeres-") as folder:
            file = Path(folder) / "optimized.onnx"
            session = _session(serialized, threads, save=file)
            self.bytes_per_image = 4 * sum(_values(output.shape) for output in session.get_outputs())
            blocked = _blocked(file, inner)
            if blocked:
                del session
                self._fetched |= blocked
                session = _session(str(file), threads, optimize=False)
        self._session: Any = session
        self._tensors = tuple(tensors)

    def infer(self, inputs: F32) -> dict[str, F32]:
        """The values of each tensor, (B, n), for inputs (B, 3, h, w) or (B, h, w, 3)."""
        names = list(dict.fromkeys(self._fetched.values()))
        found = dict(zip(names, self._session.run(names, {self._input: inputs}) if names else (), strict=True))
        found = {tensor: found[name] for tensor, name in self._fetched.items()} | {self._input: inputs}
        return {name: np.ascontiguousarray(found[name]).reshape(len(inputs), -1) for name in self._tensors}

    def __enter__(self) -> ActivationRunner:
        return self

    def __exit__(self, *error: object) -> None:
        self._session = None


def with_outputs(model: onnx.ModelProto, tensors: Iterable[str]) -> bytes:
    """The serialized graph with more tensors as outputs."""
    import onnx

    present = {value.name for value in model.graph.output}
    more = onnx.ModelProto()
    more.graph.output.extend(_output(name) for name in tensors if name not in present)
    # Concatenated messages are merged when they are parsed. So the weights need not be copied.
    return bytes(model.SerializeToString() + more.SerializeToString())


def _session(model: bytes | str, threads: int, *, save: Path | None = None, optimize: bool = True) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if save is not None:
        options.optimized_model_filepath = str(save)
        # With the weights in a separate file, the graph is read and written fast.
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    with temporary_space(save and save.parent), reading(None, "ONNX Runtime cannot load this graph", error=ModelError):
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _blocked(file: Path, tensors: Sequence[str]) -> Mapping[str, str]:
    """Make blocked tensors outputs of the optimized graph in ``file``; returns the output's name by tensor.

    Before: Conv -> blocked -> ReorderOutput -> tensor (an output)
    After:  Conv -> blocked (an output)
    """
    import onnx

    model = onnx.load(file, load_external_data=False)
    graph = model.graph
    read = {name for node in graph.node for name in node.input}
    found: dict[str, str] = {}
    for node in [node for node in graph.node if node.op_type == "ReorderOutput"]:
        tensor = node.output[0]
        channels = next((attribute.i for attribute in node.attribute if attribute.name == "channels"), 0)
        if tensor not in tensors or channels % _BLOCK or not channels:
            continue
        found[tensor] = node.input[0]
        if tensor not in read:
            graph.node.remove(node)
    if found:
        kept = [value for value in graph.output if value.name not in found]
        del graph.output[:]
        graph.output.extend([*kept, *map(_output, dict.fromkeys(found.values()))])
        onnx.save(model, file)
    return found


def _output(name: str) -> onnx.ValueInfoProto:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def _values(shape: Sequence[Any]) -> int:
    """Number of values per image; 0 where a dimension is unknown."""
    return int(np.prod([dim if isinstance(dim, int) else 0 for dim in shape[1:]]))
