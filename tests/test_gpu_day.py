"""``benchmarks/gpu_day.py`` without a GPU: its parts skip with a word, and what needs none is right."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import Gpu, installed
from PIL import Image

from edgeres.runtime.memory import default_device

ROOT = Path(__file__).parents[1]
torch = pytest.importorskip("torch", reason="the parts on a GPU need torch")


@pytest.fixture(scope="module")
def day() -> Any:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module("gpu_day")
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: the parts run")
def test_parts_without_a_gpu_are_skipped_with_a_word(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_day.py"), "--parts", "memory", "matmul"]
    ran = subprocess.run([*command, "--out", "day.json"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert len(ran.stdout.splitlines()) == 2 and "skipped: torch sees no CUDA GPU" in ran.stdout
    parts = json.loads((tmp_path / "day.json").read_text())["parts"]
    assert parts["matmul"]["found"] == {"matmul": {"skipped": "torch sees no CUDA GPU"}}
    assert not parts["memory"]["said"] and parts["memory"]["found"]


@pytest.mark.parametrize("integrated", [False, True])
@pytest.mark.parametrize("library", ["driver", "cuda-python", "pycuda"])
def test_the_checks_of_memory_pass_on_a_simulated_gpu_and_see_a_fault(
    day: Any, library: str, integrated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Gpu(integrated=integrated)
    with installed(monkeypatch, gpu, library, "tensorrt"):
        device = default_device()
        for check in day.MEMORY_CHECKS.values():
            check(device)

        class Lost:
            """The memory of a GPU whose copies from it do nothing."""

            def __init__(self, count: int) -> None:
                self.real, self.host = buffer(count), np.zeros(count, np.uint8)

            def __getattr__(self, name: str) -> Any:
                return getattr(self.real, name)

        buffer = device.buffer
        if not integrated:
            monkeypatch.setattr(type(device), "buffer", lambda self, count: Lost(count))
            with pytest.raises(AssertionError, match="what came back"):
                day.MEMORY_CHECKS["copies"](device)


@pytest.mark.parametrize(("network", "gmacs"), [("resnet18", 1.81), ("resnet50", 4.09)])
def test_the_convolutions_are_those_of_the_network(day: Any, network: str, gmacs: float) -> None:
    """The figures of torchvision's documentation; they count the classifier, too, and three input channels."""
    total = 1000 * (2048 if network == "resnet50" else 512)
    for side, stride, depth, filters, height, count in day.layers(network):
        rows = (height + 2 * (side // 2) - side) // stride + 1
        total += count * rows**2 * filters * side**2 * (3 if side == 7 else depth)
    assert total / 1e9 == pytest.approx(gmacs, abs=0.01)


@pytest.mark.parametrize(("size", "out"), [(720, 256), (1280, 455), (100, 100)])
def test_the_weights_of_the_resize_are_pillows(day: Any, size: int, out: int) -> None:
    values = np.random.default_rng(0).uniform(0, 255, size).astype(np.float32)
    expected = Image.fromarray(values[None]).resize((out, 1), Image.Resampling.BILINEAR)
    assert np.allclose(day._weights(size, out).numpy() @ values, np.asarray(expected)[0], atol=1e-3)


def test_a_part_that_ends_early_keeps_what_it_found(day: Any) -> None:
    out = 'a library speaks\n{"name": "a", "found": {"us": {"fp16": 1.5}}}\n{"name": "b", "fou'
    assert day.findings(out) == {"a": {"us": {"fp16": 1.5}}}


def test_the_page_sums_the_convolutions_of_a_network(day: Any) -> None:
    found = {
        "resnet18 batch 1: 3x3/1 64->64 at 56": {"count": 4, "us": {"fp16": 10.0, "int8": 6.0}},
        "resnet18 batch 1: 1x1/2 64->128 at 56": {"count": 1, "us": {"fp16": 5.0, "int8": 4.0}},
        "resnet18 batch 1: 3x3/2 64->128 at 56": {"count": 1, "us": {"fp16": 5.0}, "failed": {"int8": "no kernel"}},
        "resnet18 batch 1: 3x3/1 128->128 at 28": {"count": 3, "failed": "out of memory"},
    }
    document = {
        "machine": {"gpu": "a GPU", "torch": "2", "triton": "3"},
        "parts": {"convs": {"found": found, "said": "not finished in 230 s", "seconds": 230.0}},
    }
    page = day.page(document)
    assert "| resnet18 batch 1 | 5 of 20 | 45 | 28 |" in page and "Ended early: not finished in 230 s" in page
    assert "no figure is measured" in day.page({"machine": {"gpu": None}, "parts": {}})


def test_no_part_may_outlast_eight_minutes(day: Any) -> None:
    assert day.DEADLINES.keys() == day.PARTS.keys() and sum(day.DEADLINES.values()) <= 480
