"""Other tools on the same FP32 graph and calibration inputs, configured for TensorRT."""

from __future__ import annotations

import io
import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from accuracy_cases import Case, Result, clocked, timed

from edgeres.records import F32

ORT_METHODS = ("MinMax", "Percentile", "Entropy")
MODELOPT_METHODS = ("max", "entropy")
INSTALL_MODELOPT = "python -m venv .venv-modelopt && .venv-modelopt/bin/pip install 'nvidia-modelopt[onnx]'"
# ONNX Runtime's quantizer holds every tensor of every image; for larger inputs, it gets them in parts.
_ORT_INPUT_BYTES, _ORT_PART = 64 << 20, 64


def onnx_runtime(case: Case) -> Iterator[Result]:
    """ONNX Runtime's quantize_static: symmetric int8 activations, int8 weights per channel, bias in float."""
    images = _inputs(case)
    for method in ORT_METHODS:
        graph, cost = timed(case, clocked(partial(_quantize_static, case, images, method)))
        yield Result(f"ONNX Runtime {method}", "ONNX Runtime", graph, case.validation, cost=cost)


def _inputs(case: Case) -> F32:
    return np.concatenate([batch.inputs for batch in case.calibration])


def _quantize_static(case: Case, images: F32, method: str) -> onnx.ModelProto:
    from onnxruntime import quantization as q

    options: dict[str, Any] = {"ActivationSymmetric": True, "QuantizeBias": False}
    if images.nbytes > _ORT_INPUT_BYTES:
        options["CalibStridedMinMax"] = max(n for n in range(1, _ORT_PART + 1) if len(images) % n == 0)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(case.fp32.graph, source)
        q.quantize_static(
            source,
            target,
            _Reader(case.fp32.graph.graph.input[0].name, images, case.calibration.batch_size),
            quant_format=q.QuantFormat.QDQ,
            per_channel=True,
            calibrate_method=q.CalibrationMethod[method],
            activation_type=q.QuantType.QInt8,
            weight_type=q.QuantType.QInt8,
            extra_options=options,
        )
        return onnx.load(target)


class _Reader:
    """Batches of images for quantize_static, which accepts any class with ``get_next``."""

    def __init__(self, name: str, images: F32, batch: int) -> None:
        self._name, self._images, self._batch = name, images, batch
        self.set_range(0, len(images))

    def __len__(self) -> int:
        return len(self._images)

    def set_range(self, start_index: int, end_index: int) -> None:
        starts = range(start_index, end_index, self._batch)
        self._parts = (self._images[i : min(i + self._batch, end_index)] for i in starts)

    def get_next(self) -> dict[str, F32] | None:
        part = next(self._parts, None)
        return None if part is None else {self._name: part}


def model_optimizer(case: Case, python: Path, skipped: dict[str, str]) -> Iterator[Result]:
    """Model Optimizer in its own environment; where it is missing or fails, the reason is added to ``skipped``."""
    if not python.is_file():
        skipped["Model Optimizer"] = f"not installed here ({INSTALL_MODELOPT})"
        return
    for method in MODELOPT_METHODS:
        name, versions = f"Model Optimizer {method}", dict[str, str]()
        try:
            graph, cost = timed(case, partial(_modelopt, case, python, method, versions))
        except (OSError, subprocess.CalledProcessError) as error:
            skipped[name] = _cause(error)
            continue
        yield Result(name, "Model Optimizer", graph, case.validation, cost=cost, environment=versions)


def _modelopt(case: Case, python: Path, method: str, versions: dict[str, str]) -> tuple[onnx.ModelProto, float]:
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        onnx.save(case.fp32.graph, folder / "fp32.onnx")
        np.savez(folder / "images.npz", images=_inputs(case))
        script = Path(__file__).with_name("modelopt_peer.py")
        subprocess.run([python, script, folder, method], check=True, capture_output=True, text=True)
        peer = json.loads((folder / "peer.json").read_text(encoding="utf-8"))
        versions.update(peer["environment"])
        return onnx.load(folder / "int8.onnx"), peer["seconds"]


def _cause(error: OSError | subprocess.CalledProcessError) -> str:
    """The last line that a failed process wrote, which mostly is the exception."""
    if isinstance(error, OSError):
        return str(error)
    lines: list[str] = error.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {error.returncode}"
