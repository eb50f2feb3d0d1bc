"""README's picture of the terminal: drawn from a record, which is what stood on a terminal."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def session() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_session", DOCS / "make_session.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_session"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def text_of(screen: object) -> list[str]:
    return ["".join(character for character, _ in row) for row in screen.rows]  # type: ignore[attr-defined]


def test_the_picture_is_drawn_from_the_record(session: ModuleType) -> None:
    record = (DOCS / "session.json").read_text(encoding="utf-8")
    assert session.draw(record) == (DOCS / "session.svg").read_text(encoding="utf-8"), (
        "run: python docs/make_session.py"
    )


def test_the_record_is_of_a_run_that_passed() -> None:
    found = json.loads((DOCS / "session.json").read_text(encoding="utf-8"))
    lines = ["".join(text for _, text, _ in row["parts"]) for row in found["rows"]]
    assert found["exit_code"] == 0 and "PASSED" in lines
    makefile = (DOCS.parent / "Makefile").read_text(encoding="utf-8")
    assert f"$(BIN)/{found['command']}\n" in makefile, "make demo runs what was recorded"
    assert found["processor_seconds"] > 0 and [row["since"] for row in found["rows"]] == sorted(
        row["since"] for row in found["rows"]
    )


def test_every_line_of_the_record_is_in_the_picture(session: ModuleType) -> None:
    found = json.loads((DOCS / "session.json").read_text(encoding="utf-8"))
    root = ElementTree.parse(DOCS / "session.svg").getroot()
    shown = {span.text for span in root.iter("{http://www.w3.org/2000/svg}tspan")}
    assert {text for row in found["rows"] for _, text, _ in row["parts"]} <= shown
    assert "http" not in (DOCS / "session.svg").read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize(
    ("written", "rows"),
    [
        ("a\r\nb", ["a", "b"]),
        ("loading 1\rloading 2", ["loading 2"]),
        ("loading\r\x1b[2Kdone", ["done"]),
        ("one\r\ntwo\r\x1b[1A\x1b[2KONE", ["ONE", "two"]),
        ("abcdef\x1b[3D", None),
        ("\x1b[1mbold\x1b[0m plain", ["bold plain"]),
        ("x" * 85, ["x" * 80, "x" * 5]),
        ("x" * 80 + "\r\ny", ["x" * 80, "y"]),
        ("\x1b[38;5;237mbar\x1b[0m", ["bar"]),
    ],
)
def test_the_screen_is_a_terminal_s(session: ModuleType, written: str, rows: list[str] | None) -> None:
    screen = session.Screen()
    if rows is None:
        with pytest.raises(ValueError, match="the terminal does not know"):
            screen.feed(written, 1.0)
        return
    screen.feed(written, 1.0)
    assert text_of(screen) == rows


def test_a_row_is_as_old_as_its_last_change(session: ModuleType) -> None:
    screen = session.Screen()
    for at, text in enumerate(("one\r\n", "two", "\r\x1b[2K", "three\r\n", "\r\x1b[2A\x1b[2Kone")):
        screen.feed(text, float(at))
    assert text_of(screen)[:2] == ["one", "three"] and screen.since[1] == 3.0 and screen.since[0] == 4.0


@pytest.mark.skipif(sys.platform != "linux", reason="needs a pseudo-terminal of Linux")
def test_a_command_is_recorded_as_it_stood_there(session: ModuleType, tmp_path: Path) -> None:
    code = "print('caf\\u00e9 <&>'); print('\\x1b[32mok\\x1b[0m'); raise SystemExit(3)"
    assert session.record([sys.executable, "-c", code], tmp_path / "r.json") == 3
    found = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    parts = [row["parts"] for row in found["rows"]]
    assert parts == [[[0, "caf\u00e9 <&>", ""]], [[0, "ok", "fill:#69d58c"]]] and found["exit_code"] == 3
    picture = session.draw((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert "caf\u00e9 &lt;&amp;&gt;" in picture and ElementTree.fromstring(picture) is not None
