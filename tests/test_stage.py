"""Engines in a bundle: their logs, options that reach the builder, two builds at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bundles import classifier, write_bundle

from edgeres.bundle import FP32, Bundle, log_of
from edgeres.device.gpu import Gpu
from edgeres.device.libraries import MODULES, Availability
from edgeres.device.targets import TARGETS
from edgeres.engine import timing
from edgeres.engine.engines import EngineChoice, Engines, build_engines
from edgeres.engine.timing import TimingCache, driver, timing_cache
from edgeres.errors import BundleError, UsageError
from edgeres.graph.forms import FORMS
from edgeres.pipeline import engines as steps
from edgeres.pipeline.engines import add_engines
from edgeres.records import EngineRecord, Portability

ORIN = Gpu("Orin", "8.7", 8 << 30, "12.6")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    graph = classifier()
    return write_bundle(tmp_path / "tiny.edgeres", files={FP32: graph, FORMS["tensorrt"].file: graph})


# --- logs and options ------------------------------------------------------------------------------------------------


def test_what_the_vendor_said_lies_beside_the_engine(bundle: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="builds real engines")
    choice = EngineChoice(also=("fp32",), max_batch=4, opt_batch=2, builder_level=1, workspace_mb=64)
    records = add_engines(bundle, "rtx", choice)
    opened = Bundle(bundle)
    opened.check()
    kept = [str(record.file) for record in records if record.file]
    assert len(kept) == 2
    for name in kept:
        text = opened.file(log_of(name)).read_text()
        assert "# batch: min 1, opt 2, max 4\n# seconds: " in text
        assert "# workspace: 64 MiB\n# builder level: 1\n" in text
    add_engines(bundle, "rtx", EngineChoice(compute_capabilities=("8.6",)))
    assert Bundle(bundle).has(log_of(kept[0]))
    add_engines(bundle, "rtx", EngineChoice())  # takes the place of the first INT8 engine, and of its log
    opened = Bundle(bundle)
    opened.check()
    assert {path.name for path in (bundle / "engines").iterdir()} == {
        name.rpartition("/")[2] for name in opened.manifest.files if name.startswith("engines/")
    }
    assert "max 8" in opened.file(log_of(kept[0])).read_text()


def test_a_build_says_first_what_will_not_fit(bundle: Path) -> None:
    said: list[str] = []

    class Listener:
        say = staticmethod(said.append)

    preprocess = Bundle(bundle).manifest.model.preprocess
    choice = EngineChoice(workspace_mb=5000)
    build_engines(bundle, [TARGETS["jetson-orin-nano"]], choice, preprocess, Listener())  # type: ignore[arg-type]
    assert said[0].startswith("jetson-orin-nano: batch 1 is not likely to fit 4.0 GB of memory")
    assert said[-1].startswith("jetson-orin-nano: not built here")


@pytest.mark.parametrize(
    "wrong",
    [{"opt_batch": 9, "max_batch": 8}, {"workspace_mb": 0}, {"builder_level": 6}, {"max_batch": 0}],
    ids=lambda w: next(iter(w)),
)
def test_a_choice_that_makes_no_sense_is_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        EngineChoice(**wrong)


@pytest.mark.parametrize(
    ("target", "choice", "largest"),
    [
        ("jetson-orin-nx", EngineChoice(), 1),
        ("jetson-thor", EngineChoice(opt_batch=4), 4),
        ("jetson-agx-orin", EngineChoice(max_batch=16), 16),
        ("rtx", EngineChoice(), 8),
        ("tensorrt", EngineChoice(opt_batch=9), 9),
    ],
)
def test_the_largest_batch_is_that_of_the_device(target: str, choice: EngineChoice, largest: int) -> None:
    assert choice.request("int8", TARGETS[target]).max_batch == largest


def test_a_jetson_builds_for_itself(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --target: the board that the device tree names, else what the machine can build."""
    asked: list[tuple[str, int | None]] = []

    def build(folder: Path, targets: Any, *rest: Any) -> Engines:
        asked.append((targets[0].name, targets[0].workspace_bytes(ORIN.memory_bytes)))
        return Engines()

    monkeypatch.setattr(steps, "available", lambda flavour: Availability(flavour, True, "10.3.0", ORIN))
    monkeypatch.setattr(steps, "not_built", lambda target: None)
    monkeypatch.setattr(steps, "build_engines", build)
    for board in (TARGETS["jetson-orin-nx"], None):
        monkeypatch.setattr(steps, "this_board", lambda board=board: board)
        add_engines(bundle, None, EngineChoice())
    assert asked == [("jetson-orin-nx", 2 << 30), (next(iter(MODULES)), None)]


# --- two at once -----------------------------------------------------------------------------------------------------


def record(name: str) -> EngineRecord:
    return EngineRecord("rtx", "rtx", "1", "int8", "built", f"engines/{name}.engine", 3, Portability((name,)))


def test_two_processes_that_add_engines_lose_none(bundle: Path) -> None:
    """Each opens the bundle first and adds 20 engines, one by one, while the other does the same."""
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[3])\n"
        "from edgeres.bundle import Bundle; from test_stage import record\n"
        "opened = [Bundle(sys.argv[1]) for _ in range(20)]\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for i, one in enumerate(opened): one.add_engines({record(sys.argv[2] + str(i)): b'abc'})\n"
    )
    argv = [sys.executable, "-c", code, str(bundle)]
    both = [
        subprocess.Popen(
            [*argv, name, str(Path(__file__).parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in "ab"
    ]
    for child in both:
        assert child.stdout and child.stdout.readline() == "ready\n"
    for child in both:
        child.communicate("go\n", timeout=60)
        assert child.returncode == 0
    opened = Bundle(bundle)
    opened.check()
    assert {r.file for r in opened.manifest.engines} == {f"engines/{n}{i}.engine" for n in "ab" for i in range(20)}


def test_an_engine_of_a_graph_that_was_replaced_is_not_added(bundle: Path) -> None:
    opened = Bundle(bundle)
    write_bundle(bundle, files={FP32: classifier(seed=1), FORMS["tensorrt"].file: classifier(seed=1)})
    with pytest.raises(BundleError, match="was built again meanwhile, and these engines are of its old graphs"):
        opened.add_engines({record("x"): b"abc"})
    Bundle(bundle).check()
    assert not (bundle / "engines").exists()


# --- timing cache ----------------------------------------------------------------------------------------------------


class Cache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content + b"+new"


class Config:
    """The part of IBuilderConfig that a timing cache meets; test_vendor_api holds its names against the vendor's."""

    def __init__(self, accepts: Any = lambda content: True) -> None:
        self.accepts, self.held = accepts, None

    def create_timing_cache(self, content: bytes) -> Cache:
        return Cache(content)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if self.accepts(cache.content):
            self.held = cache
        return self.held is cache

    def get_timing_cache(self) -> Cache | None:
        return self.held


def test_timings_of_one_build_serve_the_next(tmp_path: Path) -> None:
    cache = TimingCache(tmp_path / "new" / "a.cache")
    for expected in (b"", b"+new"):
        config = Config()
        cache.attach(config)
        assert config.held and config.held.content == expected
        cache.keep(config)
    assert cache.path.read_bytes() == b"+new+new"


def test_timings_that_the_vendor_refuses_are_begun_anew(tmp_path: Path) -> None:
    cache = TimingCache(tmp_path / "a.cache")
    cache.path.write_bytes(b"of another GPU")
    config = Config(lambda content: content == b"")
    cache.attach(config)
    cache.keep(config)
    assert cache.path.read_bytes() == b"+new"
    TimingCache(tmp_path / "a.cache" / "below a file").keep(config)  # cannot be written: no harm


def test_a_file_for_each_version_gpu_and_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGERES_CACHE", str(tmp_path))
    monkeypatch.setattr(timing, "driver", lambda: "540.4.0")
    machines = [
        Availability("tensorrt", True, "10.3.0", ORIN),
        Availability("tensorrt", True, "10.16.1", ORIN),
        Availability("tensorrt", True, "10.3.0", Gpu("NVIDIA A2/x", "8.6", 1, "12.6")),
    ]
    paths = [cache.path for cache in map(timing_cache, machines) if cache]
    assert [path.name for path in paths] == [
        "tensorrt-10.3.0-Orin-sm8.7-driver-540.4.0.cache",
        "tensorrt-10.16.1-Orin-sm8.7-driver-540.4.0.cache",
        "tensorrt-10.3.0-NVIDIA_A2_x-sm8.6-driver-540.4.0.cache",
    ]
    assert {path.parent for path in paths} == {tmp_path / "timing"}
    assert timing_cache(Availability("rtx", True, "1.7.1", ORIN)) is None
    assert timing_cache(Availability("tensorrt", True, "10.3.0", None)) is None


@pytest.mark.parametrize(
    ("version", "l4t", "found"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023",
            None,
            "535.129.03",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build", None, "570.86.10"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build", None, "540.4.0"),
        (None, "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic", "L4T36.4.3"),
        (None, None, None),
    ],
)
def test_drivers(tmp_path: Path, version: str | None, l4t: str | None, found: str | None) -> None:
    for name, text in (("version", version), ("l4t", l4t)):
        if text is not None:
            (tmp_path / name).write_text(text)
    assert driver(tmp_path / "version", tmp_path / "l4t") == found
