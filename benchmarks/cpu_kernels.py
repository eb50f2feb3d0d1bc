"""Which operators ONNX Runtime's CPU provider runs on codes, and how fast: ``python benchmarks/cpu_kernels.py``.

Each operator stands between two integer convolutions of 64 channels at 28x28, as in a network, because layouts depend
on the neighbours:

    Conv -> Q -> DQ -> operator -> Q -> DQ -> Conv

Once ONNX Runtime may replace it, and once its float output is an output of the graph as well, which keeps it in float
between its pairs. Both run in turns on one thread; the times are medians of the whole graph. ``--docs`` writes the
table into docs/quantization.md.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

CHANNELS, PX, ZERO = 64, 28, 128
DOCS = Path(__file__).parents[1] / "docs" / "quantization.md"
_AROUND = {"QLinearConv", "Transpose", "QuantizeLinear", "DequantizeLinear"}
Values = npt.NDArray[Any]


@dataclass(frozen=True)
class Case:
    """An operator.

    Attributes:
        inputs: number of activations it reads.
        coded: float constants that it reads as codes.
        others: further inputs; None leaves one out.
        moves: whether scale and zero point of its output are those of its input.
        outputs: number of outputs, of which the convolution reads the first.
    """

    op: str
    inputs: int = 1
    coded: Sequence[Values] = ()
    others: Sequence[Values | None] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    moves: bool = False
    outputs: int = 1


def _cases() -> dict[str, Case]:
    channel = np.random.default_rng(0).uniform(0.5, 1.5, (1, CHANNELS, 1, 1)).astype(np.float32)
    window, strided = {"kernel_shape": [2, 2]}, {"kernel_shape": [2, 2], "strides": [2, 2]}
    zeros = np.zeros((1, CHANNELS, PX, PX), np.float32)
    nearest = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    twice, ends = np.array([1, 1, 2, 2], np.float32), np.array([0, 0, 1, 1, 0, 0, 1, 1])
    low, high, half = (np.float32(value) for value in (0, 3, 0.5))
    return {
        "Add": Case("Add", 2),
        "Mul": Case("Mul", 2),
        "Add, a constant": Case("Add", coded=[channel]),
        "Mul, a constant": Case("Mul", coded=[channel]),
        "Mul, a number": Case("Mul", coded=[half]),
        "Sub, a constant": Case("Sub", coded=[channel]),
        "Div, a constant": Case("Div", coded=[channel]),
        "Concat": Case("Concat", 2, attributes={"axis": 1}),
        "Concat, zeros": Case("Concat", coded=[zeros], attributes={"axis": 1}),
        "LeakyRelu": Case("LeakyRelu", attributes={"alpha": 0.1}),
        "Sigmoid": Case("Sigmoid"),
        "Softmax": Case("Softmax", attributes={"axis": 1}),
        "AveragePool": Case("AveragePool", attributes=strided),
        "GlobalAveragePool": Case("GlobalAveragePool"),
        "ReduceMean": Case("ReduceMean", attributes={"axes": [2, 3]}),
        "MaxPool": Case("MaxPool", attributes=window, moves=True),
        "GlobalMaxPool": Case("GlobalMaxPool", moves=True),
        "Split": Case("Split", others=[np.array([32, 32])], attributes={"axis": 1}, moves=True, outputs=2),
        "Slice": Case("Slice", others=[np.array([0]), np.array([32]), np.array([1])], moves=True),
        "Gather": Case("Gather", others=[np.arange(32)], attributes={"axis": 1}, moves=True),
        "DepthToSpace": Case("DepthToSpace", attributes={"blocksize": 2}, moves=True),
        "SpaceToDepth": Case("SpaceToDepth", attributes={"blocksize": 2}, moves=True),
        "Resize, nearest": Case("Resize", others=[None, twice], attributes=nearest, moves=True),
        "Resize, linear": Case("Resize", others=[None, twice], attributes={"mode": "linear"}, moves=True),
        "Pad": Case("Pad", others=[ends], moves=True),
        "Clip": Case("Clip", others=[low, high]),
        "Elu": Case("Elu"),
        "HardSigmoid": Case("HardSigmoid"),
        "HardSwish": Case("HardSwish"),
        "PRelu": Case("PRelu", coded=[channel]),
        "Tanh": Case("Tanh"),
    }


CASES = _cases()


class _Writer:
    """Collects nodes and constants of one graph."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(1)

    def constant(self, name: str, values: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def parameters(self, name: str, scale: float) -> list[str]:
        return [
            self.constant(f"{name}_scale", np.float32(scale)),
            self.constant(f"{name}_zero", np.uint8(ZERO)),
        ]

    def pair(self, tensor: str, scale: float) -> str:
        parameters = self.parameters(tensor, scale)
        self.nodes.append(helper.make_node("QuantizeLinear", [tensor, *parameters], [f"{tensor}_q"]))
        self.nodes.append(helper.make_node("DequantizeLinear", [f"{tensor}_q", *parameters], [f"{tensor}_dq"]))
        return f"{tensor}_dq"

    def conv(self, tensor: str, name: str, channels: int) -> str:
        codes = self._rng.integers(-127, 128, (CHANNELS, channels, 1, 1)).astype(np.int8)
        scale = self.constant(f"{name}_scales", np.full(CHANNELS, 0.002, np.float32))
        weight = [self.constant(f"{name}_w", codes), scale, self.constant(f"{name}_z", np.zeros(CHANNELS, np.int8))]
        self.nodes.append(helper.make_node("DequantizeLinear", weight, [f"{name}_wdq"], axis=0))
        self.nodes.append(helper.make_node("Conv", [tensor, f"{name}_wdq"], [name], name=name))
        return self.pair(name, 0.02)

    def coded(self, name: str, values: Values) -> str:
        scale = max(float(np.abs(values).max()), 1e-3) / 127
        codes = np.clip(np.rint(values / scale) + ZERO, 0, 255).astype(np.uint8)
        inputs = [self.constant(name, codes), *self.parameters(name, scale)]
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}_dq"]))
        return f"{name}_dq"


def graph_of(case: Case, *, in_float: bool) -> onnx.ModelProto:
    """The graph with the operator between two convolutions."""
    writer = _Writer()
    writer.nodes.append(helper.make_node("DequantizeLinear", ["x", *writer.parameters("x", 0.02)], ["x_dq"]))
    read = [writer.conv("x_dq", f"before{index}", CHANNELS) for index in range(case.inputs)]
    read += [writer.coded(f"coded{index}", values) for index, values in enumerate(case.coded)]
    others = enumerate(case.others)
    read += ["" if values is None else writer.constant(f"other{index}", values) for index, values in others]
    written = [f"y{index}" for index in range(case.outputs)]
    writer.nodes.append(helper.make_node(case.op, read, written, name="operator", **case.attributes))
    pairs = [writer.pair(name, 0.02 if case.moves else 0.03) for name in written]
    outputs = [writer.conv(name, f"after{index}", _channels(case)) for index, name in enumerate(pairs)]
    outputs += written[:1] if in_float else []
    graph = helper.make_graph(
        writer.nodes,
        "operator",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, (1, CHANNELS, PX, PX))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        writer.constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _channels(case: Case) -> int:
    factors = {"Concat": 2.0, "Split": 0.5, "Slice": 0.5, "Gather": 0.5, "DepthToSpace": 0.25, "SpaceToDepth": 4.0}
    return int(CHANNELS * factors.get(case.op, 1.0))


def open_graph(model: onnx.ModelProto) -> tuple[ort.InferenceSession, list[str]]:
    """A session with one thread, and the operators that ONNX Runtime runs besides convolutions and layouts."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        options.optimized_model_filepath = f"{folder}/optimized.onnx"
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        optimized = onnx.load(f"{folder}/optimized.onnx").graph
    ends = {value.name for value in optimized.output}
    inner = [node for node in optimized.node if node.op_type != "Transpose" and not ends & set(node.output)]
    inner = [node for node in inner if node.op_type not in {"QLinearConv", "Conv", "NhwcFusedConv"}]
    return session, [node.op_type for node in inner if not _is_last(optimized, node, ends)]


def _is_last(graph: onnx.GraphProto, node: onnx.NodeProto, ends: set[str]) -> bool:
    """Whether a DequantizeLinear is the one of the graph's output, with a Transpose behind it at most."""
    readers = [reader for reader in graph.node if set(node.output) & set(reader.input)]
    return node.op_type == "DequantizeLinear" and all(ends & set(reader.output) for reader in readers)


def is_on_codes(operators: Sequence[str]) -> bool:
    """Whether nothing is dequantized on the way."""
    return "DequantizeLinear" not in operators


@dataclass(frozen=True)
class Row:
    """What was found for one operator.

    Attributes:
        operators: that ONNX Runtime runs for it.
        codes_us, float_us: of the whole graph.
        difference: largest, of the last convolution's codes.
    """

    name: str
    operators: tuple[str, ...]
    codes_us: float
    float_us: float
    difference: int


def measure(name: str, rounds: int) -> Row:
    """Run the operator on codes and in float, in turns, and compare what the convolution behind it writes."""
    graphs = [graph_of(CASES[name], in_float=in_float) for in_float in (False, True)]
    (coded, operators), (floating, _) = (open_graph(graph) for graph in graphs)
    feed = {"x": np.random.default_rng(2).integers(0, 256, (1, CHANNELS, PX, PX)).astype(np.uint8)}
    sessions = (coded, floating)
    times = np.array([[_microseconds(session, feed) for session in sessions] for _ in range(rounds)])
    last = graphs[0].graph.output[0].name
    found = [session.run([last], feed)[0] for session in sessions]
    steps = int(np.rint(np.abs(found[0] - found[1]).max() / 0.02))
    return Row(name, tuple(operators), *map(float, np.median(times, axis=0)), steps)


def _microseconds(session: ort.InferenceSession, feed: Mapping[str, Values], runs: int = 10) -> float:
    start = time.perf_counter()
    for _ in range(runs):
        session.run(None, feed)
    return (time.perf_counter() - start) / runs * 1e6


def table(rows: Sequence[Row]) -> Iterator[str]:
    yield "| operator | what ONNX Runtime runs | on codes, us | in float, us | largest difference, codes |"
    yield "|---|---|---|---|---|"
    for row in rows:
        figures = f"{row.codes_us:.0f} | {row.float_us:.0f} | {row.difference}"
        yield f"| {row.name} | {', '.join(row.operators)} | {figures if is_on_codes(row.operators) else 'none | | '} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25, help="of 10 runs each")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/quantization.md")
    arguments = parser.parse_args()
    lines = list(table([measure(name, arguments.rounds) for name in CASES]))
    print("\n".join(lines))
    if arguments.docs:
        text = DOCS.read_text()
        begin, end = "<!-- cpu kernels: written by benchmarks/cpu_kernels.py -->", "<!-- end of cpu kernels -->"
        found = re.sub(f"{begin}.*?{end}", lambda _: "\n\n".join([begin, "\n".join(lines), end]), text, flags=re.DOTALL)
        DOCS.write_text(found)


if __name__ == "__main__":
    main()
