"""Faults that teams plant without knowing it, each planted here into a real bundle: verify fails, and says which it is.

Accuracy often does not show them (on this network calibration in BGR and one scale per weight tensor cost no image), so
the name matters more than the exit code.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

import edgeres
from edgeres.bundle import FP32, Bundle, seal
from edgeres.data.choose import DataChoice
from edgeres.data.signs import CLASSES, Signs
from edgeres.errors import SourceError, UsageError
from edgeres.files import write_file, write_json
from edgeres.graph.forms import FORMS
from edgeres.judge.asked import GateChoice
from edgeres.judge.gates import Limits
from edgeres.pipeline import candidates
from edgeres.pipeline.options import VerifyOptions
from edgeres.pipeline.verify import accept_baseline, verify_bundle
from edgeres.records import IMAGENET_MEAN, IMAGENET_STD, EngineRecord
from edgeres.verify import latency, measure

IMAGES = 192
BICUBIC = Image.Resampling.BICUBIC
TARGETS = ("cpu", "jetson-orin-nx")


@dataclass(frozen=True)
class Made:
    """A good bundle, its baseline, and the images it was calibrated and validated on."""

    folder: Path
    bundle: Path
    baseline: Path
    images: dict[str, Any]

    def validation(self, name: str, **changes: Any) -> Path:
        path = self.folder / f"{name}.npz"
        np.savez(path, **(self.images | changes))
        return path


class Clock:
    """Time that passes in inferences only, a little uneven, so that no other process has a say."""

    def __init__(self, int8_ms: float = 5.0) -> None:
        self.now, self.int8_ms, self.noise = 0.0, int8_ms, np.random.default_rng(0)

    def __call__(self) -> float:
        return self.now

    def runner(self, path: Path | bytes, *, threads: int = 0, integer: bool = True) -> Any:
        real = stage_runner(path, threads=threads, integer=integer)
        if isinstance(path, bytes):  # a graph that gives inner tensors: nobody times it
            return real
        ms = 15.0 if path.name == FP32 else self.int8_ms
        infer = real.infer

        def timed(feed: Any) -> Any:
            self.now += 1e-3 * ms * float(self.noise.lognormal(0, 0.02))
            images = len(next(iter(feed.values())))
            return infer(feed) if images > 1 else {}  # one at a time is for the clock alone

        real.infer = timed
        return real


stage_runner = candidates.OrtRunner


def with_clock(patch: pytest.MonkeyPatch, clock: Clock) -> None:
    for name in ("perf_counter", "process_time"):
        patch.setattr(latency, name, clock)
    patch.setattr(candidates, "OrtRunner", clock.runner)
    patch.setattr(measure, "LatencyPlan", functools.partial(measure.LatencyPlan, min_seconds=1.0))


def render(split: Any, count: int) -> dict[str, Any]:
    signs = Signs(split, count, 32)
    return {"images": np.stack([signs.image(i) for i in range(count)]), "labels": signs.labels}


def build(folder: Path, calibration: Any, output: str, **options: Any) -> Path:
    given = {"targets": "cpu", "effort": "fast", "calibration": calibration, "validation": folder / "validation.npz"}
    return edgeres.build("resnet20", **{**given, **options}, output=folder / output).path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("faults")
    images = render("validation", IMAGES)
    np.savez(folder / "validation.npz", **images)
    np.savez(folder / "calibration.npz", **render("calibration", 48))
    with pytest.MonkeyPatch.context() as patch:
        with_clock(patch, Clock())
        bundle = build(folder, folder / "calibration.npz", "good.edgeres", targets=TARGETS)
        write_json(folder / "baseline.json", accept_baseline(bundle))
        yield Made(folder, bundle, folder / "baseline.json", images)


def verify(
    made: Made, bundle: Path | None = None, validation: Path | None = None, allow: tuple[str, ...] = (), **limits: Any
) -> dict[str, Any]:
    wide = Limits(max_drop=4.0, max_regression=4.0)  # 12 images per class decide nothing narrower
    options = VerifyOptions(GateChoice(replace(wide, **limits), allow=allow, baseline=made.baseline))
    choice = DataChoice(validation=str(validation or made.folder / "validation.npz"))
    return verify_bundle(bundle or made.bundle, choice, options)


def faults(report: dict[str, Any]) -> dict[str, str]:
    """The reasons of failed gates and checks, by metric or check."""
    gates = {v["gate"]["metric"]: v["reason"] for v in report["verdicts"] if v["outcome"] == "failed"}
    return gates | {c["name"]: c["reason"] for c in report["checks"] if c["outcome"] == "failed"}


def spoilt(made: Made, spoil: Callable[[Path], None], name: str = FORMS["cpu"].file) -> Path:
    """A copy of the good bundle with one file changed, and a manifest that matches it."""
    copy = made.folder / f"spoilt-{name}-{spoil.__name__}"
    shutil.copytree(made.bundle, copy, dirs_exist_ok=True)
    spoil(copy / name)
    seal(copy, Bundle(made.bundle).manifest)
    return copy


def test_the_good_bundle_has_no_faults(made: Made) -> None:
    report = verify(made)
    assert faults(report) == {}
    assert report["outcome"] == "passed"
    assert report["baseline"]["same_images"] is True
    assert report["baseline"]["changed"] == []
    # Nothing was asked of corrupted images, and no engine runs here.
    assert {c["name"] for c in report["checks"] if c["outcome"] != "passed"} <= {"corruptions", "engine"}


def test_calibration_in_bgr(made: Made) -> None:
    data = dict(np.load(made.folder / "calibration.npz"))
    np.savez(made.folder / "bgr.npz", images=data["images"][..., ::-1], labels=data["labels"])
    found = faults(verify(made, build(made.folder, made.folder / "bgr.npz", "bgr.edgeres")))
    assert {"calibration", "sqnr_loss_db"} <= set(found)
    assert "look like BGR" in found["calibration"]


@pytest.fixture(scope="module")
def wrong_mean(made: Made) -> Path:
    return build(made.folder, made.folder / "calibration.npz", "mean.edgeres", mean=(0, 0, 0), std=(1, 1, 1))


def test_wrong_mean_and_std(made: Made, wrong_mean: Path) -> None:
    report = verify(made, wrong_mean)
    found = faults(report)
    assert "fp32_regression_pp" in found  # the network itself, not its quantization
    assert "drop_pp" not in found
    assert "with ImageNet's mean and std in place of mean 0 and std 1" in found["preprocessing"]
    changed = {row["what"]: row["after"] for row in report["baseline"]["changed"]}
    assert changed["option input"]["std"] == [1, 1, 1]


def test_wrong_mean_and_std_are_found_without_a_baseline(made: Made, wrong_mean: Path) -> None:
    choice = DataChoice(validation=str(made.folder / "validation.npz"))
    report = verify_bundle(wrong_mean, choice, VerifyOptions(GateChoice(Limits(max_drop=None))))
    assert set(faults(report)) == {"preprocessing"}


def test_mean_and_std_in_units_of_0_to_255_and_scale_1_for_others_are_refused(made: Made) -> None:
    in_bytes = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
    for given, words in ((in_bytes, "add --pixel-scale 1"), ({"pixel_scale": 1.0}, "leave out --pixel-scale")):
        with pytest.raises(UsageError, match=words):
            build(made.folder, made.folder / "calibration.npz", "refused.edgeres", **given)
    assert not (made.folder / "refused.edgeres").exists()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"mean": (0, 0, 0), "std": (1, 1, 1), "pixel_scale": 1.0}, "--pixel-scale 0.00392156863"),
        ({"input_px": (64, 64)}, "--input-px 32"),
    ],
    ids=["scale", "size"],
)
def test_another_scale_or_input_size_is_found_and_named_without_a_baseline(
    made: Made, given: dict[str, Any], named: str
) -> None:
    bundle = build(made.folder, made.folder / "calibration.npz", f"{len(given)}.edgeres", **given)
    report = json.loads((bundle / "report.json").read_text())
    found = faults(report)
    assert named in found["preprocessing"]
    assert report["passed"] is False
    assert ("fp32" in found) is ("mean" in given)  # at 64 pixels it still knows a third of the signs


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"resize_mode": "crop"}, "--resize-mode squash"),
        ({"resize_mode": "letterbox"}, "--resize-mode squash"),
        ({"resize_mode": "crop", "input_px": (64, 64)}, "--input-px 32 --resize-mode squash"),
    ],
    ids=["crop", "letterbox", "crop and size"],
)
def test_another_resize_than_the_squash_of_training_is_found_and_named(
    made: Made, given: dict[str, Any], named: str
) -> None:
    """Of photographs that are twice as wide as high."""
    wide = {
        "images": np.stack(
            [np.asarray(Image.fromarray(image).resize((128, 64), BICUBIC)) for image in made.images["images"]]
        )
    }
    photographs = made.validation("wide", **wide)
    bundle = build(made.folder, photographs, "resized.edgeres", validation=photographs, force=True, **given)
    finding = faults(json.loads((bundle / "report.json").read_text()))["preprocessing"]
    assert f"build again with {named}" in finding


@pytest.mark.parametrize("stored_turned", [True, False], ids=["not turned", "turned"])
def test_photographs_that_are_turned_otherwise_than_in_training_are_found(made: Made, stored_turned: bool) -> None:
    """Either EXIF data are left out though the network saw upright images, or it saw them as they are stored."""
    turned = Image.Exif()
    turned[0x0112] = 6
    folder = made.folder / f"exif{stored_turned}"
    for i, label in enumerate(made.images["labels"].tolist()):
        path = folder / CLASSES[label] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(made.images["images"][i])
        picture = picture.transpose(Image.Transpose.ROTATE_90) if stored_turned else picture
        picture.save(path, exif=turned)
    bundle = build(made.folder, folder, f"exif{stored_turned}.edgeres", validation=folder, exif=not stored_turned)
    report = json.loads((bundle / "report.json").read_text())
    named = "--exif" if stored_turned else "--no-exif"
    assert faults(report)["preprocessing"].endswith(f"build again with {named}")
    assert report["passed"] is False


def test_gray_of_16_bits_with_a_wrong_full_scale(made: Made) -> None:
    """12 bits in files of 16: all white at a full scale of 16, nearly black at 65,535."""
    folder = made.folder / "gray16"
    for i, label in enumerate(made.images["labels"].tolist()):
        path = folder / CLASSES[label] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        gray = np.asarray(Image.fromarray(made.images["images"][i]).convert("L"), np.uint16)
        Image.fromarray(16 * gray).save(path)
    given: dict[str, Any] = {"validation": folder, "targets": "cpu", "effort": "fast"}
    for full_scale, fails in ((16, True), (65535, True), (4095, False)):
        bundle = build(made.folder, folder, f"{full_scale}.edgeres", **given, full_scale=full_scale)
        found = faults(json.loads((bundle / "report.json").read_text()))
        assert ("fp32" in found) is fails
        assert fails or "preprocessing" not in found


def test_a_stray_folder_beside_loose_images(made: Made) -> None:
    """The images are used, and the one picture in the folder is told; for validation they have no labels."""
    folder = made.folder / "loose"
    (folder / "plots").mkdir(parents=True)
    Image.new("RGB", (30, 20), "white").save(folder / "plots" / "histogram.png")
    for i in range(48):
        Image.fromarray(made.images["images"][i]).save(folder / f"{i}.png")
    report = json.loads((build(made.folder, folder, "stray.edgeres") / "report.json").read_text())
    assert report["data"]["calibration"]["images"] == 48
    assert "left out: 1 in sub-folders (plots/histogram.png)" in report["data"]["calibration"]["notes"][0]
    with pytest.raises(SourceError, match="the folders are no classes, and validation needs labels"):
        verify(made, validation=folder)


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), (IMAGENET_MEAN, (1.0, 1.0, 1.0))],
    ids=["none", "std"],
)
def test_calibration_alone_with_wrong_mean_and_std(made: Made, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Images whose bytes, with the right normalization, equal others with the wrong one."""
    data = dict(np.load(made.folder / "calibration.npz"))
    right_mean, right_std = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
    as_wrong = (data["images"] / 255 - np.array(mean)) / np.array(std)
    bytes_ = np.rint(255 * (right_mean + right_std * as_wrong)).clip(0, 255).astype(np.uint8)
    np.savez(made.folder / "grey.npz", images=bytes_, labels=data["labels"])
    found = faults(verify(made, build(made.folder, made.folder / "grey.npz", f"grey{std[0]}{mean[0]}.edgeres")))
    assert "mean, std or pixel scale differ" in found["preprocessing"]


def test_one_scale_for_all_channels_of_a_weight(made: Made) -> None:
    def per_tensor(path: Path) -> None:
        model = onnx.load(path)
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "DequantizeLinear" and node.input[0] in constants:
                codes, scale, _ = (numpy_helper.to_array(constants[name]) for name in node.input)
                if codes.ndim < 2 or not scale.ndim:
                    continue
                axis = next(attribute.i for attribute in node.attribute if attribute.name == "axis")
                values = codes * scale.reshape([-1 if i == axis else 1 for i in range(codes.ndim)])
                one = np.full_like(scale, np.abs(values).max() / 127)
                new = np.clip(np.rint(values / one[0]), -127, 127).astype(np.int8)
                for name, array in zip(node.input, (new, one), strict=False):
                    constants[name].CopyFrom(numpy_helper.from_array(array, name))
        onnx.save(model, path)

    found = faults(verify(made, spoilt(made, per_tensor, FORMS["tensorrt"].file)))
    assert "layers of the tensorrt graph have one weight scale for all channels" in found["weights"]


def test_one_scale_ten_times_too_small(made: Made) -> None:
    def shrink(path: Path) -> None:
        model = onnx.load(path)
        node = [node for node in model.graph.node if node.op_type == "QuantizeLinear"][9]
        for tensor in model.graph.initializer:
            if tensor.name == node.input[1]:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) / np.float32(10), tensor.name))
        helper.set_model_props(model, {"planted": node.input[0]})
        onnx.save(model, path)

    bundle = spoilt(made, shrink)
    planted = next(entry.value for entry in onnx.load(bundle / FORMS["cpu"].file).metadata_props)
    found = faults(verify(made, bundle))
    assert f"the scale of {planted} in the cpu graph does not fit" in found["ranges"]
    assert "sqnr_loss_db" in found


@pytest.mark.parametrize("where", ["data", "bundle"])
def test_swapped_labels(made: Made, where: str) -> None:
    a, b = CLASSES.index("stop"), CLASSES.index("give_way")
    if where == "data":
        labels = made.images["labels"].copy()
        labels[made.images["labels"] == a], labels[made.images["labels"] == b] = b, a
        report = verify(made, validation=made.validation("swapped", labels=labels))
    else:
        copy = made.folder / "swapped.edgeres"
        shutil.copytree(made.bundle, copy)
        manifest = Bundle(copy).manifest
        names = list(CLASSES)
        names[a], names[b] = names[b], names[a]
        seal(copy, replace(manifest, model=replace(manifest.model, labels=tuple(names))))
        folders = made.folder / "folders"  # one folder per class, so that images have class names
        pictures(made, folders)
        report = verify(made, copy, validation=folders)
    found = faults(report)
    assert "stop" in found["labels"]
    assert "give_way" in found["labels"]
    assert "class_regression_pp" in found


def pictures(made: Made, folder: Path) -> None:
    from PIL import Image

    for i, label in enumerate(made.images["labels"].tolist()):
        path = folder / CLASSES[label] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(made.images["images"][i]).save(path)


def test_an_engine_older_than_its_graph(made: Made) -> None:
    """The graph was replaced after the engine was built, and ``edgeres engine`` was not run."""
    old = made.folder / "engine.edgeres"
    shutil.copytree(made.bundle, old)
    record = EngineRecord("rtx", "rtx", "1.7", "int8", "built, not run here", "engines/rtx.engine", 9)
    write_file(old / "engines" / "rtx.engine", b"an engine")
    report = json.loads((old / "report.json").read_text())
    report["files"]["engines/rtx.engine"] = Bundle(made.bundle).manifest.files[FP32]  # any digest but its own
    seal(old, replace(Bundle(made.bundle).manifest, engines=(record,)))
    assert "engines" not in faults(verify(made, old))
    report["files"]["engines/rtx.engine"] = Bundle(old).manifest.files["engines/rtx.engine"]
    write_json(old / "report.json", report)
    model = onnx.load(old / FORMS["tensorrt"].file)
    model.doc_string = "another graph"
    onnx.save(model, old / FORMS["tensorrt"].file)
    seal(old, replace(Bundle(made.bundle).manifest, engines=(record,)))
    assert "engines/rtx.engine is out of date" in faults(verify(made, old))["engines"]


def test_the_images_of_one_class_are_gone(made: Made) -> None:
    kept = made.images["labels"] != CLASSES.index("stop")
    fewer = made.validation("fewer", images=made.images["images"][kept], labels=made.images["labels"][kept])
    report = verify(made, validation=fewer)
    assert faults(report) == {"classes": "no validation images of stop (12 in the baseline)"}


@pytest.mark.parametrize(("slower", "caught"), [(1.03, False), (1.30, True)])
def test_slower_int8(made: Made, monkeypatch: pytest.MonkeyPatch, slower: float, caught: bool) -> None:
    with_clock(monkeypatch, Clock(5.0 * slower))
    report = verify(made)
    assert set(faults(report)) == ({"slowdown_percent"} if caught else set())
    assert report["passed"] is not caught


def test_an_allowed_fault_is_reported_and_does_not_fail_the_run(made: Made) -> None:
    kept = made.images["labels"] != CLASSES.index("stop")
    fewer = made.validation("fewer", images=made.images["images"][kept], labels=made.images["labels"][kept])
    report = verify(made, validation=fewer, allow=("classes",))
    assert "classes" in faults(report)
    assert report["passed"] is True
