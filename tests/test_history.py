"""``edgeres history``: figures over builds, in the order of their times, and what does not compare."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from bundles import write_bundle
from click.testing import CliRunner
from judged import judged
from test_report import described

from edgeres.cli import cli
from edgeres.judge.document import to_json
from edgeres.report.history import history_rows, render_history, render_history_svg

REPORT = judged(**described())
Change = Callable[[dict[str, Any]], None]


def write(path: Path, day: int, change: Change | None = None) -> Path:
    report = json.loads(to_json(REPORT))
    report["created"] = f"2026-03-{day:02}T10:00:00+00:00"
    if change:
        change(report)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report), encoding="utf-8")
    return path


def put(path: str, value: Any) -> Change:
    def change(report: dict[str, Any]) -> None:
        *above, last = path.split("/")
        for key in above:
            report = report[key]
        report[last] = value

    return change


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli, ["history", *map(str, arguments)])


def shown(*arguments: object) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.exception
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_builds_stand_in_the_order_of_their_times_with_the_figures_of_their_reports(tmp_path: Path) -> None:
    """Whatever the time zone and the order in which they are given."""
    late = write(tmp_path / "a.json", 3, put("latency/int8/p50_ms", 4.25))
    early = write(tmp_path / "b.json", 3, put("created", "2026-03-03T10:30:00+02:00"))
    found = shown(late, early)
    assert [build["name"] for build in found["builds"]] == [str(early), str(late)]
    assert found["builds"][0]["created"] == "2026-03-03T08:30:00+00:00"
    build = found["builds"][1]
    accuracy = REPORT["accuracy"]
    assert (build["top1"], build["fp32_top1"]) == (accuracy["int8"]["top1"], accuracy["fp32"]["top1"])
    assert (build["drop_pp"], build["logit_sqnr_db"]) == (accuracy["drop_pp"], accuracy["logit_sqnr_db"])
    assert (build["p50_ms"], build["size_bytes"]) == (4.25, REPORT["sizes"]["int8_bytes"])
    assert build["outcome"] == REPORT["outcome"] and found["notes"] == []


def test_a_folder_of_verify_and_a_bundle_are_read_too(tmp_path: Path) -> None:
    write(tmp_path / "monday" / "report.json", 1)
    made = write_bundle(tmp_path / "b.edgeres", files={"report.json": to_json(REPORT).encode()})
    assert {build["name"] for build in shown(tmp_path / "monday", made)["builds"]} == {
        str(tmp_path / "monday"),
        str(made),
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("model/name", "resnet50"), "is of resnet50 with 7 classes, and "),
        (put("data/validation/sha256", "ab" * 32), "their figures do not compare; give reports on the same images, or"),
        (put("data/validation", None), "was verified on no images, and "),
        (put("created", "yesterday"), "states no time of its measurement: 'yesterday'"),
        (put("schema", 99), "written in format 99"),
    ],
)
def test_what_does_not_belong_together_is_one_line(change: Change, words: str, tmp_path: Path) -> None:
    done = run(write(tmp_path / "a.json", 1), write(tmp_path / "b.json", 2, change))
    assert done.exit_code != 0 and words in str(done.exception)
    assert str(tmp_path / "b.json") in str(done.exception) and "\n" not in str(done.exception)


def test_other_images_are_listed_where_that_is_asked_and_told(tmp_path: Path) -> None:
    other = write(tmp_path / "b.json", 2, put("data/validation/sha256", "ab" * 32))
    found = shown(write(tmp_path / "a.json", 1), other, "--any-images")
    assert found["images"] is None
    assert [note.partition(":")[0] for note in found["notes"]] == ["accuracy was measured on different images"]


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (put("environment/processor", "Cortex-A78AE"), "latency was measured on different machines: "),
        (put("latency/backend", "TensorRT 10.3.0"), "latency was measured in different ways: "),
        (put("accuracy/graph", "tensorrt"), "the INT8 figures are of different graphs: cpu (1), tensorrt (1)"),
    ],
)
def test_what_changed_behind_the_figures_is_told(change: Change, note: str, tmp_path: Path) -> None:
    (told,) = shown(write(tmp_path / "a.json", 1), write(tmp_path / "b.json", 2, change))["notes"]
    assert told.startswith(note)


def test_the_table_fits_80_columns_and_a_missing_figure_is_a_dash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for day in (1, 2):
        write(Path(f"runs/{day}/report.json"), day, put("accuracy/logit_sqnr_db", None) if day == 2 else None)
    lines = run("runs/1/report.json", "runs/2/report.json").stdout.splitlines()
    (first, second) = [line.split() for line in lines if line.startswith("2026-03")]
    sqnr = REPORT["accuracy"]["logit_sqnr_db"]
    assert first[4] == ("-" if sqnr is None else f"{sqnr:.1f}") and second[4] == "-"
    assert first[2] == f"{REPORT['accuracy']['int8']['top1']:.2f}"
    assert all(len(line.rstrip()) <= 80 for line in lines)


def three(tmp_path: Path) -> dict[str, Any]:
    verdicts = ("passed", "failed", "unsure")
    paths = [
        write(tmp_path / f"{i}<b>.json", 1 + i, lambda report, i=i: report.update(outcome=verdicts[i]))  # type: ignore[misc]
        for i in range(3)
    ]
    found = shown(*paths)
    for build, ms in zip(found["builds"], (8.0, 10.0, 9.0), strict=True):
        build["p50_ms"] = ms
    found["builds"][1]["logit_sqnr_db"] = None
    return found


def test_points_of_the_chart_lie_where_the_figures_say(tmp_path: Path) -> None:
    """Higher values are higher, by the same scale as the lines behind them; a failed build is a square."""
    found = three(tmp_path)
    root = ElementTree.fromstring(render_history_svg(found))
    svg = "{http://www.w3.org/2000/svg}"
    group = next(
        g for g in root.iter(f"{svg}g") if (first := g.find(f"{svg}text")) is not None and "p50" in str(first.text)
    )
    ticks = [
        (float(str(text.text)), float(line.attrib["y1"]))
        for line, text in zip(group.findall(f"{svg}line"), group.findall(f"{svg}text")[1:], strict=False)
    ]
    (a, at_a), (b, at_b) = ticks[0], ticks[-1]
    points = str(group.findall(f"{svg}polyline")[0].attrib["points"]).split()
    xs, ys = zip(*((float(x), float(y)) for x, y in (point.split(",") for point in points)), strict=True)
    read_back = [a + (y - at_a) * (b - a) / (at_b - at_a) for y in ys]
    assert read_back == pytest.approx([8.0, 10.0, 9.0], abs=0.05)
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    marks = [[title.text for title in one.iter(f"{svg}title")] for one in group.iter(f"{svg}rect")]
    assert len(marks) == 1 and "INT8 10.0, failed" in str(marks[0][0])
    sqnr = next(g for g in root.iter(f"{svg}g") if "SQNR" in str(next(g.iter(f"{svg}text")).text))
    assert len(str(sqnr.findall(f"{svg}polyline")[0].attrib["points"]).split()) in (0, 2)


def test_the_page_shows_the_rows_of_the_table_and_takes_nothing_from_elsewhere(tmp_path: Path) -> None:
    found = three(tmp_path)
    page = render_history(found)
    for row in history_rows(found):
        assert row.measured in page and row.ms in page and row.name.replace("<b>", "&lt;b&gt;") in page
    assert "<b>.json" not in page
    assert re.search(r"<script|https?://|url\(", page) is None


@pytest.mark.parametrize("count", [1, 2, 60])
def test_any_number_of_builds_can_be_drawn(count: int, tmp_path: Path) -> None:
    found = shown(*(write(tmp_path / f"{i}.json", 1 + i % 28) for i in range(count)))
    root = ElementTree.fromstring(render_history_svg(found))
    width = float(root.attrib["width"])
    assert all(0 <= float(one.attrib["cx"]) <= width for one in root.iter() if "cx" in one.attrib)


def test_the_plot_is_a_page_or_a_picture(tmp_path: Path) -> None:
    report = write(tmp_path / "a.json", 1)
    for name, begin in (("h.html", "<!doctype html>"), ("h.svg", "<?xml")):
        done = run(report, "--plot", tmp_path / name)
        assert done.exit_code == 0 and (tmp_path / name).read_text(encoding="utf-8").startswith(begin)
    done = run(report, "--plot", tmp_path / "h.png")
    assert "give a name that ends in .html or .svg" in str(done.exception)
