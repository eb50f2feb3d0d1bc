"""Small inputs that ask for much: a corpus for every reader, each under 10 MB; most are under 10 kB.

for name, write in BOMBS["onnx"].items(): write(path)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Write = Callable[[Path], object]
BOMBS: dict[str, dict[str, Write]] = {}
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


_POINT = np.ones((3, 3, 1, 1), np.float32)


def bomb(kind: str, name: str, make: Callable[[], bytes]) -> None:
    BOMBS.setdefault(kind, {})[name] = lambda path: path.write_bytes(make())


# --- ONNX -------------------------------------------------------------------------------------------------------------


def node(op: str, inputs: Sequence[str], outputs: Sequence[str] | str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [outputs] if isinstance(outputs, str) else outputs, **attributes)


def classifier(
    before: Sequence[onnx.NodeProto] = (),
    constants: dict[str, Any] | None = None,
    *,
    extra: str | None = None,
    head: str = "x",
    shape: Sequence[int | str] = ("N", 3, 32, 32),
    functions: Sequence[onnx.FunctionProto] = (),
    opset: int = 17,
) -> onnx.ModelProto:
    """Conv, pool, Gemm from ``head``; the scalar that ``extra`` sums up to is added to the scores."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((8, 3, 3, 3)), "v": rng.standard_normal((10, 8)), "b": rng.standard_normal(10)}
    stored = {name: value.astype(np.float32) for name, value in weights.items()} | (constants or {})
    nodes = [
        *before,
        node("Conv", [head, "w"], "c", pads=[1] * 4, kernel_shape=[3, 3]),
        node("Relu", ["c"], "r"),
        node("GlobalAveragePool", ["r"], "p"),
        node("Flatten", ["p"], "f"),
        node("Gemm", ["f", "v", "b"], "scores" if extra is None else "s", transB=1),
    ]
    if extra is not None:
        nodes += [node("ReduceSum", [extra], "sum", keepdims=0), node("Add", ["s", "sum"], "scores")]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("scores", FLOAT, [shape[0], 10])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid("f", 1) for _ in functions[:1])]
    return helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=8)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def filled(name: str = "big", *sizes: int) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    return [node("ConstantOfShape", ["sizes"], name)], {"sizes": ints(*sizes)}


def doubled(op: str, times: int, start: str, **attributes: Any) -> list[onnx.NodeProto]:
    names = [start, *(f"d{index}" for index in range(times))]
    return [node(op, [a, a], b, **attributes) for a, b in pairwise(names)]


def deep_loop(depth: int, trips: int) -> onnx.ModelProto:
    inner: list[onnx.NodeProto] = [node("Sin", [f"s{depth - 1}"], f"n{depth - 1}")]
    for level in range(depth - 1, -1, -1):
        flag = helper.make_tensor_value_info(f"c{level}", TensorProto.BOOL, [])
        given = [helper.make_tensor_value_info(f"i{level}", INT64, []), flag]
        body = helper.make_graph(
            [*inner, node("Identity", [f"c{level}"], f"k{level}")],
            f"b{level}",
            [*given, helper.make_tensor_value_info(f"s{level}", FLOAT, None)],
            [
                helper.make_tensor_value_info(f"k{level}", TensorProto.BOOL, []),
                helper.make_tensor_value_info(f"n{level}", FLOAT, None),
            ],
        )
        source, target = (f"s{level - 1}", f"n{level - 1}") if level else ("start", "looped")
        inner = [node("Loop", ["trips", "true", source], target, body=body)]
    before = [node("ReduceSum", ["x"], "start", keepdims=0), *inner]
    return classifier(before, {"trips": ints(trips)[0], "true": np.array(True)}, extra="looped")


def deep_if(depth: int) -> onnx.ModelProto:
    inner = [node("Sin", ["x"], "o0")]
    for level in range(depth):
        branch = helper.make_graph(inner, f"b{level}", [], [helper.make_tensor_value_info(f"o{level}", FLOAT, None)])
        inner = [node("If", ["true"], f"o{level + 1}", then_branch=branch, else_branch=branch)]
    return classifier(inner, {"true": np.array(True)}, extra=f"o{depth}")


def functions(depth: int, width: int, op: str = "Sin") -> onnx.ModelProto:
    """Functions that call the one before several times."""
    made = []
    for level in range(depth):
        names = ["a", *(f"t{index}" for index in range(width))]
        kind, domain = (op, "") if level == 0 else (f"F{level - 1}", "f")
        calls = [helper.make_node(kind, [a], [b], domain=domain) for a, b in pairwise(names)]
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
        made.append(helper.make_function("f", f"F{level}", ["a"], [names[-1]], calls, imports))
    return classifier([helper.make_node(f"F{depth - 1}", ["x"], ["y"], domain="f")], extra="y", functions=made)


def claimed(dims: Sequence[int], kind: int = FLOAT, **more: Any) -> onnx.ModelProto:
    model = classifier(extra="claimed")
    tensor = TensorProto(name="claimed", data_type=kind, dims=dims, **more)
    model.graph.initializer.append(tensor)
    return model


def sparse(size: int) -> onnx.ModelProto:
    model = classifier(extra="sparse")
    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, numpy_helper.from_array(ints(0)), [size]))
    return model


def many(count: int, op: str = "Relu") -> onnx.ModelProto:
    names = ["x", *(f"m{index}" for index in range(count))]
    return classifier([node(op, [a], b) for a, b in pairwise(names)], head=names[-1])


def lying() -> onnx.ModelProto:
    """A graph that states small sizes for what is large."""
    nodes, constants = filled("big", 1 << 16, 1 << 15)
    model = classifier(nodes, constants, extra="big")
    model.graph.value_info.append(helper.make_tensor_value_info("big", FLOAT, [1]))
    return model


def hidden(op: str = "NonZero") -> onnx.ModelProto:
    """A size that only a run tells: the count of pixels that are not zero, as a square matrix."""
    nodes = [
        node(op, ["x"], "places"),
        node("Shape", ["places"], "count"),
        node("Mul", ["count", "factor"], "sizes"),
        node("ConstantOfShape", ["sizes"], "big"),
    ]
    return classifier(nodes, {"factor": ints(1 << 14, 1 << 4)}, extra="big")


def hidden_concat() -> onnx.ModelProto:
    """A list of sizes of unknown length, doubled again and again: inference keeps an object for each number."""
    nodes = [node("NonZero", ["x"], "places"), node("Shape", ["places"], "d"), *doubled("Concat", 30, "d", axis=0)]
    nodes.append(node("Cast", ["d29"], "floats", to=FLOAT))
    return classifier(nodes, extra="floats")


def empty_messages(field: bytes, count: int) -> bytes:
    """A graph with a great many empty entries."""
    inner = field * count
    size, length = len(inner), b""
    while size > 0x7F:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return classifier().SerializeToString() + b"\x3a" + length + bytes([size]) + inner


def _onnx(name: str, make: Callable[[], onnx.ModelProto | bytes]) -> None:
    def content() -> bytes:
        made = make()
        return made if isinstance(made, bytes) else made.SerializeToString()

    bomb("onnx", name, content)


def _with(nodes: Sequence[onnx.NodeProto], constants: dict[str, Any], **more: Any) -> Callable[[], onnx.ModelProto]:
    return lambda: classifier(nodes, constants, **more)


_BIG = ints(1 << 16, 1 << 16)
_ONE = np.ones((1, 1), np.float32)
_ROW, _COLUMN = np.ones((1, 200_000), np.float32), np.ones((200_000, 1), np.float32)
_onnx("filled", _with(*filled("big", 1 << 16, 1 << 16), extra="big"))
_onnx("filled 2^62", _with(*filled("big", 1 << 31, 1 << 31), extra="big"))
_onnx("filled negative", _with(*filled("big", -1, 1 << 20), extra="big"))
_onnx(
    "filled many",
    lambda: classifier(
        [node("ConstantOfShape", ["sizes"], f"z{i}") for i in range(60)]
        + [node("Sum", [f"z{i}" for i in range(60)], "big")],
        {"sizes": ints(1 << 14, 1 << 12)},
        extra="big",
    ),
)
_onnx("expand", _with([node("Expand", ["one", "sizes"], "big")], {"one": _ONE, "sizes": _BIG}, extra="big"))
_onnx("tile", _with([node("Tile", ["one", "sizes"], "big")], {"one": _ONE, "sizes": _BIG}, extra="big"))
_onnx("tile image", _with([node("Tile", ["x", "t"], "big")], {"t": ints(1, 1, 4096, 4096)}, extra="big"))
_onnx("pad", _with([node("Pad", ["x", "p"], "big")], {"p": ints(0, 0, 0, 0, 0, 0, 1 << 15, 1 << 15)}, extra="big"))
_onnx(
    "resize", _with([node("Resize", ["x", "", "s"], "big")], {"s": np.array([1, 1, 999, 999], np.float32)}, head="big")
)
_onnx(
    "resize sizes",
    _with([node("Resize", ["x", "", "", "s"], "big", mode="cubic")], {"s": ints(1, 3, 1 << 14, 1 << 14)}, head="big"),
)
_onnx(
    "range",
    _with(
        [node("Range", ["a", "b", "c"], "big")],
        {"a": np.float32(0), "b": np.float32(2**33), "c": np.float32(1)},
        extra="big",
    ),
)
_onnx("outer product", _with([node("MatMul", ["col", "row"], "big")], {"col": _COLUMN, "row": _ROW}, extra="big"))
_onnx("outer sum", _with([node("Add", ["col", "row"], "big")], {"col": _COLUMN, "row": _ROW}, extra="big"))
_onnx(
    "outer einsum",
    _with([node("Einsum", ["col", "row"], "big", equation="ij,kl->il")], {"col": _COLUMN, "row": _ROW}, extra="big"),
)
_onnx("concat doubled", _with(doubled("Concat", 34, "one", axis=0), {"one": _ONE}, extra="d33"))
_onnx(
    "sizes doubled",
    _with([*doubled("Concat", 26, "i", axis=0), node("Cast", ["d25"], "big", to=FLOAT)], {"i": ints(1)}, extra="big"),
)
_onnx(
    "gather",
    _with(
        [node("Gather", ["row", "places"], "big", axis=0)],
        {"row": _ROW, "places": np.zeros(60_000, np.int64)},
        extra="big",
    ),
)
_onnx(
    "one hot",
    _with(
        [node("OneHot", ["places", "depth", "on"], "big")],
        {"places": np.zeros(60_000, np.int64), "depth": ints(10**6)[0], "on": np.array([0, 1], np.float32)},
        extra="big",
    ),
)
_onnx(
    "eye",
    _with(
        [*filled("z", 1 << 15, 1 << 15)[0], node("EyeLike", ["z"], "big")],
        filled("z", 1 << 15, 1 << 15)[1],
        extra="big",
    ),
)
_onnx("random", lambda: classifier([node("RandomNormal", [], "big", shape=[1 << 16, 1 << 16])], extra="big"))
_onnx("window", _with([node("HannWindow", ["n"], "big")], {"n": ints(1 << 33)[0]}, extra="big"))
_onnx(
    "transposed conv",
    _with([node("ConvTranspose", ["x", "k"], "big", strides=[2048, 2048])], {"k": _POINT}, head="big"),
)
_onnx("conv padded", _with([node("Conv", ["x", "k"], "big", pads=[30_000] * 4)], {"k": _POINT}, head="big"))
_onnx(
    "pool padded",
    _with([node("MaxPool", ["x"], "big", kernel_shape=[20_000, 20_000], pads=[19_999] * 4)], {}, head="big"),
)
_onnx(
    "products",
    _with([*filled("a", 8192, 8192)[0], *doubled("MatMul", 30, "a")], filled("a", 8192, 8192)[1], extra="d29"),
)
_onnx("image 2^31", lambda: classifier(shape=("N", 3, 1 << 31, 1 << 31)))
_onnx("image 30000", lambda: classifier(shape=("N", 3, 30_000, 30_000)))
_onnx("batch 10^9", lambda: classifier(shape=(10**9, 3, 32, 32)))
_onnx("lying sizes", lying)
_onnx("hidden size", hidden)
_onnx("hidden list", hidden_concat)
_onnx("loop", lambda: deep_loop(1, 1 << 60))
_onnx("loops in loops", lambda: deep_loop(6, 1000))
_onnx("loops 60 deep", lambda: deep_loop(20, 3))
_onnx("if 8 deep", lambda: deep_if(7))
_onnx("if 14 deep", lambda: deep_if(12))
_onnx("functions 10^9", lambda: functions(9, 10))
_onnx("functions 2^60", lambda: functions(60, 2))
_onnx("claimed 4 GB", lambda: claimed([1 << 30]))
_onnx("claimed 2^62", lambda: claimed([1 << 31, 1 << 31], raw_data=bytes(16)))
_onnx("claimed negative", lambda: claimed([-4], raw_data=bytes(16)))
_onnx("claimed strings", lambda: claimed([1 << 30], TensorProto.STRING))
_onnx("sparse", lambda: sparse(1 << 33))
_onnx("nodes 5000", lambda: many(5000))
_onnx("nodes 40000", lambda: many(40_000))
_onnx("nodes 60000", lambda: many(60_000))
_onnx("softmax 5000", lambda: many(5000, "Softmax"))
_onnx("empty nodes", lambda: empty_messages(b"\x0a\x00", 1_000_000))
_onnx("empty constants", lambda: empty_messages(b"\x2a\x00", 1_000_000))
_onnx("empty inputs", lambda: empty_messages(b"\x5a\x00", 1_000_000))
_onnx("empty values", lambda: empty_messages(b"\x6a\x00", 400_000))
_onnx("sum of 3000", lambda: classifier([node("Sum", ["x"] * 3000, "y")], head="y"))
_onnx("bytes", lambda: b"\x3a" * 9_000_000)
