"""[tool.edgeres] in a user's pyproject.toml: what it sets, what comes first, and how its mistakes are told."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from edgeres.cli.config import gates_from, read_config
from edgeres.cli.options import gate_choice, gate_options
from edgeres.errors import UsageError


def write(folder: Path, text: str) -> Path:
    path = folder / "pyproject.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_no_file_and_no_table_set_nothing(tmp_path: Path) -> None:
    assert read_config(tmp_path) == {}
    write(tmp_path, "[tool.other]\nmax-drop = 3\n")
    assert read_config(tmp_path) == {}


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
    assert read_config(inner) == {}  # no repository: what lies above is of others
    (tmp_path / ".git").mkdir()
    found = read_config(inner)  # from a directory upwards
    assert found["baseline"] == tmp_path / "ci" / "baseline.json"  # relative to the file, not to where one stands
    assert (found["validation"], found["validation_size"], found["any_machine"]) == (str(tmp_path / "val"), 200, True)
    gates = gates_from(found)
    limits = gates.limits
    assert (limits.max_drop, limits.max_class_drop, limits.min_agreement) == (0.5, None, 99)
    assert (gates.on_unsure, gates.allow) == ("fail", ("weights", "engines"))
    assert limits.max_regression == 0.5  # what is not set keeps its default


def test_other_words_for_images_are_no_path(tmp_path: Path) -> None:
    write(tmp_path, '[tool.edgeres]\nvalidation = "signs:200@3"\n')
    assert read_config(tmp_path) == {"validation": "signs:200@3"}


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
