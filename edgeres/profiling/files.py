"""What profilers write: trtexec's ``--exportProfile`` and ``--exportLayerInfo``, and ONNX Runtime's trace.

A profile of trtexec is ``[{"count": runs}, {"name", "timeMs", "averageMs", ...}, ...]``; its layers are the engine
inspector's ``{"Layers": [...], "Bindings": [...]}``, of which an entry is a name alone where the engine was built
without ``--profilingVerbosity=detailed``. ONNX Runtime writes trace events: one named ``model_run`` for each inference
and, inside it, one of category ``Node`` for each kernel.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgeres.documents import json_of
from edgeres.errors import InputError, reading
from edgeres.files import read_file
from edgeres.profiling.layers import Facts, Profile, Run, Slice, type_in

_MAX_BYTES = 256 << 20
_HOW = "give what trtexec --exportProfile=FILE or ONNX Runtime's profiler wrote"
_HOW_LAYERS = "give what trtexec --exportLayerInfo=FILE wrote"
_LARGEST = 1e18  # microseconds since 1970 are below it
_NODE, _RUN = "Node", "model_run"
_NO_NAMES = (
    "the file holds the layers' times alone: with --layers FILE (trtexec --exportLayerInfo) their types are shown"
)
_NAMES_ALONE = "layers are listed by name alone: build the engine with --profilingVerbosity=detailed to see their types"
_NO_WHOLE = "trtexec writes no time of a whole run here, so what is outside the layers is not known"


def read_profile(path: Path, layers: Path | None = None) -> Profile:
    """The profile in a file of trtexec or ONNX Runtime.

    Args:
        layers: trtexec's list of the same engine's layers.

    Raises:
        InputError: a file is none of these, or the two are not of one engine.
    """
    content = json_of(_content(path), path, "a profile", _HOW, _MAX_BYTES)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content) or not content:
        raise InputError("is no profile", where=path, hint=_HOW)
    if any("ph" in entry for entry in content):
        if layers is not None:
            raise InputError("is ONNX Runtime's profile, which names its layers itself", where=path, hint="no --layers")
        return from_events(content, path)
    runs, slices = _means(content, path)
    facts = {} if layers is None else layer_facts(json_of(_content(layers), layers, "a list of layers", _HOW_LAYERS))
    if layers is not None and not facts:
        raise InputError("lists no layers", where=layers, hint=_HOW_LAYERS)
    if facts and not {one.name for one in slices} & facts.keys():
        raise InputError(f"names none of the layers in {path}", where=layers, hint="give files of the same engine")
    notes = [_NO_WHOLE]
    if not facts:
        notes.append(_NO_NAMES)
    elif not any(one.told for one in facts.values()):
        notes.append(_NAMES_ALONE)
    return Profile("trtexec", (Run(slices),), runs, facts, notes=tuple(notes))


def from_events(events: Iterable[Any], where: object = None) -> Profile:
    """The inferences in ONNX Runtime's trace.

    Raises:
        InputError: there is none, or an event is not what ONNX Runtime writes.
    """
    runs: list[tuple[float, float]] = []
    nodes: list[Slice] = []
    facts: dict[str, Facts] = {}
    providers: set[str] = set()
    for event in events:
        with reading(where, "is no trace of ONNX Runtime", hint=_HOW):
            if event.get("ph") != "X" or not (event["name"] == _RUN or event.get("cat") == _NODE):
                continue
            start, length = _number(event["ts"]) / 1e3, _number(event["dur"]) / 1e3
            if event["name"] == _RUN:
                runs.append((start, length))
            elif event["name"].endswith("_kernel_time"):  # the fences around it take no time of their own
                name, told = event["name"].removesuffix("_kernel_time"), dict(event.get("args") or {})
                nodes.append(Slice(name, length, start))
                facts.setdefault(name, _node_facts(told))
                providers.add(str(told.get("provider", "")))
    if not runs or not nodes:
        what = "holds no inference: no model_run" if not runs else "names no layer: no event of category Node"
        raise InputError(what, where=where, hint=_HOW)
    notes: tuple[str, ...] = ()
    if "CUDAExecutionProvider" in providers:
        notes = ("ONNX Runtime gives the time in which the CPU starts a kernel of the GPU, not that of the kernel",)
    return Profile("ONNX Runtime", tuple(_cut(runs, nodes)), facts=facts, notes=notes)


def layer_facts(content: object) -> dict[str, Facts]:
    """Facts by name in what TensorRT's engine inspector says; empty where it lists nothing that can be read."""
    listed = content.get("Layers") if isinstance(content, dict) else content
    found = {}
    for layer in listed if isinstance(listed, list) else ():
        if isinstance(layer, str):
            found[layer] = Facts()
        elif isinstance(layer, dict) and isinstance(layer.get("Name"), str):
            kind = layer.get("ParameterType") or layer.get("LayerType")
            reads, writes = (_first_type(layer.get(side)) for side in ("Inputs", "Outputs"))
            found[layer["Name"]] = Facts(None if kind is None else str(kind), reads, writes, layer)
    return found


def _content(path: Path) -> bytes:
    with reading(path, hint="check the path"):
        return read_file(path, _MAX_BYTES + 1)


def _means(content: list[Any], path: Path) -> tuple[int, tuple[Slice, ...]]:
    """How many runs trtexec counted, and the mean time of each layer."""
    counts = [entry["count"] for entry in content if set(entry) == {"count"}]
    with reading(path, "is no profile of trtexec", hint=_HOW):
        runs = int(_number(counts[0])) if counts else 0
        named = [entry for entry in content if "name" in entry] if runs > 0 else []
        slices = tuple(Slice(str(entry["name"]), _mean(entry, runs)) for entry in named)
    if runs < 1 or not slices:
        raise InputError("is no profile of trtexec: it counts no run or names no layer", where=path, hint=_HOW)
    return runs, slices


def _mean(entry: dict[str, Any], runs: int) -> float:
    return _number(entry["averageMs"]) if "averageMs" in entry else _number(entry["timeMs"]) / runs


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LARGEST:
        raise ValueError(f"{value!r} is no time")
    return float(value)


def _node_facts(told: dict[str, Any]) -> Facts:
    kind = told.get("op_name")
    reads, writes = (_first_type(told.get(f"{side}_type_shape")) for side in ("input", "output"))
    return Facts(None if kind is None else str(kind), reads, writes, told)


def _first_type(tensors: object) -> str | None:
    """Type of the first tensor; ONNX Runtime lists ``{"float": [1, 3]}``, TensorRT ``{"Format/Datatype": words}``."""
    first = tensors[0] if isinstance(tensors, list) and tensors else None
    if not isinstance(first, dict):
        return None
    words = first.get("Format/Datatype", first.get("Datatype"))
    return type_in(next(iter(first), "") if words is None else words)


def _cut(runs: list[tuple[float, float]], nodes: list[Slice]) -> Iterable[Run]:
    """Give each run, by start and length, the layers inside of it."""
    nodes.sort(key=lambda node: node.start_ms or 0.0)
    at = 0
    for start, length in sorted(runs):
        inside = []
        while at < len(nodes) and (nodes[at].start_ms or 0.0) < start + length:
            inside.append(nodes[at])
            at += 1
        inside = [node for node in inside if (node.start_ms or 0.0) >= start]
        yield Run(tuple(inside), length, start)
