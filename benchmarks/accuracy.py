"""Compare INT8 accuracy on real data with other tools: ``python benchmarks/accuracy.py --out docs/accuracy.json``.

    network + 512 calibration images -> ONNX Runtime's quantizer, NVIDIA Model Optimizer, edgeres
        -> every graph on ONNX Runtime, its integer optimizations off and on -> JSON -> table and plot

"Off" computes in float between the Q/DQ pairs, as TensorRT does. "On" is ONNX Runtime's default, which may fuse pairs
into integer kernels. The other tools quantize the same FP32 graph with the same inputs: symmetric int8 activations per
tensor, int8 weights per channel. The cost of quantizing is given in forward passes: its time divided by that of a plain
FP32 pass over the calibration images, measured before and after.

Model Optimizer needs its own environment: ``python -m venv .venv-modelopt`` and there ``pip install
'nvidia-modelopt[onnx]'``. Where it is missing, it is skipped with a message. ``--plot`` measures nothing and draws the
figures in ``--out``. A run replaces all figures of the networks that it measures and keeps the others.

To add networks, add an entry to MODELS in accuracy_cases.py, or give ``--models FILE`` with the same fields as JSON:
``{"mine": {"model": "resnet44", "weights": "mine.th", "calibration": "train", "validation": "test"}}``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, product
from pathlib import Path
from typing import Any

import accuracy_docs
from accuracy_cases import MODELS, Case, Conditions, Result, Subject, clocked, load_case, timed
from accuracy_peers import model_optimizer, onnx_runtime

from edgeres.data.loader import Loader
from edgeres.device.cpu import has_vnni
from edgeres.device.environment import environment
from edgeres.errors import EdgeresError
from edgeres.files import write_json
from edgeres.pipeline.options import weight_bits
from edgeres.pipeline.take import with_exact_input
from edgeres.quantize.graphs import RangeChoice, quantize
from edgeres.records import CODES, METHODS, Codes, Method, Preprocess
from edgeres.refine.choice import EFFORTS, RESIDUALS, Effort, RefineChoice, Residual
from edgeres.refine.recipe import Refined, quantize_with_recipe
from edgeres.runtime.ort import OrtRunner
from edgeres.verify.accuracy import compare

ROOT = Path(__file__).parents[1]
MODELOPT_VARIABLE = "EDGERES_MODELOPT"
MODELOPT = ROOT / ".venv-modelopt" / "bin" / "python"


@dataclass(frozen=True)
class Choice:
    """The variants of edgeres that are measured."""

    methods: Sequence[Method]
    efforts: Sequence[Effort]
    residuals: Sequence[Residual]
    codes: Sequence[Codes]


def range_methods(case: Case, methods: Sequence[Method]) -> Iterator[Result]:
    """Each range method without refinement, with the input quantized like other tensors, as in the other tools."""
    for method in methods:
        done = quantize(case.fp32.graph, ["tensorrt", "cpu"], case.calibration, RangeChoice(method, weight_bits()))
        yield Result(f"edgeres {method}", "edgeres", done.graphs["tensorrt"], case.validation)
        yield Result(f"edgeres {method}, cpu graph", "edgeres", done.graphs["cpu"], case.validation, "cpu")


def recipes(case: Case, choice: Choice) -> Iterator[Result]:
    """The recipe of a build, by effort, residual precision and codes, with the exact input."""
    exact = with_exact_input(case.fp32)
    calibration, validation = (_as(loader, exact.spec.preprocess) for loader in (case.calibration, case.validation))
    for effort, residual, codes in product(choice.efforts, choice.residuals, choice.codes):
        ranges = RangeChoice(known=exact.known, codes=codes)
        chosen = RefineChoice(effort, residual)
        work = partial(quantize_with_recipe, exact.graph, ["tensorrt"], calibration, ranges, chosen)
        refined, cost = timed(case, clocked(partial(_from_the_start, work)), repeat=True)
        yield Result(
            f"edgeres {effort}, {residual} residual" + ("" if codes == "free" else f", {codes} codes"),
            "edgeres",
            refined.quantized.graphs["tensorrt"],
            validation,
            cost=cost,
            steps=[asdict(step) for step in refined.steps],
        )


def _from_the_start(work: Callable[[], Refined]) -> Refined:
    """Run with an empty cache: learning would resume an earlier run, and appear too fast."""
    before = os.environ.get("EDGERES_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EDGERES_CACHE"] = folder
        try:
            return work()
        finally:
            del os.environ["EDGERES_CACHE"]
            if before is not None:
                os.environ["EDGERES_CACHE"] = before


def _as(loader: Loader, preprocess: Preprocess) -> Loader:
    return Loader(loader.source, preprocess, loader.batch_size)


def measure(case: Case, result: Result) -> dict[str, Any]:
    """A row of the table: the graph's figures with ONNX Runtime's integer optimizations off and on."""
    graph, threads = result.graph.SerializeToString(), case.threads
    with (
        case.reference as reference,
        OrtRunner(graph, integer=False, threads=threads) as off,
        OrtRunner(graph, threads=threads) as on,
    ):
        found = compare(reference, {"off": off, "on": on}, result.images, case.fp32.spec)
    accuracy = found.accuracy("fp32")
    assert accuracy is not None
    row: dict[str, Any] = {"graph": result.name, "by": result.by, "style": result.style, "fp32_top1": accuracy.top1}
    for name in ("off", "on"):
        drop, same = found.table.drop_pp(name), found.table.agreement(name)
        assert drop is not None
        row[name] = {
            "agreement": same.value,
            "agreement_ci95": [same.low, same.high],
            "logit_sqnr_db": found.scored[name].sqnr_db,
            "drop_pp": drop.value,
            "drop_pp_ci95": [drop.low, drop.high],
        }
    return row | {"cost": result.cost and asdict(result.cost), "steps": list(result.steps)}


def measure_all(case: Case, choice: Choice, modelopt: Path) -> dict[str, Any]:
    """Measure all graphs of one network."""
    print(f"{case.name}: {case.validation.source.description}", flush=True)
    rows: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    peers: dict[str, str] = {}
    ours = chain(range_methods(case, choice.methods), recipes(case, choice))
    for result in chain(onnx_runtime(case), model_optimizer(case, modelopt, skipped), ours):
        rows.append(measure(case, result))
        peers |= result.environment
        _show(rows[-1])
    for peer, reason in skipped.items():
        print(f"  {peer}: skipped, {reason}")
    return {
        "calibration": case.calibration.source.description,
        "validation": case.validation.source.description,
        "images": len(case.validation.source),
        "environment": environment() | {"vnni": str(has_vnni())},
        "modelopt_environment": peers,
        "skipped": skipped,
        "results": rows,
    }


def _show(row: Mapping[str, Any]) -> None:
    figures = "   ".join(
        f"{name} {row[name]['agreement']:6.2f} % {row[name]['logit_sqnr_db']:5.2f} dB {row[name]['drop_pp']:+.2f} pp"
        for name in ("off", "on")
    )
    cost = row["cost"]
    passes = f"   {cost['forward_passes']:.2f} passes, {cost['seconds']:.1f} s" if cost else ""
    print(f"  {row['graph']:32} {figures}{passes}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=ROOT.parent / "shared", help="folder that the paths in MODELS are relative to")
    add("--out", type=Path, help="JSON file; the plot is written beside it, the table into quantization.md beside it")
    add("--plot", action="store_true", help="draw the figures in --out (docs/accuracy.json), measure nothing")
    add("--models", type=Path, help="JSON file with more networks by name")
    add("--model", action="append", help="only this one; repeatable")
    add("--method", action="append", choices=METHODS, help="only this range method; repeatable")
    add("--effort", action="append", choices=EFFORTS, help="only this one; repeatable")
    add("--residual", action="append", choices=RESIDUALS, help="only this one; repeatable.  [default: int8 and auto]")
    add(
        "--codes",
        action="append",
        choices=CODES,
        help="codes of activations behind a ReLU; repeatable.  [default: free]",
    )
    add(
        "--seed",
        type=int,
        help="draw calibration images evenly over the classes with this seed; without it, the first ones are used",
    )
    add(
        "--modelopt",
        type=Path,
        help=f"Python that has Model Optimizer.  [default: ${MODELOPT_VARIABLE}, or .venv-modelopt]",
    )
    add(
        "--cache",
        type=Path,
        default=Path(tempfile.gettempdir()) / "edgeres-benchmark",
        help="folder for rendered images",
    )
    add("--threads", type=int, default=0, help="threads of ONNX Runtime when graphs are compared; 0: every core")
    return parser


def _choose(given: argparse.Namespace, parser: argparse.ArgumentParser) -> dict[str, Subject]:
    known = dict(MODELS)
    if given.models:
        try:
            further = json.loads(given.models.read_text(encoding="utf-8"))
            known |= {name: Subject(**entry) for name, entry in further.items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            parser.error(f"{given.models}: no networks can be read from it ({error})")
    names = given.model or [name for name, subject in known.items() if subject.default]
    for name in names:
        if name not in known:
            parser.error(f"no such model: {name}; there are {', '.join(known)}")
    return {name: known[name] for name in names}


def _modelopt(given: Path | None, parser: argparse.ArgumentParser) -> Path:
    if given and not given.is_file():
        parser.error(f"{given}: no such interpreter")
    return given or Path(os.environ.get(MODELOPT_VARIABLE) or MODELOPT)


def main() -> None:
    parser = _parser()
    given = parser.parse_args()
    if given.plot:
        print("\n".join(accuracy_docs.write(given.out or ROOT / "docs" / "accuracy.json")))
        return
    subjects, modelopt = _choose(given, parser), _modelopt(given.modelopt, parser)
    choice = Choice(
        given.method or METHODS, given.effort or EFFORTS, given.residual or ("int8", "auto"), given.codes or ("free",)
    )
    logging.disable(logging.WARNING)
    found = accuracy_docs.read(given.out) if given.out and given.out.is_file() else {"models": {}}
    for name, subject in subjects.items():
        case = load_case(name, subject, Conditions(given.data, given.cache, given.seed, given.threads))
        found["models"][name] = measure_all(case, choice, modelopt)
        if given.out:
            write_json(given.out, found)
    print("\n".join(accuracy_docs.write(given.out)) if given.out else accuracy_docs.tables(found))


if __name__ == "__main__":
    try:
        main()
    except EdgeresError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
