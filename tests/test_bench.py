"""Benchmarks on this CPU, and reading a Jetson's state from a simulated tree of files."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import classifier, write_bundle
from click.testing import CliRunner
from fake_gpu import DOWNLOAD_MS, KERNELS_MS, UPLOAD_MS, installed, plan
from fake_gpu import Gpu as FakeGpu
from hypothesis import given
from hypothesis import strategies as st

from edgeres.bench import contenders
from edgeres.bench.board import Board, BoardState, Power, sampling, throttled
from edgeres.bench.contenders import BenchOptions
from edgeres.bench.session import bench, statistics
from edgeres.bundle import FP32, Bundle
from edgeres.cli.bench import command
from edgeres.device.gpu import Gpu
from edgeres.device.libraries import Availability
from edgeres.errors import BundleError, EngineError, EnvironmentError_, UsageError
from edgeres.graph.forms import FORMS
from edgeres.records import EngineRecord, Portability
from edgeres.runtime import TensorRTRunner
from edgeres.runtime.engine import Times

QUICK = {"warmup_seconds": 0.01, "min_seconds": 0.02, "power_seconds": 0.15}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    graph = classifier()
    return write_bundle(
        tmp_path_factory.mktemp("bench") / "tiny.edgeres", files={FP32: graph, FORMS["cpu"].file: graph}
    )


@pytest.fixture
def jetson(tmp_path: Path) -> Path:
    """The files of an Orin NX that are read."""
    root = tmp_path / "jetson"
    files = {
        "etc/nvpmodel.conf": "# modes\n< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=3 NAME=25W >\nCPU_ONLINE 1\n",
        "var/lib/nvpmodel/status": "pmode:0003 fmode:fanNull\n",
        "sys/class/devfreq/17000000.gpu/cur_freq": "612000000\n",
        "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
        "sys/class/devfreq/17000000.gpu/max_freq": "918000000\n",
        "sys/class/devfreq/15340000.vic/cur_freq": "115200000\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "729600\n",
        "sys/devices/system/cpu/cpu10/cpufreq/scaling_cur_freq": "1984000\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "48250\n",
        "sys/class/thermal/thermal_zone1/type": "cv0-thermal\n",  # a zone that is off: reading it fails
        "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
        "sys/class/thermal/cooling_device0/cur_state": "2\n",
        "sys/class/thermal/cooling_device1/type": "gpu-throttle-alert\n",
        "sys/class/thermal/cooling_device1/cur_state": "0\n",
        "sys/class/hwmon/hwmon3/name": "ina3221\n",
        "sys/class/hwmon/hwmon3/in1_label": "VDD_IN\n",
        "sys/class/hwmon/hwmon3/in1_input": "5000\n",
        "sys/class/hwmon/hwmon3/curr1_input": "1400\n",
        "sys/class/hwmon/hwmon3/in2_label": "VDD_CPU_GPU_CV\n",
        "sys/class/hwmon/hwmon3/in2_input": "5000\n",
        "sys/class/hwmon/hwmon3/curr2_input": "600\n",
        "sys/class/hwmon/hwmon3/in3_label": "NC\n",
        "sys/class/hwmon/hwmon3/in3_input": "5000\n",
        "sys/class/hwmon/hwmon3/curr3_input": "9\n",
        "sys/class/hwmon/hwmon3/in7_label": "sum of shunt voltages\n",
        "sys/class/hwmon/hwmon3/in7_input": "77\n",
        "sys/class/hwmon/hwmon4/name": "soctherm_oc\n",
        "sys/class/hwmon/hwmon4/oc3_event_cnt": "5\n",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def change(root: Path, name: str, text: str) -> None:
    (root / name).write_text(text)


# --- the board -------------------------------------------------------------------------------------------------------


def test_a_jetson_is_read(jetson: Path) -> None:
    state = Board(jetson).look()
    assert state == BoardState(
        power_mode="25W",
        gpu_hz=612_000_000,
        gpu_min_hz=306_000_000,
        gpu_max_hz=918_000_000,
        cpu_hz=(729_600_000, 1_984_000_000),
        celsius={"cpu-thermal": 48.25},
        watts={"VDD_IN": 7.0, "VDD_CPU_GPU_CV": 3.0},
        throttles={"gpu-throttle-alert": 0, "oc3": 5},
    )
    assert state.total_watts == 7.0  # the rail that feeds the other
    assert state.clocks_locked is False


def test_the_input_of_thor_has_no_name(jetson: Path) -> None:
    """An INA238 beside the INA3221: one channel in microwatts, which is all of the module's power."""
    chip = jetson / "sys/class/hwmon/hwmon5"
    chip.mkdir()
    for file, value in (("name", "ina238"), ("power1_input", 27_500_000), ("in1_input", 12), ("curr1_input", 2291)):
        (chip / file).write_text(f"{value}\n")
    change(jetson, "sys/class/hwmon/hwmon3/in1_label", "VDD_GPU\n")
    state = Board(jetson).look()
    assert state.watts == {"VIN": 27.5, "VDD_GPU": 7.0, "VDD_CPU_GPU_CV": 3.0}
    assert state.total_watts == 27.5
    (chip / "power1_input").unlink()
    assert Board(jetson).look().total_watts == 10.0


def test_rails_of_an_agx_orin_add_up(jetson: Path) -> None:
    for channel, (name, volts, amperes) in enumerate(
        [("VDD_GPU_SOC", 12000, 500), ("VDD_CPU_CV", 12000, 250), ("VIN_SYS_5V0", 5000, 800)], start=1
    ):
        for file, value in (("in{}_label", name), ("in{}_input", volts), ("curr{}_input", amperes)):
            change(jetson, f"sys/class/hwmon/hwmon3/{file.format(channel)}", f"{value}\n")
    second = jetson / "sys/class/hwmon/hwmon12"
    second.mkdir()
    for file, value in (
        ("name", "ina3221"),
        ("in2_label", "VDDQ_VDD2_1V8AO"),
        ("in2_input", 5000),
        ("curr2_input", 100),
    ):
        (second / file).write_text(f"{value}\n")
    state = Board(jetson).look()
    assert state.watts == {"VDD_GPU_SOC": 6.0, "VDD_CPU_CV": 3.0, "VIN_SYS_5V0": 4.0, "VDDQ_VDD2_1V8AO": 0.5}
    assert state.total_watts == 13.0


@pytest.mark.parametrize(
    ("status", "conf", "mode"),
    [
        ("pmode:0000", "< POWER_MODEL ID=0 NAME=MAXN_SUPER >", "MAXN_SUPER"),
        ("pmode:0002", "< POWER_MODEL ID=0 NAME=MAXN >", "mode 2"),
        ("garbage", "", None),
    ],
)
def test_power_modes(jetson: Path, status: str, conf: str, mode: str | None) -> None:
    change(jetson, "var/lib/nvpmodel/status", status)
    change(jetson, "etc/nvpmodel.conf", conf)
    assert Board(jetson).look().power_mode == mode


def test_a_machine_without_such_files_tells_nothing(tmp_path: Path) -> None:
    state = Board(tmp_path).look()
    assert state == BoardState()
    assert (state.total_watts, state.clocks_locked) == (None, None)


def test_throttling_is_seen(jetson: Path) -> None:
    board = Board(jetson)
    before = board.look()
    assert throttled(before, before) == []
    change(jetson, "sys/class/hwmon/hwmon4/oc3_event_cnt", "6\n")
    assert throttled(before, board.look()) == ["oc3: 1 over-current event"]
    change(jetson, "sys/class/hwmon/hwmon4/oc3_event_cnt", "5\n")
    change(jetson, "sys/class/thermal/cooling_device1/cur_state", "1\n")
    change(jetson, "sys/class/devfreq/17000000.gpu/max_freq", "510000000\n")
    assert throttled(before, board.look()) == [
        "gpu-throttle-alert is on",
        "the GPU's highest clock fell from 918 to 510 MHz",
    ]


@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0, 100)), min_size=2, max_size=20))
def test_mean_power_is_that_of_the_polygon(steps: list[tuple[float, float]]) -> None:
    times, watts = np.cumsum([seconds for seconds, _ in steps]), [watts for _, watts in steps]
    found = Power(list(zip(times.tolist(), watts, strict=True))).mean_watts
    trapezoid = getattr(np, "trapezoid", None) or np.trapz  # the name changed in NumPy 2
    assert found == pytest.approx(trapezoid(watts, times) / (times[-1] - times[0]), abs=1e-9)


def test_power_is_sampled_while_something_runs(jetson: Path) -> None:
    with sampling(Board(jetson), every_seconds=0.005) as power:
        while len(power.samples) < 5:
            pass
        change(jetson, "sys/class/hwmon/hwmon3/curr1_input", "2000\n")
        while power.samples[-1][1] != 10.0:
            pass
    times = [seconds for seconds, _ in power.samples]
    assert times == sorted(times)
    assert {watts for _, watts in power.samples} == {7.0, 10.0}
    assert power.mean_watts is not None and 7.0 < power.mean_watts < 10.0
    assert Power().mean_watts is None


# --- the measurement -------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=200))
def test_percentiles_are_trtexecs(seconds: list[float]) -> None:
    """Percentiles as in ``sampleReporting.cpp``: sorted[max(n - 1 - int((1 - p / 100) n), 0)]."""
    found, ordered = statistics(np.array(seconds)), sorted(seconds)
    for percent in (90, 95, 99):
        index = max(len(seconds) - 1 - int((1 - percent / 100) * len(seconds)), 0)
        assert found[f"p{percent}_ms"] == pytest.approx(1e3 * ordered[index])
    assert found["min_ms"] == pytest.approx(1e3 * ordered[0])
    assert found["max_ms"] == pytest.approx(1e3 * ordered[-1])
    assert found["mean_ms"] == pytest.approx(1e3 * math.fsum(seconds) / len(seconds))


def test_three_precisions_in_one_run(bundle: Path) -> None:
    options = BenchOptions(batch=2, **QUICK)
    found = json.loads(json.dumps(bench(bundle, options), allow_nan=False))
    assert list(found["precisions"]) == ["fp32", "fp16", "int8"]
    for of in found["precisions"].values():
        assert of["iterations"] >= 10 and of["seconds"] >= 0.02
        assert of["Throughput"]["images_per_second"] == pytest.approx(2 * of["iterations"] / of["seconds"])
        assert of["Throughput"]["qps"] == pytest.approx(of["iterations"] / of["seconds"])
        assert (
            of["Latency"]["min_ms"] <= of["Latency"]["median_ms"] <= of["Latency"]["p99_ms"] <= of["Latency"]["max_ms"]
        )
        assert of["Enqueue Time"] is None and of["GPU Compute Time"] is None and of["cuda_graph"] is None
        assert of["Host to Host"] == of["Latency"] and of["timed_iterations"] == 0
    assert set(found["speedup"]) == {"int8 over fp32", "int8 over fp16"}
    assert found["settings"]["scope"] == "host to host, batch 2, 1 thread" and found["settings"]["interleaved"]
    assert "nothing is enqueued" in found["reasons"]["Enqueue Time"]
    if found["board"]["after"] is None:
        assert "no power" in found["reasons"]["energy"]


def test_energy_per_image_on_a_board_that_tells_power(bundle: Path, jetson: Path) -> None:
    """With constant 7 W, energy per image is 7 W divided by the images per second, and none is above rest."""
    found = bench(bundle, BenchOptions(precisions=("fp32", "int8"), **QUICK), board=Board(jetson))
    for of in found["precisions"].values():
        energy = of["energy"]
        assert energy["mean_w"] == energy["idle_w"] == pytest.approx(7.0)
        assert energy["per_image_mj"] == pytest.approx(1e3 * 7.0 * energy["seconds"] / energy["images"])
        assert energy["seconds"] >= QUICK["power_seconds"] and energy["images"] > 0
        assert energy["per_image_above_idle_mj"] == pytest.approx(0, abs=1e-9)
        assert energy["samples"] >= 2
    assert found["board"]["after"]["total_of"] == ["VDD_IN"]
    assert found["board"]["throttled"] == []
    assert any("jetson_clocks" in line for line in found["warnings"])


def test_what_the_bundle_lacks(tmp_path: Path) -> None:
    fp32 = write_bundle(tmp_path / "a.edgeres", files={FP32: classifier()})
    found = bench(fp32, BenchOptions(**QUICK))
    assert list(found["precisions"]) == ["fp32", "fp16"]
    assert "has no model.int8.cpu.onnx" in found["reasons"]["int8"]
    assert found["speedup"] == {}
    with pytest.raises(
        EnvironmentError_, match=r"the bundle has no model\.int8\.cpu\.onnx; build it with --target cpu"
    ):
        bench(fp32, BenchOptions(precisions=("int8",), **QUICK))
    nothing = write_bundle(tmp_path / "b.edgeres", files={FORMS["tensorrt"].file: classifier()})
    with pytest.raises(BundleError, match="has no graph for this machine's CPU"):
        bench(nothing, BenchOptions(**QUICK))


def with_engines(path: Path, **contents: bytes) -> Path:
    """A bundle with an engine of each precision, built on SM 8.6."""
    write_bundle(path, files={FP32: classifier(), FORMS["cpu"].file: classifier()})
    records = {
        EngineRecord(
            "tensorrt",
            "tensorrt",
            "10.3.0",
            name,
            "built",
            f"engines/{name}.engine",
            3,
            Portability(("8.6",)),  # type: ignore[arg-type]
        ): data
        for name, data in contents.items()
    }
    Bundle(path).add_engines(records)
    return path


@pytest.fixture(params=[("driver", False), ("driver", True), ("pycuda", False)], ids=str)
def fake(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    """A machine with TensorRT and a simulated GPU with a known clock; one is a Jetson."""
    library, integrated = request.param
    gpu = FakeGpu(integrated=integrated)
    here = Availability("tensorrt", True, "10.3.0", Gpu("Fake GPU", "8.6", 8 << 30, "12.6"))
    monkeypatch.setattr(contenders, "available", lambda flavour: here)
    with installed(monkeypatch, gpu, library, "tensorrt"):
        yield gpu
        assert (gpu.faults, gpu.live(), gpu.stack) == ([], [], [])


def test_engines_that_do_not_run_here(tmp_path: Path) -> None:
    path = with_engines(tmp_path / "x.edgeres", int8=b"abc", fp32=b"abc")
    missing = bench(path, BenchOptions(precisions=("int8",), **QUICK))
    assert missing["backend"].startswith("ONNX Runtime")
    assert "engines do not run here" in missing["reasons"]["tensorrt"]
    with pytest.raises(EngineError, match="tensorrt engines do not run here"):
        bench(path, BenchOptions(backend="tensorrt", **QUICK))


def test_engines_are_measured_where_they_run(fake: FakeGpu, tmp_path: Path) -> None:
    path = with_engines(tmp_path / "x.edgeres", int8=plan(classifier()), fp32=plan(classifier(seed=1)))
    found = json.loads(json.dumps(bench(path, BenchOptions(batch=2, **QUICK)), allow_nan=False))
    assert list(found["precisions"]) == ["fp32", "int8"]
    assert found["backend"] == "TensorRT 10.3.0 on Fake GPU"
    copies = "no copies: both sides share one memory" if fake.integrated else "copies included"
    assert found["settings"]["scope"] == f"host to host, batch 2, {copies}"
    assert found["settings"]["transfers"] is not fake.integrated
    assert found["reasons"]["fp16"] == "the bundle has no such engine"
    wanted = {
        "H2D Latency": 0 if fake.integrated else UPLOAD_MS,
        "GPU Compute Time": KERNELS_MS,
        "D2H Latency": 0 if fake.integrated else DOWNLOAD_MS,
    }
    inferences = 0
    for of in found["precisions"].values():
        for name, ms in {**wanted, "Latency": sum(wanted.values())}.items():
            assert of[name] == pytest.approx(dict.fromkeys(of["Latency"], ms))
        assert 0 < of["Enqueue Time"]["min_ms"] < of["Host to Host"]["max_ms"]
        assert of["Throughput"]["images_per_second"] == pytest.approx(2 * of["iterations"] / of["seconds"])
        assert of["timed_iterations"] >= 10
        inferences += of["iterations"] + of["timed_iterations"]
        assert of["cuda_graph"] is (fake.launches > 0)
    assert fake.executions > inferences
    assert not any("GPU Compute Time" in line for line in found["warnings"])  # this GPU is steady


@pytest.mark.parametrize("fake", [("driver", False)], indirect=True)
def test_what_trtexec_warns_of(fake: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(range(10**6))

    def unsteady(runner: Any, feed: Any) -> tuple[Any, Times]:
        return {}, Times(enqueue=0.9e-3, upload=0.0, compute=(1 + 0.1 * (next(times) % 2)) * 1e-3, download=0.0)

    monkeypatch.setattr(TensorRTRunner, "timed", unsteady)
    path = with_engines(tmp_path / "x.edgeres", int8=plan(classifier()))
    found = bench(path, BenchOptions(**QUICK))["warnings"]
    assert any(re.match(r"int8: GPU Compute Time varies by [45]\.\d % \(above 2\.5 %\)", line) for line in found)
    assert any(line.startswith("int8: the CPU takes about as long to start the kernels") for line in found)


@pytest.mark.parametrize("fake", [("driver", False)], indirect=True)
def test_the_engine_that_fits_is_measured(fake: FakeGpu, tmp_path: Path) -> None:
    """An engine for another GPU is skipped, and missing precisions have a reason."""
    path = with_engines(tmp_path / "x.edgeres", int8=plan(classifier()))
    (own,) = Bundle(path).manifest.engines
    Bundle(path).add_engines({replace(own, file="engines/a.engine", portability=Portability(("8.9",))): b"for another"})
    found = bench(path, BenchOptions(backend="tensorrt", **QUICK))
    assert found["precisions"]["int8"]["file"] == "engines/int8.engine"
    with pytest.raises(EngineError, match="holds no fp16 engine for tensorrt; edgeres engine BUNDLE --also"):
        bench(path, BenchOptions(backend="tensorrt", precisions=("fp16",), **QUICK))


@pytest.mark.parametrize("fake", [("driver", False)], indirect=True)
def test_the_command_shows_the_times_of_the_gpu(fake: FakeGpu, tmp_path: Path) -> None:
    path = with_engines(tmp_path / "x.edgeres", int8=plan(classifier()))
    done = CliRunner().invoke(command, [str(path), "--duration", "0.02", "--warmup", "1"])
    assert done.exit_code == 0, done.output
    assert "Enqueue Time" in done.output and f"{KERNELS_MS:.3f} ({KERNELS_MS:.3f})" in done.output


def test_a_damaged_graph_is_not_measured(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy.edgeres"))
    (copy / FP32).write_bytes(b"changed")
    with pytest.raises(BundleError, match=r"model\.fp32\.onnx was changed after it was written"):
        bench(copy, BenchOptions(**QUICK))


@pytest.mark.parametrize(
    "wrong", [{"batch": 0}, {"min_seconds": math.nan}, {"min_seconds": math.inf}, {"warmup_seconds": -1}]
)
def test_what_cannot_be_measured(bundle: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="must be a number"):
        bench(bundle, BenchOptions(**wrong))


def test_the_command_shows_what_it_measured(bundle: Path) -> None:
    done = CliRunner().invoke(command, [str(bundle), "--duration", "0.02", "--warmup", "1", "--precision", "int8"])
    assert done.exit_code == 0, done.output
    assert "host to host, batch 1, 1 thread" in done.output and "Throughput" in done.output
    assert "1 ms warm-up, then at least 0.02 s and 10 inferences" in done.output
    for wrong in (["--batch", "0"], ["--duration", "0"], ["--precision", "int4"]):
        assert CliRunner().invoke(command, [str(bundle), *wrong]).exit_code == 2
