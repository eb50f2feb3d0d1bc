"""JSON from disk and from other machines: decoded into frozen records, or refused in one line that names the place.

    bytes -> size, depth, UTF-8 -> JSON, each key once, finite numbers -> format, digest -> keys -> types -> bounds

Types are the annotations of the records' fields, checked by msgspec. Bounds are what a record's ``__post_init__``
refuses with a ValueError. A default in Python is no default on disk: every key must be there, and no other one, except
where a field's metadata is :data:`OPTIONAL`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from itertools import accumulate, repeat
from pathlib import Path
from types import UnionType
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from edgeres.errors import EdgeresError, InputError, reading
from edgeres.files import LFS_POINTER, PULL, is_lfs_pointer, read_file

Json = dict[str, Any]
Keys = tuple[str | int, ...]
R = TypeVar("R")

MAX_DEPTH = 64
MAX_BYTES = 64 << 20
_LARGEST = 2**63
_SHOWN = 200  # characters of a message; a document may put anything into it

# Metadata of a record's field. Left out on disk where the value is the default:
OPTIONAL: Mapping[str, Any] = {"optional": True}
# The field is a record whose keys lie beside those of this one:
GROUPED: Mapping[str, Any] = {"grouped": True}

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def require(met: bool, bound: str) -> None:
    """Refuse a record whose values are out of bounds.

    Raises:
        ValueError: with the bound in words.
    """
    if not met:
        raise ValueError(bound)


def is_sha256(text: str) -> bool:
    """Whether it is a SHA-256 in hex as hashlib writes it."""
    return re.fullmatch("[0-9a-f]{64}", text) is not None


def named(key: str) -> Mapping[str, Any]:
    """Metadata of a field that has another name on disk."""
    return {"key": key}


@dataclass(frozen=True)
class DocumentKind(Generic[R]):
    """A kind of document, and how it is read and written.

    Attributes:
        record: the frozen dataclass that it becomes.
        name: with its article, for messages: ``a calibration.json``.
        hint: the next step where it is damaged or too old.
        schemas: the oldest and the newest format that is read; None: it has no ``schema``.
        kind: what it states under ``kind``; None: it has no such key.
        digest: whether ``digest`` holds that of the rest; optional: it is written, and older files lack it.
        root: what paths begin with in messages.
        error: what is raised.
        upgrade: brings the content of an older format into the newest, given its ``schema``, or 0 where it has none; it
            raises ValueError where that is not possible.
    """

    record: type[R]
    name: str
    hint: str
    schemas: tuple[int, int] | None = None
    kind: str | None = None
    digest: Literal["none", "optional", "required"] = "none"
    root: str = "$"
    max_bytes: int = MAX_BYTES
    error: type[EdgeresError] = InputError
    upgrade: Callable[[Json, int], Json] | None = None

    def read(self, path: str | Path) -> R:
        """Read a file; see :meth:`decode`."""
        with reading(path, error=self.error, hint="check the path"):
            content = read_file(path, self.max_bytes + 1)
        return self.decode(content, path)

    def decode(self, content: bytes | Json, where: object) -> R:
        """The record of a document, or of JSON that was parsed elsewhere.

        Args:
            where: it comes from, for messages.

        Raises:
            EdgeresError: of class ``error``: it is not a valid document of this kind.
        """
        try:
            raw = _parsed(content, self.name, self.max_bytes) if isinstance(content, bytes) else content
            _check_values(raw, ())
            found: R = _converted(_arranged(self._body(raw), self.record, ()), self.record, ())
            return found
        except _Fault as fault:
            place = f"{self.root}{''.join(map(_step, fault.path))}: " if fault.path else ""
            raise self.error(place + fault.what, where=where, hint=fault.hint or self.hint) from None

    def content(self, record: R) -> Json:
        """The document of a record, in plain JSON types."""
        head = {"schema": self.schemas and self.schemas[1], "kind": self.kind}
        body = {**{key: value for key, value in head.items() if value is not None}, **plain(record)}
        return body if self.digest == "none" else {**body, "digest": digest(body)}

    def _body(self, raw: object) -> Json:
        """The document without ``schema``, ``kind`` and ``digest``, which are checked."""
        if not isinstance(raw, dict) or (self.kind is not None and raw.get("kind") != self.kind):
            raise _Fault((), f"is not {self.name}")
        if self.schemas is not None:
            schema, (oldest, newest) = raw.get("schema"), self.schemas
            if type(schema) is not int:
                raise _Fault((), f"is not {self.name}: it states no schema")
            keys = raw.keys() - {"schema", "kind", "digest"}
            record: Any = self.record
            if schema > newest and 2 * len(keys & set(_keys(record))) < len(keys):  # another kind of document
                raise _Fault((), f"is not {self.name}")
            if not oldest <= schema <= newest:
                what = f"written in format {schema}, this edgeres reads {newest}"
                raise _Fault((), what, "upgrade edgeres" if schema > newest else "")
        rest = {key: value for key, value in raw.items() if key != "digest"}
        if self.digest == "required" or (self.digest == "optional" and "digest" in raw):
            if raw.get("digest") != digest(rest):
                raise _Fault((), "was changed after it was written: its digest differs")
            raw = rest
        head = {"schema": self.schemas, "kind": self.kind}
        body = {key: value for key, value in raw.items() if head.get(key) is None}
        older = self.schemas is None or raw["schema"] < self.schemas[1]
        try:
            return self.upgrade(body, raw["schema"] if self.schemas else 0) if self.upgrade and older else body
        except ValueError as error:
            raise _Fault((), str(error)) from None


def json_of(content: bytes, where: object, name: str, hint: str, max_bytes: int = MAX_BYTES) -> object:
    """The JSON of another program's file, checked as a document is, but without a record.

    Args:
        where, hint: for messages.
        name: what it is, with its article, for messages.

    Raises:
        InputError: it is no JSON, or larger or deeper than what is read.
    """
    try:
        raw = _parsed(content, name, max_bytes)
        _check_values(raw, ())
    except _Fault as fault:
        place = f"${''.join(map(_step, fault.path))}: " if fault.path else ""
        raise InputError(place + fault.what, where=where, hint=fault.hint or hint) from None
    return raw


class _Fault(Exception):
    """What is wrong with a document, and where: keys and indices from the root; none for the whole document."""

    def __init__(self, path: Keys, what: str, hint: str = "") -> None:
        super().__init__(path, what)
        printable = "".join(character if character.isprintable() else "?" for character in what)
        self.path, self.hint = path, hint
        self.what = printable if len(printable) <= _SHOWN else f"{printable[:_SHOWN]}..."


def _parsed(content: bytes, name: str, max_bytes: int) -> object:
    if is_lfs_pointer(content):
        raise _Fault((), f"is {LFS_POINTER}", PULL)
    if len(content) > max_bytes:
        raise _Fault((), f"is larger than {max_bytes:,} bytes")
    brackets = _STRING.sub(b"", content).translate(None, _NO_BRACKETS)
    if max(accumulate(1 if bracket in b"[{" else -1 for bracket in brackets), default=0) > MAX_DEPTH:
        raise _Fault((), f"is nested more than {MAX_DEPTH} levels deep")
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_object, parse_int=_integer)
    except ValueError as error:
        raise _Fault((), f"is not {name}: {error}") from None


@dataclass(frozen=True)
class _Repeated:
    """In place of an object that has this key twice."""

    key: str


def _object(pairs: list[tuple[str, Any]]) -> Json | _Repeated:
    found = dict(pairs)
    if len(found) < len(pairs):
        left = iter(found)
        return _Repeated(next(key for key, _ in pairs if key != next(left, None)))
    return found


def _integer(digits: str) -> int:
    return int(digits) if len(digits) < len(str(_LARGEST)) + 2 else _LARGEST


def _check_values(raw: object, path: Keys) -> None:
    """Refuse what JSON's grammar lets through: repeated keys, NaN, numbers and text that nothing can hold."""
    if len(path) >= MAX_DEPTH:
        raise _Fault((), f"is nested more than {MAX_DEPTH} levels deep")
    if isinstance(raw, str):
        _check_text(raw, path)
    elif isinstance(raw, dict):
        for key, value in raw.items():
            _check_text(key, path)
            if not (type(value) is str and value.isascii()):
                _check_values(value, (*path, key))
    elif isinstance(raw, list):
        for index, value in enumerate(raw):
            if not (type(value) is str and value.isascii()):
                _check_values(value, (*path, index))
    elif isinstance(raw, _Repeated):
        raise _Fault((*path, raw.key), "is there twice")
    elif isinstance(raw, float) and not math.isfinite(raw):
        raise _Fault(path, "expected a finite number")
    elif isinstance(raw, int) and abs(raw) >= _LARGEST:
        raise _Fault(path, "the number is too large")


def _check_text(text: str, path: Keys) -> None:
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError:
        raise _Fault(path, "the text is not Unicode") from None


def _step(key: str | int) -> str:
    """One step of a path in words: ``.mean``, ``[0]``, or ``["layer1.0"]`` where the key is not a plain word."""
    if isinstance(key, str) and re.fullmatch(r"[A-Za-z_][\w-]{0,60}", key, re.ASCII):
        return f".{key}"
    return f"[{json.dumps(key if isinstance(key, int) or len(key) <= 60 else key[:60] + '...')}]"


def _arranged(raw: object, kind: Any, path: Keys) -> object:
    """The same with every record's values under its fields' names; unknown and missing keys are refused."""
    kind = _container(raw, kind) if isinstance(raw, dict | list) and _holds_record(kind) else None
    if kind is None:
        return raw
    if isinstance(raw, dict) and is_dataclass(kind):
        raw = _by_field(raw, kind, path)
    parts = {name: _arranged(value, inner, (*path, *step)) for name, step, value, inner in _parts(raw, kind)}
    return parts if isinstance(raw, dict) else list(parts.values())


def _by_field(raw: Json, record: Any, path: Keys) -> Json:
    left, found = dict(raw), {}
    for name, key, grouped, is_optional in _layout(record):
        if grouped is not None:
            found[name] = {key: left.pop(key) for key in grouped if key in left}
        elif key in left:
            found[name] = left.pop(key)
        elif not is_optional:
            raise _Fault((*path, key), "is missing")
    for key in left:
        from difflib import get_close_matches

        near = get_close_matches(key[:_SHOWN], _keys(record), n=1)
        known = f", did you mean {near[0]}?" if near else f"; there are {', '.join(_keys(record))}"
        raise _Fault((*path, key), f"is not a known key{known}")
    return found


def _parts(raw: Any, kind: Any) -> Iterator[tuple[Any, Keys, object, Any]]:
    """What a value of a container's type holds: name, steps of the path to it, value and type of each."""
    arguments, record = get_args(kind), kind
    if is_dataclass(kind):
        steps: dict[str, Keys] = {name: (key,) if grouped is None else () for name, key, grouped, _ in _layout(record)}
        hints = _hints(record)
        yield from ((name, steps[name], value, hints[name]) for name, value in raw.items())
    elif isinstance(raw, dict):
        yield from ((key, (key,), value, arguments[1]) for key, value in raw.items())
    else:
        kinds = arguments if len(arguments) == len(raw) and ... not in arguments else repeat(arguments[0])
        yield from ((i, (i,), value, inner) for i, (value, inner) in enumerate(zip(raw, kinds, strict=False)))


def _container(raw: object, kind: Any) -> Any:
    """The type, or the one of a union's, by which a dict or a list is divided; None for all other values."""
    for arm in _arms(kind):
        origin = get_origin(arm)
        if isinstance(raw, dict) and (is_dataclass(arm) or origin in (dict, Mapping)):
            return arm
        if isinstance(raw, list) and origin in (tuple, list):
            return arm
    return None


def _arms(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _converted(raw: object, kind: Any, path: Keys) -> Any:
    import msgspec  # here, so that programs which read no document do not pay for it

    try:
        return msgspec.convert(raw, kind, strict=True)
    except msgspec.ValidationError as error:
        container = _container(raw, kind)
        for _, step, value, inner in _parts(raw, container) if container is not None else ():
            _converted(value, inner, (*path, *step))  # raises where this part is what is wrong
        what = str(error).partition(" - at `$")[0].replace("`", "")
        if what.startswith("Invalid enum"):
            words = [str(word) for arm in _arms(kind) if get_origin(arm) is Literal for word in get_args(arm)]
            what = f"expected one of {', '.join(words)}"
        raise _Fault(path, what[:1].lower() + what[1:]) from None


@cache
def _hints(record: Any) -> dict[str, Any]:
    return get_type_hints(record, include_extras=True)


@cache
def _holds_record(kind: Any) -> bool:
    """Whether a value of this type may hold a record; all else is as msgspec takes it."""
    return is_dataclass(kind) or any(map(_holds_record, get_args(kind)))


@cache
def _layout(record: Any) -> tuple[tuple[str, str, tuple[str, ...] | None, bool], ...]:
    """Of each field: its name, its key on disk, the keys of a record that is grouped there, whether it is optional."""
    hints = _hints(record)
    return tuple(
        (f.name, _key(f), _keys(hints[f.name]) if "grouped" in f.metadata else None, "optional" in f.metadata)
        for f in fields(record)
    )


@cache
def _keys(record: Any) -> tuple[str, ...]:
    """All keys that a record has on disk."""
    own = ((f.name, _keys(_hints(record)[f.name]) if "grouped" in f.metadata else (_key(f),)) for f in fields(record))
    return tuple(key for _, keys in own for key in keys)


def _key(field: Field[Any]) -> str:
    return str(field.metadata.get("key", field.name))


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def plain(value: Any) -> Any:
    """A record, or what holds records, in plain JSON types."""
    if is_dataclass(value):
        found: Json = {}
        for field in fields(value):
            own = getattr(value, field.name)
            if "grouped" in field.metadata:
                found |= plain(own)
            elif "optional" not in field.metadata or own != _default(field):
                found[_key(field)] = plain(own)
        return found
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, tuple | list) else value


def digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of a document in canonical form: sorted keys, no spaces."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
