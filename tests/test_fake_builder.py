"""The simulated builder: its names are the vendor's, and an engine does what was planted for its graph."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundles import classifier
from fake_gpu import Gpu, Planted, machine, tensorrt_module
from vendor_bindings import VERSIONS, Api, bindings, rtx

from edgeres.engine.builder import BuildRequest, build_engine
from edgeres.errors import EngineError
from edgeres.runtime import EngineFile, OrtRunner, TensorRTRunner
from edgeres.verify.latency import LatencyPlan, measure_latency


def unknown(module: Any, api: Api) -> list[str]:
    """The names of a simulated module that the vendor's does not have."""
    lost = [name for name in vars(module) if not name.startswith("__") and ("", name) not in api]
    for name, held in vars(module).items():
        members = vars(held) if not name.startswith("__") and hasattr(held, "__dict__") else {}
        if inspect.isclass(held) or type(held).__name__ == "SimpleNamespace":
            public = (member for member in members if not member.startswith("_"))
            lost += [f"{name}.{member}" for member in public if (name, member) not in api]
    return sorted(lost)


OURS = {  # fields of the simulation itself, and what one flavour alone has
    *("ICudaEngine.num_compute_capabilities", "INetworkDefinition.model"),
    *("IBuilderConfig.set_compute_capability", "IBuilderConfig.num_compute_capabilities"),
}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_simulated_name_is_the_vendors(version: str) -> None:
    assert set(unknown(tensorrt_module(Gpu()), bindings(version))) <= OURS


def test_every_simulated_name_is_in_rtx() -> None:
    assert set(unknown(tensorrt_module(Gpu(), "rtx"), rtx())) <= OURS


MODEL = classifier()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Gpu]:
    found = Gpu()
    with machine(monkeypatch, found, cache=tmp_path / "cache"):
        yield found


def pixels(count: int = 3) -> dict[str, Any]:
    return {"pixels": np.random.default_rng(0).standard_normal((count, 3, 8, 8)).astype(np.float32)}


def runner(data: bytes) -> TensorRTRunner:
    return TensorRTRunner(EngineFile(data))


def test_an_engine_is_built_and_answers_as_its_graph_does(gpu: Gpu) -> None:
    built = build_engine(MODEL, BuildRequest("int8"), "tensorrt")
    with runner(built.data) as engine, OrtRunner(MODEL) as graph:
        np.testing.assert_allclose(engine.infer(pixels())["scores"], graph.infer(pixels())["scores"], rtol=1e-5)
    assert built.file_name == "tensorrt-10.3.0-sm86.engine" and built.batch == (1, 1, 8)


def test_weights_beside_the_graph_are_found(gpu: Gpu, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(onnx.load_from_string(MODEL), path, save_as_external_data=True, location="w", size_threshold=0)
    with runner(build_engine(path, BuildRequest("int8"), "tensorrt").data) as engine, OrtRunner(MODEL) as graph:
        np.testing.assert_allclose(engine.infer(pixels())["scores"], graph.infer(pixels())["scores"], rtol=1e-5)


def test_planted_times_are_those_of_the_latency(gpu: Gpu) -> None:
    """By the GPU's clock: nothing waits, and the noise is that of its seed."""
    names = {name.encode(): ms for name, ms in (("fast", 10.0), ("slow", 15.0))}
    graphs = {}
    for name in names:
        model = onnx.load_from_string(MODEL)
        model.graph.name = name.decode()
        graphs[name.decode()] = model.SerializeToString()
    gpu.plants = lambda model: Planted(ms=names[model.graph.name.encode()], spread=0.05, seed=len(model.graph.name))
    data = {name: build_engine(graph, BuildRequest("int8"), "tensorrt").data for name, graph in graphs.items()}
    with runner(data["fast"]) as fast, runner(data["slow"]) as slow:
        found = measure_latency({"fast": fast, "slow": slow}, lambda _: pixels(1), LatencyPlan("test"))
    copies = 1.25
    for name, ms in (("fast", 10.0), ("slow", 15.0)):
        seconds = found[name].seconds
        assert np.median(seconds) == pytest.approx(1e-3 * (ms + copies), rel=0.02)
        assert np.std(seconds) / np.mean(seconds) == pytest.approx(0.05 * ms / (ms + copies), rel=0.2)


def test_a_planted_refusal_is_the_builders_error(gpu: Gpu) -> None:
    gpu.plants = lambda model: Planted(refused="Error Code 10: could not find any implementation for node conv")
    with pytest.raises(EngineError, match="TensorRT built no engine"):
        build_engine(MODEL, BuildRequest("int8"), "tensorrt")


def test_a_planted_wrong_answer_is_given(gpu: Gpu) -> None:
    other = classifier(seed=1)
    gpu.plants = lambda model: Planted(answers=other)
    with runner(build_engine(MODEL, BuildRequest("int8"), "tensorrt").data) as engine, OrtRunner(other) as graph:
        np.testing.assert_allclose(engine.infer(pixels())["scores"], graph.infer(pixels())["scores"], rtol=1e-5)


def test_the_next_build_finds_the_timings_of_the_first(gpu: Gpu) -> None:
    for warm in (0, 1):
        build_engine(MODEL, BuildRequest("int8"), "tensorrt")
        assert (gpu.builds, gpu.warm_builds) == (warm + 1, warm)
