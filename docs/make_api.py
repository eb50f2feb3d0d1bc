"""Writes docs/api.md: every public name with its signature and what its docstring says first.

    python docs/make_api.py

Public is what the ``__all__`` of the modules below names. Only the source is read; nothing is imported.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "api.md"
MODULES = ("edgeres", "edgeres.runtime", "edgeres.errors", "edgeres.runtime.conformance")
HEAD = """# Public API

Made by `docs/make_api.py` from `__all__`: do not edit it by hand.

The names on this page are public and stable. So are the command line (`edgeres COMMAND --help`) with its exit codes,
the files of a bundle, and `report.json` under its schema. A change that breaks one of them is named in
[CHANGELOG.md](../CHANGELOG.md). Every other module, function, class and field is private and may change in any release,
whether its name begins with an underscore or not.
"""
Definition = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


def page() -> str:
    lines = [HEAD]
    told: dict[str, str] = {}
    for module in MODULES:
        lines += [f"## {module}\n", f"{_first(_parse(module))}\n"]
        for name in public(module):
            if name in told:
                lines.append(f"### `{name}`\n\nAs in `{told[name]}`.\n")
            else:
                lines += _entry(name, _find(module, name)[1])
                told[name] = module
            if name == "build":
                options = dict.fromkeys(_options(module, "BuildOptions"))
                lines += ["Its options are the fields of `BuildOptions`, and of the records in it:\n", *options, ""]
    return "\n".join(lines).rstrip() + "\n"


def public(module: str) -> list[str]:
    """The names in ``__all__`` of a module."""
    _, node = _find(module, "__all__")
    assert isinstance(node, ast.Assign)
    return [str(name) for name in ast.literal_eval(node.value)]


def _parse(module: str) -> ast.Module:
    path = REPOSITORY.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def _targets(node: ast.Assign | ast.AnnAssign) -> list[str]:
    return [ast.unparse(target) for target in (node.targets if isinstance(node, ast.Assign) else [node.target])]


def _find(module: str, name: str) -> tuple[str, Definition]:
    """The definition of a name and the module that it stands in: this one, or the one that it is imported from."""
    tree = _parse(module)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign | ast.AnnAssign) and name in _targets(node):
            return module, node
    for found in ast.walk(tree):
        if isinstance(found, ast.ImportFrom) and name in {alias.name for alias in found.names}:
            return _find(str(found.module), name)
    raise LookupError(f"{module} does not define {name}")


def _options(module: str, record: str) -> Iterator[str]:
    """The fields of a record and of the records in it, as options of ``build``."""
    module, node = _find(module, record)
    assert isinstance(node, ast.ClassDef)
    for line in node.body:
        if isinstance(line, ast.AnnAssign):
            kind = ast.unparse(line.annotation)
            if kind.endswith(("Choice", "Options", "Limits")):
                yield from _options(module, kind)
            else:
                yield f"- `{ast.unparse(line)}`"


def _entry(name: str, node: Definition) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef):
        yield f"### `{_signature(node)}`\n"
        yield f"{_first(node)}\n"
    elif isinstance(node, ast.ClassDef):
        yield from _class(node)
    elif isinstance(node, ast.AnnAssign):
        yield f"### `{name}: {ast.unparse(node.annotation)}`\n"
    else:
        yield f"### `{name}`" + ("\n" if name.startswith("__") else f" = `{ast.unparse(node.value)}`\n")


def _class(node: ast.ClassDef) -> Iterator[str]:
    methods = {line.name: line for line in node.body if isinstance(line, ast.FunctionDef)}
    start = methods.get("__init__")
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    yield f"### class `{_signature(start, node.name) if start else node.name}`" + (f" ({bases})\n" if bases else "\n")
    yield f"{_first(node)}\n"
    lines = [f"- `{ast.unparse(line)}`" for line in node.body if isinstance(line, ast.AnnAssign)]
    for name, method in methods.items():
        if name == "__call__" or not name.startswith("_"):
            lines.append(f"- {_method(method)}: {_first(method)}".removesuffix(": "))
    yield from [*lines, ""] if lines else []


def _method(method: ast.FunctionDef) -> str:
    marks = {ast.unparse(mark) for mark in method.decorator_list}
    if "property" in marks:
        return f"`{method.name}: {ast.unparse(method.returns) if method.returns else 'Any'}`"
    return f"`{_signature(method)}`"


def _signature(function: ast.FunctionDef, name: str | None = None) -> str:
    """As in the source, without ``self``; given a ``name``, under that and without what it returns."""
    a = function.args
    positional = [*a.posonlyargs, *a.args]
    words = _arguments(positional, [None] * (len(positional) - len(a.defaults)) + list(a.defaults))
    words = words[1:] if positional and positional[0].arg in ("self", "cls") else words
    if a.vararg:
        words += [f"*{ast.unparse(a.vararg)}"]
    elif a.kwonlyargs:
        words += ["*"]
    words += _arguments(a.kwonlyargs, a.kw_defaults)
    words += [f"**{ast.unparse(a.kwarg)}"] if a.kwarg else []
    returns = f" -> {ast.unparse(function.returns)}" if function.returns and name is None else ""
    return f"{name or function.name}({', '.join(words)}){returns}"


def _arguments(arguments: Sequence[ast.arg], defaults: Sequence[ast.expr | None]) -> list[str]:
    pairs = zip(arguments, defaults, strict=True)
    return [ast.unparse(one) + (f" = {ast.unparse(default)}" if default else "") for one, default in pairs]


def _first(node: ast.Module | ast.FunctionDef | ast.ClassDef) -> str:
    """The first paragraph of the docstring as Markdown."""
    text = (ast.get_docstring(node) or "").split("\n\n")[0]
    return re.sub(r":\w+:`~?(?:edgeres[\w.]*\.)?(\w+)`", r"`\1`", " ".join(text.split())).replace("``", "`")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
