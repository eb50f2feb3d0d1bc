"""``classify.health()``: no word while the camera's images fit, and the right word for each planted fault."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from bundles import spec, write_bundle
from PIL import Image, ImageFilter

import edgeres
from edgeres.bundle import PIXELS, Bundle
from edgeres.data.arrays import Arrays
from edgeres.data.seen import PIXELS_KIND, Figures, figures_of, sample_seen
from edgeres.data.signs import Signs
from edgeres.errors import BundleError
from edgeres.graph.forms import FORMS
from edgeres.pipeline.take import ModelChoice, take
from edgeres.records import U8, Preprocess
from edgeres.runtime import Classifier, Frame
from edgeres.runtime.health import EVERY, FIRST, LEAST

Plant = Callable[[U8], Any]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled network in FP32 under the name of the graph for the CPU, with the pixels of 96 images."""
    fp32 = take(ModelChoice("resnet20"))
    seen = sample_seen(Signs("calibration", 96, 32), fp32.spec.preprocess)
    assert seen is not None
    pixels = json.dumps(PIXELS_KIND.content(seen)).encode()
    files = {FORMS["cpu"].file: fp32.graph.SerializeToString(), PIXELS: pixels}
    return write_bundle(tmp_path_factory.mktemp("health") / "signs.edgeres", fp32.spec, files)


@pytest.fixture(scope="module")
def images() -> list[U8]:
    source = Signs("validation", 240, 32)
    return [source.image(index) for index in range(len(source))]


def after(bundle: Path, frames: list[Any]) -> edgeres.runtime.Health:
    with edgeres.load(bundle) as classify:
        classify.batch(frames)
        return classify.health()


def i420(image: U8, name: str) -> Frame:
    """The image in BT.601 by OpenCV, under the name that a driver gives it."""
    data = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2YUV_I420)
    return Frame(data.tobytes(), name, *image.shape[:2])


def blurred(image: U8) -> U8:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(2)))


PLANTS: dict[str, tuple[Plant, str]] = {
    "red for blue": (lambda image: image[..., ::-1], "channels look exchanged, red for blue: OpenCV's arrays are BGR"),
    "bgr8 called rgb8": (
        lambda image: Frame(image[..., ::-1].tobytes(), "rgb8", 32, 32),
        "channels look exchanged, red for blue: the frames may be bgr8, not rgb8",
    ),
    "U for V": (
        lambda image: i420(image, "YV12"),
        "chroma planes look exchanged, U for V: the frames may be i420, not yv12",
    ),
    "too dark": (lambda image: image // 6, "too dark: mean green"),
    "too bright": (lambda image: (image * 2.5).clip(0, 255).astype(np.uint8), "too bright: mean green"),
    "0 to 1": (lambda image: (image / 255).astype(np.uint8), "another scale: every byte is 0 or 1"),
    "12 bits as 16": (
        lambda image: Frame(image[..., 1].astype(np.uint16) << 4, "mono16"),
        "another scale or too dark: the largest byte is about 1",
    ),
    "black": (lambda image: image * 0, "black: every pixel is 0"),
    "gray": (lambda image: Frame(np.ascontiguousarray(image[..., 1]), "mono8"), "gray: the channels are equal"),
    "blurred": (blurred, "blurred: "),
    "covered": (lambda image: image // 20 + 110, "hardly any contrast: "),
}


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_fault_is_named(bundle: Path, images: list[U8], name: str) -> None:
    plant, words = PLANTS[name]
    health = after(bundle, [plant(image) for image in images])
    assert health.findings and health.findings[0].startswith(words), str(health)
    assert not health.ok and str(health) == "\n".join(health.findings)


def test_a_frozen_camera_is_named(bundle: Path, images: list[U8]) -> None:
    """It stops after 100 images: seen once the same image was looked at several times."""
    with edgeres.load(bundle) as classify:
        classify.batch(images[:100])
        assert classify.health().ok
        classify.batch([images[100]] * (EVERY * LEAST))
        (line,) = classify.health().findings
    assert line.startswith(f"frozen: the last {LEAST} images that were looked at are identical")


@pytest.mark.parametrize("order", ["mixed", "by class", "as i420"])
def test_good_images_give_no_word_at_any_time(bundle: Path, images: list[U8], order: str) -> None:
    """Asked after each image, also where one class follows the other, and only one class was seen for a while."""
    places = sorted(range(len(images)), key=lambda index: index % 16) if order == "by class" else range(len(images))
    with edgeres.load(bundle) as classify:
        for index in places:
            classify(i420(images[index], "i420") if order == "as i420" else images[index])
            assert classify.health().findings == ()
        assert str(classify.health()) == "the last 45 images fit the calibration's"


@pytest.mark.parametrize("index", range(0, 240, 40))
def test_a_robot_that_stands_still_is_told_nothing(bundle: Path, images: list[U8], index: int) -> None:
    """One scene with the noise of a sensor, whatever its colour and light: the images are not independent."""
    rng = np.random.default_rng(0)
    scene = [(images[index] + rng.normal(0, 2, images[index].shape)).clip(0, 255).astype(np.uint8) for _ in range(64)]
    assert after(bundle, scene).findings == ()


def test_health_can_be_off_or_have_nothing_to_compare_with(tmp_path: Path, bundle: Path, images: list[U8]) -> None:
    with edgeres.load(bundle, health=False) as classify:
        classify.batch(images[:40])
        assert "health=False" in classify.health().note and classify.health().images == 0
    with edgeres.load(bundle) as classify:
        classify.batch(images[: LEAST - 1])
        assert classify.health().note == f"{LEAST - 1} images so far, {LEAST} are needed to tell"
    old = write_bundle(tmp_path / "old.edgeres")
    assert "has no statistics of its calibration images" in after(old, images[:40]).note
    frozen = after(old, [images[0]] * 40)
    assert frozen.findings[0].startswith("frozen") and not frozen.ok


def test_a_changed_file_of_statistics_is_refused(tmp_path: Path) -> None:
    seen = sample_seen(Arrays(np.zeros((4, 8, 8, 3), np.uint8), np.zeros(4, np.int64), ("a",), "x"), Preprocess((8, 8)))
    assert seen is not None
    content = PIXELS_KIND.content(seen)
    short = {**content, "low": content["low"][1:]}
    del short["digest"]
    with pytest.raises(BundleError, match="every figure must be there once"):
        PIXELS_KIND.decode(short, "pixels.json")
    path = write_bundle(tmp_path / "x", spec(), {FORMS["cpu"].file: b"", PIXELS: b"{}"})
    (path / PIXELS).write_text("{ }")
    with pytest.raises(BundleError, match="was changed"):
        Bundle(path).file(PIXELS)


def test_figures_are_those_of_the_pixels() -> None:
    """A red image, of which every second column is darker, in both orders of channels and layouts."""
    image = np.zeros((40, 40, 3), np.uint8)
    image[..., 0], image[..., 1] = 255, 100
    image[:, ::2, 1] = 60
    found = figures_of(image)
    assert (found.red, found.blue, found.tint, found.largest) == (255, 0, 255, 255)
    assert (found.green, found.contrast, found.detail) == (80, 20, 2)
    assert (found.colour, found.black, found.white) == (255, 1 / 3, 1 / 3)
    source = Arrays(np.stack([image, image]), np.zeros(2, np.int64), ("a",), "red")
    for order, layout in (("RGB", "NCHW"), ("BGR", "NHWC")):
        seen = sample_seen(source, Preprocess((40, 40), channel_order=order, layout=layout))  # type: ignore[arg-type]
        assert seen is not None and Figures(*seen.mean) == pytest.approx(found, abs=1e-5)


def test_every_image_of_many_threads_is_counted(bundle: Path, images: list[U8]) -> None:
    with Classifier(bundle, threads=1) as classify:
        work = [threading.Thread(target=lambda: [classify(image) for image in images[:50]]) for _ in range(8)]
        asked: list[Any] = []
        for thread in work:
            thread.start()
        for _ in range(20):
            asked.append(classify.health())
        for thread in work:
            thread.join()
        health = classify.health()
    assert (health.images, health.looked_at) == (400, FIRST + 400 // EVERY - FIRST // EVERY)
    assert all(one.findings == () for one in asked)
