"""SQNR and RTX kernels of the forms that a bundle holds: ``python benchmarks/forms.py [--page FILE] [--data DIR]``.

The first table has the logit SQNR of half, free and full codes behind ReLU, with the recipe of ``--effort fast``, on
ONNX Runtime. The second has every form of ResNet-18 and ResNet-50 at batch 1: what the cost model counts
(:mod:`edgeres.quantize.cost`), and what TensorRT-RTX made of it, from the list of kernels in its engine. Both are
written between two comments of docs/formulations.md. Nothing is timed.

Networks whose weights or images ``--data`` lacks are left out with a word.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from edgeres.data.arrays import CIFAR10_CLASSES
from edgeres.data.choose import DataChoice, choose_sources
from edgeres.data.loader import Loader
from edgeres.device.libraries import available
from edgeres.engine.builder import BuildRequest, build_engine
from edgeres.engine.kernels import Program, read_program
from edgeres.errors import EdgeresError
from edgeres.files import write_file
from edgeres.graph.graph import Graph
from edgeres.graph.rtx import rtx_form
from edgeres.pipeline.take import Fp32Model, ModelChoice, take, with_exact_input
from edgeres.quantize.alternatives import Material, alternatives, largest_pooled
from edgeres.quantize.cost import Cost, cost_of
from edgeres.quantize.graphs import RangeChoice
from edgeres.records import CODES, F32, Codes
from edgeres.refine.choice import Effort, RefineChoice
from edgeres.refine.recipe import Refined, quantize_with_recipe
from edgeres.runtime.ort import OrtRunner

ROOT = Path(__file__).parents[1]
BEGIN = "<!-- forms: written by benchmarks/forms.py, change nothing between these comments -->"
END = "<!-- end of forms -->"


@dataclass(frozen=True)
class Subject:
    """A network with its images; files are relative to ``--data``."""

    choice: ModelChoice
    calibration: str
    validation: str
    counts: tuple[int, int]
    efforts: tuple[Effort, ...] = ("fast",)

    @property
    def files(self) -> tuple[str, ...]:
        named = (self.choice.weights or "", self.calibration, self.validation)
        return tuple(name for name in named if "/" in name)


def _cifar(model: str, weights: str) -> Subject:
    choice = ModelChoice(model, weights=f"weights/{weights}", labels=CIFAR10_CLASSES)
    return Subject(choice, "data/cifar10_train4000.npz", "data/cifar10_test1000.npz", (256, 1000))


SUBJECTS = {
    "resnet20, CIFAR-10": _cifar("resnet20", "resnet20-12fca82f.th"),
    "resnet32, CIFAR-10": _cifar("resnet32", "resnet32-d509ac18.th"),
    "resnet18, signs": Subject(ModelChoice("resnet18"), "signs:64", "signs:32@1", (64, 32)),
    "resnet50, random weights": Subject(
        ModelChoice("resnet50", weights="random", num_classes=16), "signs:16", "signs:8@1", (16, 8)
    ),
}
OF_FORMS = ("resnet18, signs", "resnet50, random weights")


@dataclass(frozen=True)
class Network:
    """A network, its calibration images, and validation images with the scores of FP32."""

    fp32: Fp32Model
    calibration: Loader
    images: F32
    exact: F32

    @classmethod
    def of(cls, subject: Subject, data: Path) -> Network:
        def path(name: str) -> str:
            return str(data / name) if name in subject.files else name

        choice = replace(subject.choice, weights=subject.choice.weights and path(subject.choice.weights))
        fp32 = with_exact_input(take(choice))
        images = DataChoice(path(subject.calibration), path(subject.validation), *subject.counts, 0)
        sources = choose_sources(images, fp32.spec)
        loaders = [Loader(source, fp32.spec.preprocess, 8) for source in (sources.calibration, sources.validation)]
        inputs = np.concatenate([batch.inputs for batch in loaders[1]])
        return cls(fp32, loaders[0], inputs, scores(fp32.graph, inputs))

    def quantized(self, codes: Codes, effort: Effort) -> Refined:
        ranges = RangeChoice(known=self.fp32.known, codes=codes)
        return quantize_with_recipe(self.fp32.graph, ["tensorrt"], self.calibration, ranges, RefineChoice(effort))

    def sqnr_db(self, graph: onnx.ModelProto) -> float:
        noise = np.square(self.exact - scores(graph, self.images), dtype=np.float64).sum()
        return 10 * float(np.log10(np.square(self.exact, dtype=np.float64).sum() / noise))


def scores(graph: onnx.ModelProto, images: F32) -> F32:
    with OrtRunner(graph.SerializeToString(), integer=False) as runner:
        parts = [runner.infer({runner.input_name: images[at : at + 8]}) for at in range(0, len(images), 8)]
    return np.concatenate([part[runner.output_name] for part in parts])


def codes_row(name: str, subject: Subject, network: Network) -> Iterator[str]:
    for effort in subject.efforts:
        print(f"{name}, {effort}", flush=True)
        graphs = [network.quantized(codes, effort).quantized.graphs["tensorrt"] for codes in CODES]
        cells = (f"{network.sqnr_db(graph):.1f}" for graph in graphs)
        pads = " / ".join(str(sum(node.op_type == "Pad" for node in graph.graph.node)) for graph in graphs)
        images = " and ".join(map(str, subject.counts))
        yield f"| {name} | {images} | `{effort}` | {' | '.join(cells)} | {pads} |"


def form_rows(network: Network) -> Iterator[str]:
    """Every form of a network: the default ones for both runtimes, and the further ones."""
    refined = network.quantized("free", "fast").quantized
    graph, plan = refined.graphs["tensorrt"], refined.plans["tensorrt"]
    view = Graph(network.fp32.graph)
    yield _row("tensorrt (default)", graph, cost_of(view, plan, 4, "tensorrt"), network)
    yield _row("rtx (default)", rtx_form(graph), cost_of(view, plan, 2, "rtx"), network)
    pooled = largest_pooled(refined.floats["tensorrt"], plan, next(iter(network.calibration)).inputs)
    for form in alternatives(Material(network.fp32.graph, refined.floats["tensorrt"], plan, pooled=pooled)):
        yield _row(form.record.name, form.write(), next(iter(form.costs.values())), network)


def _row(name: str, graph: onnx.ModelProto, cost: Cost, network: Network) -> str:
    model = f"{cost.kernels} | {cost.moved_bytes / 1e6:.2f} | {len(cost.unsure)}"
    products = f"{100 * cost.int8_products / (cost.int8_products + cost.float_products):.0f} %"
    print(name, flush=True)
    try:
        engine = build_engine(graph.SerializeToString(), BuildRequest("int8"), "rtx").data
        found = _rtx(read_program(engine))
    except EdgeresError as error:
        found = f"not built: {error.what} | |"
    return f"| {name} | {model} | {products} | {found} | {network.sqnr_db(graph):.1f} |"


def _rtx(program: Program) -> str:
    lost = f", INT8 lost in {len(program.lost)}" if program.lost else ""
    moved = program.moved_bytes
    return f"{len(program.kernels)}{lost} | {moved / 1e6:.2f} | {(moved + program.constant_bytes) / 1e6:.2f}"


def tables(networks: Mapping[str, Network]) -> Iterator[str]:
    yield "| network | calibration, validation images | effort | SQNR, dB: `half` | `free` | `full` | Pads |"
    yield "|---|---|---|---|---|---|---|"
    for name, network in networks.items():
        yield from codes_row(name, SUBJECTS[name], network)
    if not available("rtx").can_build:
        print(f"engines left out: {available('rtx').reason}")
        return
    for name in OF_FORMS:
        if name in networks:
            px = networks[name].fp32.spec.preprocess.crop_px[0]
            yield f"\n**{name}**, {px}x{px}, batch 1, `--effort fast`, TensorRT-RTX {available('rtx').version}:\n"
            model, rtx = "model: kernels | MB | unsure | INT8 products", "RTX: kernels | activations, MB | all, MB"
            yield f"| form | {model} | {rtx} | SQNR, dB |"
            yield "|---|---|---|---|---|---|---|---|---|"
            yield from form_rows(networks[name])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--page", type=Path, default=ROOT / "docs" / "formulations.md", help="Markdown file to write to"
    )
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared", help="folder of weights and images")
    given = parser.parse_args()
    networks = {}
    for name, subject in SUBJECTS.items():
        missing = [file for file in subject.files if not (given.data / file).is_file()]
        if missing:
            print(f"{name} left out: no {given.data / missing[0]}")
            continue
        networks[name] = Network.of(subject, given.data)
    text = given.page.read_text(encoding="utf-8") if given.page.is_file() else f"{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    content = "\n".join(tables(networks))
    write_file(given.page, f"{before}{BEGIN}\n\n{content}\n\n{END}{rest.partition(END)[2]}".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
