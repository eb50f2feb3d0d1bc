"""This checkout beside another revision: ``python benchmarks/against.py REVISION [--rounds 21] [--builds 7]``.

REVISION is checked out into a temporary folder. Each command below then runs in a process of its own, once in each
checkout a round; which goes first changes every round. A warm-up round that is not counted writes bytecode and caches.
A ratio above 1 means that this checkout is slower. It is the median over the rounds of the ratio within a round, with
its 95 % interval from 1,000 resamplings. CPU time is that of the process and its children: it depends less than the
time on the clock on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from runtime import interval

REPOSITORY = Path(__file__).parents[1]
IMAGES = ("--calibration", "signs:64", "--validation", "signs:64@1")


def _build(model: str) -> list[str]:
    words = ["-m", "edgeres", "build", "--model", model, "--effort", "fast", "--target", "cpu", "--target", "tensorrt"]
    return [*words, *IMAGES, "-o", f"{model}.edgeres", "--json"]


STARTS = {
    "import edgeres": ["-c", "import edgeres"],
    "import edgeres.runtime": ["-c", "import edgeres.runtime"],
    "edgeres --help": ["-m", "edgeres", "--help"],
}
BUILDS = {f"edgeres build {model}": _build(model) for model in ("resnet20", "resnet18")}


@dataclass(frozen=True)
class Times:
    """Seconds by round: ``clock`` and ``cpu`` are (rounds, 2), this checkout first and the other second."""

    clock: np.ndarray
    cpu: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"rounds": len(self.clock)}
        for name, seconds in (("clock", self.clock), ("cpu", self.cpu)):
            ratio = seconds[:, 0] / seconds[:, 1]
            here, there = np.median(seconds, axis=0)
            found[name] = {"here_s": float(here), "there_s": float(there), "ratio": float(np.median(ratio))}
            found[name]["ratio_ci95"] = interval(ratio)
        return found


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """The files of a revision in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "there"
        _git("worktree", "add", "--quiet", "--detach", str(folder), revision)
        try:
            yield folder
        finally:
            _git("worktree", "remove", "--force", str(folder))


def _git(*words: str) -> None:
    done = subprocess.run(["git", "-C", str(REPOSITORY), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr.strip())


def run(words: Sequence[str], source: Path, folder: Path) -> tuple[float, float]:
    """Seconds on the clock and of CPU for one Python process that imports edgeres from ``source``."""
    environment = {**os.environ, "PYTHONPATH": str(source)}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *words], env=environment, cwd=folder, capture_output=True, check=False)
    clock, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 1):  # 1: a gate failed, on these few images
        raise SystemExit(f"{' '.join(words)} in {source}: {done.stderr.decode().strip()}")
    return clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def by_turns(words: Sequence[str], here: Path, there: Path, rounds: int) -> Times:
    found = np.empty((rounds + 1, 2, 2))
    sides = (here, there)
    for number in range(rounds + 1):
        for side in (0, 1) if number % 2 else (1, 0):
            with tempfile.TemporaryDirectory() as folder:
                found[number, side] = run(words, sides[side], Path(folder))
    return Times(found[1:, :, 0], found[1:, :, 1])


def table(found: dict[str, dict[str, Any]]) -> str:
    lines = [f"{'':24}{'there':>9}{'here':>9}{'ratio':>8}  95 % interval    CPU time  95 % interval"]
    for name, times in found.items():
        clock, cpu = times["clock"], times["cpu"]
        ranges = ["{:.3f} to {:.3f}".format(*one["ratio_ci95"]) for one in (clock, cpu)]
        seconds = f"{clock['there_s']:7.3f} s{clock['here_s']:7.3f} s"
        lines.append(f"{name:24}{seconds}{clock['ratio']:8.3f}  {ranges[0]}{cpu['ratio']:11.3f}  {ranges[1]}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", help="anything that git can check out, e.g. HEAD~3")
    parser.add_argument("--rounds", type=int, default=21, help="of imports and --help; 0 leaves them out")
    parser.add_argument("--builds", type=int, default=7, help="rounds of each build; 0 leaves them out")
    parser.add_argument("--json", action="store_true")
    choice = parser.parse_args(arguments)
    works = {name: (words, choice.rounds) for name, words in STARTS.items() if choice.rounds}
    works |= {name: (words, choice.builds) for name, words in BUILDS.items() if choice.builds}
    with checkout(choice.revision) as there:
        found = {name: by_turns(words, REPOSITORY, there, rounds).to_dict() for name, (words, rounds) in works.items()}
    print(json.dumps(found, indent=2) if choice.json else table(found))


if __name__ == "__main__":
    main()
