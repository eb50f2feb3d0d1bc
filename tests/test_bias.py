"""Bias correction: every layer's mean is FP32's again, in both styles."""

from __future__ import annotations

import foreign_graphs
import numpy as np
import onnx
import pytest

from edgeres.calibrate.forward import with_outputs
from edgeres.calibrate.ranges import choose_range
from edgeres.calibrate.sketch import Sketch
from edgeres.graph.graph import Graph
from edgeres.graph.normalize import normalize
from edgeres.quantize.placement import place
from edgeres.quantize.plan import make_plan
from edgeres.records import Style, TensorRange
from edgeres.refine.bias import correct_bias
from edgeres.refine.candidate import CandidatePlan, logits
from edgeres.runtime.ort import OrtRunner

NAMES = ("option A", "bottleneck", "mxnet v2, opset 7", "groups", "Clip")
IMAGES = np.random.default_rng(0).standard_normal((48, 3, 32, 32)).astype(np.float32)


def values(model: onnx.ModelProto, tensors: list[str]) -> dict[str, np.ndarray]:
    inner = [name for name in tensors if name != model.graph.input[0].name]
    with OrtRunner(with_outputs(model, inner), integer=False) as runner:
        return runner.infer({runner.input_name: IMAGES}) | {runner.input_name: IMAGES}


def make_candidate(model: onnx.ModelProto, style: Style) -> CandidatePlan:
    view = Graph(model)
    placement = place(view, style)
    found = values(model, list(placement.observed))
    ranges: dict[str, TensorRange] = {}
    for name in placement.observed:
        sketch = Sketch()
        sketch.add(found[name])
        ranges[name] = choose_range(name, sketch.histogram(), "mse", len(IMAGES), symmetric=style == "tensorrt")
    return CandidatePlan(model, make_plan(view, placement, ranges, "test"))


def mean_shift(model: onnx.ModelProto, fp32: onnx.ModelProto, tensors: list[str]) -> float:
    """Largest shift of a channel's mean, over the tensor's standard deviation."""
    found, wanted = values(model, tensors), values(fp32, tensors)
    axes = {name: (0, *range(2, wanted[name].ndim)) for name in tensors}
    return max(
        float(np.abs((found[name] - wanted[name]).mean(axis=axes[name])).max() / wanted[name].std()) for name in tensors
    )


@pytest.mark.parametrize("style", ["tensorrt", "cpu"])
@pytest.mark.parametrize("name", NAMES)
def test_means_behind_every_add_and_of_the_scores_are_those_of_fp32(name: str, style: Style) -> None:
    model = normalize(foreign_graphs.FOREIGN[name]()).model
    view = Graph(model)
    candidate = make_candidate(model, style)
    corrected = correct_bias(candidate, model, IMAGES)
    watched = [node.output[0] for node in view.nodes if view.is_residual_add(node)] + [view.output]
    before = mean_shift(candidate.quantized(), model, watched)
    after = mean_shift(corrected.quantized(), model, watched)
    assert after < 1e-3 and after < before / 2
    assert [edge.params.scale for edge in corrected.plan.edges] == [edge.params.scale for edge in candidate.plan.edges]


def test_int32_codes_are_those_of_the_float_bias() -> None:
    candidate = make_candidate(normalize(foreign_graphs.option_a()).model, "cpu")
    corrected = correct_bias(candidate, candidate.graph, IMAGES)
    view = Graph(corrected.graph)
    biases = [edge for edge in corrected.plan.weights if edge.params.dtype == "int32"]
    assert len(biases) == sum(node.op_type in {"Conv", "Gemm"} for node in view.nodes)
    for edge in biases:
        error = np.abs(edge.codes * edge.params.scale - view.constant(edge.tensor).reshape(-1))
        assert (error <= 0.501 * edge.params.scale).all()


@pytest.mark.parametrize("style", ["tensorrt", "cpu"])
def test_layers_without_bias_or_with_a_shared_one_get_their_own(style: Style) -> None:
    w = foreign_graphs.Writer()
    x = w.op("Relu", w.conv("data", (3, 8)))
    shared = w.random(8, std=0.1)
    for _ in range(2):
        x = w.op("Relu", w.op("Conv", x, w.random(8, 8, 3, 3, std=0.2), shared, pads=[1] * 4))
    model = normalize(w.model(w.head(x, 8))).model
    candidate = make_candidate(model, style)
    corrected = correct_bias(candidate, model, IMAGES)
    layers = [node for node in corrected.graph.graph.node if node.op_type in {"Conv", "Gemm"}]
    assert len({node.input[2] for node in layers}) == len(layers) == 4
    expected = logits(model, IMAGES)
    error, error_before = (logits(d.quantized(), IMAGES) - expected for d in (corrected, candidate))
    assert np.abs(error.mean(axis=0)).max() < 1e-4 < np.abs(error_before.mean(axis=0)).max()


def test_the_graph_given_is_not_changed() -> None:
    candidate = make_candidate(normalize(foreign_graphs.option_a()).model, "tensorrt")
    before = candidate.graph.SerializeToString()
    correct_bias(candidate, candidate.graph, IMAGES)
    assert candidate.graph.SerializeToString() == before
