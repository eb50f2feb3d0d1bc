"""Profiles: of a graph on this CPU, of engines on the simulated GPU, and of files from trtexec and ONNX Runtime."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from bundles import classifier, write_bundle
from click.testing import CliRunner
from fake_builder import layer
from fake_gpu import DOWNLOAD_MS, KERNELS_MS, UPLOAD_MS, Gpu, Planted, machine, plan
from hypothesis import given
from hypothesis import strategies as st

from edgeres.bundle import FP32, Bundle
from edgeres.cli.profile import command
from edgeres.errors import EngineError, InputError, UsageError
from edgeres.graph.forms import FORMS
from edgeres.profiling.files import read_profile
from edgeres.profiling.layers import Facts, Profile, Run, Slice, type_in
from edgeres.profiling.measure import ProfileOptions, profile_bundle
from edgeres.profiling.trace import chrome_trace
from edgeres.records import EngineRecord, Portability
from edgeres.runtime import OrtRunner

CONV = "conv + relu"
LAYERS = (
    layer("CaskConvolution", CONV, "Int8 NHWC32", read="Row major linear FP32"),
    layer("Reformat", "to half", "Half"),
    layer("gemm", "fc", "Float"),
    layer("Constant", "weights", "Float"),
)
TIMES = ((CONV, 4.0), ("to half", 0.5), ("fc", 1.5))
PLANTED = Planted(layers=LAYERS, times=TIMES)
OPTIONS = ProfileOptions(runs=4, batch=2)


def engine_bundle(folder: Path, runtime: str = "tensorrt", planted: Planted = PLANTED) -> Path:
    path = write_bundle(folder / "robot.edgeres", files={FP32: classifier(), FORMS["cpu"].file: classifier()})
    version = "10.3.0" if runtime == "tensorrt" else "1.7.1.116"
    record = EngineRecord(
        "desktop", runtime, version, "int8", "built", f"engines/{runtime}.engine", 1, Portability(("8.6",))
    )
    Bundle(path).add_engines({record: plan(classifier(), runtime, planted=planted)}, {})
    return path


def run(*arguments: object) -> Any:
    return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)


def graph_bundle(folder: Path) -> Path:
    return write_bundle(folder / "cpu.edgeres", files={FORMS["cpu"].file: classifier()})


# --- engines on the simulated GPU ------------------------------------------------------------------------------------


@pytest.mark.parametrize("runtime", ["tensorrt", "rtx"])
def test_an_engines_layers_and_what_is_outside_of_them(
    runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 ms by the GPU's clock, of which the planted layers are 6, and the copies beside them."""
    path = engine_bundle(tmp_path, runtime)
    with machine(monkeypatch, Gpu(), flavours=(runtime,), cache=tmp_path):
        found = profile_bundle(path, OPTIONS)
    told = json.loads(json.dumps(found.profile.to_dict(), allow_nan=False))
    rows = {row["name"]: row for row in told["layers"]}
    assert list(rows) == [CONV, "to half", "fc", "weights"]
    assert [(row["kind"], row["precision"], row["ms"]) for row in rows.values()] == [
        ("CaskConvolution", "float32 -> int8", 4.0),
        ("Reformat", "float16", 0.5),
        ("gemm", "float32", 1.5),
        ("Constant", "float32", None),
    ]
    assert rows[CONV]["share"] == pytest.approx(4 / 6) and rows[CONV]["told"]["TacticName"] == "CaskConvolution_tactic"
    assert told["outside"] == pytest.approx(
        {"copy to the GPU": UPLOAD_MS, "copy from the GPU": DOWNLOAD_MS, "between layers": KERNELS_MS - 6.0}
    )
    assert told["without_profiler_ms"] == pytest.approx(UPLOAD_MS + KERNELS_MS + DOWNLOAD_MS)
    assert told["runs"] == 4 and found.backend.startswith("TensorRT") and found.passed_over == ()


def test_layers_that_take_longer_one_by_one_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = engine_bundle(tmp_path, planted=Planted(layers=LAYERS, times=((CONV, 7.0), ("fc", 1.25))))
    with machine(monkeypatch, Gpu()):
        told = profile_bundle(path, OPTIONS).profile.to_dict()
    assert told["outside"]["between layers"] == 0
    assert told["notes"] == ["timed one by one, the layers take 0.250 ms more than the engine without the profiler"]


def test_an_engine_that_names_its_layers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = engine_bundle(tmp_path, planted=Planted(times=TIMES))
    with machine(monkeypatch, Gpu()):
        told = profile_bundle(path, OPTIONS).profile.to_dict()
    assert [(row["name"], row["kind"], row["precision"]) for row in told["layers"]] == [
        (name, None, None) for name, _ in TIMES
    ]
    assert "says nothing of its layers' types" in told["notes"][0]


def test_an_engine_without_times_and_a_batch_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = engine_bundle(tmp_path, planted=Planted(layers=LAYERS))
    with machine(monkeypatch, Gpu()):
        with pytest.raises(EngineError, match="the engine reports no time of a layer"):
            profile_bundle(path, OPTIONS)
        with pytest.raises(UsageError, match="takes at most 8 images at once; --batch 8"):
            profile_bundle(path, ProfileOptions(batch=9))


# --- a graph on this CPU ---------------------------------------------------------------------------------------------


def test_a_graphs_kernels_on_this_cpu(tmp_path: Path) -> None:
    found = profile_bundle(graph_bundle(tmp_path), ProfileOptions(backend="cpu", runs=5))
    told = found.profile.to_dict()
    assert {"Conv", "Gemm"} <= {str(row["kind"]).removeprefix("Fused") for row in told["layers"]}
    assert {row["precision"] for row in told["layers"]} == {"float32"}
    assert len(found.profile.runs) == 5 == told["runs"]
    for one in found.profile.runs:  # layers lie inside of their run, one after the other
        assert one.ms is not None and one.start_ms is not None and one.layers_ms <= one.ms
        starts = [part.start_ms for part in one.slices]
        assert starts == sorted(starts) and starts[0] >= one.start_ms
        assert one.slices[-1].start_ms + one.slices[-1].ms <= one.start_ms + one.ms + 1e-9
    assert told["outside_ms"] >= 0 and told["without_profiler_ms"] > 0
    assert sum(row["share"] for row in told["layers"]) == pytest.approx(1)


def test_the_session_under_the_profiler_computes_the_same_and_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(classifier())
    images = np.ones((1, 3, 8, 8), np.float32)
    with OrtRunner(path) as runner:
        before = runner.infer({"pixels": images})["scores"]
        events = json.loads(runner.trace({"pixels": images}, 2))
        np.testing.assert_array_equal(before, runner.infer({"pixels": images})["scores"])
        with pytest.raises(InputError, match="found float64"):
            runner.trace({"pixels": images.astype(np.float64)}, 2)
    assert sum(event["name"] == "model_run" for event in events) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["graph.onnx"]
    with OrtRunner(classifier()) as runner, pytest.raises(UsageError, match="only a graph in a file"):
        runner.trace({"pixels": images}, 1)


def test_a_profile_that_onnx_runtime_wrote(tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "ort")
    session = ort.InferenceSession(classifier(), options, providers=["CPUExecutionProvider"])
    for _ in range(3):
        session.run(None, {"pixels": np.ones((1, 3, 8, 8), np.float32)})
    file = Path(session.end_profiling())
    profile = read_profile(file)
    events = json.loads(file.read_text())
    nodes = [event["dur"] for event in events if event["cat"] == "Node"]
    assert len(profile.runs) == 3
    assert sum(one.layers_ms for one in profile.runs) == pytest.approx(sum(nodes) / 1e3)
    assert run(file).output.startswith(f"{file.name} on ONNX Runtime")


# --- files of trtexec ------------------------------------------------------------------------------------------------


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def trtexec_files(folder: Path, *, detailed: bool = True) -> tuple[Path, Path]:
    """Files as sampleReporting.cpp and the engine inspector write them."""
    entries = [
        {"name": name, "timeMs": 10 * ms, "averageMs": ms, "medianMs": ms, "percentage": 100 * ms / 6}
        for name, ms in TIMES
    ]
    listed = list(LAYERS) if detailed else [one["Name"] for one in LAYERS]
    content = {"Layers": listed, "Bindings": ["pixels", "scores"]}
    return write(folder / "profile.json", [{"count": 10}, *entries]), write(folder / "layers.json", content)


def test_the_files_of_trtexec(tmp_path: Path) -> None:
    profile, layers = trtexec_files(tmp_path)
    told = read_profile(profile, layers).to_dict()
    assert [(row["name"], row["ms"], row["precision"]) for row in told["layers"][:3]] == [
        (CONV, 4.0, "float32 -> int8"),
        ("to half", 0.5, "float16"),
        ("fc", 1.5, "float32"),
    ]
    assert (told["runs"], told["statistic"], told["run_ms"], told["outside_ms"]) == (10, "mean", None, None)
    assert told["precisions"][0] == {"precision": "float32 -> int8", "layers": 1, "ms": 4.0, "share": 4 / 6}
    shown = run(profile, "--layers", layers).output
    assert "outside any layer: not known" in shown and "1 listed layers take no time" in shown
    assert "66.7 %" in shown


def test_older_profiles_have_total_times_alone_and_engines_names_alone(tmp_path: Path) -> None:
    profile, layers = trtexec_files(tmp_path, detailed=False)
    write(profile, [{"count": 4}, {"name": CONV, "timeMs": 8.0}])
    found = read_profile(profile, layers)
    assert found.to_dict()["layers"][0]["ms"] == 2.0
    assert any("--profilingVerbosity=detailed" in note for note in found.notes)
    assert any("--layers FILE" in note for note in read_profile(profile).notes)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "is not a profile"),
        ("{", "is not a profile"),
        ({}, "is no profile; give what trtexec"),
        ([], "is no profile; give what trtexec"),
        ([1], "is no profile"),
        ([{"count": 3}], "counts no run or names no layer"),
        ([{"count": 0}, {"name": "a", "timeMs": 1}], "counts no run"),
        ([{"name": "a", "averageMs": 1}], "counts no run"),
        ([{"count": 3}, {"name": "a", "averageMs": "fast"}], "is no profile of trtexec ('fast' is no time"),
        ([{"count": 3}, {"name": "a"}], "is no profile of trtexec"),
        ([{"count": 3}, {"name": "a", "averageMs": -1}], "-1 is no time"),
        ('[{"count": 3}, {"name": "a", "averageMs": NaN}]', "expected a finite number"),
        ("[" * 100 + "]" * 100, "nested more than"),
        ([{"ph": "X", "name": "model_run", "ts": 0, "dur": 3}], "names no layer"),
        ([{"ph": "X", "name": "x_kernel_time", "cat": "Node", "ts": 0, "dur": 3}], "holds no inference"),
        ([{"ph": "X", "name": "model_run", "ts": "now", "dur": 3}], "is no trace of ONNX Runtime"),
        ([{"ph": "X"}], "is no trace of ONNX Runtime"),
    ],
)
def test_files_that_are_no_profile(content: object, why: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as failed:
        read_profile(write(tmp_path / "p.json", content))
    assert why in str(failed.value) and str(tmp_path / "p.json") in str(failed.value)


def test_layers_of_another_engine_and_options_that_do_not_fit(tmp_path: Path) -> None:
    profile, layers = trtexec_files(tmp_path)
    with pytest.raises(InputError, match=r"names none of the layers in .*profile.json; give files of the same engine"):
        read_profile(profile, write(tmp_path / "other.json", {"Layers": ["stem", "head"]}))
    with pytest.raises(InputError, match="lists no layers"):
        read_profile(profile, write(tmp_path / "none.json", {"Bindings": []}))
    with pytest.raises(UsageError, match="were measured already; leave out --runs"):
        run(profile, "--runs", 3)
    with pytest.raises(UsageError, match="lists its layers itself"):
        run(graph_bundle(tmp_path), "--layers", layers)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        key: JSON | value
        for key, value in {
            "count": st.integers(1, 9),
            "name": st.sampled_from(["model_run", "a_kernel_time"]),
            "averageMs": st.floats(0, 1e300),
            "timeMs": st.floats(0, 1e300),
            "ph": st.just("X"),
            "cat": st.just("Node"),
            "ts": st.integers(0, 9),
            "dur": st.integers(0, 9),
            "args": st.fixed_dictionaries({}, optional={"input_type_shape": JSON, "op_name": JSON}),
        }.items()
    },
)


@given(st.lists(ENTRY, max_size=4) | JSON, JSON | st.fixed_dictionaries({"Layers": st.lists(JSON, max_size=3)}))
def test_whatever_a_file_holds_is_read_or_refused(content: object, layers: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = [write(Path(folder) / f"{index}.json", one) for index, one in enumerate((content, layers))]
        for given_layers in (None, files[1]):
            try:
                profile = read_profile(files[0], given_layers)
            except InputError:
                continue
            json.dumps(profile.to_dict(), allow_nan=False)
            json.dumps(chrome_trace(profile, ""), allow_nan=False)


def test_runs_that_other_programs_disturbed_are_said() -> None:
    """In each of three runs another layer takes 10 ms: the medians are 1 ms, and every run takes 13 ms."""
    runs = [[10.0 if layer == run else 1.0 for layer in range(3)] for run in range(3)]
    quiet, noisy = (
        Profile(
            "test", tuple(Run(tuple(Slice(f"l{i}", ms) for i, ms in enumerate(one)), sum(one) + 1.0) for one in many)
        )
        for many in ([[1.0, 1.0, 1.0]] * 3, runs)
    )
    assert quiet.to_dict()["notes"] == []
    told = noisy.to_dict()
    assert (told["layers_ms"], told["run_ms"], told["outside_ms"]) == (3.0, 13.0, 1.0)
    assert told["notes"] == [
        "the medians of the parts add up to 4.000 ms, and a run takes 13.000 ms: other programs disturbed the runs"
    ]


# --- what is shown ---------------------------------------------------------------------------------------------------


def test_the_table_fits_80_columns_whatever_the_names_are(tmp_path: Path) -> None:
    names = ["layer1/" * 40 + "conv", "short", "[ONNX \x1b[2J]\nnode"]
    times = [{"name": name, "averageMs": 1234.5} for name in names]
    facts = [
        {**layer("a_very_long_kind_of_layer", name, "Thirty-two wide Int8"), "ParameterType": "x" * 99}
        for name in names
    ]
    profile = write(tmp_path / "p.json", [{"count": 7}, *times])
    shown = run(profile, "--layers", write(tmp_path / "l.json", {"Layers": facts})).output
    assert max(map(len, shown.splitlines())) <= 80
    assert "layer1/layer1/...er1/layer1/conv" in shown and "\x1b" not in shown


def test_top_layers_first_and_the_rest_in_one_line(tmp_path: Path) -> None:
    profile = write(tmp_path / "p.json", [{"count": 2}, *({"name": f"l{ms}", "averageMs": ms} for ms in range(1, 21))])
    lines = run(profile, "--top", 2).output.splitlines()
    assert [line.split()[0] for line in lines[4:6]] == ["l20", "l19"]
    assert lines[6].split() == ["18", "more", "(--top", "0", "shows", "all)", "171.000", "81.4", "%"]
    assert len([line for line in run(profile, "--top", 0).output.splitlines() if line.startswith("l")]) == 21


def test_the_command_on_a_bundle_as_text_json_and_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, trace = engine_bundle(tmp_path), tmp_path / "trace.json"
    with machine(monkeypatch, Gpu()):
        shown = run(path, "--runs", 3, "--trace", trace)
        told = json.loads(run(path, "--runs", 3, "--json").output)
    assert shown.exit_code == 0 and max(map(len, shown.output.replace(str(trace), "").splitlines())) <= 80
    assert "outside any layer: between layers" in shown.output and f"trace: {trace}" in shown.output
    assert told["backend"].startswith("TensorRT 10.3.0") and told["layers"][0]["name"] == CONV
    events = json.loads(trace.read_text())["traceEvents"]
    assert sum(event["ph"] == "X" and event["cat"] == "layer" for event in events) == 9


def test_an_engine_that_does_not_run_here_is_noted(tmp_path: Path) -> None:
    """This machine has no TensorRT: the CPU graph is profiled, and the reason is shown."""
    shown = run(engine_bundle(tmp_path), "--runs", 1).output
    assert "on ONNX Runtime" in shown.splitlines()[0] and "note: not used: tensorrt:" in shown


# --- traces ----------------------------------------------------------------------------------------------------------

TIMES_MS = st.floats(0, 50)


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    """Runs with or without starts, whose layers lie inside of them."""
    timed, at, runs = draw(st.booleans()), draw(st.floats(0, 1e4)), []
    for _ in range(draw(st.integers(1, 4))):
        lengths = draw(st.lists(TIMES_MS, min_size=1, max_size=4))
        gaps = [draw(TIMES_MS) for _ in lengths]
        begin, slices = at, []
        for index, (gap, length) in enumerate(zip(gaps, lengths, strict=True)):
            at += gap
            slices.append(Slice(f"l{index}", length, at if timed else None))
            at += length
        runs.append(Run(tuple(slices), at - begin if timed else None, begin if timed else None))
        at += draw(TIMES_MS)
    return Profile("test", tuple(runs), facts={"l0": Facts("Conv", "int8", "int8")})


@given(profiles())
def test_slices_of_a_trace_nest(profile: Profile) -> None:
    """Perfetto draws slices of one thread only where each ends before its parent does: up to the rounding to ns."""
    trace = json.loads(json.dumps(chrome_trace(profile, "title"), allow_nan=False))
    stack: list[float] = []
    slices = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    for event in slices:
        assert {"name", "cat", "ph", "ts", "dur", "pid", "tid"} <= event.keys() and event["ts"] >= 0
        depth = 1 if event["cat"] == "layer" else 0
        del stack[depth:]
        assert all(event["ts"] + event["dur"] <= end + 0.01 for end in stack)
        stack.append(event["ts"] + event["dur"])
    assert len(slices) == sum(len(one.slices) + 1 for one in profile.runs)
    assert sum(event["dur"] for event in slices if event["cat"] == "layer") == pytest.approx(
        1e3 * sum(one.layers_ms for one in profile.runs), abs=0.02
    )


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("Row major linear FP16 format", "float16"),
        ("Half", "float16"),
        ("BFloat16", "bfloat16"),
        ("FP8 NHWC", "float8"),
        ("tensor(uint8)", "uint8"),
        ("tensor(float16)", "float16"),
        ("Row major INT4", "int4"),
        ("", None),
        (None, None),
    ],
)
def test_types_in_a_librarys_words(words: object, name: str | None) -> None:
    assert type_in(words) == name
