"""A graph or an engine that fails is left out with its reason, and the others are written, measured and judged."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundles import write_images
from engine_graphs import resnet
from onnx import TensorProto

from edgeres.bundle import Bundle
from edgeres.data.arrays import Arrays
from edgeres.data.choose import DataChoice
from edgeres.data.loader import Loader
from edgeres.device.targets import Runtime
from edgeres.engine import engines
from edgeres.engine.builder import BuildRequest, BuiltEngine
from edgeres.errors import EngineError, ModelError, SourceError
from edgeres.graph.forms import FORMS
from edgeres.graph.graph import Graph
from edgeres.graph.lint import Finding
from edgeres.graph.normalize import normalize
from edgeres.pipeline.build import BuildResult, build
from edgeres.pipeline.engines import add_engines
from edgeres.pipeline.options import RangeOptions, VerifyOptions
from edgeres.pipeline.quantize import quantize_file
from edgeres.pipeline.take import ModelChoice
from edgeres.pipeline.verify import verify_bundle
from edgeres.progress import Silent
from edgeres.quantize import graphs, trial
from edgeres.quantize.graphs import Quantized, RangeChoice, quantize
from edgeres.quantize.trial import Probes, probe_images, random_images, try_forms
from edgeres.records import Preprocess
from edgeres.refine import recipe
from edgeres.refine.choice import RefineChoice
from edgeres.refine.recipe import quantize_with_recipe
from edgeres.verify import measure

RUNTIMES: tuple[Runtime, ...] = ("onnxruntime", "tensorrt", "rtx")
Rewrite = Callable[[onnx.ModelProto], onnx.ModelProto]


class Heard(Silent):
    """What was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def images(count: int) -> Arrays:
    pixels = np.random.default_rng(5).integers(0, 256, (count, 32, 32, 3), np.uint8)
    return Arrays(pixels, np.arange(count) % 10, (), "noise")


@pytest.fixture(scope="module")
def fp32() -> onnx.ModelProto:
    return normalize(resnet(quantized=False)).model


@pytest.fixture(scope="module")
def loader() -> Loader:
    return Loader(images(40), Preprocess((32, 32)), 16)


@pytest.fixture(scope="module")
def quantized(fp32: onnx.ModelProto, loader: Loader) -> Quantized:
    return quantize(fp32, ["tensorrt", "cpu"], loader, RangeChoice())


@pytest.fixture(scope="module")
def probes(fp32: onnx.ModelProto, loader: Loader) -> Probes:
    return Probes.of(fp32, probe_images(loader))


# ---- faults that are planted into the rewrite for TensorRT-RTX -------------------------------------------------------


def raises(model: onnx.ModelProto) -> onnx.ModelProto:
    raise KeyError("a tensor without a type")


def mixed_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """Half times Float, as a conversion that does not ask the operator writes it."""
    graph = Graph.copy_of(model)
    (gemm,) = graph.of("Gemm")
    graph.put_behind(gemm, "Cast", [], "half", to=TensorProto.FLOAT16)
    graph.put_behind(graph.node("half"), "Mul", [graph.add_constant("two", np.float32(2))], "mixed")
    return graph.model


def wrong_scale(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = Graph.copy_of(model)
    scale = graph.of("QuantizeLinear")[-1].input[1]
    graph.set_constant(scale, graph.constant(scale) / 16)
    return graph.done()


def not_finite(model: onnx.ModelProto) -> onnx.ModelProto:
    """A bias beyond float16's range."""
    graph = Graph.copy_of(model)
    bias = graph.of("Gemm")[0].input[2]
    graph.set_constant(bias, np.full_like(graph.constant(bias), np.inf))
    return graph.done()


@pytest.mark.parametrize(
    ("rewrite", "words"),
    [
        (raises, "KeyError: 'a tensor without a type'"),
        (mixed_types, "ONNX Runtime cannot load this graph"),
        (wrong_scale, r"its scores have -?\d+\.\d dB SQNR against FP32's on the probe images, and \d\d\.\d dB were"),
        (not_finite, "its scores are not finite on the probe images"),
    ],
)
def test_a_form_that_fails_is_left_out_and_the_others_are_kept(
    rewrite: Rewrite, words: str, quantized: Quantized, probes: Probes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMS, "rtx", replace(FORMS["rtx"], rewrite=rewrite))
    heard = Heard()
    tried = try_forms(quantized, RUNTIMES, probes, heard)
    assert set(tried.graphs) == {"tensorrt", "cpu"}
    assert tried.left_out.keys() == {"rtx"}
    (line,) = heard.lines
    assert line.startswith("model.int8.rtx.onnx is left out: ")
    assert re.search(words, line)


def test_good_forms_are_all_kept_with_the_noise_that_they_have(quantized: Quantized, probes: Probes) -> None:
    tried = try_forms(quantized, RUNTIMES, probes)
    assert tried.graphs.keys() == FORMS.keys() and not tried.left_out
    assert tried.graphs["tensorrt"] is quantized.graphs["tensorrt"]
    assert all(20 < db < 60 for db in tried.sqnr_db.values())


def test_a_form_that_is_made_from_one_that_is_left_out_is_left_out_too(
    quantized: Quantized, probes: Probes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parsers of TensorRT refuse a graph; the CPU runs its own all the same."""
    refused = Finding("pool", "", "dilation", "refused", "a dilated MaxPool")
    monkeypatch.setattr(trial, "lint", lambda model: [refused])
    tried = try_forms(quantized, RUNTIMES, probes)
    assert set(tried.graphs) == {"cpu"}
    assert tried.left_out["tensorrt"] == f"TensorRT would not take the graph: {refused}"
    assert tried.left_out["rtx"] == "it is made from model.int8.onnx, which is left out"


def test_a_wrong_graph_of_a_plan_is_found_though_its_codes_are_valid(quantized: Quantized, probes: Probes) -> None:
    swapped = replace(quantized, graphs={**quantized.graphs, "cpu": wrong_scale(quantized.graphs["cpu"])})
    tried = try_forms(swapped, RUNTIMES, probes)
    assert set(tried.graphs) == {"tensorrt", "rtx"}


def test_a_machine_without_memory_is_no_fault_of_a_form(
    quantized: Quantized, probes: Probes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(model: onnx.ModelProto) -> onnx.ModelProto:
        raise MemoryError

    monkeypatch.setitem(FORMS, "rtx", replace(FORMS["rtx"], rewrite=full))
    with pytest.raises(MemoryError):
        try_forms(quantized, RUNTIMES, probes)


def test_probe_images_are_calibration_images_or_random_where_only_ranges_are_known(loader: Loader) -> None:
    found = probe_images(loader)
    every = np.concatenate([batch.inputs for batch in loader])
    assert found.shape == (8, 3, 32, 32)
    assert all((every == image).all(axis=(1, 2, 3)).any() for image in found)
    past = Loader(images(0), loader.preprocess, 16)
    assert (probe_images(past) == random_images(loader.preprocess)).all()
    assert random_images(Preprocess((8, 9), layout="NHWC")).shape == (8, 8, 9, 3)


# ---- styles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["place", "make_plan", "rewrite"])
@pytest.mark.parametrize("style", ["cpu", "tensorrt"])
def test_a_style_that_cannot_be_quantized_leaves_the_other(
    stage: str, style: str, fp32: onnx.ModelProto, loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = getattr(graphs, stage)

    def fails(*args: Any) -> Any:  # the second argument is the style, or has one
        if style == getattr(args[1], "style", args[1]):
            raise RuntimeError(f"no {stage}")
        return plain(*args)

    monkeypatch.setattr(graphs, stage, fails)
    done = quantize(fp32, ["tensorrt", "cpu"], loader, RangeChoice())
    (other,) = {"tensorrt", "cpu"} - {style}
    assert done.graphs.keys() == done.plans.keys() == done.floats.keys() == {other}
    assert done.left_out == {style: f"RuntimeError: no {stage}"}
    with pytest.raises(RuntimeError, match=f"no {stage}"):
        quantize(fp32, [style], loader, RangeChoice())  # type: ignore[list-item]


def test_calibration_goes_on_with_the_style_whose_tensors_can_be_observed(
    fp32: onnx.ModelProto, loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = graphs.observe

    def observe(model: onnx.ModelProto, tensors: Any, *rest: Any) -> Any:
        if len(tensors) > 9:  # the cpu style observes more
            raise TypeError("counts of an int64 tensor")
        return plain(model, tensors, *rest)

    monkeypatch.setattr(graphs, "observe", observe)
    done = quantize(fp32, ["tensorrt", "cpu"], loader, RangeChoice())
    assert done.left_out == {"cpu": "TypeError: counts of an int64 tensor"}
    assert done.graphs.keys() == {"tensorrt"} and done.images == 40


def test_images_that_cannot_be_read_are_no_fault_of_a_style(fp32: onnx.ModelProto) -> None:
    class Broken(Arrays):
        reads = 0

        def image(self, index: int) -> Any:
            self.reads += 1
            raise SourceError("truncated", where=self.name(index))

    source = Broken(images(4).images, images(4).labels, (), "broken")
    with pytest.raises(SourceError):
        quantize(fp32, ["tensorrt", "cpu"], Loader(source, Preprocess((32, 32)), 4), RangeChoice())
    assert source.reads == 4


def test_refinement_that_breaks_one_style_leaves_the_other(
    fp32: onnx.ModelProto, loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = recipe.rewrite

    def fails(model: onnx.ModelProto, plan: Any) -> onnx.ModelProto:
        if plan.style == "tensorrt":
            raise ValueError("axis 4")
        return plain(model, plan)

    monkeypatch.setattr(recipe, "rewrite", fails)
    done = quantize_with_recipe(fp32, ["tensorrt", "cpu"], loader, RangeChoice(), RefineChoice("fast", "auto"))
    assert done.quantized.graphs.keys() == {"cpu"}
    assert done.quantized.left_out == {"tensorrt": "ValueError: axis 4"}


# ---- whole builds ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(measure, "LatencyPlan", partial(measure.LatencyPlan, warmup_seconds=0.0, min_seconds=0.01))
    (tmp_path / "net.onnx").write_bytes(resnet(quantized=False).SerializeToString())
    write_images(tmp_path / "images.npz", 40, 32, 10)
    return tmp_path


def built(folder: Path, *targets: str, progress: Any = None, **given: Any) -> BuildResult:
    source = str(folder / "images.npz")
    return build(
        folder / "net.onnx",
        progress=progress or Silent(),
        calibration=source,
        validation=source,
        effort="fast",
        targets=targets,
        output=folder / "net.edgeres",
        **given,
    )


def check_of(report: dict[str, Any]) -> tuple[str, str]:
    (found,) = (check for check in report["checks"] if check["name"] == "targets")
    return found["outcome"], found["reason"]


def test_a_build_writes_what_is_good_and_fails_for_the_target_that_was_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMS, "rtx", replace(FORMS["rtx"], rewrite=raises))
    result = built(folder, "rtx", "cpu", "tensorrt")
    assert not result.passed
    why = "model.int8.rtx.onnx is left out: KeyError: 'a tensor without a type'"
    assert check_of(result.report) == ("failed", f"rtx: {why}")
    assert result.report["left_out"] == [{"target": "rtx", "why": why, "asked": True}]
    assert result.report["accuracy"]["graphs"].keys() == {"cpu", "tensorrt"}
    bundle = Bundle(result.path)
    bundle.check()
    assert bundle.has("calibration.json") and not bundle.has(FORMS["rtx"].file)
    assert [left.target for left in bundle.manifest.left_out] == ["rtx"]

    again = verify_bundle(bundle.path, DataChoice(None, str(folder / "images.npz")), VerifyOptions())
    assert check_of(again) == ("failed", f"rtx: {why}")
    assert built(folder, "rtx", "cpu", allow=("targets", "fp32")).passed  # its weights are random


def test_a_build_without_a_graph_ends_in_one_line_and_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMS, "rtx", replace(FORMS["rtx"], rewrite=raises))
    monkeypatch.setattr(graphs, "rewrite", lambda *args: raises(args[0]))
    with pytest.raises(KeyError):
        built(folder, "cpu", "rtx")
    monkeypatch.setattr(graphs, "rewrite", lambda model, plan: mixed_types(model))
    with pytest.raises(ModelError, match=r"no INT8 graph can be written: model\.int8\.onnx: ONNX Runtime cannot load"):
        built(folder, "cpu", "rtx")
    assert not (folder / "net.edgeres").exists()


def test_an_engine_that_the_vendor_refuses_leaves_the_graphs_and_the_vendors_words(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*args: Any) -> BuiltEngine:
        raise EngineError("RTX refuses the graph", hint="--debug shows the log") from RuntimeError("[E] no kernel")

    monkeypatch.setattr(engines, "not_built", lambda target: None)
    monkeypatch.setattr(engines, "build_engine", refuses)
    heard = Heard()
    result = built(folder, "rtx", "cpu", progress=heard)
    assert not result.passed
    assert check_of(result.report)[1].startswith("rtx: an engine is left out: RTX refuses the graph")
    status = "not built: RTX refuses the graph; engines/rtx-int8.log has the vendor's messages"
    assert [(engine["precision"], engine["status"]) for engine in result.report["engines"]] == [("int8", status)]
    bundle = Bundle(result.path)
    assert bundle.file("engines/rtx-int8.log").read_text() == "[E] no kernel"
    assert bundle.has(FORMS["rtx"].file)
    assert f"rtx: INT8 engine {status}" in heard.lines

    manifest = (bundle.path / "manifest.json").read_bytes()
    monkeypatch.setattr("edgeres.pipeline.engines.not_built", lambda target: None)
    with pytest.raises(EngineError, match="RTX refuses the graph; --debug shows the log"):
        add_engines(bundle.path, "rtx", engines.EngineChoice())
    assert (bundle.path / "manifest.json").read_bytes() == manifest

    monkeypatch.setattr(engines, "build_engine", fake_engine)
    add_engines(bundle.path, "rtx", engines.EngineChoice())
    assert Bundle(bundle.path).manifest.left_out == ()


def fake_engine(graph: Any, request: BuildRequest, *rest: Any) -> BuiltEngine:
    return BuiltEngine(b"vtrt", request, "rtx", "1.7", (1, 1, 8), (), 0.1, ())


def test_quantize_writes_nothing_where_the_graph_of_its_target_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written(target: str) -> bytes:
        data = DataChoice(str(folder / "images.npz"), None)
        choice = ModelChoice(folder / "net.onnx")
        return quantize_file(choice, data, RangeOptions(), RefineChoice("fast"), target).model

    monkeypatch.setitem(FORMS, "rtx", replace(FORMS["rtx"], rewrite=not_finite))
    with pytest.raises(ModelError, match=r"net\.onnx: no graph for rtx can be written: its scores are not finite"):
        written("rtx")
    assert onnx.load_from_string(written("tensorrt")).graph.node


def test_quantize_says_where_the_codes_lose_the_scores(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges of a hundredth: the graph is that of its plan, and its plan is poor."""

    def narrow(*args: Any) -> Any:
        plan = plain(*args)
        edges = (replace(e, params=replace(e.params, scale=e.params.scale / np.float32(100))) for e in plan.edges)
        return replace(plan, edges=tuple(edges))

    plain, heard = graphs.make_plan, Heard()
    monkeypatch.setattr(graphs, "make_plan", narrow)
    data, choice = DataChoice(str(folder / "images.npz")), ModelChoice(folder / "net.onnx")
    done = quantize_file(choice, data, RangeOptions(), RefineChoice("fast"), "tensorrt", heard)
    assert done.summary["probe_sqnr_db"] < 10
    (note,) = [line for line in heard.lines if "SQNR" in line]
    assert note in done.summary["notes"]


def test_noise_layer_by_layer_that_cannot_be_measured_ends_no_build(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any) -> Any:
        raise ModelError("ONNX Runtime cannot load this graph")

    monkeypatch.setattr(measure, "layer_noise", fails)
    report = built(folder, "cpu").report
    assert report["reasons"]["anatomy"] == "noise was not measured layer by layer: ONNX Runtime cannot load this graph"
    assert {check["name"]: check["outcome"] for check in report["checks"]}["weights"] == "unsure"
