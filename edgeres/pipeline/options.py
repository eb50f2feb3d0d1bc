"""The options of each step as records, and their conversion from keyword arguments and to JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from edgeres.data.choose import DataChoice
from edgeres.data.loader import OnUnreadable
from edgeres.device.cpu import has_vnni
from edgeres.engine.engines import EngineChoice
from edgeres.errors import UsageError
from edgeres.judge.asked import GateChoice
from edgeres.judge.gates import LIMITS, Limits, SpeedupLimits
from edgeres.pipeline.input_choice import FitChoice, InputChoice
from edgeres.pipeline.take import ModelChoice
from edgeres.records import CODES, METHODS, Codes, Method
from edgeres.refine.choice import EFFORTS, RESIDUALS, RefineChoice
from edgeres.signing import Anyone
from edgeres.task import brought_gates
from edgeres.words import shown_argument

_WORDS = {
    "method": METHODS,
    "codes": CODES,
    "effort": EFFORTS,
    "residual": RESIDUALS,
    "on_unreadable": ("fail", "skip"),
    "channel_order": ("RGB", "BGR"),
}
# Options that do not change the files of a bundle, or that other facts describe.
_NO_FACTS = {
    *("model", "weights", "labels", "output", "force", "validation", "validation_size", "calibration"),
    "validation_labels",
    *("scheduler", "thumbnails", "limits", "baseline", "any_machine", "corruptions", "on_unsure", "allow", "config"),
    *LIMITS,
    *brought_gates(),
}


@dataclass(frozen=True)
class RangeOptions:
    """How ranges are measured.

    Attributes:
        method: how a range is chosen from the observed values.
        codes: int8 codes of activations after a ReLU in the graph for TensorRT: the non-negative half, all 256 where
            that takes no Pad, or all 256.
        calibration_file: a calibration.json whose ranges are used instead of measuring.
        batch: images per calibration step; it changes ranges only by rounding in the forward pass.
        on_unreadable: ``skip`` leaves out images that cannot be decoded, and names them in the report.
    """

    method: Method = "mse"
    codes: Codes = "free"
    calibration_file: Path | None = None
    batch: int = 8
    on_unreadable: OnUnreadable = "fail"


@dataclass(frozen=True)
class BuildOptions:
    """All options of a build.

    Attributes:
        gates: how the result is judged.
        targets: names listed by ``edgeres targets``; empty: cpu, and rtx and tensorrt where this machine can build.
        thumbnails: whether the report shows images that INT8 gets wrong.
        output: directory of the bundle; None: ``<model>.edgeres`` in the working directory.
        force: replace an older bundle although it holds files that edgeres did not write, which are lost then.
    """

    model: ModelChoice
    data: DataChoice = DataChoice()
    ranges: RangeOptions = RangeOptions()
    refine: RefineChoice = RefineChoice()
    engines: EngineChoice = EngineChoice()
    gates: GateChoice = GateChoice()
    targets: tuple[str, ...] = ()
    thumbnails: bool = True
    output: Path | None = None
    force: bool = False

    @staticmethod
    def of(model: Any, given: Mapping[str, Any]) -> BuildOptions:
        """Sort keyword arguments into the records that hold them.

        Args:
            model: the user's choice of a model, or complete options.

        Raises:
            UsageError: an option or one of its words does not exist.
        """
        left = dict(given)
        for name, allowed in _WORDS.items():
            if left.get(name, allowed[0]) not in allowed:
                raise UsageError(f"no such {name}: {left[name]!r}", where="build", hint=f"one of {', '.join(allowed)}")

        def pick(record: type) -> dict[str, Any]:
            return {f.name: left.pop(f.name) for f in fields(record) if f.name in left}

        if isinstance(model, BuildOptions):
            options = model
        else:
            own = pick(BuildOptions)
            choice = ModelChoice(
                model, **{"input": InputChoice.of({**pick(InputChoice), **pick(FitChoice)}), **pick(ModelChoice)}
            )
            records = {"data": DataChoice, "ranges": RangeOptions, "refine": RefineChoice, "engines": EngineChoice}
            parts: dict[str, Any] = {name: record(**pick(record)) for name, record in records.items()}
            gates = pick(GateChoice)
            if limits := {name: left.pop(name) for name in LIMITS if name in left}:
                gates["limits"] = Limits.of(**limits)
            if brought := {name: left.pop(name) for name in brought_gates() if name in left}:
                gates["task_limits"] = {**gates.get("task_limits", {}), **brought}
            options = BuildOptions(choice, **{**parts, "gates": GateChoice(**gates), **own})
        if left:
            raise UsageError(f"no such option: {', '.join(sorted(left))}", where="build")
        return options

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for the report."""
        options: dict[str, Any] = json_value({**flat(self), "weight_bits_cpu": weight_bits()})
        return options


def facts_among(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that decide how a bundle is made."""
    return {name: value for name, value in options.items() if name not in _NO_FACTS}


@dataclass(frozen=True)
class VerifyOptions:
    """Options of a verification, without bundle and images.

    Attributes:
        scheduler: address of a Dask scheduler whose workers run the graphs on the images; None: this machine does.
        thumbnails: whether the report shows images that INT8 gets wrong.
        command: command line that reproduces the verification, for the report.
        trust: a file of public keys, one of which must have signed the bundle; None: no signature is asked for;
            ``ANYONE``: nor for code for the CPU in engines.
    """

    gates: GateChoice = GateChoice()
    on_unreadable: OnUnreadable = "fail"
    scheduler: str | None = None
    thumbnails: bool = True
    command: str = ""
    trust: Path | Anyone | None = None


_PARTS = (DataChoice, RangeOptions, RefineChoice, EngineChoice, GateChoice, Limits, SpeedupLimits, ModelChoice)


def flat(options: Any) -> dict[str, Any]:
    """The fields of a record of options and of the records in it, by name; ``config`` has a part of its own."""
    by_name: dict[str, Any] = {}
    for name, value in vars(options).items():
        if name == "task_limits":
            by_name |= value
        elif isinstance(value, _PARTS):
            by_name |= flat(value)
        elif name != "config" and not (name == "task" and value is None):
            by_name[name] = value
    return by_name


def json_value(value: Any) -> Any:
    """An option as plain JSON types: paths become text, records objects, a module the name of its class.

    Paths are relative to the working directory, or names alone; URLs have no query.
    """
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, str | Path):
        return shown_argument(str(value))
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, Mapping):
        return {name: json_value(item) for name, item in value.items()}
    return json_value(vars(value)) if isinstance(value, InputChoice | FitChoice) else type(value).__name__


def weight_bits() -> int:
    """Bits of weights for this CPU: 7 without VNNI, where two products are summed in 16 bits and 8 could saturate."""
    return 7 if has_vnni() is False else 8
