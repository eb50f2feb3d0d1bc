"""A quick share of ``make attack``: a few mutants and bombs for each reader, and a few kills."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ATTACK = Path(__file__).parent


def run(script: str, *arguments: str) -> str:
    path = os.pathsep.join([str(ATTACK.parents[1]), str(ATTACK.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(ATTACK / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_mutants_and_bombs_break_no_rule() -> None:
    total = re.search(r"\| all \| (\d+) \| (\d+) \| 0 \|", run("fuzzers.py", "120", "--quick", "--seed", "5"))
    assert total is not None
    tried, refused = map(int, total.groups())
    assert tried > 40 < 2 * refused


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_killed_calibrations_leave_the_old_or_the_new_file() -> None:
    found = re.findall(
        r"\| calibrate: \d+ steps \| 12 \| (\d+) \| (\d+) \| 0 \|", run("kill_points.py", "12", "calibrate")
    )
    assert found
    old, new = map(int, found[-1])
    assert old + new == 12
    assert old > 0
