"""Why two builds differ: what was recorded of their making, ordered by how much of a build depends on it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from edgeres.engine.engines import EngineChoice
from edgeres.judge.document import Json

Changed = Mapping[str, tuple[Any, Any]]

# Options that choose which engines are built or how images are read; they change no code of a graph by themselves.
_NO_CODES = frozenset({f.name for f in fields(EngineChoice)} | {"targets", "on_unreadable", "name", "batch"})
_IMAGES = ("calibration_size", "seed")
_SHOWN = 4


def causes(found: Json) -> list[str]:
    """What explains the differences, the likely cause first; never empty.

    Args:
        found: of :func:`edgeres.judge.differences.compare_builds`.
    """
    changed = {row["what"]: (row["before"], row["after"]) for row in found["changed"]}
    built = [*_network(changed), *_input(changed), *_calibration(changed), *_options(changed), *_labels(changed)]
    graphs = [name for name in found["files"]["changed"] if name.endswith(".onnx")]
    if graphs and not built:
        built = [*_exporter(changed, graphs), f"{_and(graphs)} changed, although nothing recorded of the build did"]
    effect = _effect(found)
    if built:
        told = [f"{built[0]}: {effect}" if effect else built[0], *built[1:]]
    elif found["files"]["same"]:
        told = ["the builds are the same: no graph differs in a byte"]
    else:
        told = ["nothing recorded of the builds differs"]
    return [*told, *_measured(found, changed)]


def _network(changed: Changed) -> Iterator[str]:
    if "weights sha256" in changed:
        yield f"the weights differ ({_digests(changed['weights sha256'])})"
    elif "model" in changed:
        yield f"the networks differ ({_arrow(changed['model'])})"


def _labels(changed: Changed) -> Iterator[str]:
    if "labels" in changed:
        before, after = (list(side or ()) for side in changed["labels"])
        same = sorted(before) == sorted(after)
        yield "the order of the labels differs" if same else f"the classes differ ({len(before)} to {len(after)})"


def _input(changed: Changed) -> Iterator[str]:
    """How pixels become the network's input."""
    told = [f"{what.removeprefix('preprocessing ')} {_arrow(pair)}" for what, pair in _under("preprocessing ", changed)]
    if "option input" in changed:
        before, after = (side or {} for side in changed["option input"])
        names = dict.fromkeys((*before, *after))
        own = [f"{n} {_arrow((before.get(n), after.get(n)))}" for n in names if before.get(n) != after.get(n)]
        told = own + [words for words in told if words.split()[0] not in names]
    if told:
        yield f"the preprocessing differs ({_some(told)})"


def _calibration(changed: Changed) -> Iterator[str]:
    if "calibration images" not in changed:
        return
    told = [f"digest {_digests(changed['calibration images'])}"]
    told += [f"{name} {_arrow(changed[f'option {name}'])}" for name in _IMAGES if f"option {name}" in changed]
    yield f"the calibration images differ ({', '.join(told)})"


def _options(changed: Changed) -> Iterator[str]:
    own = {what.removeprefix("option "): pair for what, pair in _under("option ", changed)}
    told = [f"{name} {_arrow(pair)}" for name, pair in own.items() if name not in {"input", *_IMAGES, *_NO_CODES}]
    if told:
        yield f"the options differ ({_some(told)})"


def _exporter(changed: Changed, graphs: list[str]) -> Iterator[str]:
    versions = [f"{what.removeprefix('built with ')} {_arrow(pair)}" for what, pair in _under("built with ", changed)]
    if versions:
        yield f"built with other versions ({_some(versions)})"


def _measured(found: Json, changed: Changed) -> Iterator[str]:
    """What makes figures differ or hard to compare, whatever was built."""
    if "validation images" in changed:
        yield "validated on other images, so only what INT8 loses against FP32 in each can be compared"
    elif found["accuracy"]["missing_classes"]:
        yield f"no images of {_some(found['accuracy']['missing_classes'])} any more"
    latency = found["latency"]
    sides = (latency["before"], latency["after"])
    if sides[0]["machine"] != sides[1]["machine"]:
        yield f"timed on other machines ({_arrow((sides[0]['machine'], sides[1]['machine']))})"
    crowded = [name for name, side in zip(("first", "second"), sides, strict=True) if side["crowded"]]
    if crowded:
        yield f"latency of the {' and the '.join(crowded)} was taken while others used the machine"
    versions = [
        f"{what.removeprefix('version of ')} {_arrow(pair)}"
        for what, pair in _under("version of ", changed)
        if what not in {"version of processor", "version of system"}
    ]
    if versions:
        yield f"measured with other versions ({_some(versions)})"


def _effect(found: Json) -> str:
    """What became of the codes, of the graph in which most did."""
    told = []
    if found["scales"]:
        style, scales = max(found["scales"].items(), key=lambda pair: int(pair[1]["changed"]))
        count = f"{scales['changed']} of {scales['tensors']}" if scales["changed"] else "no"
        kind = "scale" if scales["of"] == "graph" else "range"
        several = "s" if scales["changed"] != 1 or scales["tensors"] > 1 else ""
        told.append(
            f"{count} {kind}{several if scales['changed'] else ''} of the {style} graph changed by more than 10 %"
        )
    for style, places in (found["placements"] or {}).items():
        moved = [f"{len(places[key])} {key}" for key in ("gained", "lost") if places[key]]
        if moved:
            told.append(f"{' and '.join(moved)} Q/DQ pairs in the {style} graph")
    return ", ".join(told)


def _under(prefix: str, changed: Changed) -> list[tuple[str, tuple[Any, Any]]]:
    return [(what, pair) for what, pair in changed.items() if what.startswith(prefix)]


def _digests(pair: tuple[Any, Any]) -> str:
    return " to ".join(str(value)[:8] if value else "none" for value in pair)


def _arrow(pair: tuple[Any, Any]) -> str:
    return " to ".join(map(_plain, pair))


def _plain(value: Any) -> str:
    text = "default" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _some(told: list[str]) -> str:
    beyond = len(told) - _SHOWN
    return ", ".join(told[:_SHOWN]) + (f" and {beyond} more" if beyond > 0 else "")


def _and(names: list[str]) -> str:
    return " and ".join(names)
