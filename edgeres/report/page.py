"""The frame of every page: one file for light and dark screens of any size, without network access."""

from __future__ import annotations

import html
from importlib.resources import files
from string import Template

from edgeres.report.markup import Html


def render_page(title: str, body: Html) -> str:
    """The whole page as text, to be written as UTF-8."""
    page = Template(files("edgeres.report").joinpath("template.html").read_text(encoding="utf-8"))
    return page.substitute(title=html.escape(title), body=body)
