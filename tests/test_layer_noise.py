"""Noise layer by layer and the fit of every scale, compared with plain numpy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from engine_graphs import constant, model, resnet
from onnx import helper, numpy_helper

from edgeres.data.arrays import Arrays
from edgeres.data.loader import Loader
from edgeres.graph.normalize import normalize
from edgeres.quantize.graphs import RangeChoice, quantize
from edgeres.records import Preprocess
from edgeres.runtime.ort import OrtRunner
from edgeres.verify.candidates import Candidate, Candidates
from edgeres.verify.layer_noise import LayerNoise, layer_noise, why_unavailable

PX = 16
BLUR = {"w0": (4, 3, 3, 3), "w1": (4, 1, 3, 3), "w2": (5, 4, 1, 1)}
CONTRACT = Preprocess((PX, PX), mean=(0.5,) * 3, std=(0.25,) * 3)


def loader(count: int = 12) -> Loader:
    pixels = np.random.default_rng(1).integers(0, 256, (count, PX, PX, 3), dtype=np.uint8)
    return Loader(Arrays(pixels, np.zeros(count, np.int64), ("one",), "random"), CONTRACT, 4)


@pytest.fixture(scope="module")
def graphs() -> dict[str, onnx.ModelProto]:
    fp32 = normalize(resnet(quantized=False, width=8, px=PX)).model
    done = quantize(fp32, ["tensorrt", "cpu"], loader(), RangeChoice("minmax"))
    return {"fp32": fp32, **{str(style): graph for style, graph in done.graphs.items()}}


def measured(folder: Path, fp32: onnx.ModelProto, candidate: onnx.ModelProto) -> LayerNoise:
    onnx.save(fp32, folder / "fp32.onnx")
    onnx.save(candidate, folder / "int8.onnx")

    def of(name: str) -> Candidate:
        return Candidate(lambda threads: OrtRunner(folder / name), folder / name, layers=True)

    found = layer_noise(Candidates(of("fp32.onnx"), {"it": of("int8.onnx")}, "it", OrtRunner), loader())
    return found["it"]


def run(model: onnx.ModelProto, tensors: list[str], images: Any) -> dict[str, Any]:
    """Named tensors of a graph, with float arithmetic between Q/DQ pairs."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    known = {value.name for value in tapped.graph.output}
    tapped.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in tensors if name not in known)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(tapped.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(tensors, session.run(tensors, {model.graph.input[0].name: images}), strict=True))


def all_images() -> Any:
    return np.concatenate([batch.inputs for batch in loader()])


def edited(model: onnx.ModelProto, **changes: Any) -> onnx.ModelProto:
    """A copy with other values in the named constants."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in changes:
            tensor.CopyFrom(numpy_helper.from_array(changes[tensor.name], tensor.name))
    return copy


def values(model: onnx.ModelProto, name: str) -> Any:
    return next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == name)


def test_a_graph_is_equal_to_itself(graphs: dict[str, Any], tmp_path: Path) -> None:
    found = measured(tmp_path, graphs["fp32"], graphs["fp32"])
    assert found.images == 12
    assert [layer.sqnr_db for layer in found.layers] == [None] * len(found.layers)
    assert (found.ranges, found.weights) == ((), 0)
    # the stem and two Adds: the residual stream of two blocks
    assert [layer.stream for layer in found.layers if layer.stream] == [True] * 3


@pytest.mark.parametrize("style", ["tensorrt", "cpu"])
def test_noise_is_the_residual_of_a_fit_per_channel(graphs: dict[str, Any], tmp_path: Path, style: str) -> None:
    """The ReLU after the last Add, compared value by value with least squares per channel in numpy."""
    found = measured(tmp_path, graphs["fp32"], graphs[style])
    layer = [layer for layer in found.layers if layer.stream][-1]
    pool = next(node for node in graphs[style].graph.node if node.op_type == "GlobalAveragePool")
    images = all_images()
    x = run(graphs["fp32"], [layer.tensor], images)[layer.tensor].astype(np.float64)
    y = run(graphs[style], [pool.input[0]], images)[pool.input[0]].astype(np.float64)
    noise = 0.0
    for channel in range(x.shape[1]):
        columns = np.stack([y[:, channel].ravel(), np.ones(y[:, channel].size)], axis=1)
        fitted = columns @ np.linalg.lstsq(columns, x[:, channel].ravel(), rcond=None)[0]
        noise += float(np.square(x[:, channel].ravel() - fitted).sum())
    n = x[:, 0].size
    assert layer.sqnr_db == pytest.approx(10 * math.log10((x**2).sum() / (noise * n / (n - 2))), abs=0.02)
    depth = [layer.sqnr_db for layer in found.layers]
    assert all(db is not None and 25 < db < 60 for db in depth)
    assert found.weights == 6 + 1
    assert found.per_tensor == ()


def test_equalized_channels_are_no_noise(graphs: dict[str, Any], tmp_path: Path) -> None:
    """The channels of a ReLU are multiplied by s, and the weights of the next convolution divided by s."""
    fp32 = graphs["fp32"]
    first, second = (node for node in fp32.graph.node if node.op_type == "Conv" and node.name in _inner(fp32))
    s = np.geomspace(0.2, 5, 8).astype(np.float32)
    weights = {name: values(fp32, name) for node in (first, second) for name in node.input[1:2]}
    changes = {first.input[1]: weights[first.input[1]] * s[:, None, None, None]}
    changes[first.input[2]] = values(fp32, first.input[2]) * s
    changes[second.input[1]] = weights[second.input[1]] / s[None, :, None, None]
    found = measured(tmp_path, fp32, edited(fp32, **changes))
    assert all(layer.sqnr_db is None or layer.sqnr_db > 100 for layer in found.layers)


def _inner(model: onnx.ModelProto) -> set[str]:
    """The two convolutions of the identity block."""
    add = next(node for node in model.graph.node if node.op_type == "Add")
    producer = {name: node for node in model.graph.node for name in node.output}
    second = next(producer[name] for name in add.input if producer[name].op_type == "Conv")
    return {second.name, producer[producer[second.input[0]].input[0]].name}


@pytest.mark.parametrize("style", ["tensorrt", "cpu"])
@pytest.mark.parametrize("factor", [1.0, 0.1])
def test_the_fit_of_a_scale(graphs: dict[str, Any], tmp_path: Path, style: str, factor: float) -> None:
    model = graphs[style]
    node = [node for node in model.graph.node if node.op_type == "QuantizeLinear"][1]
    scale = (values(model, node.input[1]) * np.float32(factor)).astype(np.float32)
    changed = edited(model, **{node.input[1]: scale})
    found = measured(tmp_path, graphs["fp32"], changed)
    (fit,) = [fit for fit in found.ranges if fit.tensor == node.input[0]]
    zero = int(values(model, node.input[2]))
    limits = np.iinfo(values(model, node.input[2]).dtype)
    low, high = (float(scale) * (end - zero) for end in (limits.min, limits.max))
    kept = np.maximum(run(changed, [fit.tensor], all_images())[fit.tensor].astype(np.float64), low)
    assert fit.covered == pytest.approx((high - low) / (kept.max() - low), rel=1e-5)
    noise = np.square(np.maximum(kept - high, 0)).mean() + float(scale) ** 2 / 12
    assert fit.own_db == pytest.approx(10 * math.log10(kept.var() / noise), abs=1e-3)
    assert (fit.own_db < 10) is (factor < 1)


def test_one_scale_for_all_channels_is_found(graphs: dict[str, Any], tmp_path: Path) -> None:
    model = graphs["cpu"]
    constants = {tensor.name for tensor in model.graph.initializer}
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    weight = next(node for node in model.graph.node if conv.input[1] in node.output)
    assert weight.input[0] in constants
    codes = values(model, weight.input[0])
    own = np.abs(codes * values(model, weight.input[1]).reshape(-1, 1, 1, 1)).max(axis=(1, 2, 3))
    assert own.max() > 1.4 * own.min()
    scale = own.max() / 127
    ratio = values(model, weight.input[1]).reshape(-1, 1, 1, 1) / scale
    coarse = edited(model, **{weight.input[0]: np.rint(codes * ratio).astype(np.int8)})
    same = np.full_like(values(model, weight.input[1]), scale)
    for stored in (same, np.float32(scale)):
        changed = edited(coarse, **{weight.input[1]: stored})
        if not stored.shape:
            next(node for node in changed.graph.node if node.name == weight.name).attribute.pop()
            zero = {weight.input[2]: np.int8(0)}
            changed = edited(changed, **zero)
        assert measured(tmp_path, graphs["fp32"], changed).per_tensor == (conv.name,)


def test_equal_channels_and_layers_of_zeros_have_no_shared_scale(graphs: dict[str, Any], tmp_path: Path) -> None:
    """A BlurPool has the same weights in every channel, and a last batch norm that starts at zero leaves none."""
    weights = [node.input[1] for node in graphs["fp32"].graph.node if node.op_type == "Conv"][1:3]
    filters = np.broadcast_to(values(graphs["fp32"], weights[0])[:1], values(graphs["fp32"], weights[0]).shape).copy()
    nothing = np.zeros_like(values(graphs["fp32"], weights[1]))
    fp32 = edited(graphs["fp32"], **{weights[0]: filters, weights[1]: nothing})
    for style, graph in quantize(fp32, ["tensorrt", "cpu"], loader(), RangeChoice("minmax")).graphs.items():
        found = measured(tmp_path, fp32, graph)
        assert found.per_tensor == () and found.weights > 2, style


def test_a_branch_of_constants_has_no_signal_to_lose(graphs: dict[str, Any], tmp_path: Path) -> None:
    """Its range is that of its neighbours, far above its few different values."""
    fp32 = graphs["fp32"]
    last = [node for node in fp32.graph.node if node.op_type == "Conv"][2]
    bias = np.linspace(-1e-4, 1e-4, len(values(fp32, last.input[2])), dtype=np.float32)
    silent = edited(fp32, **{last.input[1]: np.zeros_like(values(fp32, last.input[1])), last.input[2]: bias * 0})
    graph = quantize(silent, ["cpu"], loader(), RangeChoice("minmax")).graphs["cpu"]
    (coded,) = [node for node in graph.graph.node if node.name == last.name]
    stored = next(node for node in graph.graph.node if coded.input[2] in node.output)
    unit = values(graph, stored.input[1])
    shifted = edited(graph, **{stored.input[0]: np.rint(bias / unit).astype(np.int32)})  # as bias correction may do
    (fit,) = [fit for fit in measured(tmp_path, silent, shifted).ranges if fit.tensor == coded.output[0]]
    assert fit.own_db == math.inf


def test_a_machine_without_onnx_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_unavailable() is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "it needs onnx" in str(why_unavailable())


def test_a_layer_whose_reader_moves_codes_is_left_out(tmp_path: Path) -> None:
    """BlurPool: a reflecting Pad between a MaxPool and a depthwise convolution passes the codes on."""
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape).astype(np.float32) / 4 for name, shape in BLUR.items()}
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], name="stem", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("MaxPool", ["b"], ["c"], name="pool", kernel_shape=[2, 2]),
        helper.make_node("Pad", ["c", "pads"], ["d"], name="pad", mode="reflect"),
        helper.make_node("Conv", ["d", "w1"], ["e"], name="blur", group=4, strides=[2, 2]),
        helper.make_node("Conv", ["e", "w2"], ["f"], name="last"),
        helper.make_node("GlobalAveragePool", ["f"], ["g"], name="mean"),
        helper.make_node("Flatten", ["g"], ["y"], name="flat"),
    ]
    constants = [constant(name, values) for name, values in weights.items()]
    constants.append(constant("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)))
    fp32 = normalize(model(nodes, constants, shape=("n", 3, PX, PX), output=("n", 5))).model
    done = quantize(fp32, ["cpu"], loader(), RangeChoice("minmax"))
    found = measured(tmp_path, fp32, done.graphs["cpu"])
    assert "blur" in {layer.node for layer in found.layers}
    assert all(layer.sqnr_db is not None and layer.sqnr_db > 20 for layer in found.layers)
