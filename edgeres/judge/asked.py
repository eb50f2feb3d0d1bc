"""The user's choices that decide the verdict: limits, allowed checks and the baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from edgeres.errors import UsageError
from edgeres.judge.baseline import Baseline, read_baseline
from edgeres.judge.checks import CHECKS
from edgeres.judge.gates import Limits

OnUnsure = Literal["warn", "fail"]


@dataclass(frozen=True)
class GateChoice:
    """How a run is judged.

    Attributes:
        limits: one gate for each limit that is set.
        on_unsure: whether an unsure gate fails the run.
        allow: names in :data:`edgeres.judge.checks.CHECKS`; these checks are reported but do not fail the run.
        baseline: file of an accepted build to compare with, written by ``edgeres baseline accept``.
        any_machine: compare latency with a baseline of another machine, too.
    """

    limits: Limits = Limits()
    on_unsure: OnUnsure = "warn"
    allow: tuple[str, ...] = ()
    baseline: Path | None = None
    any_machine: bool = False

    def __post_init__(self) -> None:
        """Raise UsageError where ``on_unsure`` or a name in ``allow`` does not exist."""
        if self.on_unsure not in get_args(OnUnsure):
            raise UsageError(f"no such on_unsure: {self.on_unsure!r}", hint=f"one of {', '.join(get_args(OnUnsure))}")
        for name in self.allow:
            if name not in CHECKS:
                raise UsageError(f"there is no check {name!r} to allow", hint=f"choose one of {', '.join(CHECKS)}")

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
