"""calibration.json: which network it belongs to, and builds that take their ranges from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from calibrations import BATCH, IMAGES, Command, tiny, write_tiny
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

import edgeres
from edgeres.calibrate.identity import identify
from edgeres.calibrate.ranges_file import RangesFile, read_calibration
from edgeres.calibrate.record import CALIBRATION_KIND, TensorEntry, to_json
from edgeres.data.loader import Loader
from edgeres.errors import InputError
from edgeres.quantize.graphs import RangeChoice, quantize
from edgeres.quantize.plan import plan_digest
from edgeres.records import Style
from edgeres.verify import measure

METHOD = "percentile"
STYLES: tuple[Style, ...] = ("tensorrt", "cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("made"))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    brief = partial(measure.LatencyPlan, warmup_seconds=0.0, min_seconds=0.01, block_seconds=0.001)
    monkeypatch.setattr(measure, "LatencyPlan", brief)
    return Command(monkeypatch, capfd)


@pytest.fixture
def recorded(made: Path, command: Command, tmp_path: Path) -> Path:
    words = ("calibrate", made / "tiny.onnx", "--calibration", made / "images.npz", "--method", METHOD)
    assert command(*words, "-o", tmp_path / "c.json").code == 0
    return tmp_path / "c.json"


# ---- which network --------------------------------------------------------------------------------------------------


def changed(graph: onnx.ModelProto, change: Callable[[np.ndarray], np.ndarray]) -> onnx.ModelProto:
    """A copy with every float constant changed."""
    other = onnx.ModelProto()
    other.CopyFrom(graph)
    for tensor in other.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(change(values).astype(np.float32), tensor.name))
    return other


def test_another_processors_rounding_is_the_same_network(made: Path) -> None:
    fp32, _, _ = tiny(made)
    rng = np.random.default_rng(0)
    rounded = changed(fp32.graph, lambda w: np.nextafter(w, np.where(rng.random(w.shape) < 0.5, 9, -9)))
    assert identify(fp32.graph).matches(identify(rounded))


@pytest.mark.parametrize("change", [lambda w: 1.0001 * w, lambda w: -w, lambda w: w + 1e-4, lambda w: np.zeros_like(w)])
def test_other_weights_are_another_network(made: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    fp32, _, _ = tiny(made)
    one, other = identify(fp32.graph, "tiny"), identify(changed(fp32.graph, change))
    assert one.difference(other) == "it was made for tiny with other weights"


def test_another_graph_is_another_network(made: Path) -> None:
    fp32, _, _ = tiny(made)
    one = identify(fp32.graph)
    for node, field in ((0, "output"), (1, "op_type"), (0, "attribute")):
        other = onnx.ModelProto()
        other.CopyFrom(fp32.graph)
        found = other.graph.node[node]
        if field == "output":
            found.output[0] = "renamed"
        elif field == "op_type":
            found.op_type = "Sigmoid"
        else:
            next(attribute for attribute in found.attribute if attribute.name == "pads").ints[0] += 1
        assert one.difference(identify(other)) == "it was made for another network, whose graph differs"


def test_a_file_read_again_is_the_same_network(made: Path, tmp_path: Path) -> None:
    fp32, _, _ = tiny(made)
    onnx.save(fp32.graph, tmp_path / "again.onnx")
    assert identify(onnx.load(tmp_path / "again.onnx")) == identify(fp32.graph)


# ---- the same graphs without the images -----------------------------------------------------------------------------


def test_recorded_ranges_make_the_graphs_that_measured_ones_made(made: Path, tmp_path: Path) -> None:
    fp32, source, job = tiny(made)
    measured = quantize(fp32.graph, STYLES, Loader(source, job.preprocess, BATCH), RangeChoice(METHOD))
    path = tmp_path / "c.json"
    path.write_text(to_json(measured.calibration))
    file = read_calibration(path)
    nothing = Loader(file.images(), job.preprocess, BATCH)
    again = quantize(fp32.graph, STYLES, nothing, RangeChoice("minmax", recorded=file))
    assert [plan_digest(again.plans[s]) for s in STYLES] == [plan_digest(measured.plans[s]) for s in STYLES]
    assert again.calibration["tensors"] == measured.calibration["tensors"]
    assert (again.images, again.calibration["method"]) == (IMAGES, METHOD)


def test_a_changed_graph_is_measured_whatever_is_recorded(made: Path, tmp_path: Path) -> None:
    """As after equalization: the recorded ranges are those of other values."""
    fp32, source, job = tiny(made)
    loader = Loader(source, job.preprocess, BATCH)
    path = tmp_path / "c.json"
    path.write_text(to_json(quantize(fp32.graph, STYLES, loader, RangeChoice(METHOD)).calibration))
    other = changed(fp32.graph, lambda w: w / 2)
    choice = RangeChoice(METHOD)
    fresh = quantize(other, STYLES, loader, choice)
    found = quantize(other, STYLES, loader, replace(choice, recorded=read_calibration(path)))
    assert found.calibration == fresh.calibration


@given(st.dictionaries(st.text(min_size=1), st.tuples(st.floats(-1e30, 0), st.floats(0, 1e30)), max_size=5))
def test_the_file_keeps_every_bit_and_every_name(limits: dict[str, tuple[float, float]]) -> None:
    content = {"tensors": {name: {"ranges": {"cpu": list(pair)}} for name, pair in limits.items()}, "list": [1, "[\n]"]}
    assert json.loads(to_json(content)) == content


def test_a_build_takes_a_file_and_tells_so(made: Path, recorded: Path, command: Command, tmp_path: Path) -> None:
    """The images of this network are named for validation alone; none are there to calibrate on."""
    target = ("--target", "cpu", "--target", "jetson-orin-nx", "--max-drop", "off")
    words = ("build", "--model", made / "tiny.onnx", "--validation", made / "images.npz", *target)
    bundle = tmp_path / "b.edgeres"
    ended = command(*words, "--calibration-file", recorded, "-o", bundle)
    assert bundle.is_dir(), ended.err
    assert "refinement is off without --calibration images" in ended.err
    report = json.loads((bundle / "report.json").read_text())
    assert report["calibration"] == {"method": METHOD, "images": IMAGES, "batch_size": BATCH}
    assert report["data"]["calibration"]["description"].startswith("images.npz: 45 images")
    own = json.loads((bundle / "calibration.json").read_text())["tensors"]
    given_ = json.loads(recorded.read_text())["tensors"]
    shared = own.keys() & given_.keys()
    assert len(shared) >= 8
    for name in shared:
        own_, all_ = own[name]["ranges"], given_[name]["ranges"]
        assert own_["cpu"] == all_["cpu"], name
        # By default only tensors whose readers do not pad have all codes, so only these have that range.
        assert all(pair in all_.values() for pair in own_.values()), name
    words = ("quantize", made / "tiny.onnx", "--mean", "0.1", "0.1", "0.1", "--calibration-file")
    line = command.refused(*words, bundle / "calibration.json", "-o", tmp_path / "no.onnx")
    assert "with other weights, or another mean and std, which are part of them in a bundle" in line
    # The bundle's own file serves as well: for another build, for quantize, for a cache.
    again = tmp_path / "again.onnx"
    words = ("quantize", made / "tiny.onnx", "--calibration-file")
    assert command(*words, bundle / "calibration.json", "-o", again).code == 0
    assert command(*words, recorded, "-o", tmp_path / "first.onnx").code == 0
    assert scales(again) == scales(tmp_path / "first.onnx")
    assert command("calibrate", "--export", "trt-cache", bundle, "-o", tmp_path / "b.cache").code == 0


def scales(path: Path) -> dict[str, bytes]:
    graph = onnx.load(path).graph
    return {tensor.name: tensor.raw_data for tensor in graph.initializer}


def test_an_imported_file_has_no_images_and_says_so(
    made: Path, recorded: Path, command: Command, tmp_path: Path
) -> None:
    command("calibrate", "--export", "ort", recorded, "-o", tmp_path / "o.json")
    ended = command("calibrate", made / "tiny.onnx", "--import", tmp_path / "o.json", "-o", tmp_path / "i.json")
    assert ended.code == 0, ended.err
    words = ("build", "--model", made / "tiny.onnx", "--validation", made / "images.npz", "--allow", "fp32")
    bundle = tmp_path / "b.edgeres"
    ended = command(
        *words, "--target", "cpu", "--max-drop", "off", "--calibration-file", tmp_path / "i.json", "-o", bundle
    )
    assert ended.code == 0, ended.err
    report = json.loads((bundle / "report.json").read_text())
    assert report["calibration"] == dict.fromkeys(("method", "images", "batch_size"))
    assert "imported: o.json, ONNX Runtime's calibration" in report["reasons"]["calibration"]


def test_with_images_the_build_refines_what_the_file_begins(made: Path, recorded: Path, command: Command) -> None:
    words = ("quantize", made / "tiny.onnx", "--calibration-file", recorded, "--calibration", made / "images.npz")
    ended = command(*words, "--effort", "balanced", "-o", recorded.parent / "q.onnx", "--json")
    assert ended.code == 0, ended.err
    steps = json.loads(ended.out)["refinement"]
    assert "equalization" in {step["name"] for step in steps}


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--method minmax", "--method: the ranges in the file were chosen already; leave it out"),
        ("--effort best", "--effort: refinement needs images, and none are given; add --calibration SRC"),
        ("--effort fast --calibration images.npz", "with ranges from a file and --effort fast; drop --calibration or"),
        ("--mean 0.5 0.5 0.5", "it was made with mean 0.485 0.456 0.406, and this network's is 0.5 0.5 0.5"),
        ("--channel-order BGR", "it was made with mean 0.485 0.456 0.406, and this network's is 0.406 0.456 0.485"),
        ("--resize 20", "it was made with resize_px None, and this network's is 20"),
    ],
)
def test_what_contradicts_the_file_is_refused(
    made: Path, recorded: Path, command: Command, monkeypatch: pytest.MonkeyPatch, words: str, line: str
) -> None:
    monkeypatch.chdir(made)
    output = recorded.parent / "q.onnx"
    for start in (("quantize", "tiny.onnx"), ("build", "--model", "tiny.onnx", "--validation", "images.npz")):
        assert line in command.refused(*start, "--calibration-file", recorded, *words.split(), "-o", output)
    assert not output.exists()


def test_a_file_of_another_network_is_refused(made: Path, recorded: Path, command: Command) -> None:
    fp32, _, _ = tiny(made)
    path = recorded.parent / "other.onnx"
    onnx.save(changed(fp32.graph, lambda w: 2 * w), path)
    line = command.refused("quantize", path, "--calibration-file", recorded, "-o", recorded.parent / "q.onnx")
    wrong = "does not belong here: it was made for tiny with other weights; edgeres calibrate makes a new one"
    assert line == f"edgeres: {recorded}: {wrong}"


def test_files_that_are_none_are_refused(recorded: Path) -> None:
    good = json.loads(recorded.read_text())
    name = next(iter(good["tensors"]))
    entry = f"$.tensors.{name}"

    def broken(limits: Any) -> dict[str, Any]:
        return {**good, "tensors": {**good["tensors"], name: {"ranges": {"cpu": limits}}}}

    def without(gone: str) -> dict[str, Any]:
        return {key: value for key, value in good.items() if key != gone}

    cases = {
        "is not a calibration.json": [{}, [], {"schema": "2", "tensors": {}}],
        "written in format 4, this edgeres reads 3; upgrade edgeres": [{**good, "schema": 4}],
        "written in format 1, this edgeres reads 3; edgeres calibrate makes one": [{**good, "schema": 1}],
        "was changed after it was written: its digest differs": [{**good, "samples": 46}, {**good, "digest": None}],
        f"{entry}: low <= 0 <= high must hold for every range": [broken([1.0, 2.0]), broken([-2.0, -1.0])],
        f"{entry}.ranges.cpu[1]: expected a finite number": [broken([-1.0, float("inf")])],
        f"{entry}.ranges.cpu: expected array": [broken([-1.0]), broken("ab"), broken(None)],
        f"{entry}.ranges.cpu[1]: expected float, got str": [broken([0.0, "x"])],
        "$.method: is missing": [without("method")],
        "$.preprocess: is missing": [without("preprocess")],
        "$.model: expected object, got null": [{**good, "model": None}],
        "$.model.weights: is missing": [{**good, "model": {"graph": "x"}}],
        "$.tensors: expected object, got array": [{**good, "tensors": []}],
        "$.method: expected one of mse, entropy, percentile, minmax, imported": [{**good, "method": "luck"}],
        "$.samples: expected int, got float": [{**good, "samples": 45.0}],
        "source_digest must have 64 hex digits": [{**good, "source_digest": "no"}],
    }
    for words, contents in cases.items():
        for content in contents:
            if "digest" not in words or "source" in words:
                content = {key: value for key, value in content.items() if key != "digest"} if content else content
            recorded.write_text(json.dumps(content))
            with pytest.raises(InputError) as caught:
                read_calibration(recorded)
            assert str(caught.value).startswith(f"{recorded}: {words}")
    recorded.write_bytes(b"\xff\x00")
    with pytest.raises(
        InputError, match=r"is not a calibration.*edgeres calibrate makes one, of another tool's file with --import"
    ):
        read_calibration(recorded)
    with pytest.raises(InputError, match="cannot be read"):
        read_calibration(recorded / "x")


def test_a_file_from_before_digests_is_read(recorded: Path) -> None:
    content = json.loads(recorded.read_text())
    found = read_calibration(recorded).content
    del content["digest"]
    recorded.write_text(json.dumps(content))
    assert read_calibration(recorded).content == found
    assert CALIBRATION_KIND.content(found)["tensors"] == content["tensors"]


def test_ranges_that_are_missing_are_named(recorded: Path, made: Path) -> None:
    fp32, source, job = tiny(made)
    content = read_calibration(recorded).content
    gone = {name: TensorEntry(content.tensors[name].observed, {}) for name in ("relu4_out", "relu7_out")}
    file = RangesFile(recorded, replace(content, tensors={**content.tensors, **gone}))
    with pytest.raises(InputError, match="holds no range of relu4_out and 1 more for the cpu graph"):
        quantize(fp32.graph, ["cpu"], Loader(source, job.preprocess, 8), RangeChoice(recorded=file))


def test_from_python_too(made: Path, recorded: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not belong here"):
        edgeres.build(
            made / "tiny.onnx",
            validation=made / "images.npz",
            calibration_file=recorded,
            std=(1.0, 1.0, 1.0),
            output=tmp_path / "b",
        )
    assert not (tmp_path / "b").exists()
