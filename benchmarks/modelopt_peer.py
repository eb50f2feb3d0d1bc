"""Run NVIDIA Model Optimizer on one graph, in its own environment: ``python modelopt_peer.py FOLDER METHOD``.

    FOLDER/fp32.onnx, FOLDER/images.npz (``images``, float32 (N, ...))  ->  FOLDER/int8.onnx, FOLDER/peer.json

METHOD is ``max`` or ``entropy``. ``peer.json`` holds the seconds of the call alone, without imports, and the versions.
It does not import edgeres, because :mod:`accuracy` runs it with the Python of another environment.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np


def versions() -> dict[str, str]:
    """Versions of the packages that decide the result; ONNX Runtime has two names."""
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
