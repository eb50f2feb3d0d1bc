"""Runs commands of edgeres in forked processes with limits, and says whether what they did is within the rules.

The rules: exit code 0 to 3; no traceback; an error is one line "edgeres: ..." of at most 500 characters, the last one
on stderr; nothing that a terminal would obey; no more than MEMORY, SECONDS of processor time, and CLOCK seconds by the
clock, which is longer since other processes may have the processor.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MEMORY, SECONDS, CLOCK = 2_000_000_000, 60, 240
_OBEYED = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80[\xa8-\xae\x8e\x8f]|\xe2\x81[\xa6-\xa9]")


@dataclass(frozen=True)
class Ran:
    """What a command did.

    Attributes:
        seconds: of processor time, its children's too.
        clock: seconds from start to end.
        peak: bytes of the command's own process or of the largest of its children.
    """

    code: int
    out: bytes
    err: bytes
    seconds: float
    clock: float
    peak: int

    @property
    def broken(self) -> str:
        """The rule that it broke; "" if none."""
        lines = self.err.decode(errors="replace").strip().splitlines()
        if self.peak > MEMORY:
            return f"memory: {self.peak / 1e9:.1f} GB"
        if self.seconds > SECONDS or self.code == -signal.SIGALRM:
            return f"time: {self.seconds:.0f} s of processor, {self.clock:.0f} s by the clock"
        if self.code < 0:
            return f"ended by signal {-self.code}"
        if b"Traceback" in self.err or self.code not in (0, 1, 2, 3):
            return f"exit code {self.code}: {lines[-1][:120] if lines else ''}"
        if self.code == 3 and not (lines and lines[-1].startswith("edgeres: ") and len(lines[-1]) <= 500):
            return f"no line of its own: {lines[-1][:120] if lines else ''}"
        if found := _OBEYED.search(self.out + self.err):
            return f"control characters: {found[0]!r}"
        return ""


def preload(*, torch: bool = False) -> None:
    """Import what commands import, so that each forked one starts fast."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import click
    import onnx.reference
    import onnxruntime
    import PIL.Image

    import edgeres
    from edgeres.cli import COMMANDS, cli

    assert onnx.reference and onnxruntime and edgeres
    PIL.Image.init()
    for name in COMMANDS:
        cli.get_command(click.Context(cli), name)
    from edgeres.pipeline import build, quantize, verify
    from edgeres.quantize import inspect, losses

    assert build and quantize and verify and inspect and losses
    if torch:
        import torch as package

        from edgeres.zoo import checkpoint

        assert package and checkpoint


def run(arguments: Sequence[object], cwd: Path, *, seconds: int = CLOCK) -> Ran:
    """One command in a forked process."""
    return call(lambda: _main([str(argument) for argument in arguments]), cwd, seconds=seconds)


def call(function: Callable[[], object], cwd: Path, *, seconds: int = CLOCK) -> Ran:
    """A function in a forked process; it ends by SystemExit, or with code 0."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        sys.stdout.flush()
        sys.stderr.flush()
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            _in_child(function, cwd, (out.fileno(), err.fileno()), seconds)
        _, status, used = os.wait4(child, 0)
        took, clock = used.ru_utime + used.ru_stime, time.monotonic() - started
        out.seek(0)
        err.seek(0)
        return Ran(os.waitstatus_to_exitcode(status), out.read(), err.read(), took, clock, used.ru_maxrss * 1024)


def _in_child(function: Callable[[], object], cwd: Path, outputs: tuple[int, int], seconds: int) -> None:
    code = 0
    try:
        os.setpgid(0, 0)
        os.chdir(cwd)
        for target, source in enumerate((os.open(os.devnull, os.O_RDONLY), *outputs)):
            os.dup2(source, target)
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
        resource.setrlimit(resource.RLIMIT_DATA, (4 * MEMORY, 4 * MEMORY))
        signal.alarm(seconds)
        function()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 70
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                code = code or 74
        os._exit(code)


def _main(arguments: list[str]) -> None:
    from edgeres.cli import main

    sys.argv = ["edgeres", *arguments]
    main()


@dataclass
class Tally:
    """Inputs tried and broken, by kind."""

    tried: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    broken: dict[str, list[str]] = field(default_factory=dict)
    slowest: dict[str, float] = field(default_factory=dict)
    largest: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, ran: Ran, what: object) -> bool:
        """Enter a run; returns whether it is within the rules."""
        self.tried[kind] += 1
        self.refused[kind] += ran.code != 0
        self.slowest[kind] = max(self.slowest.get(kind, 0), ran.seconds)
        self.largest[kind] = max(self.largest.get(kind, 0), ran.peak)
        if ran.broken:
            self.broken.setdefault(kind, []).append(f"{what}: {ran.broken}")
        return not ran.broken

    def to_json(self) -> str:
        """All figures by kind; seconds and bytes."""
        names = ("tried", "refused", "slowest", "largest")
        kinds = {kind: {name: getattr(self, name).get(kind, 0) for name in names} for kind in sorted(self.tried)}
        return json.dumps({"kinds": kinds, "broken": self.broken}, indent=1)

    def table(self) -> str:
        """A Markdown table."""
        lines = ["| input | tried | refused | broken | slowest | largest |", "|---|---|---|---|---|---|"]
        for kind in sorted(self.tried):
            bad, slow, large = len(self.broken.get(kind, [])), self.slowest[kind], self.largest[kind]
            figures = f"{self.tried[kind]:,} | {self.refused[kind]:,} | {bad} | {slow:.1f} s | {large / 1e6:,.0f} MB"
            lines.append(f"| {kind} | {figures} |")
        bad = sum(map(len, self.broken.values()))
        total, refused = sum(self.tried.values()), sum(self.refused.values())
        return "\n".join([*lines, f"| all | {total:,} | {refused:,} | {bad} | | |"])
