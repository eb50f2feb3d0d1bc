"""Codes where nothing is to be coded: channels, layers and tensors of zeros, as pruning and training leave them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from engine_graphs import model as onnx_model
from engine_graphs import resnet
from noise import noise_power
from onnx import helper, numpy_helper

from edgeres.data.arrays import Arrays
from edgeres.data.loader import Loader
from edgeres.graph.forms import FORMS, rewritten
from edgeres.graph.normalize import normalize
from edgeres.graph.rtx import channel_factor
from edgeres.quantize.affine import quantize_weight
from edgeres.quantize.graphs import Quantized, RangeChoice, quantize
from edgeres.quantize.plan import plan_digest
from edgeres.records import F32, Preprocess
from edgeres.refine.choice import RefineChoice
from edgeres.refine.constants import constant_channels
from edgeres.refine.recipe import quantize_with_recipe

PX = 16
# The input is in units of a byte, so its scale is about 1, as in graphs that take the camera's bytes.
CONTRACT = Preprocess((PX, PX), mean=(127.5,) * 3, std=(1.0,) * 3, pixel_scale=1.0)
Constants = dict[str, F32]


def loader(seed: int) -> Loader:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, PX, PX, 3), dtype=np.uint8)
    return Loader(Arrays(pixels, np.zeros(32, np.int64), ("one",), "random"), CONTRACT, 16)


def changed(change: Callable[[Constants, list[tuple[str, str]]], None]) -> onnx.ModelProto:
    """A small residual network with biases; ``change`` gets its constants and the (weight, bias) of each Conv."""
    model = normalize(resnet(quantized=False, width=16, px=PX)).model
    values = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer}
    convs = [(node.input[1], node.input[2]) for node in model.graph.node if node.op_type == "Conv"]
    rng = np.random.default_rng(3)
    for _, bias in convs:
        values[bias] = rng.normal(0, 0.3, values[bias].shape).astype(np.float32)
    values[convs[0][0]] /= 64
    change(values, convs)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    return model


def kill(times: float) -> Callable[[Constants, list[tuple[str, str]]], None]:
    """Multiply every third channel's weights; the biases stay, as network slimming leaves them."""

    def change(values: Constants, convs: list[tuple[str, str]]) -> None:
        for weight, _ in convs:
            values[weight][::3] = (values[weight][::3].astype(np.float64) * times).astype(np.float32)

    return change


def kill_without_bias(values: Constants, convs: list[tuple[str, str]]) -> None:
    for weight, bias in convs:
        values[weight][::3], values[bias][::3] = 0, 0


def zero_branch(values: Constants, convs: list[tuple[str, str]]) -> None:
    """The last convolution of the first block, whose batch norm starts at zero."""
    values[convs[2][0]][:], values[convs[2][1]][:] = 0, 0


def zero_weights(values: Constants, convs: list[tuple[str, str]]) -> None:
    values[convs[2][0]][:] = 0


def dead_relu(values: Constants, convs: list[tuple[str, str]]) -> None:
    """The first block's inner ReLU never fires, and the next layer's weights are as large as a batch norm without
    variance makes them."""
    values[convs[1][1]][:] = -100
    values[convs[2][0]] *= 300


def large_bias(values: Constants, convs: list[tuple[str, str]]) -> None:
    """Dead channels whose constants nothing positive ever comes from."""
    for weight, bias in convs[:2]:
        values[weight][::3], values[bias][::3] = 0, -3e4


CASES = {
    "dead channels with bias": kill(0.0),
    "channels that are nearly dead": kill(1e-20),
    "channels of denormal numbers": kill(1e-42),
    "dead channels": kill_without_bias,
    "branch of zeros": zero_branch,
    "layer without weights": zero_weights,
    "ReLU that never fires": dead_relu,
    "dead channels with a large bias": large_bias,
}


def run(model: onnx.ModelProto, *, optimized: bool) -> F32:
    """The scores, in float between Q/DQ pairs or as ONNX Runtime runs a graph by default."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimized:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    images = np.concatenate([batch.inputs for batch in loader(1)])
    scores: F32 = session.run(None, {session.get_inputs()[0].name: images})[0]
    return scores


def quantized(model: onnx.ModelProto) -> Quantized:
    return quantize(model, ["tensorrt", "cpu"], loader(0), RangeChoice())


def noise(model: onnx.ModelProto) -> dict[str, float]:
    """Noise power of the scores, of every form and by both ways to run it."""
    exact = run(model, optimized=False)
    graphs = quantized(model).graphs
    forms = {name: rewritten(form, graphs[form.style]) for name, form in FORMS.items()}
    ways = [(name, optimized) for name in forms for optimized in (False, True) if (name, optimized) != ("rtx", True)]
    return {f"{name} {way}": noise_power(exact, run(forms[name], optimized=way)) for name, way in ways}


@pytest.fixture(scope="module")
def control() -> dict[str, float]:
    return noise(changed(lambda values, convs: None))


@pytest.mark.parametrize("name", CASES)
def test_what_is_dead_adds_no_noise_in_any_form(name: str, control: dict[str, float]) -> None:
    found = noise(changed(CASES[name]))
    # The rounding error of a constant is the same on every image, so it does not average out: hence up to 5.1 dB.
    assert {key: value for key, value in found.items() if value > 3.5 * control[key]} == {}


def test_a_channel_of_zeros_has_the_scale_of_the_smallest_live_one() -> None:
    weight = np.array([[0.0, 0.0], [1.27, 0.5], [0.0, 0.0], [-0.254, 0.1]], np.float32)
    params, codes = quantize_weight(weight, 0)
    np.testing.assert_allclose(params.scale, [0.002, 0.01, 0.002, 0.002], rtol=1e-6)
    assert codes[[0, 2]].tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("name", ["dead channels with bias", "layer without weights", "channels of denormal numbers"])
def test_biases_are_coded_to_a_fraction_of_the_output_step(name: str) -> None:
    """In int32, and in a unit that is a normal number: a bias of zero over a unit of zero is no code."""
    model = changed(CASES[name])
    plan = quantized(model).plans["cpu"]
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    steps = min(float(edge.params.scale) for edge in plan.edges)
    biases = [edge for edge in plan.weights if edge.params.dtype == "int32"]
    assert biases
    for edge in biases:
        assert (edge.params.scale > np.finfo(np.float32).tiny).all()
        assert np.abs(edge.codes * edge.params.scale - values[edge.tensor]).max() < steps / 10
        assert np.abs(edge.codes.astype(np.int64)).max() < 2**31 - 1


def test_a_tensor_of_zeros_has_a_typical_scale_and_no_zero_point_that_must_cancel() -> None:
    plans = quantized(changed(dead_relu)).plans
    for style, plan in plans.items():
        scales = {edge.tensor: float(edge.params.scale) for edge in plan.edges}
        (silent,) = [edge for edge in plan.edges if edge.tensor == "relu4_out"]
        others = [scale for tensor, scale in scales.items() if tensor != silent.tensor and tensor != "x"]
        assert min(others) <= scales[silent.tensor] <= max(others), style
        assert silent.params.zero_point == 0


def test_factors_of_the_form_for_rtx_fit_float16_whatever_a_few_channels_are() -> None:
    """A layer with every tenth channel dead, one nearly dead, and one as large as a batch norm without variance."""
    scale = np.full(40, 0.003, np.float32)
    codes = np.full((40, 4, 1, 1), 127, np.int8)
    codes[::10] = 0
    scale[::10], scale[1], scale[2] = 5e4, 1e-22, 3.0
    weight = [numpy_helper.from_array(codes, "codes"), numpy_helper.from_array(scale, "scale")]
    zero = [numpy_helper.from_array(np.zeros(40, np.int8), "zero")]
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["w"], axis=0),
        helper.make_node("Conv", ["x", "w"], ["y"], name="conv"),
    ]
    before = onnx_model(nodes, weight + zero, shape=("n", 4, 2, 2), output=("n", 40, 2, 2))
    after = {tensor.name: numpy_helper.to_array(tensor) for tensor in channel_factor(before).graph.initializer}
    base, factor = float(after["conv.base"]), after["conv.factor"].reshape(-1)
    assert np.isfinite(factor.astype(np.float16)).all()
    assert np.log2(base) == np.round(np.log2(base)) and 0.0015 < base <= 0.003
    live = codes.any(axis=(1, 2, 3))
    np.testing.assert_allclose((base * factor)[live], scale[live], rtol=1e-6)


def test_constants_of_a_pruned_network_are_corrected_without_refinement(control: dict[str, float]) -> None:
    model = changed(CASES["dead channels with bias"])
    plain = quantized(model)
    refined = quantize_with_recipe(model, ["tensorrt", "cpu"], loader(0), RangeChoice(), RefineChoice("fast"))
    assert [(step.name, step.style, step.kept) for step in refined.steps] == [
        ("bias correction", style, True) for style in ("tensorrt", "cpu")
    ]
    exact = run(model, optimized=False)
    for style, graph in refined.quantized.graphs.items():
        found = noise_power(exact, run(graph, optimized=True))
        assert found < noise_power(exact, run(plain.graphs[style], optimized=True)) / 1.5
        assert found < 1.26 * control[f"{style} True"]  # 1 dB


@pytest.mark.parametrize(
    ("name", "count"),
    # Every third channel of three layers with 16 and three with 32; all 16 of one layer.
    [("dead channels with bias", 3 * 6 + 3 * 11), ("dead channels", 0), ("layer without weights", 16)],
)
def test_constant_channels_are_those_with_a_bias_and_no_weights(name: str, count: int) -> None:
    model = changed(CASES[name])
    assert constant_channels(model, quantized(model).plans["cpu"]) == count


def test_other_networks_are_not_refined_without_being_asked() -> None:
    model = changed(lambda values, convs: None)
    refined = quantize_with_recipe(model, ["cpu"], loader(0), RangeChoice(), RefineChoice("fast"))
    assert refined.steps == ()
    assert plan_digest(refined.quantized.plans["cpu"]) == plan_digest(quantized(model).plans["cpu"])
