"""Layers on a DLA: each of NVIDIA's limits, on a layer made for it; and the graph and cache for a DLA."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundles import spec, write_bundle
from calibrations import calibration
from click.testing import CliRunner
from engine_graphs import constant, model, resnet
from onnx import helper

from edgeres.bundle import CALIBRATION, FP32, new_bundle, seal
from edgeres.calibrate.identity import identify
from edgeres.calibrate.record import CALIBRATION_KIND, TensorEntry
from edgeres.cli.dla import CACHE, GRAPH, command
from edgeres.device.targets import TARGETS
from edgeres.engine.builder import BuildRequest, build_engine
from edgeres.errors import UsageError
from edgeres.files import write_file, write_json
from edgeres.graph.dla import DlaModel, for_dla
from edgeres.graph.forms import FORMS
from edgeres.records import Manifest, Preprocess, Skipped
from edgeres.refine.exact_input import exact_input

NX, XAVIER = TARGETS["jetson-orin-nx"], TARGETS["jetson-xavier-nx"]
HEADER = "TRT-100300-EntropyCalibration2"
BYTES = Preprocess(crop_px=(32, 32), mean=(128.0,) * 3, std=(1.0,) * 3, pixel_scale=1.0)


def cache_of(graph: onnx.ModelProto, left_out: str = "") -> tuple[str, dict[str, float]]:
    """A scale for the output of every ReLU and Add."""
    names = [n.output[0] for n in graph.graph.node if n.op_type in ("Relu", "Add", "Gemm") and n.output[0] != left_out]
    scales = {name: float(np.float32(0.01 * (index + 1))) for index, name in enumerate(names)}
    return HEADER + "\n" + "".join(f"{n}: {struct.pack('!f', s).hex()}\n" for n, s in scales.items()), scales


def read(cache: str) -> dict[str, float]:
    lines = (line.rpartition(": ") for line in cache.splitlines()[1:])
    return {name: struct.unpack("!f", bytes.fromhex(digits))[0] for name, _, digits in lines}


def taken(graph: onnx.ModelProto, target: Any = NX, batch: int = 1) -> DlaModel:
    return for_dla(graph, target, batch, cache_of(graph)[0], BYTES)


def verdict(graph: onnx.ModelProto, target: Any = NX) -> tuple[str, str]:
    """Where the last node runs, and why."""
    layer = taken(graph, target).layers[-1]
    return layer.where, layer.reason


def conv(shape: tuple[int, ...] = (8, 3, 3, 3), px: int = 64, **attributes: Any) -> onnx.ModelProto:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="c", **attributes)
    weights = [constant("w", np.zeros(shape, np.float32))]
    return model(
        [node], weights, shape=("n", shape[1] * attributes.get("group", 1), px, px), output=("n", shape[0], None, None)
    )


def pool(op: str, px: int = 64, **attributes: Any) -> onnx.ModelProto:
    node = helper.make_node(op, ["x"], ["y"], name="p", **attributes)
    return model([node], [], shape=("n", 3, px, px), output=("n", 3, None, None))


def unary(op: str, shape: tuple[Any, ...] = ("n", 3, 8, 8), **attributes: Any) -> onnx.ModelProto:
    output = (None, None) if op == "Flatten" else tuple(None for _ in shape)
    return model([helper.make_node(op, ["x"], ["y"], **attributes)], [], shape=shape, output=output)


@pytest.mark.parametrize(
    ("graph", "reason"),
    [  # NvInfer.h of TensorRT 10, "if executing this layer on DLA": the first beyond each limit
        (conv((8, 3, 33, 33)), "kernel 33 x 33 is outside 1 to 32"),
        (conv(strides=[9, 1]), "stride 9 x 1 is outside 1 to 8"),
        (conv(dilations=[33, 33], px=128), "dilation 33 x 33 is outside 1 to 32"),
        (conv((8, 3, 32, 32), pads=[32, 0, 0, 0]), "padding 32 x 0 x 0 x 0 is outside 0 to 31"),
        (conv(pads=[3, 0, 0, 0]), "padding 3 is not below the kernel's 3"),
        (conv((8193, 1, 1, 1), px=1), "output channels 8193 is outside 1 to 8192"),
        (conv((8, 8193, 1, 1), px=1), "a size of 8193 is above 8192"),
        (conv((6, 3, 1, 1), group=2), "groups of 3 and 3 channels are no multiples of 4"),
        (pool("MaxPool", kernel_shape=[9, 1]), "window 9 x 1 is outside 1 to 8"),
        (pool("MaxPool", kernel_shape=[2, 2], strides=[17, 1]), "stride 17 x 1 is outside 1 to 16"),
        (pool("MaxPool", kernel_shape=[2, 2], dilations=[2, 2]), "dilated"),
        (unary("Softmax", ("n", 1025, 2, 1), axis=1), "1025 values are above 1024"),
        (unary("Softmax", ("n", 10)), "only over channels, rows or columns"),
        (unary("Exp"), "a DLA has no Exp"),
        (unary("Relu", ("n", 10)), "only images of four dimensions"),
        (unary("Flatten"), "its input and output must have four dimensions"),
    ],
)
def test_what_falls_to_the_gpu_and_why(graph: onnx.ModelProto, reason: str) -> None:
    where, found = verdict(graph)
    assert where == "gpu"
    assert found.startswith(reason)


@pytest.mark.parametrize(
    "graph",
    [
        conv((8, 3, 32, 32), strides=[8, 8], pads=[31, 31, 31, 31]),
        conv(dilations=[31, 31]),
        conv((8, 4, 3, 3), group=2),
        pool("MaxPool", kernel_shape=[8, 8], strides=[16, 16], pads=[7, 7, 7, 7]),
        unary("Softmax", ("n", 8192, 1, 1), axis=1),
        unary("Softmax", ("n", 1024, 2, 2), axis=1),
        unary("Relu"),
        unary("Sigmoid"),
    ],
)
def test_what_lies_at_the_limit_stays_on_the_dla(graph: onnx.ModelProto) -> None:
    assert verdict(graph)[0] == "dla"


def test_what_the_documents_leave_open_is_unsure() -> None:
    assert verdict(pool("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]))[0] == "unsure"
    add = model([helper.make_node("Add", ["x", "k"], ["y"])], [constant("k", np.ones((1, 3, 1, 1), np.float32))])
    assert verdict(add) == ("unsure", "inputs of different sizes")
    assert verdict(unary("Abs"))[0] == "unsure"


def test_softmax_needs_orin() -> None:
    graph = unary("Softmax", ("n", 10, 1, 1), axis=1)
    assert verdict(graph)[0] == "dla"
    assert verdict(graph, XAVIER) == ("gpu", "Softmax needs Orin's DLA")


@pytest.mark.parametrize(
    ("target", "batch", "words"),
    [("jetson-orin-nano", 1, "has no DLA"), ("cpu", 1, "has no DLA"), ("jetson-orin-nx", 4097, "batches of 1 to 4096")],
)
def test_what_has_no_dla(target: str, batch: int, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        taken(resnet(quantized=False, width=8), TARGETS[target], batch)


# --- the graph and its cache -----------------------------------------------------------------------------------------


def outputs(graph: onnx.ModelProto, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": images})[0])


@pytest.mark.parametrize("batch", [1, 3])
def test_a_resnet_computes_the_same_in_the_form_for_a_dla(batch: int) -> None:
    graph = resnet(quantized=False, width=16)
    before = graph.SerializeToString()
    found = taken(graph, batch=batch)
    assert graph.SerializeToString() == before
    onnx.checker.check_model(found.graph, full_check=True)
    images = np.random.default_rng(0).standard_normal((batch, 3, 32, 32)).astype(np.float32)
    np.testing.assert_allclose(outputs(found.graph, images), outputs(graph, images), rtol=1e-4, atol=1e-5)
    assert {node.op_type for node in found.graph.graph.node} == {
        "Conv",
        "Relu",
        "MaxPool",
        "Add",
        "AveragePool",
        "Flatten",
    }
    assert [d.dim_value for d in found.graph.graph.input[0].type.tensor_type.shape.dim] == [batch, 3, 32, 32]
    assert [(layer.op, layer.where) for layer in found.layers if layer.where != "dla"] == [("Flatten", "gpu")]
    assert found.loadables == 1
    assert len(found.rewritten) == 2


def test_the_vendors_parser_takes_it() -> None:
    pytest.importorskip("tensorrt_rtx", reason="the parser is the vendor's")
    graph = taken(resnet(quantized=False, width=8), batch=2).graph
    assert build_engine(graph.SerializeToString(), BuildRequest("fp32"), "rtx").batch == (2, 2, 2)


def test_a_large_image_keeps_its_global_average_and_says_so() -> None:
    found = taken(resnet(quantized=False, width=8, px=64))
    (layer,) = [layer for layer in found.layers if layer.op == "GlobalAveragePool"]
    assert (layer.where, layer.reason) == (
        "gpu",
        "TensorRT gives it to the GPU, and 16 x 16 is too large for an average pool",
    )
    assert found.loadables == 2 and any("2 parts on the DLA" in note for note in found.notes)


def test_the_cache_names_every_tensor_of_the_graph_that_has_a_range() -> None:
    graph = resnet(quantized=False, width=8)
    cache, given = cache_of(graph)
    found = for_dla(graph, NX, 1, cache, BYTES)
    scales, tensors = (
        read(found.cache),
        {name for node in found.graph.graph.node for name in (*node.input, *node.output)},
    )
    assert found.cache.startswith(HEADER + "\n")
    assert scales.keys() <= tensors
    assert {name: scales[name] for name in given if name in tensors} == {n: s for n, s in given.items() if n in tensors}
    assert scales["x"] == 1.0  # bytes minus 128 are int8 already
    for node in found.graph.graph.node:
        if node.op_type in ("MaxPool", "AveragePool"):  # NvInfer.h: ranges of a pool must be equal on a DLA
            assert scales[node.input[0]] == scales[node.output[0]]
        if node.op_type == "Relu" and node.input[0] not in given:
            assert scales[node.input[0]] == scales[node.output[0]]
    # What has no range of its own: a Conv that ends in an Add, and the scores.
    half = {layer.op for layer in found.layers if layer.precision == "fp16"}
    assert half == {"Conv", "Add"}
    assert all("in float16, for it has no range" in layer.reason for layer in found.layers if layer.precision == "fp16")


def test_an_input_in_imagenets_units() -> None:
    imagenet = Preprocess(crop_px=(32, 32))
    graph = resnet(quantized=False, width=8)
    scale = read(for_dla(graph, NX, 1, cache_of(graph)[0], imagenet).cache)["x"]
    assert scale == pytest.approx((1 - 0.406) / 0.225 / 127)  # blue's white is the farthest from zero


# --- exact input -----------------------------------------------------------------------------------------------------

IMAGENET = Preprocess(crop_px=(32, 32))


def camera_network(*, border: int = 1, nhwc: bool = False, seed: int = 0) -> onnx.ModelProto:
    """A convolution that reads a normalized image with zeros around it, ReLU and the mean."""
    weights = np.random.default_rng(seed).standard_normal((8, 3, 3, 3)).astype(np.float32)
    nodes = [helper.make_node("Transpose", ["x"], ["image"], perm=[0, 3, 1, 2])] if nhwc else []
    nodes += [
        helper.make_node("Conv", ["image" if nhwc else "x", "w"], ["c"], name="c", pads=[border] * 4),
        helper.make_node("Relu", ["c"], ["r"], name="r"),
        helper.make_node("GlobalAveragePool", ["r"], ["y"], name="p"),
    ]
    shape = ("n", 32, 32, 3) if nhwc else ("n", 3, 32, 32)
    return model(nodes, [constant("w", weights)], shape=shape, output=("n", 8, 1, 1))


@pytest.mark.parametrize("interface", ["bytes", "normalized"])
@pytest.mark.parametrize(("border", "nhwc"), [(0, False), (1, False), (1, True)])
def test_exact_input_is_taken_out_again(interface: Any, border: int, nhwc: bool) -> None:
    """The graph for a DLA, fed as it says, computes what the network did before exact input, in the border too."""
    network = camera_network(border=border, nhwc=nhwc)
    preprocess = replace(IMAGENET, layout="NHWC" if nhwc else "NCHW")
    made = exact_input(network, preprocess, interface)
    assert not isinstance(made, Skipped)
    found = for_dla(made.graph, NX, 2, cache_of(made.graph)[0], made.preprocess)
    onnx.checker.check_model(found.graph, full_check=True)
    ops = [node.op_type for node in found.graph.graph.node]
    assert "Pad" not in ops and "Mul" not in ops and "Add" not in ops

    def prepared(pixels: Any, spec: Preprocess) -> Any:
        image = (pixels * spec.pixel_scale - np.array(spec.mean)) / np.array(spec.std)
        return (image if nhwc else image.transpose(0, 3, 1, 2)).astype(np.float32)

    pixels = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3))
    wanted = outputs(network, prepared(pixels, preprocess))
    np.testing.assert_allclose(outputs(found.graph, prepared(pixels, found.preprocess)), wanted, rtol=2e-4, atol=1e-5)
    if interface == "bytes":
        np.testing.assert_allclose(found.preprocess.mean, (123.675, 116.28, 103.53), atol=1e-3)
        assert read(found.cache)["x"] == pytest.approx((255 - 103.53) / 127, rel=1e-5)
        assert "give it (pixel * 1 - [123.675, 116.28, 103.53]) / [1, 1, 1]" in found.rewritten[0]
    else:
        assert found.preprocess == preprocess and read(found.cache)["x"] == pytest.approx((1 - 0.406) / 0.225 / 127)


def test_another_pad_before_the_first_convolution_stays() -> None:
    """Four channels of which the last is no sum of the others, and a plain border, are the network's own."""
    made = exact_input(camera_network(), IMAGENET, "bytes")
    assert not isinstance(made, Skipped)
    graph = made.graph
    (weight,) = [one for one in graph.graph.initializer if one.name == "exact_input.weight"]
    values = onnx.numpy_helper.to_array(weight).copy()
    values[:, 3] += np.random.default_rng(2).standard_normal((8, 3, 3)).astype(np.float32)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    found = for_dla(graph, NX, 1, cache_of(graph)[0], made.preprocess)
    assert [layer.op for layer in found.layers if layer.where == "gpu"] == ["Pad", "GlobalAveragePool"]
    assert found.preprocess == made.preprocess and not any("three channels" in line for line in found.rewritten)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    graph = resnet(quantized=False, width=8)
    named = [node.output[0] for node in graph.graph.node if node.op_type != "Flatten"]
    ranges = calibration({name: TensorEntry(ranges={"symmetric": (-4.0, 4.0)}) for name in named})
    described = spec()
    preprocess = Preprocess(crop_px=(32, 32))
    ranges = replace(ranges, model=identify(graph, described.name), preprocess=preprocess)
    path = tmp_path / "net.edgeres"
    with new_bundle(path) as folder:
        write_file(folder / FP32, graph.SerializeToString())
        write_json(folder / CALIBRATION, CALIBRATION_KIND.content(ranges))
        seal(folder, Manifest(type(described)(described.name, preprocess, described.labels), {}, {}, {}, {}))
    return path


def test_the_command_writes_what_trtexec_takes(bundle: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        command, [str(bundle), "-o", str(tmp_path / "dla"), "--batch", "2"], catch_exceptions=False
    )
    assert done.exit_code == 0
    assert "layers on the DLA, 1 on the GPU, 0 unsure" in done.output
    assert "this was not tried on a DLA" in done.output
    assert "--useDLACore=0 --allowGPUFallback" in done.output
    assert sorted(path.name for path in (tmp_path / "dla").iterdir()) == [CACHE, GRAPH]
    onnx.checker.check_model(onnx.load(tmp_path / "dla" / GRAPH), full_check=True)
    assert float(np.float32(4 / 127)) in read((tmp_path / "dla" / CACHE).read_text()).values()
    shown = CliRunner().invoke(command, [str(bundle), "--json"], catch_exceptions=False)
    told = json.loads(shown.output)
    assert told["loadables"] == 1 and told["input"]["mean"] == [0.485, 0.456, 0.406]


def test_a_bundle_without_a_calibration(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "x.edgeres", files={FORMS["cpu"].file: b"", FP32: b""})
    done = CliRunner().invoke(command, [str(path)])
    assert "has no calibration.json" in str(done.exception)
