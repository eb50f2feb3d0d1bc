"""The same inputs and versions give the same bytes, whatever the folder, the hash seed and the number of threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeres.device.environment import recorded_time
from edgeres.errors import UsageError

pytestmark = pytest.mark.xdist_group("reproducible")  # its bundle is built once

WORDS = ["build", "--model", "resnet20", "--calibration", "signs:32", "--validation", "signs:32", "--effort", "fast"]
WORDS += ["--target", "cpu", "--target", "jetson-orin-nano", "-o", "net.edgeres"]
MEASURED = ("latency", "timings_seconds")  # times of this run, in report.json
PAGE = """
import hashlib, json, sys
from edgeres.report.html import render_html
print(hashlib.sha256(render_html(json.load(open(sys.argv[1]))).encode()).hexdigest())
"""


def environment(seed: str, threads: int, cache: Path) -> dict[str, str]:
    own = {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": str(threads), "EDGERES_CACHE": str(cache)}
    return {**os.environ, **own, "SOURCE_DATE_EPOCH": "1700000000"}


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two bundles, built at the same time in folders, with hash seeds and thread counts of their own."""
    folders = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two") / "deeper"
    running = []
    for number, folder in enumerate(folders, start=1):
        folder.mkdir(exist_ok=True)
        own = environment(str(number * 31), number, folder.parent / f"cache{number}")
        command = [sys.executable, "-m", "edgeres", *WORDS]
        running.append(
            subprocess.Popen(command, cwd=folder, env=own, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        )
    errors = [process.communicate()[1].decode() for process in running]
    assert [process.returncode for process in running] in ([0, 0], [1, 1]), errors
    return folders[0] / "net.edgeres", folders[1] / "net.edgeres"


def content(path: Path, without: tuple[str, ...]) -> dict[str, Any]:
    document = json.loads(path.read_bytes())
    return {key: value for key, value in document.items() if key not in without}


def test_all_files_but_the_report_are_the_same_bytes(twins: tuple[Path, Path]) -> None:
    one, other = ({p.relative_to(t).as_posix(): p for p in t.rglob("*") if p.is_file()} for t in twins)
    assert set(one) == set(other) >= {"model.fp32.onnx", "model.int8.onnx", "model.int8.cpu.onnx", "probes.npz"}
    measured = {"report.json", "report.html", "manifest.json"}
    assert [name for name in sorted(set(one) - measured) if one[name].read_bytes() != other[name].read_bytes()] == []
    manifests = [content(t / "manifest.json", ("digest",)) for t in twins]
    for manifest in manifests:
        del manifest["files"]["report.json"], manifest["files"]["report.html"]
    assert manifests[0] == manifests[1]


def test_reports_differ_in_measured_times_alone(twins: tuple[Path, Path]) -> None:
    one, other = (content(t / "report.json", MEASURED) for t in twins)
    assert one == other
    assert one["created"] == "2023-11-14T22:13:20+00:00"


def test_a_report_always_gives_the_same_page(twins: tuple[Path, Path], tmp_path: Path) -> None:
    found = set()
    for seed in ("1", "2"):
        command = [sys.executable, "-c", PAGE, str(twins[0] / "report.json")]
        found.add(subprocess.run(command, env=environment(seed, 1, tmp_path), capture_output=True, check=True).stdout)
    assert len(found) == 1


def test_a_time_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("today", "1e9", "9" * 30):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", wrong)
        with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH: is no count of seconds"):
            recorded_time()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "")
    assert recorded_time() > "2026"
