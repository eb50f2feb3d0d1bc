"""Measure one calibration in its own process: ``python calibration_child.py TOOL FOLDER IMAGES`` prints a line of JSON.

    FOLDER/fp32.onnx, its input named ``input``, and FOLDER/images.u8, uint8 (N, 224, 224, 3)
        -> seconds, forward passes, peak memory

It measures the time of the whole call, from a graph and images to a quantized graph, and, where the tool allows it, the
time of the calibration alone, from images to ranges. Before and after it, it measures a plain forward pass over the
same images, read in the same way. The peak memory is that of the process during the call, with interpreter, libraries
and graph. edgeres is imported only where it is the tool, so that an environment of Model Optimizer can run this script.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
Clock = Callable[[str, float], None]

PX, BATCH = 224, 8
MEAN = np.array([0.485, 0.456, 0.406], np.float32) * 255
STD = np.array([0.229, 0.224, 0.225], np.float32) * 255
INPUT = "input"


def pixels(folder: Path, first: int, count: int) -> npt.NDArray[np.uint8]:
    """Read images; a mapped file would count as memory of the process."""
    size = PX * PX * 3
    found = np.fromfile(folder / "images.u8", np.uint8, count * size, offset=first * size)
    return found.reshape(count, PX, PX, 3)


def batches(folder: Path, images: int) -> Iterator[F32]:
    for first in range(0, images, BATCH):
        part = pixels(folder, first, min(BATCH, images - first)).astype(np.float32)
        yield np.ascontiguousarray(((part - MEAN) / STD).transpose(0, 3, 1, 2))


class Reader:
    """Batches for ONNX Runtime's quantizer and Model Optimizer."""

    def __init__(self, folder: Path, images: int) -> None:
        self._folder, self._images = folder, images
        self.rewind()

    def rewind(self) -> None:
        self._batches = batches(self._folder, self._images)

    def __len__(self) -> int:
        return -(-self._images // BATCH)

    def get_first(self) -> dict[str, F32]:
        self.rewind()
        return {INPUT: next(self._batches)}

    def get_next(self) -> dict[str, F32] | None:
        part = next(self._batches, None)
        return None if part is None else {INPUT: part}


def forward(folder: Path, images: int) -> float:
    """Seconds of a plain pass on ONNX Runtime with its default options."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(folder / "fp32.onnx"), providers=["CPUExecutionProvider"])
    session.run(None, {INPUT: next(batches(folder, 1))})
    start = time.perf_counter()
    for part in batches(folder, images):
        session.run(None, {INPUT: part})
    return time.perf_counter() - start


def onnx_runtime(method: str, folder: Path, images: int, clock: Clock) -> None:
    """Run quantize_static, and measure the calls of its calibrator."""
    from onnxruntime import quantization as q
    from onnxruntime.quantization import calibrate

    kind = {"MinMax": calibrate.MinMaxCalibrater, "Percentile": calibrate.HistogramCalibrater}[method]
    for name in ("collect_data", "compute_data"):
        setattr(kind, name, _timed(getattr(kind, name), clock))
    with tempfile.TemporaryDirectory() as target:
        q.quantize_static(
            folder / "fp32.onnx",
            Path(target) / "int8.onnx",
            Reader(folder, images),
            quant_format=q.QuantFormat.QDQ,
            per_channel=True,
            calibrate_method=q.CalibrationMethod[method],
            activation_type=q.QuantType.QInt8,
            weight_type=q.QuantType.QInt8,
            extra_options={"ActivationSymmetric": True, "QuantizeBias": False},
        )


def model_optimizer(method: str, folder: Path, images: int, clock: Clock) -> None:
    """Run Model Optimizer's function; its calibration cannot be measured separately."""
    from modelopt.onnx.quantization import quantize

    with tempfile.TemporaryDirectory() as target:
        quantize(
            str(folder / "fp32.onnx"),
            quantize_mode="int8",
            calibration_data_reader=Reader(folder, images),
            calibration_method=method,
            calibration_eps=["cpu"],
            high_precision_dtype="fp32",
            output_path=str(Path(target) / "int8.onnx"),
            log_level="ERROR",
        )


def edgeres(styles: str, folder: Path, images: int, clock: Clock) -> None:
    """Observe, choose ranges, plan and rewrite, as ``--effort fast`` does."""
    import onnx

    from edgeres.calibrate.record import Calibration
    from edgeres.data.base import Source
    from edgeres.data.loader import Loader
    from edgeres.quantize import graphs
    from edgeres.records import Preprocess

    class Raw(Source):
        classes = ()
        labels = np.full(images, -1, np.int64)
        description = f"{images} images"

        def name(self, index: int) -> str:
            return f"images[{index}]"

        def image(self, index: int) -> npt.NDArray[np.uint8]:
            return pixels(folder, index, 1)[0]

        def digest(self) -> str:
            return sha256(self.description.encode()).hexdigest()

    for owner, name in ((graphs, "observe"), (Calibration, "choose")):
        setattr(owner, name, _timed(getattr(owner, name), clock))
    graph = onnx.load(folder / "fp32.onnx")
    loader = Loader(Raw(), Preprocess((PX, PX)), BATCH)
    chosen = [style for style in graphs.STYLES if style in styles.split("+")]
    graphs.quantize(graph, chosen, loader, graphs.RangeChoice())


def _timed(call: Callable[..., Any], clock: Clock) -> Callable[..., Any]:
    def wrapped(*args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return call(*args, **options)
        finally:
            clock("calibration", time.perf_counter() - start)

    return wrapped


def _memory(key: str) -> int:
    """Bytes, from the kernel's account of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def _versions() -> dict[str, str]:
    found = {}
    for package in ("nvidia-modelopt", "onnx", "onnxruntime", "onnxruntime-gpu", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def main() -> None:
    tool, method = sys.argv[1].split(":")
    folder, images = Path(sys.argv[2]), int(sys.argv[3])
    work = {"edgeres": edgeres, "onnxruntime": onnx_runtime, "modelopt": model_optimizer}[tool]
    seconds: dict[str, float] = {}

    def clock(name: str, spent: float) -> None:
        seconds[name] = seconds.get(name, 0.0) + spent

    passes = [forward(folder, images)]
    gc.collect()
    with contextlib.suppress(OSError):  # memory that the pass freed must not count for the call; a function of glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # reset the peak
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        start = time.perf_counter()
        work(method, folder, images, clock)
        seconds["call"] = time.perf_counter() - start
    peak = _memory("VmHWM")
    passes.append(forward(folder, images))
    print(json.dumps({"seconds": seconds, "forward": passes, "peak_bytes": peak, "versions": _versions()}))


if __name__ == "__main__":
    main()
