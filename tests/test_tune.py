"""Forms of the graph on a simulated GPU: what is built, measured, passed over and chosen, and what is told of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundles import classifier, spec, write_images
from click.testing import CliRunner
from fake_builder import layer
from fake_gpu import Gpu, Planted, machine
from test_device import quantized

import edgeres
from edgeres.bundle import FP32, Bundle, new_bundle, seal
from edgeres.cli.engine import command
from edgeres.data.choose import DataChoice
from edgeres.device.targets import Flavour
from edgeres.engine.engines import EngineChoice
from edgeres.engine.inspector import count_kernels
from edgeres.errors import EngineError, UsageError
from edgeres.files import write_file
from edgeres.pipeline.engines import add_engines
from edgeres.pipeline.options import VerifyOptions
from edgeres.pipeline.trials import Budget, Kept
from edgeres.pipeline.tune import TuneChoice
from edgeres.pipeline.verify import verify_bundle
from edgeres.progress import SILENT
from edgeres.records import EngineRecord, FormRecord, FormTrial, Manifest
from edgeres.verify.latency import Turns, _TimedRunner

FLOAT = classifier()
STEPS = {"half": 0.1, "free": 0.035, "full": 0.035}  # of the codes; a smaller one is more accurate


def named(model: bytes, name: str) -> bytes:
    """A graph by whose name the device knows it."""
    graph = onnx.load_from_string(model)
    graph.graph.name = name
    return bytes(graph.SerializeToString())


@dataclass
class Shop:
    """A bundle with several forms on a machine with the simulated GPU; ``planted`` is what the GPU does with each."""

    gpu: Gpu
    bundle: Path
    planted: dict[str, Planted] = field(default_factory=dict)
    runtime: Flavour = "tensorrt"

    def tune(self, **how: Any) -> dict[str, tuple[EngineRecord, FormTrial]]:
        """Record and trial by form."""
        records = add_engines(self.bundle, self.runtime, EngineChoice(), tune=TuneChoice(**how))
        assert records == Bundle(self.bundle).manifest.engines
        return {record.trial.form: (record, record.trial) for record in records if record.trial}

    def chosen(self, **how: Any) -> str:
        (found,) = [name for name, (_, trial) in self.tune(**how).items() if trial.chosen]
        return found


@contextmanager
def opened(monkeypatch: pytest.MonkeyPatch, folder: Path, runtime: Flavour) -> Iterator[Shop]:
    """A shop for one of the vendor's two packages."""
    graphs = {name: named(quantized(step=step), name) for name, step in STEPS.items()}
    graphs["fp16"] = named(FLOAT, "fp16")
    forms = tuple(
        FormRecord(name, f"model.{name}.onnx", (runtime,), "fp16" if name == "fp16" else "int8", None, "float32", "")
        for name in graphs
    )
    path = folder / "tiny.edgeres"
    with new_bundle(path) as inside:
        for form in forms:
            write_file(inside / form.file, graphs[form.name])
        write_file(inside / FP32, named(FLOAT, "fp32"))
        write_file(inside / "model.int8.onnx", graphs["half"])
        seal(inside, Manifest(spec(), {}, {}, {}, {}, forms=forms, default_form={runtime: "half"}))
    gpu = Gpu()
    planted = {name: Planted(20.0, 0.02, seed) for seed, name in enumerate((*graphs, "fp32"))}
    found = Shop(gpu, path, planted, runtime)
    gpu.plants = lambda model: found.planted[model.graph.name]
    with machine(monkeypatch, gpu, flavours=(runtime,), cache=folder / "cache"):
        yield found


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Shop]:
    with opened(monkeypatch, tmp_path, "tensorrt") as found:
        yield found


@pytest.fixture
def rtx_shop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Shop]:
    with opened(monkeypatch, tmp_path, "rtx") as found:
        yield found


def test_rtx_chooses_by_the_clock_too(rtx_shop: Shop) -> None:
    rtx_shop.planted |= {
        "free": Planted(10.0, 0.02),
        "full": Planted(5.0, answers=quantized(classifier(seed=3))),
        "fp16": Planted(refused="no kernel"),
    }
    found = rtx_shop.tune()
    assert {name for name, (_, trial) in found.items() if trial.chosen} == {"free"}
    assert found["free"][1].p50_ms == pytest.approx(11.25, rel=0.01)
    assert found["full"][1].why.startswith("not accurate enough: ")
    assert found["fp16"][1].why.startswith("not built: ")
    report = verify_bundle(rtx_shop.bundle, validation(rtx_shop), VerifyOptions())
    assert report["accuracy"]["graph"] == "rtx int8 engine"
    assert report["latency"]["speedup"] == pytest.approx(21.25 / 11.25, rel=0.02)
    (engine,) = [check for check in report["checks"] if check["name"] == "engine"]
    assert engine["outcome"] == "passed" and "rtx int8 engine against its graph (free)" in engine["reason"]


def test_rtx_without_a_gpu_builds_what_bytes_and_kernels_chose(rtx_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(index: int = 0) -> Any:
        raise EngineError("no such GPU")

    built: list[str] = []
    plants = rtx_shop.gpu.plants
    rtx_shop.gpu.plants = lambda model: (built.append(model.graph.name), plants(model))[1]
    monkeypatch.setattr("edgeres.pipeline.engines.default_device", gone)
    ran = CliRunner().invoke(command, [str(rtx_shop.bundle), "--target", "rtx"])
    what = "the default form is taken, which was chosen by bytes and kernels"
    assert (ran.exit_code, f"rtx: forms are not measured here (no such GPU); {what}" in ran.stderr) == (0, True)
    (record,) = Bundle(rtx_shop.bundle).manifest.engines
    assert (built, record.precision, record.trial) == (["half"], "int8", None)


def test_the_fastest_form_is_kept_and_loaded(shop: Shop) -> None:
    shop.planted |= {"free": Planted(10.0, 0.02), "fp16": Planted(15.0, 0.02, 1)}
    found = shop.tune()
    assert found.keys() == {"half", "free", "full", "fp16"}
    assert {name for name, (_, trial) in found.items() if trial.chosen} == {"free"}
    assert [name for name, (record, _) in found.items() if record.file] == ["free", "fp16"]
    _, trial = found["free"]
    assert trial.why == "the fastest" and trial.p50_ms == pytest.approx(11.25, rel=0.01)
    assert trial.p50_ms_ci95 and trial.p50_ms_ci95[0] <= trial.p50_ms <= trial.p50_ms_ci95[1]
    assert found["half"][1].why.endswith("% slower than free") and found["half"][0].size_bytes > 0
    with edgeres.load(shop.bundle) as classify:
        assert classify.backend == "TensorRT 10.3.0 on Fake GPU"
    kept = {(one.precision, one.file) for one in Bundle(shop.bundle).manifest.engines if one.file}
    assert {precision for precision, _ in kept} == {"int8", "fp16", "fp32"}


@pytest.mark.parametrize("seed", range(4))
def test_noise_does_not_flip_the_choice(shop: Shop, seed: int) -> None:
    """Half and free take the same time but for noise of 5 %; the more accurate is taken whichever seems faster."""
    noisy = {name: Planted(10.0, 0.05, 100 * seed + i) for i, name in enumerate(("half", "free"))}
    shop.planted |= noisy | {"fp16": Planted(20.0)}
    assert shop.chosen() == "free"


def test_a_form_that_is_wrong_on_the_device_is_passed_over(shop: Shop) -> None:
    shop.planted["full"] = Planted(5.0, answers=quantized(classifier(seed=3)))
    shop.planted["free"] = Planted(10.0)
    found = shop.tune()
    record, trial = found["full"]
    assert found["free"][1].chosen and not trial.chosen
    assert trial.why.startswith("not accurate enough: ") and (record.file, trial.p50_ms) == (None, None)


def test_a_form_that_does_not_build_is_passed_over(shop: Shop) -> None:
    shop.planted["half"] = Planted(refused="Error Code 10: no implementation for node conv")
    shop.planted["free"] = Planted(10.0)
    found = shop.tune()
    assert found["free"][1].chosen
    assert found["half"][1].why.startswith("not built: TensorRT built no engine") and found["half"][0].size_bytes == 0


def test_fp16_is_taken_where_it_wins_and_int8_stays(shop: Shop) -> None:
    shop.planted["fp16"] = Planted(8.0)
    found = shop.tune()
    assert found["fp16"][1].chosen and "FP16 beats every INT8 form on this device" in found["fp16"][1].why
    assert sum(record.file is not None for record, _ in found.values()) == 2
    report = verify_bundle(shop.bundle, validation(shop), VerifyOptions())
    assert report["accuracy"]["graph"] == "tensorrt fp16 engine"
    assert report["latency"]["speedup_fp16"] == pytest.approx(9.25 / 21.25, rel=0.02)


def validation(shop: Shop) -> DataChoice:
    return DataChoice(validation=str(write_images(shop.bundle.parent / "images.npz", 24)))


def test_what_was_found_of_the_forms_is_in_the_report(shop: Shop) -> None:
    layers = (layer("CaskConvolution", "conv1", "Int8"), layer("Reformat", "x", "Half"))
    shop.planted["free"] = Planted(10.0, layers=layers)
    shop.tune()
    report = verify_bundle(shop.bundle, validation(shop), VerifyOptions())
    trials = {engine["trial"]["form"]: engine["trial"] for engine in report["engines"] if "trial" in engine}
    assert trials.keys() == {"half", "free", "full", "fp16"}
    assert trials["free"]["kernels"] == {
        "kernels": 2, "float_convolutions": 0, "reformats": 1, "slices": 0, "float_layers": 0
    }  # fmt: skip
    (engine,) = [check for check in report["checks"] if check["name"] == "engine"]
    assert engine["outcome"] == "passed" and "tensorrt int8 engine against its graph (free)" in engine["reason"]


def test_without_a_right_form_it_is_one_line(shop: Shop) -> None:
    for name in shop.planted:
        shop.planted[name] = Planted(refused="out of memory")
    with pytest.raises(EngineError, match="no form gives a right engine on this device") as caught:
        shop.tune()
    assert "\n" not in str(caught.value) and not Bundle(shop.bundle).manifest.engines


def test_an_interrupted_run_goes_on_where_it_stopped(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("edgeres.pipeline.tune.measure_latency", interrupt)
        with pytest.raises(KeyboardInterrupt):
            shop.tune()
    assert shop.gpu.builds == 4
    shop.tune()
    assert shop.gpu.builds == 5  # FP32, which comes last
    shop.tune()
    assert shop.gpu.builds == 10  # nothing is kept once the choice is made


def test_latencies_that_were_measured_are_kept(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two sessions records half of the turns; their sum is what one session records."""
    run = _TimedRunner.take_turn
    turns: list[str] = []

    def until(most: int) -> Any:
        def take_turn(self: _TimedRunner) -> None:
            if len(turns) == most:
                raise KeyboardInterrupt
            turns.append(self.runner.name)
            run(self)

        return take_turn

    whole = shop.tune()["half"][1].p50_ms
    with monkeypatch.context() as patch:
        patch.setattr(_TimedRunner, "take_turn", until(10**6))
        shop.tune()
        needed = len(turns)
        assert needed % 4 == 0 and needed > 32
        turns.clear()
        patch.setattr(_TimedRunner, "take_turn", until(needed // 2 + 1))  # in the midst of a round
        with pytest.raises(KeyboardInterrupt):
            shop.tune()
        turns.clear()
        patch.setattr(_TimedRunner, "take_turn", until(10**6))
        found = shop.tune()
    assert len(turns) == needed - needed // 8 * 4
    assert found["half"][1].p50_ms == pytest.approx(whole, rel=0.02)
    assert not list((shop.bundle.parent / "cache" / "trials").iterdir())


def test_latencies_of_other_engines_are_not_taken(shop: Shop, tmp_path: Path) -> None:
    kept = Kept({"half": tmp_path / "half.engine"})
    path = tmp_path / "cache" / "trials"
    with kept.turns({"half": b"engine"}) as turns:
        turns.block, turns.seconds = {"half": 2}, {"half": [1.0, 2.0]}
    with kept.turns({"half": b"engine"}) as turns:
        assert turns.seconds == {"half": [1.0, 2.0]}
    with kept.turns({"half": b"other"}) as turns:
        assert turns.seconds == {}
    (file,) = path.glob("*.json")
    for damaged in ("{", "[]", '{"engines": {}, "block": {"half": 0}, "seconds": {"half": [1]}}'):
        file.write_text(damaged)
        with kept.turns({"half": b"engine"}) as turns:
            assert not turns.fits(["half"])
    assert Turns({"a": 2, "b": 1}, {"a": [1.0] * 4, "b": [1.0] * 2}).fits("ab")
    assert not Turns({"a": 2, "b": 1}, {"a": [1.0] * 4, "b": [1.0] * 3}).fits("ab")
    assert not Turns({"a": 2}, {"a": [1.0] * 3}).fits("a")


def test_the_budget_leaves_time_to_measure(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each build takes 100 s: after two of them a third one would end at 300 s, and FP32 as well."""
    monkeypatch.setattr("edgeres.pipeline.trials.monotonic", lambda: 100.0 * shop.gpu.builds)
    found = shop.tune(budget_seconds=250)
    spent = "not built: the time budget of 250 s is spent"
    assert [trial.why == spent for _, trial in found.values()] == [False, False, True, True]
    assert next(iter(found)) == "half"  # the default is built in any case
    assert found["free"][1].p50_ms
    assert shop.gpu.builds == 2
    assert shop.tune(budget_seconds=1)["half"][1].chosen and shop.gpu.builds == 3


def test_a_build_is_given_up_where_the_budget_ends(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second build takes so long that nothing is left; it ends at the builder's next step."""
    built: list[str] = []

    def plants(model: onnx.ModelProto) -> Planted:
        built.append(model.graph.name)
        return shop.planted[model.graph.name]

    shop.gpu.plants = plants
    monkeypatch.setattr("edgeres.pipeline.trials.monotonic", lambda: 1000.0 if "free" in built else 0.0)
    found = shop.tune(budget_seconds=500)
    assert built == ["half", "free"]
    assert found["half"][1].chosen and found["free"][1].why == "not built: the time budget of 500 s is spent"


@pytest.mark.parametrize(
    ("left", "engines", "seconds"), [(1000.0, 8, 3.0), (24.0, 8, 2.0), (0.0, 8, 0.8), (-9.0, 1, 0.8)]
)
def test_engines_are_timed_for_what_is_left(
    monkeypatch: pytest.MonkeyPatch, left: float, engines: int, seconds: float
) -> None:
    monkeypatch.setattr("edgeres.pipeline.trials.monotonic", lambda: 0.0)
    plan = Budget(100.0, SILENT, started=left - 100.0).plan("", engines)
    assert plan.min_seconds == pytest.approx(seconds)


def test_a_cache_that_cannot_be_written_does_not_end_the_search(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for name in ("write_file", "write_json"):
        monkeypatch.setattr(f"edgeres.pipeline.trials.{name}", full)
    shop.planted["free"] = Planted(10.0)
    assert shop.chosen() == "free"


def test_one_form_is_built_alone_if_it_is_asked_for(shop: Shop) -> None:
    assert shop.tune(form="full").keys() == {"full"}
    with pytest.raises(UsageError, match="no form 'fulll' for tensorrt"):
        shop.tune(form="fulll")


@pytest.mark.parametrize(
    "wrong", [{"budget_seconds": float("nan")}, {"budget_seconds": 0}, {"min_sqnr_db": float("inf")}]
)
def test_what_is_no_limit_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"is a number of (seconds|decibels)"):
        TuneChoice(**wrong)  # type: ignore[arg-type]


def test_without_tuning_the_default_is_built(shop: Shop) -> None:
    assert shop.tune(tune=False) == {}
    (record,) = Bundle(shop.bundle).manifest.engines
    assert (record.precision, record.trial) == ("int8", None)


def test_a_later_run_replaces_the_table(shop: Shop) -> None:
    shop.planted["free"] = Planted(10.0)
    shop.tune()
    shop.planted["free"] = Planted(30.0)
    shop.planted["full"] = Planted(10.0)
    assert shop.chosen() == "full"


def test_the_command_tells_each_form(shop: Shop) -> None:
    shop.planted["free"] = Planted(10.0)
    ran = CliRunner().invoke(command, [str(shop.bundle), "--json"])
    forms = {row["trial"]["form"]: row["trial"]["chosen"] for row in json.loads(ran.stdout) if "trial" in row}
    assert (ran.exit_code, forms) == (0, {"half": False, "free": True, "full": False, "fp16": False})
    words = CliRunner().invoke(command, [str(shop.bundle)]).stdout
    assert "free: the fastest" in words and "% slower than free" in words


def test_a_machine_without_a_gpu_says_that_nothing_is_measured(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def gone(index: int = 0) -> Any:
        raise EngineError("no such GPU")

    monkeypatch.setattr("edgeres.pipeline.engines.default_device", gone)
    words = CliRunner().invoke(command, [str(shop.bundle)])
    assert "forms are not measured here (no such GPU); the default form is taken" in words.stderr
    assert words.exit_code == 0


@pytest.mark.parametrize(
    ("layers", "counts"),
    [
        ([], None),
        ([layer("CaskConvolution", "a", "Thirty-two wide channel vectorized row major Int8 format")], (1, 0, 0, 0, 0)),
        ([layer("CaskConvolution", "a", "Channel major FP16 format where channel % 8 == 0")], (1, 1, 0, 0, 0)),
        ([layer("gemm", "a", "Float"), layer("Reformat", "b", "Half"), layer("NoOp", "c", "Half")], (2, 1, 1, 0, 0)),
        ([layer("Slice", "pad", "Half"), layer("kgen", "__myl_Slic", "Int8"), layer("kgen", "__myl_Add", "Half")],
         (3, 0, 0, 2, 1)),
    ],
)  # fmt: skip
def test_kernels_are_counted_by_type_and_output(layers: list[dict[str, Any]], counts: Any) -> None:
    found = count_kernels(json.dumps({"Layers": layers, "Bindings": ["x"]}))
    assert (found and tuple(vars(found).values())) == counts


@pytest.mark.parametrize("text", ["", "no JSON", "[]", '{"Layers": ["conv1", "conv2"]}', '{"Layers": 3}'])
def test_an_inspector_that_says_nothing_counts_nothing(text: str) -> None:
    assert count_kernels(text) is None


def test_probes_are_compared_by_closed_forms() -> None:
    from edgeres.pipeline.select import on_probes

    said = np.eye(4, dtype=np.float32)
    other = said.copy()
    other[0] = [0, 1, 0, 0]
    assert on_probes(said, other) == (pytest.approx(10 * np.log10(4 / 2)), 75.0)
