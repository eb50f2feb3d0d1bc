"""Folders as they lie on disk: which images are taken, which classes they get, and what is said of the others."""

from __future__ import annotations

import os
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from test_data import IMAGENET_NAMES, PETS, PNG, archive, check_pets, directory, generic

from edgeres.data.arrays import Arrays
from edgeres.data.choose import DataChoice, choose_calibration, choose_validation
from edgeres.data.listing import list_folder
from edgeres.data.matching import match_labels
from edgeres.data.sources import open_source
from edgeres.errors import SourceError
from edgeres.progress import Silent
from edgeres.records import ModelSpec, Preprocess


def tarred(root: Path, content: dict[str, bytes]) -> Path:
    folder, path = directory(root / "folder", content), root / "set.tar"
    with tarfile.open(path, "w") as packed:
        for entry in sorted(folder.iterdir()):
            packed.add(entry, entry.name)
    return path


every_form = pytest.mark.parametrize("make", [directory, archive, tarred])


def images(*names: str) -> dict[str, bytes]:
    return dict.fromkeys(names, PNG)


def many(pattern: str, count: int) -> dict[str, bytes]:
    return images(*(pattern.format(number) for number in range(count)))


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def spec(*labels: str) -> ModelSpec:
    return ModelSpec("net", Preprocess((8, 8)), labels)


def validated(path: Path, *labels: str) -> tuple[dict[str, str], str]:
    """The class of each image by its name, and what was said."""
    heard = Heard()
    source, _ = choose_validation(DataChoice(validation=str(path)), spec(*labels), heard)
    return {source.name(i): source.classes[source.labels[i]] for i in range(len(source))}, "\n".join(heard.lines)


def calibrated(path: Path, *labels: str) -> tuple[list[str], str]:
    heard = Heard()
    source = choose_calibration(DataChoice(calibration=str(path)), spec(*(labels or ("a", "b"))), heard)
    return sorted(map(source.name, range(len(source)))), "\n".join(heard.lines)


@every_form
def test_every_form_is_read_by_the_same_rules(tmp_path, make):
    clutter = {"cat/.DS_Store": b"", "dog/._1.png": b"", "cat/Thumbs.db": b"", "dog/notes.txt": b""}
    source = open_source(make(tmp_path, PETS | clutter), role="validation", px=8)
    check_pets(source)
    (note,) = source.notes
    assert "left out: 3 hidden (cat/.DS_Store, cat/Thumbs.db, dog/._1.png), 1 not images (dog/notes.txt)" in note


@every_form
def test_folders_inside_a_class_belong_to_it(tmp_path, make):
    path = make(tmp_path, images("cat/a.png", "cat/day1/b.png", "cat/day2/cam/c.png", "dog/day1/d.png"))
    found, said = validated(path, "dog", "cat")
    assert found == {"cat/a.png": "cat", "cat/day1/b.png": "cat", "cat/day2/cam/c.png": "cat", "dog/day1/d.png": "dog"}
    assert "3 images in folders inside a class (cat/day1/b.png, cat/day2/cam/c.png, dog/day1/d.png) are taken" in said


@every_form
def test_classes_below_sessions_are_found_by_the_names_that_the_network_knows(tmp_path, make):
    path = make(tmp_path, images("day1/cat/a.png", "day1/dog/b.png", "day2/cat/a.png"))
    assert validated(path, "dog", "cat")[0] == {
        "day1/cat/a.png": "cat",
        "day1/dog/b.png": "dog",
        "day2/cat/a.png": "cat",
    }


@every_form
def test_splits_inside_of_classes_are_told_apart(tmp_path, make):
    path = make(tmp_path, images("cat/train/1.png", "cat/val/2.png", "dog/train/3.png", "dog/val/4.png"))
    assert list(validated(path, "cat", "dog")[0]) == ["cat/val/2.png", "dog/val/4.png"]
    assert calibrated(path)[0] == ["cat/train/1.png", "dog/train/3.png"]


@every_form
def test_images_beside_a_stray_sub_folder_are_used(tmp_path, make):
    path = make(tmp_path, many("{:03}.png", 64) | images("plots/histogram.png"))
    names, said = calibrated(path)
    assert names == [f"{number:03}.png" for number in range(64)]
    assert "calibration: " in said and "left out: 1 in sub-folders (plots/histogram.png)" in said
    with pytest.raises(SourceError, match=r"holds 64 images .* only 1 in folders \(plots/histogram.png\)"):
        validated(path, "a", "b")


@every_form
def test_a_stray_sub_folder_with_folders_of_its_own_is_no_wrapper(tmp_path, make):
    path = make(tmp_path, many("{:03}.png", 9) | images("plots/2026/histogram.png"))
    assert len(calibrated(path)[0]) == 9


@every_form
def test_few_images_beside_class_folders_are_left_out(tmp_path, make):
    found, said = validated(make(tmp_path, PETS | images("preview.png")), "cat", "dog")
    assert "preview.png" not in found and "left out: 1 outside class folders (preview.png)" in said


@every_form
def test_folders_beside_the_splits_are_no_classes(tmp_path, make):
    content = images("train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "val/dog/4.png", "plots/loss.png")
    path = make(tmp_path, content)
    names, said = calibrated(path)
    assert names == ["train/cat/1.png", "train/dog/2.png"] and "1 outside that folder (plots/loss.png)" in said
    assert list(validated(path, "cat", "dog")[0]) == ["val/cat/3.png", "val/dog/4.png"]


def test_a_class_named_train_is_no_split(tmp_path):
    path = directory(tmp_path, images("train/1.png", "bus/1.png", "train/night/2.png"))
    assert set(validated(path, "bus", "train")[0].values()) == {"bus", "train"}


@every_form
def test_folders_without_images_do_not_stop_a_build(tmp_path, make):
    path = make(tmp_path, PETS | {"logs/x.txt": b""})
    found, said = validated(path, "cat", "dog")
    assert len(found) == 3 and "1 class folders without images (logs)" in said


def test_a_class_without_images_keeps_its_place_in_the_order(tmp_path):
    path = directory(tmp_path, images("ant/1.png", "cow/2.png") | {"bee/": b""})
    assert validated(path, *generic(3))[0] == {"ant/1.png": "ant", "cow/2.png": "cow"}
    source, _ = choose_validation(DataChoice(validation=str(path)), spec(*generic(3)))
    assert source.labels.tolist() == [0, 2] and source.classes == ("ant", "bee", "cow")


# --- names and numbers


def outputs(classes: list[str], *labels: str) -> tuple[list[int], tuple[str, ...], str]:
    """The output of each class, the names of the outputs, and the notes."""
    pixels = np.zeros((len(classes), 8, 8, 3), np.uint8)
    source = match_labels(Arrays(pixels, np.arange(len(classes)), tuple(classes), "set"), labels)
    return source.labels.tolist(), source.classes, " ".join(source.notes)


def test_numbered_folders_are_taken_by_their_number():
    found, _, said = outputs(sorted(map(str, range(12))), *generic(12))
    assert found == [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]
    assert "sorted as text (0, 1, 10, 11, 2 and 7 more)" in said
    padded, _, said = outputs([f"{number:02}" for number in range(16)], *generic(16))
    assert padded == list(range(16)) and not said


def test_folders_numbered_from_one_are_not_off_by_one():
    found, _, said = outputs(sorted(str(number) for number in range(1, 13)), *generic(12))
    assert found == [0, 9, 10, 11, 1, 2, 3, 4, 5, 6, 7, 8] and "so they count from one" in said
    assert outputs(["2", "3"], "stop", "yield", "go")[0] == [1, 2]  # 3 can be no index
    few, _, said = outputs(["1", "2"], *generic(5))
    assert few == [1, 2] and "without a 0: 1 is taken as output 1 of 0 to 4; if they count from one" in said


def test_a_selection_does_not_change_what_numbers_count_from(tmp_path):
    path = directory(tmp_path, images("1/a.png", "2/b.png", "3/c.png"))
    source = open_source(path, role="validation", px=8)
    assert match_labels(source.at(np.array([0, 1])), generic(3)).labels.tolist() == [0, 1]


def test_outputs_without_names_get_those_of_the_folders():
    found, names, said = outputs(["keep_left", "stop", "yield"], *generic(3))
    assert (found, names) == ([0, 1, 2], ("keep_left", "stop", "yield"))
    assert "have no names; they are taken for the classes in this order: keep_left, stop, yield" in said


@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_accents_match_however_they_are_encoded(written):
    names = [unicodedata.normalize(written, name) for name in ("caf\u00e9", "stra\u00dfe")]
    assert outputs(names, "STRASSE", "caf\u00e9")[0] == [1, 0]
    assert outputs(names, *generic(2))[1] == ("caf\u00e9", "stra\u00dfe")


def test_odd_names_of_folders_are_labels_of_one_line(tmp_path):
    for name in (b"a\nb", b"c\xff", b"d\x1b[31m"):
        folder = tmp_path / os.fsdecode(name)
        folder.mkdir()
        (folder / "1.png").write_bytes(PNG)
    source, _ = choose_validation(DataChoice(validation=str(tmp_path)), spec(*generic(3)))
    assert source.classes == ("a\\nb", "c\\udcff", "d\\x1b[31m")
    again, _ = choose_validation(DataChoice(validation=str(tmp_path)), spec(*source.classes))
    assert again.labels.tolist() == source.labels.tolist() == [0, 1, 2]


# --- links and odd files


def test_circles_of_links_end_and_are_told(tmp_path):
    (directory(tmp_path, PETS) / "cat" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "self").symlink_to("self")
    source = open_source(tmp_path, role="validation", px=8)
    check_pets(source)
    assert "1 links to folders that are read already (cat/up)" in source.description
    assert "1 links to themselves (self)" in source.description


def test_links_between_many_folders_take_no_exponential_time(tmp_path):
    for number in range(12):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "1.png").write_bytes(PNG)
        for other in range(12):
            (tmp_path / f"{number}" / f"to{other}").symlink_to(f"../{other}", target_is_directory=True)
    assert len(list_folder(tmp_path).images) <= 12 * 9


def test_special_files_are_not_opened(tmp_path):
    directory(tmp_path, PETS)
    os.mkfifo(tmp_path / "cat" / "c.png")
    source = open_source(tmp_path, role="validation", px=8)
    check_pets(source)
    assert "1 special files (cat/c.png)" in source.description


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_without_permission_is_refused(tmp_path):
    (directory(tmp_path, PETS) / "cat").chmod(0)
    with pytest.raises(SourceError, match="Permission denied; check its permissions"):
        open_source(tmp_path, role="validation", px=8)


# --- one line for each mistake


SIGNS = ("stop", "yield", "keep left")
MISTAKES: dict[str, tuple[dict[str, bytes], tuple[str, ...], list[str]]] = {
    "nothing": ({}, SIGNS, ["holds no images (it is empty)", "image files end in .jpg"]),
    "texts": ({"a.txt": b""}, SIGNS, ["holds no images (1 not images (a.txt))"]),
    "HEIC": (images("stop/1.HEIC", "stop/2.heic"), SIGNS, ["2 HEIC photos (stop/1.HEIC, stop/2.heic)", "heif-convert"]),
    "AVIF": (images("1.avif"), SIGNS, ["1 AVIF images (1.avif)", "convert them"]),
    "RAW": (images("stop/1.NEF"), SIGNS, ["1 camera RAW files (stop/1.NEF)", "develop them"]),
    "videos": (images("stop/drive.mp4"), SIGNS, ["1 videos (stop/drive.mp4)", "ffmpeg -i"]),
    "arrays": (images("stop/1.npy"), SIGNS, ["1 NumPy arrays (stop/1.npy)", "np.savez"]),
    "records": (images("train-0.tfrecord"), SIGNS, ["1 data set files", "export their images"]),
    "archives": (images("train.zip"), SIGNS, ["1 archives (train.zip)", "unpack them"]),
    "no ending": (images("stop/0001"), SIGNS, ["stop/0001 is an image by its content", "end in .png"]),
    "hidden only": (images(".cache/1.png"), SIGNS, ["holds no images (1 hidden (.cache))"]),
    "no folders": (images("1.png", "2.png"), SIGNS, ["holds 2 images (1.png, 2.png) but no class folders"]),
    "a table beside": (
        images("1.png") | {"labels.csv": b""},
        SIGNS,
        ["no class folders", "--validation-labels labels.csv"],
    ),
    "loose": (many("{}.png", 5) | images("plots/1.png"), SIGNS, ["so the folders are no classes"]),
    "other things": (images("cat/1.png", "dog/1.png"), SIGNS, ["none of its 2 classes", "cat, dog", "trained on"]),
    "one too many": (
        images("stop/1.png", "yield/1.png", "trash/1.png"),
        SIGNS,
        ["1 of 3 classes are none of the network's: trash", "take these folders out"],
    ),
    "twice": (
        images("keep left/1.png", "keep_left/1.png"),
        SIGNS,
        ["several classes match the same output: keep left, keep_left", "put them into one folder"],
    ),
    "numbers": (images("0/1.png", "43/1.png"), SIGNS, ["numbered up to 43, and the network has 3 outputs"]),
    "a number twice": (images("1/1.png", "01/1.png"), SIGNS, ["the same number: 01, 1"]),
    "too few": (images("a/1.png", "b/1.png"), generic(3), ["2 classes (a, b)", "3 outputs without names", "--labels"]),
    "too many": (
        images(*(f"{name}/1.png" for name in "abcd")),
        generic(3),
        ["4 classes", "3 outputs", "the folder whose sub-folders are the classes"],
    ),
    "only train": (images("train/a/1.png", "training/b/1.png"), SIGNS, ["none for validation", "one of these folders"]),
    "same names": (
        images("crane/1.png"),
        ("crane", "crane", "x"),
        ["several outputs of the same name, and crane could be each", "all different"],
    ),
    "ImageNet's words": (
        images("tench/1.png", "my cat/1.png"),
        IMAGENET_NAMES,
        ["1 of 2 classes", "my cat", "WordNet ids"],
    ),
    "wrapped twice, empty": ({"a/b/": b""}, SIGNS, ["holds no images (it is empty)"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_message_fits_the_mistake(tmp_path, mistake):
    content, labels, words = MISTAKES[mistake]
    with pytest.raises(SourceError) as caught:
        validated(directory(tmp_path, content), *labels)
    line = str(caught.value)
    assert "\n" not in line and str(tmp_path.name) in line
    assert all(word in line for word in words), line
