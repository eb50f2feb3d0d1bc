"""Open and run a graph of unknown cost once, in a process with limits, before this one does; onnx is not needed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from edgeres.device.cpu import usable_cores
from edgeres.errors import ModelError, reading
from edgeres.graph.budget import FREE_PX, admit, read_bounded
from edgeres.graph.confined import confined

NUMPY_NAMES = {"float": "float32", "double": "float64"}  # of ONNX's types, where they differ
# ONNX Runtime's exceptions for graphs that it does not take at all, before it computes anything.
_AT_ONCE = ("InvalidGraph", "InvalidProtobuf", "NotImplemented", "NoSuchFile")


def read_graph(path: Path) -> bytes:
    """The bytes of a graph's file, once arithmetic or a trial told that it can be run.

    Raises:
        ModelError: it cannot be read, is damaged, or takes more memory or time than edgeres allows.
    """
    with reading(path, error=ModelError):
        content = read_bounded(path)
    if admit(content, path):
        try_graph(content, path, path=path)
    return content


def try_graph(content: bytes, where: object, *, path: Path | None = None) -> None:
    """Raise if opening a graph and running one image takes more memory or time than edgeres allows, or fails.

    A graph that ONNX Runtime does not know passes: whoever opens it says what is wrong with it.

    Args:
        path: where the graph lies, for weights beside it.

    Raises:
        ModelError: it does, or it ends the process.
    """
    confined(f"{__name__}:_tried", {"path": str(path.resolve()) if path else None}, content, where)


def _tried(asked: dict[str, Any], content: bytes) -> tuple[dict[str, Any], bytes]:
    """In the other process: infer, open and run it."""
    import numpy as np
    import onnxruntime as ort

    with suppress(ImportError):
        import onnx

        with reading(None, "its sizes cannot be inferred", error=ModelError):
            onnx.shape_inference.infer_shapes(onnx.load_from_string(content), data_prop=True)
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, usable_cores()
    with reading(None, "ONNX Runtime cannot run this graph", error=ModelError):
        try:
            session = ort.InferenceSession(asked["path"] or content, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            if type(error).__name__ in _AT_ONCE:
                return {}, b""
            raise
        feed, random = {}, np.random.default_rng(0)
        for tensor in session.get_inputs():
            sizes = [
                size if isinstance(size, int) else FREE_PX if axis else 1 for axis, size in enumerate(tensor.shape)
            ]
            kind = tensor.type.removeprefix("tensor(").removesuffix(")")
            feed[tensor.name] = random.standard_normal(sizes).astype(NUMPY_NAMES.get(kind, kind))
        session.run(None, feed)
    return {}, b""
