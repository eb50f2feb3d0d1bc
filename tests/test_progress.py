"""Stages, tasks and notes as a terminal and a log show them."""

from __future__ import annotations

import io
import time

import pytest
from click.testing import CliRunner
from rich.console import Console

from edgeres.cli import COMMANDS, cli
from edgeres.cli import progress as shown
from edgeres.progress import Numbered, Silent


def test_a_log_has_one_line_a_stage_with_its_number(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Numbered(shown.Lines(), ("model", "calibrate", "time"))
    with progress.stage("model", "reading x"):
        progress.say("note: y")
    with progress.stage("time", "measuring"), progress.task("measuring", 10) as advance:
        advance(10)
    with progress.stage("other", "cleaning up"):
        pass
    assert capsys.readouterr().err.splitlines() == ["1/3 reading x", "note: y", "3/3 measuring", "cleaning up"]


def test_a_long_task_gives_a_sign_of_life(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with shown.Lines().task("calibrating", 512) as advance:
        for _ in range(4):
            now[0] += 40
            advance(8)
    assert capsys.readouterr().err.splitlines() == ["    calibrating: 16 of 512", "    calibrating: 32 of 512"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (200.0, "3 min 20 s"), (119.8, "2 min 0 s")],
)
def test_a_finished_stage_stays_with_its_seconds(monkeypatch: pytest.MonkeyPatch, seconds: float, words: str) -> None:
    now = [0.0]
    out = io.StringIO()
    bars = shown.Bars(Console(file=out, force_terminal=True, width=80))
    with monkeypatch.context() as patch:
        patch.setattr(shown.time, "perf_counter", lambda: now[0])
        with bars.stage("calibrate", "2/7 calibrating 512 images"):
            with bars.task("calibrating", 512) as advance:
                advance(512)
            bars.say("note: seen")
            now[0] += seconds
    text = out.getvalue()
    assert text.index("note: seen") < text.rindex(f"2/7 calibrating 512 images  {words}")


def test_a_stage_that_fails_is_not_shown_as_done() -> None:
    out = io.StringIO()
    bars = shown.Bars(Console(file=out, force_terminal=True, width=80))
    with pytest.raises(ValueError, match="broken"), bars.stage("model", "1/7 reading"):
        raise ValueError("broken")
    assert "reading  " not in out.getvalue()
    with bars.stage("model", "1/7 again"):  # the display can be used again
        pass
    assert "1/7 again  " in out.getvalue()


def test_a_silent_progress_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Silent().stage("a", "b"), Silent().task("c", 1) as advance:
        advance(1)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_80_columns(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = CliRunner().invoke(cli, [command, "--help"], terminal_width=80).output.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert any("edgeres " + command in line for line in lines[2:]), "an example"
    if command == "build":
        headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
        assert headings == ["Model:", "Input:", "Images:", "Quantization:", "Engines:", "Gates:", "Options:"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("build --model resnet18 --effort fsat", "did you mean fast?"),
        ("build --model resnet18 --method msee", "did you mean mse?"),
        ("build --model resnet18 --codes freee", "did you mean free?"),
        ("build --model resnet18 --also fp61", "did you mean fp16?"),
    ],
)
def test_a_misspelt_word_is_told_the_nearest(arguments: str, words: str) -> None:
    done = CliRunner().invoke(cli, arguments.split())
    assert done.exit_code == 2
    assert words in done.output
