"""Warnings before a build, for want of memory or by the opset; memory is compared with the vendor's own count."""

from __future__ import annotations

import builtins
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from engine_graphs import constant, model, resnet
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from edgeres.bundle import FP32
from edgeres.device.gpu import Gpu
from edgeres.device.targets import TARGETS, this_board
from edgeres.engine import preflight
from edgeres.engine.builder import BuildRequest, build_engine
from edgeres.engine.preflight import memory_need, peak_activations, warnings
from edgeres.graph.forms import FORMS

NANO, XAVIER = TARGETS["jetson-orin-nano"], TARGETS["jetson-xavier-nx"]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "this_gpu", lambda: (None, "none"))


def folder(path: Path, graph: onnx.ModelProto | None = None) -> Path:
    """The directory of an unfinished bundle."""
    graph = graph or resnet(quantized=False, width=64, px=64)
    for name in (FP32, FORMS["tensorrt"].file):
        onnx.save(graph, path / name)
    return path


def plain(channels: list[int], skips: bool) -> onnx.ModelProto:
    """A chain of 1x1 convolutions on (n, channels[0], 4, 4); with skips, an Add behind each that keeps the channels."""
    nodes, weights, tensor = [], [], "x"
    for index, (before, after) in enumerate(pairwise(channels)):
        weights.append(constant(f"w{index}", np.zeros((after, before, 1, 1), np.float32)))
        nodes.append(helper.make_node("Conv", [tensor, f"w{index}"], [f"c{index}"]))
        adds = skips and before == after
        if adds:
            nodes.append(helper.make_node("Add", [f"c{index}", tensor], [f"a{index}"]))
        tensor = f"a{index}" if adds else f"c{index}"
    nodes[-1].output[0] = "y"
    return model(nodes, weights, shape=("n", channels[0], 4, 4), output=("n", channels[-1], 4, 4))


@given(st.lists(st.integers(1, 9), min_size=2, max_size=6), st.booleans(), st.integers(1, 5))
def test_activations_are_those_of_the_widest_node(channels: list[int], skips: bool, batch: int) -> None:
    """By hand: a Conv holds its input and output; an Add the Conv's output, the skip and the sum."""
    image = 4 * 4 * 4 * batch
    widest = 0
    for before, after in pairwise(channels):
        widest = max(widest, before + after, 3 * after if skips and before == after else 0)
    assert peak_activations(plain(channels, skips), batch) == image * widest


@pytest.mark.parametrize(("width", "px"), [(16, 32), (64, 64)])
def test_activations_are_near_what_the_builder_takes(width: int, px: int) -> None:
    """RTX reports the memory of its activations at the largest batch: a constant and an amount per image."""
    pytest.importorskip("tensorrt_rtx", reason="asks the vendor's builder")
    graph = resnet(quantized=False, width=width, px=px)

    def told(batch: int) -> int:
        log = build_engine(graph.SerializeToString(), BuildRequest("fp32", max_batch=batch), "rtx").log
        return int(re.search(r"Total Activation Memory: (\d+)", "\n".join(log))[1])  # type: ignore[index]

    of_an_image = (told(136) - told(8)) / 128
    assert 0.7 < peak_activations(graph, 1) / of_an_image < 1.3


def test_weights_are_counted(tmp_path: Path) -> None:
    graph = resnet(quantized=False, width=8, px=16)
    onnx.save(graph, tmp_path / "g.onnx")
    need = memory_need(tmp_path / "g.onnx", 4, 1000)
    assert need.weights == sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in graph.graph.initializer)
    assert need.activations == 4 * peak_activations(graph, 1)
    assert need.total == 3 * need.weights + 4 * peak_activations(graph, 1) + 1000


def test_a_batch_that_does_not_fit_is_warned_of_for_each_size_of_the_board(tmp_path: Path) -> None:
    here = folder(tmp_path)
    assert list(warnings(here, NANO, 8)) == []
    (only,) = warnings(here, NANO, 2000)
    assert re.match(r"batch 2000 is not likely to fit 4\.0 GB of memory: it needs about \d\.\d GB \(3 x ", only)
    assert "of float32 activations alive at once, 1.0 GB of workspace, 1.5 GB for the system)" in only
    assert only.endswith("lower --max-batch or --workspace-mb")
    assert len(list(warnings(here, NANO, 20_000))) == 2
    assert list(warnings(here, NANO, 8, workspace_mb=100)) == []
    assert len(list(warnings(here, NANO, 8, workspace_mb=3000))) == 1


def test_the_memory_of_this_machine_counts_where_it_is_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, gpu = folder(tmp_path), Gpu("Orin", "8.7", 8_000_000_000, "12.6")
    monkeypatch.setattr(preflight, "this_gpu", lambda: (gpu, ""))
    monkeypatch.setattr(preflight, "this_board", lambda: NANO)
    assert list(warnings(here, NANO, 2000)) == []  # the 4 GB module is another one
    assert len(list(warnings(here, TARGETS["tensorrt"], 20_000))) == 1
    assert len(list(warnings(here, TARGETS["cpu"], 20_000))) == 0


def test_without_onnx_weights_alone_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, real = folder(tmp_path), builtins.__import__

    def blocked(name: str, *more: Any, **other: Any) -> Any:
        if name.split(".")[0] == "onnx":
            raise ModuleNotFoundError(name="onnx")
        return real(name, *more, **other)

    monkeypatch.delitem(sys.modules, "onnx")
    monkeypatch.setattr(builtins, "__import__", blocked)
    need = memory_need(here / FP32, 8, 0)
    assert (need.weights, need.activations) == ((here / FP32).stat().st_size, None)
    (line,) = warnings(here, NANO, 8, workspace_mb=3000)
    assert "activations not counted: onnx is not installed" in line


def test_an_opset_that_the_device_does_not_document_is_warned_of(tmp_path: Path) -> None:
    new = model([helper.make_node("Relu", ["x"], ["y"])], [], opsets={"": 20})
    lines = list(warnings(folder(tmp_path, new), XAVIER, 1))
    assert lines[0] == (
        "model.int8.onnx has opset 20, and TensorRT 8.5 documents up to 17: export the model with opset 17"
    )
    assert len(lines) == 2  # model.fp32.onnx, too
    assert list(warnings(folder(tmp_path, new), NANO, 1)) == []
    assert list(warnings(folder(tmp_path), XAVIER, 1)) == []


def test_this_board_is_recognized_by_its_device_tree(tmp_path: Path) -> None:
    for text, name in (("NVIDIA Jetson Orin Nano\0", "jetson-orin-nano"), ("NVIDIA Jetson Nano\0", None), ("PC", None)):
        (tmp_path / "model").write_text(text)
        board = this_board(tmp_path / "model")
        assert (board and board.name) == name
    assert this_board(tmp_path / "gone") is None


def test_a_quarter_of_a_shared_memory_is_workspace() -> None:
    assert NANO.workspace_bytes(8 << 30) == 2 << 30
    assert TARGETS["tensorrt"].workspace_bytes(8 << 30) is None
