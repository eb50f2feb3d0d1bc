"""Small inputs that ask for much: a corpus for every reader, each under 10 MB; most are under 10 kB.

for name, write in BOMBS["ONNX"].items(): write(path)
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

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

    bomb("ONNX", name, content)


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


# --- images -----------------------------------------------------------------------------------------------------------

PIXELS = 60_000  # a side: 10.8 GB as RGB


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(side: int, data: bytes = b"", more: bytes = b"", bits: int = 8, colour: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, bits, colour, 0, 0, 0)
    body = _chunk(b"IHDR", header) + more + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def zeros(count: int) -> bytes:
    """So many zeros, deflated, without making them at once."""
    packer, block = zlib.compressobj(9), bytes(1 << 20)
    return b"".join([*(packer.compress(block) for _ in range(count >> 20)), packer.flush()])


def tiff(side: int, entries: int = 0) -> bytes:
    tags = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    tags += [(277, 3, 1, 1), (278, 4, 1, side), (279, 4, 1, 100), *[(40_000, 1, 1 << 30, 8)] * entries]
    body = b"".join(struct.pack("<HHLL", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<L", 8) + struct.pack("<H", len(tags)) + body + bytes(104)


def webp(side: int) -> bytes:
    size = ((side - 1) & 0x3FFF) | (((side - 1) & 0x3FFF) << 14)
    data = b"\x2f" + struct.pack("<I", size) + bytes(100)
    return b"RIFF" + struct.pack("<I", 12 + len(data)) + b"WEBPVP8L" + struct.pack("<I", len(data)) + data


def jpeg(side: int, scans: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), (9, 9, 9)).save(stream, "JPEG", progressive=True)
    content = stream.getvalue()
    at = content.index(b"\xff\xc2") + 5
    content = content[:at] + struct.pack(">HH", side, side) + content[at + 4 :]
    scan = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + scan * scans + b"\xff\xd9"


bomb("PNG", "60000 pixels a side", lambda: png(PIXELS))
bomb("PNG", "65000, one bit", lambda: png(65_000, zeros(65_000 * 8126), bits=1, colour=0))
bomb("PNG", "9000 a side, all there", lambda: png(9000, zeros(9000 * 27_001)))
bomb("PNG", "text of 1 GB", lambda: png(32, more=_chunk(b"zTXt", b"a\0\0" + zeros(1 << 30))))
bomb("PNG", "profile of 1 GB", lambda: png(32, more=_chunk(b"iCCP", b"a\0\0" + zeros(1 << 30))))
bomb("JPEG", "65000 pixels a side", lambda: jpeg(65_000))
bomb("JPEG", "9999 a side, 400 scans", lambda: jpeg(9_999, 400))
bomb("TIFF", "60000 pixels a side", lambda: tiff(PIXELS))
bomb("TIFF", "tags of 1 GB", lambda: tiff(32, 300))
bomb("WEBP", "16384 pixels a side", lambda: webp(16_384))
bomb(
    "BMP",
    "60000 pixels a side",
    lambda: (
        b"BM"
        + struct.pack("<IHHI", 100, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, PIXELS, PIXELS, 1, 24, 0, 0, 0, 0, 0, 0)
    ),
)
bomb(
    "GIF",
    "65000 pixels a side",
    lambda: (
        b"GIF89a"
        + struct.pack("<HH", 65_000, 65_000)
        + b"\x80\0\0"
        + bytes(6)
        + b","
        + struct.pack("<HHHHB", 0, 0, 65_000, 65_000, 0)
        + b"\x02\x02\x44\x01\x00;"
    ),
)
bomb("PPM", "60000 pixels a side", lambda: b"P6 60000 60000 255\n" + bytes(100))


# --- archives and arrays ----------------------------------------------------------------------------------------------


def npy(shape: Sequence[int], kind: str = "|u1", data: bytes = b"") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": kind, "fortran_order": False, "shape": tuple(shape)})
    return stream.getvalue() + data


def archive(members: dict[str, bytes], *, size: int | None = None, packed: bool = True) -> bytes:
    """A zip; ``size`` is what it claims that the members take."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    content = bytearray(stream.getvalue())
    at = 0
    while size is not None and (at := content.find(b"PK\1\2", at)) >= 0:
        struct.pack_into("<I", content, at + 24, size)
        at += 4
    return bytes(content)


def large_zip(name: str, before: bytes = b"") -> bytes:
    """A member of 4 GB in 4 MB."""
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file,
        file.open(name, "w", force_zip64=True) as to,
    ):
        to.write(before)
        for _ in range(1 << 11):
            to.write(bytes(1 << 20))
    return stream.getvalue()


_LABELS = {"labels.npy": npy([4], "<i8", bytes(32))}
bomb("npz", "claims 4 TB", lambda: archive({"images.npy": npy([1 << 30, 64, 64, 3]), **_LABELS}))
bomb("npz", "claims 2^62", lambda: archive({"images.npy": npy([1 << 62, 1, 1, 3]), **_LABELS}))
bomb("npz", "expands to 2 GB", lambda: large_zip("images.npy", npy([1 << 19, 64, 64, 1])))
bomb(
    "npz",
    "header of 8 MB",
    lambda: archive({"images.npy": b"\x93NUMPY\x02\x00" + struct.pack("<I", 8 << 20) + b"(" * (8 << 20)}),
)
bomb("npz", "objects", lambda: archive({"images.npy": npy([4], "|O", pickle.dumps([print] * 4)), **_LABELS}))
bomb("zip", "member expands to 2 GB", lambda: large_zip("a/a.png"))
bomb("zip", "members claim 4 GB", lambda: archive({f"a/{i}.png": b"x" for i in range(9)}, size=0xFFFFFFF0))
bomb("zip", "60000 members", lambda: archive({f"a/{i}.png": b"" for i in range(60_000)}))
bomb("zip", "images of 60000 pixels", lambda: archive({f"a/{i}.png": png(PIXELS) for i in range(24)}))
bomb("zip", "a zip in a zip", lambda: archive({"a.zip": archive({"a.zip": b"x" * 1000})}))
bomb(
    "tar",
    "member claims 8 GB",
    lambda: (
        b"a/a.png".ljust(100, b"\0")
        + b"0000644\0"
        + bytes(16)
        + b"77777777777\0"
        + bytes(12)
        + b"        0"
        + bytes(355)
    ),
)


# --- pickles, checkpoints ---------------------------------------------------------------------------------------------


def copies(depth: int) -> bytes:
    """A list of two of the list before, and so on."""
    return (
        b"\x80\x02]q\x00"
        + b"".join(b"]q" + bytes([i + 1]) + b"(h" + bytes([i, 104, i]) + b"e" for i in range(depth))
        + b"."
    )


def torch_zip(data: bytes, **members: bytes) -> bytes:
    files = {"data.pkl": data, "version": b"3\n"} | members
    return archive({f"archive/{name}": content for name, content in files.items()}, packed=False)


def tensor_pickle(count: int, stored: int, shape: Sequence[int], strides: Sequence[int]) -> bytes:
    """A checkpoint whose tensor views a storage of ``stored`` values as ``shape``."""

    def number(value: int) -> bytes:
        return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)

    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu" + number(stored) + b"tQ"
    sizes, steps = (b"(" + b"".join(map(number, values)) + b"t" for values in (shape, strides))
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + b"K\0"
        + sizes
        + steps
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )
    return b"\x80\x02}(" + b"".join(b"X\x04\0\0\0" + b"w%03d" % i + tensor for i in range(count)) + b"u."


bomb(
    "CIFAR pickle",
    "claims 8 GB",
    lambda: pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]}, 2).replace(
        b"K\x02M\x00\x0c\x86", b"J\xff\xff\xff\x7fM\x00\x0c\x86"
    ),
)
bomb("CIFAR pickle", "bytes of 2^60", lambda: b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60))
bomb("CIFAR pickle", "lists 200 deep", lambda: b"\x80\x02" + b"(l" * 200 + b"a" * 199 + b".")
bomb("CIFAR pickle", "copies 2^60", lambda: copies(60))
bomb("CIFAR pickle", "empty lists", lambda: b"\x80\x02(" + b"]" * 9_000_000 + b"l.")
bomb("CIFAR pickle", "int of 1 MB", lambda: b"I" + b"9" * 1_000_000 + b"\n.")
bomb("checkpoint", "copies 2^60", lambda: torch_zip(copies(60)))
bomb(
    "checkpoint",
    "expanded to 4 TB",
    lambda: torch_zip(tensor_pickle(1, 1, [1 << 20, 1 << 20], [0, 0]), **{"data/0": bytes(4)}),
)
bomb(
    "checkpoint",
    "storage of 2^60",
    lambda: torch_zip(tensor_pickle(1, 1 << 60, [1 << 60], [1]), **{"data/0": bytes(4)}),
)
bomb(
    "checkpoint",
    "the same 8 MB 900 times",
    lambda: torch_zip(tensor_pickle(900, 1 << 21, [1 << 21], [1]), **{"data/0": bytes(8 << 20)}),
)
bomb("checkpoint", "empty dictionaries", lambda: torch_zip(b"\x80\x02(" + b"}" * 9_000_000 + b"l."))
bomb(
    "checkpoint",
    "old form of 2^60",
    lambda: b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}." + copies(60),
)


def tensors(header: dict[str, Any], data: bytes = b"", claimed: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text + data


def entry(shape: Sequence[int], end: int, start: int = 0) -> dict[str, Any]:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}


bomb("safetensors", "header of 2^62", lambda: tensors({}, claimed=1 << 62))
bomb("safetensors", "header of 90 MB", lambda: tensors({}, bytes(1000), claimed=90_000_000))
bomb("safetensors", "claims 4 TB", lambda: tensors({"w": entry([1 << 40], 1 << 42)}, bytes(100)))
bomb(
    "safetensors",
    "the same bytes 60000 times",
    lambda: tensors({f"w{i}": entry([1 << 18], 1 << 20) for i in range(60_000)}, bytes(1 << 20)),
)
bomb("safetensors", "nested", lambda: struct.pack("<Q", 5_000_000) + b"[" * 5_000_000)


# --- documents --------------------------------------------------------------------------------------------------------

DEEP = b'{"schema": 1, "x": ' + b"[" * 2_000_000
for _kind in ("manifest", "calibration.json", "report.json", "baseline.json", "signature"):
    bomb(_kind, "nested", lambda: DEEP)
    bomb(_kind, "empty lists", lambda: b'{"schema": 1, "x": [' + b"[]," * 3_000_000 + b"[]]}")
    bomb(_kind, "a number of 9 MB", lambda: b'{"schema": 1, "x": ' + b"9" * 9_000_000 + b"}")
    bomb(_kind, "keys", lambda: b'{"schema": 1' + b"".join(b',"%d":0' % i for i in range(800_000)) + b"}")
bomb("calibration cache", "lines", lambda: b"TRT-100300-EntropyCalibration2\n" + b"a: 3c010a14\n" * 700_000)
bomb("labels", "lines", lambda: b"a\n" * 4_500_000)
bomb("labels", "one line of 9 MB", lambda: b"a" * 9_000_000)
bomb("labels CSV", "lines", lambda: b"image,label\n" + b"a.png,1\n" * 1_000_000)
bomb("labels CSV", "one cell of 9 MB", lambda: b'image,label\n"' + b"a" * 9_000_000)
bomb("labels CSV", "columns", lambda: b"image,label\na.png" + b"," * 9_000_000)
bomb("pyproject.toml", "nested", lambda: b"[tool.edgeres]\nx = " + b"[" * 9_000_000)
bomb("pyproject.toml", "tables", lambda: b"[tool.edgeres" + b".a" * 400_000 + b"]\n")
bomb("engine", "zeros", lambda: b"ftrt" + bytes(9_000_000))
