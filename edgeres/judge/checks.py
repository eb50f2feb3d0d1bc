"""Checks for known faults in answers, images, graphs and files, even where no accuracy is lost yet.

A gate shows that something is lost; a check shows what is wrong, and has no limit to set. A check that cannot be made
is ``unsure``, gives the reason, and does not fail the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeres.data.pixels import Pixels
from edgeres.graph.forms import FLOAT
from edgeres.judge.corruptions import corruption_rows, judge_corruptions
from edgeres.records import EngineRecord, LeftOut, Outcome
from edgeres.verify.accuracy import Comparison
from edgeres.verify.answers import REFERENCE
from edgeres.verify.device import DeviceRun, EngineSample, FrameSample
from edgeres.verify.layer_noise import LayerNoise
from edgeres.verify.statistics import blind_tail, halfway_tail

# Levels: of a network that does not see the images and is taken for one that does, and the reverse for one half-way
# from chance to 100 %.
BLIND, HALFWAY = 1e-3, 0.025
LOW = 0.25  # share of the way from chance to 100 %; below it FP32's top-1 is warned of
MIN_IMAGES = 5  # of a class; with fewer, the majority of its answers means nothing
MIN_SHIFTED, MIN_MOVED = 3, 5  # classes with another answer: all by the same step, or each by its own
LISTED = 20  # names of a message
DIFFERENT, SAME = 4.0, 2.0  # standard errors: means further apart are different, means less apart may be the same
# Difference of the shares of zeros after a ReLU, measured for networks on signs and CIFAR-10 with 16 to 512 images:
# 0.01 to 0.05 for other images with the same preprocessing, even if all are of one class; 0.05 to 0.24 for another mean
# and std; 0.35 and more for pixels of 0 to 255 in place of 0 to 1.
MAX_ZEROS_DIFFERENCE = 0.08
# int8 codes that fit have an SQNR of 25 dB and more; at 10 dB a tenth of the signal power is lost in one tensor.
MIN_OWN_DB = 10.0


@dataclass(frozen=True)
class Check:
    """A check with its outcome.

    Attributes:
        name: the word for ``--allow``.
        title: what was checked, for messages.
        warns: whether the reason is told although the check did not fail.
    """

    name: str
    title: str
    outcome: Outcome
    reason: str
    warns: bool = False


@dataclass(frozen=True)
class Evidence:
    """The input of the checks; None or empty where something was not measured.

    Attributes:
        labels: class names.
        calibration: mean colours of the calibration images.
        layer_noise: by graph; ``no_layer_noise`` says why there is none.
        baseline: the section ``baseline`` of the report.
        engines: engines in the manifest.
        files: SHA-256 by path, now.
        left_out: targets that failed when the bundle was built.
        earlier_files: SHA-256 by path when the bundle was built, and in the baseline.
    """

    labels: tuple[str, ...]
    comparison: Comparison | None = None
    calibration: Pixels | None = None
    layer_noise: Mapping[str, LayerNoise] = field(default_factory=dict)
    no_layer_noise: str = "noise was not measured layer by layer in this run"
    baseline: Mapping[str, Any] | None = None
    engines: Sequence[EngineRecord] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    left_out: Sequence[LeftOut] = ()
    earlier_files: Sequence[Mapping[str, str]] = ()


Finding = tuple[Outcome, str] | tuple[Outcome, str, bool]  # the outcome, the reason, and whether it warns


def check(
    evidence: Evidence, checks: Mapping[str, tuple[str, Callable[[Evidence], Finding]]] | None = None
) -> list[Check]:
    """Make these checks, given as title and function by name; None: all of :data:`CHECKS`."""
    chosen = CHECKS if checks is None else checks
    return [Check(name, title, *make(evidence)) for name, (title, make) in chosen.items()]


def _fp32(e: Evidence) -> Finding:
    """Fails where the answers of FP32 itself have nothing to do with the images; warns where that cannot be told."""
    c = e.comparison
    if c is None or not c.table.labelled:
        return "unsure", "there are no labels"
    table, known = c.table, c.table.labels >= 0
    sizes, total, right = table.class_sizes, table.labelled, int(table.right(REFERENCE).sum())
    answers = np.bincount(table.answers[REFERENCE][known], minlength=table.num_classes)
    told = f"FP32 is right on {right:,} of {total:,} images ({100 * right / total:.2f} %)"
    largest = int(sizes.argmax())
    if sizes[largest] == total:
        return (
            "unsure",
            f"{told}, but all are {e.labels[largest]}, so one answer for all may be right: add others",
            True,
        )
    chance = float((answers * sizes).sum()) / total**2
    p = blind_tail(right, answers, sizes)
    versus = f"as many of each answer, dealt out blindly, would be right on {100 * chance:.2f} %"
    if p >= BLIND:
        if halfway_tail(right, answers, sizes) < HALFWAY:
            return "failed", f"{told}; {versus} (p = {p:.2g}): {_look_first(e)}"
        return "unsure", f"{told}; {versus}: these images are too few to tell (p = {p:.2g})", True
    if right <= sizes[largest]:
        always = (
            f"the answer {e.labels[largest]} for all of them would be right on {100 * sizes[largest] / total:.2f} %"
        )
        return "unsure", f"{told}, but {always}", True
    if (right / total - chance) / (1 - chance) < LOW:
        return "unsure", f"{told}, little more than chance; {versus}: {_look_first(e)}", True
    return "passed", f"{told}; {versus} (p = {p:.1g})"


def _look_first(e: Evidence) -> str:
    """What to look at first where FP32 does not see the images."""
    c = e.comparison
    if _moved(e):
        return "it tells the classes apart, but their order is another one: see the check of labels"
    if c is not None and c.better_input is not None:
        options = f" ({c.better_input.options})" if c.better_input.options else ""
        return f"it is right on far more with {c.better_input.way}{options}"
    if c is not None and c.tried:
        what = "mean, std, pixel scale, channel order, input size and crop"
        return f"{len(c.tried)} others of {what} were tried and none is better, so look at the labels and the weights"
    return "look at input size, mean and std, pixel scale, channel order, order of the labels, and the weights"


def _labels(e: Evidence) -> Finding:
    """Fails where FP32 puts most images of some classes into each other in a cycle: then the labels are wrong.

    And where it puts most images of most classes into another class each: then their order is.
    """
    c = e.comparison
    if c is None or not c.table.labelled:
        return "unsure", "there are no labels"
    if moved := _moved(e):
        return "failed", _in_another_order(e, moved)
    majority = _majority(e)
    if cycles := _cycles({label: answer for label, answer in majority.items() if answer != label}):
        names = "; ".join(" -> ".join(e.labels[label] for label in (*cycle, cycle[0])) for cycle in cycles[:3])
        more = f" and {len(cycles) - 3} more" if len(cycles) > 3 else ""
        return "failed", f"labels look swapped: FP32 puts most images of each class into the next: {names}{more}"
    if reordered := _reordered(e):
        return "failed", reordered
    return "passed", f"no labels look swapped ({len(majority)} classes checked)"


def _majority(e: Evidence) -> dict[int, int]:
    """The answer that FP32 gives for more than half of the images of a class, for each class that has one."""
    assert e.comparison is not None
    table, majority = e.comparison.table, {}
    for label in np.flatnonzero(table.class_sizes >= MIN_IMAGES).tolist():
        answers = np.bincount(table.answers[REFERENCE][table.labels == label], minlength=table.num_classes)
        if 2 * answers.max() > answers.sum():
            majority[label] = int(answers.argmax())
    return majority


def _moved(e: Evidence) -> dict[int, int]:
    """The answer to each class, where most classes have an answer of their own that is another class; else {}."""
    if e.comparison is None or not e.comparison.table.labelled:
        return {}
    majority = _majority(e)
    judged = int((e.comparison.table.class_sizes >= MIN_IMAGES).sum())
    moved = [label for label, answer in majority.items() if label != answer]
    own = len(set(majority.values())) == len(majority)
    least = MIN_SHIFTED if len(_steps(majority)) == 1 else MIN_MOVED
    return majority if own and len(moved) >= least and 2 * len(moved) > judged else {}


def _steps(majority: Mapping[int, int]) -> set[int]:
    return {answer - label for label, answer in majority.items()}


def _in_another_order(e: Evidence, majority: Mapping[int, int]) -> str:
    """The order of names that fits the answers, or the number that labels are off by."""
    moved = sum(label != answer for label, answer in majority.items())
    told = f"FP32 puts most images of {moved} of {len(majority)} classes into another one, each into one of its own"
    if len(steps := _steps(majority)) == 1:
        off = f"{abs(step := steps.pop())} too {'low' if step > 0 else 'high'}"
        return f"labels are {off}: {told}; they count from 0, as the outputs do"
    names = {answer: e.labels[label] for label, answer in majority.items()}
    order = ", ".join(names.get(output, "?") for output in range(min(len(e.labels), LISTED)))
    more = f" and {len(e.labels) - LISTED} more" if len(e.labels) > LISTED else ""
    hint = f"build with --labels FILE, one name a line: {order}{more}"
    return f"labels are in another order than the outputs: {told}; {hint}"


def _cycles(answers: Mapping[int, int]) -> list[list[int]]:
    """The cycles in a map of classes to classes."""
    cycles, seen = [], set[int]()
    for start in answers:
        path: list[int] = []
        label: int | None = start
        while label is not None and label not in seen and label in answers:
            seen.add(label)
            path.append(label)
            label = answers[label]
        if label in path:
            cycles.append(path[path.index(label) :])
    return cycles


def _reordered(e: Evidence) -> str | None:
    """A message where the labels are in another order than in the baseline."""
    changed = {change["what"]: change for change in (e.baseline or {}).get("changed", ())}
    if "labels" not in changed:
        return None
    before, after = changed["labels"]["before"] or [], changed["labels"]["after"] or []
    if sorted(before) != sorted(after):
        return None  # a model with other classes
    moved = [name for name, other in zip(before, after, strict=True) if name != other]
    return f"{len(moved)} labels are in another order than in the baseline: {', '.join(moved[:4])}"


def _classes(e: Evidence) -> Finding:
    if e.baseline is None:
        return "unsure", "there is no baseline"
    if missing := e.baseline["missing_classes"]:
        names = ", ".join(f"{row['name']} ({row['before']} in the baseline)" for row in missing[:4])
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        return "failed", f"no validation images of {names}{more}"
    return "passed", "no class of the baseline's images is missing"


def _calibration(e: Evidence) -> Finding:
    """Fails where red and blue are exchanged: red minus blue of calibration and validation have opposite signs."""
    calibration, validation = e.calibration, e.comparison.pixels if e.comparison else None
    if calibration is None or validation is None:
        return "unsure", "the mean colours of the calibration images were not recorded"
    error = math.hypot(calibration.error, validation.error) or 1e-9
    straight, swapped = (calibration.red_minus_blue - sign * validation.red_minus_blue for sign in (1, -1))
    values = f"{calibration.red_minus_blue:.1f} in calibration and {validation.red_minus_blue:.1f} in validation"
    if abs(straight) > DIFFERENT * error and abs(swapped) < SAME * error:
        return "failed", f"calibration images look like BGR: red minus blue is {values} (standard error {error:.1f})"
    return "passed", f"red and blue are not exchanged: red minus blue is {values}"


def _preprocessing(e: Evidence) -> Finding:
    """Fails where another preprocessing fits better, or where it differs from calibration's or the baseline's."""
    c = e.comparison
    if c is not None and (better := c.better_input) is not None:
        counts = f"FP32 is right on {better.right} of {better.images} images, but on {better.right_otherwise} with"
        build = f"build again with {better.options}" if better.options else "build again so"
        return "failed", f"{counts} {better.way} (p = {better.p:.1g}), so it was trained with that: {build}"
    shares = [share for graph in e.layer_noise.values() for share in graph.zeros]
    worst = max(shares, key=lambda share: share.difference, default=None)
    if worst is not None and worst.difference > MAX_ZEROS_DIFFERENCE:
        zeros = f"{100 * worst.calibration:.0f} % zeros in calibration and {100 * worst.validation:.0f} % in validation"
        why = "mean, std or pixel scale differ, or the images are of another kind"
        return "failed", f"{worst.tensor} has {zeros}: {why}"
    names = (change["what"] for change in (e.baseline or {}).get("changed", ()))
    changed = [name for name in names if name == "option input" or name.startswith("preprocessing ")]
    fp32 = (e.baseline or {}).get("fp32")
    if changed and fp32 and fp32["drop_pp_ci95"][0] > 0:
        lost = f"{', '.join(changed)} changed since the baseline, and FP32 lost {fp32['drop_pp']:.3g} pp"
        return "failed", f"{lost}: mean, std or pixel scale are not those of training"
    if c is None and worst is None:
        return "unsure", "nothing was compared, and calibration recorded no shares of zeros"
    return "passed", "no other mean, std, pixel scale, channel order or size fits better" if worst is None else (
        f"shares of zeros after each ReLU differ by at most {100 * worst.difference:.1f} points from calibration's"
    )


def _weights(e: Evidence) -> Finding:
    if not e.layer_noise:
        return "unsure", e.no_layer_noise
    for name, graph in e.layer_noise.items():
        if graph.per_tensor:
            layers = f"{len(graph.per_tensor)} of {graph.weights} layers of the {name} graph"
            return "failed", f"{layers} have one weight scale for all channels: {', '.join(graph.per_tensor[:3])}"
    return "passed", "all weights have one scale per output channel"


def _ranges(e: Evidence) -> Finding:
    if not e.layer_noise:
        return "unsure", e.no_layer_noise
    fits = [(fit, name) for name, graph in e.layer_noise.items() for fit in graph.ranges]
    poor = sorted((pair for pair in fits if pair[0].own_db < MIN_OWN_DB), key=lambda pair: pair[0].own_db)
    if poor:
        fit, name = poor[0]
        more = f", and {len(poor) - 1} more" if len(poor) > 1 else ""
        covers = f"({fit.own_db:.1f} dB): its codes cover {100 * fit.covered:.0f} % of the range of its values"
        return "failed", f"the scale of {fit.tensor} in the {name} graph does not fit {covers}{more}"
    if not fits:
        return "passed", "no activation is quantized"
    worst, name = min(fits, key=lambda pair: pair[0].own_db)
    return "passed", f"all scales fit their activations; the lowest SQNR is {worst.own_db:.1f} dB in the {name} graph"


def _engines(e: Evidence) -> Finding:
    """Fails where an engine is older than its graph: the graph changed since ``earlier_files``, the engine did not."""
    built = [engine for engine in e.engines if engine.file]
    graph = e.files.get(FLOAT.file)
    for earlier in e.earlier_files:
        if earlier.get(FLOAT.file) in (None, graph):
            continue
        old = [engine.file for engine in built if engine.file and earlier.get(engine.file) == e.files.get(engine.file)]
        if old:
            return "failed", f"{old[0]} is out of date: its graph was replaced later; run edgeres engine"
    return "passed", f"no engine is older than its graph ({len(built)} checked)" if built else "there is no engine"


def _engine(e: Evidence) -> Finding:
    """Fails where an engine's logits are not those of its graph: then it does not compute what was calibrated."""
    device = e.comparison.device if e.comparison else DeviceRun()
    told = {name: (one.agrees, _beside(name, one)) for name, one in device.samples.items()}
    told |= {name: (one.agrees, _framed(name, one)) for name, one in device.frames.items()}
    wrong = [words for agrees, words in told.values() if not agrees]
    if wrong:
        return "failed", f"{'; '.join(wrong)}: it computes something else; build it again with edgeres engine"
    if not device.samples and not any(one.runner for one in device.frames.values()):
        some = any(one.file for one in e.engines)
        first = "no engine runs on this machine" if some else "there is no engine"
        return "unsure", "; ".join((first, *(words for _, words in told.values())))
    return "passed", "; ".join(words for _, words in told.values())


def _beside(name: str, sample: EngineSample) -> str:
    same = f"same class on {sample.same} of {sample.images} images"
    figures = f"{sample.sqnr_db:.1f} dB (at least {sample.limit_db:.1f}), {same}"
    if math.isinf(sample.sqnr_db):
        figures = f"equal on all {sample.images} images"
    part = "" if sample.agrees else f", furthest on {', '.join(sample.parted)}"
    return f"{name} against its graph ({sample.graph}): {figures}{part}"


def _framed(name: str, sample: FrameSample) -> str:
    figures = f"{sample.sqnr_db:.1f} dB (at least {sample.limit_db:.1f})"
    figures = "equal logits" if math.isinf(sample.sqnr_db) else figures
    part = f", another class for {', '.join(sample.parted)}" if sample.parted else ""
    pixels = ""
    if sample.equal_percent is not None:
        pixels = (
            f", {sample.equal_percent:.4g} % of the prepared bytes equal, {sample.worst_levels} levels at most apart"
        )
    name = name if sample.runner else f"{name}, its graph on ONNX Runtime,"
    held = f"same class on {sample.same} of {sample.images} frames"
    return f"{name} against frames prepared by the contract: {figures}, {held}{pixels}{part}"


def _targets(e: Evidence) -> Finding:
    """Fails where a graph or an engine of a target that the user named could not be written."""
    if not e.left_out:
        return "passed", "no target was left out"
    reasons = "; ".join(f"{left.target}: {left.why}" for left in e.left_out)
    return "failed" if any(left.asked for left in e.left_out) else "unsure", reasons


def _corruptions(e: Evidence) -> Finding:
    """Fails where INT8 loses clearly more than FP32 under a corruption; FP32's own loss is shown, not judged."""
    return judge_corruptions(corruption_rows(e.comparison.corrupted if e.comparison else ()))


CHECKS: Mapping[str, tuple[str, Callable[[Evidence], Finding]]] = {
    "labels": ("labels in order", _labels),
    "fp32": ("FP32 sees the images", _fp32),
    "classes": ("classes with images", _classes),
    "calibration": ("calibration images", _calibration),
    "preprocessing": ("preprocessing of images", _preprocessing),
    "weights": ("scales of weights", _weights),
    "corruptions": ("corrupted images", _corruptions),
    "ranges": ("scales of activations", _ranges),
    "engines": ("engines up to date", _engines),
    "engine": ("engines compute what their graphs say", _engine),
    "targets": ("graphs and engines of all targets", _targets),
}
