"""What may be shown and written: text without control characters, URLs without secrets, paths without home folders."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

# Control characters, C1 among them; what changes the direction of text; line separators, invisible tags, surrogates.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff]"
)
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)([^\s/?#'\"<>]*@)?([^\s?#'\"<>]*)(\?[^\s#'\"<>]*)?(#[^\s'\"<>]*)?")
_DIGEST = re.compile(r"#sha256=[0-9a-fA-F]{1,64}[:;,.)]*")


def escaped(text: str, *, keep: str = "", form: Literal["words", "json"] = "words") -> str:
    r"""Text for a terminal, a log or a page: what could control it is written as ``\x1b`` or ``\u202e``.

    Args:
        keep: control characters that stay, as the line ends of a text with several lines.
        form: ``json`` writes them as JSON's strings do, ``\u202e`` and surrogate pairs.

    >>> escaped("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    if text.isascii() and text.isprintable():
        return text
    write = _escape if form == "words" else _escape_json
    return _UNSAFE.sub(lambda found: found[0] if found[0] in keep else write(found[0]), text)


def _escape_json(character: str) -> str:
    if "\ud800" <= character <= "\udfff":  # bytes of a file's name that are not UTF-8; no JSON text holds them
        return character
    return json.dumps(character)[1:-1] if character != "\x7f" else "\\u007f"


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``did you mean X?`` for a word that is none of these, with up to three; "" where none is similar.

    >>> did_you_mean("restnet18", ("resnet18", "vgg16"))
    'did you mean resnet18?'
    """
    near = get_close_matches(word.lower(), list(known), 3, 0.6)
    return f"did you mean {' or '.join(near)}?" if near else ""


def without_secrets(text: str) -> str:
    """Text whose URLs have no user, password and query; signed URLs and tokens are there.

    >>> without_secrets("https://me:pw@host/a.th?sig=abc: not found")
    'https://host/a.th?... not found'
    """
    if "://" not in text:
        return text
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://\S*\Z", text):
        return shown_url(text)
    return _URL.sub(_without_secrets, text)


def shown_url(text: str) -> str:
    """The same for a text that is one URL, whatever characters its query holds; other text is returned as it is."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        head, hash_, fragment = text.partition("#")
        head, mark, _ = head.partition("?")
        text = head + ("?..." if mark else "") + hash_ + fragment
    return _URL.sub(_without_secrets, text)


def _without_secrets(found: re.Match[str]) -> str:
    scheme, _, place, query, fragment = found.groups(default="")
    return scheme + place + ("?..." if query else "") + (fragment if _DIGEST.fullmatch(fragment) else "")


def without(text: str, url: str) -> str:
    """A message on a URL without the URL's user, password and query, in whatever part of it they are."""
    try:
        parts = urlsplit(url)
        user = parts.netloc.rpartition("@")[0]
        secrets = [user, *user.split(":", 1), parts.query, *re.split("[&;=]", parts.query)]
    except ValueError:
        return "its parts cannot be told"
    for secret in sorted(filter(lambda part: len(part) > 2, secrets), key=len, reverse=True):
        text = text.replace(secret, "...")
    return without_secrets(text)


def shown_path(path: str | Path) -> str:
    """A path for a report: relative to the working directory where it is inside, else the name alone."""
    path = Path(path)
    if not path.is_absolute():
        return str(path)
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return path.name or str(path)


def relative_path(path: Path) -> str:
    """A path for a report as the working directory leads to it: ``../pyproject.toml``."""
    try:
        return os.path.relpath(path)
    except (ValueError, OSError):  # another drive, a removed working directory
        return path.name


def shown_argument(word: str) -> str:
    """A word of a command line for a report."""
    option = "".join(re.findall(r"\A(?:--?[\w-]+=|-\w(?=/))", word))
    path = word.removeprefix(option)
    return option + (shown_path(path) if os.path.isabs(path) else shown_url(path))  # noqa: PTH117  any text


def public(value: Any) -> Any:
    """A document that people publish: its text without secrets, the working directory and the home folder."""
    places = []
    for find, instead in ((Path.cwd, ""), (Path.home, "~/")):
        try:
            if str(place := find()) != place.anchor:
                places.append((f"{place}{os.sep}", instead))
        except (OSError, RuntimeError):
            continue
    return _public(value, places)


def _public(value: Any, places: list[tuple[str, str]]) -> Any:
    if isinstance(value, str):
        for place, instead in places:
            value = value.replace(place, instead)
        return without_secrets(value)
    if isinstance(value, Mapping):
        return {_public(key, places): _public(inner, places) for key, inner in value.items()}
    return [_public(inner, places) for inner in value] if isinstance(value, list | tuple) else value
