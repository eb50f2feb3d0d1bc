"""Words of others cannot control a terminal, a log or a page, and do not hide the exit code."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from bundles import spec, write_bundle
from hypothesis import given
from hypothesis import strategies as st
from judged import judged
from PIL import Image

from edgeres.cli.progress import Bars, Lines
from edgeres.cli.show import echo, new_console, print_json, print_table
from edgeres.errors import EdgeresError
from edgeres.judge.document import to_json
from edgeres.report.html import render_html
from edgeres.report.terminal import render_terminal
from edgeres.words import escaped

OSC, CSI, BIDI, C1 = "\x1b]0;PWNED\x07", "\x1b[2J", "\u202egpj.exe", "\x9b2J"
HOSTILE = f"x{OSC}{CSI}{BIDI}{C1}"
LIVE = ("\x1b]", "\x1b[2J", "\x07", "\u202e", "\x9b")


def edgeres(*words: str, **given: object) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "edgeres", *words]
    return subprocess.run(argv, capture_output=not given, text=True, check=False, **given)  # type: ignore[call-overload]


@given(st.text())
def test_what_is_escaped_is_harmless_and_tells_what_was_there(text: str) -> None:
    shown = escaped(text)
    assert not [c for c in shown if ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or "\u202a" <= c <= "\u202e" or c == "\u2028"]
    if "\\" not in text:
        assert shown.encode("latin-1", "backslashreplace").decode("unicode_escape") == text or text.isprintable()


def test_words_of_any_language_stay_as_they_are() -> None:
    for text in ("Zürich – 3 µs", "停止", "می‌خواهم", "👩‍🚀 ⚠️"):
        assert escaped(text) == text


@given(st.dictionaries(st.text(), st.text()))
def test_escaped_json_says_the_same(content: dict[str, str]) -> None:
    text = to_json(content)
    assert json.loads(text) == content
    assert not any(mark in text for mark in LIVE)


def test_errors_and_progress_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    line = str(EdgeresError(HOSTILE, where=HOSTILE, hint=HOSTILE))
    assert not any(mark in line for mark in LIVE)
    Lines().say(HOSTILE)
    console = new_console(file=io.StringIO(), force_terminal=True, width=200)
    Bars(console).say(HOSTILE)
    console.print(HOSTILE)
    for text in (capsys.readouterr().err, console.file.getvalue()):  # type: ignore[attr-defined]
        assert "PWNED" in text
        assert not any(mark in text for mark in LIVE)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with hostile labels, and an image with a hostile name."""
    folder = tmp_path_factory.mktemp("hostile")
    model = replace(spec(), labels=tuple(f"{label}{HOSTILE}" for label in spec().labels), name=f"net{OSC}")
    write_bundle(folder / "x.edgeres", model)
    Image.new("RGB", (8, 8), (200, 30, 30)).save(folder / "a.png")
    (folder / "a.png").rename(folder / f"a{OSC}{BIDI}.png")
    return folder


def test_labels_and_names_of_files_reach_no_terminal(hostile: Path) -> None:
    image = str(hostile / f"a{OSC}{BIDI}.png")
    for words in (
        ("predict", str(hostile / "x.edgeres"), image),
        ("predict", str(hostile / "x.edgeres"), str(hostile)),
        ("predict", str(hostile / "x.edgeres"), f"{image}{CSI}"),
        ("inspect", str(hostile / f"q{OSC}")),
        ("build", "--model", f"x{OSC}{BIDI}"),
        ("verify", f"x{CSI}", "--no-such", f"y{OSC}"),
    ):
        done = edgeres(*words)
        assert not any(mark in done.stdout + done.stderr for mark in LIVE), words
        assert "Traceback" not in done.stderr


def test_error_lines_are_short() -> None:
    done = edgeres("inspect", "x" * 4000)
    assert done.returncode == 3
    assert len(done.stderr.rstrip("\n")) <= 500
    assert done.stderr.startswith("edgeres: xxx")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_stderr_keeps_the_exit_code() -> None:
    with open(os.devnull, "w") as out, open("/dev/full", "w") as full:  # noqa: PTH123  devices
        assert edgeres("inspect", "/nope", stdout=out, stderr=full).returncode == 3
        assert edgeres("inspect", "--nope", stdout=out, stderr=full).returncode == 2


def test_pages_hold_no_control_characters() -> None:
    report = judged(model=replace(spec(), name=HOSTILE, weights=HOSTILE, labels=(HOSTILE, *spec().labels[1:])))
    page = render_html({**report, "command": HOSTILE})
    assert "PWNED" in page
    assert not [c for c in page if c not in "\n\t" and not c.isprintable() and c != "\xa0"]


def test_json_on_stdout_holds_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a\x7f": "\x7f\x9b\u202e"})
    text = capsys.readouterr().out
    assert text.isascii()
    assert not any(mark in text for mark in (*LIVE, "\x7f"))
    assert json.loads(text) == {"a\x7f": "\x7f\x9b\u202e"}


def test_a_line_end_in_a_name_begins_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    name = "cat\nedgeres: PASSED\r\x85\u2028x"
    echo(f"bundle: {name}", "second line")
    print_table(("label", "reason"), [(name, name)])
    render_terminal(judged(model=replace(spec(), name=name, weights=name)), new_console())
    said = capsys.readouterr().out
    assert "PASSED" in said
    assert not [line for line in said.splitlines() if line.startswith("edgeres: PASSED")]
    assert len(said.splitlines()) == said.count("\n")
