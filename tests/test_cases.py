"""Networks of others, as their complaints describe them: quantized at the default effort, or refused in one line.

The generators lie beside the repository; without them every test here is skipped. The networks have batch norm
statistics and a classifier fitted to CIFAR-10, so that an SQNR means something. SQNRs are of the scores on 256 test
images, by ONNX Runtime on the canonical graph:

    pooled    noise of all images together, over their signal: what a report shows; a few images may decide it
    typical   geometric mean over images, which repeats to some tenths of a decibel
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import runpy
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
import pytest

from edgeres.data.choose import DataChoice, choose_calibration
from edgeres.data.loader import Loader
from edgeres.data.preprocess import apply
from edgeres.device.libraries import available
from edgeres.engine.builder import BuildRequest, build_engine
from edgeres.errors import EdgeresError
from edgeres.graph.forms import FORMS
from edgeres.pipeline.build import build
from edgeres.pipeline.network import quantize_network, take_network
from edgeres.pipeline.options import RangeOptions
from edgeres.pipeline.take import ModelChoice
from edgeres.progress import Silent
from edgeres.quantize.trial import Probes, probe_images, try_forms
from edgeres.records import F32
from edgeres.refine.choice import RefineChoice
from edgeres.verify import measure

SHARED = Path(__file__).parents[2] / "shared"
SCRIPTS = {path.stem: path for path in sorted((SHARED / "cases" / "onnx").glob("[0-9]*.py"))}
# Those of others that write a graph into the current folder, by its name.
FOREIGN = {"shuffle": "channel_shuffle_crash", "reshape_nhwc": "reshape_nhwc_crash", "same_pad": "scalar_gather_crash"}
if SCRIPTS:
    SCRIPTS |= {name: SHARED / "cases" / "foreign" / f"{script}.py" for name, script in FOREIGN.items()}
# Words of the one line that refuses a network, and whether it may be taken instead.
REFUSED = {
    "20_topk_outputs": "TopK",
    "21_train_mode": r"model\.eval\(\)",
    "27_dynamic_conv": "other images of its batch",
}
TAKEN = [name for name in SCRIPTS if name not in {"21_train_mode", "27_dynamic_conv"}]
CALIBRATION, VALIDATION = (str(SHARED / "data" / f"cifar10_{part}.npz") for part in ("train4000", "test1000"))

pytestmark = [
    pytest.mark.xdist_group("cases"),  # each network is generated and quantized once
    pytest.mark.skipif(not SCRIPTS, reason="needs ../shared/cases, the generators of other people's networks"),
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="the generators need torch"),
]
needs_rtx = pytest.mark.skipif(not available("rtx").importable, reason="TensorRT-RTX is not installed")


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@dataclass(frozen=True)
class Result:
    """What became of a network; ``refused`` is the line that says why nothing did.

    ``typical`` and ``pooled`` are SQNRs in dB by form; ``optimized`` is the typical one of the graph for TensorRT under
    ONNX Runtime's default optimizations.
    """

    graphs: Mapping[str, bytes] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    typical: Mapping[str, float] = field(default_factory=dict)
    pooled: Mapping[str, float] = field(default_factory=dict)
    optimized: float = 0.0
    classes: int = 0
    said: tuple[str, ...] = ()
    refused: str = ""


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the generators write."""
    made = tmp_path_factory.mktemp("cases")
    graph.cache_clear()
    result.cache_clear()
    _Place.folder = made
    yield made


class _Place:
    folder: Path


@cache
def graph(name: str) -> Path:
    """The network's ONNX file."""
    out, script, back, given = _Place.folder / f"{name}.onnx", SCRIPTS[name], Path.cwd(), sys.argv
    os.chdir(_Place.folder)
    sys.argv = [str(script), str(out)]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            runpy.run_path(str(script), run_name="__main__")
    finally:
        os.chdir(back)
        sys.argv = given
    return out


@cache
def result(name: str, effort: Literal["fast", "balanced"]) -> Result:
    """The steps of ``edgeres quantize``, for all forms at once; errors that end in exit code 2 or 3 count."""
    heard, data, refine = Heard(), DataChoice(CALIBRATION, None, 64), RefineChoice(effort)
    try:
        network = take_network(ModelChoice(graph(name)), data, RangeOptions(), refine, "normalized", heard)
        fp32 = network.fp32
        loader = Loader(choose_calibration(data, fp32.spec), fp32.spec.preprocess, 32)
        quantized = quantize_network(network, ["tensorrt", "cpu"], loader, heard).quantized
        probes = Probes.of(fp32.graph, probe_images(loader))
        tried = try_forms(quantized, [form.runtime for form in FORMS.values()], probes, heard)
    except EdgeresError as error:
        assert error.exit_code in {2, 3} and "\n" not in str(error)
        return Result(refused=str(error))
    pixels = np.load(VALIDATION)["images"][:256]
    x = np.stack([apply(image, fp32.spec.preprocess) for image in pixels])
    exact = scores(fp32.graph.SerializeToString(), x)
    files = {form: made.SerializeToString() for form, made in tried.graphs.items()}
    found = {form: scores(content, x, integer=FORMS[form].integer) for form, content in files.items()}
    optimized = scores(files["tensorrt"], x, integer=True) if "tensorrt" in files else exact
    return Result(
        files,
        tried.left_out,
        {form: typical(one, exact) for form, one in found.items()},
        {form: pooled(one, exact) for form, one in found.items()},
        typical(optimized, exact),
        fp32.spec.num_classes,
        (*fp32.notes, *heard.lines),
    )


def scores(content: bytes, x: F32, *, integer: bool = False) -> F32:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not integer:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def pooled(found: F32, exact: F32) -> float:
    return float(-10 * np.log10(np.sum((found - exact) ** 2) / np.sum(exact**2)))


def typical(found: F32, exact: F32) -> float:
    shares = np.sum((found - exact) ** 2, axis=1) / np.sum(exact**2, axis=1)
    return float(-10 * np.mean(np.log10(np.maximum(shares, 1e-12))))


# ---- every network ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_network_is_quantized_for_every_runtime_or_refused_in_one_line(name: str) -> None:
    done = result(name, "balanced")
    if done.refused:
        assert name in REFUSED and re.search(REFUSED[name], done.refused)
        return
    assert name in TAKEN
    assert done.graphs.keys() == FORMS.keys() and not done.left_out
    assert all(db > 20 for db in done.typical.values())  # measured: 28 and more


@pytest.mark.parametrize("name", TAKEN)
def test_refinement_does_not_make_a_network_worse(name: str) -> None:
    """Balanced holds 16 of the 64 images back: its ranges know fewer images than fast's, which costs some tenths."""
    fast, balanced = result(name, "fast"), result(name, "balanced")
    for form in balanced.graphs:
        assert balanced.typical[form] >= fast.typical[form] - 0.5


@pytest.mark.parametrize("name", TAKEN)
def test_refinement_does_not_add_error_on_few_images(name: str) -> None:
    fast, balanced = result(name, "fast"), result(name, "balanced")
    for form in balanced.graphs:
        assert balanced.pooled[form] >= fast.pooled[form] - 1.5  # a few images that saturate decide it


@pytest.mark.parametrize("name", TAKEN)
def test_the_form_for_rtx_has_the_accuracy_of_the_graph_that_it_is_made_from(name: str) -> None:
    done = result(name, "balanced")
    if done.graphs:
        assert done.pooled["rtx"] >= done.pooled["tensorrt"] - 1.5


@pytest.mark.parametrize("name", TAKEN)
def test_the_graph_for_tensorrt_is_as_good_under_the_default_optimizations_of_onnx_runtime(name: str) -> None:
    done = result(name, "fast")
    if done.graphs:
        assert done.optimized >= done.typical["tensorrt"] - 3


# ---- single ones -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_slimmed_channels_cost_nothing(effort: Any) -> None:
    slimmed, control = result("04_slimmed_channels", effort), result("04c_control", effort)
    for form in FORMS:
        assert slimmed.typical[form] >= control.typical[form] - 1


def test_a_topk_at_the_end_is_stripped_or_refused_with_a_word() -> None:
    done = result("20_topk_outputs", "balanced")
    assert done.refused or (done.classes == 10 and any("TopK" in line for line in done.said))
    assert "TopK" in done.refused or not done.refused


@needs_rtx
@pytest.mark.parametrize("name", ["16_hrnet_fuse", "29_mask_activation"])
def test_tensorrt_rtx_builds_from_the_form_that_is_made_for_it(name: str) -> None:
    assert build_engine(result(name, "fast").graphs["rtx"], BuildRequest("int8"), "rtx").data


@pytest.mark.parametrize("name", ["22_resnet_d_blurpool", "05b_zero_branch"])
def test_no_check_fails_on_a_network_without_that_fault(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "LatencyPlan", partial(measure.LatencyPlan, warmup_seconds=0.0, min_seconds=0.01))
    images = {"calibration": CALIBRATION, "calibration_size": 48, "validation": VALIDATION, "validation_size": 200}
    report = build(
        graph(name), **images, effort="fast", targets=("cpu", "tensorrt"), output=tmp_path / "b.edgeres"
    ).report
    assert {check["name"]: check["reason"] for check in report["checks"] if check["outcome"] == "failed"} == {}
