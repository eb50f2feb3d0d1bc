"""Writes reports: report.json for programs, report.html for people, the others for CI systems."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgeres.bundle import REPORT, REPORT_PAGE
from edgeres.files import write_file, write_files
from edgeres.judge.document import Json, to_json
from edgeres.report.annotations import render_annotations
from edgeres.report.html import render_html
from edgeres.report.junit import render_junit
from edgeres.report.markdown import render_markdown
from edgeres.report.metrics import render_metrics

# The forms for CI systems: the option of `edgeres verify` that writes each.
RENDERERS: dict[str, Callable[[Json], str]] = {
    "junit": render_junit,
    "markdown": render_markdown,
    "metrics": render_metrics,
    "annotations": render_annotations,
}


def write_report(folder: Path, report: Json) -> None:
    """Write report.json and report.html into a directory, both or none.

    Raises:
        OSError: the directory cannot be written.
    """
    write_files(folder, {REPORT: to_json(report).encode(), REPORT_PAGE: render_html(report).encode()})


def write_rendered(path: Path, form: str, report: Json) -> None:
    """Write a report in one of :data:`RENDERERS`; complete or not at all."""
    write_file(path, RENDERERS[form](report).encode())
