"""Documents: decoded into records, or refused in one line that names file, place and next step."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from bundles import classifier, write_bundle
from calibrations import calibration
from fuzz import mutations, wrong_json
from jsonschema import Draft202012Validator
from judged import compared, judged
from PIL import Image
from referencing import Registry, Resource
from rich.console import Console
from safetensors.numpy import save_file

from edgeres.bundle import MANIFEST, MANIFEST_KIND, Bundle
from edgeres.calibrate.identity import Identity
from edgeres.calibrate.ranges_file import read_calibration
from edgeres.calibrate.record import CALIBRATION_KIND, Observed, TensorEntry, Wanted
from edgeres.calibrate.shards import CalibrationJob, State
from edgeres.cli.config import read_config
from edgeres.data.pixels import Pixels
from edgeres.data.record import DataRecord
from edgeres.device.gpu import Gpu, find_gpu
from edgeres.documents import GROUPED, OPTIONAL, DocumentKind, digest, named, plain
from edgeres.errors import EdgeresError, InputError, ModelError, UsageError, WeightsError
from edgeres.judge.baseline import accept, read_baseline
from edgeres.judge.build_figures import figures_of
from edgeres.judge.differences import compare_builds
from edgeres.judge.gates import Limits
from edgeres.judge.regression import regression
from edgeres.judge.sides import Side, read_side
from edgeres.progress import SILENT
from edgeres.quantize.exchange import read_foreign
from edgeres.quantize.inspect import inspect
from edgeres.quantize.rewrite import PLAN_KEY, PlanNotes
from edgeres.records import EngineRecord, Fit, FormRecord, Measurement, ModelSpec, PixelReading, Preprocess
from edgeres.remote.session import RemoteCheck, RemoteChoice, _Session, _steps, _StepsDone
from edgeres.remote.ssh import Done, Host
from edgeres.report.terminal import render_terminal
from edgeres.report.terminal_compare import render_comparison
from edgeres.reports import BASELINE_SCHEMA, REPORT_SCHEMA, SCHEMAS, baseline_kind, report_kind
from edgeres.zoo.checkpoint import _metadata
from edgeres.zoo.registry import _LOG

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Wheel:
    radius_m: float
    spokes: tuple[int, ...] = ()
    kind: Literal["steel", "rubber"] = "rubber"

    def __post_init__(self) -> None:
        if self.radius_m <= 0:
            raise ValueError("radius_m is not positive")


@dataclass(frozen=True)
class Size:
    height: int
    class_: str = field(metadata=named("class"))


@dataclass(frozen=True)
class Robot:
    wheels: Mapping[str, Wheel]
    corner: tuple[float, float]
    size: Size = field(metadata=GROUPED)
    spare: Wheel | None = None
    notes: tuple[str, ...] = field(default=(), metadata=OPTIONAL)
    free: Any = None


ROBOT = Robot({"left": Wheel(0.5, (1, 2)), "front right": Wheel(1)}, (0.0, 2.5), Size(3, "a"), free={"x": [1, None]})
KIND = DocumentKind(Robot, "a robot.json", "build it again", schemas=(2, 3), kind="robot")
DIGESTED = DocumentKind(Robot, "a robot.json", "build it again", schemas=(2, 2), digest="required", error=WeightsError)


def content(**changes: object) -> bytes:
    return json.dumps(KIND.content(ROBOT) | changes).encode()


def test_what_is_written_is_read() -> None:
    written = KIND.content(ROBOT)
    assert written == {
        "schema": 3,
        "kind": "robot",
        "wheels": {
            "left": {"radius_m": 0.5, "spokes": [1, 2], "kind": "rubber"},
            "front right": {"radius_m": 1, "spokes": [], "kind": "rubber"},
        },
        "corner": [0.0, 2.5],
        "height": 3,
        "class": "a",
        "spare": None,
        "free": {"x": [1, None]},
    }
    assert KIND.decode(json.dumps(written).encode(), "x") == ROBOT
    assert KIND.decode(json.dumps({**written, "schema": 2, "notes": ["new"]}).encode(), "x").notes == ("new",)
    assert plain((ROBOT,))[0].keys() == written.keys() - {"schema", "kind"}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (b"", "is not a robot.json: Expecting value: line 1 column 1 (char 0)"),
        (b"\xff", "is not a robot.json: 'utf-8' codec"),
        (b"[1]", "is not a robot.json"),
        (b'{"schema": 3, "kind": "robot", "kind": "robot"}', "$.kind: is there twice"),
        (content(kind="boat"), "is not a robot.json"),
        (content(schema="3"), "is not a robot.json: it states no schema"),
        (content(schema=True), "is not a robot.json: it states no schema"),
        (content(schema=1), "written in format 1, this edgeres reads 3; build it again"),
        (content(schema=4), "written in format 4, this edgeres reads 3; upgrade edgeres"),
        (content(heigth=1), "$.heigth: is not a known key, did you mean height?; build it again"),
        (content(**{"\x1b[31m": 1}), '$["\\u001b[31m"]: is not a known key'),
        (content(corner=[1, 2, 3]), "$.corner: expected array of length 2, got 3"),
        (content(corner=[1, float("nan")]), "$.corner[1]: expected a finite number"),
        (content(corner=[1, -float("inf")]), "$.corner[1]: expected a finite number"),
        (content().replace(b"2.5", b"1e400"), "$.corner[1]: expected a finite number"),
        (content(height=10**400), "$.height: the number is too large"),
        (content().replace(b"2.5", b"9" * 5000), "$.corner[1]: the number is too large"),
        (content(height=True), "$.height: expected int, got bool"),
        (content(height="3"), "$.height: expected int, got str"),
        (content(height=1.0), "$.height: expected int, got float"),
        (content(**{"class": None}), "$.class: expected str, got null"),
        (content(wheels={"a b": {"radius_m": "1", "spokes": [], "kind": "steel"}}), '$.wheels["a b"].radius_m: exp'),
        (content(wheels={"a": {"radius_m": 0, "spokes": [], "kind": "steel"}}), "$.wheels.a: radius_m is not positive"),
        (
            content(wheels={"a": {"radius_m": 1, "spokes": [], "kind": "wood"}}),
            "$.wheels.a.kind: expected one of steel, rubber; build",
        ),
        (content(wheels={"a": {"radius_m": 1, "kind": "steel"}}), "$.wheels.a.spokes: is missing"),
        (content(wheels={"a": {"radius_m": 1, "spokes": [1, None], "kind": "steel"}}), "$.wheels.a.spokes[1]: exp"),
        (content(spare=[1]), "$.spare: expected object | null, got array"),
        (content(free="\ud800"), "$.free: the text is not Unicode"),
        (content(free={"\ud800": 1}), "$.free: the text is not Unicode"),
        (b'{"x":' * 5000 + b"1" + b"}" * 5000, "is nested more than 64 levels deep"),
        (b"[" * 500_000, "is nested more than 64 levels deep"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(wrong: bytes, words: str) -> None:
    with pytest.raises(InputError) as error:
        KIND.decode(wrong, "here/robot.json")
    assert str(error.value).startswith(f"here/robot.json: {words}")
    assert len(str(error.value).splitlines()) == 1
    assert str(error.value).isprintable()


def test_brackets_in_text_are_no_levels() -> None:
    assert KIND.decode(content(free='[[{"\\"' * 200 + '"'), "x").free == '[[{"\\"' * 200 + '"'


def test_a_grouped_key_that_is_missing_is_named_where_it_is_on_disk() -> None:
    without = {key: value for key, value in KIND.content(ROBOT).items() if key != "class"}
    with pytest.raises(InputError, match=r"^x: \$\.class: is missing; build it again$"):
        KIND.decode(json.dumps(without).encode(), "x")


def test_a_digest_covers_the_rest_however_it_is_written() -> None:
    written = DIGESTED.content(ROBOT)
    assert written["digest"] == digest({key: value for key, value in written.items() if key != "digest"})
    assert DIGESTED.decode(json.dumps(written, indent=3, sort_keys=True).encode(), "x") == ROBOT
    for changed in ({**written, "height": 4}, {**written, "digest": None}, {**written, "corner": [0, 2.5]}):
        with pytest.raises(WeightsError, match="changed after it was written"):
            DIGESTED.decode(json.dumps(changed).encode(), "x")


def test_a_file_is_read_to_its_bound_and_no_further(tmp_path: Path) -> None:
    path = tmp_path / "robot.json"
    path.write_bytes(content())
    assert KIND.read(path) == ROBOT
    small = DocumentKind(Robot, "a robot.json", "build it again", max_bytes=100)
    with pytest.raises(InputError, match=r"robot\.json: is larger than 100 bytes; build it again"):
        small.read(path)
    with pytest.raises(InputError, match=r"absent: cannot be read \(No such file or directory\); check the path"):
        KIND.read(tmp_path / "absent")


# ---- every reader against a fuzzer ----------------------------------------------------------------------------------

COUNTS = {
    "manifest": 3000,
    "forged manifest": 1500,
    "calibration": 2000,
    "forged calibration": 1000,
    "calibration without digest": 1500,
    "state": 2000,
    "header of a state": 1000,
    "report": 600,
    "baseline": 700,
    "baseline without digest": 700,
    "doctor": 1000,
    "remote report": 500,
    "remote manifest": 500,
    "remote state": 500,
    "tool.edgeres": 2000,
    "checkpoint": 500,  # for each of two entries
    "training log": 500,
    "gpu": 500,
    "ONNX Runtime": 500,
    "notes of a plan": 500,
}


@dataclass(frozen=True)
class Reader:
    """One of the places where a document is read.

    Attributes:
        content: a good document.
        read: gives what a program takes from it.
        says: the document that such a value stands for; None: it must be what the good document gives.
        forged: digests in the inputs were made to fit.
    """

    content: bytes
    read: Callable[[bytes], Any]
    says: Callable[[Any], Any] | None = None
    forged: bool = False


def hold(reader: Reader, inputs: Iterable[bytes]) -> None:
    """Every input is refused in one line, or read as it stands; what has a digest, as the good document alone."""
    good = reader.read(reader.content)
    refused = 0
    for content in inputs:
        try:
            found = reader.read(content)
        except EdgeresError as error:
            refused += 1
            assert str(error).isprintable(), content
            assert error.exit_code == 3, content
            continue
        if found != good:
            assert reader.says is not None, content
            document = json.loads(content)
            assert reader.forged or "digest" not in document, content
            assert stands_in(reader.says(found), document), content
    assert refused


def stands_in(said: Any, document: Any) -> bool:
    """Whether a document says that and nothing else; what is null or empty there may be left out."""
    if isinstance(said, dict) and isinstance(document, dict):
        more = [value for key, value in document.items() if key not in said and key not in ("digest", "schema")]
        same = [key == "digest" or (key in document and stands_in(said[key], document[key])) for key in said]
        return all(same) and not any(more)
    if isinstance(said, list | tuple) and isinstance(document, list):
        return len(said) == len(document) and all(map(stands_in, said, document))
    return bool(said == document)


def wrong(content: bytes, name: str) -> Iterator[bytes]:
    """Half of them are damaged bytes, the others JSON with wrong values or keys."""
    count = COUNTS[name]
    yield from mutations(content, count // 2, seed=1)
    yield from wrong_json(content, count - count // 2, seed=2)


def as_text(inputs: Iterable[bytes]) -> Iterator[bytes]:
    """What is left of bytes that come through a text stream."""
    return (content.decode(errors="replace").encode() for content in inputs)


def forged(content: bytes, name: str) -> Iterator[bytes]:
    """Wrong documents with a digest that fits, as a careful forger writes them."""

    def sealed(text: str) -> str:
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            return text
        if not isinstance(document, dict):
            return text
        document.pop("digest", None)
        return json.dumps({**document, "digest": digest(document)})

    return wrong_json(content, COUNTS[name], seed=3, seal=sealed)


def reader_of(path: Path, read: Callable[[], Any]) -> Callable[[bytes], Any]:
    """Reads what was written to a file."""

    def of(content: bytes) -> Any:
        path.write_bytes(content)
        return read()

    return of


def without_digest(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != "digest"}


def test_there_are_enough_inputs() -> None:
    assert sum(COUNTS.values()) >= 20_000


def test_manifests(tmp_path: Path) -> None:
    """None but the one that was written is taken; behind a forged digest every key, type and bound is checked."""
    form = FormRecord("cpu", "model.int8.cpu.onnx", ("onnxruntime",), "int8", None, "float32", "for a CPU", 31.25)
    folder = write_bundle(tmp_path / "b.edgeres", forms=(form,), default_form={"onnxruntime": "cpu"})
    Bundle(folder).add_engines({EngineRecord("rtx", "rtx", "1", "int8", "built", "engines/a.engine", 3): b"abc"})
    content = (folder / MANIFEST).read_bytes()
    read = reader_of(folder / MANIFEST, lambda: Bundle(folder).manifest)
    hold(Reader(content, read), wrong(content, "manifest"))
    hold(Reader(content, read, MANIFEST_KIND.content, forged=True), forged(content, "forged manifest"))


def test_calibrations(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    observed = Observed(-1.5, 2.5, 200, 50, 2.25)
    ranges = {"tensorrt": (-2.5, 2.5), "cpu": (-1.5, 2.5), "symmetric": (-2.5, 2.5)}
    document = CALIBRATION_KIND.content(calibration({"relu": TensorEntry(observed, ranges), "x": TensorEntry()}))
    content = json.dumps(document).encode()
    read = reader_of(path, lambda: read_calibration(path).content)
    hold(Reader(content, read, CALIBRATION_KIND.content), wrong(content, "calibration"))
    hold(Reader(content, read, CALIBRATION_KIND.content, forged=True), forged(content, "forged calibration"))
    content = json.dumps(without_digest(document)).encode()
    hold(Reader(content, read, CALIBRATION_KIND.content), wrong(content, "calibration without digest"))


def a_state() -> State:
    """Two of three batches of a calibration of one tensor."""
    wanted = {"cpu": Wanted(affine=("relu",), like={"copy": "relu"})}
    job = CalibrationJob(Identity("0" * 64, 1, 0.5, 1.5, "net"), Preprocess((8, 8)), "noise", "1" * 64, 11, 4, wanted)
    state = State.empty(job, shard=(1, 2))
    state.sketches["relu"].add(np.array([0, 1, 1, -2.5, 1e-3], np.float32))
    state.done, state.samples, state.unreadable = {0, 2}, 6, ["a.jpg (not an image)"]
    return state


def counted(state: State) -> tuple[Any, ...]:
    sketches = {name: (s.counts.tobytes(), s.low, s.high) for name, s in state.sketches.items()}
    return state.job, state.done, sketches, state.samples, state.unreadable, state.shard


def arrays_of(state: State) -> dict[str, Any]:
    with np.load(io.BytesIO(state.pack())) as file:
        return dict(file)


def packed(arrays: Mapping[str, Any]) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def test_states_of_calibrations() -> None:
    content, arrays = a_state().pack(), arrays_of(a_state())
    hold(Reader(content, lambda file: counted(State.unpack(file, "s.npz"))), mutations(content, COUNTS["state"], 1))
    header = arrays["header"].tobytes()
    head = {key: value for key, value in json.loads(header).items() if key in ("schema", "kind", "edgeres", "bins")}

    def read(header: bytes) -> Any:
        return counted(State.unpack(packed(arrays | {"header": np.frombuffer(header, np.uint8)}), "s.npz"))

    def said(found: tuple[Any, ...]) -> Any:
        job, _, _, samples, unreadable, shard = found
        return head | plain({"job": job, "samples": samples, "unreadable": unreadable, "shard": shard})

    hold(Reader(header, read, said), wrong(header, "header of a state"))


@pytest.mark.parametrize(
    "changes",
    [
        {"done": np.array([0, 0])},
        {"done": np.array([2, 0])},
        {"done": np.array([0, 3])},
        {"done": np.array([-1, 2])},
        {"done": np.array([0.0, 2.0])},
        {"done": np.array([[0, 2]])},
        {"done": np.array([0])},
        {"0.counts.places": np.array([1, 2])},
        {"0.counts.places": np.array([0, 1, 2, 1 << 40])},
        {"0.counts.places": np.array([-1, 1, 2, 3])},
        {"0.counts.values": np.array([1, 1, 1, -1])},
        {"0.counts.values": np.array([1.0, 1.0, 1.0, 1.0])},
        {"0.counts.values": np.array([1, 1])},
        {"0.low": np.array(np.nan)},
        {"0.low": np.array(7.0)},
        {"0.low": np.array(-np.inf)},
        {"0.high": np.array([1.0, 2.0])},
        {"0.high": np.array("x")},
        {"0.high": np.array(1)},
        {"1.low": np.array(0.0)},
        {"header": np.array(3)},
        *({name: None} for name in ("header", "done", "0.low", "0.high", "0.counts.places", "0.counts.values")),
    ],
    ids=str,
)
def test_arrays_of_a_state_have_types_and_bounds(changes: dict[str, Any]) -> None:
    arrays = {name: array for name, array in (arrays_of(a_state()) | changes).items() if array is not None}
    with pytest.raises(InputError, match=r"^s\.npz: .*; edgeres calibrate --shard writes one$"):
        State.unpack(packed(arrays), "s.npz")


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    labels, seconds = np.arange(12) % 4, np.linspace(0.01, 0.02, 60)
    cpu = np.where(np.arange(12) < 2, 3, labels)
    return judged(
        created="2026-01-02T03:04:05+00:00",
        environment={"processor": "some CPU"},
        model=ModelSpec("net", Preprocess((8, 8)), ("ant", "bee", "cow", "dog"), "own", "0f" * 32),
        headline="cpu",
        limits=Limits(),
        images=DataRecord("images", "ab" * 32, 12, pixels=Pixels(12, (1.0, 2.0, 3.0), 0.5, 0.1)),
        comparison=compared(labels, 4, {"fp32": labels, "cpu": cpu}, sqnr={"cpu": (30.0, (29.0, 31.0))}),
        latency={name: Measurement(seconds, 1, "host", "ORT", 0.2) for name in ("fp32", "int8")},
        files={"model.int8.cpu.onnx": "0" * 64},
        sizes={"fp32": 100, "cpu": 30},
        engines=(EngineRecord("rtx", "rtx", "1.7", "int8", "built", "engines/a.engine", 9),),
    )


def test_reports(tmp_path: Path, report: dict[str, Any]) -> None:
    """What is read of a report can be compared, accepted and shown."""
    path = tmp_path / "report.json"
    good = Side("good", report, report["files"], reasons={"ranges": "", "graphs": ""})

    def read() -> Any:
        side = read_side(path)
        for pair in ((good, side), (side, good)):
            render_comparison(compare_builds(*pair, any_machine=True), Console(file=io.StringIO()))
        render_terminal(side.report, Console(file=io.StringIO()))
        if side.report["accuracy"]["answers"] is not None:
            accept(side.report, path)
        return side.report

    content = json.dumps(report).encode()
    hold(Reader(content, reader_of(path, read), lambda found: found), wrong(content, "report"))


def test_baselines(tmp_path: Path, report: dict[str, Any]) -> None:
    """What is read of a baseline can be held against a run."""
    path = tmp_path / "baseline.json"
    now = figures_of(report, "this run")

    def read() -> Any:
        found = read_baseline(path)
        regression(found.figures, now, any_machine=True)
        return found.document

    document = accept(report, "here")

    def says(found: dict[str, Any]) -> Any:
        return {key: value for key, value in found.items() if key != "schema"}  # older formats are read as the newest

    content = json.dumps(document).encode()
    hold(Reader(content, reader_of(path, read), says), wrong(content, "baseline"))
    content = json.dumps(without_digest(document)).encode()
    hold(Reader(content, reader_of(path, read), says), wrong(content, "baseline without digest"))


def test_reports_and_baselines_that_are_read_follow_their_published_schemas(report: dict[str, Any]) -> None:
    """By jsonschema's judgement; the records are made from the same files by other means."""
    schemas = {file: json.loads((SCHEMAS / file).read_text()) for file in (REPORT_SCHEMA, BASELINE_SCHEMA)}
    registry = Registry().with_resources((file, Resource.from_contents(schema)) for file, schema in schemas.items())
    documents = {REPORT_SCHEMA: (report_kind(), report), BASELINE_SCHEMA: (baseline_kind(), accept(report, "here"))}
    for file, (kind, document) in documents.items():
        judge = Draft202012Validator(schemas[file], registry=registry)
        judge.validate(document)
        read = 0
        for content in wrong_json(json.dumps(without_digest(document)).encode(), 500, 4):
            try:
                kind.decode(content, "here")
            except InputError:
                continue
            read += 1
            judge.validate(json.loads(content))
        assert read > 10


class Robot(Host):
    """A machine that answers every command with the same text."""

    said = b""

    def run(self, *command: Any, **more: Any) -> Done:
        return Done(0, self.said.decode(errors="replace"), "")

    def watch(self, *command: Any, **more: Any) -> Done:
        return self.run()


def test_answers_of_a_robot(tmp_path: Path, report: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a robot says of itself, of its engines, of what was done there, or in a report."""
    folder = write_bundle(tmp_path / "b.edgeres")
    monkeypatch.setattr("edgeres.pipeline.render.write_report", lambda folder, report: None)

    def asking(ask: Callable[[_Session], Any]) -> Callable[[bytes], Any]:
        def read(content: bytes) -> Any:
            robot = Robot("robot")
            object.__setattr__(robot, "said", content)
            return ask(_Session(robot, Bundle(folder), RemoteChoice(), SILENT, _StepsDone()))

        return read

    checks = (RemoteCheck("gpu", True, "Orin", ""),)
    content = json.dumps([asdict(check) for check in checks]).encode()
    hold(Reader(content, asking(lambda session: session.doctor()), plain), as_text(wrong(content, "doctor")))
    content = json.dumps(report).encode()
    verify = asking(lambda session: session.verify("signs:4", tmp_path / "out", checks))
    hold(Reader(content, verify, lambda found: found), as_text(wrong(content, "remote report")))
    content = (folder / MANIFEST).read_bytes()
    bring_home = asking(lambda session: session.bring_home(tmp_path / "out"))
    hold(Reader(content, bring_home), as_text(wrong(content, "remote manifest")))
    content = json.dumps(plain(_StepsDone("a", "b", "c", "d"))).encode()
    for damaged in as_text(wrong(content, "remote state")):
        found = _steps(damaged.decode())
        assert found == _StepsDone() or stands_in(plain(found), json.loads(damaged))


def toml(document: bytes) -> bytes:
    """The members of a JSON object as lines of a table: texts, numbers and arrays of JSON are TOML's, too."""
    text, table = document.decode(errors="replace").strip()[1:-1], "[tool.edgeres]\n"
    decode = json.JSONDecoder().raw_decode
    while text:
        try:
            key, end = decode(text)
            value = text[end + 1 :].lstrip()
            _, end = decode(value)
        except (ValueError, RecursionError):
            return (table + text).encode(errors="replace")
        table += f"{json.dumps(key)} = {value[:end]}\n"
        text = value[end:].lstrip(", ")
    return table.encode(errors="replace")


def test_tables_in_pyproject(tmp_path: Path) -> None:
    values = {"max-drop": 0.5, "min-speedup": False, "on-unsure": "fail", "allow": ["labels"], "baseline": "b.json"}
    document = json.dumps({**values, "validation": "signs:4", "validation-size": 20, "any-machine": True}).encode()
    read = reader_of(tmp_path / "pyproject.toml", lambda: read_config(tmp_path).values)
    assert len(read(toml(document))) == 8
    half = COUNTS["tool.edgeres"] // 2
    refused = 0
    for text in (*mutations(toml(document), half, 1), *map(toml, wrong_json(document, half, 2))):
        try:
            found = read(text)
        except UsageError as error:
            refused += 1
            assert str(error).isprintable(), text
            continue
        table = tomllib.loads(text.decode()).get("tool", {}).get("edgeres", {})
        assert found.keys() == {key.replace("-", "_") for key in table}, text
    assert refused > half // 2


def test_metadata_of_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    content = json.dumps({"labels": ["ant", "bee"], "preprocess": plain(Preprocess((8, 8)))}).encode()

    def read(key: str, text: str) -> Any:
        save_file({"w": np.zeros(1)}, path, {key: text.encode(errors="replace").decode()})
        return getattr(_metadata(path), key)

    for key, good in json.loads(content).items():
        for damaged in as_text(wrong(json.dumps(good).encode(), "checkpoint")):
            try:
                found = read(key, damaged.decode())
            except WeightsError as error:
                assert str(error).isprintable(), damaged
            else:
                said = json.loads(damaged)
                # Files of before these keys hold none of them.
                whole = {**plain(Fit()), **plain(PixelReading()), **said} if key == "preprocess" else said
                assert stands_in(plain(found), whole), damaged


def test_training_logs(tmp_path: Path) -> None:
    path = tmp_path / "net.json"
    log = {"model": "net", "generator": 1, "top1": 95.5, "validation_images": 20, "train_seconds": 2}
    content = json.dumps({**log, "recipe": {"px": 8}, "epochs": []}).encode()
    hold(Reader(content, reader_of(path, lambda: _LOG.read(path)), plain), wrong(content, "training log"))


def test_ranges_of_onnx_runtime(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    end = {"data": [-1.5], "dtype": "float32", "CLS": "numpy.array"}
    data = {"relu": {"lowest": end, "highest": {**end, "data": [2.5]}, "CLS": "TensorData"}}
    content = json.dumps({"CLS": "TensorsData", "data": data, "smooth_quant": False}).encode()
    read = reader_of(path, lambda: read_foreign(path).limits)
    good = read(content)
    for damaged in wrong(content, "ONNX Runtime"):
        try:
            found = read(damaged)
        except InputError as error:
            assert str(error).isprintable(), damaged
        else:  # of another tool's file no more is known than that its ranges are some
            assert found == good or all(low <= 0 <= high for low, high in found.values()), damaged


def test_notes_in_a_graph(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    notes = PlanNotes("cpu", "0" * 64, {"relu": "input of a Conv"}, {}, (("pool", "it has no weights"),))

    def read(content: bytes) -> Any:
        model = onnx.load_from_string(classifier())
        onnx.helper.set_model_props(model, {PLAN_KEY: content.decode()})
        path.write_bytes(model.SerializeToString())
        (found,) = inspect(path)
        return found.style, found.skipped

    content = json.dumps(plain(notes)).encode()
    good = read(content)
    for damaged in as_text(wrong(content, "notes of a plan")):
        try:
            found = read(damaged)
        except ModelError as error:
            assert str(error).isprintable(), damaged
        else:
            document = json.loads(damaged) if damaged else {}
            assert found in (good, (None, ())) or stands_in(plain(found), [document["style"], document["skipped"]])


def test_answers_about_the_gpu() -> None:
    """They are no errors: there is no GPU then, for a reason in one line."""
    gpu = Gpu("Orin", "8.7", 8 << 30, "12.6")
    content = json.dumps({"gpu": asdict(gpu), "reason": ""}).encode()
    for damaged in as_text(wrong(content, "gpu")):
        text = damaged.decode()
        found, reason = find_gpu(lambda argv, text=text: text)
        assert reason.isprintable()
        if found not in (None, gpu):
            assert stands_in({"gpu": asdict(found)}, json.loads(text)), text


def test_the_command_refuses_a_damaged_manifest_in_one_line(tmp_path: Path) -> None:
    folder, image = write_bundle(tmp_path / "b.edgeres"), tmp_path / "a.png"
    Image.new("RGB", (9, 9)).save(image)
    content = (folder / MANIFEST).read_bytes()
    for manifest in (b"", content[:-9], content.replace(b'"mean"', b'"meam"'), *wrong_json(content, 6, 2)):
        (folder / MANIFEST).write_bytes(manifest)
        command = [sys.executable, "-m", "edgeres", "predict", str(folder), str(image)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1), (manifest, done.stderr)
        assert done.stderr.startswith(f"edgeres: {folder / MANIFEST}: "), manifest
