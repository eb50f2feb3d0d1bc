"""Compare a build with its forward passes: ``python benchmarks/build.py [--model resnet18] [--effort fast]``.

    edgeres build, in a process of its own  ->  seconds of its stages and of parts of them
    forward passes alone: FP32 over the calibration images, every graph over the validation images

It runs two builds, each followed by these passes, and prints a table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgeres.bundle import FP32, Bundle
from edgeres.data.choose import DataChoice, choose_sources
from edgeres.data.loader import Loader
from edgeres.graph.forms import FORMS, INTEGER
from edgeres.pipeline.verify import VALIDATION_BATCH
from edgeres.records import ModelSpec
from edgeres.runtime.ort import OrtRunner

CALIBRATION_BATCH = 8
# Parts of a build beside its forward passes: (module, function, stage, title).
PARTS = (
    ("edgeres.pipeline.take", "take", "export", "weights, export, comparison with torch"),
    ("edgeres.calibrate.forward", "Observer.__init__", "quantize", "graph prepared for observing"),
    ("edgeres.calibrate.record", "Calibration.choose", "quantize", "search for ranges"),
    ("edgeres.quantize.graphs", "make_plan", "quantize", "plans"),
    ("edgeres.quantize.graphs", "rewrite", "quantize", "Q/DQ pairs written"),
    ("edgeres.engine.engines", "build_engine", "engines", "engines"),
    ("edgeres.verify.measure", "compare", "verify", "graphs over the validation images"),
    ("edgeres.verify.measure", "_latency", "verify", "latency, which takes seconds by design"),
    ("edgeres.verify.layer_noise", "dissect", "verify", "error layer by layer"),
    ("edgeres.pipeline.build", "build_report", "report", "gates and statistics"),
    ("edgeres.pipeline.build", "write_report", "report", "report written"),
)


def child(model: str, effort: str, output: Path) -> dict[str, Any]:
    """Build in this process; returns the seconds of imports, stages, and parts of them."""
    start = time.perf_counter()
    from importlib import import_module

    from edgeres.pipeline.build import build

    parts: dict[str, float] = {}
    for module, path, _, words in PARTS:
        owner: Any = import_module(module)
        *classes, name = path.split(".")
        for each in classes:
            owner = getattr(owner, each)
        setattr(owner, name, _timed(getattr(owner, name), parts, words))
    imported = time.perf_counter()
    report = build(model, effort=effort, output=output).report
    done = time.perf_counter()
    stages = {"imports": imported - start, **report["timings_seconds"]}
    return {"stages": stages | {"report": done - start - sum(stages.values())}, "parts": parts, "wall": done - start}


def _timed(call: Callable[..., Any], parts: dict[str, float], words: str) -> Callable[..., Any]:
    def wrapped(*args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return call(*args, **options)
        finally:
            parts[words] = parts.get(words, 0.0) + time.perf_counter() - start

    return wrapped


def passes(bundle: Bundle, spec: ModelSpec) -> Iterator[tuple[str, float]]:
    """Seconds of every forward pass of a build, each run alone with ONNX Runtime's default threads."""
    sources = choose_sources(DataChoice(), spec)
    yield (
        "FP32, calibration images",
        _forward(OrtRunner(bundle.file(FP32)), Loader(sources.calibration, spec.preprocess, CALIBRATION_BATCH)),
    )
    for name, file in {"FP32": FP32, **{f"INT8 {style}": form.file for style, form in FORMS.items()}}.items():
        if bundle.has(file):
            runner = OrtRunner(bundle.file(file), integer=file == INTEGER.file)
            yield (
                f"{name}, validation images",
                _forward(runner, Loader(sources.validation, spec.preprocess, VALIDATION_BATCH)),
            )


def _forward(runner: OrtRunner, loader: Loader) -> float:
    with runner:
        start = time.perf_counter()
        for batch in loader:
            runner.infer({runner.input_name: batch.inputs})
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--effort", default="fast")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(given.model, given.effort, given.child)))
        return
    with tempfile.TemporaryDirectory() as folder:
        rounds: list[dict[str, float]] = []
        builds: list[dict[str, Any]] = []
        for number in range(2):
            output = Path(folder) / f"{number}.edgeres"
            words = ["--model", given.model, "--effort", given.effort, "--child", str(output)]
            done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr)
            builds.append(json.loads(done.stdout.splitlines()[-1]))
            bundle = Bundle(output)
            rounds.append(dict(passes(bundle, bundle.manifest.model)))
    for built, forward in zip(builds, rounds, strict=True):
        _show(built, forward)


def _show(built: dict[str, Any], forward: dict[str, float]) -> None:
    total = sum(forward.values())
    print(f"{'its own forward passes':44} {total:7.2f} s")
    for name, seconds in forward.items():
        print(f"    {name:40} {seconds:7.2f} s")
    print(f"{'the whole build':44} {built['wall']:7.2f} s, {built['wall'] / total:.2f} times these passes")
    for stage, seconds in built["stages"].items():
        print(f"    {stage:40} {seconds:7.2f} s")
        for _, _, of, words in PARTS:
            if of == stage and words in built["parts"]:
                print(f"        {words:36} {built['parts'][words]:7.2f} s")


if __name__ == "__main__":
    main()
