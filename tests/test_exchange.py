"""Ranges of other tools: TensorRT's caches, ONNX Runtime's calibration, the scales of Q/DQ files."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from calibrations import CLASSES, IMAGES, PX, Command, calibration, write_tiny
from engine_graphs import constant, model, resnet
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    create_calibrator,
    quantize_static,
)
from onnxruntime.quantization.calibrate import save_tensors_data
from onnxruntime.quantization.quant_utils import write_calibration_table

from edgeres.calibrate.ranges_file import RangesFile, read_calibration
from edgeres.calibrate.record import TensorEntry
from edgeres.errors import InputError
from edgeres.graph.graph import Graph
from edgeres.pipeline.take import ModelChoice, take
from edgeres.quantize.affine import symmetric_int8
from edgeres.quantize.exchange import export, read_foreign
from edgeres.quantize.placement import place

RELUS = ["relu1_out", "relu4_out", "relu7_out", "relu9_out", "relu13_out"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("made"))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capfd)


@pytest.fixture
def calibrated(made: Path, command: Command, tmp_path: Path) -> Path:
    images = ("--calibration", made / "images.npz", "--method", "percentile")
    assert command("calibrate", made / "tiny.onnx", *images, "-o", tmp_path / "c.json").code == 0
    return tmp_path / "c.json"


def cache_by_model_optimizer(path: Path) -> dict[str, float]:
    """A TensorRT cache as Model Optimizer reads it (modelopt.onnx.quantization.calib_utils)."""
    lines = path.read_text().splitlines()[1:]
    pairs = (line.split(": ") for line in lines)
    return {name: struct.unpack("!f", bytes.fromhex(value))[0] for name, value in pairs}


# ---- TensorRT -------------------------------------------------------------------------------------------------------


def test_a_published_cache_is_read(tmp_path: Path) -> None:
    """The example of TensorRT's sampleINT8; by hand from IEEE 754, 3c008912 is 2**-7 * (1 + 0x8912 / 2**23)."""
    path = tmp_path / "CalibrationTablemnist"
    path.write_text("TRT-7000-EntropyCalibration2\ndata: 3c008912\nconv1: 3c88edfc\nip2: 3e691968\nprob: 3c010a14\n")
    found = read_foreign(path)
    assert found.form == "a TensorRT calibration cache"
    scale = 2**-7 * (1 + 0x8912 / 2**23)
    assert found.limits["data"] == (-127 * scale, 127 * scale)
    assert list(found.limits) == ["data", "conv1", "ip2", "prob"]


@given(st.floats(2.0**-149, 2.0**100, width=32), st.booleans())
def test_scales_survive_the_cache_bit_for_bit(scale: float, strip: bool) -> None:
    """Also where a writer drops leading zeros, as many do."""
    bits = struct.pack("!f", scale).hex()
    text = f"TRT-8602-EntropyCalibration2\na: b::c: {bits.lstrip('0') if strip else bits}\n"
    from edgeres.quantize.exchange import _from_cache

    ((name, (low, high)),) = _from_cache(Path("x"), text)
    assert name == "a: b::c"
    assert (np.float32(high / 127), low) == (np.float32(scale), -high)


def test_the_exported_cache_holds_the_symmetric_scales(
    made: Path, calibrated: Path, command: Command, tmp_path: Path
) -> None:
    assert command("calibrate", "--export", "trt-cache", calibrated, "-o", tmp_path / "t.cache").code == 0
    scales = cache_by_model_optimizer(tmp_path / "t.cache")
    tensors = json.loads(calibrated.read_text())["tensors"]
    assert (tmp_path / "t.cache").read_text().startswith("TRT-100300-EntropyCalibration2\n")
    for name, scale in scales.items():
        low, high = tensors[name]["ranges"]["symmetric"]
        assert scale == np.float32(max(-low, high) / 127)
    # What implicit INT8 asks for: the inputs of convolutions, both inputs of every Add. The scores stay in float.
    graph = onnx.load(made / "tiny.onnx").graph
    read = {name for node in graph.node if node.op_type in {"Conv", "Add", "Gemm"} for name in node.input}
    assert read - {tensor.name for tensor in graph.initializer} <= scales.keys()
    assert "y" not in scales


@pytest.mark.parametrize(
    ("version", "header"),
    [("8.6.2", "8602"), ("8.5", "8500"), ("10.3.0", "100300"), ("10.9.0.34", "100900")],
)
def test_the_header_is_tensorrts_version_number(calibrated: Path, version: str, header: str) -> None:
    text, count = export(read_calibration(calibrated), "trt-cache", version)
    assert len(text.splitlines()) == count + 1
    assert text.splitlines()[0] == f"TRT-{header}-EntropyCalibration2"


@pytest.mark.parametrize("version", ["", "ten", "10.x", "-1", "10."])
def test_what_is_no_version_is_refused(calibrated: Path, command: Command, version: str) -> None:
    line = command.refused("calibrate", "--export", "trt-cache", calibrated, f"--tensorrt={version}", "-o", "no")
    assert line == f"edgeres: --tensorrt: is no version of TensorRT: {version!r}; e.g. 10.3.0"


def test_a_cache_comes_back_as_the_scales_it_was_written_from(
    made: Path, calibrated: Path, command: Command, tmp_path: Path
) -> None:
    command("calibrate", "--export", "trt-cache", calibrated, "-o", tmp_path / "t.cache")
    words = ("calibrate", made / "tiny.onnx", "--import", tmp_path / "t.cache")
    assert command(*words, "-o", tmp_path / "back.json").code == 0
    back = read_calibration(tmp_path / "back.json")
    assert (back.method, back.samples) == ("imported", 0)
    quantized = tmp_path / "q.onnx"
    # Half of the codes is what symmetric scales without a zero point say.
    given_ = ("--calibration-file", tmp_path / "back.json", "--codes", "half", "-o", quantized)
    assert command("quantize", made / "tiny.onnx", *given_).code == 0
    written = cache_by_model_optimizer(tmp_path / "t.cache")
    found = scales_in(quantized)
    assert found.pop("exact_input") == 1  # a byte minus 128 is its own code, whatever was measured
    assert len(found) == 6
    for name, scale in found.items():
        assert scale == np.float32(written[name]), name


def scales_in(path: Path) -> dict[str, np.float32]:
    """Scales of the activations in a Q/DQ file, by name."""
    graph = onnx.load(path).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    pairs = ((node.input[0], node.input[1]) for node in graph.node if node.op_type == "QuantizeLinear")
    return {tensor: np.float32(constants[scale]) for tensor, scale in pairs if tensor not in constants}


# ---- ONNX Runtime ---------------------------------------------------------------------------------------------------


class Images(CalibrationDataReader):
    def __init__(self) -> None:
        pixels = np.random.default_rng(3).standard_normal((IMAGES, 3, PX, PX)).astype(np.float32)
        self._batches = iter([{"x": pixels}])

    def get_next(self) -> Any:
        return next(self._batches, None)


def ort_ranges(path: Path, tmp_path: Path) -> Any:
    calibrator = create_calibrator(path, augmented_model_path=str(tmp_path / "augmented.onnx"))
    calibrator.collect_data(Images())
    return calibrator.compute_data()


@pytest.mark.parametrize("writer", ["save_tensors_data", "write_calibration_table"])
def test_onnx_runtimes_calibration_is_read(made: Path, tmp_path: Path, command: Command, writer: str) -> None:
    measured = ort_ranges(made / "tiny.onnx", tmp_path)
    if writer == "save_tensors_data":
        save_tensors_data(measured, tmp_path / "calibration.json")
    else:
        write_calibration_table(measured.data, str(tmp_path))
    words = ("calibrate", made / "tiny.onnx", "--import", tmp_path / "calibration.json")
    assert command(*words, "-o", tmp_path / "ours.json").code == 0
    ours = json.loads((tmp_path / "ours.json").read_text())["tensors"]
    view = Graph(take(ModelChoice(made / "tiny.onnx")).graph)
    for name in place(view, "cpu").observed:
        low, high = (float(np.ravel(end)[0]) for end in measured.data[name].range_value)
        assert ours[name]["ranges"]["cpu"] == [min(low, 0.0), max(high, 0.0)]


def test_onnx_runtime_quantizes_with_the_exported_calibration(
    made: Path, calibrated: Path, tmp_path: Path, command: Command
) -> None:
    assert command("calibrate", "--export", "ort", calibrated, "-o", tmp_path / "ort.json").code == 0
    quantize_static(
        made / "tiny.onnx",
        tmp_path / "q.onnx",
        None,
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        calibration_cache_path=tmp_path / "ort.json",
    )
    tensors = json.loads(calibrated.read_text())["tensors"]
    found = scales_in(tmp_path / "q.onnx")
    assert set(RELUS) <= found.keys()
    for name in RELUS:
        low, high = tensors[name]["ranges"]["cpu"]
        assert found[name] == pytest.approx((high - low) / 255, rel=1e-6)


@pytest.mark.parametrize("activation", [QuantType.QUInt8, QuantType.QInt8])
def test_the_scales_of_onnx_runtimes_qdq_file_are_read(
    made: Path, tmp_path: Path, command: Command, activation: QuantType
) -> None:
    quantized = tmp_path / "ort.onnx"
    symmetric = {"ActivationSymmetric": activation == QuantType.QInt8}
    quantize_static(
        made / "tiny.onnx", quantized, Images(), activation_type=activation, per_channel=True, extra_options=symmetric
    )
    words = ("calibrate", made / "tiny.onnx", "--import", quantized, "-o", tmp_path / "ours.json")
    assert command(*words).code == 0
    expected = scales_in(quantized)
    ours = read_calibration(tmp_path / "ours.json")
    for name in RELUS:
        low, high = ours.content.tensors[name].ranges["cpu" if activation == QuantType.QUInt8 else "symmetric"]
        span, codes = (high - low, 255) if activation == QuantType.QUInt8 else (high, 127)
        assert np.float32(span / codes) == expected[name]
    given_ = ("--calibration-file", tmp_path / "ours.json", "-o", tmp_path / "q.onnx")
    assert command("quantize", made / "tiny.onnx", *given_, "--target", "cpu").code == 0


# ---- Model Optimizer, and whatever else writes Q/DQ -----------------------------------------------------------------


def as_model_optimizer_writes() -> tuple[onnx.ModelProto, dict[str, float]]:
    """Q/DQ on what Convs, skips and the mean read; float16 scales in Constants, the image behind a Cast."""
    built = resnet(quantized=False, width=4, px=PX)
    ahead = [helper.make_node("Cast", ["x"], ["x_cast_to_fp16"], to=TensorProto.FLOAT16)]
    scales: dict[str, float] = {}
    behind = []
    for node in built.graph.node:
        tensor = node.input[1] if node.op_type == "Add" else node.input[0]
        if node.op_type not in {"Conv", "Add", "GlobalAveragePool"} or tensor in scales:
            continue
        scales[tensor] = float(np.float16(0.05 * (len(scales) + 1)))
        value = numpy_helper.from_array(np.float16(scales[tensor]), "v")
        ahead.append(helper.make_node("Constant", [], [f"{tensor}_scale"], value=value))
        quantized = "x_cast_to_fp16" if tensor == "x" else tensor
        behind.append(helper.make_node("QuantizeLinear", [quantized, f"{tensor}_scale", "zero"], [f"{tensor}_q"]))
    constants = [constant("zero", np.int8(0)), *built.graph.initializer]
    shapes = {"shape": ("n", 3, PX, PX), "output": ("n", CLASSES)}
    return model([*ahead, *built.graph.node, *behind], constants, **shapes, opsets={"": 19}), scales


def test_model_optimizers_scales_are_read(made: Path, tmp_path: Path, command: Command) -> None:
    path = tmp_path / "mo.onnx"
    written, scales = as_model_optimizer_writes()
    path.write_bytes(written.SerializeToString())
    found = read_foreign(path)
    assert {name: found.limits[name] for name in scales} == {n: (-127 * s, 127 * s) for n, s in scales.items()}
    ended = command("calibrate", made / "tiny.onnx", "--import", path, "-o", tmp_path / "ours.json")
    assert (ended.code, "lacks ranges of the cpu graph" in ended.err) == (0, True)
    ours = json.loads((tmp_path / "ours.json").read_text())["tensors"]
    # What it leaves out takes the range of what it is pooled from: a mean is no larger than the largest value.
    pooled = next(node.input[0] for node in written.graph.node if node.op_type == "GlobalAveragePool")
    gemm = next(node.input[0] for node in written.graph.node if node.op_type == "Gemm")
    assert gemm not in scales
    assert ours[gemm]["ranges"]["tensorrt"] == [0.0, 127 * scales[pooled]]
    words = ("quantize", made / "tiny.onnx", "--calibration-file", tmp_path / "ours.json", "-o", tmp_path / "q.onnx")
    assert "for the cpu graph" in command.refused(*words, "--target", "cpu")
    assert command(*words).code == 0


def test_scales_per_channel_and_of_weights_are_no_ranges_of_tensors(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("QuantizeLinear", ["x", "many", "zeros"], ["q2"], axis=1),
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q3"]),
        helper.make_node("QuantizeLinear", ["x", "s2", "z8"], ["q4"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    constants = [
        *(constant("s", np.float32(0.5)), constant("z", np.uint8(10))),
        *(constant("s2", np.float32(2.0)), constant("z8", np.int8(-128))),
        *(constant("many", np.ones(3, np.float32)), constant("zeros", np.zeros(3, np.int8))),
        constant("w", np.ones(4, np.float32)),
    ]
    path = tmp_path / "x.onnx"
    path.write_bytes(model(nodes, constants, output=("n", 3, 8, 8)).SerializeToString())
    # uint8 with zero_point 10: -5 to 122.5; int8 with -128: 0 to 510. Of two the wider counts at each end.
    assert read_foreign(path).limits == {"x": (-5.0, 510.0)}


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("TRT-8602-EntropyCalibration2\n", "is a TensorRT calibration cache without a single range"),
        ("TRT-8602-EntropyCalibration2\nx 3c008912\n", "line 2 is not a tensor and its scale: x 3c008912"),
        ("TRT-8602-EntropyCalibration2\nx: 3c0089123c\n", "line 2 is not a tensor and its scale"),
        ("TRT-8602-EntropyCalibration2\nx: 7f800000\n", "line 2 is not a tensor and its scale"),
        ("TRT-8602-EntropyCalibration2\nx: bc008912\n", "line 2 is not a tensor and its scale"),
        ('{"x": {"low": 1}}', "has no lowest and highest for x"),
        ('{"x": {"lowest": 0.0, "highest": 1e999}}', "$.x.highest: expected a finite number; write it again"),
        ('{"CLS": "TensorsData", "data": 3}', "has no data, as ONNX Runtime writes them"),
        ('{"x": ', "is not ONNX Runtime's calibration: Expecting value"),
        ("x 1.25\ny 2.5\n", "is ONNX Runtime's plain table, which keeps one end of each range; give the calib"),
        ("hello", "is no file of ranges that edgeres knows"),
        ('{"schema": 2, "tensors": {}}', "is a calibration.json of edgeres already; give it to --calibration-file"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, content: str, line: str) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(InputError) as refused:
        read_foreign(path)
    assert f"{path}: {line}" in str(refused.value)


def test_binary_rubbish_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "calibration.flatbuffers"
    path.write_bytes(b"\x10\xff\xfe\x00")
    with pytest.raises(InputError, match="is no file of ranges that edgeres knows"):
        read_foreign(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_foreign(tmp_path / "nowhere")


def test_ranges_of_another_network_are_refused(made: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "t.cache").write_text("TRT-8602-EntropyCalibration2\nconv1: 3c008912\n")
    line = command.refused("calibrate", made / "tiny.onnx", "--import", tmp_path / "t.cache", "-o", tmp_path / "o.json")
    assert "has no range for" in line
    assert "it must be of the same network, with the same tensor names" in line
    assert not (tmp_path / "o.json").exists()


def test_a_record_of_a_build_exports_what_it_has() -> None:
    """Without symmetric ranges, those of the TensorRT graph: the largest magnitude counts."""
    ranges = {"a": {"tensorrt": (-1.0, 2.54)}, "b": {"cpu": (-5.08, 1.0)}, "c": {}}
    tensors = {name: TensorEntry(ranges=of_style) for name, of_style in ranges.items()}
    recorded = RangesFile(Path("x"), calibration(tensors))
    lines = export(recorded, "trt-cache")[0].splitlines()[1:]
    assert [line.split(": ")[0] for line in lines] == ["a", "b"]
    scales = [struct.unpack("!f", bytes.fromhex(line.split(": ")[1]))[0] for line in lines]
    assert scales == [np.float32(0.02), symmetric_int8(recorded.range("b", (-5.08, 1.0))).scale]
