"""[tool.edgeres] in a user's pyproject.toml: what it sets, what comes first, and how its mistakes are told."""

from __future__ import annotations

import io
import os
from pathlib import Path

import click
import pytest
from bundles import spec
from click.testing import CliRunner
from judged import judged
from rich.console import Console

from edgeres.cli.config import Config, gates_from, read_config
from edgeres.cli.options import gate_choice, gate_options
from edgeres.errors import UsageError
from edgeres.judge.asked import Weaker
from edgeres.judge.document import to_json
from edgeres.report.html import render_html
from edgeres.report.junit import render_junit
from edgeres.report.markdown import render_markdown
from edgeres.report.terminal import render_terminal
from edgeres.reports import read_report


def write(folder: Path, text: str) -> Path:
    path = folder / "pyproject.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_no_file_and_no_table_set_nothing(tmp_path: Path) -> None:
    assert read_config(tmp_path) == Config()
    write(tmp_path, "[tool.other]\nmax-drop = 3\n")
    assert read_config(tmp_path) == Config()


def test_every_key_is_read(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    write(
        tmp_path,
        """
        [tool.edgeres]
        max-drop = 0.5
        max-class-drop = false
        min_agreement = 99
        on-unsure = "fail"
        allow = ["weights", "engines"]
        baseline = "ci/baseline.json"
        any-machine = true
        validation = "val"
        validation-size = 200
        """,
    )
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    assert read_config(inner) == Config()  # no repository: what lies above is of others
    (tmp_path / ".git").mkdir()
    found = read_config(inner).values  # from a directory upwards
    assert found["baseline"] == tmp_path / "ci" / "baseline.json"  # relative to the file, not to where one stands
    assert (found["validation"], found["validation_size"], found["any_machine"]) == (str(tmp_path / "val"), 200, True)
    gates = gates_from(read_config(inner))
    limits = gates.limits
    assert (limits.max_drop, limits.max_class_drop, limits.min_agreement) == (0.5, None, 99)
    assert (gates.on_unsure, gates.allow) == ("fail", ("weights", "engines"))
    assert limits.max_regression == 0.5  # what is not set keeps its default


def test_other_words_for_images_are_no_path(tmp_path: Path) -> None:
    write(tmp_path, '[tool.edgeres]\nvalidation = "signs:200@3"\n')
    assert read_config(tmp_path).values == {"validation": "signs:200@3"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("max-dorp = 1", "[tool.edgeres].max-dorp: is not a known key, did you mean max-drop?"),
        ("frobnicate = 1", "[tool.edgeres].frobnicate: is not a known key; there are max-drop, "),
        ('max-drop = "1"', "[tool.edgeres].max-drop: expected bool | float, got str; correct it"),
        ("max-drop = true", "max-drop must be a number, or false for no limit; correct it"),
        ("any-machine = 1", "[tool.edgeres].any-machine: expected bool, got int; correct it"),
        ("baseline = 3", "[tool.edgeres].baseline: expected str, got int; correct it"),
        ("validation-size = 2.5", "[tool.edgeres].validation-size: expected int, got float; correct it"),
        ("max-drop = nan", "[tool.edgeres].max-drop: expected a finite number; correct it"),
        ('on-unsure = "maybe"', "[tool.edgeres].on-unsure: expected one of warn, fail; correct it"),
        ("allow = [1]", "[tool.edgeres].allow[0]: expected str, got int; correct it"),
        (f"allow = {'[' * 5000}", "cannot be read ("),
        ("max-drop = = 1", "cannot be read ("),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path: Path, line: str, words: str) -> None:
    path = write(tmp_path, f"[tool.edgeres]\n{line}\n")
    with pytest.raises(UsageError) as error:
        read_config(tmp_path)
    assert str(error.value).startswith(f"{path}: ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_value_instead_of_the_table_is_told(tmp_path: Path) -> None:
    write(tmp_path, "[tool]\nedgeres = 3\n")
    with pytest.raises(UsageError, match=r"tool\.edgeres is not a table"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("words", "drop", "slowdown", "on_unsure"),
    [
        ([], 0.5, 15.0, "fail"),
        (["--max-drop", "2", "--on-unsure", "warn"], 2.0, 15.0, "warn"),
        (["--max-drop", "off", "--max-slowdown", "30"], None, 30.0, "fail"),
    ],
)
def test_options_come_before_the_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    drop: float | None,
    slowdown: float,
    on_unsure: str,
) -> None:
    write(tmp_path, '[tool.edgeres]\nmax-drop = 0.5\non-unsure = "fail"\n')
    monkeypatch.chdir(tmp_path)

    @click.command()
    @gate_options
    def command(**given: object) -> None:
        gates = gate_choice(given)["gates"]
        assert (gates.limits.max_drop, gates.limits.max_slowdown, gates.on_unsure) == (drop, slowdown, on_unsure)
        assert given == {}

    command.main(words, standalone_mode=False)


def test_a_limit_on_the_command_line_is_a_number_or_off() -> None:
    @click.command()
    @gate_options
    def command(**given: object) -> None:
        raise AssertionError(given)

    for wrong in ("one", "nan", "inf", ""):
        with pytest.raises(click.BadParameter, match="is neither a number nor off"):
            command.main(["--max-drop", wrong], standalone_mode=False)


WEAK = """
[tool.edgeres]
max-drop = false
max-class-drop = 20
max-regression = 0.1
min-speedup = 2
allow = ["weights"]
"""


def test_keys_that_weaken_the_defaults_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, WEAK)
    monkeypatch.chdir(tmp_path)
    config = gates_from(read_config()).config
    assert config is not None
    assert config.file == path
    assert config.weaker == (
        Weaker("max-drop", None, 1.0),
        Weaker("max-class-drop", 20.0, 10.0),
        Weaker("allow", "weights"),
    )
    # What the command line says is not the file's.
    said = gates_from(read_config(), {"max_drop": 0.5, "allow": ("engines",)}).config
    assert said is not None
    assert [one.key for one in said.weaker] == ["max-class-drop"]


def test_the_report_names_the_file_and_what_it_weakens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, WEAK)
    (tmp_path / ".git").mkdir()
    (tmp_path / "job").mkdir()
    monkeypatch.chdir(tmp_path / "job")
    report = judged(model=spec(), config=gates_from(read_config()).config)
    assert report["config"]["file"] == os.path.join("..", "pyproject.toml")  # noqa: PTH118  not normalized
    assert report["config"]["weaker"][0] == {"key": "max-drop", "value": None, "default": 1.0}
    (tmp_path / "report.json").write_text(to_json(report), encoding="utf-8")
    assert read_report(tmp_path / "report.json") == report
    terminal = Console(file=io.StringIO(), width=200)
    render_terminal(report, terminal)
    words = "weakens what is judged: max-drop off (default 1), max-class-drop 20 (default 10), allow weights"
    for text in (terminal.file.getvalue(), render_html(report), render_junit(report)):  # type: ignore[attr-defined]
        assert f"pyproject.toml {words}" in text
    assert words in render_markdown(report).replace("\\", "")


def test_the_file_is_named_on_stderr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "[tool.edgeres]\nmax-drop = 0.5\n")
    monkeypatch.chdir(tmp_path)

    @click.command()
    @gate_options
    def command(**given: object) -> None:
        gate_choice(given)

    done = CliRunner().invoke(command, [])
    assert done.output == f"reads [tool.edgeres] in {path}\n"
    write(tmp_path, WEAK)
    done = CliRunner().invoke(command, ["--max-drop", "1"])
    assert done.output == f"reads [tool.edgeres] in {path}; weaker than the default: max-class-drop, allow\n"
