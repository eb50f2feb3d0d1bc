"""Read the ranges of other tools, and write ours for them.

    TensorRT     a calibration cache: a header line, then ``tensor: scale`` with the float32's bits in hex
    ONNX Runtime the JSON of ``save_tensors_data`` and ``write_calibration_table``: lowest and highest by tensor
    any tool     an ONNX file with Q/DQ pairs, as ONNX Runtime and Model Optimizer write it: its scales

A scale of symmetric int8 stands for the range [-127 scale, 127 scale].
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from edgeres.calibrate.ranges_file import RangesFile
from edgeres.calibrate.record import IMPORTED, Ranges, Wanted
from edgeres.documents import MAX_BYTES, DocumentKind
from edgeres.errors import InputError, UsageError, reading
from edgeres.files import read_file
from edgeres.quantize.affine import symmetric_int8, typical_amax
from edgeres.records import TensorRange

if TYPE_CHECKING:
    from edgeres.graph.graph import Graph

Format = Literal["trt-cache", "ort"]
FORMATS: tuple[Format, ...] = ("trt-cache", "ort")
# The version in JetPack 6.1 and 6.2, the last ones with implicit INT8 on a DLA.
TENSORRT = "10.3.0"
_FORMS = "a TensorRT calibration cache, ONNX Runtime's calibration JSON, or an ONNX file with Q/DQ pairs"

_ORT = DocumentKind(dict[str, Any], "ONNX Runtime's calibration", "write it again")


@dataclass(frozen=True)
class Foreign:
    """Ranges in another tool's file: low and high by tensor. ``form`` is the kind of file, in words."""

    path: Path
    form: str
    limits: Mapping[str, tuple[float, float]]
    sha256: str


def read_foreign(path: str | Path) -> Foreign:
    """Read the ranges in a file of another tool; the kind of file is recognized by its content.

    Raises:
        InputError: it cannot be read, is of an unknown kind, or is damaged.
    """
    path = Path(path)
    with reading(path, hint="check the path"):
        content = read_file(path, MAX_BYTES + 1)
    if len(content) > MAX_BYTES and path.suffix.lower() != ".onnx":
        raise InputError(f"is larger than {MAX_BYTES:,} bytes", where=path, hint=f"give {_FORMS}")
    form, limits = _read(path, content)
    if not limits:
        raise InputError(f"is {form} without a single range", where=path)
    broken = next((name for name, pair in limits.items() if not np.isfinite(pair).all() or pair[0] > pair[1]), None)
    if broken is not None:
        raise InputError(f"the range of {broken} is {limits[broken]}", where=path, hint="write the file again")
    return Foreign(path, form, limits, hashlib.sha256(content).hexdigest())


def _read(path: Path, content: bytes) -> tuple[str, dict[str, tuple[float, float]]]:
    if path.suffix.lower() == ".onnx":
        return "an ONNX file with Q/DQ pairs", _from_qdq(path)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError("is no file of ranges that edgeres knows", where=path, hint=f"give {_FORMS}") from None
    if text.startswith("TRT-"):
        return "a TensorRT calibration cache", dict(_from_cache(path, text))
    if text.lstrip().startswith("{"):
        return "ONNX Runtime's calibration", dict(_from_json(path, text))
    if re.match(r"\S+ [-+]?[\d.]+(e[-+]?\d+)?(\n|$)", text):
        hint = "give the calibration.json that was written beside it"
        raise InputError("is ONNX Runtime's plain table, which keeps one end of each range", where=path, hint=hint)
    raise InputError("is no file of ranges that edgeres knows", where=path, hint=f"give {_FORMS}")


def _from_cache(path: Path, text: str) -> Iterator[tuple[str, tuple[float, float]]]:
    """``TRT-100300-EntropyCalibration2`` and lines of ``tensor: 3c008912``; some writers drop leading zeros."""
    for number, line in enumerate(text.splitlines()[1:], 2):
        name, colon, bits = line.rpartition(":")
        if not line.strip():
            continue
        try:
            scale = float(struct.unpack("!f", bytes.fromhex(bits.strip().zfill(8)))[0])
        except (ValueError, struct.error):
            scale = -1.0
        if not colon or scale < 0 or not np.isfinite(scale):
            what = f"line {number} is not a tensor and its scale: {line.strip()[:60]}"
            raise InputError(what, where=path, hint="write the cache again")
        yield name, (-127 * scale, 127 * scale)


def _from_json(path: Path, text: str) -> Iterator[tuple[str, tuple[float, float]]]:
    content = _ORT.decode(text.encode(), path)
    if "schema" in content and "tensors" in content:
        raise InputError("is a calibration.json of edgeres already", where=path, hint="give it to --calibration-file")
    entries = content.get("data") if content.get("CLS") == "TensorsData" else content
    if not isinstance(entries, dict):
        raise InputError("has no data, as ONNX Runtime writes them", where=path, hint=f"give {_FORMS}")
    for name, entry in entries.items():
        try:
            pair = (entry["lowest"], entry["highest"]) if isinstance(entry, dict) else tuple(entry)
            low, high = (float(np.ravel(end["data"] if isinstance(end, dict) else end)[0]) for end in pair)
        except (KeyError, TypeError, ValueError, IndexError):
            what = f"has no lowest and highest for {name}, as ONNX Runtime writes them"
            raise InputError(what, where=path, hint=f"give {_FORMS}") from None
        yield name, (min(low, 0.0), max(high, 0.0))


def _from_qdq(path: Path) -> dict[str, tuple[float, float]]:
    """The ranges of tensors with one scale ahead of QuantizeLinear; of two for one tensor the wider counts."""
    from edgeres.graph.graph import Graph, input_at
    from edgeres.graph.normalize import load_onnx

    graph = Graph(load_onnx(path))
    found: dict[str, tuple[float, float]] = {}
    for node in graph.of("QuantizeLinear"):
        point = input_at(node, 2)
        if graph.is_constant(node.input[0]) or not all(map(graph.is_constant, filter(None, (node.input[1], point)))):
            continue
        scale = graph.constant(node.input[1])
        zero = graph.constant(point) if point else np.zeros((), np.uint8)
        if scale.size != 1 or zero.dtype.kind not in "iu":
            continue
        low, high = _limits(float(scale.flat[0]), zero)
        for name in _names(node.input[0], graph):
            known = found.get(name, (0.0, 0.0))
            found[name] = (min(low, known[0]), max(high, known[1]))
    return found


def _limits(scale: float, zero: npt.NDArray[Any]) -> tuple[float, float]:
    info, point = np.iinfo(zero.dtype), int(zero.flat[0])
    low = -info.max if info.min < 0 and point == 0 else info.min - point
    return low * scale, (info.max - point) * scale


def _names(tensor: str, graph: Graph) -> Iterator[str]:
    """A tensor's name, and its names ahead of Casts: tools that convert the rest to float16 insert them there."""
    yield tensor
    while (node := graph.producer(tensor)) is not None and node.op_type == "Cast":
        tensor = node.input[0]
        yield tensor


def fit(foreign: Foreign, graph: Graph, wanted: Mapping[str, Wanted]) -> Ranges:
    """The ranges of our tensors from those of another tool, for every style whose tensors are all covered.

    A tensor without a range takes that of the tensor it is pooled or moved from, which is no smaller. Symmetric ranges
    of tensors that are never negative begin at zero where codes are affine.

    Raises:
        InputError: no style has all its ranges.
    """
    found: Ranges = {}
    short: dict[str, list[str]] = {}
    for style, asked in wanted.items():
        limits = {name: _limits_of(foreign, graph, name) for name in asked.all}
        missing = [name for name, pair in limits.items() if pair is None]
        if missing and style != "symmetric":
            short[style] = missing
            continue
        given = ((name, pair) for name, pair in limits.items() if pair)
        ranges = {name: _range(name, pair, graph, symmetric=name in asked.symmetric) for name, pair in given}
        likes = {name: other for name, other in asked.like.items() if other in ranges}
        found[style] = Wanted(like=likes).complete(ranges)
    if short.keys() >= wanted.keys() - {"symmetric"}:
        style, missing = min(short.items(), key=lambda item: len(item[1]))
        total = len(wanted[style].all)
        what = f"has no range for {len(missing)} of the {total} tensors of the {style} graph, e.g. {missing[0]}"
        raise InputError(what, where=foreign.path, hint="it must be of the same network, with the same tensor names")
    return found


def _limits_of(foreign: Foreign, graph: Graph, tensor: str) -> tuple[float, float] | None:
    while tensor not in foreign.limits:
        node = graph.producer(tensor)
        if node is None or not graph.keeps_range(node):
            return None
        tensor = node.input[0]
    return foreign.limits[tensor]


def _range(name: str, limits: tuple[float, float], graph: Graph, *, symmetric: bool) -> TensorRange:
    low, high = limits
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    elif graph.is_nonnegative(name):
        low = 0.0
    return TensorRange(name, min(low, 0.0), max(high, 0.0), IMPORTED, 0)


def export(recorded: RangesFile, form: Format, tensorrt: str = TENSORRT) -> tuple[str, int]:
    """The text of another tool's file, and how many tensors are in it.

    Args:
        form: ``trt-cache`` for TensorRT's implicit INT8 and Model Optimizer, ``ort`` for ONNX Runtime's
            ``quantize_static(calibration_cache_path=...)``.
        tensorrt: version in the cache's header; TensorRT takes caches of its own version.

    Raises:
        UsageError: it is no version.
    """
    return _cache(recorded, tensorrt) if form == "trt-cache" else _json(recorded)


def _cache(recorded: RangesFile, tensorrt: str) -> tuple[str, int]:
    if not re.fullmatch(r"\d+(\.\d+)*", tensorrt):
        raise UsageError(f"is no version of TensorRT: {tensorrt!r}", where="--tensorrt", hint=f"e.g. {TENSORRT}")
    major, minor, patch = (*map(int, tensorrt.split(".")), 0, 0)[:3]
    # NV_TENSORRT_VERSION: 8.6.2 is 8602, from 10 on 10.3.0 is 100300.
    version = (10000 if major >= 10 else 1000) * major + 100 * minor + patch
    complete = any("symmetric" in entry.ranges for entry in recorded.content.tensors.values())
    styles = ("symmetric",) if complete else ("tensorrt", "cpu")
    found = dict(_best(recorded, *styles))
    amax = typical_amax(found.values())  # for tensors that are zero on every image: TensorRT takes no scale of 0
    scales = {
        name: symmetric_int8(best if best.amax else replace(best, high=amax)).scale for name, best in found.items()
    }
    lines = [f"{name}: {struct.pack('!f', float(scale)).hex()}\n" for name, scale in scales.items()]
    return f"TRT-{version}-EntropyCalibration2\n{''.join(lines)}", len(lines)


def _json(recorded: RangesFile) -> tuple[str, int]:
    def array(value: float) -> dict[str, Any]:
        return {"data": [float(np.float32(value))], "dtype": "float32", "CLS": "numpy.array"}

    data = {
        name: {"lowest": array(best.low), "highest": array(best.high), "CLS": "TensorData"}
        for name, best in _best(recorded, "cpu", "tensorrt", "symmetric")
    }
    method = {"CLS": "CalibrationMethod", "value": "CalibrationMethod.MinMax"}
    content = {"CLS": "TensorsData", "data": data, "calibration_method": method, "smooth_quant": False}
    return json.dumps(content, indent=1) + "\n", len(data)


def _best(recorded: RangesFile, *styles: str) -> Iterator[tuple[str, TensorRange]]:
    """Every tensor with its range of the first style that has one."""
    for name, entry in recorded.content.tensors.items():
        limits = next((entry.ranges[style] for style in styles if style in entry.ranges), None)
        if limits is not None:
            yield name, recorded.range(name, limits)
