"""Names of images that are no UTF-8, as old camera cards hold them, are shown escaped and stop no command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import workshop
from bundles import CLASSES, SIDE, classifier, spec, write_bundle

from edgeres.graph.forms import FORMS

LATIN = os.fsdecode(b"caf\xe9.png")
FP32 = "model.fp32.onnx"


def edgeres(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeres", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "LC_ALL": "C.UTF-8"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    # Two networks with other weights: many images are lost, and their names are in every report.
    graphs = {FP32: classifier(seed=0), FORMS["cpu"].file: classifier(seed=1)}
    write_bundle(tmp_path / "b.edgeres", spec(), graphs)
    for name in CLASSES:
        (tmp_path / "i" / name).mkdir(parents=True)
        try:
            (tmp_path / "i" / name / LATIN).write_bytes(workshop.image("PNG", SIDE))
        except OSError:
            pytest.skip("this file system holds UTF-8 names only")
    return tmp_path


def test_a_name_that_is_no_utf8_is_shown_escaped(folder: Path) -> None:
    for more in ([], ["--json"], ["--sheet", "s.html"]):
        ran = edgeres(folder, "predict", "b.edgeres", "i", *more)
        assert ran.returncode == 0, ran.stderr
        assert "\\udce9" in ran.stdout or "s.html" in more
    assert "caf" in (folder / "s.html").read_text()


def test_images_that_int8_gets_wrong_may_have_such_names(folder: Path) -> None:
    outputs = ["-o", "v", "--markdown", "m.md", "--junit", "j.xml", "--max-drop", "off", "--max-class-drop", "off"]
    ran = edgeres(folder, "verify", "b.edgeres", "--validation", "i", *outputs)
    assert ran.returncode in (0, 1), ran.stderr
    assert "Traceback" not in ran.stderr
    for name in ("v/report.json", "v/report.html", "m.md", "j.xml"):
        (folder / name).read_text(encoding="utf-8")
    graphs = json.loads((folder / "v" / "report.json").read_text())["accuracy"]["graphs"]
    lost = [one["image"] for graph in graphs.values() for one in graph["lost_images"]]
    assert lost
    assert all("caf" in name for name in lost)
