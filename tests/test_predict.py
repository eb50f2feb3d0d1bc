"""``edgeres predict`` on folders: found images, wrong answers, unreadable images, and the contact sheet."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import CLASSES, SIDE, write_bundle
from click.testing import CliRunner
from PIL import Image

from edgeres.cli import cli
from edgeres.errors import EdgeresError
from edgeres.records import IMAGE_ORDERS
from edgeres.report import sheet
from edgeres.runtime import Classifier


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle, and 18 images in three folders, with two more files that cannot be read or are no images."""
    monkeypatch.chdir(tmp_path)
    write_bundle(tmp_path / "b.edgeres")
    rng = np.random.default_rng(0)
    for i in range(18):
        save(tmp_path / "photos" / CLASSES[i % 3] / f"{i:02d}.png", rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
    (tmp_path / "photos" / CLASSES[0] / "cut.png").write_bytes(b"nonsense")
    (tmp_path / "photos" / CLASSES[1] / "notes.txt").write_text("no image")
    save(tmp_path / "photos" / ".hidden" / "x.png", np.zeros((SIDE, SIDE, 3), np.uint8))
    return tmp_path


def save(path: Path, pixels: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli, ["predict", "b.edgeres", *map(str, arguments)])


def answered(done: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return [row for row in rows if "top" in row]


def test_every_image_below_a_folder_is_answered_as_if_it_were_named(work: Path) -> None:
    done = run("photos", "--json")
    assert done.exit_code == 0
    rows = answered(done)
    assert [row["image"] for row in rows] == sorted(
        str(path.relative_to(work)) for path in work.glob("photos/[a-z]*/[0-9]*.png")
    )
    with Classifier(work / "b.edgeres") as classify:
        for row in rows:
            one = classify(row["image"])
            assert row["top"][0]["label"] == one.label
            assert row["top"][0]["score"] == pytest.approx(one.score, rel=1e-5)


def test_an_unreadable_image_is_named_counted_and_left_out(work: Path) -> None:
    done = run("photos")
    assert done.exit_code == 0
    assert done.stderr.splitlines() == [
        f"note: photos: left out: 1 hidden (.hidden), 1 not images ({CLASSES[1]}/notes.txt)",
        f"1 image cannot be read and is left out: photos/{CLASSES[0]}/cut.png (not an image)",
    ]
    assert json.loads(run("photos", "--json").stdout)[-1] == {
        "image": f"photos/{CLASSES[0]}/cut.png",
        "error": "not an image",
    }


def test_one_that_was_named_stops_the_run(work: Path) -> None:
    done = run("photos", f"photos/{CLASSES[0]}/cut.png")
    assert isinstance(done.exception, EdgeresError)
    assert done.stdout == ""


def test_nothing_readable_is_an_error(work: Path) -> None:
    (work / "bad").mkdir()
    (work / "bad" / "1.jpg").write_bytes(b"")
    done = run("bad")
    assert isinstance(done.exception, EdgeresError)
    assert "none of 1 images can be read: bad/1.jpg (empty, 0 bytes)" in str(done.exception)


def test_folders_of_labels_mark_what_is_wrong(work: Path) -> None:
    rows = answered(run("photos", "--json"))
    assert {row["label"] for row in rows} == set(CLASSES[:3])
    assert all(row["label"] == Path(row["image"]).parent.name for row in rows)
    wrong = [row for row in rows if row["label"] != row["top"][0]["label"]]
    assert 0 < len(wrong) < len(rows)
    done = run("photos").stdout
    assert f"18 images, 18 in folders of labels: {100 * (1 - len(wrong) / 18):.2f} % right, {len(wrong)} wrong" in done
    marked = {line.split()[-1] for line in done.splitlines() if "(is " in line}
    assert marked == {row["image"] for row in wrong}


def test_folders_that_are_no_labels_call_nothing_right_or_wrong(work: Path) -> None:
    (work / "photos" / CLASSES[0]).rename(work / "photos" / "holiday")
    rows = answered(run("photos", "--json"))
    assert {row["label"] for row in rows} == {None}
    assert "no answer can be called right or wrong" in run("photos").stdout


def test_folders_in_folders_and_circles_end(work: Path) -> None:
    (work / "photos" / "all").mkdir()
    (work / "photos" / "all" / "again").symlink_to(work / "photos")
    assert len(answered(run("photos", "--json"))) == 18
    assert len(answered(run(".", "--json"))) == 18


@pytest.mark.parametrize("sort", IMAGE_ORDERS)
def test_the_order_is_the_one_asked_for(work: Path, sort: str) -> None:
    rows = answered(run("photos", "--sort", sort, "--json"))
    scores = [row["top"][0]["score"] for row in rows]
    keys: dict[str, Any] = {
        "path": [row["image"] for row in rows],
        "sure": [-score for score in scores],
        "unsure": scores,
        "class": [(CLASSES.index(row["top"][0]["label"]), row["top"][0]["score"]) for row in rows],
    }
    assert keys[sort] == sorted(keys[sort])


def orders(page: str, name: str) -> list[int]:
    """Places of all figures of the page in one of its orders."""
    return [int(place) for place in re.findall(rf"<figure style=\"[^\"]*--{name}:(\d+)", page)]


def test_the_sheet_holds_every_image_in_every_order(work: Path) -> None:
    done = run("photos", "--sheet", "sheet.html")
    page = (work / "sheet.html").read_text(encoding="utf-8")
    assert done.stdout.endswith("sheet: sheet.html\n")
    pictures = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    assert len(pictures) == 18
    assert all(Image.open(io.BytesIO(base64.b64decode(text))).size == (SIDE, SIDE) for text in pictures)
    assert orders(page, "unsure-first") == list(range(18))  # the order of the page itself
    assert orders(page, "sure") == list(range(18))[::-1]
    shown = re.findall(r"title=\"([^\"]+)\"", page)
    by_path = sorted(range(18), key=lambda i: shown[i])
    assert [orders(page, "path")[i] for i in by_path] == list(range(18))
    assert "<script" not in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    wrong = sum(row["label"] != row["top"][0]["label"] for row in answered(run("photos", "--json")))
    assert page.count('class="wrong"') == wrong
    assert f"only the {wrong} wrong" in page
    assert "cut.png (not an image)" in page


def test_names_on_the_sheet_never_become_markup(work: Path) -> None:
    (work / "photos" / CLASSES[0] / "00.png").rename(work / "photos" / CLASSES[0] / '"><b>.png')
    run("photos", "--sheet", "sheet.html")
    page = (work / "sheet.html").read_text(encoding="utf-8")
    assert "<b>" not in page
    assert "&quot;&gt;&lt;b&gt;.png" in page


def test_a_large_folder_shows_the_first_of_the_order_and_says_so(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "SHOWN", 5)
    run("photos", "--sheet", "sheet.html", "--sort", "sure")
    page = (work / "sheet.html").read_text(encoding="utf-8")
    assert "5 of 18 are shown, surest first." in page
    shown = re.findall(r"title=\"([^\"]+)\"", page)
    assert shown == [row["image"] for row in answered(run("photos", "--sort", "sure", "--json"))][:5]


def test_the_sheet_as_a_picture(work: Path) -> None:
    run("photos", "--sheet", "sheet.png")
    with Image.open(work / "sheet.png") as picture:
        assert (picture.format, picture.width) == ("PNG", 8 * 140 + 12)  # 18 images in rows of eight
        assert picture.height == 3 * 188 + 12


def test_another_kind_of_sheet_is_refused_before_anything_runs(work: Path) -> None:
    done = run("photos", "--sheet", "sheet.pdf")
    assert isinstance(done.exception, EdgeresError)
    assert done.exception.exit_code == 2
    assert "give a name that ends in .html or .png" in str(done.exception)
