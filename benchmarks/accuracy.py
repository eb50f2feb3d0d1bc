"""INT8 accuracy of range methods and peers: ``python benchmarks/accuracy.py [--data DIR] [--out docs/accuracy.json]``.

Third-party CIFAR-10 ResNets, 512 calibration images, 10,000 JPEG test images; every graph runs on ONNX Runtime with
float arithmetic between its Q/DQ pairs, as TensorRT computes. Ours by each method, beside ONNX Runtime's own
quantizer set up the way TensorRT takes it (symmetric int8 activations, int8 weights per channel), in the same run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgeres.data.loader import Loader
from edgeres.data.sources import match_labels, open_source, subset
from edgeres.environment import environment
from edgeres.intake import Fp32Model, ModelChoice, take, with_exact_input
from edgeres.quantize.stage import RangeChoice, quantize
from edgeres.records import METHODS, Preprocess
from edgeres.refine.choice import EFFORTS, Effort, RefineChoice
from edgeres.refine.recipe import quantize_with_recipe
from edgeres.runtime.ort import OrtRunner
from edgeres.verify.accuracy import compare

MODELS = {"resnet20": "resnet20-12fca82f.th", "resnet32": "resnet32-d509ac18.th"}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CALIBRATION_IMAGES = 512
PEER_METHODS = ("MinMax", "Percentile", "Entropy")


@dataclass(frozen=True)
class Case:
    """One network with its images."""

    name: str
    fp32: Fp32Model
    calibration: Loader
    validation: Loader


@dataclass(frozen=True)
class Result:
    """A quantized graph of a case; ``integer``: run with ONNX Runtime's integer kernels."""

    name: str
    graph: onnx.ModelProto
    case: Case
    integer: bool = False


def load_case(name: str, shared: Path) -> Case:
    fp32 = take(ModelChoice(name, str(shared / "weights" / MODELS[name]), labels=CLASSES))
    pre = fp32.spec.preprocess
    images = subset(
        open_source(shared / "data" / "cifar10_train4000.npz", role="calibration", px=32), CALIBRATION_IMAGES, 0
    )
    test = open_source(shared / "data" / "cifar10_test10000_jpeg.zip", role="validation", px=32)
    return Case(name, fp32, Loader(images, pre, 32), Loader(match_labels(test, CLASSES), pre, 250))


def ours(case: Case, efforts: Sequence[Effort]) -> Iterator[Result]:
    """Every range method alone, then the recipe by effort and residual precision."""
    for method in METHODS:
        done = quantize(case.fp32.graph, ["tensorrt", "cpu"], case.calibration, RangeChoice(method))
        yield Result(f"edgeres {method}", done.graphs["tensorrt"], case)
        yield Result(f"edgeres {method}, cpu graph", done.graphs["cpu"], case, integer=True)
    exact = with_exact_input(case.fp32)
    pre = exact.spec.preprocess
    case = replace(case, fp32=exact, calibration=_as(case.calibration, pre), validation=_as(case.validation, pre))
    for effort in efforts:
        for residual in ("int8", "auto"):
            choice = RefineChoice(effort, residual)
            start = time.perf_counter()
            ranges = RangeChoice(known=exact.known)
            graphs = quantize_with_recipe(exact.graph, ["tensorrt"], case.calibration, ranges, choice).quantized.graphs
            print(f"{time.perf_counter() - start:.0f} s")
            yield Result(f"edgeres {effort}, {residual} residual", graphs["tensorrt"], case)


def _as(loader: Loader, preprocess: Preprocess) -> Loader:
    return Loader(loader.source, preprocess, loader.batch_size)


def onnx_runtime(case: Case) -> Iterator[Result]:
    """ONNX Runtime's quantize_static in the form that TensorRT takes."""
    from onnxruntime import quantization as q

    class Reader(q.CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = iter(case.calibration)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self._batches, None)
            return None if batch is None else {"input": batch.inputs}

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(case.fp32.graph, source)
        for method in PEER_METHODS:
            q.quantize_static(
                source,
                target,
                Reader(),
                quant_format=q.QuantFormat.QDQ,
                per_channel=True,
                calibrate_method=q.CalibrationMethod[method],
                activation_type=q.QuantType.QInt8,
                weight_type=q.QuantType.QInt8,
                extra_options={"ActivationSymmetric": True, "QuantizeBias": False},
            )
            yield Result(f"ONNX Runtime {method}", onnx.load(target), case)


def measure(result: Result) -> dict[str, Any]:
    name, case = result.name, result.case
    with (
        OrtRunner(case.fp32.graph.SerializeToString()) as reference,
        OrtRunner(result.graph.SerializeToString(), integer=result.integer) as candidate,
    ):
        found = compare(reference, {name: candidate}, case.validation, case.fp32.spec)
    drop, accuracy = found.drop_pp(name), found.accuracy(found.reference)
    assert drop is not None and accuracy is not None
    row = {
        "model": case.name,
        "graph": name,
        "fp32_top1": accuracy.top1,
        "drop_pp": drop.value,
        "drop_pp_ci95": [drop.low, drop.high],
        "agreement": found.agreement(name).value,
        "logit_sqnr_db": found.candidates[name].sqnr_db,
    }
    line = "{model:9} {graph:32} agreement {agreement:6.2f} %  SQNR {logit_sqnr_db:5.2f} dB  drop {drop_pp:+.2f} pp"
    print(line.format(**row), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path(__file__).parents[2] / "shared", help="holds data/ and weights/"
    )
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    parser.add_argument("--model", action="append", choices=list(MODELS), help="only this one; repeatable")
    parser.add_argument("--effort", action="append", choices=EFFORTS, help="only this one; repeatable")
    options = parser.parse_args()
    if not (options.data / "weights").is_dir():
        raise SystemExit(f"{options.data}: no weights/ and data/ there; give --data DIR")
    rows = []
    for name in options.model or MODELS:
        case = load_case(name, options.data)
        for result in chain(onnx_runtime(case), ours(case, options.effort or EFFORTS)):
            rows.append(measure(result))
    means = {m: float(np.mean([r["logit_sqnr_db"] for r in rows if r["graph"] == f"edgeres {m}"])) for m in METHODS}
    print("best method by mean SQNR:", max(means, key=lambda m: means[m]))
    if options.out:
        options.out.write_text(json.dumps({"environment": environment(), "results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
