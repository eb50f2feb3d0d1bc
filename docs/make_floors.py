"""Draws the floors in docs/architecture.md from the imports of edgeres/, and lists its folders from their docstrings.

    python docs/make_floors.py

Only the source is read; nothing is imported. Imports for the type checker and inside functions count.
"""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "edgeres"
PAGE = REPOSITORY / "docs" / "architecture.md"
BEGIN, END = "<!-- made by docs/make_floors.py -->", "<!-- end -->"
LEFT_OUT = {"__init__", "__main__", "_version"}  # the package's own front door, not a floor


def names() -> dict[str, Path]:
    """Folders, and files beside them, by name; the file that holds the docstring of each."""
    found = {path.parent.name: path for path in PACKAGE.glob("*/__init__.py")}
    found |= {path.stem: path for path in PACKAGE.glob("*.py") if path.stem not in LEFT_OUT}
    return dict(sorted(found.items()))


def imports() -> dict[str, set[str]]:
    """For each folder the other folders that it imports."""
    found = {}
    for name, path in names().items():
        files = path.parent.rglob("*.py") if path.stem == "__init__" else [path]
        modules = {module for file in files for module in _modules(ast.parse(file.read_text(encoding="utf-8")))}
        tops = {module.split(".")[1] for module in modules if module.startswith("edgeres.")}
        found[name] = (tops & names().keys()) - {name}
    return found


def _modules(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def floors(edges: dict[str, set[str]]) -> list[list[str]]:
    """From the ground up: each name one floor above the highest that it imports."""
    rank: dict[str, int] = {}
    for name in TopologicalSorter(edges).static_order():
        rank[name] = max((rank[other] + 1 for other in edges[name]), default=0)
    return [sorted(name for name in rank if rank[name] == floor) for floor in range(max(rank.values()) + 1)]


def direct(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """Without the imports that another import already implies."""
    below: dict[str, set[str]] = {}
    for name in TopologicalSorter(edges).static_order():
        below[name] = edges[name].union(*(below[other] for other in edges[name]))
    return {name: {o for o in edges[name] if not any(o in below[p] for p in edges[name] - {o})} for name in edges}


def drawing() -> str:
    edges = imports()
    arrows = [f"    {name} --> {other}" for name, others in direct(edges).items() for other in sorted(others)]
    storeys = floors(edges)
    lines = [f"{floor:2}  {'  '.join(storeys[floor])}" for floor in reversed(range(len(storeys)))]
    return "\n".join(["```", *lines, "```", "", "```mermaid", "flowchart TD", *arrows, "```"])


def table() -> str:
    rows = []
    for name, path in names().items():
        text = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
        where = f"`{name}/`" if path.stem == "__init__" else f"`{name}.py`"
        rows.append(f"| {where} | {' '.join(text.split()).replace('``', '`')} |")
    return "\n".join(["| folder or file | what it is for |", "|---|---|", *rows])


def written(page: str) -> str:
    """The page with its two made parts as they should be: the drawing, then the table."""
    parts = page.split(BEGIN)
    assert len(parts) == 3, f"{PAGE} needs two marks {BEGIN}"
    made = [
        f"\n\n{text}\n\n{END}{part.partition(END)[2]}"
        for text, part in zip((drawing(), table()), parts[1:], strict=True)
    ]
    return BEGIN.join([parts[0], *made])


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
