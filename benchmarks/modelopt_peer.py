"""NVIDIA Model Optimizer on one graph, in the environment that has it: ``python modelopt_peer.py FOLDER METHOD``.

    FOLDER/fp32.onnx, FOLDER/images.npz (``images``, float32 (N, ...))  ->  FOLDER/int8.onnx, FOLDER/peer.json

METHOD is ``max`` or ``entropy``. ``peer.json`` holds the seconds of the call alone, without imports, and the versions.
It imports nothing of edgeres: :mod:`accuracy` runs it with the interpreter of an environment of its own.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np


def versions() -> dict[str, str]:
    """Of what decides the result; ONNX Runtime comes under either name."""
    found = {}
    for package in ("nvidia-modelopt", "onnx", "onnxruntime", "onnxruntime-gpu"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    folder, method = Path(sys.argv[1]), sys.argv[2]
    from modelopt.onnx.quantization import quantize

    images = np.load(folder / "images.npz")["images"]
    start = time.perf_counter()
    quantize(
        str(folder / "fp32.onnx"),
        quantize_mode="int8",
        calibration_data=images,
        calibration_method=method,
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=str(folder / "int8.onnx"),
        log_level="ERROR",
    )
    done = {"seconds": time.perf_counter() - start, "environment": versions()}
    (folder / "peer.json").write_text(json.dumps(done), encoding="utf-8")


if __name__ == "__main__":
    main()
