"""Compare INT8 with FP16 and FP32 on an NVIDIA GPU: ``python benchmarks/gpu.py [--output gpu.json]``.

    prepare   graphs, images, and ONNX Runtime's scores                torch, onnx        any machine
    measure   engines of these graphs: build, accuracy, latency        edgeres, vendor    the machine with the GPU

Where everything is installed, one command does both. Otherwise give ``--prepare DIR`` on one machine and ``--cases
DIR`` on the other, which only needs ``pip install 'edgeres[cuda]'`` and tensorrt or tensorrt-rtx.

For TensorRT and TensorRT-RTX, where installed, and every formulation of ResNet-18 and -50 at 224x224, it measures

- whether the engine runs on this GPU, also where the vendor does not list the GPU
- build time and size; for RTX engines also kernels and bytes, which need no GPU
- accuracy of the engine: agreement and SQNR against ONNX Runtime on the same graph, and against FP32
- latency by trtexec's method, with random input and all engines taking turns in one run: from host to host, and
  trtexec's times by events on the GPU

Without a GPU it prints one line, writes the figures of RTX engines that need none, and exits with 3.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from edgeres.bench.contenders import BenchOptions, Contender
from edgeres.bench.events import TimedEngine, time_engines
from edgeres.bench.session import statistics
from edgeres.device.environment import environment
from edgeres.device.gpu import Gpu, this_gpu
from edgeres.device.libraries import Flavour, available
from edgeres.device.targets import RTX_COMPUTE_CAPABILITIES
from edgeres.engine.builder import BuildRequest, BuiltEngine, Precision, build_engine
from edgeres.engine.kernels import read_program
from edgeres.errors import EdgeresError, EngineError, InputError
from edgeres.files import write_file
from edgeres.progress import SILENT
from edgeres.records import F32, I64, Measurement
from edgeres.runtime import EngineFile, Feed, Runner, TensorRTRunner
from edgeres.verify.latency import LatencyPlan, measure_latency, noise, speedup
from edgeres.verify.statistics import Sqnr, proportion_percent

MODELS = ("resnet18", "resnet50:random")
CALIBRATION_IMAGES, IMAGES, CLASSES = 128, 64, 16
SEED = 0  # of the random input
INDEX = "cases.json"
FLAVOURS: tuple[Flavour, ...] = ("tensorrt", "rtx")
# Precision of each engine, and a description of its graph.
FORMULATIONS: dict[str, tuple[Precision, str]] = {
    "fp32": ("fp32", "the float graph"),
    "fp16": ("fp16", "its weights and activations in float16"),
    "int8": ("int8", "Q/DQ, 256 codes behind a ReLU: the default of edgeres build"),
    "int8-rtx": ("int8", "the same as edgeres.graph.rtx.rtx_form writes it"),
    "int8-half": ("int8", "Q/DQ, 128 codes behind a ReLU: no Pads"),
    "int8-half-rtx": ("int8", "the same as edgeres.graph.rtx.rtx_form writes it"),
}

Json = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One model's graphs, and scores to compare engines with.

    Attributes:
        graphs: ONNX files by formulation.
        inputs: float32 (N, 3, h, w), preprocessed.
        labels: int64 (N,), -1 where unlabelled.
        scores: ONNX Runtime's scores by formulation, float32 (N, classes).
    """

    name: str
    weights: str
    graphs: Mapping[str, Path]
    inputs: F32
    labels: I64
    scores: Mapping[str, F32]


@dataclass
class Row:
    """The figures of one engine, and the reasons for missing ones."""

    built: BuiltEngine | None = None
    program: Json | None = None
    accuracy: Json | None = None
    measured: Measurement | None = None
    timed: TimedEngine | None = None
    reasons: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> Json:
        built, measured, timed = self.built, self.measured, self.timed
        return {
            "build_seconds": built and built.build_seconds,
            "size_bytes": built and len(built.data),
            "program": self.program,
            "accuracy": self.accuracy,
            "host_to_host": measured and {**statistics(measured.seconds), "noise": noise(measured)},
            "images_per_second": measured and measured.throughput_ips,
            "trtexec": timed and {name: statistics(seconds) for name, seconds in timed.metrics().items()},
            "cuda_graph": timed and timed.cuda_graph,
            "warnings": list(timed.warnings()) if timed else [],
            "reasons": self.reasons,
        }


# --- prepare ---------------------------------------------------------------------------------------------------------


def prepare(folder: Path, models: Sequence[str]) -> None:
    """Write the cases; ``models`` are zoo names, with weights behind a colon."""
    index = {}
    for choice in models:
        name = choice.partition(":")[0]
        index[name] = _prepare(folder / name, choice)
    write_file(folder / INDEX, json.dumps({"models": index, "environment": environment()}, indent=2).encode())


def _prepare(folder: Path, choice: str) -> Json:
    from edgeres.data.choose import DataChoice, choose_sources
    from edgeres.data.loader import Loader
    from edgeres.pipeline.take import ModelChoice, take, with_exact_input

    name, _, weights = choice.partition(":")
    classes = CLASSES if weights == "random" else None
    fp32 = with_exact_input(take(ModelChoice(name, weights=weights or None, num_classes=classes)))
    data = DataChoice(f"signs:{CALIBRATION_IMAGES}", f"signs:{IMAGES}@1", CALIBRATION_IMAGES)
    sources = choose_sources(data, fp32.spec)
    (batch,) = Loader(sources.validation, fp32.spec.preprocess, IMAGES)
    graphs = dict(_graphs(fp32, Loader(sources.calibration, fp32.spec.preprocess, 8)))
    folder.mkdir(parents=True, exist_ok=True)
    scores = {}
    for formulation, content in graphs.items():
        write_file(folder / f"{formulation}.onnx", content)
        scores[formulation] = as_written(content, batch.inputs)
    arrays: dict[str, Any] = {"inputs": batch.inputs, "labels": batch.labels, **scores}
    np.savez_compressed(folder / "data.npz", **arrays)
    return {"weights": fp32.spec.weights, "formulations": list(graphs)}


def _graphs(fp32: Any, calibration: Any) -> Iterator[tuple[str, bytes]]:
    from edgeres.graph.half import to_fp16
    from edgeres.graph.rtx import rtx_form
    from edgeres.quantize.graphs import RangeChoice, quantize

    yield "fp32", fp32.graph.SerializeToString()
    yield "fp16", to_fp16(fp32.graph).SerializeToString()
    for name, choice in {
        "int8": RangeChoice(known=fp32.known, codes="full"),
        "int8-half": RangeChoice(known=fp32.known, codes="half"),
    }.items():
        graph = quantize(fp32.graph, ["tensorrt"], calibration, choice).graphs["tensorrt"]
        yield name, graph.SerializeToString()
        yield f"{name}-rtx", rtx_form(graph).SerializeToString()


def as_written(graph: bytes, inputs: F32) -> F32:
    """ONNX Runtime's scores with nothing fused: every node rounds to the type that the graph gives it."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    found: F32 = session.run(None, {session.get_inputs()[0].name: inputs})[0]
    return found


def read_cases(folder: Path) -> list[Case]:
    """Read the cases of :func:`prepare`.

    Raises:
        InputError: they are missing or incomplete.
    """
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))["models"]
        return [_read(folder / name, name, entry) for name, entry in index.items()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = "write them with: python benchmarks/gpu.py --prepare DIR"
        raise InputError(f"holds no complete cases ({error})", where=folder, hint=hint) from error


def _read(folder: Path, name: str, entry: Json) -> Case:
    with np.load(folder / "data.npz") as data:
        scores = {formulation: data[formulation] for formulation in entry["formulations"]}
        graphs = {formulation: folder / f"{formulation}.onnx" for formulation in entry["formulations"]}
        return Case(name, entry["weights"], graphs, data["inputs"], data["labels"], scores)


# --- measure ---------------------------------------------------------------------------------------------------------


def benchmark(cases: Sequence[Case], batch: int, plan: LatencyPlan) -> Iterator[Json]:
    """Measure everything; yields the document so far, plain JSON types, whenever a runtime begins or ends.

    If a runtime crashes the process, as it may on a GPU that it does not know, the last document shows which one.
    """
    gpu, reason = this_gpu()
    document: Json = {
        "gpu": None if gpu is None else asdict(gpu),
        "reason": reason,
        "settings": {"batch": batch, **asdict(plan), "calibration_images": CALIBRATION_IMAGES},
        "formulations": {name: words for name, (_, words) in FORMULATIONS.items()},
        "runtimes": {},
        "environment": environment(),
    }
    for flavour in FLAVOURS:
        document["runtimes"][flavour] = {"said": "it began, and the process ended"}
        yield document
        document["runtimes"][flavour] = of_runtime(flavour, cases, batch, plan, gpu)
    yield document


def of_runtime(flavour: Flavour, cases: Sequence[Case], batch: int, plan: LatencyPlan, gpu: Gpu | None) -> Json:
    here = available(flavour)
    found: Json = {"version": here.version, "listed": None, "runs": None, "said": here.reason, "models": {}}
    if not here.can_build:
        return found
    if gpu is not None and flavour == "rtx":
        found["listed"] = gpu.sm in RTX_COMPUTE_CAPABILITIES
    every: list[Row] = []
    for case in cases:
        rows = {name: build(path, flavour, name, batch) for name, path in case.graphs.items()}
        every += rows.values()
        if gpu is not None:
            run(rows, case, flavour, batch, plan)
        found["models"][case.name] = {
            "weights": case.weights,
            "engines": {name: row.to_dict() for name, row in rows.items()},
            "speedup": speedups(rows),
        }
    if gpu is not None:
        found["runs"] = any(row.measured for row in every)
        refused = (reason for row in every for what, reason in row.reasons.items() if what != "program")
        found["said"] = "" if found["runs"] else next(refused, here.reason)
    return found


def build(path: Path, flavour: Flavour, formulation: str, batch: int) -> Row:
    request = BuildRequest(FORMULATIONS[formulation][0], min_batch=batch, opt_batch=batch, max_batch=batch)
    row = Row()
    try:
        row.built = build_engine(path, request, flavour)
    except EngineError as error:
        row.reasons["build"] = str(error)
        return row
    if flavour == "tensorrt":
        row.reasons["program"] = "only RTX engines hold their program as text"
        return row
    try:
        program = read_program(row.built.data)
    except EngineError as error:
        row.reasons["program"] = str(error)
    else:
        kinds = {kind: found["kernels"] for kind, found in program.to_dict()["kinds"].items()}
        moved = {"moved_bytes": program.moved_bytes, "constant_bytes": program.constant_bytes}
        row.program = {"kernels": kinds, **moved, "lost": len(program.lost)}
    return row


def run(rows: Mapping[str, Row], case: Case, flavour: Flavour, batch: int, plan: LatencyPlan) -> None:
    """Load all engines, compare them with ONNX Runtime, then measure latency in turns, by the clock and by events."""
    with ExitStack() as stack:
        runners: dict[str, TensorRTRunner] = {}
        for name, row in rows.items():
            if row.built is None:
                continue
            try:
                runner = stack.enter_context(TensorRTRunner(EngineFile(row.built.data, flavour)))
                row.accuracy = accuracy(runner, case, name, batch)
            except EdgeresError as error:
                row.reasons["run"] = str(error)
            else:
                runners[name] = runner
        if not runners:
            return
        random = np.random.default_rng(SEED).standard_normal((batch, *case.inputs.shape[1:])).astype(np.float32)
        try:
            times(rows, runners, random, plan)
        except EdgeresError as error:
            for name in runners:
                rows[name].reasons["latency"] = str(error)


def times(rows: Mapping[str, Row], runners: Mapping[str, TensorRTRunner], inputs: F32, plan: LatencyPlan) -> None:
    """Measure from host to host, and by events between copies and kernels."""

    def feed(runner: Runner) -> Feed:
        return {runner.input_name: inputs}

    for name, measured in measure_latency(runners, feed, plan).items():
        rows[name].measured = measured
    contenders = [Contender(name, "", runner, runner) for name, runner in runners.items()]
    options = BenchOptions(
        batch=len(inputs), warmup_seconds=plan.warmup_seconds, min_seconds=plan.min_seconds, seed=SEED
    )
    for name, timed in time_engines(contenders, feed, options, SILENT).items():
        rows[name].timed = timed


def accuracy(runner: Runner, case: Case, formulation: str, batch: int) -> Json:
    """Compare the engine with ONNX Runtime on its graph, and with FP32; top-1 where images are labelled."""
    # All batches have the engine's size; the last one is filled with images that are not counted.
    count = len(case.inputs)
    padded = np.resize(np.arange(count), -(-count // batch) * batch)
    parts = [
        runner.infer({runner.input_name: case.inputs[padded[start : start + batch]]})[runner.output_name]
        for start in range(0, len(padded), batch)
    ]
    scores = np.concatenate(parts)[:count].astype(np.float32)
    labelled = case.labels >= 0
    right = int((scores.argmax(axis=1) == case.labels)[labelled].sum())
    return {
        "images": count,
        "top1": 100 * right / int(labelled.sum()) if labelled.any() else None,
        "onnx_runtime": likeness(case.scores[formulation], scores),
        "fp32": likeness(case.scores["fp32"], scores),
    }


def likeness(reference: F32, scores: F32) -> Json:
    """Agreement of the best class in per cent with its 95 % interval, and SQNR in dB (None: equal to the last bit)."""
    sqnr = Sqnr()
    sqnr.add(reference, scores)
    same = int((reference.argmax(axis=1) == scores.argmax(axis=1)).sum())
    decibels = sqnr.decibels
    return {
        "agreement": asdict(proportion_percent(same, len(scores))),
        "sqnr_db": decibels if np.isfinite(decibels) else None,
        "largest_difference": float(np.abs(reference - scores).max()),
    }


def speedups(rows: Mapping[str, Row]) -> Json:
    """Ratios of median latencies of all pairs, with 95 % intervals; above 1 where the second is faster."""
    measured = {name: row.measured for name, row in rows.items() if row.measured is not None}
    names = list(measured)
    return {
        f"{second} over {first}": asdict(speedup(measured[first], measured[second]))
        for at, first in enumerate(names)
        for second in names[at + 1 :]
    }


# --- tell ------------------------------------------------------------------------------------------------------------


def lines(document: Json) -> Iterator[str]:
    """The document as text."""
    for flavour, found in document["runtimes"].items():
        if found["version"] is None:
            yield f"{flavour}: {found['said']}"
            continue
        listed = {None: "", True: ", listed", False: ", not listed"}[found["listed"]]
        runs = {None: "not run", True: "runs on this GPU", False: "does not run on this GPU"}[found["runs"]]
        why = f": {found['said']}" if found["said"] else ""
        yield f"{flavour} {found['version']}: {runs}{listed}{why}"
        for model, of_model in found["models"].items():
            yield f"  {model} ({of_model['weights']})"
            for name, engine in of_model["engines"].items():
                yield f"    {name:14}" + "".join(f"{cell:>18}" for cell in _cells(engine))
                reasons = {what: reason for what, reason in engine["reasons"].items() if what != "program"}
                yield from (f"      {what}: {reason}" for what, reason in reasons.items())
            for pair, ratio in of_model["speedup"].items():
                yield f"    {pair}: {ratio['value']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})"


def _cells(engine: Json) -> Iterator[str]:
    if engine["size_bytes"] is not None:
        yield f"{engine['size_bytes'] / 1e6:.1f} MB"
        yield f"built in {engine['build_seconds']:.1f} s"
    if engine["program"] is not None:
        yield f"{sum(engine['program']['kernels'].values())} kernels"
        yield f"{engine['program']['moved_bytes'] / 1e6:.1f} MB moved"
    if engine["host_to_host"] is not None:
        yield f"host p50 {engine['host_to_host']['median_ms']:.3f} ms"
        yield f"p99 {engine['host_to_host']['p99_ms']:.3f} ms"
    if engine["trtexec"] is not None:
        yield f"GPU p50 {engine['trtexec']['GPU Compute Time']['median_ms']:.3f} ms"
    if engine["accuracy"] is not None:
        yield f"{engine['accuracy']['onnx_runtime']['agreement']['value']:.1f} % as ORT"


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME[:WEIGHTS]")
    parser.add_argument("--prepare", type=Path, metavar="DIR", help="only write the cases to this folder")
    parser.add_argument("--cases", type=Path, metavar="DIR", help="measure the cases in this folder")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0, help="measured time of each engine, at least")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    choice = parser.parse_args(argv)
    if choice.batch < 1 or not 0 < choice.seconds < float("inf"):
        parser.error("--batch is at least 1, --seconds above 0")
    return choice


def tell(choice: argparse.Namespace, cases: Sequence[Case]) -> int:
    plan = LatencyPlan(
        f"host to host, batch {choice.batch}, copies included",
        warmup_seconds=min(LatencyPlan.warmup_seconds, choice.seconds),
        min_seconds=choice.seconds,
        block_seconds=min(LatencyPlan.block_seconds, choice.seconds / LatencyPlan.min_turns),
    )
    document: Json = {}
    for document in benchmark(cases, choice.batch, plan):
        write_file(choice.output, (json.dumps(document, indent=2) + "\n").encode())
    print("\n".join(lines(document)))
    if document["gpu"] is None:
        told = "RTX engines were built and read" if document["runtimes"]["rtx"]["models"] else "nothing could be built"
        print(f"no GPU, so nothing was timed ({document['reason']}); {told}: {choice.output}", file=sys.stderr)
        return 3
    if not any(found["runs"] for found in document["runtimes"].values()):
        print(f"no runtime runs on {document['gpu']['name']}; the reasons are in {choice.output}", file=sys.stderr)
        return 3
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    choice = arguments(argv)
    try:
        if choice.prepare is not None:
            prepare(choice.prepare, choice.models)
            return 0
        if choice.cases is not None:
            return tell(choice, read_cases(choice.cases))
        with TemporaryDirectory() as folder:
            prepare(Path(folder), choice.models)
            return tell(choice, read_cases(Path(folder)))
    except EdgeresError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
