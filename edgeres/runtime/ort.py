"""ONNX Runtime behind the Runner contract."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from edgeres.errors import ModelError
from edgeres.runtime.runner import Feed


class OrtRunner:
    """Runs an ONNX graph on ONNX Runtime.

    Args:
        model: a file, or the serialized graph itself.
        threads: of one operator; 0 takes every core.
        integer: False keeps Q/DQ pairs as they are written, with float32 between the codes. That is what makes ONNX
            Runtime an oracle for TensorRT; its integer kernels would round at other places.

    Raises:
        ModelError: the file is missing or ONNX Runtime cannot load the graph.
    """

    def __init__(self, model: Path | bytes, *, threads: int = 0, integer: bool = True) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if not integer:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        where = None if isinstance(model, bytes) else model
        if where is not None and not where.is_file():
            raise ModelError("no such file", where=where)
        try:
            self._session: Any = ort.InferenceSession(
                model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
            raise ModelError(f"ONNX Runtime cannot load this graph ({error})", where=where) from error
        self.name = f"ONNX Runtime {ort.__version__} CPU"
        self.input_name: str = self._session.get_inputs()[0].name
        self.output_name: str = self._session.get_outputs()[0].name
        self._output_names: list[str] = [output.name for output in self._session.get_outputs()]

    def infer(self, feed: Feed) -> Feed:
        return dict(zip(self._output_names, self._session.run(None, feed), strict=True))

    def __enter__(self) -> OrtRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None
