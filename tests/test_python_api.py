"""The functions of ``edgeres`` that stand for commands, and how their results show themselves."""

from __future__ import annotations

import html
import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from bundles import write_images
from engine_graphs import resnet

import edgeres
from edgeres.data.corruptions import CORRUPTIONS
from edgeres.errors import UsageError
from edgeres.pipeline.input_choice import FitChoice, InputChoice
from edgeres.pipeline.keywords import BuildKeywords, GateKeywords, ImageKeywords, QuantizeKeywords, VerifyKeywords
from edgeres.pipeline.options import BuildOptions
from edgeres.pipeline.python import keywords_of
from edgeres.task.keywords import TaskKeywords

pytestmark = pytest.mark.xdist_group("python_api")  # its bundle is built once


def _names(record: Any) -> set[str]:
    """The fields of a record and of the records in it, from their types."""
    found: set[str] = set()
    for one in fields(record):
        kind = get_type_hints(record)[one.name]
        found |= _names(kind) if is_dataclass(kind) and kind.__name__ != "ConfigFile" else {one.name}
    return found


def test_editors_complete_exactly_the_options_that_a_build_takes() -> None:
    taken = (_names(BuildOptions) | _names(InputChoice) | _names(FitChoice)) - {"model", "config"}
    assert keywords_of(BuildKeywords) - {"gates"} - keywords_of(TaskKeywords) == taken
    assert keywords_of(VerifyKeywords) == keywords_of(ImageKeywords) | keywords_of(GateKeywords)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    (folder / "tiny.onnx").write_bytes(resnet(quantized=False, width=4, px=16).SerializeToString())
    write_images(folder / "images.npz", 20, 16, 10)
    result = edgeres.build(
        folder / "tiny.onnx",
        calibration=folder / "images.npz",
        validation=folder / "images.npz",
        effort="fast",
        targets="cpu",
        max_drop=100.0,
        allow=("fp32",),
        corruptions=True,
        output=folder / "tiny.edgeres",
    )
    text, page = repr(result), result._repr_html_()
    assert len(text.splitlines()) < 24
    assert text.splitlines()[-1] == f"bundle: {folder / 'tiny.edgeres'}"
    assert "top-1: FP32" in text and "agreement: " in text
    assert page.startswith("<iframe") and "<title>" in html.unescape(page)
    return folder


def test_a_build_measures_corrupted_images_where_it_is_asked(bundle: Path) -> None:
    report = json.loads((bundle / "tiny.edgeres" / "report.json").read_text())
    assert report["options"]["corruptions"] is True
    measured = [(row["kind"], row["strength"], row["images"]) for row in report["corruptions"]]
    assert measured == [("none", 0, 20), *((one.kind, one.strength, 20) for one in CORRUPTIONS)]
    (check,) = (check for check in report["checks"] if check["name"] == "corruptions")
    assert check["outcome"] in ("passed", "unsure")
    assert "was not given" not in check["reason"]


def test_a_bundle_is_verified_compared_and_timed_from_python(bundle: Path) -> None:
    made = bundle / "tiny.edgeres"
    given: dict[str, Any] = {"validation": bundle / "images.npz", "max_drop": 100.0, "allow": ("fp32",)}
    result = edgeres.verify_bundle(made, **given)
    assert result.passed is True
    assert result.report["accuracy"]["fp32"]["total"] == 20
    assert edgeres.verify_bundle(made, **given, min_agreement=100.0, max_size_mb=1e-6).passed is False
    (pair,) = edgeres.compare_bundles(made, made)  # reads the report with its corruptions
    assert pair["schema"] == 1
    with pytest.raises(UsageError, match="is the only build"):
        edgeres.compare_bundles(made)
    timed = edgeres.bench_bundle(made, seconds=0.05)
    assert set(timed["precisions"]) >= {"fp32", "int8"}


def test_a_model_is_quantized_from_python(bundle: Path) -> None:
    import onnxruntime as ort

    done = edgeres.quantize_model(
        bundle / "tiny.onnx",
        calibration=bundle / "images.npz",
        effort="fast",
        target="cpu",
        output=bundle / "int8.onnx",
    )
    assert (bundle / "int8.onnx").read_bytes() == done.model
    session = ort.InferenceSession(done.model, providers=["CPUExecutionProvider"])
    one = session.get_inputs()[0]
    found = session.run(None, {one.name: np.zeros((1, 3, 16, 16), np.float32)})[0]
    assert found.shape == (1, 10)


def test_an_option_of_another_step_is_refused(bundle: Path) -> None:
    wrong: dict[str, Any] = {"method": "mse"}
    with pytest.raises(UsageError, match="verify_bundle: no such option: method"):
        edgeres.verify_bundle(bundle / "tiny.edgeres", **wrong)
    wrong = {"max_drop": 1.0}
    with pytest.raises(UsageError, match="quantize_model: no such option: max_drop"):
        edgeres.quantize_model(bundle / "tiny.onnx", **wrong)
    assert "max_drop" not in keywords_of(QuantizeKeywords)


def test_load_takes_a_backend(bundle: Path) -> None:
    with edgeres.load(bundle / "tiny.edgeres", backend="cpu") as classify:
        assert "ONNX Runtime" in classify.backend
    wrong: Any = "gpu"
    with pytest.raises(UsageError, match="no backend is named 'gpu'"):
        edgeres.load(bundle / "tiny.edgeres", backend=wrong)
