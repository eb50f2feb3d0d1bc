"""What each step can be told, as records, and how keyword arguments become them."""

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
from edgeres.judge.gates import LIMITS, Limits
from edgeres.pipeline.take import InputChoice, ModelChoice
from edgeres.records import CODES, METHODS, Codes, Method
from edgeres.refine.choice import EFFORTS, RESIDUALS, RefineChoice

_WORDS = {
    "method": METHODS,
    "codes": CODES,
    "effort": EFFORTS,
    "residual": RESIDUALS,
    "on_unreadable": ("fail", "skip"),
    "channel_order": ("RGB", "BGR"),
}
# What decides how a run is judged, or which images it measures on, says nothing about how a bundle was made.
_NO_FACTS = frozenset(
    {
        *("model", "weights", "labels", "output", "validation", "validation_size", "calibration"),
        *("scheduler", "thumbnails", "limits", "baseline", "any_machine", "on_unsure", "allow"),
        *LIMITS,
    }
)


@dataclass(frozen=True)
class RangeOptions:
    """How ranges are found.

    Attributes:
        method: how a range is chosen from what was observed.
        codes: in the graph for TensorRT, of activations behind a ReLU: all 256, or the half that is not negative.
        calibration_file: a calibration.json whose ranges are taken instead of measuring.
        batch: images per calibration step; ranges do not depend on it beyond the rounding of the forward pass.
        on_unreadable: ``skip`` goes on without images that cannot be decoded, and names them in the report.
    """

    method: Method = "mse"
    codes: Codes = "full"
    calibration_file: Path | None = None
    batch: int = 8
    on_unreadable: OnUnreadable = "fail"


@dataclass(frozen=True)
class BuildOptions:
    """Everything that a build can be told.

    Attributes:
        targets: names of ``edgeres targets``; empty: cpu, and each of rtx and tensorrt that this machine can build.
        gates: how the result is judged.
        thumbnails: whether pictures of what INT8 gets wrong go into the report.
        output: of the bundle; None is ``<model>.edgeres`` in the working directory.
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

    @staticmethod
    def of(model: Any, given: Mapping[str, Any]) -> BuildOptions:
        """Sort keyword arguments into the records that hold them.

        Args:
            model: in the user's words, or the whole options.

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
            choice = ModelChoice(model, **{"input": InputChoice(**pick(InputChoice)), **pick(ModelChoice)})
            gates = pick(GateChoice)
            if limits := pick(Limits):
                gates["limits"] = Limits(**limits)
            parts: dict[str, Any] = {
                "data": DataChoice(**pick(DataChoice)),
                "ranges": RangeOptions(**pick(RangeOptions)),
                "refine": RefineChoice(**pick(RefineChoice)),
                "engines": EngineChoice(**pick(EngineChoice)),
                "gates": GateChoice(**gates),
            }
            options = BuildOptions(choice, **{**parts, **own})
        if left:
            raise UsageError(f"no such option: {', '.join(sorted(left))}", where="build")
        return options

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for the report."""
        options: dict[str, Any] = plain({**flat(self), "weight_bits_cpu": weight_bits()})
        return options


def facts_among(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options that decide how a bundle is made."""
    return {name: value for name, value in options.items() if name not in _NO_FACTS}


@dataclass(frozen=True)
class QuantizeOptions:
    """What ``edgeres quantize`` can be told besides model and images."""

    target: str = "tensorrt"
    ranges: RangeOptions = RangeOptions()
    refine: RefineChoice = RefineChoice()


@dataclass(frozen=True)
class VerifyOptions:
    """What a verification can be told besides bundle and images.

    Attributes:
        scheduler: of a Dask cluster that runs the graphs over the images.
        thumbnails: whether pictures of what INT8 gets wrong go into the report.
        command: what the report names as the way to reproduce it.
    """

    gates: GateChoice = GateChoice()
    on_unreadable: OnUnreadable = "fail"
    scheduler: str | None = None
    thumbnails: bool = True
    command: str = ""


_PARTS = (DataChoice, RangeOptions, RefineChoice, EngineChoice, GateChoice, Limits, ModelChoice)


def flat(options: Any) -> dict[str, Any]:
    """The fields of a record of options and of the records in it, by name."""
    found: dict[str, Any] = {}
    for name, value in vars(options).items():
        found |= flat(value) if isinstance(value, _PARTS) else {name: value}
    return found


def plain(value: Any) -> Any:
    """An option as JSON has it: paths as text, records as objects, a module by the name of its class."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return plain(vars(value)) if isinstance(value, InputChoice) else type(value).__name__


def weight_bits() -> int:
    """Of weights for this CPU: without VNNI two products are summed in 16 bits, where 8-bit weights saturate."""
    return 7 if has_vnni() is False else 8
