"""What a team writes down once: the table ``[tool.edgeres]`` of its pyproject.toml.

    [tool.edgeres]
    validation = "data/val"
    max-drop = 0.5
    min-speedup = 2
    baseline = "baseline.json"

Options on the command line come first. Paths are relative to the file. ``false`` switches a default limit off.
"""

from __future__ import annotations

import difflib
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from edgeres.errors import UsageError
from edgeres.judge.asked import GateChoice
from edgeres.judge.gates import LIMITS, Limits

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = "pyproject.toml"
# Keys are the names of the options; (type, what it is for people).
_KEYS: dict[str, tuple[tuple[type, ...], str]] = {
    **dict.fromkeys(LIMITS, ((int, float), "a number, or false for no limit")),
    "on_unsure": ((str,), "warn or fail"),
    "allow": ((list,), "a list of checks"),
    "baseline": ((str,), "a path"),
    "any_machine": ((bool,), "true or false"),
    "validation": ((str,), "a source of images"),
    "validation_size": ((int,), "a number of images"),
    "thumbnails": ((bool,), "true or false"),
}


def read_config(start: Path | None = None) -> dict[str, Any]:
    """The nearest ``[tool.edgeres]``, from a directory upwards; empty where there is none.

    Returns:
        Values by the options' names in Python; a limit that is switched off is None.

    Raises:
        UsageError: a key or a value is not what it can be; one line names it.
    """
    folder = (start or Path.cwd()).absolute()
    for candidate in (folder, *folder.parents):
        path = candidate / FILE
        table = _table(path) if path.is_file() else None
        if table is not None:
            return {_name(key, path): _value(key, value, path) for key, value in table.items()}
    return {}


def gates_from(values: dict[str, Any]) -> GateChoice:
    """How to judge, of the values; what they do not have is at its default."""
    limits = Limits(**{name: values[name] for name in LIMITS if name in values})
    own = {f.name: values[f.name] for f in fields(GateChoice) if f.name in values}
    return GateChoice(**{**own, "limits": limits, "allow": tuple(own.get("allow", ()))})


def _table(path: Path) -> dict[str, Any] | None:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot be read ({error})", where=path, hint="correct it") from error
    table = document.get("tool", {}).get("edgeres")
    if table is not None and not isinstance(table, dict):
        raise UsageError("tool.edgeres is not a table", where=path, hint="write [tool.edgeres] and keys under it")
    return table


def _name(key: str, path: Path) -> str:
    name = key.replace("-", "_")
    if name in _KEYS:
        return name
    words = [known.replace("_", "-") for known in _KEYS]
    near = difflib.get_close_matches(key.replace("_", "-"), words, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(words)}"
    raise UsageError(f"[tool.edgeres] has no key {key!r}", where=path, hint=hint)


def _value(key: str, value: Any, path: Path) -> Any:
    name = _name(key, path)
    kinds, words = _KEYS[name]
    if name in LIMITS and value is False:
        return None
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise UsageError(f"[tool.edgeres] {key} = {value!r} is not {words}", where=path, hint="correct it")
    if name == "baseline":
        return path.parent / Path(str(value)).expanduser()
    if name == "validation":
        named = path.parent / Path(str(value)).expanduser()
        return str(named) if named.exists() else value  # other words, as signs:200, are no path
    return value
