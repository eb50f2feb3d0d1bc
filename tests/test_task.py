"""Tasks beside classification: truth, figures, gates, checks, report and predictor. A new one is one module."""

from __future__ import annotations

import ast
import json
import re
import runpy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from engine_graphs import resnet
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import edgeres
from edgeres.cli import cli
from edgeres.data.choose import DataChoice
from edgeres.data.masks import with_masks
from edgeres.data.preprocess import normalize as normalized
from edgeres.data.sources import open_source
from edgeres.data.values import from_jetracer_names, with_values
from edgeres.errors import BundleError, EdgeresError, InputError, SourceError, UsageError
from edgeres.graph.normalize import normalize
from edgeres.judge.asked import GateChoice
from edgeres.judge.checks import Evidence
from edgeres.judge.document import Section
from edgeres.judge.gates import Limits, judge_gates
from edgeres.pipeline.deploy import deploy
from edgeres.pipeline.tasks import task_notes
from edgeres.pipeline.verify import accept_baseline
from edgeres.progress import SILENT
from edgeres.records import Fit, ModelSpec, Preprocess
from edgeres.report.html import render_html
from edgeres.report.junit import render_junit
from edgeres.report.markdown import render_markdown
from edgeres.reports import SCHEMAS, read_report
from edgeres.runtime import Classifier, Predictor
from edgeres.runtime.rows import rows, weights, width
from edgeres.runtime.runner import Backend, Feed
from edgeres.task import TASKS, embedding, regression, segmentation
from edgeres.task.keywords import TaskKeywords
from edgeres.task.part import part_of
from edgeres.task.record import Clues, Task
from edgeres.task.regression import Answered, Regressor, Values
from edgeres.verify.statistics import ratios_of_means

pytestmark = pytest.mark.xdist_group("task")  # its bundle is built once
EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "train_tasks.py"
PX, VALUES, IMAGES = 16, 3, 40
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def network(values: int = VALUES) -> onnx.ModelProto:
    """A residual network of three values: the first of ten outputs, spread out as values of images are."""
    model = resnet(quantized=False, width=4, px=PX)
    matrix = np.zeros((10, values), np.float32)
    matrix[range(values), range(values)] = 1 + np.arange(values)
    model.graph.initializer.append(numpy_helper.from_array(matrix, "chosen"))
    last = model.graph.output[0].name
    model.graph.node.append(helper.make_node("MatMul", [last, "chosen"], ["values"], name="choose"))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("values", TensorProto.FLOAT, ["n", values]))
    return model


@dataclass(frozen=True)
class Shop:
    """A network with its images, the values that FP32 gives for them, and a bundle."""

    folder: Path
    model: Path
    said: np.ndarray[Any, Any]
    truth: np.ndarray[Any, Any]
    result: Any

    @property
    def bundle(self) -> Path:
        return self.folder / "values.edgeres"


def write_table(path: Path, truth: np.ndarray[Any, Any], names: str = "a,b,c") -> Path:
    rows = [f"{index:03d}.png,{','.join(f'{one:.6f}' for one in row)}" for index, row in enumerate(truth)]
    path.write_text("\n".join([f"image,{names}", *rows]))
    return path


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("task")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    shades = rng.uniform(30, 220, (IMAGES, 1, 1, 3))
    images = np.clip(shades + rng.normal(0, 30, (IMAGES, PX, PX, 3)), 0, 255).astype(np.uint8)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / "images" / f"{index:03d}.png")
    model = folder / "values.onnx"
    model.write_bytes(network().SerializeToString())
    session = ort.InferenceSession(str(model))
    inputs = ((images / 255 - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32)
    said = session.run(None, {session.get_inputs()[0].name: inputs})[0]
    truth = said + rng.normal(0, 0.2, said.shape) * said.std(axis=0)
    table = write_table(folder / "truth.csv", truth)
    result = edgeres.build(
        model,
        calibration=folder / "images",
        validation=folder / "images",
        validation_labels=table,
        targets="cpu",
        effort="fast",
        max_mae_increase=100.0,
        output=folder / "values.edgeres",
    )
    return Shop(folder, model, said, truth, result)


def test_figures_are_those_of_the_float_graph_and_the_table(shop: Shop) -> None:
    task = shop.result.report["task"]
    found = task["figures"]["fp32"]["values"]
    errors = np.abs(shop.said - shop.truth)
    assert [found[name]["mae"] for name in "abc"] == pytest.approx(errors.mean(axis=0), rel=1e-3)
    assert [found[name]["rmse"] for name in "abc"] == pytest.approx((errors**2).mean(axis=0) ** 0.5, rel=1e-3)
    r2 = 1 - (errors**2).mean(axis=0) / shop.truth.var(axis=0)
    assert [found[name]["r2"] for name in "abc"] == pytest.approx(r2, rel=1e-3)
    (graph,) = task["figures"].keys() - {"fp32"}
    with edgeres.load(shop.bundle) as predict:
        answers = predict.batch(sorted((shop.folder / "images").iterdir()))
    int8 = np.stack([answer.values for answer in answers])
    rise = np.abs(int8 - shop.truth).mean(axis=0) / errors.mean(axis=0) - 1
    rises = [row["mae_increase_percent"] for row in task["gated"].values()]
    assert rises == pytest.approx(100 * rise, abs=0.02)
    assert task["graph"] == graph


def test_the_task_is_recognised_and_its_bundle_says_so(shop: Shop) -> None:
    manifest = json.loads((shop.bundle / "manifest.json").read_text())
    assert manifest["model"]["heads"] == [{"output": "values", "task": "regression"}]
    assert manifest["model"]["labels"] == ["a", "b", "c"]
    assert (shop.bundle / "labels.txt").read_text() == "a\nb\nc\n"
    assert shop.result.passed
    assert [check["outcome"] for check in shop.result.report["checks"] if check["name"] in ("fp32", "labels")] == [
        "passed",
        "passed",
    ]


def test_the_report_keeps_the_schema_and_is_shown_everywhere(shop: Shop, tmp_path: Path) -> None:
    report = read_report(shop.bundle / "report.json")
    schema = json.loads((SCHEMAS / "schema.json").read_text())
    jsonschema.validate(report, schema, jsonschema.Draft202012Validator)
    page = render_html(report)
    assert page.count("predicted against true") >= 3
    assert "Images that INT8 moves furthest" in page and "MAE of a" in page and "Top-1" not in page
    assert "MAE a" in render_markdown(report)
    assert 'name="MAE increase"' in render_junit(report)
    assert "MAE of a FP32" in repr(shop.result)


def test_a_program_gets_values(shop: Shop) -> None:
    with edgeres.load(shop.bundle) as predict:
        answer = predict(shop.folder / "images" / "000.png")
        assert isinstance(answer, Values) and isinstance(predict, Regressor)
        assert answer.values == pytest.approx(shop.said[0], abs=0.2 * float(np.abs(shop.said).max()))
        assert answer["b"] == float(answer.values[1])
    with pytest.raises(
        BundleError, match=r"its task is regression, not classification; edgeres.load and edgeres predict take it"
    ):
        Classifier(shop.bundle)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_predict_prints_values(shop: Shop) -> None:
    image = shop.folder / "images" / "001.png"
    shown = run("predict", shop.bundle, image)
    assert [line.split()[0] for line in shown.output.splitlines()[1:4]] == ["a", "b", "c"]
    (row,) = json.loads(run("predict", shop.bundle, image, "--json").output)
    assert set(row["values"]) == {"a", "b", "c"}
    refused = run("predict", shop.bundle, image, "--top", "3")
    assert str(refused.exception) == "--top: needs scores of classes, and the task is regression; leave it out"


def verified(shop: Shop, table: Path | None, **options: Any) -> dict[str, Any]:
    labels = {} if table is None else {"validation_labels": table}
    report: dict[str, Any] = edgeres.verify_bundle(
        shop.bundle, validation=shop.folder / "images", **labels, **options
    ).report
    return report


def found(truth: np.ndarray[Any, Any], said: np.ndarray[Any, Any], name: str) -> tuple[str, str]:
    names = tuple(f"image {index}" for index in range(len(said)))
    answers = Answered(("a", "b", "c"), names, truth, {"fp32": said}, {"fp32": "somewhere"})
    made = regression.checks_of(answers)[name][1](Evidence(()))
    return made[0], made[1]


def test_values_in_other_units_are_named(shop: Shop) -> None:
    assert found(shop.truth, shop.said, "labels")[0] == "passed"
    outcome, reason = found(112 * shop.truth + 112, shop.said, "labels")
    assert outcome == "failed"
    assert re.match(r"a looks to be in other units than the output: true a is about 1\d\d x output \+1\d\d", reason)


def test_exchanged_columns_are_named(shop: Shop) -> None:
    assert found(shop.truth[:, [1, 2, 0]], shop.said, "labels") == (
        "failed",
        "columns look exchanged: outputs follow c, a, b, and they are given as a, b, c",
    )


def test_values_of_other_images_are_told(shop: Shop) -> None:
    assert found(shop.truth, shop.said, "fp32")[0] == "passed"
    other = np.random.default_rng(5).normal(size=shop.truth.shape)
    outcome, reason = found(other, shop.said, "fp32")
    assert outcome == "failed" and "no more than chance" in reason
    assert found(other, 0 * shop.said + 3, "fp32")[0] == "failed"
    assert found(shop.truth[:5], shop.said[:5], "fp32") == ("unsure", "5 images are too few to tell")


def test_without_values_int8_is_compared_with_fp32_alone(shop: Shop) -> None:
    report = verified(shop, None)
    assert report["verdicts"] == [] and report["passed"]
    assert report["reasons"]["task"].startswith("the validation images have no values")
    assert report["task"]["figures"]["fp32"]["values"]["a"]["mae"] is None
    gates = GateChoice(task_limits={"max_mae_increase": 2.0})
    section = Section({}, {"": "the validation images have no values"})
    (gate,) = part_of(gates, section, {}, regression.TASK.gates, truth=False).gates
    figures = {"task": {"gated": {}}, "reasons": {"task": "there are no values"}}
    (verdict,) = judge_gates([gate], figures, {gate.metric: regression.MAE_INCREASE.metric})
    assert (verdict.outcome, verdict.reason) == ("failed", "not measured: there are no values")


def test_what_a_task_has_not_is_refused_or_told(shop: Shop, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="builds of regression are not compared with a baseline yet"):
        [*task_notes(TASKS["regression"], GateChoice(baseline=tmp_path / "b.json"))]
    limits = GateChoice(Limits(max_drop=0.5), task_limits={"max_mae_increase": 1.0})
    assert [*task_notes(TASKS["regression"], limits)] == ["--max-drop is no gate of regression, but of classification"]
    assert [*task_notes(TASKS["classification"], limits)] == [
        "--max-mae-increase is no gate of classification, but of regression"
    ]
    with pytest.raises(UsageError, match=r"there is no task 'regresion'; did you mean regression\?"):
        edgeres.build(shop.model, task="regresion")
    with pytest.raises(UsageError, match="--corruptions: is for classification alone, and the task is regression"):
        verified(shop, shop.folder / "truth.csv", corruptions=True)


def test_builds_of_other_tasks_are_not_compared_in_silence(shop: Shop) -> None:
    why = "is a build of regression, and only builds of classification are compared yet"
    for step in (lambda: edgeres.compare_bundles(shop.bundle, shop.bundle), lambda: accept_baseline(shop.bundle)):
        with pytest.raises(InputError, match=why):
            step()


def test_one_value_is_a_regression_but_no_score() -> None:
    assert normalize(network(1), outputs="values").num_classes == 1
    with pytest.raises(EdgeresError, match="answers other than scores of classes need --task"):
        normalize(network(1))


def images_at(folder: Path, names: list[str], size: tuple[int, int] = (40, 20)) -> Path:
    folder.mkdir()
    for name in names:
        Image.new("RGB", size, (90, 90, 90)).save(folder / name)
    return folder


def opened(folder: Path) -> Any:
    return open_source(folder, role="validation", px=8, labelled=True)


def test_columns_go_to_outputs_by_name_and_else_by_order(tmp_path: Path) -> None:
    source = opened(images_at(tmp_path / "i", ["1.png", "2.png"]))
    table = tmp_path / "t.csv"
    table.write_text("file,split,throttle,angle\n2.png,a,0.5,-1\n1.png,b,0.25,3e-1\n")
    named = with_values(source, table, ("angle", "throttle"))
    assert named.values.tolist() == [[0.3, 0.25], [-1.0, 0.5]]
    generic = with_values(source, table, ("value 0", "value 1"))
    assert generic.values.tolist() == [[0.25, 0.3], [0.5, -1.0]]
    assert generic.classes == ("throttle", "angle")
    with pytest.raises(SourceError, match="has the columns throttle, angle, and the outputs are x, y"):
        with_values(source, table, ("x", "y"))
    with pytest.raises(SourceError, match="the network has 4 outputs"):
        with_values(source, table, tuple("abcd"))
    assert named.at(np.array([1])).values.tolist() == [[-1.0, 0.5]]
    assert named.digest() != generic.digest()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("image,y\n1.png,1.5\n2.png,much\n", "line 3 has 'much', which is no number"),
        ("image,y\n1.png,1.5\n2.png,nan\n", "line 3 has 'nan', which is no number"),
        ("image,y\n1.png,1.5\n1.png,2.5\n", "1.png has other values in line 3"),
        ("image,y\na.png,1.5\nb.png,2.5\n", "names none of the images"),
        ("", "it is empty"),
    ],
)
def test_damaged_tables_are_refused_in_one_line(tmp_path: Path, text: str, why: str) -> None:
    source = opened(images_at(tmp_path / "i", ["1.png", "2.png"]))
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises((SourceError, InputError), match=why):
        with_values(source, tmp_path / "t.csv", ("y",))


def test_names_of_jetracer_are_points_of_the_image(tmp_path: Path) -> None:
    source = opened(images_at(tmp_path / "i", ["xy_000_020_ab-1.png", "xy_030_005_cd.png"]))
    valued = from_jetracer_names(source, ("value 0", "value 1"))
    assert valued.values.tolist() == [[-1.0, 1.0], [0.5, -0.5]]
    assert valued.classes == ("x", "y")
    assert regression.TASK.recognises(Clues(str(tmp_path / "i")))
    outside = opened(images_at(tmp_path / "j", ["xy_050_005_cd.png"]))
    with pytest.raises(SourceError, match=r"the name says 50, 5, and the image has 40x20 pixels"):
        from_jetracer_names(outside, ("x", "y"))


def test_values_in_an_npz(shop: Shop, tmp_path: Path) -> None:
    images = np.zeros((4, PX, PX, 3), np.uint8)
    for values, why in ((np.zeros((4, 2)), "for 4 images and 3 outputs"), (np.full((4, 3), np.inf), "not finite")):
        np.savez(tmp_path / "v.npz", images=images, values=values)
        with pytest.raises(SourceError, match=why):
            edgeres.verify_bundle(shop.bundle, validation=tmp_path / "v.npz")


def test_intervals_are_those_of_resampled_images() -> None:
    rng = np.random.default_rng(0)
    below = rng.gamma(2, size=(60, 1))
    above = below * rng.uniform(0.9, 1.3, (60, 1))
    (found,) = ratios_of_means(above, below, resamples=4000)
    draws = [rng.integers(0, 60, 60) for _ in range(4000)]
    ratios = [above[rows].mean() / below[rows].mean() for rows in draws]
    assert found is not None and found.value == pytest.approx(above.mean() / below.mean())
    assert [found.low, found.high] == pytest.approx(np.quantile(ratios, [0.025, 0.975]), abs=0.003)
    assert ratios_of_means(above, 0 * below) == [None]


class Sum(Predictor[float]):
    """The sum of the values."""

    task = "sum"

    def answers(self, outputs: Feed, runner: Backend) -> list[float]:
        return outputs[runner.output_name].sum(axis=1).tolist()


def test_recall_and_accepted_pairs_are_those_of_a_search_one_by_one() -> None:
    rng = np.random.default_rng(3)
    identities = np.arange(60) % 6
    rows = rng.normal(size=(60, 8)) + 2 * rng.normal(size=(6, 8))[identities]
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    found = embedding.retrieval(rows, identities)
    impostors, hits = [], {1: 0, 5: 0}
    for i in range(60):
        others = [(float(rows[i] @ rows[j]), identities[j] == identities[i]) for j in range(60) if j != i]
        for rank in hits:
            hits[rank] += any(same for _, same in sorted(others, reverse=True)[:rank])
        impostors += [cosine for cosine, same in others if not same]
    assert {rank: int(one.sum()) for rank, one in found.found.items()} == hits
    limit = np.quantile(impostors, 0.99, method="higher")
    accepted = sum(
        float(rows[i] @ rows[j]) > limit and identities[i] == identities[j]
        for i in range(60)
        for j in range(60)
        if i != j
    )
    assert int(found.accepted[:, 0].sum()) == pytest.approx(accepted, abs=2)
    assert found.genuine.tolist() == [9] * 60
    assert found.resolved == (True, False)


def embedded(rows: np.ndarray[Any, Any], identities: Any) -> tuple[Any, Any]:
    unit = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    names = tuple(map(str, range(len(rows))))
    answers = embedding.Embedded(names, np.array(identities), {"fp32": unit}, np.ones(len(rows)), {"fp32": "x"})
    return answers, {"fp32": embedding.retrieval(unit, answers.identities)}


def test_embeddings_that_do_not_tell_images_apart_are_named() -> None:
    rng = np.random.default_rng(4)
    ids = np.arange(80) % 8
    good = rng.normal(size=(80, 16)) + 2 * rng.normal(size=(8, 16))[ids]

    def said(rows: np.ndarray[Any, Any], identities: Any) -> tuple[str, str]:
        answers, found = embedded(rows, identities)
        return embedding.checks_of(answers, found)["fp32"][1](Evidence(()))[:2]

    assert said(good, ids)[0] == "passed"
    outcome, reason = said(good, rng.permutation(ids))
    assert outcome == "failed" and "the identities" in reason
    outcome, reason = said(1 + 1e-4 * good, ids)
    assert outcome == "failed" and reason.startswith("FP32 gives nearly the same embedding for all images")


def test_an_embedding_is_built_judged_and_of_length_one(shop: Shop, tmp_path: Path) -> None:
    images = np.stack([np.asarray(Image.open(path)) for path in sorted((shop.folder / "images").iterdir())])
    np.savez(tmp_path / "v.npz", images=images, labels=np.arange(IMAGES) % 4)
    made = edgeres.build(
        shop.model,
        task="embedding",
        calibration=tmp_path / "v.npz",
        validation=tmp_path / "v.npz",
        targets="cpu",
        effort="fast",
        min_cosine=0.5,
        max_recall_drop=100.0,
        output=tmp_path / "e.edgeres",
        allow=("fp32",),
    )
    said = shop.said / np.linalg.norm(shop.said, axis=1, keepdims=True)
    with edgeres.load(made.path) as embed:
        answers = embed.batch(list(images))
    rows = np.stack([one.embedding for one in answers])
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-6)
    assert answers[0].similarity(answers[1]) == pytest.approx(float(rows[0] @ rows[1]))
    task = made.report["task"]
    (graph,) = task["gated"]
    assert task["gated"][graph]["cosine"] == pytest.approx((rows * said).sum(axis=1).mean(), abs=1e-4)
    hits = [np.argsort(-(said @ said[i] - 9 * (np.arange(IMAGES) == i)))[0] % 4 == i % 4 for i in range(IMAGES)]
    assert task["figures"]["fp32"]["recall1"] == pytest.approx(100 * np.mean(hits))
    schema = json.loads((SCHEMAS / "schema.json").read_text())
    jsonschema.validate(read_report(made.path / "report.json"), schema, jsonschema.Draft202012Validator)
    assert "Recall@1" in render_html(made.report)
    assert [verdict["title"] for verdict in made.report["verdicts"]] == ["cosine to FP32", "recall drop"]


def maps() -> onnx.ModelProto:
    """The residual network with three outputs of other sizes and scales: a map, a row and the map before it."""
    model = resnet(quantized=False, width=4, px=PX)
    known = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.value_info}
    inner = [node.output[0] for node in model.graph.node if node.op_type == "Relu"][-2:]
    model.graph.node.append(helper.make_node("Mul", [inner[0], "small"], ["early"], name="early"))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.01), "small"))
    shape = [dim.dim_value or "n" for dim in known[inner[0]].type.tensor_type.shape.dim]
    model.graph.output.append(helper.make_tensor_value_info("early", TensorProto.FLOAT, shape))
    model.graph.output.append(known[inner[1]])
    return model


def test_each_of_several_outputs_is_compared_with_fp32(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "maps.onnx").write_bytes(maps().SerializeToString())
    made = edgeres.build(
        tmp_path / "maps.onnx",
        task="features",
        calibration=shop.folder / "images",
        validation=shop.folder / "images",
        targets=("cpu", "tensorrt"),
        effort="fast",
        min_cosine=0.5,
        output=tmp_path / "maps.edgeres",
    )
    fp32, cpu = (ort.InferenceSession(str(made.path / name)) for name in ("model.fp32.onnx", "model.int8.cpu.onnx"))
    names = [value.name for value in fp32.get_outputs()]
    assert len(names) == 3 and names == [head["output"] for head in made.report["model"]["heads"]]
    manifest = json.loads((made.path / "manifest.json").read_text())
    assert manifest["outputs"]["early"]["shape"] == [None, *fp32.get_outputs()[1].shape[1:]]
    with edgeres.load(made.path) as extract:
        paths = sorted((shop.folder / "images").iterdir())
        answers = extract.batch(paths)
        inputs = np.stack([normalized(extract.prepare(path), extract.preprocess) for path in paths])
    exact = dict(zip(names, fp32.run(None, {fp32.get_inputs()[0].name: inputs}), strict=True))
    for name in names:
        own = np.stack([answer.features[name] for answer in answers])
        a, b = (one.reshape(IMAGES, -1).astype(np.float64) for one in (exact[name], own))
        cosine = ((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean()
        row = made.report["task"]["figures"]["cpu"]["outputs"][name]
        assert row["cosine"] == pytest.approx(cosine, abs=1e-5)
        assert row["sqnr_db"] == pytest.approx(10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()), abs=0.05)
    gates = {verdict["title"] for verdict in made.report["verdicts"]}
    assert gates == {"cosine to FP32"} and len(made.report["task"]["gated"]) >= 6
    assert cpu.get_outputs()[0].shape[1:] == fp32.get_outputs()[0].shape[1:]
    config = deploy(made.path, "triton", tmp_path / "triton").files["maps/config.pbtxt"].decode()
    assert all(f'name: "{name}"' in config for name in names)


def test_an_output_of_small_values_counts_as_much_as_the_others() -> None:
    rng = np.random.default_rng(0)
    outputs = {
        "a": rng.normal(size=(50, 4)).astype(np.float32),
        "b": (1e-3 * rng.normal(size=(50, 2, 3))).astype(np.float32),
    }
    together = rows(outputs)
    assert together.shape == (50, 10)
    factors = weights(together, {"a": (4,), "b": (2, 3)})
    assert factors is not None
    powers = ((together * factors) ** 2).sum(axis=0)
    assert powers[:4].sum() == pytest.approx(50, rel=1e-5) and powers[4:].sum() == pytest.approx(50, rel=1e-5)
    assert weights(together[:, :4], {"a": (4,)}) is None
    large = rng.normal(size=(2, 3, 200, 200)).astype(np.float32)
    kept = rows({"map": large})
    assert kept.shape == (2, width((3, 200, 200))) and kept.shape[1] <= 1 << 15
    assert set(kept[0].tolist()) <= set(large[0].ravel().tolist())


def seg_network() -> onnx.ModelProto:
    """A residual network of three classes for each of 8x8 places."""
    model = maps()
    early = next(value for value in model.graph.output if value.name == "early")
    channels, side = (early.type.tensor_type.shape.dim[axis].dim_value for axis in (1, 2))
    weights_ = np.random.default_rng(2).normal(0, 100, (3, channels, 1, 1)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weights_, "head"))
    model.graph.node.append(helper.make_node("Conv", ["early", "head"], ["places"], name="places"))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("places", TensorProto.FLOAT, ["n", 3, side, side]))
    return model


def test_masks_are_judged_by_the_float_graphs_own(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "seg.onnx").write_bytes(seg_network().SerializeToString())
    session = ort.InferenceSession(str(tmp_path / "seg.onnx"))
    paths = sorted((shop.folder / "images").iterdir())
    inputs = np.stack([(np.asarray(Image.open(path)) / 255 - MEAN) / STD for path in paths]).transpose(0, 3, 1, 2)
    said = session.run(None, {session.get_inputs()[0].name: inputs.astype(np.float32)})[0].argmax(axis=1)
    (tmp_path / "masks").mkdir()
    rng, step = np.random.default_rng(1), PX // said.shape[1]
    true = np.where(rng.random(said.shape) < 0.2, rng.integers(0, 3, said.shape), said)
    true[:, 0, 0] = 255
    for path, mask in zip(paths, true, strict=True):
        Image.fromarray(mask.astype(np.uint8).repeat(step, 0).repeat(step, 1)).save(
            tmp_path / "masks" / f"{path.stem}_mask.png"
        )
    made = edgeres.build(
        tmp_path / "seg.onnx",
        task="segmentation",
        labels=["road", "wall", "sky"],
        calibration=shop.folder / "images",
        validation=shop.folder / "images",
        validation_labels=tmp_path / "masks",
        targets="cpu",
        effort="fast",
        max_miou_drop=100.0,
        output=tmp_path / "seg.edgeres",
    )
    judged = true != 255
    expected = [
        ((said == c) & (true == c)).sum() / (((said == c) | (true == c)) & judged).sum()
        for c in range(3)
        if (said == c).any()
    ]
    fp32 = made.report["task"]["figures"]["fp32"]
    assert fp32["miou"] == pytest.approx(100 * np.mean(expected), abs=1e-3)
    assert set(fp32["iou"]) == {"road", "wall", "sky"}
    with edgeres.load(made.path) as segment:
        masks = np.stack([answer.mask for answer in segment.batch(paths)])
    assert made.report["task"]["figures"]["cpu"]["agreement"] == pytest.approx(100 * (masks == said).mean(), abs=1e-6)
    assert made.passed and "IoU by class" in render_html(made.report)
    schema = json.loads((SCHEMAS / "schema.json").read_text())
    jsonschema.validate(read_report(made.path / "report.json"), schema, jsonschema.Draft202012Validator)


def test_masks_of_other_classes_are_named(tmp_path: Path) -> None:
    table = np.full((3, 3), 1) + 50 * np.roll(np.eye(3, dtype=np.int64), 1, axis=1)
    same = {"fp32": np.ones(2), "cpu": np.ones(2)}
    answers = segmentation.Segmented(("a", "b", "c"), ("x", "y"), {}, same, table, {})
    outcome, reason = segmentation.checks_of(answers)["labels"][1](Evidence(()))[:2]
    assert outcome == "failed" and reason.startswith("classes of the masks are 1 too low")
    right = replace(answers, confusion=50 * np.eye(3, dtype=np.int64))
    assert segmentation.checks_of(right)["labels"][1](Evidence(()))[0] == "passed"


def test_masks_are_found_beside_images_and_refused_in_one_line(tmp_path: Path) -> None:
    for folder in ("leftImg8bit/val/a", "gtFine/val/a"):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(tmp_path / "leftImg8bit/val/a/x_leftImg8bit.png")
    for kind, value in (("labelIds", 7), ("labelTrainIds", 1), ("color", 3)):
        Image.new("L", (8, 6), value).save(tmp_path / f"gtFine/val/a/x_gtFine_{kind}.png")
    found = with_masks(opened(tmp_path), tmp_path, None)
    assert len(found) == 1 and found.masks[0].name == "x_gtFine_labelTrainIds.png"
    contract = Preprocess((8, 8), fit=Fit((114, 114, 114)))
    mask = found.mask(0, contract)
    assert mask.tolist() == [[255] * 8, *[[1] * 8] * 6, [255] * 8]
    with pytest.raises(SourceError, match="has no masks, and none is named as one of the images"):
        with_masks(opened(images_at(tmp_path / "plain", ["1.png"])), tmp_path / "plain", None)
    (tmp_path / "m").mkdir()
    Image.new("RGB", (40, 20)).save(tmp_path / "m" / "1.png")
    with pytest.raises(SourceError, match="holds pixels of RGB, and a mask holds indices of classes"):
        with_masks(opened(tmp_path / "plain"), tmp_path / "plain", tmp_path / "m")
    Image.new("L", (20, 40)).save(tmp_path / "m" / "1.png")
    with pytest.raises(SourceError, match="has 40x20 pixels, and its image 20x40"):
        with_masks(opened(tmp_path / "plain"), tmp_path / "plain", tmp_path / "m")
    truth = segmentation.Truth(found, contract)
    with pytest.raises(SourceError, match="holds class 1, and the network has 1, 0 to 0"):
        truth(0, (8, 8), 1)


@pytest.mark.parametrize(("kind", "values"), [("road", 2), ("patterns", 48), ("boxes", 4)])
def test_the_example_writes_a_network_with_its_images_and_truth(kind: str, values: int, tmp_path: Path) -> None:
    command = runpy.run_path(str(EXAMPLE))["write"](kind, tmp_path / "out", 16, 1)
    words = command.split()
    task = TASKS[words[words.index("--task") + 1]]
    canonical = normalize(onnx.load(tmp_path / "out" / "model.onnx"), outputs=task.outputs)
    assert canonical.num_classes == values
    spec = task.describe(ModelSpec("example", canonical.preprocess, canonical_names(values)), ["answer"])
    table = words[words.index("--validation-labels") + 1] if "--validation-labels" in words else None
    choice = DataChoice(validation=str(tmp_path / "out" / "val"), validation_labels=table)
    source, reasons = task.validate(choice, replace(spec, weights="example"), SILENT)
    assert len(source) == 4
    assert bool(reasons) == (kind == "patterns")  # four images of forty patterns: none is shown twice


def canonical_names(count: int) -> tuple[str, ...]:
    return tuple(f"class {index}" for index in range(count))


def test_a_new_task_is_one_record(shop: Shop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def describe(spec: Any, outputs: Any) -> Any:
        described = regression.TASK.describe(spec, outputs)
        return replace(described, heads=(replace(described.heads[0], task="sum"),))

    toy: Task = replace(regression.TASK, name="sum", describe=describe, predictor=Sum, recognises=lambda clues: False)
    monkeypatch.setitem(TASKS, "sum", toy)
    made = edgeres.build(
        shop.model,
        task="sum",
        calibration=shop.folder / "images",
        validation=shop.folder / "images",
        targets="cpu",
        effort="fast",
        output=tmp_path / "sum.edgeres",
    )
    assert made.passed
    with edgeres.load(made.path) as predict:
        answer = predict(shop.folder / "images" / "000.png")
    assert answer == pytest.approx(shop.said[0].sum(), abs=0.3 * float(np.abs(shop.said).max()))
    monkeypatch.delitem(TASKS, "sum")
    with pytest.raises(EdgeresError, match="its task is sum, which is not known here; upgrade edgeres"):
        edgeres.load(made.path)


def test_no_stage_asks_which_task_it_is() -> None:
    package = Path(edgeres.__file__).parent
    names = {*TASKS} - {"classification"}
    for path in package.rglob("*.py"):
        if path.parent.name != "task":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            said = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
            assert not said & names, path


def test_editors_complete_the_limits_of_tasks() -> None:
    brought = {gate.metric.option for task in TASKS.values() for gate in task.gates}
    assert set(TaskKeywords.__annotations__) == brought


def test_the_answers_of_no_image_are_kept_in_order() -> None:
    rows = {"fp32": np.array([[1.0], [2.0], [4.0]]), "cpu": np.array([[1.5], [2.0], [3.0]])}
    answers = Answered(("y",), ("a", "b", "c"), np.empty((3, 0)), rows, {"fp32": "x", "cpu": "y"})
    assert answers.moved("cpu").ravel().tolist() == [0.5, 0.0, 1.0]
