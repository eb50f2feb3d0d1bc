"""The user's choices that decide the verdict: limits, allowed checks and the baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from edgeres.errors import UsageError
from edgeres.judge.baseline import Baseline, read_baseline
from edgeres.judge.checks import CHECKS
from edgeres.judge.gates import Limits
from edgeres.words import did_you_mean

OnUnsure = Literal["warn", "fail"]


@dataclass(frozen=True)
class Weaker:
    """A key of a configuration that judges more mildly than the default does.

    Attributes:
        key: as the file spells it: the name of a limit, or ``allow``.
        value: the limit, None where it is switched off; or the check that may fail.
        default: the limit without the key; None for ``allow``.
    """

    key: str
    value: float | str | None
    default: float | None = None


@dataclass(frozen=True)
class ConfigFile:
    """The file that the choices came from which the command line did not make.

    Attributes:
        file: its path.
        weaker: its keys in effect that judge more mildly than the defaults.
    """

    file: Path
    weaker: tuple[Weaker, ...] = ()


@dataclass(frozen=True)
class GateChoice:
    """How a run is judged.

    Attributes:
        limits: one gate for each limit that is set.
        on_unsure: whether an unsure gate fails the run.
        allow: names in :data:`edgeres.judge.checks.CHECKS`; these checks are reported but do not fail the run.
        baseline: file of an accepted build to compare with, written by ``edgeres baseline accept``.
        any_machine: compare latency with a baseline of another machine, too.
        corruptions: also compare INT8 with FP32 on darkened, blurred, noised, compressed and rotated images.
        task_limits: limits of the gates that the network's task brings, by option; None sets no gate, and one that is
            missing has the task's default.
        config: where the command line found choices that the user did not write on it; None: in no file.
    """

    limits: Limits = Limits()
    on_unsure: OnUnsure = "warn"
    allow: tuple[str, ...] = ()
    baseline: Path | None = None
    any_machine: bool = False
    corruptions: bool = False
    task_limits: Mapping[str, float | None] = field(default_factory=dict)
    config: ConfigFile | None = None

    def __post_init__(self) -> None:
        """Raise UsageError where ``on_unsure`` or a name in ``allow`` does not exist."""
        if self.on_unsure not in get_args(OnUnsure):
            raise UsageError(f"no such on_unsure: {self.on_unsure!r}", hint=f"one of {', '.join(get_args(OnUnsure))}")
        for option, limit in self.task_limits.items():
            if limit is not None and not (math.isfinite(limit) and limit >= 0):
                raise UsageError(f"{limit:g} is no limit", where=option, hint="give a number from 0 on")
        for name in self.allow:
            if name not in CHECKS:
                hint = did_you_mean(name, CHECKS) or f"choose one of {', '.join(CHECKS)}"
                raise UsageError(f"there is no check {name!r} to allow", hint=hint)

    def read_baseline(self) -> Baseline | None:
        """The baseline, None where none was given; InputError where it cannot be read."""
        return read_baseline(self.baseline, any_machine=self.any_machine) if self.baseline else None


@dataclass(frozen=True)
class Asked:
    """What the user asked for.

    Attributes:
        command: one line that reproduces the run.
        options: all options with their values, plain JSON types.
        baseline: the content of the file ``gates.baseline``.
    """

    command: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    gates: GateChoice = GateChoice()
    baseline: Baseline | None = None
