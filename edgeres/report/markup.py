"""HTML elements that escape all their children and attributes: markup, control and bidi characters.

Only :func:`el` and :func:`join` make :class:`Html`, so a label or a file name never becomes markup.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from importlib.resources import files
from string import Template

from edgeres.words import escaped

_VOID = frozenset({"img", "input"})
_WIDE = 4  # columns that a phone shows beside each other


class Html(str):
    """Markup that needs no escaping."""


def _escape(value: object) -> str:
    return html.escape(escaped(str(value), keep="\n"))


def el(tag: str, *children: object, **attributes: object) -> Html:
    """An element. Children that are not Html are escaped, attribute values always; ``class_`` becomes ``class``."""
    names = ((key.rstrip("_").replace("_", "-"), _escape(value)) for key, value in attributes.items())
    head = "".join(f' {name}="{value}"' for name, value in names)
    return Html(f"<{tag}{head}>" if tag in _VOID else f"<{tag}{head}>{join(*children)}</{tag}>")


def join(*children: object) -> Html:
    return Html("".join(c if isinstance(c, Html) else _escape(c) for c in children))


def table(label: str, head: Sequence[str], rows: Iterable[Sequence[object]], numbers: Iterable[int] = ()) -> Html:
    """A table whose first cell of a row is its header.

    One of more than four columns becomes a card a row on a phone; others scroll where they are wider than the screen.
    """
    right, wide = frozenset(numbers), len(head) > _WIDE

    def cell(tag: str, i: int, content: object, **scope: str) -> Html:
        name = {"data_label": head[i]} if wide and tag == "td" else {}
        return el(tag, content, **scope, **({"class_": "n"} if i in right else {}), **name)

    def row(cells: Sequence[object]) -> Html:
        first, *rest = cells
        return el("tr", cell("th", 0, first, scope="row"), *(cell("td", i, c) for i, c in enumerate(rest, 1)))

    header = el("thead", el("tr", *(cell("th", i, name, scope="col") for i, name in enumerate(head))))
    body = el("table", header, el("tbody", *map(row, rows)), **({"class_": "wide"} if wide else {}))
    return el("div", body, class_="scroll", role="region", aria_label=label, tabindex=0)


def section(title: str, *content: object) -> Html:
    return el("section", el("h2", title), *content)


def more(title: str, *content: object, open_: bool = False) -> Html:
    return el("details", el("summary", title), *content, **({"open": ""} if open_ else {}))


def prose(text: str) -> Html:
    """A cell that keeps a readable width on a narrow screen."""
    return el("div", text, class_="prose")


def render_page(title: str, body: Html) -> str:
    """A page for light and dark screens of any size, without network access; to be written as UTF-8."""
    page = Template(files("edgeres.report").joinpath("template.html").read_text(encoding="utf-8"))
    return page.substitute(title=_escape(title), style=page_style(), body=body)


def page_style() -> str:
    """The style sheet of all pages."""
    return files("edgeres.report").joinpath("page.css").read_text(encoding="utf-8")
