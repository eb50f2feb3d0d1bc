"""Corrupted images against Pillow and brute force in numpy, and what is found of an INT8 graph that breaks on them."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from edgeres.data.arrays import Arrays
from edgeres.data.choose import DataChoice
from edgeres.data.corruptions import CORRUPTIONS, IMAGES, Corrupted, Corruption, check_corruptible, corrupt
from edgeres.data.loader import Loader
from edgeres.data.sources import open_source
from edgeres.errors import UsageError
from edgeres.judge.corruptions import corruption_rows, judge_corruptions
from edgeres.progress import SILENT
from edgeres.records import ModelSpec, PixelReading, Preprocess
from edgeres.runtime.ort import OrtRunner
from edgeres.verify.accuracy import CorruptedAnswers
from edgeres.verify.answers import AnswerTable
from edgeres.verify.candidates import Candidate, Candidates
from edgeres.verify.measure import MeasurePlan, Validation, _compare_corrupted


def picture(height: int = 40, width: int = 56, seed: int = 0) -> Any:
    small = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def of(kind: str) -> list[Corruption]:
    return [corruption for corruption in CORRUPTIONS if corruption.kind == kind]


def test_there_are_five_kinds_in_three_strengths() -> None:
    assert len(CORRUPTIONS) == 15
    assert {c.kind for c in CORRUPTIONS} == {"dark", "blur", "noise", "jpeg", "rotation"}


@pytest.mark.parametrize("corruption", of("dark"))
def test_dark_is_a_factor(corruption: Corruption) -> None:
    image = picture()
    exact = image * corruption.value
    found = corrupt(image, corruption, (0, 0))
    assert np.abs(found - exact).max() <= 0.5
    assert found.dtype == np.uint8


@pytest.mark.parametrize("corruption", of("blur"))
def test_blur_is_a_gaussian(corruption: Corruption) -> None:
    """Pillow approaches it by three box blurs."""
    image = picture(80, 112)
    sigma = corruption.value * 80
    x = np.arange(-12, 13)
    kernel = np.exp(-(x**2) / (2 * sigma**2)) / np.exp(-(x**2) / (2 * sigma**2)).sum()
    padded = np.pad(image.astype(float), ((12, 12), (12, 12), (0, 0)), "edge")
    rows = sum(weight * padded[i : i + 80] for i, weight in enumerate(kernel))
    exact = sum(weight * rows[:, i : i + 112] for i, weight in enumerate(kernel))
    error = np.abs(corrupt(image, corruption, (0, 0)) - exact)
    assert error.max() <= 6
    assert error.mean() <= 1.5
    assert np.abs(image - exact).max() > 3 * error.max() or corruption.strength < 3


@pytest.mark.parametrize("corruption", of("noise"))
def test_noise_is_drawn_once_for_the_whole_image(corruption: Corruption) -> None:
    """Rows are drawn in parts; the parts are those of one draw."""
    image = np.full((700, 800, 3), 128, np.uint8)
    rng = np.random.Generator(np.random.PCG64([3, 5, 2, corruption.strength]))
    exact = 128 + np.float32(corruption.value) * rng.standard_normal(image.shape, np.float32)
    found = corrupt(image, corruption, (3, 5))
    np.testing.assert_array_equal(found, np.clip(np.rint(exact), 0, 255))
    assert np.std(found.astype(float)) == pytest.approx(corruption.value, rel=0.02)


@pytest.mark.parametrize("corruption", of("jpeg"))
def test_jpeg_is_pillows(corruption: Corruption) -> None:
    image, file = picture(), io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=int(corruption.value))
    np.testing.assert_array_equal(corrupt(image, corruption, (0, 0)), np.asarray(Image.open(file)))


@pytest.mark.parametrize("corruption", of("rotation"))
@pytest.mark.parametrize("shape", [(40, 56), (56, 40), (48, 48)])
def test_rotation_is_bilinear_about_the_centre_and_leaves_no_corner_empty(
    corruption: Corruption, shape: tuple[int, int]
) -> None:
    image, (height, width) = picture(*shape), shape
    found = corrupt(image, corruption, (0, 1)).astype(float)
    fits = []
    for sign in (1, -1):
        angle = sign * math.radians(corruption.value)
        bound = max(width / height, height / width)
        shrink = 1 / (math.cos(angle) + abs(math.sin(angle)) * bound)
        y, x = np.mgrid[:height, :width] + 0.5
        dx, dy = (x - width / 2) * shrink, (y - height / 2) * shrink
        u = math.cos(angle) * dx + math.sin(angle) * dy + width / 2 - 0.5
        v = -math.sin(angle) * dx + math.cos(angle) * dy + height / 2 - 0.5
        assert min(u.min(), v.min()) > -0.5
        assert (u.max() < width - 0.5) and (v.max() < height - 0.5)
        left, top = np.floor(u).astype(int), np.floor(v).astype(int)
        exact = np.zeros_like(found)
        for i in (0, 1):
            for j in (0, 1):
                weight = np.abs(1 - i - (u - left)) * np.abs(1 - j - (v - top))
                exact += weight[..., None] * image[np.clip(top + j, 0, height - 1), np.clip(left + i, 0, width - 1)]
        fits.append(np.abs(found - exact).max())
    assert min(fits) <= 1.5
    assert max(fits) > 10
    assert (corrupt(np.full((*shape, 3), 200, np.uint8), corruption, (0, 1)) == 200).all()


def test_the_pixels_depend_on_seed_and_place_alone() -> None:
    source = Arrays(np.stack([picture(seed=0)] * 4), np.arange(4), (), "set")
    for corruption in CORRUPTIONS:
        one, again = (Corrupted(source, corruption, 7) for _ in range(2))
        part = again.at(np.array([3, 1]))  # as a worker takes its share
        np.testing.assert_array_equal(part.image(0), one.image(3))
        np.testing.assert_array_equal(part.image(1), one.image(1))
    noise = Corruption("noise", 1)
    assert (Corrupted(source, noise, 7).image(0) != Corrupted(source, noise, 8).image(0)).any()
    assert (Corrupted(source, noise, 7).image(0) != Corrupted(source, noise, 7).image(1)).any()
    assert Corrupted(source, noise, 7).digest() != Corrupted(source, None, 7).digest()


def test_large_sources_are_thinned_and_other_images_refused() -> None:
    source = Arrays(np.zeros((300, 8, 8, 3), np.uint8), np.arange(300) % 3, (), "set")
    some = Corrupted(source, None, 0)
    assert len(some) == IMAGES
    assert np.ptp(np.bincount(some.labels)) <= 1
    with pytest.raises(UsageError, match=r"found uint8 \(8, 8, 4\)"):
        corrupt(np.zeros((8, 8, 4), np.uint8), CORRUPTIONS[0], (0, 0))
    four = Preprocess((8, 8), mean=(0.0,) * 4, std=(1.0,) * 4, reading=PixelReading(channels=4))
    with pytest.raises(UsageError, match="images of 4 channels are not corrupted"):
        check_corruptible(four)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_gray_is_corrupted_as_a_plane_of_colour_is(corruption: Corruption) -> None:
    gray = picture(120, 168)[..., 0]
    found = corrupt(gray, corruption, (0, 3))
    assert (found != gray).any()
    np.testing.assert_array_equal(corrupt(gray[..., None], corruption, (0, 3)), found[..., None])
    if corruption.kind == "jpeg":
        file = io.BytesIO()
        Image.fromarray(gray, "L").save(file, "JPEG", quality=int(corruption.value))
        np.testing.assert_array_equal(found, np.asarray(Image.open(file)))
    elif corruption.kind != "noise":
        np.testing.assert_array_equal(corrupt(np.dstack([gray] * 3), corruption, (0, 3)), np.dstack([found] * 3))


def test_images_are_read_as_the_network_takes_them(tmp_path: Path) -> None:
    """Depth by its full scale, and orientation by the contract, not by the defaults."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(picture()).save(tmp_path / name / "turned.png", exif=exif)
        Image.fromarray(np.full((40, 56), 2000, np.uint16)).save(tmp_path / name / "depth.png")
    source = open_source(str(tmp_path), role="validation", px=40)
    files = [source.name(index) for index in range(len(source))]
    dark = Corrupted(source, Corruption("dark", 1), 0)
    depth, turned = (next(i for i, name in enumerate(files) if word in name) for word in ("depth", "turned"))
    assert dark.image_as(turned, PixelReading(exif=False)).shape == (40, 56, 3)
    assert dark.image_as(turned, PixelReading()).shape == (56, 40, 3)
    assert (dark.image_as(depth, PixelReading(channels=1, full_scale=4000)) == 64).all()  # half of 2000 / 4000


# ---- INT8 that breaks ------------------------------------------------------------------------------------------------


def brightest_channel(scale: float | None) -> bytes:
    """A network whose scores are the mean colours; with a scale, its input has codes."""
    nodes, image = [], "image"
    constants = [helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])]
    if scale is not None:
        constants.append(helper.make_tensor("s", TensorProto.FLOAT, [], [scale]))
        constants.append(helper.make_tensor("z", TensorProto.UINT8, [], [0]))
        nodes.append(helper.make_node("QuantizeLinear", ["image", "s", "z"], ["q"]))
        nodes.append(helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]))
        image = "d"
    nodes.append(helper.make_node("ReduceMean", [image, "axes"], ["scores"], keepdims=0))
    given = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 16, 16])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 3])
    graph = helper.make_graph(nodes, "colour", [given], [scores], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return model.SerializeToString()


def measured(scale: float) -> tuple[CorruptedAnswers, ...]:
    labels = np.arange(90) % 3
    images = np.full((90, 16, 16, 3), 150, np.uint8)
    images[np.arange(90), :, :, labels] = 250
    contract = Preprocess((16, 16), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    graphs = {"fp32": brightest_channel(None), "tensorrt": brightest_channel(scale)}
    assert onnx.load_from_string(graphs["tensorrt"]).graph.node[0].op_type == "QuantizeLinear"

    def opens(name: str) -> Candidate:
        return Candidate(lambda threads: OrtRunner(graphs[name], threads=1), layers=True)

    candidates = Candidates(opens("fp32"), {"tensorrt": opens("tensorrt")}, "tensorrt", OrtRunner)
    loader = Loader(Arrays(images, labels, (), "set"), contract, 16)
    spec = ModelSpec("colour", contract, ("red", "green", "blue"))
    plan = MeasurePlan(corruptions=True)
    return _compare_corrupted(plan, candidates, spec, Validation(loader, DataChoice()), SILENT)


def test_a_scale_so_coarse_that_dark_values_vanish_is_found() -> None:
    """0.3 per code: 250 and 150 are codes 3 and 2, but in the dark both are 0."""
    rows = corruption_rows(measured(0.3))
    assert rows is not None
    clean, dark = rows[0], next(row for row in rows if (row["kind"], row["strength"]) == ("dark", 3))
    assert (clean["fp32"], clean["graphs"]["tensorrt"]["lost"]) == (90, 0)
    assert (dark["fp32"], dark["graphs"]["tensorrt"]["lost"]) == (90, 60)
    outcome, reason = judge_corruptions(rows)[:2]
    assert outcome == "failed"
    assert "dark 3, tensorrt graph: FP32 90 and INT8 30 of 90 right (60 lost, 0 gained)" in reason


def test_a_fine_scale_passes() -> None:
    assert judge_corruptions(corruption_rows(measured(1 / 255)))[0] == "passed"


def answers(fp32: int, int8: int, total: int = 200) -> CorruptedAnswers:
    """So many of them right, and those of INT8 among those of FP32."""
    places = np.arange(total)
    columns = {"fp32": (places >= fp32).astype(np.int64), "cpu": (places >= int8).astype(np.int64)}
    return CorruptedAnswers(CORRUPTIONS[0], AnswerTable(np.zeros(total, np.int64), 2, columns))


@pytest.mark.parametrize(
    ("fp32", "int8", "outcome", "warns"),
    [(40, 40, "passed", False), (190, 180, "passed", False), (190, 174, "passed", True), (190, 140, "failed", False)],
)
def test_int8_is_judged_by_its_loss_against_fp32_alone(fp32: int, int8: int, outcome: str, warns: bool) -> None:
    """FP32 that breaks itself is shown only."""
    clean = CorruptedAnswers(None, answers(200, 200).table)
    rest = [CorruptedAnswers(of, answers(200, 200).table) for of in CORRUPTIONS[1:]]
    rows = corruption_rows([clean, answers(fp32, int8), *rest])
    assert rows is not None
    assert rows[1]["graphs"]["cpu"]["p_holm"] == pytest.approx(min(1, 15 * 0.5 ** (fp32 - int8)))
    found = judge_corruptions(rows)
    assert (found[0], len(found) == 3) == (outcome, warns)


def test_without_labels_or_with_few_images_nothing_is_judged() -> None:
    few = [CorruptedAnswers(of, answers(6, 0, 6).table) for of in (None, *CORRUPTIONS)]
    assert judge_corruptions(corruption_rows(few))[0] == "unsure"
    table = AnswerTable(np.full(4, -1), 2, {"fp32": np.zeros(4, np.int64), "cpu": np.zeros(4, np.int64)})
    bare = corruption_rows([CorruptedAnswers(of, table) for of in (None, *CORRUPTIONS)])
    assert bare is not None
    assert (bare[1]["fp32"], bare[1]["graphs"]["cpu"]["drop_pp"], bare[1]["graphs"]["cpu"]["same"]) == (None, None, 4)
    assert judge_corruptions(bare) == ("unsure", "there are no labels")
    assert judge_corruptions(None)[0] == "unsure"
