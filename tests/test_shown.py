"""Promises for bundled and larger networks: accuracy is kept, engines are small, graphs can be built."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from edgeres.bundle import FP32
from edgeres.data.arrays import Arrays
from edgeres.data.loader import Loader
from edgeres.device.libraries import available
from edgeres.engine.builder import BuildRequest, build_engine
from edgeres.graph.forms import GRAPH_FILES
from edgeres.pipeline.build import build
from edgeres.pipeline.take import ModelChoice, take
from edgeres.quantize.graphs import RangeChoice, quantize

ROOT = Path(__file__).parents[1]


def test_the_bundled_resnet18_loses_at_most_half_a_point(tmp_path: Path) -> None:
    # The default effort takes minutes here; test_recipe.py holds it on smaller networks.
    result = build("resnet18", calibration_size=64, effort="fast", output=tmp_path / "bundle")
    accuracy = result.report["accuracy"]
    assert accuracy["fp32"]["total"] == 1000
    assert 93 <= accuracy["fp32"]["top1"] <= 98
    assert all(graph["drop_pp"] <= 0.5 for graph in accuracy["graphs"].values())
    assert result.passed
    sizes = {e["precision"]: e["size_bytes"] for e in result.report["engines"] if e["runtime"] == "rtx"}
    if available("rtx").can_build:
        assert sizes["int8"] <= 0.35 * (tmp_path / "bundle" / "model.fp32.onnx").stat().st_size
    graphs = {
        name: (result.path / name).stat().st_size for name in (FP32, *GRAPH_FILES) if (result.path / name).exists()
    }
    assert all(size < 0.3 * graphs[FP32] for name, size in graphs.items() if name != FP32)


@pytest.mark.skipif(not available("rtx").can_build, reason="tensorrt_rtx is not installed")
@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d"])
def test_large_networks_with_random_weights_become_engines(name: str) -> None:
    fp32 = take(ModelChoice(name, weights="random"))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    loader = Loader(Arrays(pixels, np.zeros(2, np.int64), ("one",), "random"), fp32.spec.preprocess, 2)
    done = quantize(fp32.graph, ["tensorrt"], loader, RangeChoice("minmax"))
    engine = build_engine(done.graphs["tensorrt"].SerializeToString(), BuildRequest("int8"), "rtx")
    assert len(engine.data) < 0.6 * len(fp32.graph.SerializeToString())


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_pages_are_finished_and_their_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "@@" not in text
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / page).parent / link).exists(), link
