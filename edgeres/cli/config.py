"""What a team writes down once: the table ``[tool.edgeres]`` of its pyproject.toml.

    [tool.edgeres]
    validation = "data/val"
    max-drop = 0.5
    min-speedup = 2
    baseline = "baseline.json"

Options on the command line come first. Paths are relative to the file. ``false`` switches a default limit off.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from itertools import repeat
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgeres.cli.show import echo
from edgeres.documents import OPTIONAL, DocumentKind, named, require
from edgeres.errors import UsageError, reading
from edgeres.files import read_file
from edgeres.judge.asked import ConfigFile, GateChoice, OnUnsure, Weaker
from edgeres.judge.gates import LIMITS, METRICS, Limits
from edgeres.task import brought_gates

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = "pyproject.toml"
_MOST_BYTES, _MOST_DOTS = 1 << 20, 500
# Keys are the names of the options.
_TYPES: dict[str, Any] = {
    **dict.fromkeys((*LIMITS, *brought_gates()), float | bool),
    "on_unsure": OnUnsure,
    "allow": tuple[str, ...],
    "baseline": str,
    "any_machine": bool,
    "corruptions": bool,
    "validation": str,
    "validation_labels": str,
    "validation_size": int,
    "thumbnails": bool,
}


def _no_limit_is_true(table: Any) -> None:
    for name in (*LIMITS, *brought_gates()):
        require(getattr(table, name) is not True, f"{_key(name)} must be a number, or false for no limit")


def _key(name: str) -> str:
    return name.replace("_", "-")


_ROWS = [(name, kind, field(default=None, metadata={**OPTIONAL, **named(_key(name))})) for name, kind in _TYPES.items()]
_TABLE: DocumentKind[Any] = DocumentKind(
    make_dataclass("ToolTable", _ROWS, frozen=True, namespace={"__post_init__": _no_limit_is_true}),
    "a table",
    "correct it",
    root="[tool.edgeres]",
    error=UsageError,
)


@dataclass(frozen=True)
class Config:
    """What a pyproject.toml sets.

    Attributes:
        file: its path; None: there is none with the table.
        values: by the options' names in Python; a limit that is switched off is None.
    """

    file: Path | None = None
    values: Mapping[str, Any] = field(default_factory=dict)


def read_config(start: Path | None = None) -> Config:
    """The nearest ``[tool.edgeres]``, from a directory up to the root of its Git repository; empty where there is none.

    Outside of a repository only the directory itself is looked at: a file of others further up decides nothing.

    Raises:
        UsageError: a key or a value is not what it can be; one line names it.
    """
    folder = (start or Path.cwd()).absolute()
    above = (folder, *folder.parents)
    root = next((index for index, place in enumerate(above) if (place / ".git").exists()), 0)
    for candidate in above[: root + 1]:
        path = candidate / FILE
        table = _table(path) if path.exists() and not path.is_dir() else None
        if table is not None:
            given = vars(_TABLE.decode({_key(key): value for key, value in table.items()}, path))
            return Config(path, {name: _value(name, value, path) for name, value in given.items() if value is not None})
    return Config()


def gates_from(config: Config, given: Mapping[str, Any] = MappingProxyType({})) -> GateChoice:
    """How to judge, of the options that were given, else of the file, else of the defaults.

    Args:
        given: by the options' names in Python.
    """
    values = {**config.values, **given}
    limits = Limits.of(**{name: values[name] for name in LIMITS if name in values})
    own = {f.name: values[f.name] for f in fields(GateChoice) if f.name in values}
    own["task_limits"] = {name: values[name] for name in brought_gates() if name in values}
    kept = {name: value for name, value in config.values.items() if name not in given}
    used = ConfigFile(config.file, tuple(_weaker(kept))) if config.file else None
    return GateChoice(**{**own, "limits": limits, "allow": tuple(own.get("allow", ())), "config": used})


def _weaker(values: Mapping[str, Any]) -> Iterator[Weaker]:
    for metric in {metric.option: metric for metric in METRICS.values()}.values():
        default = Limits().limit(metric.option)
        if default is None or metric.option not in values:
            continue
        value = values[metric.option]
        if value is None or not metric.meets(value, default):
            yield Weaker(_key(metric.option), value, default)
    for name, one in brought_gates().items():
        if one.default is not None and name in values:
            value = values[name]
            if value is None or not one.metric.meets(value, one.default):
                yield Weaker(_key(name), value, one.default)
    for check in values.get("allow", ()):
        yield Weaker("allow", check)


def tell_config(gates: GateChoice) -> None:
    """Say on stderr which file decides what is judged."""
    if gates.config is not None:
        keys = ", ".join(dict.fromkeys(one.key for one in gates.config.weaker))
        weaker = f"; weaker than the default: {keys}" if keys else ""
        echo(f"reads [tool.edgeres] in {gates.config.file}{weaker}", err=True)


def _table(path: Path) -> dict[str, Any] | None:
    with reading(path, error=UsageError, hint="correct it"):
        content = read_file(path, _MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ValueError(f"it is larger than {_MOST_BYTES:,} bytes")
        if max(map(bytes.count, content.split(b"\n"), repeat(b"."))) > _MOST_DOTS:  # tomllib takes their square
            raise ValueError(f"a line has more than {_MOST_DOTS} dots")
        tool = tomllib.loads(content.decode()).get("tool")
    table = tool.get("edgeres") if isinstance(tool, dict) else None
    if table is not None and not isinstance(table, dict):
        raise UsageError("tool.edgeres is not a table", where=path, hint="write [tool.edgeres] and keys under it")
    return table


def has_table(path: Path) -> bool:
    """Whether a pyproject.toml has a ``[tool.edgeres]``.

    Raises:
        UsageError: it cannot be read.
    """
    return _table(path) is not None


def holds_table(text: str) -> bool:
    """Whether a text is TOML with a ``[tool.edgeres]`` that would be read."""
    try:
        tool = tomllib.loads(text).get("tool")
    except ValueError:
        return False
    return isinstance(tool, dict) and isinstance(tool.get("edgeres"), dict)


def _value(name: str, value: Any, path: Path) -> Any:
    if (name in LIMITS or name in brought_gates()) and value is False:
        return None
    if name not in ("baseline", "validation", "validation_labels"):
        return value
    named_file = path.parent / os.path.expanduser(value)  # noqa: PTH111  Path.expanduser raises for unknown users
    if name != "validation":
        return named_file if name == "baseline" else str(named_file)
    # Other words for images, as signs:200, are no path.
    return str(named_file) if os.path.exists(named_file) else value  # noqa: PTH110  Path.exists raises
