"""The report for CI systems: names of JUnit's cases, GitHub's annotations, OpenMetrics."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from bundles import spec
from judged import judged, limits
from test_report import described

from edgeres.report.annotations import render_annotations
from edgeres.report.junit import render_junit
from edgeres.report.metrics import render_metrics


def names(report: dict[str, Any]) -> list[str]:
    return [case.attrib["name"] for case in ElementTree.fromstring(render_junit(report)).iter("testcase")]


def test_the_names_of_cases_stay_where_a_limit_changes() -> None:
    before, after = (judged(**described(limits=limits(max_drop=limit))) for limit in (6.0, 5.5))
    assert names(before) == names(after)
    assert len(set(names(before))) == len(names(before))
    assert "at most 5.5 pp" in render_junit(after)


COMMAND = re.compile(r"::(error|warning) (?:file=([^,:]*),)?title=([^,:]*)::(.*)")


def read(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """The commands as GitHub reads them: kind, file, title, message."""
    found = [COMMAND.fullmatch(line) for line in render_annotations(report).splitlines()]
    assert all(found)
    return [(one[1], *(unquote(one[i] or "") for i in (2, 3, 4))) for one in found if one]


def test_what_failed_is_an_error_and_what_is_not_certain_a_warning() -> None:
    failed = judged(**described(limits=limits(max_drop=0.0)))
    (drop,) = [one for one in read(failed) if "top-1 drop" in one[2]]
    verdict = failed["verdicts"][0]
    assert drop == ("error", "", f"resnet18: {verdict['title']} {verdict['rule']}", verdict["reason"])
    unsure = judged(**described(limits=limits(max_drop=3.0)))
    assert [one[0] for one in read(unsure) if "top-1 drop" in one[2]] == ["warning"]
    passed = judged(**described(limits=limits(max_drop=9.0)))
    assert [one for one in read(passed) if "top-1 drop" in one[2]] == []


def test_words_of_others_make_no_command() -> None:
    model = replace(described()["model"], name="a,b::error::x%0A\n::error::y\u202e")
    report = judged(**described(model=model, limits=limits(max_drop=0.0)))
    assert {one[2].partition(": top-1 drop")[0] for one in read(report) if "top-1 drop" in one[2]} == {
        "a,b::error::x%0A\n::error::y\\u202e"
    }


def metrics(report: dict[str, Any]) -> dict[tuple[str, str], float]:
    *lines, end = render_metrics(report).splitlines()
    assert end == "# EOF"
    samples = [re.fullmatch(r'(\w+)\{model="([^"\\]|\\.)*"(?:,precision="(\w+)")?\} (\S+)', one) for one in lines]
    assert all(found or line.startswith(("# TYPE ", "# HELP ")) for found, line in zip(samples, lines, strict=True))
    return {(one[1], one[3] or ""): float(one[4]) for one in samples if one}


def test_metrics_are_the_figures_of_the_report() -> None:
    report = judged(**described())
    found = metrics(report)
    assert found["edgeres_top1_percent", "int8"] == report["accuracy"]["int8"]["top1"]
    assert found["edgeres_top1_drop_points", ""] == report["accuracy"]["drop_pp"]
    assert found["edgeres_latency_p50_milliseconds", "fp32"] == report["latency"]["fp32"]["p50_ms"]
    assert found["edgeres_size_bytes", "int8"] == 11_900_000
    assert found["edgeres_passed", ""] == 1.0


@pytest.mark.parametrize("name", ['a"b', "a\\", "a\nb"])
def test_names_end_no_label(name: str) -> None:
    report = judged(**described(model=replace(described()["model"], name=name), latency=None))
    found = metrics(report)
    assert len(found) > 4 and not any(key.startswith("edgeres_latency") for key, _ in found)
    assert spec().name not in render_metrics(report)
