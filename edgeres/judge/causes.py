"""Explains why two builds differ, from the recorded facts of both; facts that change most of a build come first."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from typing import Any

from edgeres.engine.engines import EngineChoice
from edgeres.judge.document import Json

Changed = Mapping[str, tuple[Any, Any]]

# Options for engines and for reading images; they do not change the codes of a graph.
_NO_CODES = frozenset({f.name for f in fields(EngineChoice)} | {"targets", "on_unreadable", "name", "batch"})
_IMAGES = ("calibration_size", "seed")
_SHOWN = 4


def causes(differences: Json) -> list[str]:
    """The causes of the differences, the likeliest first; never empty.

    Args:
        differences: what :func:`edgeres.judge.differences.compare_builds` found.
    """
    changed = {row["what"]: (row["before"], row["after"]) for row in differences["changed"]}
    built = [*_network(changed), *_input(changed), *_calibration(changed), *_options(changed), *_labels(changed)]
    graphs = [name for name in differences["files"]["changed"] if name.endswith(".onnx")]
    if graphs and not built:
        built = [*_exporter(changed), f"{' and '.join(graphs)} changed, although the recorded facts are the same"]
    if built:
        effect = _effect(differences)
        built[0] = f"{built[0]}: {effect}" if effect else built[0]
    elif differences["files"]["same"]:
        built = ["the builds are the same: all graphs are equal byte by byte"]
    else:
        built = ["the recorded facts of the builds are the same"]
    return [*built, *_measured(differences, changed)]


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
    """Differences of the preprocessing; where an option was given, its value is shown instead of the result."""
    pairs = _under("preprocessing ", changed)
    if "option input" in changed:
        before, after = (side or {} for side in changed["option input"])
        given = {name: (before.get(name), after.get(name)) for name in dict.fromkeys((*before, *after))}
        others = {name: pair for name, pair in pairs.items() if name not in given}
        pairs = {name: pair for name, pair in given.items() if pair[0] != pair[1]} | others
    if pairs:
        yield f"the preprocessing differs ({_arrows(pairs)})"


def _calibration(changed: Changed) -> Iterator[str]:
    if "calibration images" not in changed:
        return
    details = [f"digest {_digests(changed['calibration images'])}"]
    details += [f"{name} {_arrow(changed[f'option {name}'])}" for name in _IMAGES if f"option {name}" in changed]
    yield f"the calibration images differ ({', '.join(details)})"


def _options(changed: Changed) -> Iterator[str]:
    options = _under("option ", changed, without={"input", *_IMAGES, *_NO_CODES})
    if options:
        yield f"the options differ ({_arrows(options)})"


def _exporter(changed: Changed) -> Iterator[str]:
    versions = _under("built with ", changed)
    if versions:
        yield f"built with other versions ({_arrows(versions)})"


def _measured(differences: Json, changed: Changed) -> Iterator[str]:
    """Differences of the measurements, which do not depend on the builds."""
    if "validation images" in changed:
        yield "validated on other images, so only the loss of INT8 against FP32 is compared"
    elif differences["accuracy"]["missing_classes"]:
        yield f"the second has no images of {_some(differences['accuracy']['missing_classes'])}"
    latency = differences["latency"]
    sides = (latency["before"], latency["after"])
    if sides[0]["machine"] != sides[1]["machine"]:
        yield f"timed on different machines ({_arrow((sides[0]['machine'], sides[1]['machine']))})"
    busy = [name for name, side in zip(("first", "second"), sides, strict=True) if side["crowded"]]
    if busy:
        yield f"the machine was busy when latency of the {' and the '.join(busy)} was measured"
    versions = _under("version of ", changed, without={"processor", "system"})
    if versions:
        yield f"measured with other versions ({_arrows(versions)})"


def _effect(differences: Json) -> str:
    """Changes of scales, in the graph with most of them, and of Q/DQ pairs."""
    effects = []
    if differences["scales"]:
        style, scales = max(differences["scales"].items(), key=lambda pair: int(pair[1]["changed"]))
        count = f"{scales['changed']} of {scales['tensors']}" if scales["changed"] else "no"
        kind = "scale" if scales["of"] == "graph" else "range"
        plural = "s" if scales["changed"] and scales["tensors"] > 1 else ""
        effects.append(f"{count} {kind}{plural} of the {style} graph changed by more than 10 %")
    for style, places in (differences["placements"] or {}).items():
        counts = [f"{len(places[key])} {key}" for key in ("gained", "lost") if places[key]]
        if counts:
            effects.append(f"{' and '.join(counts)} Q/DQ pairs in the {style} graph")
    return ", ".join(effects)


def _under(prefix: str, changed: Changed, *, without: Collection[str] = ()) -> Changed:
    """The changes of the facts with this prefix, by the rest of their name."""
    found = {what.removeprefix(prefix): pair for what, pair in changed.items() if what.startswith(prefix)}
    return {name: pair for name, pair in found.items() if name not in without}


def _digests(pair: tuple[Any, Any]) -> str:
    return " to ".join(str(value)[:8] if value else "none" for value in pair)


def _arrows(pairs: Changed) -> str:
    return _some([f"{name} {_arrow(pair)}" for name, pair in pairs.items()])


def _arrow(pair: tuple[Any, Any]) -> str:
    return " to ".join(map(_plain, pair))


def _plain(value: Any) -> str:
    text = "default" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _some(words: list[str]) -> str:
    more = len(words) - _SHOWN
    return ", ".join(words[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
