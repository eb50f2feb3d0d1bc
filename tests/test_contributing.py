"""The table in CONTRIBUTING.md: its files exist, no row needs more than three, and two rows are carried out.

A row is carried out in a copy of the package in which only the files of that row are edited; the copy is then used by
the command line.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
from calibrations import write_tiny
from onnx import numpy_helper

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "CONTRIBUTING.md"
# What the table must tell, whatever it tells besides.
ADDITIONS = (
    *("a range method", "a calibrator without histograms", "a runner", "a device", "an engine vendor", "a gate"),
    *("a check", "a refinement step", "a learnable operator", "a task"),
)


def rows() -> dict[str, dict[str, str]]:
    """By what is added: the cells under ``files``, ``what to write``, ``test`` and ``docs``."""
    table = PAGE.read_text(encoding="utf-8").split("| to add ")[1].split("\n\n")[0]
    head, _, *lines = [
        [cell.strip() for cell in line.strip("| ").split(" | ")] for line in f"| to add {table}".splitlines()
    ]
    return {row[0]: dict(zip(head, row, strict=True)) for row in lines}


def paths(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_table_is_complete() -> None:
    assert set(ADDITIONS) <= rows().keys()


@pytest.mark.parametrize("addition", rows())
def test_a_row_names_at_most_three_files_that_exist(addition: str) -> None:
    row = rows()[addition]
    assert 1 <= len(paths(row["files"])) <= 3
    for name in (*paths(row["files"]), *paths(row["test"]), *paths(row["docs"])):
        path = REPOSITORY / name
        assert path.parent.is_dir() if "<" in name else path.is_file(), name  # <name>.py is yet to be written
    assert paths(row["test"]) and paths(row["docs"]) and row["what to write"]


@pytest.mark.parametrize("addition", rows())
def test_what_a_row_speaks_of_is_in_its_files(addition: str) -> None:
    row = rows()[addition]
    files = [REPOSITORY / name for name in paths(row["files"]) if "<" not in name]
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    for name in paths(row["what to write"]):
        if "/" in name:
            assert (REPOSITORY / name).is_file(), name
        elif not name.startswith("--") and "." not in name:
            assert re.search(rf"\b{name}\b", text), f"{name} is in none of {row['files']}"


@dataclass
class Copy:
    """A copy of the package, and which of its files were edited."""

    folder: Path
    edited: set[str] = field(default_factory=set)

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace a text that stands in the file once."""
        path = self.folder / name
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{name} has {old!r} {text.count(old)} times"
        path.write_text(text.replace(old, new), encoding="utf-8")
        self.edited.add(name)

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edgeres", *map(str, words)]
        environment = {**os.environ, "PYTHONPATH": str(self.folder)}
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    shutil.copytree(
        REPOSITORY / "edgeres", tmp_path / "edgeres", ignore=shutil.ignore_patterns("weights", "__pycache__")
    )
    return Copy(tmp_path)


def scales(path: Path) -> dict[str, float]:
    """Of activations, by tensor."""
    graph = onnx.load(path).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return {n.input[0]: float(constants[n.input[1]]) for n in graph.node if n.op_type == "QuantizeLinear"}


def test_a_range_method_is_added(copy: Copy) -> None:
    """Half of what was seen: every scale is half of minmax's."""
    copy.edit("edgeres/records.py", "\nMethod = Literal[", '\nMethod = Literal["halves", ')
    copy.edit("edgeres/calibrate/ranges.py", "\n_METHODS", f"{HALVES}_METHODS")
    copy.edit("edgeres/calibrate/ranges.py", '{"minmax": _minmax,', '{"halves": _halves, "minmax": _minmax,')
    assert copy.edited == set(paths(rows()["a range method"]["files"]))

    write_tiny(copy.folder)
    found = {}
    for method in ("minmax", "halves"):
        words = ["--calibration", "images.npz", "--target", "cpu", "--effort", "fast", "--method", method]
        done = copy.run("quantize", "tiny.onnx", *words, "-o", f"{method}.onnx")
        assert done.returncode == 0, done.stderr
        found[method] = scales(copy.folder / f"{method}.onnx")
    ratio = [found["halves"][name] / scale for name, scale in found["minmax"].items()]
    np.testing.assert_allclose(ratio[1:], 0.5, rtol=1e-6)
    assert len(ratio) > 5


HALVES = """
def _halves(histogram: Histogram, symmetric: bool) -> tuple[float, float]:
    return histogram.low / 2, histogram.high / 2


"""


def test_a_check_is_added(copy: Copy) -> None:
    """It runs with the others, fails the build, and is told."""
    copy.edit("edgeres/judge/checks.py", "\nCHECKS", f"{FEW}CHECKS")
    copy.edit("edgeres/judge/checks.py", '\n    "labels":', '\n    "few": ("number of classes", _few),\n    "labels":')
    assert copy.edited == set(paths(rows()["a check"]["files"]))

    write_tiny(copy.folder)
    sources = ["--calibration", "images.npz", "--validation", "images.npz", "--max-drop", 100, "--max-class-drop", 100]
    words = ["--model", "tiny.onnx", *sources, "--target", "cpu", "--effort", "fast", "-o", "tiny.edgeres"]
    done = copy.run("build", *words)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "10 are few" in done.stdout
    report = json.loads((copy.folder / "tiny.edgeres" / "report.json").read_text())
    (told,) = [one for one in report["checks"] if one["name"] == "few"]
    assert (told["title"], told["outcome"], told["reason"]) == ("number of classes", "failed", "10 are few")


FEW = """
def _few(e: Evidence) -> Finding:
    return ("failed", f"{len(e.labels)} are few") if len(e.labels) < 100 else ("passed", "enough")


"""
