"""What an engine says about its kernels, held against the graph it was built from, its own CUDA source, and NumPy."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundles import classifier, write_bundle
from click.testing import CliRunner, Result
from engine_graphs import constant, model, resnet
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, shape_inference

from edgeres.bundle import FP32, Bundle
from edgeres.cli.inspect import command
from edgeres.device.libraries import available
from edgeres.engine.builder import BuildRequest, build_engine
from edgeres.engine.kernels import Program, in_words, is_engine, read_program
from edgeres.errors import EngineError
from edgeres.graph.forms import FORMS
from edgeres.graph.graph import Graph
from edgeres.graph.half import to_fp16
from edgeres.quantize.losses import losses
from edgeres.quantize.placement import place
from edgeres.quantize.plan import make_plan
from edgeres.quantize.rewrite import rewrite
from edgeres.records import EngineRecord, Style, TensorRange

needs_rtx = pytest.mark.skipif(not available("rtx").importable, reason="TensorRT-RTX is not installed")


def built(graph: onnx.ModelProto, **how: Any) -> bytes:
    return build_engine(graph.SerializeToString(), BuildRequest("int8", **how), "rtx").data


@pytest.fixture(scope="module")
def int8() -> tuple[onnx.ModelProto, bytes]:
    graph = resnet(quantized=True, batch=1)
    return graph, built(graph)


def shapes(graph: onnx.ModelProto) -> dict[str, list[int]]:
    """By ONNX's own inference, with 1 for the batch."""
    values = shape_inference.infer_shapes(graph, strict_mode=True, data_prop=True).graph
    return {
        value.name: [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
        for value in (*values.value_info, *values.output, *values.input)
    }


# Against the graph.


@needs_rtx
def test_convolutions_are_those_of_the_graph_in_int8(int8: tuple[onnx.ModelProto, bytes]) -> None:
    graph, data = int8
    found = {kernel.name: kernel for kernel in read_program(data).of_kind("convolution")}
    wanted = {node.name: node for node in graph.graph.node if node.op_type == "Conv"}
    assert found.keys() == wanted.keys()
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    by_output = {node.output[0]: node for node in graph.graph.node}
    for name, kernel in found.items():
        node = wanted[name]
        assert {tensor.dtype for tensor in kernel.reads} == {"int8"}
        assert [list(tensor.shape) for tensor in kernel.writes] == [shapes(graph)[node.output[0]]]
        codes = weights[by_output[node.input[1]].input[0]]
        if codes.shape[1] % 4 == 0:  # fewer channels are filled up
            int8_constants = [tensor for tensor in kernel.inputs if tensor.constant and tensor.dtype == "int8"]
            assert [tensor.size_bytes for tensor in int8_constants] == [codes.nbytes]


@needs_rtx
def test_every_generated_kernel_is_counted_once(int8: tuple[onnx.ModelProto, bytes]) -> None:
    """The CUDA source of each travels with the engine."""
    data = int8[1]
    in_source = re.findall(rb'extern "C" __global__ void (__myl_\w+)\(', data)
    once = [name for name in in_source if not re.search(rb"_com(_vec)?$", name)]
    assert len(read_program(data).of_kind("pointwise")) == len(once)
    assert len(once) >= 5


@needs_rtx
def test_pointwise_kernels_move_what_the_graph_says(int8: tuple[onnx.ModelProto, bytes]) -> None:
    """Between two convolutions of the residual block: float32 in, one byte out for every value."""
    graph, data = int8
    sizes = {name: prod(shape) for name, shape in shapes(graph).items()}
    program = read_program(data)
    relus = [node for node in graph.graph.node if node.op_type == "Relu"]
    checked = 0
    for relu in relus:
        (kernel,) = [k for k in program.of_kind("pointwise") if relu.name in k.layers]
        if kernel.name.endswith("Mul, Add, ReLU, quantize") and len(kernel.reads) == 1:
            assert kernel.moved_bytes == 5 * sizes[relu.output[0]]
            checked += 1
    assert checked >= 2


@needs_rtx
def test_every_activation_of_a_float_network_is_moved_at_its_size() -> None:
    """FP32 has no kernels between the convolutions, so the engine moves the tensors of the graph; FP16 moves half."""
    graph = resnet(quantized=False, batch=1)
    single, half = (read_program(built(g)) for g in (graph, to_fp16(graph)))
    outputs = {node.output[0]: prod(shapes(graph)[node.output[0]]) for node in graph.graph.node}
    convs = {node.name: outputs[node.output[0]] for node in graph.graph.node if node.op_type == "Conv"}
    assert {k.name: k.writes[0].size_bytes for k in single.of_kind("convolution")} == {
        name: 4 * values for name, values in convs.items()
    }
    assert all({"bias", "ReLU"} & set(k.fused) for k in single.of_kind("convolution"))
    stem = next(node.name for node in graph.graph.node if node.op_type == "Conv")  # reads 3 channels as 4 in FP16
    moved = {k.name: 2 * k.moved_bytes for k in half.of_kind("convolution") if k.name != stem}
    assert moved == {k.name: k.moved_bytes for k in single.of_kind("convolution") if k.name != stem}
    assert single.lost == half.lost == ()


@needs_rtx
def test_a_fixed_batch_moves_so_many_times_more() -> None:
    one, four = (read_program(built(resnet(quantized=True, batch=n))) for n in (1, 4))
    free = read_program(built(resnet(quantized=True), max_batch=4))
    assert four.moved_bytes == 4 * one.moved_bytes
    assert free.moved_bytes == one.moved_bytes
    assert free.accelerators == ("sm80",)
    assert free.portable


@needs_rtx
def test_compute_capabilities_are_named() -> None:
    graph = resnet(quantized=True, batch=1, width=16)
    program = read_program(built(graph, compute_capabilities=("8.6", "12.0")))
    assert (program.accelerators, program.portable) == (("sm86", "sm120"), False)
    assert len(program.of_kind("convolution")) == sum(node.op_type == "Conv" for node in graph.graph.node)


@needs_rtx
def test_names_with_marks_of_the_format_come_through() -> None:
    graph = resnet(quantized=True, batch=1, width=16)
    names = []
    for index, node in enumerate(graph.graph.node):
        node.name = f'a "quoted" {{}} = \\ näme {index}'
        names.append(node.name)
    program = read_program(built(graph))
    assert {layer for kernel in program.kernels for layer in kernel.layers} <= set(names)


# Where INT8 is lost: the graph's analysis against what RTX makes of it.

Between = Callable[["_Chain", str], str]


class _Chain:
    """x -> Q -> DQ -> something -> Conv, (1, 32, 16, 16)."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def put(self, op: str, *inputs: Any, **attributes: Any) -> str:
        names = []
        for value in inputs:
            if not isinstance(value, str):
                self.constants.append(constant(f"k{len(self.constants)}", value))
                value = self.constants[-1].name
            names.append(value)
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, names, [output], f"{op}_{len(self.nodes)}", **attributes))
        return output

    def qdq(self, tensor: str, scale: float = 0.02) -> str:
        codes = self.put("QuantizeLinear", tensor, np.float32(scale), np.int8(0))
        return self.put("DequantizeLinear", codes, np.float32(scale), np.int8(0))

    def weight(self) -> str:
        codes = np.random.default_rng(0).integers(-127, 128, (32, 32, 3, 3)).astype(np.int8)
        return self.put("DequantizeLinear", codes, np.full(32, 0.01, np.float32), np.zeros(32, np.int8), axis=0)

    def graph(self, output: str) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Identity", [output], ["y"], "out"))
        return model(self.nodes, self.constants, shape=(1, 32, 16, 16), output=(1, None, None, None), opsets={"": 19})


def _concat(first: float, second: float) -> Between:
    def join(chain: _Chain, x: str) -> str:
        halves = (chain.put("Slice", "x", np.array([a]), np.array([a + 16]), np.array([1])) for a in (0, 16))
        parts = [chain.qdq(half, scale) for half, scale in zip(halves, (first, second), strict=True)]
        return chain.put("Concat", *parts, axis=1)

    return join


def _casts(*to: int) -> Between:
    def cast(chain: _Chain, x: str) -> str:
        for kind in to:
            x = chain.put("Cast", x, to=kind)
        return x

    return cast


_PADS = np.array([0, 0, 1, 1, 0, 0, 1, 1])
HALF, SINGLE = TensorProto.FLOAT16, TensorProto.FLOAT
BETWEEN: dict[str, Between] = {
    "nothing": lambda chain, x: x,
    "Relu": lambda chain, x: chain.put("Relu", x),
    "Clip": lambda chain, x: chain.put("Clip", x, np.float32(0), np.float32(1)),
    "MaxPool": lambda chain, x: chain.put("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4),
    "AveragePool": lambda chain, x: chain.put("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4),
    "Pad": lambda chain, x: chain.put("Pad", x, _PADS),
    "Pad with -1": lambda chain, x: chain.put("Pad", x, _PADS, np.float32(-1)),
    "Transpose": lambda chain, x: chain.put("Transpose", x, perm=[0, 1, 3, 2]),
    "Slice": lambda chain, x: chain.put("Slice", x, np.array([1]), np.array([9]), np.array([2])),
    "factor": lambda chain, x: chain.put("Mul", x, np.float32(2)),
    "constant": lambda chain, x: chain.put("Add", x, np.float32(2)),
    "Concat": _concat(0.02, 0.02),
    "Concat of two scales": _concat(0.02, 0.03),
    "Q and DQ again": lambda chain, x: chain.qdq(x, 0.03),
    "Sigmoid": lambda chain, x: chain.put("Sigmoid", x),
    "Cast to half and back": _casts(HALF, SINGLE),
}


def _conv(chain: _Chain, image: str, weight: str) -> onnx.ModelProto:
    return chain.graph(chain.put("Conv", image, weight, pads=[1] * 4))


def _agrees(graph: onnx.ModelProto) -> bool:
    """Whether the Conv runs in INT8, once analysis and engine say the same."""
    program = read_program(built(graph))
    (conv,) = program.of_kind("convolution")
    found = losses(graph)
    in_int8 = conv.reads[0].dtype == "int8"
    assert in_int8 == (not found) == (not program.lost)
    for loss, lost in zip(found, program.lost, strict=False):
        assert loss.node == lost.node == conv.name
    return in_int8


LOST = {"Relu", "Clip", "AveragePool", "Pad with -1", "constant", "Concat of two scales", "Sigmoid"}


@needs_rtx
@pytest.mark.parametrize("between", BETWEEN)
def test_losses_are_what_rtx_loses(between: str) -> None:
    chain = _Chain()
    image = BETWEEN[between](chain, chain.qdq("x"))
    assert _agrees(_conv(chain, image, chain.weight())) == (between not in {*LOST, "Cast to half and back"})


@needs_rtx
@pytest.mark.parametrize("side", ["image", "weights"])
def test_half_a_quantization_is_none(side: str) -> None:
    chain = _Chain()
    weight = chain.put("Identity", np.ones((32, 32, 3, 3), np.float32)) if side == "weights" else chain.weight()
    image = "x" if side == "image" else chain.qdq("x")
    graph = _conv(chain, image, weight)
    assert not _agrees(graph)
    assert "quantize both or neither" in losses(graph)[0].reason


@needs_rtx
def test_half_precision_behind_the_codes_is_no_loss() -> None:
    chain = _Chain()
    image, weight = chain.put("Cast", chain.qdq("x"), to=HALF), chain.put("Cast", chain.weight(), to=HALF)
    output = chain.put("Cast", chain.put("Conv", image, weight, pads=[1] * 4), to=SINGLE)
    assert _agrees(chain.graph(output))


@needs_rtx
def test_a_skip_that_is_dequantized_for_a_fused_add_is_no_loss() -> None:
    """With one scale per layer RTX fuses the Add: one kernel gives codes to a Conv and floats to the Add behind it."""
    graph = resnet(quantized=True, batch=1)
    for node in graph.graph.node:
        if node.op_type == "DequantizeLinear" and any(a.name == "axis" for a in node.attribute):
            scale = next(tensor for tensor in graph.graph.initializer if tensor.name == node.input[1])
            scale.CopyFrom(constant(scale.name, numpy_helper.to_array(scale).max()))
            zero = next(tensor for tensor in graph.graph.initializer if tensor.name == node.input[2])
            zero.CopyFrom(constant(zero.name, np.int8(0)))
            del node.attribute[:]
    program = read_program(built(graph))
    assert any({"Add"} & set(kernel.fused) for kernel in program.of_kind("convolution"))
    assert any("dequantize" in kernel.name for kernel in program.of_kind("pointwise"))
    assert program.lost == losses(graph) == ()


def test_a_loss_names_the_tensor_that_was_quantized_in_vain() -> None:
    chain = _Chain()
    image = chain.put("Relu", chain.qdq(chain.put("Neg", "x")))
    (loss,) = losses(_conv(chain, image, chain.weight()))
    neg, relu, conv = (next(n for n in chain.nodes if n.op_type == op) for op in ("Neg", "Relu", "Conv"))
    assert (loss.node, loss.op, loss.edge) == (conv.name, "Conv", neg.output[0])
    assert relu.name in loss.reason


def test_an_add_of_codes_on_both_sides_is_told() -> None:
    chain = _Chain()
    x = chain.qdq("x")
    conv = chain.put("Conv", x, chain.weight(), pads=[1] * 4)
    alone = chain.put("Add", conv, x)
    both = chain.put("Add", chain.qdq(conv), x)
    graph = chain.graph(chain.put("Add", alone, both))
    (loss,) = losses(graph)
    assert (loss.op, loss.edge) == ("Add", conv)
    assert loss.node == next(node.name for node in graph.graph.node if node.output[0] == both)


@pytest.mark.parametrize("style", ["tensorrt", "cpu"])
def test_the_own_placements_lose_nothing(style: Style) -> None:
    graph = resnet(quantized=False)
    view = Graph(graph)
    placement = place(view, style)
    ranges = {tensor: TensorRange(tensor, -1.0, 1.0, "minmax", 1) for tensor in placement.observed}
    quantized = rewrite(graph, make_plan(view, placement, ranges, "digest"))
    assert sum(node.op_type == "QuantizeLinear" for node in quantized.graph.node) >= 6
    assert losses(quantized) == ()


# The format.


@pytest.mark.parametrize(
    ("symbol", "words"),
    [
        ("__myl_MulMinMaxRounCast", "quantize"),
        ("__myl_MinMaxRounCast", "quantize"),
        ("__myl_MulAddReluMulMinMaxRounCast_0x0e56e20cd0c67df4_com_vec", "Mul, Add, ReLU, quantize"),
        ("__myl_MulMinMaxRounCastCastMul", "quantize, dequantize"),
        ("__myl_CastMulAddMoveReluMean", "dequantize, Add, Move, ReLU, Mean"),
        ("__myl_TranSlicReplReplConcSlicAddSlic", "Transpose, Slice, Fill, Concat, Add, Slice"),
        ("__myl_AddAddExpA", "Add, Add, Exp, A"),
        ("__myl_FcAdd", "MatMul, Add"),
        ("something_else", "something_else"),
        ("", ""),
    ],
)
def test_symbols_in_words(symbol: str, words: str) -> None:
    assert in_words(symbol) == words


NUMPY = {"float": np.float32, "half": np.float16, "int8": np.int8, "int32": np.int32, "int64": np.int64, "bool": bool}
names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
tensors = st.tuples(names, st.lists(st.integers(1, 9), min_size=1, max_size=4), st.sampled_from(sorted(NUMPY)))


def escaped(name: str) -> str:
    return name.replace("\\", "\\\\").replace('"', '\\"')


def program_of(found: list[tuple[str, list[int], str]], constants: int = 0) -> bytes:
    """An engine with one generated kernel that reads all tensors but the last, the first few constant, and writes it;
    beside it what must not count: a tensor of the host, a wait, a program for any accelerator."""
    lines = ["header {", "  region = { name=h size=8 place=host unified=false }", "  accelerators={sm80 sm86 }", "}"]
    lines.append("descriptors {")
    for index, (name, dims, kind) in enumerate(found):
        payload = "const_payload_size=4 " if index < constants else ""
        size = " ".join(map(str, dims))
        lines.append(f'  tensor={{ alignment=128 {payload}dims={{ {size} }} name="{escaped(name)}" type={kind} }}')
    lines += ['  tensor={ dims={ 9 } name="on host!" region="h" type=int64 }', "}", "main {", " label bb1: "]
    *reads, write = [f'"{escaped(name)}"' for name, _, _ in found]
    reads += reads[:1]  # one tensor in two places is read once
    lines.append(f"  function={{ name=__myl_MulAdd input_args={{ {' '.join(reads)} }} output_args={{ {write} }}")
    lines.append(f'    cond_fqn = {{ exec_cond = "c" }} layers="[ONNX Layer: {escaped(found[0][0])}]" }}')
    lines += ['  wait={ name="w" layers="" }', '  copy={ name="c" output={"on host!" } input={} }', "}", ""]
    inner = "header {\n accelerators={*}\n}\ndescriptors {\n}\nmain {\n}\n"
    texts = ["\n".join(lines), inner]
    framed = b"".join(b"NLYM\0\0\0\0" + len(t.encode()).to_bytes(8, "little") + t.encode() for t in texts)
    return b"vtrt" + bytes(28) + framed


@settings(max_examples=50)
@given(st.lists(tensors, min_size=2, max_size=5, unique_by=lambda t: t[0]), st.integers(0, 1))
def test_bytes_are_those_of_numpy(found: list[tuple[str, list[int], str]], constants: int) -> None:
    program = read_program(program_of(found, constants))
    sizes = [np.empty(dims, NUMPY[kind]).nbytes for _, dims, kind in found]
    (kernel,) = program.kernels
    assert (program.accelerators, kernel.name, kernel.layers) == (("sm80", "sm86"), "Mul, Add", (found[0][0],))
    assert [tensor.name for tensor in (*kernel.inputs[:-1], *kernel.writes)] == [name for name, _, _ in found]
    assert kernel.constant_bytes == program.constant_bytes == sum(sizes[:constants])
    assert kernel.moved_bytes == program.moved_bytes == sum(sizes[constants:])


WHOLE = program_of([("a", [2, 3], "float"), ("b", [2, 3], "int8")])


@settings(max_examples=300)
@given(st.integers(0, len(WHOLE)), st.integers(0, len(WHOLE)), st.binary(max_size=3))
def test_damage_is_an_error_of_ours_or_harmless(start: int, length: int, junk: bytes) -> None:
    damaged = WHOLE[:start] + junk + WHOLE[start + length :]
    try:
        assert isinstance(read_program(damaged, where="x.engine"), Program)
    except EngineError as error:
        assert str(error).startswith("x.engine: ")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "not an engine"),
        (b"\x08\x08onnx", "not an engine"),
        (b"ftrt" + bytes(100), "does not say which kernels it runs"),
        (WHOLE[: len(WHOLE) // 2], "cannot be read (the file is cut short)"),
        (program_of([("a", [2], "float"), ("b", [2], "nibble")]), "cannot be read (no such type: nibble)"),
    ],
)
def test_what_is_no_rtx_engine_is_refused_in_words(data: bytes, what: str) -> None:
    with pytest.raises(EngineError, match=re.escape(what)):
        read_program(data)


# The command.


def inspect(*arguments: object) -> Result:
    return CliRunner().invoke(command, [*map(str, arguments)])


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """With a graph in float, a quantized one that loses INT8, an RTX engine, and one of TensorRT."""
    chain = _Chain()
    lossy = _conv(chain, chain.put("Relu", chain.qdq("x")), chain.weight())
    path = write_bundle(
        tmp_path / "a.edgeres", files={FP32: classifier(), FORMS["tensorrt"].file: lossy.SerializeToString()}
    )

    def record(runtime: str, data: bytes) -> EngineRecord:
        return EngineRecord(runtime, runtime, "1.0", "int8", "built", f"engines/{runtime}.engine", len(data))

    engines = {"rtx": WHOLE, "tensorrt": b"ftrt" + bytes(60)}
    Bundle(path).add_engines({record(name, data): data for name, data in engines.items()})
    return path


def test_a_bundle_shows_graphs_and_engines(bundle: Path) -> None:
    shown = inspect(bundle)
    found = json.loads(inspect(bundle, "--json").stdout)
    assert [(entry["kind"], Path(entry["file"]).name) for entry in found] == [
        ("graph", FP32),
        ("graph", FORMS["tensorrt"].file),
        ("engine", "rtx.engine"),
        ("engine", "tensorrt.engine"),
    ]
    plain, lossy, rtx, tensorrt = found
    assert plain["lost"] == []
    assert [loss["op"] for loss in lossy["lost"]] == ["Conv"]
    assert lossy["lost"][0]["reason"] in shown.output
    assert rtx["kinds"] == {"pointwise": {"kernels": 1, "moved_bytes": 30, "constant_bytes": 0}}
    assert "kernels" not in tensorrt
    assert tensorrt["reason"] in shown.output
    assert all(entry["file"] in shown.output for entry in found)


def test_an_engine_is_shown_without_onnx(tmp_path: Path) -> None:
    (tmp_path / "a.engine").write_bytes(WHOLE)
    code = (
        "import sys\nfrom edgeres.cli.inspect import command\n"
        "command.main([sys.argv[1]], standalone_mode=False)\n"
        "assert not {'onnx', 'torch', 'onnxruntime', 'tensorrt_rtx'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.engine")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Mul, Add" in done.stdout
    assert "float32 2x3" in done.stdout


@needs_rtx
def test_a_real_engine_as_text_and_as_json(tmp_path: Path, int8: tuple[onnx.ModelProto, bytes]) -> None:
    path = tmp_path / "net.engine"
    path.write_bytes(int8[1])
    (entry,) = json.loads(inspect(path, "--json").stdout)
    shown = inspect(path).output
    assert entry["bytes"] == len(int8[1])
    assert sum(kind["moved_bytes"] for kind in entry["kinds"].values()) == entry["moved_bytes"]
    for kernel in entry["kernels"]:
        assert f"{kernel['moved_bytes']:,}" in shown
        assert kernel["name"] in shown


def test_what_is_named_an_engine_and_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.engine").write_bytes(b"")
    with pytest.raises(EngineError, match=r"a\.engine: not an engine"):
        CliRunner().invoke(command, [str(tmp_path / "a.engine")], catch_exceptions=False)
    assert not is_engine(b"")
