"""Which backend runs a bundle, and engines that are refused before the vendor loads them."""

from __future__ import annotations

import hashlib
import io
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import CLASSES, SIDE, classifier, spec, write_bundle
from fake_gpu import FoundGpu, Gpu, installed, plan
from PIL import Image

from edgeres.bundle import FP32, Bundle
from edgeres.device import gpu as device_gpu
from edgeres.device.jetpack import Interpreter
from edgeres.errors import BundleError, EngineError, EnvironmentError_, InputError, UsageError
from edgeres.graph.forms import FORMS
from edgeres.records import U8, EngineRecord, Portability
from edgeres.runtime import ANYONE, Classifier, EngineFile, Frame, OrtRunner, TensorRTRunner, choose
from edgeres.runtime.compatibility import RunsOn, refusal

MODEL = classifier()
RECORD = EngineRecord(
    "tensorrt", "tensorrt", "10.3.0", "int8", "built", "engines/tensorrt.engine", 9, portability=Portability(("8.6",))
)
RTX = replace(
    RECORD, target="rtx", runtime="rtx", version="1.7.1.116", file="engines/rtx.engine", portability=Portability()
)


def noise(height: int, width: int, seed: int = 0) -> U8:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def bundle(folder: Path, engines: dict[EngineRecord, bytes] | None = None, **changes: Any) -> Path:
    path = write_bundle(
        folder / "tiny.edgeres", spec(**changes), {FORMS["cpu"].file: MODEL, FORMS["tensorrt"].file: MODEL}
    )
    Bundle(path).add_engines(engines or {})
    return path


@pytest.fixture(params=["driver", "cuda-python", "pycuda"])
def gpu(request: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Gpu]:
    """A machine with a GPU and both vendor packages; RTX's cache is kept in a folder of the test."""
    found = Gpu()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with (
        installed(monkeypatch, found, request.param, "tensorrt"),
        installed(monkeypatch, found, request.param, "rtx"),
    ):
        yield found
    assert (found.faults, found.live(), found.stack) == ([], [], [])


def test_the_best_backend_is_taken(gpu: Gpu, tmp_path: Path) -> None:
    images = [noise(30, 40, seed) for seed in range(20)]
    with Classifier(bundle(tmp_path / "none")) as classify:
        assert classify.backend.startswith("ONNX Runtime") and classify.backend.endswith("CPU")
        assert [line.split(":")[0] for line in classify.passed_over] == ["tensorrt", "rtx", "cuda"]
        assert "the bundle holds no engine for it" in classify.passed_over[0]
        assert "edgeres engine" in classify.passed_over[0]
        expected = classify.batch(images)
    engines = {RECORD: plan(MODEL), RTX: plan(MODEL, "rtx")}
    for kept, name in ((engines, "TensorRT 10.3.0 on Fake GPU"), ({RTX: engines[RTX]}, "TensorRT-RTX 1.7.1.116")):
        with Classifier(bundle(tmp_path / name, kept)) as classify:
            assert classify.backend.startswith(name)
            found = classify.batch(images)  # more than the engine's largest batch of 8
            assert [one.label for one in found] == [one.label for one in expected]
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_allclose(one.logits, other.logits, rtol=1e-5, atol=1e-5)
        assert len(classify.passed_over) == (0 if RECORD in kept else 1)


def test_an_engine_for_this_gpu_that_does_not_run_is_said_aloud(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without TensorRT's package; a machine without a GPU, and an engine for another GPU, say nothing."""
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    path = bundle(tmp_path, {RECORD: plan(MODEL)})
    for found, said in ((FoundGpu("Orin", "8.6", 8 << 30, "12.6"), True), (None, False)):
        monkeypatch.setattr(device_gpu, "this_gpu", lambda found=found: (found, ""))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            Classifier(path).close()
        words = [str(one.message) for one in caught if one.category is RuntimeWarning]
        assert len(words) == said
        if said:
            assert re.fullmatch(
                r"the bundle has an engine for this GPU \(Orin\), but ONNX Runtime \S+ CPU runs instead: "
                r"tensorrt is not installed; see: edgeres doctor",
                words[0],
            )
    monkeypatch.setattr(device_gpu, "this_gpu", lambda: (FoundGpu("Orin", "8.7", 8 << 30, "12.6"), ""))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Classifier(path).close()


def test_the_warning_says_why_tensorrt_is_not_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a virtual environment without the system's packages, on a system with JetPack's."""
    packages = tmp_path / "usr/lib/python3.10/dist-packages"
    (packages / "tensorrt").mkdir(parents=True)
    here = Interpreter("3.10", Path("/venv"), (), (), tmp_path)
    monkeypatch.setattr(Interpreter, "this", staticmethod(lambda: here))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(device_gpu, "this_gpu", lambda: (FoundGpu("Orin", "8.6", 8 << 30, "12.6"), ""))
    with pytest.warns(RuntimeWarning, match=rf"not see the system's TensorRT in {packages}; sed -i .*/venv/pyvenv.cfg"):
        Classifier(bundle(tmp_path, {RECORD: plan(MODEL)})).close()


def test_the_cuda_backend_runs_the_float_graph(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def opened(path: Path, **how: Any) -> OrtRunner:
        asked.append((path.name, how))
        return OrtRunner(path, threads=1)

    path = write_bundle(tmp_path / "b.edgeres", spec(), {FP32: MODEL, FORMS["tensorrt"].file: b"not read"})
    monkeypatch.setattr(choose, "OrtRunner", opened)
    Classifier(path, backend="cuda", gpu=1).close()
    assert asked == [(FP32, {"device": "cuda", "gpu": 1})]


def test_an_engine_for_another_gpu_is_passed_over_and_said(gpu: Gpu, tmp_path: Path) -> None:
    path = bundle(tmp_path, {replace(RECORD, portability=Portability(("8.7",))): plan(MODEL)})
    with Classifier(path) as classify:
        assert classify.backend.endswith("CPU")
        assert "was built for SM 8.7, and this GPU (Fake GPU) is SM 8.6" in classify.passed_over[0]
    with pytest.raises(EngineError, match=r"built for SM 8\.7.*edgeres engine") as caught:
        Classifier(path, backend="tensorrt")
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_of_several_engines_the_one_that_fits_runs(gpu: Gpu, tmp_path: Path) -> None:
    other = replace(RECORD, portability=Portability(("8.9",)), file="engines/other.engine")
    fp32 = replace(RECORD, precision="fp32", file="engines/fp32.engine")
    engines = {fp32: b"not looked at", other: plan(classifier(seed=1)), RECORD: plan(MODEL)}
    with Classifier(bundle(tmp_path, engines), backend="tensorrt") as classify:
        assert classify.backend == "TensorRT 10.3.0 on Fake GPU"
        assert classify(noise(9, 9)).logits.shape == (len(CLASSES),)


def test_an_engine_that_was_changed_is_not_passed_over(gpu: Gpu, tmp_path: Path) -> None:
    """For example, another model's engine of the same name."""
    path = bundle(tmp_path, {RECORD: plan(MODEL)})
    (path / "engines/tensorrt.engine").write_bytes(plan(classifier(seed=1)))
    with pytest.raises(BundleError, match="was changed after it was written"):
        Classifier(path)


def test_an_engine_of_another_network_is_refused(gpu: Gpu, tmp_path: Path) -> None:
    wrong = plan(classifier(layout="NHWC"))
    with pytest.raises(BundleError, match="opened another network") as caught:
        Classifier(bundle(tmp_path, {RECORD: wrong}))
    assert f"not (N, 3, {SIDE}, {SIDE})" in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_engine_is_said(gpu: Gpu, tmp_path: Path) -> None:
    cut = plan(MODEL)[:30]
    path = bundle(tmp_path, {RECORD: cut})
    with pytest.raises(EngineError, match="cannot be loaded"):
        Classifier(path, backend="tensorrt")
    with Classifier(path) as classify:
        assert "cannot be loaded" in classify.passed_over[0]


def test_rtx_keeps_what_it_compiled(gpu: Gpu, tmp_path: Path) -> None:
    for _ in range(2):
        with Classifier(bundle(tmp_path / "b", {RTX: plan(MODEL, "rtx")}), backend="rtx") as classify:
            classify(noise(8, 8))
        (kept,) = (tmp_path / "cache" / "edgeres").iterdir()
        assert kept.read_bytes() == b"compiled"
        (tmp_path / "b" / "tiny.edgeres").rename(tmp_path / "old") if not (tmp_path / "old").exists() else None


ANY_VERSION = replace(RECORD, portability=Portability(("8.6",), version_compatible=True))
PORTABLE = replace(RECORD, portability=Portability())
ANY_GPU = replace(RECORD, portability=Portability(("8.6",), hardware_compatible=True))


def of(version: str) -> EngineRecord:
    return replace(ANY_VERSION, version=version)


HERE = RunsOn("tensorrt", "10.3.0", "Orin", "8.7")
THERE = RunsOn("rtx", "1.7.1.116", "RTX 4090", "8.9")


@pytest.mark.parametrize(
    ("header", "record", "here", "words"),
    [
        (plan(b""), RECORD, replace(HERE, sm="8.6"), None),
        (plan(b""), None, HERE, None),
        (plan(b"", version="10.3.0.26"), None, replace(HERE, version="10.3.0.26"), None),
        (plan(b"", version="10.3.0.26"), None, replace(HERE, version="10.3.0.30"), r"built by TensorRT 10\.3\.0\.26"),
        (
            plan(b"", version="10.13.3.9"),
            RECORD,
            HERE,
            r"TensorRT 10\.13\.3\.9 and loads in no other version, and h",
        ),
        (plan(b""), RECORD, HERE, r"built for SM 8\.6, and this GPU \(Orin\) is SM 8\.7"),
        (plan(b""), replace(RECORD, portability=Portability()), HERE, None),
        (
            plan(b""),
            replace(RECORD, portability=Portability()),
            replace(HERE, sm="7.2"),
            r"Ampere \(SM 8\.0\) and later",
        ),
        (plan(b"", portable=True), ANY_VERSION, replace(HERE, sm="8.6"), None),
        (plan(b"", portable=True), ANY_VERSION, replace(HERE, sm="8.6", version="10.16.1.11"), None),
        (plan(b"", portable=True), ANY_VERSION, replace(HERE, sm="8.6", version="11.4.0.106"), None),
        (plan(b"", portable=True), ANY_VERSION, replace(HERE, version="11.4.0.106"), r"built for SM 8\.6"),
        (plan(b"", portable=True), of("10.13.3.9"), HERE, r"TensorRT 10\.13\.3\.9 for later versions up to 11\.x"),
        (plan(b"", portable=True), of("10.3.0"), replace(HERE, version="12.0.0.1"), r"to 11\.x, and here is 12\.0"),
        (plan(b"", portable=True), of("8.6.1"), replace(HERE, sm="8.6"), None),
        (plan(b"", portable=True), of("8.6.1"), replace(HERE, version="11.0.0"), r"to 10\.x, and here is 11\.0\.0"),
        (plan(b""), ANY_GPU, replace(HERE, sm="8.9"), None),
        (plan(b""), ANY_GPU, replace(HERE, sm="12.0"), None),
        (plan(b""), ANY_GPU, replace(HERE, sm="7.5", gpu="T4"), r"Ampere \(SM 8\.0\) and later, .*\(T4\) is SM 7\.5"),
        (plan(b""), ANY_GPU, HERE, r"not for Jetsons, and this GPU \(Orin\) is one"),
        (plan(b""), ANY_GPU, replace(HERE, sm="8.9", version="10.13.0"), "loads in no other"),
        (b"ftrt" + bytes(10), RECORD, HERE, "cut off"),
        (b"\x08\x08\x12\x07pytorch" + bytes(40), RECORD, HERE, "no engine"),
        (plan(b"", "rtx"), RTX, THERE, None),
        (plan(b"", "rtx"), RTX, replace(THERE, sm="12.0"), None),
        (plan(b"", "rtx", version="1.7.0.20"), RTX, THERE, r"TensorRT-RTX 1\.7\.0\.20 and loads in no other"),
        (plan(b"", "rtx"), RTX, replace(THERE, sm="7.5"), "Ampere"),
        (plan(b"", "rtx"), replace(RTX, portability=Portability(("8.6", "12.0"))), THERE, r"for SM 8\.6, 12\.0"),
        (plan(b""), None, THERE, "an engine for TensorRT, not for TensorRT-RTX"),
        (plan(b"", "rtx"), RTX, HERE, "an engine for TensorRT-RTX, not for TensorRT"),
    ],
)
def test_refusals(header: bytes, record: EngineRecord | None, here: RunsOn, words: str | None) -> None:
    found = refusal(header, record, here)
    if words is None:
        assert found is None
    else:
        assert found is not None and re.search(words, found) and "\n" not in found


def test_a_refused_engine_never_reaches_the_vendor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "model.engine"
    file.write_bytes(plan(MODEL, version="10.16.1.11"))
    found = Gpu()
    with installed(monkeypatch, found, "cuda-python", "tensorrt"):
        with pytest.raises(
            EngineError, match=r"model\.engine: this engine cannot run here: it was built by TensorRT 10\.16"
        ):
            TensorRTRunner(file)
        with pytest.raises(EngineError, match="No such file"):
            TensorRTRunner(tmp_path / "nowhere.engine")
        assert found.engines == 0
        file.write_bytes(plan(MODEL))
        with TensorRTRunner(file) as runner:
            assert (runner.input_name, runner.max_batch) == ("pixels", 8)


def test_code_in_an_engine_runs_only_where_a_manifest_vouches_for_it(gpu: Gpu, tmp_path: Path) -> None:
    """Only for an engine in a bundle whose record says so, whatever the file itself says."""
    engine = plan(MODEL, portable=True)
    older = replace(ANY_VERSION, version="10.0.1")
    path = bundle(tmp_path / "said", {older: engine})
    assert Bundle(path).manifest.engines == (older,)
    with pytest.raises(EngineError, match=r"holds code for the CPU, which runs only if a key that you trust signed"):
        Classifier(path, backend="tensorrt")
    assert gpu.code_was_run == 0
    with Classifier(path, backend="tensorrt", trust=ANYONE) as classify:
        assert classify(noise(9, 9)).logits.shape == (len(CLASSES),)
    assert gpu.code_was_run == 1
    with pytest.raises(EngineError, match="cannot be loaded"):
        Classifier(bundle(tmp_path / "not said", {RECORD: engine}), backend="tensorrt", trust=ANYONE)
    with pytest.raises(EngineError, match=r"code for the CPU, which edgeres runs only from a bundle; load the bundle"):
        TensorRTRunner(EngineFile(engine, record=older))
    with pytest.raises(EngineError, match="was changed after it was written"):
        TensorRTRunner(EngineFile(engine, record=older, sha256="0" * 64, host_code=True))
    with pytest.raises(EngineError, match="cannot be loaded"):
        TensorRTRunner(EngineFile(engine, sha256=hashlib.sha256(engine).hexdigest()))
    assert gpu.code_was_run == 1


def test_an_engine_for_this_gpu_goes_before_one_for_many(gpu: Gpu, tmp_path: Path) -> None:
    many = replace(ANY_GPU, portability=Portability(("8.0",), hardware_compatible=True), file="engines/many.engine")
    engines = {many: plan(classifier(seed=1)), RECORD: plan(MODEL)}
    image = noise(9, 9)
    with Classifier(bundle(tmp_path / "both", engines), backend="tensorrt") as classify:
        own = classify(image).logits
    with Classifier(bundle(tmp_path / "one", {RECORD: engines[RECORD]}), backend="tensorrt") as classify:
        np.testing.assert_array_equal(classify(image).logits, own)
    with Classifier(bundle(tmp_path / "many", {many: engines[many]}), backend="tensorrt") as classify:
        assert not np.array_equal(classify(image).logits, own)


def test_a_header_of_the_real_rtx(tmp_path: Path) -> None:
    """RTX writes the header that compatibility checks read."""
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    from edgeres.engine.builder import BuildRequest, build_engine

    data = build_engine(MODEL, BuildRequest("fp32", max_batch=2), "rtx").data
    here = replace(THERE, version=trt.__version__)
    assert refusal(data, RTX, here) is None
    assert refusal(data, RTX, replace(here, version="1.6.0.1")) is not None
    assert refusal(data, RTX, HERE) is not None


@pytest.mark.parametrize("backend", ["tensorrt", "rtx", "cuda"])
def test_a_backend_that_is_asked_for_and_not_here(tmp_path: Path, backend: Any) -> None:
    with pytest.raises(EnvironmentError_) as caught:
        Classifier(bundle(tmp_path), backend=backend)
    assert "\n" not in str(caught.value)


def test_a_backend_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'gpu'; give auto, tensorrt, rtx, cuda, cpu"):
        Classifier(bundle(tmp_path), backend="gpu")  # type: ignore[arg-type]


def test_every_kind_of_image_gives_the_same(tmp_path: Path) -> None:
    image = noise(20, 30)
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    (tmp_path / "a.png").write_bytes(stream.getvalue())
    packed = np.ascontiguousarray(image[..., ::-1])
    with Classifier(bundle(tmp_path), threads=1) as classify:
        expected = classify(image)
        for same in (
            tmp_path / "a.png",
            str(tmp_path / "a.png"),
            stream.getvalue(),
            bytearray(stream.getvalue()),
            memoryview(stream.getvalue()),
            Frame(packed, "bgr8"),
            Frame(packed.tobytes(), "bgr8", 20, 30),
        ):
            np.testing.assert_array_equal(classify(same).logits, expected.logits)
            assert classify(same).label == expected.label


@pytest.mark.parametrize("image", [None, 3.5, [1, 2], object()], ids=["None", "float", "list", "object"])
def test_what_is_no_image_is_refused(tmp_path: Path, image: Any) -> None:
    with Classifier(bundle(tmp_path), threads=1) as classify, pytest.raises(InputError, match="or a Frame, found"):
        classify(image)


@pytest.mark.parametrize("threads", [1, 3])
def test_warm_up_makes_a_context_for_every_thread(gpu: Gpu, tmp_path: Path, threads: int) -> None:
    with Classifier(bundle(tmp_path, {RECORD: plan(MODEL)})) as classify:
        classify.warm_up(batch=2, threads=threads)
        made = len(gpu.queues)
        assert 1 <= made <= threads
        launches, executions = gpu.launches, gpu.executions
        classify.batch([noise(8, 8)] * 2)
        assert gpu.executions == executions + 1
        assert len(gpu.queues) == made
        with pytest.raises(UsageError, match="at least 1"):
            classify.warm_up(batch=0)
    assert gpu.launches in (0, launches + 1)


def test_a_warm_up_that_fails_says_why(gpu: Gpu, tmp_path: Path) -> None:
    with Classifier(bundle(tmp_path, {RECORD: plan(MODEL)})) as classify:
        gpu.memory = 1000
        with pytest.raises((EngineError, MemoryError)):
            classify.warm_up(threads=3)
        gpu.memory = 1 << 30


@pytest.mark.parametrize("backend", ["tensorrt", "cpu"])
def test_callbacks_on_one_classifier(gpu: Gpu, tmp_path: Path, backend: Any) -> None:
    """Four threads with different camera frames get the same results as one thread alone."""
    images = [noise(20 + seed, 30, seed) for seed in range(12)]
    wrong: list[Any] = []
    with Classifier(bundle(tmp_path, {RECORD: plan(MODEL)}), backend=backend, threads=1) as classify:
        alone = [classify(image).logits for image in images]

        def callback(number: int) -> None:
            for turn in range(60):
                index = (turn + number) % len(images)
                if classify(images[index]).logits.tobytes() != alone[index].tobytes():
                    wrong.append((number, turn))

        callbacks = [threading.Thread(target=callback, args=(number,)) for number in range(4)]
        for thread in callbacks:
            thread.start()
        for thread in callbacks:
            thread.join()
    assert wrong == []
    with pytest.raises(UsageError, match="is closed"):
        classify(images[0])
