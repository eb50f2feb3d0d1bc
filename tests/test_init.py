"""``edgeres init``: settings and folders for a new project."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgeres.cli.config import read_config
from edgeres.cli.init import SECTION, command
from edgeres.errors import UsageError
from edgeres.judge.gates import Limits


def test_what_is_written_changes_nothing_and_every_line_of_it_can_be_used(tmp_path: Path) -> None:
    done = CliRunner().invoke(command, [str(tmp_path / "robot")])
    assert done.exit_code == 0, done.output
    assert "edgeres build --model resnet18" in done.output
    assert all(len(line) <= 80 or str(tmp_path) in line for line in done.output.splitlines())
    assert {path.name for path in (tmp_path / "robot" / "data").iterdir()} == {"train", "val", "README.txt"}
    assert read_config(tmp_path / "robot").values == {}
    uncommented = re.sub(r"^# (?=[a-z0-9-]+ = )", "", SECTION, flags=re.M)
    (tmp_path / "pyproject.toml").write_text(uncommented)
    values = read_config(tmp_path).values
    assert len(values) == SECTION.count(" = ")
    for name in ("max_drop", "max_class_drop", "max_regression", "max_sqnr_loss", "max_slowdown"):
        assert values[name] == Limits().limit(name), "the values written are the defaults"


@pytest.mark.parametrize("end", ["", "\n"])
def test_an_existing_file_is_kept_and_a_second_run_refused(tmp_path: Path, end: str) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text(f'[project]\nname = "robot"{end}')
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "README.txt").write_text("mine")
    assert CliRunner().invoke(command, [str(tmp_path)]).exit_code == 0
    assert path.read_text() == f'[project]\nname = "robot"\n\n{SECTION}'
    assert (tmp_path / "data" / "README.txt").read_text() == "mine"
    with pytest.raises(UsageError, match=r"has a .tool\.edgeres.; edit it"):
        CliRunner().invoke(command, [str(tmp_path)], catch_exceptions=False)


def test_json_lists_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "data" / "val").mkdir(parents=True)
    written = json.loads(CliRunner().invoke(command, [str(tmp_path), "--json"]).output)["written"]
    names = ("pyproject.toml", "data/train", "data/README.txt")
    assert written == [str(tmp_path / name) for name in names]


def test_a_file_that_is_not_toml_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project\n")
    with pytest.raises(UsageError, match=r"pyproject.toml: .*; correct it"):
        CliRunner().invoke(command, [str(tmp_path)], catch_exceptions=False)
    assert [path.name for path in tmp_path.iterdir()] == ["pyproject.toml"]


@pytest.mark.parametrize("text", ["tool = {other = {}}\n", "tool = 1\n", "[[tool]]\nx = 1\n"])
def test_a_file_that_takes_no_table_of_ours_is_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(UsageError, match=r"\[tool\.edgeres\] cannot stand behind what is there"):
        CliRunner().invoke(command, [str(tmp_path)], catch_exceptions=False)
    assert (tmp_path / "pyproject.toml").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["pyproject.toml"]
