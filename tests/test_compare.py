"""``edgeres compare``: every planted difference is named, and figures are those of the files themselves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundles import write_images
from click.testing import CliRunner
from engine_graphs import resnet
from onnx import numpy_helper
from rich.console import Console
from test_cli import brief

import edgeres
from edgeres.bundle import CALIBRATION, FP32, REPORT, Bundle, seal
from edgeres.cli import cli
from edgeres.errors import EdgeresError, InputError
from edgeres.files import write_json
from edgeres.graph.forms import FORMS
from edgeres.judge.differences import compare_builds
from edgeres.judge.sides import read_side
from edgeres.report.html_compare import render_comparisons
from edgeres.report.terminal_compare import render_comparison
from edgeres.verify import measure
from edgeres.verify.answers import pack, unpack

PX, CLASSES = 16, 10
TARGETS = ("cpu", "jetson-orin-nx")


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, and others that differ from it in one thing each."""
    folder = tmp_path_factory.mktemp("builds")
    (folder / "tiny.onnx").write_bytes(resnet(quantized=False, width=4, px=PX).SerializeToString())
    write_images(folder / "images.npz", 40, PX, CLASSES)
    write_images(folder / "others.npz", 8, PX, CLASSES, seed=1)
    given: dict[str, Any] = {"validation": folder / "images.npz", "targets": TARGETS, "effort": "fast"}
    given |= {"calibration": folder / "images.npz", "max_drop": None, "max_class_drop": None}
    differ: dict[str, dict[str, Any]] = {
        "first": {},
        "calibration": {"calibration": folder / "others.npz"},
        "method": {"method": "minmax"},
        "residual": {"residual": "fp16"},
        "mean": {"mean": (0.0, 0.0, 0.0)},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "LatencyPlan", brief())
        for name, changes in differ.items():
            edgeres.build(folder / "tiny.onnx", **(given | changes), output=folder / name)
    return folder


def compared(builds: Path, other: str | Path, **options: Any) -> dict[str, Any]:
    found = compare_builds(read_side(builds / "first"), read_side(builds / other), **options)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def scales_in(path: Path) -> dict[str, float]:
    """Scale by tensor, read from the file as onnx has it; a border repeats the codes of another tensor."""
    model = onnx.load(path)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    pairs = (node for node in model.graph.node if node.op_type == "QuantizeLinear")
    return {
        node.output[0].removesuffix("_q"): float(constants[node.input[1]])
        for node in pairs
        if "_border" not in node.output[0]
    }


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ("first", "the builds are the same: all graphs are equal byte by byte"),
        ("calibration", "the calibration images differ (digest "),
        ("method", "the options differ (method mse to minmax): "),
        ("residual", "the options differ (residual int8 to fp16): "),
        ("mean", "the preprocessing differs (mean default to [0.0, 0.0, 0.0]"),
    ],
)
def test_the_likely_cause_comes_first(builds: Path, other: str, words: str) -> None:
    assert compared(builds, other)["causes"][0].startswith(words)


def test_scales_are_those_of_the_graphs_and_the_largest_change_comes_first(builds: Path) -> None:
    found = compared(builds, "calibration")["scales"]["cpu"]
    old, new = (scales_in(builds / name / FORMS["cpu"].file) for name in ("first", "calibration"))
    assert {row["tensor"]: row["ratio"] for row in found["rows"]} == {
        name: pytest.approx(new[name] / old[name]) for name in old
    }
    distances = [abs(np.log(row["ratio"])) for row in found["rows"]]
    assert distances == sorted(distances, reverse=True)
    assert found["changed"] == sum(distance > np.log(1.1) for distance in distances)


def test_a_scale_changed_behind_the_back_of_the_build_is_found(builds: Path, tmp_path: Path) -> None:
    shutil.copytree(builds / "first", tmp_path / "spoilt")
    path = tmp_path / "spoilt" / FORMS["cpu"].file
    model = onnx.load(path)
    node = [node for node in model.graph.node if node.op_type == "QuantizeLinear"][3]
    for tensor in model.graph.initializer:
        if tensor.name == node.input[1]:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) / np.float32(10), tensor.name))
    onnx.save(model, path)
    seal(path.parent, Bundle(path.parent).manifest)
    found = compared(builds, path.parent)
    assert found["causes"][0].startswith(
        f"{FORMS['cpu'].file} changed, although the recorded facts are the same: 1 of "
    )
    worst = found["scales"]["cpu"]["rows"][0]
    assert (worst["tensor"], worst["ratio"]) == (node.output[0].removesuffix("_q"), pytest.approx(0.1))


def test_pairs_that_were_lost_are_named(builds: Path) -> None:
    found = compared(builds, "residual")["placements"]["tensorrt"]
    kept = [set(scales_in(builds / name / FORMS["tensorrt"].file)) for name in ("first", "residual")]
    assert len(found["lost"]) == len(kept[0] - kept[1]) > 0
    assert (found["gained"], found["both"]) == ([], len(kept[0] & kept[1]))
    assert compared(builds, "method")["placements"]["tensorrt"]["lost"] == []


def with_report(builds: Path, path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    report = json.loads((builds / "first" / REPORT).read_text())
    change(report)
    write_json(path, report)
    return path


def test_images_lost_and_gained_are_counted_one_by_one(builds: Path, tmp_path: Path) -> None:
    def spoil(report: dict[str, Any]) -> None:
        packed = report["accuracy"]["answers"]
        labels, answers = unpack(packed["labels"]), unpack(packed["cpu"])
        right = np.flatnonzero(answers == labels)
        assert len(right) >= 2
        answers[right[:2]] = (labels[right[:2]] + 1) % CLASSES
        packed["cpu"] = pack(answers)

    row = compared(builds, with_report(builds, tmp_path / "r.json", spoil))["accuracy"]["graphs"]["cpu"]
    assert (row["since_lost"], row["since_gained"], row["since_total"]) == (2, 0, 40)
    assert row["since_drop_pp"] == pytest.approx(5.0)
    assert row["since_drop_pp_ci95"][0] < 5.0 < row["since_drop_pp_ci95"][1]
    assert row["same_answers"] == pytest.approx(95.0)


def test_other_images_are_not_compared_one_by_one(builds: Path, tmp_path: Path) -> None:
    def spoil(report: dict[str, Any]) -> None:
        report["data"]["validation"] |= {"sha256": "0" * 64, "sha256_with_names": ""}

    found = compared(builds, with_report(builds, tmp_path / "r.json", spoil))
    assert found["same_images"] is False
    row = found["accuracy"]["graphs"]["cpu"]
    assert (row["since_lost"], row["same_answers"], found["accuracy"]["interval_percent"]) == (None, None, 99.9)
    assert "validated on other images" in " ".join(found["causes"])
    assert found["reasons"]["same_images"].startswith("the first was measured on other images")


def test_latency_of_another_machine_is_no_ratio_unless_asked(builds: Path, tmp_path: Path) -> None:
    def spoil(report: dict[str, Any]) -> None:
        report["environment"]["processor"] = "a faster one"

    other = with_report(builds, tmp_path / "r.json", spoil)
    found = compared(builds, other)
    assert found["latency"]["slowdown_percent"] is None
    assert "another machine" in found["reasons"]["slowdown_percent"]
    assert any(cause.startswith("timed on different machines") for cause in found["causes"])
    assert compared(builds, other, any_machine=True)["latency"]["slowdown_percent"] == pytest.approx(0.0, abs=1e-9)


def test_a_busy_machine_is_reported(builds: Path, tmp_path: Path) -> None:
    def spoil(report: dict[str, Any]) -> None:
        int8 = report["latency"]["int8"]
        int8["throughput_ips"] = 1e3 / (2 * int8["p50_ms"])  # the mean is twice the median

    found = compared(builds, with_report(builds, tmp_path / "r.json", spoil))
    assert found["latency"]["after"]["crowded"] is True
    assert any("the machine was busy" in cause for cause in found["causes"])


def test_a_report_alone_says_what_it_lacks(builds: Path) -> None:
    found = compared(builds, builds / "calibration" / REPORT)
    assert (found["scales"], found["placements"]) == (None, None)
    assert "is a report alone; give the bundle" in found["reasons"]["scales"]
    assert found["sizes"][0]["ratio"] == 1.0


def test_ranges_stand_in_for_scales_where_onnx_is_missing(builds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeres.judge.sides.importlib.util.find_spec", lambda name: None)
    found = compared(builds, "calibration")
    tensors = [json.loads((builds / name / CALIBRATION).read_text())["tensors"] for name in ("first", "calibration")]
    worst = found["scales"]["cpu"]["rows"][0]
    widths = [high - low for low, high in (side[worst["tensor"]]["ranges"]["cpu"] for side in tensors)]
    assert worst["ratio"] == pytest.approx(widths[1] / widths[0])
    assert found["scales"]["cpu"]["of"] == "calibration.json"
    assert "onnx" in found["reasons"]["placements"]


def test_nothing_compared_is_no_fault(builds: Path, tmp_path: Path) -> None:
    def spoil(report: dict[str, Any]) -> None:
        report["accuracy"] |= {"answers": None, "power": None, "graphs": {}, "graph": None}

    bare = with_report(builds, tmp_path / "r.json", spoil)
    for pair in ((builds / "first", bare), (bare, builds / "first")):
        found = compare_builds(*map(read_side, pair))
        assert found["accuracy"]["graphs"] == {}
        render_comparison(found, Console(file=StringIO(), width=80))
        render_comparisons([found])


class Page(HTMLParser):
    """Text of a page, and every address that it would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.fetched = "", list[str]()

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag != "script"
        self.fetched += [value or "" for name, value in attrs if name in {"src", "href"}]


@pytest.mark.parametrize("other", ["first", "calibration", "residual", "calibration/report.json"])
def test_terminal_and_page_show_the_same(builds: Path, other: str) -> None:
    found = compared(builds, other)
    out = StringIO()
    render_comparison(found, Console(file=out, width=80, highlight=False))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    page = Page()
    page.feed(render_comparisons([found, found]))
    assert page.fetched == []
    plain = " ".join(" ".join(lines).split())
    assert found["causes"][0] in plain
    assert found["causes"][0][1:] in page.text
    for row in (found["scales"] or {}).get("cpu", {"rows": []})["rows"][:1]:
        assert row["tensor"] in page.text


def test_no_interval_is_cut(builds: Path) -> None:
    found = compared(builds, "calibration")
    graph = next(iter(found["accuracy"]["graphs"].values()))
    for side in ("before", "after"):
        graph[side] |= {"drop_pp": -0.1, "drop_pp_ci95": [-10.56, 10.28], "logit_sqnr_db": 31.9}
        graph[side] |= {"agreement": 100.0, "agreement_ci95": [99.62, 100.0]}
    found["accuracy"]["graphs"] = {"tensorrt": graph}
    out = StringIO()
    render_comparison(found, Console(file=out, width=80, highlight=False))
    for words in ("(-10.56 to 10.28)", "(99.62 to 100.00)", "31.9"):
        assert out.getvalue().count(words) == 2


def test_names_never_become_markup(builds: Path) -> None:
    found = compared(builds, "calibration")
    found["after"]["name"] = "<script>alert(1)</script>"
    page = Page()
    page.feed(render_comparisons([found]))
    assert "<script>alert(1)</script>" in page.text


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli, ["compare", *map(str, arguments)], catch_exceptions=True)


def test_the_command_prints_tables_json_and_a_page(builds: Path, tmp_path: Path) -> None:
    done = run(builds / "first", builds / "method", builds / "residual", "--html", tmp_path / "c.html")
    assert (done.exit_code, done.output.count("likely cause: ")) == (0, 2)
    assert max(map(len, done.output.splitlines())) <= 80 or len(str(builds)) > 40
    assert (tmp_path / "c.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    told = json.loads(run(builds / "first", builds / "method", "--json").output)
    assert [pair["causes"][0][:11] for pair in told] == ["the options"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: folder / "nowhere", "no such bundle"),
        (lambda folder: folder / "first" / FP32, "is not a report of edgeres: "),
        (
            lambda folder: folder / "first" / CALIBRATION,
            "is not a report of edgeres; edgeres verify BUNDLE -o DIR writes one",
        ),
        (lambda folder: without_answers(folder), "$.accuracy.answers: is missing"),
        (lambda folder: packed_wrong(folder), "cannot be unpacked"),
        (lambda folder: damaged(folder), "$.latency.int8: is missing"),
    ],
)
def test_bad_inputs_are_one_line(builds: Path, spoil: Callable[[Path], Path], words: str) -> None:
    done = run(builds / "first", spoil(builds))
    assert isinstance(done.exception, EdgeresError)
    assert done.exception.exit_code == 3
    assert words in str(done.exception)
    assert "\n" not in str(done.exception)


def without_answers(folder: Path) -> Path:
    return with_report(folder, folder / "old.json", lambda report: report["accuracy"].pop("answers"))


def packed_wrong(folder: Path) -> Path:
    return with_report(folder, folder / "p.json", lambda report: report["accuracy"]["answers"].update(cpu="!"))


def damaged(folder: Path) -> Path:
    return with_report(folder, folder / "d.json", lambda report: report["latency"].pop("int8"))


def test_one_build_is_not_enough(builds: Path) -> None:
    done = run(builds / "first")
    assert (isinstance(done.exception, EdgeresError), done.exception.exit_code) == (True, 2)


def test_a_bundle_without_report_says_so(builds: Path, tmp_path: Path) -> None:
    shutil.copytree(builds / "first", tmp_path / "bare")
    (tmp_path / "bare" / REPORT).unlink()
    seal(tmp_path / "bare", Bundle(tmp_path / "bare").manifest)
    with pytest.raises(InputError, match=r"has no report\.json"):
        read_side(tmp_path / "bare")
