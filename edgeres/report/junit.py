"""The report as JUnit XML, with a suite of gates and a suite of checks, for Jenkins, GitLab, GitHub and others.

An unsure gate is a skipped test under ``--on-unsure warn`` and a failed one under ``fail``; a check that could not be
made is a skipped test. A case has the name of its gate without the limit, so that its history goes on where a limit
changes. The document follows Jenkins' junit-10.xsd: counts and ``time`` on every suite, ``classname``
and ``name`` on every case.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from xml.etree import ElementTree

from edgeres.report.text import Report, check_word, observed, verdict_word, weaker
from edgeres.words import escaped

# XML 1.0 cannot represent most control characters, but file names may have them.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_junit(report: Report) -> str:
    """The whole document as text, to be written as UTF-8."""
    name = report["model"]["name"]
    root = ElementTree.Element("testsuites", name="edgeres")
    gates = _suite(root, report, f"edgeres gates: {name}")
    for verdict in report["verdicts"]:
        told = f"{verdict['rule']}; observed {observed(verdict)}: {verdict['reason']}"
        _case(gates, "edgeres.gates", verdict["title"], verdict_word(verdict), told)
    checks = _suite(root, report, f"edgeres checks: {name}")
    for check in report["checks"]:
        _case(checks, "edgeres.checks", check["title"], check_word(check), check["reason"])
    for suite in (gates, checks):
        _count(suite, (suite,), ("tests", "failures", "skipped"))
    _count(root, (gates, checks), ("tests", "failures"))  # the schema allows no other counts on the root
    ElementTree.indent(root)
    body = escaped(ElementTree.tostring(root, encoding="unicode"), keep="\n")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'


def _suite(root: ElementTree.Element, report: Report, name: str) -> ElementTree.Element:
    stamp = report["created"][:19]  # without a time zone, as the schema requires
    suite = ElementTree.SubElement(root, "testsuite", name=_text(name), timestamp=stamp, time="0")
    properties = ElementTree.SubElement(suite, "properties")
    validation = report["data"]["validation"] or {"description": "none"}
    facts = {"edgeres": report["edgeres"], "validation": validation["description"], "command": report["command"]}
    if weaker(report):
        facts["config"] = weaker(report)
    for key, value in facts.items():
        ElementTree.SubElement(properties, "property", name=key, value=_text(value))
    return suite


def _case(suite: ElementTree.Element, group: str, name: str, word: str, reason: str) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=group, name=_text(name), time="0")
    if word == "pass":
        ElementTree.SubElement(case, "system-out").text = _text(reason)
        return
    tag = "failure" if word == "FAIL" else "skipped"
    ElementTree.SubElement(case, tag, type=word, message=_text(reason)).text = _text(reason)


_COUNTED = {"tests": "testcase", "failures": "testcase/failure", "skipped": "testcase/skipped"}


def _count(element: ElementTree.Element, suites: Iterable[ElementTree.Element], names: Iterable[str]) -> None:
    for name in names:
        element.set(name, str(sum(len(suite.findall(_COUNTED[name])) for suite in suites)))
    element.set("errors", "0")


def _text(value: str) -> str:
    return _NO_XML.sub("?", value)
