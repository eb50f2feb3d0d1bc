"""Class names from text files, as people and their tools write them."""

from __future__ import annotations

import pytest

from edgeres.data.text import read_class_names, repeated_names
from edgeres.errors import InputError

THREE = ("stop", "keep left", "caf\u00e9")


@pytest.mark.parametrize(
    "content",
    [
        "stop\nkeep left\ncaf\u00e9\n".encode(),
        "\ufeffstop\r\nkeep left\r\ncaf\u00e9\r\n\r\n\r\n".encode(),
        "stop\rkeep left\rcaf\u00e9".encode(),
        "stop \n\tkeep left\ncaf\u00e9\n  \n".encode(),
        "stop\r\nkeep left\r\ncaf\u00e9\r\n".encode("utf-16"),
    ],
)
def test_line_ends_marks_and_trailing_lines_change_nothing(tmp_path, content):
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    found = read_class_names(path)
    assert found.names == THREE and not found.notes


@pytest.mark.parametrize("text", ["0 stop\n1 keep left\n2 yield", "2: yield\n1: keep left\n3: zebra", "1,a\n0,b\n2,c"])
def test_numbered_lines_are_put_in_the_order_of_their_numbers(tmp_path, text):
    path = tmp_path / "labels.txt"
    path.write_text(text)
    found = read_class_names(path)
    pairs = sorted((int(line[0]), line[2:].strip()) for line in text.splitlines())
    assert found.names == tuple(name for _, name in pairs)
    assert f"numbered from {pairs[0][0]}" in found.notes[0]


def test_numbers_that_are_part_of_names_stay(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("20 km/h\n30 km/h\n1 way\n")
    assert read_class_names(path).names == ("20 km/h", "30 km/h", "1 way")


def test_empty_lines_between_names_are_told(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("stop\n\nyield\n")
    found = read_class_names(path)
    assert found.names == ("stop", "yield") and found.notes == ("labels.txt: 1 empty lines are left out (2)",)


def test_names_that_several_outputs_have_are_told():
    assert not repeated_names(("a", "b"))
    (note,) = repeated_names(("crane", "b", "crane"))
    assert "'crane' (outputs 0, 2)" in note


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "Git LFS pointer, not the file it points to; run git lfs pull",
        ),
        (b"", "it is empty"),
        (b"\n\n", "it is empty"),
        (b"PK\x03\x04\0\0", "it is no text"),
        (b"caf\xe9\n", "can't decode"),
        (b'{"0": "stop"}', "it is JSON"),
    ],
)
def test_a_file_that_is_no_such_text_is_refused(tmp_path, content, words):
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_class_names(path)
    assert words in str(caught.value) and str(path) in str(caught.value)
