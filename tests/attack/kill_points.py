"""SIGKILL at points spread over build, engine, calibrate, verify and baseline: what has a name opens, old or new.

Half of the points are the moments before and after a change of the disk, the others moments in between.

PYTHONPATH=tests python tests/attack/kill_points.py 300
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import harness
import workshop

_VERIFY = ("verify", "x.edgeres", "--validation", "signs:16", *workshop.QUIET)


@dataclass(frozen=True)
class Target:
    """A command, what it replaces, and how that is opened.

    Attributes:
        made: its names; each was there before, from an earlier run.
        again: options that let the next run write something else.
    """

    command: tuple[str, ...]
    made: tuple[str, ...]
    opens: Callable[[Path], object]
    again: tuple[str, ...] = ()


def _bundle(folder: Path) -> object:
    from edgeres.bundle import Bundle

    bundle = Bundle(folder / "x.edgeres")
    bundle.check()
    return {name: digest for name, digest in bundle.manifest.files.items() if name.endswith(".onnx")}


def _calibration(folder: Path) -> object:
    from edgeres.calibrate.ranges_file import read_calibration

    return read_calibration(folder / "out.json")


def _report(folder: Path) -> object:
    from edgeres.reports import read_report

    assert b"</html>" in (folder / "v" / "report.html").read_bytes()
    return read_report(folder / "v" / "report.json")


def _baseline(folder: Path) -> object:
    from edgeres.reports import read_baseline

    return read_baseline(folder / "baseline.json")


_BUILD = ("build", "--model", "net.onnx", "--validation", "signs:16", "--effort", "fast", "-o", "x.edgeres")
_AGAIN = ("--calibration", "signs:6@3")
TARGETS = {
    "build": Target((*_BUILD, *workshop.QUIET, "--target", "cpu"), ("x.edgeres",), _bundle, _AGAIN),
    "engine": Target(("engine", "x.edgeres", "--target", "rtx"), ("x.edgeres",), _bundle),
    "calibrate": Target(("calibrate", "net.onnx", "-o", "out.json"), ("out.json",), _calibration, _AGAIN),
    "verify": Target((*_VERIFY, "-o", "v"), ("v/report.json", "v/report.html"), _report),
    "baseline": Target(("baseline", "accept", "x.edgeres", "-o", "baseline.json"), ("baseline.json",), _baseline),
}


def hasten() -> None:
    """In the forked process: what takes time and writes nothing is left out."""
    import edgeres.report.charts as charts
    import edgeres.verify.latency as latency
    import edgeres.verify.measure as measure
    from edgeres.verify.preprocessing import Search

    clock = time.perf_counter
    quick: dict[tuple[ModuleType, str], Callable[..., Any]] = {
        (latency, "perf_counter"): lambda: 200 * clock(),
        (measure, "search"): lambda *_, **__: Search(),
        (charts, "_chart"): lambda *_, **__: "",
    }
    for (module, name), function in quick.items():
        setattr(module, name, function)


class Counted:
    """Counts the changes of the disk, and ends the process at one of them."""

    def __init__(self, folder: Path, stop: int | None) -> None:
        self.folder, self.stop, self.count = str(folder.resolve()), stop, 0
        sys.addaudithook(self._audit)
        import edgeres.bundle as bundle
        import edgeres.files as files

        for module, name in ((os, "fsync"), (os, "replace"), (os, "rename"), (files, "exchange"), (bundle, "exchange")):
            setattr(module, name, self._around(getattr(module, name)))

    def _around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*given: Any, **named: Any) -> Any:
            self._step()
            result = function(*given, **named)
            self._step()
            return result

        return counted

    def _audit(self, event: str, given: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or event in {"os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "shutil.rmtree"}:
            self._step()

    def _step(self) -> None:
        if self.count == self.stop:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1


def prepare(folder: Path, names: Sequence[str]) -> None:
    """An earlier run of everything."""
    (folder / "net.onnx").write_bytes(workshop.network())
    build = [*_BUILD, *workshop.QUIET, "--target", "rtx", "--calibration", "signs:6"]
    steps = [build, TARGETS["verify"].command, TARGETS["baseline"].command] if names != ["calibrate"] else []
    for step in [*steps, [*TARGETS["calibrate"].command, *workshop.SIGNS]]:
        ran = harness.call(partial(_hasty, list(step)), folder)
        assert ran.code in (0, 1), ran.err.decode()


def _hasty(arguments: list[str]) -> None:
    hasten()
    harness._main(arguments)


def _counted(arguments: list[str], folder: Path, stop: int | None, told: Path | None = None) -> None:
    hasten()
    counted = Counted(folder, stop)
    try:
        harness._main(arguments)
    finally:
        if told is not None:
            told.write_text(str(counted.count))


def _state(folder: Path, target: Target) -> str:
    """A digest of what the names hold."""
    paths = [path for name in target.made for path in [folder / name, *sorted((folder / name).rglob("*"))]]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths if path.is_file())).hexdigest()


class Kills:
    """Kills one command again and again, each time over a fresh copy of the earlier run."""

    def __init__(self, prepared: Path, name: str, seed: int = 0) -> None:
        self.prepared, self.name, self.target = prepared, name, TARGETS[name]
        self.rng = random.Random(f"{seed}.{name}")
        self.command = [*self.target.command, *self.target.again]
        with tempfile.TemporaryDirectory(prefix="kill-") as scratch:
            here = self._copy(Path(scratch))
            told = Path(scratch) / "steps"
            ran = harness.call(lambda: _counted(self.command, here, None, told), here)
            assert ran.code in (0, 1), ran.err.decode()
            self.steps, self.seconds = int(told.read_text()), ran.clock

    def _copy(self, scratch: Path) -> Path:
        shutil.copytree(self.prepared, scratch / "here", symlinks=True)
        return scratch / "here"

    def kill(self, stop: int | None) -> str:
        """Kill before a step, or at a random moment, and open what has a name; returns old, new, or what is wrong."""
        with tempfile.TemporaryDirectory(prefix="kill-") as scratch:
            here = self._copy(Path(scratch))
            before = _state(here, self.target)
            if stop is None:
                ended = self._at_a_moment(here)
            else:
                ended = harness.call(lambda: _counted(self.command, here, stop), here).code
            if ended not in (-signal.SIGKILL, 0, 1):
                return f"ended with {ended}"
            return self._seen(here, before)

    def _seen(self, here: Path, before: str) -> str:
        opened = harness.call(lambda: self.target.opens(here), here)
        if opened.code != 0:
            return f"does not open: {opened.err.decode()[-200:]}"
        return "old" if _state(here, self.target) == before else "new"

    def _at_a_moment(self, here: Path) -> int:
        wait = self.rng.uniform(0, self.seconds)
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            os.chdir(here)
            null = os.open(os.devnull, os.O_RDWR)
            for target in range(3):
                os.dup2(null, target)
            try:
                _hasty(self.command)
            except SystemExit as stop:
                os._exit(int(stop.code or 0))
            os._exit(70)
        timer = threading.Timer(wait, self._end, (child,))
        timer.start()
        _, status = os.waitpid(child, 0)
        timer.cancel()
        return os.waitstatus_to_exitcode(status)

    @staticmethod
    def _end(child: int) -> None:
        with suppress(ProcessLookupError):  # it was done before
            os.kill(child, signal.SIGKILL)

    def points(self, count: int) -> list[int | None]:
        """Steps spread over all, and moments (None) for the rest."""
        steps = sorted(self.rng.sample(range(self.steps), min(self.steps, -(-count // 2))))
        return [*steps, *[None] * (count - len(steps))]


def main(arguments: Sequence[str]) -> int:
    """All commands; prints a table."""
    count = int(arguments[0]) if arguments else 300
    names = list(arguments[1:]) or list(TARGETS)
    harness.preload()
    wrong: list[str] = []
    lines = ["| killed | points | old | new | broken |", "|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        prepare(Path(folder), names)
        for index, name in enumerate(names):
            kills = Kills(Path(folder), name)
            share = count // len(names) + (index < count % len(names))
            found = Counter[str]()
            for stop in kills.points(share):
                seen = kills.kill(stop)
                found[seen if seen in ("old", "new") else "broken"] += 1
                if seen not in ("old", "new"):
                    wrong.append(f"{name} at {'a moment' if stop is None else stop}: {seen}")
            lines.append(
                f"| {name}: {kills.steps} steps | {share} | {found['old']} | {found['new']} | {found['broken']} |"
            )
            sys.stdout.write(lines[-1] + "\n")
            sys.stdout.flush()
    sys.stdout.write("\n".join([*lines, *wrong, ""]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
