"""Measure one network of :mod:`zoo` in its own process: ``python zoo_child.py NETWORK FOLDER EFFORT`` prints JSON.

    FOLDER/images.npz -> settled network -> edgeres build -> report
                                         -> ONNX Runtime's quantizer, for its CPU kernels and as for TensorRT

Both are compared with the same FP32 scores of the same validation images, and their CPU graphs are timed in turn.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import zoo_networks as nets
from torch import nn

from edgeres.data.signs import Split

F32 = npt.NDArray[np.float32]
# Images and seed.
SETS: dict[Split, tuple[int, int]] = {"calibration": (64, 0), "validation": (160, 1)}
_PEER_BATCH = 16
_ROUNDS, _RUN_S = 15, 0.15


def main() -> None:
    name, folder, effort = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(sys.stderr):
        row = measure(nets.NETWORKS[name], folder, effort)
    print(json.dumps(row))


def measure(network: nets.Network, folder: Path, effort: str) -> dict[str, Any]:
    """A row of the table. What fails in the peer stands in it as text; what fails in edgeres ends the process."""
    images = np.load(folder / "images.npz")
    module = nets.settled(network, images["images"], images["labels"])
    row: dict[str, Any] = {"trait": network.trait, "mparams": sum(p.numel() for p in module.parameters()) / 1e6}
    with tempfile.TemporaryDirectory() as text:
        work = Path(text)
        row |= ours(module, network.timm, images["images"].shape[1], work, effort)
        inputs = {split: network_inputs(work / "bundle", split) for split in ("calibration", "validation")}
        row["peer"] = peer(work, inputs)
        row |= timed(work, row["peer"], inputs["validation"][:1])
    return row


def ours(module: nn.Module, name: str, px: int, work: Path, effort: str) -> dict[str, Any]:
    import edgeres

    before = time.perf_counter()
    result = edgeres.build(
        module,
        name=name,
        input_px=(px, px),
        mean=nets.MEAN,
        std=nets.STD,
        resize_px=None,
        calibration="signs:{}@{}".format(*SETS["calibration"]),
        validation="signs:{}@{}".format(*SETS["validation"]),
        effort=effort,
        targets=("cpu", "rtx"),
        thumbnails=False,
        output=work / "bundle",
    )
    report = result.report
    graphs = report["accuracy"]["graphs"]
    engine = next((e for e in report["engines"] if e["target"] == "rtx" and e["precision"] == "int8"), None)
    return {
        "seconds": time.perf_counter() - before,
        "fp32_top1": report["accuracy"]["fp32"]["top1"],
        "graphs": {
            form: {"sqnr_db": graph["logit_sqnr_db"], "agreement": graph["agreement"]} for form, graph in graphs.items()
        },
        "rtx": "not written" if engine is None else engine["status"],
        "float": {style: left_in_float(entry["skipped"]) for style, entry in report["quantization"].items()},
        "refinement": [
            f"{step['name']}, {step['style']}: {step['note']}" for step in report["refinement"] if step["note"]
        ],
    }


def left_in_float(skipped: list[Mapping[str, str]]) -> list[tuple[str, int, str]]:
    """(operator, how many, why) of what stays in float."""
    counted = Counter((entry["what"].split()[0], entry["reason"]) for entry in skipped)
    return [(op, count, reason) for (op, reason), count in counted.items()]


def network_inputs(bundle: Path, split: Split) -> F32:
    """The images of the build in the form that the bundle's graphs take."""
    from edgeres.bundle import Bundle
    from edgeres.data.loader import Loader
    from edgeres.data.signs import Signs

    preprocess = Bundle(bundle).manifest.model.preprocess
    count, seed = SETS[split]
    source = Signs(split, count, preprocess.crop_px[0], seed)
    return np.concatenate([batch.inputs for batch in Loader(source, preprocess, _PEER_BATCH)])


def peer(work: Path, inputs: Mapping[str, F32]) -> dict[str, Any]:
    """ONNX Runtime's quantizer on the same graph, by style; a failure as text."""
    import onnx
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    fp32 = onnx.load(work / "bundle" / "model.fp32.onnx")
    validation = inputs["validation"]
    reference = scores(work / "bundle" / "model.fp32.onnx", validation, integer=False)
    found: dict[str, Any] = {}
    styles: dict[str, tuple[dict[str, Any], Any]] = {
        "cpu": ({}, q.QuantType.QUInt8),
        "tensorrt": ({"ActivationSymmetric": True, "QuantizeBias": False}, q.QuantType.QInt8),
    }
    for style, (extra, activation) in styles.items():
        target = work / f"peer.{style}.onnx"
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                quant_pre_process(fp32, work / "prepared.onnx")
                q.quantize_static(
                    work / "prepared.onnx",
                    target,
                    _Reader(fp32.graph.input[0].name, inputs["calibration"]),
                    quant_format=q.QuantFormat.QDQ,
                    per_channel=True,
                    activation_type=activation,
                    weight_type=q.QuantType.QInt8,
                    extra_options=extra,
                )
            answers = scores(target, validation, integer=style == "cpu")
        except Exception as error:  # onnx's and ONNX Runtime's errors share no other base; each is a cell of the table
            found[style] = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"}
            continue
        noise = ((answers - reference) ** 2).sum(dtype=np.float64)
        found[style] = {
            "sqnr_db": float(10 * np.log10((reference**2).sum(dtype=np.float64) / noise)),
            "agreement": float((answers.argmax(1) == reference.argmax(1)).mean() * 100),
        }
    return found


class _Reader:
    """Batches for quantize_static, which accepts any class with ``get_next``."""

    def __init__(self, name: str, images: F32) -> None:
        self._parts = ({name: images[i : i + _PEER_BATCH]} for i in range(0, len(images), _PEER_BATCH))

    def get_next(self) -> dict[str, F32] | None:
        return next(self._parts, None)


def scores(path: Path, images: F32, *, integer: bool) -> F32:
    session = _session(path, integer=integer)
    name = session.get_inputs()[0].name
    parts = (images[i : i + _PEER_BATCH] for i in range(0, len(images), _PEER_BATCH))
    return np.concatenate([session.run(None, {name: part})[0] for part in parts])


def _session(path: Path, *, integer: bool = True, threads: int = 0) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if not integer:  # ONNX Runtime would fuse pairs into integer kernels
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def timed(work: Path, peers: Mapping[str, Any], image: F32) -> dict[str, Any]:
    """How much faster the CPU graphs are than FP32: medians of ratios, one image, one thread, in turn."""
    paths = {"fp32": work / "bundle" / "model.fp32.onnx", "edgeres": work / "bundle" / "model.int8.cpu.onnx"}
    if "failed" not in peers["cpu"]:
        paths["peer"] = work / "peer.cpu.onnx"
    sessions = {name: _session(path, threads=1) for name, path in paths.items() if path.is_file()}
    ratios: dict[str, list[float]] = {name: [] for name in sessions if name != "fp32"}
    for turn in range(_ROUNDS + 1):
        seconds = {name: _mean_seconds(session, image) for name, session in sessions.items()}
        for name, found in ratios.items():
            if turn:  # the first one warms up
                found.append(seconds["fp32"] / seconds[name])
    return {"speedup": {name: statistics.median(found) for name, found in ratios.items()}}


def _mean_seconds(session: ort.InferenceSession, image: F32) -> float:
    name, begin, runs = session.get_inputs()[0].name, time.perf_counter(), 0
    while (passed := time.perf_counter() - begin) < _RUN_S or runs < 2:
        session.run(None, {name: image})
        runs += 1
    return passed / runs


if __name__ == "__main__":
    main()
