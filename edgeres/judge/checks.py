"""Faults with a name: looked for in answers, images, graphs and files, whether or not any accuracy was lost yet.

A gate says that something is lost; a check says what is wrong, and has no limit to set. One that cannot be made on this
machine is ``unsure`` with the reason, and fails nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeres.data.pixels import Pixels
from edgeres.graph.forms import FLOAT
from edgeres.records import EngineRecord, Outcome
from edgeres.verify.accuracy import Comparison
from edgeres.verify.answers import REFERENCE
from edgeres.verify.layer_noise import LayerNoise

LEAST_IMAGES = 5  # of a class, before the majority of its answers says anything
CERTAIN, LIKELY = 4.0, 2.0  # standard errors: two means that are certainly different, and that may be the same
# Shares of zeros behind a ReLU. Of networks on signs and CIFAR-10, with 16 to 512 images: the same preparation of other
# images is 0.01 to 0.05 apart, also where all are of one class; another mean and std 0.05 to 0.24; pixels of 0 to 255
# in place of 0 to 1 0.35 and more.
ZEROS_APART = 0.08
# int8 codes that fit give 25 dB and more; 10 dB is a tenth of the signal lost in one place.
LEAST_OWN_DB = 10.0


@dataclass(frozen=True)
class Check:
    """What was looked for, and what was found.

    Attributes:
        name: for ``--allow``.
        title: what was looked for, for people.
    """

    name: str
    title: str
    outcome: Outcome
    reason: str


@dataclass(frozen=True)
class Evidence:
    """What the checks look at; None and empty where there is nothing.

    Attributes:
        labels: class names.
        calibration: what the calibration images look like.
        layer_noise: by graph; ``no_layer_noise`` says why there is none.
        baseline: the section of the report.
        engines: of the manifest.
        files: SHA-256 by path, now; ``files_then`` when the bundle was built, and in the baseline.
    """

    labels: tuple[str, ...]
    comparison: Comparison | None = None
    calibration: Pixels | None = None
    layer_noise: Mapping[str, LayerNoise] = field(default_factory=dict)
    no_layer_noise: str = "noise was not measured layer by layer in this run"
    baseline: Mapping[str, Any] | None = None
    engines: Sequence[EngineRecord] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    files_then: Sequence[Mapping[str, str]] = ()


def check(evidence: Evidence) -> list[Check]:
    """Make every check there is."""
    return [Check(name, title, *look(evidence)) for name, (title, look) in CHECKS.items()]


Found = tuple[Outcome, str]


def _labels(e: Evidence) -> Found:
    """Classes whose images FP32 calls by each other's names: the network is right, and the labels are not."""
    c = e.comparison
    if c is None or not c.table.labelled:
        return "unsure", "there are no labels"
    table, mostly = c.table, {}
    for label in np.flatnonzero(table.class_sizes >= LEAST_IMAGES).tolist():
        answers = np.bincount(table.answers[REFERENCE][table.labels == label], minlength=table.num_classes)
        if 2 * answers.max() > answers.sum():
            mostly[label] = int(answers.argmax())
    wrong = {label: answer for label, answer in mostly.items() if answer != label}
    rings = _rings(wrong)
    if rings:
        told = "; ".join(" -> ".join(e.labels[label] for label in (*ring, ring[0])) for ring in rings[:3])
        more = f" and {len(rings) - 3} more" if len(rings) > 3 else ""
        return "failed", f"labels look swapped, FP32 itself calls most images of one by the next: {told}{more}"
    renamed = _renamed(e)
    if renamed:
        return "failed", renamed
    return "passed", f"FP32 calls no class by another's name ({len(mostly)} classes looked at)"


def _rings(wrong: Mapping[int, int]) -> list[list[int]]:
    """Closed circles in a map of each class to another."""
    rings, seen = [], set[int]()
    for start in wrong:
        path: list[int] = []
        label: int | None = start
        while label is not None and label not in seen and label in wrong:
            seen.add(label)
            path.append(label)
            label = wrong[label]
        if label in path:
            rings.append(path[path.index(label) :])
    return rings


def _renamed(e: Evidence) -> str | None:
    changed = {change["what"]: change for change in (e.baseline or {}).get("changed", ())}
    if "labels" not in changed:
        return None
    before, after = changed["labels"]["before"] or [], changed["labels"]["after"] or []
    if sorted(before) != sorted(after):
        return None  # other classes are another model
    moved = [name for name, other in zip(before, after, strict=True) if name != other]
    return f"the order of {len(moved)} labels is not the baseline's: {', '.join(moved[:4])}"


def _classes(e: Evidence) -> Found:
    if e.baseline is None:
        return "unsure", "there is no baseline"
    missing = e.baseline["missing_classes"]
    if missing:
        told = ", ".join(f"{row['name']} ({row['before']} in the baseline)" for row in missing[:4])
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        return "failed", f"no validation images of {told}{more}"
    return "passed", "every class of the baseline's images has images"


def _calibration(e: Evidence) -> Found:
    """Red and blue exchanged: the means of calibration fit validation's only with the channels turned round."""
    then, now = e.calibration, e.comparison.pixels if e.comparison else None
    if then is None or now is None:
        return "unsure", "what the calibration images look like was not recorded"
    error = math.hypot(then.error, now.error) or 1e-9
    straight, turned = (then.red_minus_blue - sign * now.red_minus_blue for sign in (1, -1))
    told = f"red minus blue is {then.red_minus_blue:.1f} there and {now.red_minus_blue:.1f} in validation"
    if abs(straight) > CERTAIN * error and abs(turned) < LIKELY * error:
        return "failed", f"the calibration images look like BGR: {told} (standard error {error:.1f})"
    return "passed", f"calibration and validation agree about red and blue: {told}"


def _preprocessing(e: Evidence) -> Found:
    """Mean, std and scale of pixels: tried otherwise, held against calibration's, and against the baseline's."""
    c = e.comparison
    if c is not None and (better := c.better_input) is not None:
        told = f"FP32 is right on {better.right} of {better.images} images, and on {better.right_otherwise} with"
        return (
            "failed",
            f"{told} {better.way} (p = {better.p:.1g}): mean, std, scale or channel order are not those of training",
        )
    zeros = [one for graph in e.layer_noise.values() for one in graph.zeros]
    worst = max(zeros, key=lambda one: one.difference, default=None)
    if worst is not None and worst.difference > ZEROS_APART:
        share = (
            f"{100 * worst.calibration:.0f} % of {worst.tensor} was zero then and {100 * worst.validation:.0f} % is now"
        )
        why = "another mean, std or scale of pixels, or images of another kind"
        return "failed", f"calibration saw other inputs than validation, {share}: {why}"
    changed = [change["what"] for change in (e.baseline or {}).get("changed", ()) if _is_input(change["what"])]
    fp32 = (e.baseline or {}).get("fp32")
    if changed and fp32 and fp32["drop_pp_ci95"][0] > 0:
        told = f"{', '.join(changed)} changed since the baseline, and FP32 itself lost {fp32['drop_pp']:.3g} pp"
        return "failed", f"{told}: mean, std or scale of pixels are not those of training"
    if c is None and worst is None:
        return "unsure", "nothing was compared, and calibration left no record of what it saw"
    return "passed", "no other mean, std, scale or order of channels fits better" if worst is None else (
        f"calibration and validation agree to {100 * worst.difference:.1f} points of zeros behind every ReLU"
    )


def _is_input(what: str) -> bool:
    return what == "option input" or what.startswith("preprocessing ")


def _weights(e: Evidence) -> Found:
    if not e.layer_noise:
        return "unsure", e.no_layer_noise
    for name, graph in e.layer_noise.items():
        if graph.per_tensor:
            some = ", ".join(graph.per_tensor[:3])
            share = f"{len(graph.per_tensor)} of {graph.weights}"
            return "failed", f"weights of {share} layers of the {name} graph have one scale for all channels: {some}"
    return "passed", "every weight has a scale per output channel"


def _ranges(e: Evidence) -> Found:
    if not e.layer_noise:
        return "unsure", e.no_layer_noise
    fits = [(fit, name) for name, graph in e.layer_noise.items() for fit in graph.ranges]
    poor = sorted((pair for pair in fits if pair[0].own_db < LEAST_OWN_DB), key=lambda pair: pair[0].own_db)
    if poor:
        fit, name = poor[0]
        more = f", and {len(poor) - 1} more" if len(poor) > 1 else ""
        covers = f"({fit.own_db:.1f} dB): its codes cover {100 * fit.covered:.0f} % of what the images put there"
        return "failed", f"the scale of {fit.tensor} in the {name} graph does not fit {covers}{more}"
    if not fits:
        return "passed", "no activation is quantized"
    worst, name = min(fits, key=lambda pair: pair[0].own_db)
    return "passed", f"every scale fits its activations; the least is {worst.own_db:.1f} dB in the {name} graph"


def _engines(e: Evidence) -> Found:
    """An engine that is older than its graph: the same bytes as when the graph was another."""
    built = [engine for engine in e.engines if engine.file]
    graph = e.files.get(FLOAT.file)
    for then in e.files_then:
        if then.get(FLOAT.file) in (None, graph):
            continue
        stale = [engine.file for engine in built if engine.file and then.get(engine.file) == e.files.get(engine.file)]
        if stale:
            return "failed", f"{stale[0]} is stale: its graph was replaced since, and edgeres engine was not run"
    return "passed", f"no engine is older than its graph ({len(built)} looked at)" if built else "there is no engine"


CHECKS: Mapping[str, tuple[str, Callable[[Evidence], Found]]] = {
    "labels": ("labels in order", _labels),
    "classes": ("classes with images", _classes),
    "calibration": ("calibration images", _calibration),
    "preprocessing": ("preprocessing of images", _preprocessing),
    "weights": ("scales of weights", _weights),
    "ranges": ("scales of activations", _ranges),
    "engines": ("engines up to date", _engines),
}
