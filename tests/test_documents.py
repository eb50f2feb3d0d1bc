"""Documents: decoded into records, or refused in one line that names file, place and next step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from edgeres.documents import GROUPED, OPTIONAL, DocumentKind, digest, named, plain
from edgeres.errors import InputError, WeightsError


@dataclass(frozen=True)
class Wheel:
    radius_m: float
    spokes: tuple[int, ...] = ()
    kind: Literal["steel", "rubber"] = "rubber"

    def __post_init__(self) -> None:
        if self.radius_m <= 0:
            raise ValueError("radius_m is not positive")


@dataclass(frozen=True)
class Size:
    height: int
    class_: str = field(metadata=named("class"))


@dataclass(frozen=True)
class Robot:
    wheels: Mapping[str, Wheel]
    corner: tuple[float, float]
    size: Size = field(metadata=GROUPED)
    spare: Wheel | None = None
    notes: tuple[str, ...] = field(default=(), metadata=OPTIONAL)
    free: Any = None


ROBOT = Robot({"left": Wheel(0.5, (1, 2)), "front right": Wheel(1)}, (0.0, 2.5), Size(3, "a"), free={"x": [1, None]})
KIND = DocumentKind(Robot, "a robot.json", "build it again", schemas=(2, 3), kind="robot")
DIGESTED = DocumentKind(Robot, "a robot.json", "build it again", schemas=(2, 2), digest="required", error=WeightsError)


def content(**changes: object) -> bytes:
    return json.dumps(KIND.content(ROBOT) | changes).encode()


def test_what_is_written_is_read() -> None:
    written = KIND.content(ROBOT)
    assert written == {
        "schema": 3,
        "kind": "robot",
        "wheels": {
            "left": {"radius_m": 0.5, "spokes": [1, 2], "kind": "rubber"},
            "front right": {"radius_m": 1, "spokes": [], "kind": "rubber"},
        },
        "corner": [0.0, 2.5],
        "height": 3,
        "class": "a",
        "spare": None,
        "free": {"x": [1, None]},
    }
    assert KIND.decode(json.dumps(written).encode(), "x") == ROBOT
    assert KIND.decode(json.dumps({**written, "schema": 2, "notes": ["new"]}).encode(), "x").notes == ("new",)
    assert plain((ROBOT,))[0].keys() == written.keys() - {"schema", "kind"}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (b"", "is not a robot.json: Expecting value: line 1 column 1 (char 0)"),
        (b"\xff", "is not a robot.json: 'utf-8' codec"),
        (b"[1]", "is not a robot.json"),
        (b'{"schema": 3, "kind": "robot", "kind": "robot"}', "$.kind: is there twice"),
        (content(kind="boat"), "is not a robot.json"),
        (content(schema="3"), "is not a robot.json: it states no schema"),
        (content(schema=True), "is not a robot.json: it states no schema"),
        (content(schema=1), "written in format 1, this edgeres reads 3; build it again"),
        (content(schema=4), "written in format 4, this edgeres reads 3; upgrade edgeres"),
        (content(heigth=1), "$.heigth: is not a known key, did you mean height?; build it again"),
        (content(**{"\x1b[31m": 1}), '$["\\u001b[31m"]: is not a known key'),
        (content(corner=[1, 2, 3]), "$.corner: expected array of length 2, got 3"),
        (content(corner=[1, float("nan")]), "$.corner[1]: expected a finite number"),
        (content(corner=[1, -float("inf")]), "$.corner[1]: expected a finite number"),
        (content().replace(b"2.5", b"1e400"), "$.corner[1]: expected a finite number"),
        (content(height=10**400), "$.height: the number is too large"),
        (content().replace(b"2.5", b"9" * 5000), "$.corner[1]: the number is too large"),
        (content(height=True), "$.height: expected int, got bool"),
        (content(height=1.0), "$.height: expected int, got float"),
        (content(**{"class": None}), "$.class: expected str, got null"),
        (content(wheels={"a b": {"radius_m": "1", "spokes": [], "kind": "steel"}}), '$.wheels["a b"].radius_m: exp'),
        (content(wheels={"a": {"radius_m": 0, "spokes": [], "kind": "steel"}}), "$.wheels.a: radius_m is not positive"),
        (
            content(wheels={"a": {"radius_m": 1, "spokes": [], "kind": "wood"}}),
            "$.wheels.a.kind: expected one of steel, rubber; build",
        ),
        (content(wheels={"a": {"radius_m": 1, "kind": "steel"}}), "$.wheels.a.spokes: is missing"),
        (content(wheels={"a": {"radius_m": 1, "spokes": [1, None], "kind": "steel"}}), "$.wheels.a.spokes[1]: exp"),
        (content(spare=[1]), "$.spare: expected object | null, got array"),
        (content(free="\ud800"), "$.free: the text is not Unicode"),
        (content(free={"\ud800": 1}), "$.free: the text is not Unicode"),
        (b'{"x":' * 5000 + b"1" + b"}" * 5000, "is nested more than 64 levels deep"),
        (b"[" * 500_000, "is nested more than 64 levels deep"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(wrong: bytes, words: str) -> None:
    with pytest.raises(InputError) as error:
        KIND.decode(wrong, "here/robot.json")
    assert str(error.value).startswith(f"here/robot.json: {words}")
    assert len(str(error.value).splitlines()) == 1
    assert str(error.value).isprintable()


def test_brackets_in_text_are_no_levels() -> None:
    assert KIND.decode(content(free='[[{"\\"' * 200 + '"'), "x").free == '[[{"\\"' * 200 + '"'


def test_a_grouped_key_that_is_missing_is_named_where_it_is_on_disk() -> None:
    without = {key: value for key, value in KIND.content(ROBOT).items() if key != "class"}
    with pytest.raises(InputError, match=r"^x: \$\.class: is missing; build it again$"):
        KIND.decode(json.dumps(without).encode(), "x")


def test_a_digest_covers_the_rest_however_it_is_written() -> None:
    written = DIGESTED.content(ROBOT)
    assert written["digest"] == digest({key: value for key, value in written.items() if key != "digest"})
    assert DIGESTED.decode(json.dumps(written, indent=3, sort_keys=True).encode(), "x") == ROBOT
    for changed in ({**written, "height": 4}, {**written, "digest": None}, {**written, "corner": [0, 2.5]}):
        with pytest.raises(WeightsError, match="changed after it was written"):
            DIGESTED.decode(json.dumps(changed).encode(), "x")


def test_a_file_is_read_to_its_bound_and_no_further(tmp_path: Path) -> None:
    path = tmp_path / "robot.json"
    path.write_bytes(content())
    assert KIND.read(path) == ROBOT
    small = DocumentKind(Robot, "a robot.json", "build it again", max_bytes=100)
    with pytest.raises(InputError, match=r"robot\.json: is larger than 100 bytes; build it again"):
        small.read(path)
    with pytest.raises(InputError, match=r"absent: cannot be read \(No such file or directory\); check the path"):
        KIND.read(tmp_path / "absent")
