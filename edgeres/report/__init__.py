"""Reports of a build: report.json, and the terminal table and HTML page drawn from it alone."""

from edgeres.report.document import CalibrationRecord, DataRecord, ReportInput, build_report, to_json
from edgeres.report.html import render_html
from edgeres.report.terminal import render_terminal

__all__ = [
    "CalibrationRecord",
    "DataRecord",
    "ReportInput",
    "build_report",
    "render_html",
    "render_terminal",
    "to_json",
]
