"""Mutations of documents: what a bad disk, a bad editor or a bad peer makes of a file. Seeded, so that they repeat.

for mutated in mutations(content, count=1000, seed=0): ...      # of any file, bytes to bytes
for mutated in wrong_json(content, count=1000, seed=0): ...     # of the values and keys in a JSON document
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

DEEP = 5_000

# Text in place of a value: other types, and what JSON's grammar lets through or nearly so.
VALUES = (
    *(
        "null",
        "true",
        "false",
        "0",
        "-1",
        "1",
        "1.5",
        "-0.25",
        '""',
        '"x"',
        "[]",
        "{}",
        "[[]]",
        '[null, "x"]',
        '{"a": 1}',
    ),
    *(
        "NaN",
        "Infinity",
        "-Infinity",
        "1e400",
        "-1e400",
        "1e308",
        "1" + 5000 * "0",
        str(2**63),
        str(-(2**63)),
        "1e-320",
    ),
    *('"../../etc/passwd"', '"/etc/passwd"', '"a\\u0000b"', '"\\ud800"', '"\\u001b[31m"', '"' + 5000 * "a" + '"'),
    *("01", "+1", ".5", "'x'", "undefined", "[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP),
)


class Token(str):
    """JSON text that is written as it is."""


class Pairs(list[tuple[str, Any]]):
    """An object whose keys may stand twice."""


def mutations(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """The bytes of a file with bits flipped, parts lost, doubled, swapped or overwritten."""
    rng = random.Random(seed)
    yield from (b"", content[:1], content[:-1], content + content, b"\xff\xfe" + content, b"[" * DEEP, b'{"a":' * DEEP)
    for _ in range(count - 7):
        yield rng.choice(_OF_BYTES)(bytearray(content), rng)


def _flip(data: bytearray, rng: random.Random) -> bytes:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _truncate(data: bytearray, rng: random.Random) -> bytes:
    return bytes(data[: rng.randrange(len(data))])


def _overwrite(data: bytearray, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    data[start : start + rng.randrange(1, 9)] = rng.randbytes(rng.randrange(9))
    return bytes(data)


def _swap(data: bytearray, rng: random.Random) -> bytes:
    a, b, c, d = sorted(rng.randrange(len(data) + 1) for _ in range(4))
    return bytes(data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:])


def _repeat(data: bytearray, rng: random.Random) -> bytes:
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return bytes(data[:end] + data[start:end] + data[end:])


_OF_BYTES: tuple[Callable[[bytearray, random.Random], bytes], ...] = (
    *(_flip,) * 6,
    _truncate,
    _overwrite,
    _swap,
    _repeat,
)


def wrong_json(content: bytes, count: int, seed: int, seal: Callable[[str], str] = str) -> Iterator[bytes]:
    """A JSON document with one thing wrong in it, seldom two.

    Args:
        seal: applied to the text, to write a digest that fits.
    """
    rng = random.Random(seed)
    good = json.loads(content, object_pairs_hook=Pairs)
    for _ in range(count):
        document = copy.deepcopy(good)
        for _ in range(1 if rng.random() < 0.9 else 2):
            places = list(_places(document))
            if places:
                rng.choice(_OF_JSON)(*rng.choice(places), rng)
        yield seal(_written(document)).encode("utf-8", "surrogatepass")


def _places(node: Any) -> Iterator[tuple[Any, int]]:
    """Every value as the container that holds it and its position there."""
    if isinstance(node, list):
        for index, entry in enumerate(node):
            yield node, index
            yield from _places(entry[1] if isinstance(node, Pairs) else entry)


def _put(holder: Any, index: int, value: Any) -> None:
    holder[index] = (holder[index][0], value) if isinstance(holder, Pairs) else value


def _value(holder: Any, index: int) -> Any:
    return holder[index][1] if isinstance(holder, Pairs) else holder[index]


def _replace(holder: Any, index: int, rng: random.Random) -> None:
    _put(holder, index, Token(rng.choice(VALUES)))


def _remove(holder: Any, index: int, rng: random.Random) -> None:
    del holder[index]


def _double(holder: Any, index: int, rng: random.Random) -> None:
    holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(holder[index]))


def _add(holder: Any, index: int, rng: random.Random) -> None:
    value = Token(rng.choice(VALUES))
    holder.insert(
        index, (rng.choice(("invented", "", "schema", "mean", "\u00e9")), value) if isinstance(holder, Pairs) else value
    )


def _rename(holder: Any, index: int, rng: random.Random) -> None:
    if isinstance(holder, Pairs):
        key, value = holder[index]
        at = rng.randrange(len(key) + 1)
        holder[index] = (key[:at] + rng.choice("aeio_0 ") + key[at + rng.randrange(2) :], value)


def _exchange(holder: Any, index: int, rng: random.Random) -> None:
    """Two values change places, as sections of a file that were swapped."""
    other = rng.randrange(len(holder))
    ours, theirs = _value(holder, index), _value(holder, other)
    _put(holder, index, theirs)
    _put(holder, other, ours)


def _negate(holder: Any, index: int, rng: random.Random) -> None:
    value = _value(holder, index)
    if isinstance(value, int | float) and not isinstance(value, bool):
        _put(holder, index, rng.choice((-value - 1, value * 1000, value + 0.5, float(value))))


def _quote(holder: Any, index: int, rng: random.Random) -> None:
    """A number or a truth value as text."""
    value = _value(holder, index)
    if isinstance(value, bool | int | float):
        _put(holder, index, json.dumps(value))


def _edit_text(holder: Any, index: int, rng: random.Random) -> None:
    value = _value(holder, index)
    if isinstance(value, str) and not isinstance(value, Token):
        at = rng.randrange(len(value) + 1)
        _put(holder, index, value[:at] + rng.choice(("a", "0", "/../", "\0", "\n", "Z")) + value[at + 1 :])


_OF_JSON = (*(_replace,) * 4, _remove, _double, _add, _rename, _exchange, _negate, _quote, _edit_text)


def _written(node: Any) -> str:
    if isinstance(node, Token):
        return str(node)
    if isinstance(node, Pairs):
        return "{" + ", ".join(f"{json.dumps(key)}: {_written(value)}" for key, value in node) + "}"
    if isinstance(node, list):
        return "[" + ", ".join(map(_written, node)) + "]"
    return json.dumps(node)
