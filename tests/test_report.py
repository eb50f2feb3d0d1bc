"""report.json against its schema, and what is drawn from it in the terminal and on the page."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pytest
from bundles import spec
from hypothesis import given, settings
from hypothesis import strategies as st
from judged import NO_LIMITS, ORT, compared, judged, limits
from rich.console import Console

from edgeres.data.record import CalibrationRecord, DataRecord
from edgeres.judge.document import to_json
from edgeres.pipeline.render import write_report
from edgeres.records import (
    Edge,
    EngineRecord,
    Measurement,
    ModelSpec,
    Portability,
    Preprocess,
    QuantParams,
    QuantPlan,
    Skipped,
    percentile_nearest,
)
from edgeres.report import charts
from edgeres.report.figures import megabytes, significant
from edgeres.report.html import render_html
from edgeres.report.junit import render_junit
from edgeres.report.markdown import render_markdown
from edgeres.report.markup import page_style
from edgeres.report.terminal import render_terminal
from edgeres.reports import read_report
from edgeres.verify.accuracy import Comparison
from edgeres.verify.layer_noise import LayerNoise, RangeFit, TensorNoise

SCHEMA = json.loads(files("edgeres.report").joinpath("schema.json").read_text(encoding="utf-8"))
CLASSES = ("stop", "yield", "no entry", "exit", "forklift", "hard hat", "first aid")


def comparison(labels: list[int] | None = None, classes: int = len(CLASSES)) -> Comparison:
    """200 images: the CPU graph loses 3 and gains 1, the one for TensorRT loses 5."""
    truth = np.arange(200) % classes
    given = truth if labels is None else np.array(labels)
    fp32 = truth.copy()
    fp32[:10] = (fp32[:10] + 1) % classes
    cpu, tensorrt = fp32.copy(), fp32.copy()
    cpu[[20, 30, 40]] = (cpu[[20, 30, 40]] + 1) % classes
    cpu[0] = truth[0]
    tensorrt[50:55] = (tensorrt[50:55] + 1) % classes
    sqnr = {"cpu": (29.3,), "tensorrt": (math.inf,)}
    names = {i: f"exit/{i:03d}.png" for i in range(200)}
    return compared(given, classes, {"fp32": fp32, "cpu": cpu, "tensorrt": tensorrt}, sqnr=sqnr, names=names)


def measurement(ms: float, seed: int, block: int) -> Measurement:
    seconds = 1e-3 * ms * np.random.default_rng(seed).uniform(0.98, 1.02, 20 * block)
    return Measurement(seconds, 1, "host to host, batch 1, 1 thread", ORT, 0.2, block)


def plan(style: Any) -> QuantPlan:
    params = QuantParams(np.float32(0.1), 0, "int8")
    edges = tuple(Edge(f"relu{i}", params, (f"conv{i}",), "input of a Conv") for i in range(4))
    return QuantPlan(style, edges, (), (Skipped("/avgpool", "it has no weights"),), "ab" * 32)


ENGINES = (
    EngineRecord(
        "rtx",
        "TensorRT-RTX",
        "1.7.1",
        "int8",
        "built, not run here",
        "engines/a.engine",
        14_500_000,
        Portability(("8.6",)),
    ),
    EngineRecord("jetson-orin", "TensorRT", "10.3", "int8", "not built: needs the GPU it will run on"),
)


def described(**changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = {
        "created": "2026-01-02T03:04:05+00:00",
        "command": "edgeres build --model resnet18",
        "options": {"model": "resnet18", "targets": ("cpu", "rtx"), "max_drop": 1.0},
        "environment": {"python": "3.11.2"},
        "model": ModelSpec("resnet18", Preprocess((224, 224), 256), CLASSES, "signs", "0f" * 32),
        "headline": "cpu",
        "limits": limits(max_drop=6.0, min_speedup=2.0),
        "images": DataRecord("signs:200@0: 200 images, 7 classes", "cd" * 32, 200),
        "calibration": CalibrationRecord(DataRecord("signs:64@0: 64 images", "ef" * 32, 64), "mse", 32),
        "plans": {"cpu": plan("cpu"), "tensorrt": plan("tensorrt")},
        "comparison": comparison(),
        "latency": {"fp32": measurement(30.0, 0, 3), "int8": measurement(10.0, 1, 10)},
        "sizes": {"fp32": 46_800_000, "cpu": 11_900_000, "tensorrt": 11_800_000},
        "engines": ENGINES,
        "timings": {"export": 6.1},
    }
    return data | changes


VARIANTS: dict[str, dict[str, Any]] = {
    "complete": {},
    "failed": {"limits": limits(max_drop=0.0)},
    "unsure": {"limits": limits(max_drop=3.0)},
    "unsure, to fail": {"limits": limits(max_drop=3.0), "on_unsure": "fail"},
    "no gates": {"limits": NO_LIMITS},
    "no latency": {"latency": None, "reasons": {"latency": "skipped by --no-latency"}},
    "nothing compared": {"comparison": None, "images": None, "sizes": {}, "engines": (), "latency": None},
    "no labels": {"comparison": comparison([-1] * 200)},
    "some labels": {"comparison": comparison([-1] * 100 + [3] * 100)},
    "five classes": {
        "comparison": comparison(classes=5),
        "model": ModelSpec("net", Preprocess((32, 32)), CLASSES[:5]),
    },
    "identical": {"headline": "tensorrt"},
    "not quantized": {"plans": {}, "calibration": None, "command": ""},
    "unreadable": {"images": DataRecord("folder: 3 images", "0" * 64, 2, ("cat/\udcff.jpg (truncated)",))},
}


@pytest.fixture(params=VARIANTS, scope="module")
def report(request: pytest.FixtureRequest) -> dict[str, Any]:
    return judged(**described(**VARIANTS[request.param]))


def shown(report: dict[str, Any], **console: Any) -> str:
    out = StringIO()
    render_terminal(report, Console(file=out, width=80, **console))
    return out.getvalue()


# ---------------------------------------------------------------------------------------------------------------- JSON


def test_every_report_keeps_the_schema(report: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(report, SCHEMA, jsonschema.Draft202012Validator)
    assert json.loads(to_json(report)) == report


@pytest.mark.parametrize("path", ["x", "accuracy.x", "accuracy.int8.x", "accuracy.graphs.cpu.x", "latency.fp32.x"])
def test_the_schema_refuses_what_it_does_not_know(path: str) -> None:
    report = judged(**described())
    *parents, last = path.split(".")
    group = report
    for key in parents:
        group = group[key]
    group[last] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(report, SCHEMA, jsonschema.Draft202012Validator)


def _nulls(value: Any, path: str = "") -> list[str]:
    if value is None:
        return [path]
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [null for key, child in children for null in _nulls(child, f"{path}.{key}" if path else str(key))]


def test_every_null_figure_has_its_reason(report: dict[str, Any]) -> None:
    sections = ("accuracy", "latency", "sizes", "data", "calibration")
    for path in _nulls({name: report[name] for name in sections}):
        keys = path.split(".")
        assert any(".".join(keys[:n]) in report["reasons"] for n in range(1, len(keys) + 1)), path


def test_figures_of_the_contract() -> None:
    report = judged(**described())
    accuracy, latency = report["accuracy"], report["latency"]
    assert accuracy["fp32"] | {"top1_ci95": 0} == {
        "top1": 95.0,
        "top1_ci95": 0,
        "top5": 100.0,
        "correct": 190,
        "total": 200,
        "runner": ORT,
    }
    assert (accuracy["int8"]["top1"], accuracy["int8"]["correct"]) == (94.0, 188)
    assert (accuracy["drop_pp"], accuracy["lost"], accuracy["gained"]) == (1.0, 3, 1)
    assert (accuracy["agreement"], accuracy["logit_sqnr_db"]) == (98.0, 29.3)
    assert accuracy["drop_pp_ci95"][0] < 1.0 < accuracy["drop_pp_ci95"][1]
    assert accuracy["graphs"]["cpu"]["drop_pp"] == accuracy["drop_pp"]
    assert accuracy["graphs"]["tensorrt"]["drop_pp"] == 2.5
    assert accuracy["graphs"]["tensorrt"]["note"] == f"graph for TensorRT, computed on {ORT} as a stand-in"
    assert accuracy["graphs"]["cpu"]["note"] == ""
    lost = accuracy["graphs"]["cpu"]["lost_images"]
    assert lost[0] == {"image": "exit/020.png", "label": 6, "reference": 6, "candidate": 0}
    assert sum(row["total"] for row in accuracy["per_class"]) == 200
    assert sum(row["int8"] for row in accuracy["per_class"]) == 188

    for name, m in described()["latency"].items():
        for percent in (50, 90, 99):
            assert latency[name][f"p{percent}_ms"] == 1e3 * percentile_nearest(m.seconds, percent)
        assert latency[name]["throughput_ips"] == pytest.approx(len(m.seconds) / m.seconds.sum())
        assert sum(latency["histogram"][name]) == len(m.seconds)
    assert latency["speedup"] == pytest.approx(3.0, rel=0.02)
    assert latency["backend"] == ORT
    assert report["sizes"] == {
        "fp32_bytes": 46_800_000,
        "int8_bytes": 11_900_000,
        "int8_cpu_bytes": 11_900_000,
        "int8_tensorrt_bytes": 11_800_000,
        "deployed_bytes": {"cpu graph": 11_900_000, "tensorrt graph": 11_800_000, "rtx engine sm86": 14_500_000},
    }
    assert [engine["status"] for engine in report["engines"]] == [e.status for e in ENGINES]
    assert report["passed"] is True
    assert report["verdicts"][0]["gate"] == {"metric": "drop_pp", "limit": 6.0, "unit": "pp"}
    assert report["verdicts"][0]["observed"] == 2.5
    assert report["quantization"]["cpu"]["skipped"] == [{"what": "/avgpool", "reason": "it has no weights"}]


def test_what_was_not_measured_is_null_and_fails_its_gate() -> None:
    report = judged(**described(**VARIANTS["no latency"]))
    assert report["latency"]["int8"]["p50_ms"] is None
    assert report["verdicts"][1]["reason"] == "not measured: skipped by --no-latency"
    assert (report["verdicts"][1]["passed"], report["passed"]) == (False, False)


def test_top5_is_null_up_to_five_classes() -> None:
    report = judged(**described(**VARIANTS["five classes"]))
    assert report["accuracy"]["int8"]["top5"] is None
    assert report["reasons"]["accuracy.int8.top5"] == "top-5 is not meaningful with 5 classes"
    assert report["accuracy"]["int8"]["top1"] is not None


def test_an_infinite_ratio_is_null() -> None:
    report = judged(**described(headline="tensorrt"))
    assert report["accuracy"]["logit_sqnr_db"] is None
    assert "accuracy.logit_sqnr_db" in report["reasons"]


def test_a_slow_outlier_falls_into_the_last_bin() -> None:
    fp32 = measurement(30.0, 0, 3)
    fp32.seconds[7] = 5.0
    int8 = measurement(10.0, 1, 10)
    int8.seconds[:] = 0.01
    histogram = judged(**described(latency={"fp32": fp32, "int8": int8}))["latency"]["histogram"]
    end = 4.4e3 * np.median(fp32.seconds)  # its 99th percentile is the outlier's
    assert histogram["bin_ms"] * len(histogram["fp32"]) == pytest.approx(end)
    assert sum(histogram["fp32"]) == 60
    assert histogram["fp32"][-1] >= 1
    assert histogram["int8"][int(10 / histogram["bin_ms"])] == 200


# ------------------------------------------------------------------------------------------------------------ terminal


def test_the_terminal_shows_every_report_in_80_columns(report: dict[str, Any]) -> None:
    text = shown(report)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    text.encode("ascii")
    assert ("FAILED" in text) is not report["passed"]
    for verdict in report["verdicts"]:
        word = {"passed": "pass", "failed": "FAIL", "unsure": "not certain" if verdict["passed"] else "FAIL"}
        assert re.search(rf"^{verdict['title']} .* {word[verdict['outcome']]}\s*$", text, re.M)


def test_the_terminal_shows_the_figures() -> None:
    text = " ".join(shown(judged(**described())).split())
    for words in (
        "resnet18 (signs) to INT8, mse ranges from 64 images",
        "FP32 95.00 % 100.00 %",
        "INT8 94.00 % 100.00 %",
        "46.8 MB",
        "top-1 drop 1.00 pp, 95 % interval -1.43 to 3.88 (3 lost, 1 gained, McNemar p = 0.38)",
        "agreement 98.00 %",
        "logit SQNR 29.3 dB",
        "rtx TensorRT-RTX 1.7.1 int8 14.5 MB built, not run here",
        "PASSED",
    ):
        assert words in text


def test_top1_of_both_stands_in_the_head_of_every_form() -> None:
    words = "top-1: FP32 95.00 %, INT8 94.00 % (cpu graph), of 200 images"
    given = judged(**described())
    assert words in " ".join(shown(given).split())[:200]
    assert words in render_markdown(given).split("\n\n")[1]
    assert words in render_html(given).partition("<section")[0]
    given = judged(**described(**VARIANTS["no labels"]))
    missing = "top-1 not measured: the validation source has no labels"
    assert missing in " ".join(shown(given).split())
    assert missing in render_markdown(given).split("\n\n")[1]
    assert missing in render_html(given).partition("<section")[0]


def test_a_warning_of_a_check_is_told_by_every_form_and_fails_nothing() -> None:
    given = judged(**described(comparison=comparison([3] * 200), limits=NO_LIMITS))
    assert given["passed"] is True
    reason = "but all are exit, so one answer for all may be right"
    assert reason in " ".join(shown(given).split())
    assert reason in render_html(given).partition("Checks")[0]
    assert reason in render_markdown(given)
    passed = judged(**described(comparison=comparison([3] * 200), limits=limits(max_size_mb=99.0)))
    assert "PASSED, with a warning" in shown(passed)
    assert "with a warning" in render_html(passed)


def test_the_terminal_has_colours_where_it_can_and_takes_no_markup() -> None:
    assert "\x1b[" in shown(judged(**described()), force_terminal=True)
    odd = ModelSpec("[red]net[/]", Preprocess((8, 8)), CLASSES)
    assert "[red]net[/]" in shown(judged(**described(model=odd)))


def test_reasons_stand_where_figures_are_missing() -> None:
    text = " ".join(shown(judged(**described(**VARIANTS["no latency"]))).split())
    assert "speedup not measured: skipped by --no-latency" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.4123, "0.412"),
        (9.984, "9.98"),
        (9.996, "10.0"),
        (33.94, "33.9"),
        (314.6, "315"),
        (12345.6, "12,346"),
    ],
)
def test_three_digits(value: float | None, text: str) -> None:
    assert significant(value) == text
    assert megabytes(46_812_345) == "46.8 MB"


# ---------------------------------------------------------------------------------------------------------------- HTML


class Page(HTMLParser):
    """Reads a page strictly: every element that opens closes in order."""

    void = frozenset({"meta", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_every_page_is_whole_and_alone(report: dict[str, Any]) -> None:
    text = render_html(report)
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "form", "style"} & {tag for tag, _ in page.elements[8:]}
    assert not re.search(r"https?:|@import|url\((?!#)|(?<!xlink:)href=\"(?!#)|src=\"(?!data:image/jpeg;base64,)", text)
    assert len(page.all("h1")) == 1
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", text)
    assert {one or other for one, other in used} <= set(ids)
    assert all(chart["aria-label"] for chart in page.all("div") if chart.get("role") == "img")
    assert all(region["aria-label"] for region in page.all("div") if region.get("role") == "region")
    text.encode()


def test_a_page_comes_from_the_document_alone() -> None:
    report = judged(**described())
    text = render_html(report)
    assert render_html(json.loads(to_json(report))) == text
    # A chart for each: drop, classes, latency; and one more where somebody looked inside
    assert len([chart for chart in Page(text).all("div") if chart.get("role") == "img"]) == 3
    layers = (
        TensorNoise("relu1", "conv1", False, 30.0),
        TensorNoise("add1", "add1", True, 28.0),
        TensorNoise("fc", "fc", False, None),
    )
    inside = LayerNoise(16, layers, (RangeFit("relu1", 0.9, 31.0),), (), 3)
    text = render_html(judged(**described(layer_noise={"cpu": inside, "tensorrt": inside})))
    (chart,) = [chart for chart in Page(text).all("div") if "residual stream" in (chart.get("aria-label") or "")]
    assert "cpu graph from 28.0 to 28.0 dB" in str(chart["aria-label"])


def test_without_matplotlib_the_page_has_every_figure_but_no_chart(monkeypatch: pytest.MonkeyPatch) -> None:
    report = judged(**described())
    monkeypatch.setattr(charts, "missing", lambda: "pip install")
    monkeypatch.setattr("edgeres.report.html.missing", lambda: "pip install")
    page = Page(render_html(report))
    assert page.all("svg") == []
    assert "none: pip install" in page.texts
    assert "pedestrians" not in page.texts
    assert "94.00 %" in page.texts


def test_pictures_stand_with_both_answers() -> None:
    jpeg = base64.b64encode(b"a picture").decode()
    page = Page(render_html(judged(**described(thumbnails={"exit/020.png": jpeg}))))
    (picture,) = page.all("img")
    assert picture["src"] == f"data:image/jpeg;base64,{jpeg}"
    assert picture["alt"] == "exit/020.png: FP32 says first aid, INT8 says stop"


def test_the_verdict_comes_first() -> None:
    cases = {
        "complete": ("Passed", ""),
        "failed": ("Failed", " failed"),
        "unsure": ("Passed, not certain: ", " unsure"),
        "no gates": ("No gate was set", " open"),
    }
    for name, (word, kind) in cases.items():
        page = Page(render_html(judged(**described(**VARIANTS[name]))))
        assert page.all("section")[0]["class"] == f"banner{kind}"
        headings = [text for text in page.texts if text == "Accuracy" or text.startswith(word)]
        assert headings[0].startswith(word)


def test_the_outcome_has_one_wording_everywhere() -> None:
    report = judged(**described(**VARIANTS["unsure"]))
    words = f"Passed, not certain: {report['verdicts'][0]['reason']}"
    assert re.search(r"^Passed, not certain: 5 of 200 images lost; [\d,]+ are needed to prove ", words)
    assert words in Page(render_html(report)).texts
    assert words in " ".join(shown(report).split())
    assert words.replace(" (", "\n(")[:60] in render_markdown(report)
    skipped = ElementTree.fromstring(render_junit(report)).find(".//testcase/skipped")
    assert skipped is not None
    assert skipped.get("type") == "not certain"
    assert report["verdicts"][0]["reason"] in str(skipped.get("message"))


def slow(factor: float, cpu_factor: float | None = None) -> dict[str, Measurement]:
    """INT8 takes ``factor`` times as long as FP32 by the clock, and ``cpu_factor`` times in processor time."""
    fp32 = np.random.default_rng(0).normal(0.010, 1e-4, 200)
    cpu = None if cpu_factor is None else fp32 * cpu_factor
    return {
        name: Measurement(seconds, 1, "host to host", ORT, 0.2, 10, of)
        for name, seconds, of in (("fp32", fp32, None if cpu is None else fp32), ("int8", fp32 * factor, cpu))
    }


def test_a_graph_slower_than_fp32_is_told_before_all_figures() -> None:
    report = judged(**described(latency=slow(1.75)))
    told = "INT8 is slower than FP32 here: 0.57x, 95 % interval 0.57 to 0.57 (10 to 17.5 ms)"
    text = " ".join(shown(report).split())
    assert text.index(told) < text.index("top-1 drop")
    texts = Page(render_html(report)).texts
    assert texts.index(told) < texts.index("Top-1")
    markdown = render_markdown(report).replace("\\", "")
    assert markdown.index("INT8 is slower than FP32 here: 0.57x") < markdown.index("| Gate |")
    assert "slower than FP32" not in shown(judged(**described(latency=slow(0.5))))


def test_a_speedup_that_the_processor_time_denies_is_called_not_measurable() -> None:
    report = judged(**described(latency=slow(0.06, 0.2), limits=limits(min_speedup=10.0)))
    latency, (verdict,) = report["latency"], report["verdicts"]
    assert latency["measurable"] is False
    assert latency["cpu_speedup"] == pytest.approx(5.0)
    assert (verdict["outcome"], report["outcome"], report["passed"]) == ("unsure", "unsure", True)
    words = "not measurable: 16.7x by the clock, but 5x in processor time"
    assert words in " ".join(shown(report).split())
    assert any(words in text for text in Page(render_html(report)).texts)
    assert words in render_markdown(report)
    assert judged(**described(latency=slow(0.2, 0.21)))["latency"]["measurable"] is True


@given(st.text(alphabet=st.characters(exclude_categories=("Cs", "Cc")), min_size=1))
@settings(deadline=None, max_examples=8)
def test_no_label_becomes_markup(label: str) -> None:
    label = f"{label}</td><script>alert('&amp;')</script>"
    spec = ModelSpec(label, Preprocess((8, 8)), (label,) * len(CLASSES), weights=label)
    engine = EngineRecord(
        label, label, label, "int8", label, f"engines/{quote(label, safe='')[:80]}.engine", 1, Portability((label,))
    )
    changes = {"model": spec, "engines": (engine,), "environment": {label: label}, "options": {label: label}}
    page = Page(render_html(judged(**described(command=label, **changes))))
    assert "script" not in {tag for tag, _ in page.elements}
    assert page.texts.count(label) >= 8


def test_two_remarks_of_one_name_both_show() -> None:
    shaky = {name: measurement(10.0, 0, 3) for name in ("fp32", "int8")}
    for m in shaky.values():
        m.seconds[5] = 1.0
    report = judged(**described(latency=shaky))
    for text in (" ".join(shown(report).split()), " ".join(Page(render_html(report)).texts)):
        assert "FP32: coefficient of variation" in text
        assert "INT8: coefficient of variation" in text


def test_a_long_list_folds_and_says_how_much_it_leaves_out() -> None:
    classes = 40
    truth = np.arange(4000) % classes
    wrong = (truth + (np.arange(4000) % 80 < 30)) % classes  # 30 classes lose half of their images
    found = compared(truth, classes, {"fp32": truth, "cpu": wrong}, sqnr={"cpu": (20.0,)})
    spec = ModelSpec("net", Preprocess((8, 8)), tuple(f"class {i}" for i in range(classes)))
    text = render_html(judged(**described(comparison=found, model=spec)))
    assert "1,500 images that INT8 gets wrong and FP32 right" in text
    assert "1,400 more are listed in report.json." in text
    assert "20 more classes" in text
    assert text.count(">-50.00 pp<") == 30
    assert "Significant over all classes" in text


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_and_charts_have_contrast(theme: int) -> None:
    """WCAG 2.2: 4.5 for text (1.4.3), 3 for graphics (1.4.11)."""
    style = page_style()
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", re.findall(r":root \{(.*?)\}", style, re.S)[theme]))
    text = [("ink", "page"), ("ink", "card"), ("soft", "page"), ("soft", "card")]
    text += [(word, "card") for word in ("pass", "fail", "unsure")]
    text += [(front, f"{word}-tint") for word in ("pass", "fail", "unsure") for front in (word, "ink")]
    for pairs, least in ((text, 4.5), ([(name, "card") for name in ("fp32", "int8", "other")], 3.0)):
        for front, back in pairs:
            high, low = sorted((_luminance(colours[front]), _luminance(colours[back])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= least, (front, back)


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_fits_a_phone_in_a_browser(tmp_path: Path) -> None:
    """Laid out 320 and 390 px wide, with every fold open, nothing sticks out, and dark is dark."""
    page = render_html(judged(**described())).replace("<details>", "<details open>")
    frames = "".join(
        f'<iframe width="{px}" style="color-scheme:{theme}" srcdoc="{html.escape(page)}"></iframe>'
        for px, theme in ((320, "light"), (390, "dark"))
    )
    measure = """<script>onload = () => document.title = [...document.querySelectorAll("iframe")].map(f => {
      const root = f.contentDocument.documentElement;
      return root.scrollWidth <= f.clientWidth ? getComputedStyle(f.contentDocument.body).backgroundColor : "too wide";
    }).join(" and ")</script>"""
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(f"<!doctype html><meta charset=utf-8>{frames}{measure}", encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync", "--dump-dom"]
    options += ["--disable-background-networking", "--disable-component-update"]
    command = [str(CHROMIUM), *options, f"--user-data-dir={tmp_path / 'profile'}", wrapper.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None
    assert title[1] == "rgb(244, 245, 247) and rgb(16, 19, 23)"


def test_a_report_on_raw_pixels_is_read_back(tmp_path: Path) -> None:
    model = spec()
    report = judged(model=replace(model, given=model.preprocess))
    (tmp_path / "report.json").write_text(to_json(report), encoding="utf-8")
    assert read_report(tmp_path / "report.json") == report


def test_the_page_names_its_report_json(report: dict[str, Any], tmp_path: Path) -> None:
    write_report(tmp_path, report)
    (tmp_path / "notes.txt").touch()
    write_report(tmp_path, report)
    written = hashlib.sha256((tmp_path / "report.json").read_bytes()).hexdigest()
    assert written in (tmp_path / "report.html").read_text(encoding="utf-8")
