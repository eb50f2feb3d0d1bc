"""A report on disk: report.json for machines, report.html for people."""

from __future__ import annotations

from pathlib import Path

from edgeres.bundle import REPORT, REPORT_PAGE, write_file
from edgeres.report.document import Json, to_json
from edgeres.report.html import render_html


def write_report(folder: Path, report: Json) -> None:
    """Write both files into a directory, each complete or not at all.

    Raises:
        OSError: the directory cannot be written.
    """
    write_file(folder / REPORT, to_json(report).encode())
    write_file(folder / REPORT_PAGE, render_html(report).encode())
