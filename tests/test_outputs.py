"""JUnit XML and Markdown, read back by libraries that others read them with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import junitparser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judged import judged
from markdown_it import MarkdownIt
from test_report import CLASSES, VARIANTS, described

from edgeres.pipeline.render import write_rendered
from edgeres.records import ModelSpec, Preprocess
from edgeres.report.junit import render_junit
from edgeres.report.markdown import render_markdown

TESTCASE = {"name", "classname", "time"}
SUITE = {"name", "timestamp", "time", "tests", "failures", "errors", "skipped"}


@pytest.fixture(params=VARIANTS)
def report(request: pytest.FixtureRequest) -> dict[str, Any]:
    return judged(**described(**VARIANTS[request.param]))


# ---- JUnit ----------------------------------------------------------------------------------------------------------


def _cases(report: dict[str, Any], tmp_path: Path) -> dict[str, junitparser.TestCase]:
    write_rendered(tmp_path / "edgeres.xml", "junit", report)
    parsed = junitparser.JUnitXml.fromfile(str(tmp_path / "edgeres.xml"))
    return {case.name: case for suite in parsed for case in suite}


def test_junit_has_a_case_for_every_gate_and_check(report: dict[str, Any], tmp_path: Path) -> None:
    cases = _cases(report, tmp_path)
    assert len(cases) == len(report["verdicts"]) + len(report["checks"])
    for verdict in report["verdicts"]:
        case = cases[verdict["title"]]
        kind = {True: junitparser.Skipped, False: junitparser.Failure}[verdict["passed"]]
        told = [result for result in case.result if isinstance(result, junitparser.Skipped | junitparser.Failure)]
        assert [type(result) for result in told] == ([] if verdict["outcome"] == "passed" else [kind])
        assert all(verdict["reason"] in str(result.message) for result in told)
    for check in report["checks"]:
        assert bool(cases[check["title"]].is_passed) is (check["outcome"] == "passed")


def test_junit_counts_what_it_holds(report: dict[str, Any]) -> None:
    """Jenkins' junit-10.xsd: attributes, their order of elements, counts."""
    root = ElementTree.fromstring(render_junit(report).encode())
    assert root.tag == "testsuites"
    suites = list(root)
    for suite in suites:
        assert (suite.tag, set(suite.attrib)) == ("testsuite", SUITE)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.attrib["timestamp"])
        assert suite[0].tag == "properties"
        cases = suite.findall("testcase")
        assert all(set(case.attrib) == TESTCASE for case in cases)
        assert int(suite.attrib["tests"]) == len(cases)
        for name, tag in (("failures", "failure"), ("skipped", "skipped")):
            assert int(suite.attrib[name]) == sum(case.find(tag) is not None for case in cases)
    assert set(root.attrib) == {"name", "tests", "failures", "errors"}
    for name in ("tests", "failures", "errors"):
        assert int(root.attrib[name]) == sum(int(suite.attrib[name]) for suite in suites)


def test_an_allowed_fault_is_skipped_and_told() -> None:
    report = judged(**described())
    report["checks"][0] |= {"outcome": "failed", "allowed": True, "reason": "labels look swapped"}
    root = ElementTree.fromstring(render_junit(report).encode())
    skipped = root.find(".//testcase[@classname='edgeres.checks']/skipped")
    assert skipped is not None
    assert (skipped.get("type"), skipped.get("message")) == ("allowed", "labels look swapped")


@given(st.text(min_size=1))
@settings(deadline=None, max_examples=40)
def test_no_text_breaks_the_xml(text: str) -> None:
    report = judged(**described(command=text.encode(errors="replace").decode()))
    report["verdicts"][0]["reason"] = text
    root = ElementTree.fromstring(render_junit(report).encode())
    found = root.find(".//testcase")
    assert found is not None


# ---- Markdown -------------------------------------------------------------------------------------------------------


def _html(report: dict[str, Any]) -> str:
    return str(MarkdownIt("commonmark", {"html": True}).enable("table").render(render_markdown(report)))


def _rows(rendered: str) -> list[list[str]]:
    cells = re.compile(r"<td.*?>(.*?)</td>", re.S)
    return [cells.findall(row) for row in re.findall(r"<tr>.*?</tr>", rendered, re.S) if cells.search(row)]


def test_markdown_says_the_verdict_and_every_gate(report: dict[str, Any], tmp_path: Path) -> None:
    write_rendered(tmp_path / "summary.md", "markdown", report)
    assert (tmp_path / "summary.md").read_text(encoding="utf-8") == render_markdown(report)
    rendered = _html(report)
    assert rendered.startswith("<h2>resnet18 in INT8: ") or "net in INT8" in rendered
    words = {"passed": "passed", "failed": "failed", "unsure": "not certain"}
    heading = rendered[: rendered.index("</h2>")]
    assert (words[report["outcome"]] in heading) or not report["verdicts"]
    rows = _rows(rendered)
    for verdict in report["verdicts"]:
        (row,) = [row for row in rows if row[1:3] == [verdict["title"], verdict["rule"]]]
        assert row[0].endswith({"passed": "pass", "failed": "FAIL"}.get(verdict["outcome"], row[0]))
    assert {len(row) for row in rows} <= {2, 3, 4, 5}
    assert "| ---" not in rendered  # every table was read as one


def test_markdown_names_faults_first() -> None:
    report = judged(**described(**VARIANTS["failed"]))
    weights = next(check for check in report["checks"] if check["title"] == "scales of weights")
    weights |= {"outcome": "failed", "reason": "one scale for all"}
    text = render_markdown(report)
    assert text.index("**top-1 drop**") < text.index("**scales of weights**: one scale for all") < text.index("| Gate")


@given(st.text(alphabet=st.characters(exclude_categories=("Cs", "Cc")), min_size=1))
@settings(deadline=None, max_examples=40)
def test_no_label_becomes_markdown(label: str) -> None:
    label = f"{label}|*a*<b>[x](http://y)`c`@someone"
    spec = ModelSpec(label, Preprocess((8, 8)), (label,) * len(CLASSES), weights=label)
    rendered = _html(judged(**described(model=spec)))
    assert not re.search(r"<(b|em|strong|a|code)[ >]", rendered.replace("<strong>speedup</strong>", ""))
    assert "@someone" not in rendered
    assert {len(row) for row in _rows(rendered)} <= {2, 3, 4, 5}
