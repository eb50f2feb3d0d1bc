"""Writes reports: report.json for programs, report.html for people, JUnit and Markdown for CI systems."""

from __future__ import annotations

from pathlib import Path

from edgeres.bundle import REPORT, REPORT_PAGE
from edgeres.files import write_file, write_files
from edgeres.judge.document import Json, to_json
from edgeres.report.html import render_html
from edgeres.report.junit import render_junit
from edgeres.report.markdown import render_markdown


def write_report(folder: Path, report: Json) -> None:
    """Write report.json and report.html into a directory, both or none.

    Raises:
        OSError: the directory cannot be written.
    """
    write_files(folder, {REPORT: to_json(report).encode(), REPORT_PAGE: render_html(report).encode()})


def write_junit(path: Path, report: Json) -> None:
    """Write gates and checks as JUnit XML; complete or not at all."""
    write_file(path, render_junit(report).encode())


def write_markdown(path: Path, report: Json) -> None:
    """Write a summary as Markdown; complete or not at all."""
    write_file(path, render_markdown(report).encode())
