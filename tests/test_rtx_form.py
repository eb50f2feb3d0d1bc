"""The form for TensorRT-RTX has the same codes as the graph for TensorRT, and moves fewer bytes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import foreign_graphs
import numpy as np
import onnx
import pytest
from bundles import write_images
from engine_graphs import resnet
from onnx import TensorProto, shape_inference
from test_zero_points import plan_for, run

from edgeres.bundle import Bundle
from edgeres.device.libraries import available
from edgeres.engine.builder import BuildRequest, build_engine
from edgeres.engine.engines import EngineChoice
from edgeres.engine.kernels import read_program
from edgeres.graph.forms import FORMS
from edgeres.graph.lint import lint
from edgeres.graph.normalize import normalize
from edgeres.graph.rtx import channel_factor, rtx_form
from edgeres.pipeline.build import build
from edgeres.pipeline.engines import add_engines
from edgeres.quantize.rewrite import rewrite
from edgeres.records import HalfEdge, QuantPlan
from edgeres.verify import measure

needs_rtx = pytest.mark.skipif(not available("rtx").importable, reason="TensorRT-RTX is not installed")


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Types by ONNX's own inference, which refuses operators whose inputs do not fit each other."""
    inferred = shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    return {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}


def quantized(name: str) -> tuple[onnx.ModelProto, QuantPlan, np.ndarray]:
    graph = normalize(foreign_graphs.FOREIGN[name]()).model
    shape = [dim.dim_value for dim in graph.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(0).uniform(0, 1, (4, *shape[1:])).astype(np.float32)
    return graph, plan_for(graph, x), x


def differences(plan: QuantPlan, plain: onnx.ModelProto, form: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """Differences of every activation's codes, in steps."""
    codes = [f"{edge.tensor}_q" for edge in plan.edges]
    expected, found = run(plain, x, *codes), run(form, x, *codes)
    return np.concatenate([np.abs(expected[code].astype(int) - found[code]).ravel() for code in codes])


@pytest.mark.parametrize("name", foreign_graphs.FOREIGN)
def test_a_factor_per_channel_gives_the_same_codes(name: str) -> None:
    graph, plan, x = quantized(name)
    plain = rewrite(graph, plan)
    found = differences(plan, plain, channel_factor(plain), x)
    assert found.max() <= 2 and np.mean(found > 0) < 0.005  # ties, and what follows from them


@pytest.mark.parametrize("name", foreign_graphs.FOREIGN)
def test_codes_are_those_of_the_graph_for_tensorrt_to_float16(name: str) -> None:
    graph, plan, x = quantized(name)
    plain = rewrite(graph, plan)
    form = rtx_form(plain)
    assert not [finding for finding in lint(form) if finding.effect in {"refused", "wrong"}]
    found_types = types(form)
    convs = [node for node in form.graph.node if node.op_type == "Conv"]
    assert {found_types[conv.output[0]] for conv in convs} == {TensorProto.FLOAT16}
    # 11 bits ahead of 8: about one in ten falls the other way, by one step.
    found = differences(plan, plain, form, x)
    assert np.mean(found > 0) < 0.15 and np.mean(found > 1) < 0.01

    (output, *_) = (value.name for value in form.graph.output)
    exact, int8, ours = (run(model, x)[output] for model in (graph, plain, form))
    noise = [float(np.mean((scores - exact) ** 2)) for scores in (int8, ours)]
    assert noise[1] < 2 * noise[0] + 1e-6 * float(np.mean(exact**2))


def test_a_skip_that_is_kept_in_float16_stays_so() -> None:
    graph, plan, x = quantized("mxnet v1, opset 7")
    adds = {node.name for node in graph.graph.node if node.op_type == "Add"}
    skips = [edge for edge in plan.edges if set(edge.consumers) & adds]
    assert skips
    kept = tuple(HalfEdge(e.tensor, tuple(c for c in e.consumers if c in adds), "kept") for e in skips)
    edges = tuple(replace(e, consumers=tuple(c for c in e.consumers if c not in adds)) for e in plan.edges)
    mixed = replace(plan, edges=tuple(e for e in edges if e.consumers), halves=kept)
    form = rtx_form(rewrite(graph, mixed))
    types(form)
    expected, found = (next(iter(run(model, x).values())) for model in (rewrite(graph, mixed), form))
    assert np.sum((expected - found) ** 2) / np.sum(expected**2) < 1e-3


@needs_rtx
def test_convolutions_of_the_engine_write_float16_and_less_is_moved() -> None:
    plain = resnet(quantized=True, batch=1)

    def program(model: onnx.ModelProto):
        return read_program(build_engine(model.SerializeToString(), BuildRequest("int8"), "rtx").data)

    before, after = program(plain), program(rtx_form(plain))
    convolutions = after.of_kind("convolution")
    assert len(convolutions) == len(before.of_kind("convolution")) > 0
    assert {tensor.dtype for kernel in convolutions for tensor in kernel.reads} <= {"int8", "float16"}
    assert {tensor.dtype for kernel in convolutions for tensor in kernel.writes} == {"float16"}
    assert "float32" in {tensor.dtype for kernel in before.of_kind("convolution") for tensor in kernel.writes}
    assert len(after.of_kind("pointwise")) <= len(before.of_kind("pointwise"))
    assert after.moved_bytes < 0.8 * before.moved_bytes


@needs_rtx
def test_a_bundle_for_rtx_holds_that_graph_verified_and_its_engine_is_built_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "LatencyPlan", partial(measure.LatencyPlan, warmup_seconds=0.0, min_seconds=0.01))
    write_images(tmp_path / "images.npz", 40, 32, 10)
    (tmp_path / "net.onnx").write_bytes(resnet(quantized=False).SerializeToString())
    images = str(tmp_path / "images.npz")
    given = {"calibration": images, "validation": images, "effort": "fast"}
    report = build(tmp_path / "net.onnx", **given, targets=("rtx",), output=tmp_path / "with.edgeres").report
    bundle = Bundle(tmp_path / "with.edgeres")
    assert bundle.file(FORMS["rtx"].file).is_file()
    assert report["accuracy"]["graphs"].keys() == {"tensorrt", "rtx"}
    assert "TensorRT-RTX" in report["accuracy"]["graphs"]["rtx"]["note"]

    build(tmp_path / "net.onnx", **given, targets=("tensorrt",), output=tmp_path / "without.edgeres")
    assert not Bundle(tmp_path / "without.edgeres").has(FORMS["rtx"].file)
    add_engines(tmp_path / "without.edgeres", "rtx", EngineChoice())
    for folder in ("with.edgeres", "without.edgeres"):
        (engine,) = (tmp_path / folder / "engines").glob("*.engine")
        written = [kernel.writes for kernel in read_program(engine.read_bytes()).of_kind("convolution")]
        assert {tensor.dtype for tensors in written for tensor in tensors} == {"float16"}
