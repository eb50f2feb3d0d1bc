"""Sources, selections, label matching and the loader, on generated files, and on CIFAR-10 where it is available."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgeres.data import files
from edgeres.data.arrays import CIFAR10_CLASSES, Arrays
from edgeres.data.base import Source, View, evenly_spread, subset
from edgeres.data.files import read_image
from edgeres.data.labels import imagenet_classes
from edgeres.data.loader import Loader
from edgeres.data.matching import match_labels
from edgeres.data.preprocess import apply
from edgeres.data.sources import open_source
from edgeres.errors import SourceError, UsageError
from edgeres.records import U8, PixelReading, Preprocess

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs shared/data")
TINY = Preprocess((8, 8))


def pixels(seed: int, height: int = 8, width: int = 8) -> U8:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: U8, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, form, **options)
    return stream.getvalue()


PNG = encoded(pixels(0))
PETS = {"dog/1.png": encoded(pixels(3)), "cat/b.PNG": encoded(pixels(2)), "cat/a.png": encoded(pixels(1))}


def directory(root: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            target.mkdir(exist_ok=True)
        else:
            target.write_bytes(data)
    return root


def archive(root: Path, content: dict[str, bytes]) -> Path:
    path = root / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in content.items():
            packed.writestr(name, data)
    return path


def npz(root: Path, **arrays: object) -> Path:
    path = root / "set.npz"
    np.savez(path, **arrays)
    return path


def opened(path: Path | str, role: str = "validation") -> Source:
    return open_source(path, role=role, px=16)


def refusal(action: Callable[[], object]) -> str:
    """The error message in one line."""
    with pytest.raises(SourceError) as caught:
        action()
    line = str(caught.value)
    assert "\n" not in line and caught.value.hint
    return line


def check_pets(source: Source) -> None:
    assert source.classes == ("cat", "dog")
    names = [source.name(index) for index in range(3)]
    assert [name[-9:] for name in names] == ["cat/a.png", "cat/b.PNG", "dog/1.png"]
    assert source.labels.dtype == np.int64 and source.labels.tolist() == [0, 0, 1]
    for index, seed in enumerate((1, 2, 3)):
        np.testing.assert_array_equal(source.image(index), pixels(seed))


# --- directories and archives


@pytest.mark.parametrize("make", [directory, archive])
@pytest.mark.parametrize("prefix", ["", "pets/"])
def test_class_folders(tmp_path, make, prefix):
    source = opened(make(tmp_path, {prefix + name: data for name, data in PETS.items()}))
    check_pets(source)
    assert source.description.endswith(": 3 images, 2 classes")


def test_archive_of_another_tool(tmp_path):
    """Backslashes, a leading ``./``, entries for folders, a name that occurs twice (the later one is used)."""
    content = {"cat/": b"", "./cat/a.png": PNG, "cat\\b.PNG": PETS["cat/b.PNG"], "dog//1.png": PETS["dog/1.png"]}
    path = archive(tmp_path, content)
    with zipfile.ZipFile(path, "a") as packed:
        packed.writestr("cat/a.png", PETS["cat/a.png"])
    check_pets(opened(path))


@pytest.mark.parametrize("make", [directory, archive])
def test_what_is_left_out_is_counted_and_named(tmp_path, make):
    clutter = ["cat/.DS_Store", "__MACOSX/cat/a.png", ".git/objects/x.png", "README.md", "dog/box.txt", "preview.jpg"]
    source = opened(make(tmp_path, PETS | dict.fromkeys(clutter, PNG)))
    check_pets(source)
    assert source.description.endswith(
        "3 images, 2 classes; left out: 3 hidden (.git, __MACOSX, cat/.DS_Store), "
        "2 not images (README.md, dog/box.txt), 1 outside class folders (preview.jpg)"
    )


@pytest.mark.parametrize(("role", "part"), [("calibration", "train"), ("validation", "val")])
@pytest.mark.parametrize("make", [directory, archive])
def test_the_split_meant_for_the_role_is_taken(tmp_path, make, role, part):
    other = {"train": "val", "val": "train"}[part]
    content = {f"{part}/{name}": data for name, data in PETS.items()} | {f"{other}/cow/1.png": PNG}
    source = opened(make(tmp_path, content), role)
    check_pets(source)
    assert f"/{part} (of train, val): 3 images" in source.description
    assert source.name(0) == f"{part}/cat/a.png"


def test_links_are_followed(tmp_path):
    real = directory(tmp_path / "real", PETS)
    linked = tmp_path / "linked"
    (linked / "dog").mkdir(parents=True)
    (linked / "cat").symlink_to(real / "cat", target_is_directory=True)
    (linked / "dog" / "1.png").symlink_to(real / "dog" / "1.png")
    check_pets(opened(linked))


def test_images_without_folders_have_no_labels(tmp_path):
    path = directory(tmp_path, {"b.jpg": PNG, "a.ppm": PNG, "empty/": b""})
    source = opened(path, "calibration")
    assert source.classes == () and source.labels.tolist() == [-1, -1] and source.name(0) == "a.ppm"
    assert source.description.endswith("2 images, no labels; left out: 1 folders without images (empty)")
    assert "validation needs labels" in refusal(lambda: opened(path))


def test_splits_without_classes_serve_for_calibration(tmp_path):
    path = directory(tmp_path, {"train/1.png": PNG, "train/2.png": PNG, "val/3.png": PNG, "preview.png": PNG})
    description = opened(path, "calibration").description
    assert description.endswith(
        "/train (of train, val): 2 images, no labels; left out: 1 outside that folder (preview.png)"
    )
    assert "validation needs labels" in refusal(lambda: opened(path))


@pytest.mark.parametrize("make", [directory, archive])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"notes.txt": b"", "cat/": b""}, ["holds no images", "1 not images (notes.txt)", ".jpg, .jpeg"]),
        ({"train/a/1.png": PNG, "training/a/1.png": PNG}, ["has train/, training/, none for validation"]),
    ],
)
def test_contradictory_trees_are_refused(tmp_path, make, content, words):
    path = make(tmp_path, content)
    line = refusal(lambda: opened(path))
    assert all(word in line for word in [str(path), *words]), line


def test_folder_and_archive_digests_follow_the_content(tmp_path):
    digests = set()
    for number, content in enumerate([PETS, PETS | {"cat/c.png": PNG}, PETS | {"cat/a.png": PNG + b" "}]):
        for make in (directory, archive):
            root = tmp_path / f"{make.__name__}{number}"
            root.mkdir()
            path = make(root, content)
            assert opened(path).digest() == opened(path).digest()
            digests.add(opened(path).digest())
    assert len(digests) == 6


def test_class_names_do_not_change_a_digest_but_labels_and_order_do(tmp_path):
    """Not in a folder, not in the network that the classes are matched with."""
    renamed = {name.replace("cat/", "a cat/").replace("dog/", "my dog/"): content for name, content in PETS.items()}
    sources = []
    for number, content in enumerate([PETS, renamed]):
        (tmp_path / str(number)).mkdir()
        sources.append(opened(directory(tmp_path / str(number), content)))
    one, other = sources
    assert one.classes != other.classes and one.digest() == other.digest()
    assert one.digest_with_names() != other.digest_with_names()
    places = np.arange(len(one))
    by_name = [View(one, places, one.labels, names, "") for names in (("cat", "dog"), ("class 0", "class 1"))]
    assert by_name[0].digest() == by_name[1].digest()
    assert by_name[0].digest_with_names() != by_name[1].digest_with_names()
    assert by_name[0].digest() != View(one, places, 1 - one.labels, (), "").digest()
    assert by_name[0].digest() != View(one, places[::-1], one.labels[::-1], (), "").digest()


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("set.zip", b"PK\x03\x04 cut short", ["cannot be opened as .zip", "fetch or pack it again"]),
        ("cat.jpg", PNG, ["give the directory it lies in"]),
        ("set.tar.gz", b"", ["unpack it and give the directory"]),
        ("set.h5", b"", ["is no source of images", "export their images as files"]),
        ("set.xyz", b"", ["is no source of images", ".npz"]),
    ],
)
def test_files_of_no_known_form(tmp_path, name, data, words):
    path = directory(tmp_path, {name: data}) / name
    line = refusal(lambda: opened(path))
    assert all(word in line for word in [str(path), *words]), line


def test_a_missing_path_suggests_a_near_one(tmp_path):
    directory(tmp_path, {"imagenette/val/": b""})
    assert f"did you mean {tmp_path / 'imagenette'}?" in refusal(lambda: opened(tmp_path / "imagenet" / "val"))
    assert "expected a directory, .zip or .tar" in refusal(lambda: opened(tmp_path / "zzzz"))


# --- decoding


def test_every_mode_becomes_rgb_as_pillow_converts_it():
    image = pixels(5)
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK"):
        converted = Image.fromarray(image).convert(mode)
        stream = io.BytesIO()
        converted.save(stream, "TIFF" if mode == "CMYK" else "PNG")
        np.testing.assert_array_equal(read_image(stream), np.asarray(converted.convert("RGB")), err_msg=mode)


def test_transparency_is_dropped_orientation_applied_and_16_bits_scaled():
    image = pixels(6, 4, 6)
    alpha = np.dstack([image, np.zeros((4, 6), np.uint8)])
    np.testing.assert_array_equal(read_image(io.BytesIO(encoded(alpha))), image)
    exif = Image.Exif()
    exif[0x0112] = 6  # EXIF orientation: turned by 90 degrees
    turned = encoded(image, exif=exif)
    np.testing.assert_array_equal(read_image(io.BytesIO(turned)), np.rot90(image, -1))
    np.testing.assert_array_equal(read_image(io.BytesIO(turned), None, PixelReading(exif=False)), image)
    deep = encoded(np.array([[0, 128, 129, 5000, 65535]], np.uint16))
    assert read_image(io.BytesIO(deep)).tolist() == [[[v] * 3 for v in (0, 0, 1, 19, 255)]]
    assert read_image(io.BytesIO(deep), None, PixelReading(1, full_scale=5000))[0, :, 0].tolist() == [0, 7, 7, 255, 255]


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (encoded(pixels(0, 64, 64), "JPEG")[:-400], "truncated"),
        (b"<html>not found</html>", "a web page, not an image"),
        (b"", "empty, 0 bytes"),
        (b"P6 20000 20000 255\n", "more than 100 million pixels"),
    ],
)
def test_unreadable_images_say_why(tmp_path, data, cause):
    path = directory(tmp_path, {"cat/1.jpg": data})
    for source in (opened(path), opened(archive(tmp_path, {"cat/1.jpg": data}))):
        with pytest.raises(SourceError) as caught:
            source.image(0)
        assert (caught.value.where, caught.value.what) == ("cat/1.jpg", cause)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(0, 200))
def test_damaged_files_raise_nothing_but_source_errors(noise, cut):
    for form in ("PNG", "JPEG", "BMP", "TIFF", "WEBP"):
        data = encoded(pixels(1), form)
        small = patch.object(Image, "MAX_IMAGE_PIXELS", 10_000)  # a damaged head may claim any size
        with small, contextlib.suppress(SourceError):
            assert read_image(io.BytesIO(data[:cut] + noise + data[cut + len(noise) :])).shape[2] == 3


def test_damage_inside_an_archive_is_named(tmp_path, monkeypatch):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("cat/1.png", PNG)
    damaged = bytearray(path.read_bytes())
    damaged[60] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(SourceError, match=r"cat/1\.png: damaged in the archive \(Bad CRC-32"):
        opened(path).image(0)
    monkeypatch.setattr(files, "_LARGEST_FILE", len(PNG) - 1)
    with pytest.raises(SourceError, match=r"cat/1\.png: expands to 0 MB"):
        opened(path).image(0)


def test_an_encrypted_archive_is_refused(tmp_path):
    path = archive(tmp_path, PETS)
    data = path.read_bytes().replace(b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00")
    path.write_bytes(data)
    assert "is encrypted; unpack it" in refusal(lambda: opened(path))


# --- arrays

IMAGES = np.stack([pixels(seed) for seed in range(6)])
LABELS = np.array([0, 1, 2, 0, 1, 2], np.uint8)


def test_npz(tmp_path):
    source = opened(npz(tmp_path, images=IMAGES, labels=LABELS))
    assert source.description == "set.npz: 6 images, 3 classes" and source.classes == ()
    assert source.labels.dtype == np.int64 and source.labels.tolist() == LABELS.tolist()
    assert source.name(4) == "images[4]"
    np.testing.assert_array_equal(source.image(4), IMAGES[4])
    named = opened(npz(tmp_path, images=IMAGES, labels=LABELS, classes=["a", "b", "c"]))
    assert named.classes == ("a", "b", "c") and named.digest() == source.digest()
    assert opened(npz(tmp_path, images=IMAGES, labels=LABELS[::-1].copy())).digest() != source.digest()
    path = npz(tmp_path, images=IMAGES, other=np.array([{}], object))
    assert opened(path, "calibration").labels.tolist() == [-1] * 6
    assert "has no 'labels', only images, other" in refusal(lambda: opened(path))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": IMAGES, "y": LABELS}, ["has no 'images', only x, y", "np.savez"]),
        ({"images": IMAGES / 255}, ["uint8 (N, H, W, 3), found float64 (6, 8, 8, 3)", "before any normalization"]),
        ({"images": IMAGES.transpose(0, 3, 1, 2)}, ["found uint8 (6, 3, 8, 8)", "transpose(0, 2, 3, 1)"]),
        ({"images": IMAGES[..., 0]}, ["found uint8 (6, 8, 8)", "repeat grayscale"]),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, ["found uint8 (0, 8, 8, 3)", "no images"]),
        ({"images": np.array([{}], object)}, ["cannot be read as .npz", "holds Python objects"]),
        ({"labels": LABELS[:5]}, ["6 images but 5 labels"]),
        ({"labels": LABELS / 2}, ["expected labels of integers (N,), found float64 (6,)"]),
        ({"labels": np.eye(6, dtype=int)}, ["found int64 (6, 6)", "argmax(1)"]),
        ({"labels": LABELS.astype(int) - 1}, ["2 of 6 labels are out of range", "images[0] has -1, images[3] has -1"]),
        ({"classes": ["a", "b"]}, ["2 of 6 labels are out of range 0 to 1: images[2] has 2, images[5] has 2"]),
    ],
)
def test_npz_of_another_form_is_refused(tmp_path, arrays, words):
    defaults = {} if "x" in arrays else {"images": IMAGES, "labels": LABELS}
    path = npz(tmp_path, **(defaults | arrays))
    line = refusal(lambda: opened(path))
    assert all(word in line for word in [str(path), *words]), line


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", pickle.dumps([1]), None])
def test_npz_that_is_none(tmp_path, data):
    path = tmp_path / "set.npz"
    if data is None:
        with path.open("wb") as file:
            np.save(file, IMAGES)
    else:
        path.write_bytes(data)
    assert "cannot be read as .npz" in refusal(lambda: opened(path))


CIFAR_IMAGES = np.stack([pixels(seed, 32, 32) for seed in range(4)])
CIFAR_LABELS = [3, 0, 9, 3]


def cifar_batch(form: str) -> bytes:
    planes = CIFAR_IMAGES.transpose(0, 3, 1, 2).reshape(4, 3072)
    if form == "bin":
        return np.hstack([np.array(CIFAR_LABELS, np.uint8)[:, None], planes]).tobytes()
    batch = pickle.dumps({b"data": planes, b"labels": CIFAR_LABELS, b"batch_label": b"test"}, protocol=2)
    # The name of NumPy's module when CIFAR-10 was written.
    return batch.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


@pytest.mark.parametrize(("form", "suffix"), [("py", ""), ("bin", ".bin")])
def test_cifar10_as_published(tmp_path, form, suffix):
    content = {f"{name}{suffix}": cifar_batch(form) for name in ("data_batch_1", "data_batch_2", "test_batch")}
    path = directory(tmp_path / f"cifar-10-batches-{form}", content)
    source = opened(path)
    assert source.classes == CIFAR10_CLASSES and source.labels.tolist() == CIFAR_LABELS
    assert source.description == f"cifar-10-batches-{form} (test_batch{suffix}): 4 images, 3 classes"
    for index in range(4):
        np.testing.assert_array_equal(source.image(index), CIFAR_IMAGES[index])
    assert len(opened(path, "calibration")) == 8
    (path / f"test_batch{suffix}").unlink()
    assert "has no test_batch for validation" in refusal(lambda: opened(path))


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path):
    marker = tmp_path / "owned"
    path = directory(tmp_path, {"test_batch": pickle.dumps({"data": Hostile(marker)}, protocol=2)})
    assert ".mkdir, which is not done" in refusal(lambda: opened(path))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("test_batch", b"\x80\x02 nonsense"),
        ("test_batch", pickle.dumps({"labels": [1]})),
        ("test_batch", pickle.dumps({"data": [[1, 2]], "labels": [1]})),
        ("test_batch.bin", bytes(3072)),
    ],
)
def test_damaged_cifar10_batches_are_refused(tmp_path, name, data):
    path = directory(tmp_path, {name: data})
    line = refusal(lambda: opened(path))
    assert f"{path / name}: is not a CIFAR-10 batch" in line


# --- the generated set


def test_signs(tmp_path, monkeypatch):
    source = opened("signs:20@3")
    assert len(source) == 20 and source.image(0).shape == (16, 16, 3)
    np.testing.assert_array_equal(source.image(7), opened("signs:20@3").image(7))
    assert source.digest() != opened("signs:20@4").digest() != opened("signs:20@4", "calibration").digest()
    assert len(opened("signs", "calibration")) == 512 and len(opened("signs")) == 1000
    for wrong in ("signs:", "signs:0", "signs:many", "signs@x", "signs@1:5"):
        assert "signs[:count][@seed]" in refusal(lambda wrong=wrong: opened(wrong))
    directory(tmp_path / "signs", PETS)
    monkeypatch.chdir(tmp_path)
    check_pets(opened("./signs"))


# --- selections


def labelled(labels: list[int], classes: tuple[str, ...] = ()) -> Source:
    """A source whose images have their index in the first pixel."""
    images = np.zeros((len(labels), 8, 8, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels)) % 256
    return Arrays(images, np.array(labels, np.int64), classes, "set.npz")


def chosen(source: Source) -> list[int]:
    return [int(source.image(i)[0, 0, 0]) for i in range(len(source))]


@given(st.lists(st.integers(-1, 5), min_size=2, max_size=60), st.integers(1, 59), st.integers(-5, 2**40))
def test_subset_is_balanced_nested_and_deterministic(labels, count, seed):
    source = labelled(labels)
    part = subset(source, count, seed)
    if count >= len(labels):
        assert part is source
        return
    order = chosen(part)
    assert len(order) == len(set(order)) == count
    assert part.labels.tolist() == [labels[i] for i in order]
    assert order == chosen(subset(source, count, seed)) and part.digest() == subset(source, count, seed).digest()
    assert chosen(subset(source, max(1, count // 2), seed)) == order[: max(1, count // 2)]
    taken = {label: part.labels.tolist().count(label) for label in set(labels)}
    most = max(taken.values())
    assert all(taken[label] >= min(most - 1, labels.count(label)) for label in taken)


def test_subsets_of_different_seeds_differ():
    source = labelled([0, 1] * 50)
    assert chosen(subset(source, 20, 0)) != chosen(subset(source, 20, 1))
    assert subset(source, 20, 0).description == "20 of set.npz: 100 images, 2 classes"
    assert chosen(subset(source, 5, 0)) == [26, 55, 86, 75, 2]  # in every release: recorded calibrations rely on it
    with pytest.raises(UsageError, match="at least one image"):
        subset(source, 0, 0)


def test_positions_of_a_source_are_a_source():
    source = labelled([3, 1, -1, 2])
    part = source.at(np.array([2, 0]))
    assert (chosen(part), part.labels.tolist(), part.classes) == ([2, 0], [-1, 3], source.classes)
    assert part.description == source.description and part.digest() != source.digest()
    assert source.at(np.array([1]), "one of four").description == "one of four"


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [(10, 4, [0, 3, 6, 9]), (3, 8, [0, 1, 2]), (1, 64, [0]), (129, 3, [0, 64, 128])],
)
def test_spread_positions_hold_both_ends_and_no_position_twice(total, count, expected):
    assert evenly_spread(total, count).tolist() == expected


WORDNET = imagenet_classes()
IMAGENET_NAMES = tuple(name for _, name in WORDNET)


def generic(count: int) -> tuple[str, ...]:
    return tuple(f"class {i}" for i in range(count))


@pytest.mark.parametrize(
    ("classes", "model", "outputs"),
    [
        (("cat", "dog"), ("dog", "bird", "cat"), [2, 0]),
        (("keep_left", "Stop Sign"), ("stop-sign", "keep left"), [1, 0]),
        (("A", "a"), ("a", "A"), [1, 0]),
        (("n01440764", "n02123045_tabby"), IMAGENET_NAMES, [0, 281]),
        (("n02123045", "n02124075"), generic(1000), [281, 285]),
        (("tench", "great_white_shark"), IMAGENET_NAMES, [0, 2]),
        (("0", "10", "2"), generic(11), [0, 10, 2]),
        (("00", "01", "02"), ("a", "b", "c"), [0, 1, 2]),
        (("ant", "bee", "cow"), generic(3), [0, 1, 2]),
        (("class 2", "class 0"), generic(3), [2, 0]),
        (("00_stop", "01_give_way"), ("give_way", "stop"), [1, 0]),
        (("10 - cat", "2.dog"), ("dog", "Cat"), [1, 0]),
        (("3d", "2d"), ("2d", "3d"), [1, 0]),
    ],
)
def test_labels_are_matched(classes, model, outputs):
    source = match_labels(labelled([0, 1, 1, len(classes) - 1], classes), model)
    assert source.labels.tolist() == [outputs[0], outputs[1], outputs[1], outputs[-1]]
    assert source.labels.dtype == np.int64 and source.image(2)[0, 0, 0] == 2


@pytest.mark.parametrize(
    ("classes", "model", "words"),
    [
        (
            ("cat", "cow"),
            ("cat", "dog"),
            ["1 of 2 classes", "cow", "the network knows cat, dog", "take these folders out"],
        ),
        (
            ("stop sign", "stop_sign"),
            ("Stop Sign", "Yield"),
            ["match the same output: stop sign, stop_sign", "put them into one folder"],
        ),
        (("ant", "bee"), generic(3), ["ant, bee", "3 outputs without names", "--labels FILE"]),
        (("1", "4"), generic(3), ["numbered up to 4", "3 outputs", "that the network was trained on"]),
        (("01", "1"), generic(3), ["the same number: 01, 1"]),
        (("session1", "session2"), ("stop", "yield"), ["none of its 2 classes", "session1", "the network knows stop"]),
        (
            ("n01440764", "n99999999"),
            IMAGENET_NAMES,
            ["n01440764, n99999999", "tench, goldfish", "and 995 more", "WordNet"],
        ),
        (
            ("twin", "x"),
            ("twin", "twin", "x"),
            ["several outputs of the same name, and twin could be", "all different"],
        ),
    ],
)
def test_labels_that_do_not_match_show_both_sides(classes, model, words):
    line = refusal(lambda: match_labels(labelled([0, 1], classes), model))
    assert all(word in line for word in ["set.npz", *words]), line


def test_nameless_labels_are_outputs():
    assert match_labels(labelled([0, 2, 1]), ("a", "b", "c")).labels.tolist() == [0, 2, 1]
    line = refusal(lambda: match_labels(labelled([0, 2, 1]), ("a", "b")))
    assert "1 of 3 labels are out of range 0 to 1: images[1] has 2" in line
    assert "has no labels" in refusal(lambda: match_labels(labelled([-1, -1]), ("a", "b")))


# --- the loader


class Counting(Source):
    """Images of one value each; those in ``broken`` raise when they are read."""

    def __init__(self, count: int, broken: tuple[int, ...] = ()) -> None:
        self.classes, self.description = (), "counting"
        self.labels = np.arange(count) % 7
        self.broken = broken
        self.calls = 0
        self._lock = threading.Lock()

    def name(self, index: int) -> str:
        return f"{index}.jpg"

    def image(self, index: int) -> U8:
        with self._lock:
            self.calls += 1
        if index % 3 == 0:
            time.sleep(0.001)  # later images overtake this one
        if index in self.broken:
            raise SourceError("truncated", where=self.name(index))
        return np.full((8, 8, 3), index, np.uint8)

    def digest(self) -> str:
        return ""


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("edgeres-loader")]


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_hold_every_image_in_order(workers):
    source = Counting(50)
    loader = Loader(source, TINY, 8, workers=workers)
    for _ in range(2):  # each iteration starts over
        found = list(loader)
        assert [len(batch.labels) for batch in found] == [8] * 6 + [2]
        assert np.concatenate([batch.indices for batch in found]).tolist() == list(range(50))
        for batch in found:
            assert batch.labels.tolist() == (batch.indices % 7).tolist()
            expected = np.stack([apply(np.full((8, 8, 3), index, np.uint8), TINY) for index in batch.indices])
            np.testing.assert_array_equal(batch.inputs, expected)
    assert loader.unreadable == [] and loader_threads() == []


def test_look_ahead_is_bounded_and_closing_stops_the_threads():
    source = Counting(10_000)
    stream = iter(Loader(source, TINY, 4, workers=2))
    next(stream)
    most = 4 + 4 + 2  # the current batch, the next one, and one image per thread
    deadline = time.monotonic() + 10
    while source.calls < most - 1 and time.monotonic() < deadline:  # the last one is not started yet
        time.sleep(0.01)
    time.sleep(0.05)
    assert most - 1 <= source.calls <= most
    stream.close()
    assert loader_threads() == []


def test_an_exception_in_the_loop_stops_the_threads():
    with pytest.raises(KeyboardInterrupt):
        for _ in Loader(Counting(10_000), TINY, 4):
            raise KeyboardInterrupt
    assert loader_threads() == []


def test_one_error_names_all_unreadable_images():
    loader = Loader(Counting(40, broken=(9, 30, 39)), TINY, 4)
    seen = []
    line = refusal(lambda: seen.extend(batch.indices for batch in loader))
    assert np.concatenate(seen).tolist() == list(range(8))  # batches before the first unreadable image were delivered
    assert line == (
        "counting: 3 of 40 images cannot be read: 9.jpg (truncated), 30.jpg (truncated), 39.jpg (truncated); "
        "remove them or pass --skip-unreadable"
    )
    assert len(loader.unreadable) == 3 and loader_threads() == []


def test_unreadable_images_are_skipped_and_named_on_request():
    loader = Loader(Counting(11, broken=(0, 5)), TINY, 4, on_unreadable="skip")
    assert [batch.indices.tolist() for batch in loader] == [[1, 2, 3, 4], [6, 7, 8, 9], [10]]
    assert loader.unreadable == ["0.jpg (truncated)", "5.jpg (truncated)"]
    hopeless = Loader(Counting(12, broken=tuple(range(12))), TINY, 4, on_unreadable="skip")
    assert "12 of 12 images cannot be read" in refusal(lambda: list(hopeless))
    assert "and 2 more" in refusal(lambda: list(hopeless))


def test_batch_size_must_be_positive():
    with pytest.raises(UsageError, match="batch size"):
        Loader(Counting(1), TINY, 0)


# --- real images


@needs_shared
def test_cifar10_archive_and_arrays_name_the_same_classes():
    """Lossless test images match the JPEG ones; folders' names are the classes of the indices."""
    packed = match_labels(opened(SHARED / "cifar10_test10000_jpeg.zip"), CIFAR10_CLASSES)
    assert packed.description == "cifar10_test10000_jpeg.zip: 10,000 images, 10 classes"
    assert np.bincount(packed.labels).tolist() == [1000] * 10
    arrays = subset(match_labels(opened(SHARED / "cifar10_test1000.npz"), CIFAR10_CLASSES), 30, 0)
    assert np.bincount(arrays.labels).tolist() == [3] * 10
    p = Preprocess((32, 32))
    (lossless,) = Loader(arrays, p, 30)
    distances, labels = [], []
    for batch in Loader(packed, p, 1000):
        rows, wanted = batch.inputs.reshape(1000, -1), lossless.inputs.reshape(30, -1)
        distances.append((rows**2).sum(1) - 2 * wanted @ rows.T)
        labels.append(batch.labels)
    nearest = np.concatenate(distances, axis=1).argmin(axis=1)
    np.testing.assert_array_equal(np.concatenate(labels)[nearest], lossless.labels)


@needs_shared
def test_photographs_through_the_loader():
    source = opened(SHARED / "imagenet_samples", "calibration")
    p = Preprocess((224, 224), resize_px=256)
    assert source.description == "imagenet_samples: 62 images, no labels"
    (batch,) = Loader(subset(source, 12, 0), p, 16)
    assert batch.inputs.shape == (12, 3, 224, 224)
    for row, index in enumerate(batch.indices[:3]):
        np.testing.assert_array_equal(batch.inputs[row], apply(subset(source, 12, 0).image(int(index)), p))
