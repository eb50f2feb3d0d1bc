"""The generated demo set: deterministic, balanced, the same scene at every resolution."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgeres.data.sign_faces import faces
from edgeres.data.sign_scene import Canvas, paint
from edgeres.data.signs import CLASSES, SPLITS, Signs, Split, render
from edgeres.data.sources import open_source
from edgeres.errors import SourceError

splits = st.sampled_from(sorted(SPLITS))


@settings(max_examples=25, deadline=None)
@given(splits, st.integers(0, 2**40), st.integers(0, 10**9), st.sampled_from([16, 31, 32, 48, 96, 130]))
def test_any_image_can_be_rendered_and_twice_the_same(split: Split, seed: int, index: int, px: int) -> None:
    image, label = render(split, seed, index, px)
    assert image.shape == (px, px, 3)
    assert image.dtype == np.uint8
    assert label == index % len(CLASSES)
    again, _ = render(split, seed, index, px)
    assert np.array_equal(image, again)


def test_split_seed_and_index_each_change_the_scene() -> None:
    images = [render("train", 0, 0, 32), render("calibration", 0, 0, 32), render("validation", 0, 0, 32)]
    images += [render("train", 1, 0, 32), render("train", 0, 16, 32)]
    assert {label for _, label in images} == {0}
    for i, (a, _) in enumerate(images):
        for b, _ in images[:i]:
            assert np.abs(a.astype(float) - b).mean() > 8


def test_splits_never_share_a_stream_whatever_their_seeds() -> None:
    digests = {render(split, seed, 0, 16)[0].tobytes() for split in SPLITS for seed in range(20)}
    assert len(digests) == 60


def test_composition_is_the_same_at_every_resolution() -> None:
    """A small image is closer to its own large version, reduced, than to any other."""

    def reduced(index: int, px: int) -> np.ndarray:
        image = Image.fromarray(render("validation", 0, index, px)[0]).resize((28, 28), Image.Resampling.BOX)
        pixels = np.asarray(image, dtype=np.float64).ravel()
        return (pixels - pixels.mean()) / pixels.std()

    large = np.stack([reduced(i, 224) for i in range(24)])
    for px in (32, 64, 112):
        similarity = np.stack([reduced(i, px) for i in range(24)]) @ large.T / large.shape[1]
        assert similarity.argmax(axis=1).tolist() == list(range(24))
        assert np.median(similarity.diagonal()) > 0.95


@pytest.mark.parametrize("pair", [("speed_30", "speed_50"), ("keep_left", "keep_right"), ("stop", "no_parking")])
def test_only_the_face_depends_on_the_label(pair: tuple[str, str]) -> None:
    by_name = {face.name: face for face in faces()}
    canvases, streams = [Canvas(96), Canvas(96)], [np.random.default_rng(3), np.random.default_rng(3)]
    for name, canvas, stream in zip(pair, canvases, streams, strict=True):
        paint(canvas, by_name[name], stream)
    assert streams[0].bit_generator.state == streams[1].bit_generator.state
    differs = np.any(np.asarray(canvases[0].image) != np.asarray(canvases[1].image), axis=2)
    assert 0 < differs.mean() < 0.5


def test_labels_are_balanced_in_every_prefix() -> None:
    labels = Signs("validation", 1000, 32).labels
    for count in (16, 160, 999):
        shares = Counter(labels[:count].tolist())
        assert len(shares) == len(CLASSES)
        assert max(shares.values()) - min(shares.values()) <= 1


def test_source_contract() -> None:
    source = open_source("signs:40@7", role="validation", px=48)
    assert len(source) == 40
    assert source.classes == CLASSES
    assert len(set(CLASSES)) == 16
    assert source.labels.dtype == np.int64
    assert np.array_equal(source.image(5), render("validation", 7, 5, 48)[0])
    assert "40 images" in source.description
    assert source.digest() == Signs("validation", 40, 48, 7).digest()
    others = [Signs("calibration", 40, 48, 7), Signs("validation", 41, 48, 7), Signs("validation", 40, 32, 7)]
    assert len({s.digest() for s in [source, *others, Signs("validation", 40, 48, 8)]}) == 5


@pytest.mark.parametrize(("count", "px", "seed"), [(0, 32, 0), (8, 8, 0), (8, 32, -1)])
def test_impossible_sets_are_refused(count: int, px: int, seed: int) -> None:
    with pytest.raises(SourceError, match=r"^signs: cannot render"):
        Signs("train", count, px, seed)


def test_faces_lie_in_their_square_and_mirror_only_where_meaning_allows() -> None:
    for face in faces():
        assert max(np.abs(part.points).max() for part in face.parts) <= 1.2
    mirrors = {face.name for face in faces() if face.mirrors}
    assert not mirrors & {
        "stop",
        "speed_30",
        "speed_50",
        "no_parking",
        "keep_left",
        "keep_right",
        "exit_left",
        "exit_right",
    }
