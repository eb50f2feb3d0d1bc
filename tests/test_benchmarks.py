"""Benchmarks: tables and plots show the measured figures; other tools are run, or skipped with a reason."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from engine_graphs import resnet
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeres.data.signs import Signs, render

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def scripts() -> Iterator[None]:
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def docs(scripts: None) -> ModuleType:
    return __import__("accuracy_docs")


def figures(agreement: float, sqnr: float, drop: float) -> dict[str, Any]:
    interval = {"agreement_ci95": [agreement - 0.25, agreement + 0.25], "drop_pp_ci95": [drop - 0.21, drop + 0.22]}
    return {"agreement": agreement, "logit_sqnr_db": sqnr, "drop_pp": drop, **interval}


def row(graph: str, by: str, off: tuple[float, float, float], on: tuple[float, float, float]) -> dict[str, Any]:
    measured = {"off": figures(*off), "on": figures(*on), "cost": None, "steps": []}
    return {"graph": graph, "by": by, "style": "tensorrt", "fp32_top1": 81.03, **measured}


def document() -> dict[str, Any]:
    rows = [
        row("Peer max", "Model Optimizer", (97.13, 24.31, -0.06), (97.06, 24.4, 0.11)),
        row("Ours fast", "edgeres", (98.51, 30.25, 0.02), (98.38, 29.96, 1.5)),
    ]
    rows[1]["cost"] = {"seconds": 2.5, "forward_passes": 123.4, "runs": 5}
    model = {"calibration": "c", "validation": "photos: 10,000 images", "images": 10_000, "results": rows}
    return {"models": {"net": model | {"skipped": {"Other peer": "not installed here"}}}}


@pytest.fixture
def page(tmp_path: Path, docs: ModuleType) -> Path:
    (tmp_path / "accuracy.json").write_text(json.dumps(document()), encoding="utf-8")
    page = tmp_path / "quantization.md"
    page.write_text(f"# Before\n\n{docs.BEGIN}\nold\n{docs.END}\n\nAfter: é\n", encoding="utf-8")
    return page


def cells(page: Path) -> dict[str, list[str]]:
    lines = [line.strip("|").split("|") for line in page.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    return {first.strip(): [cell.strip() for cell in rest] for first, *rest in lines}


def test_the_table_replaces_what_is_between_its_comments_and_nothing_else(page: Path, docs: ModuleType) -> None:
    docs.write(page.with_name("accuracy.json"))
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# Before\n\n{docs.BEGIN}\n") and text.endswith(f"{docs.END}\n\nAfter: é\n")
    assert "old" not in text
    assert cells(page)["Peer max"] == [
        "97.13 %, 24.3 dB",
        "-0.06 pp, -0.27 to +0.16",
        "97.06 %, 24.4 dB",
        "+0.11 pp",
        "",
    ]
    assert cells(page)["Ours fast"][-2:] == ["+1.50 pp", "123 passes, 2.50 s"]
    assert (
        "on photos: 10,000 images; calibrated on c; FP32 top-1 81.03 %" in text
        and "Other peer was skipped: not installed here." in text
    )
    docs.write(page.with_name("accuracy.json"))
    assert page.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("text", ["no comments\n", "{END}\n{BEGIN}\n", "{BEGIN}\n{BEGIN}\n{END}\n"])
def test_a_page_without_both_comments_stays_as_it_is(page: Path, docs: ModuleType, text: str) -> None:
    page.write_text(text.format(BEGIN=docs.BEGIN, END=docs.END), encoding="utf-8")
    before = page.read_bytes()
    assert any("no table written" in line for line in docs.write(page.with_name("accuracy.json")))
    assert page.read_bytes() == before


@pytest.mark.parametrize("content", [None, "{", "[]", '{"results": []}'])
def test_a_file_without_figures_is_refused(tmp_path: Path, docs: ModuleType, content: str | None) -> None:
    path = tmp_path / "accuracy.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(SystemExit, match=f"{re.escape(str(path))}: (cannot be read|holds no figures)"):
        docs.write(path)
    assert not path.with_suffix(".svg").exists()


def test_the_plot_places_every_graph_by_its_figures(page: Path, docs: ModuleType) -> None:
    pytest.importorskip("matplotlib")
    docs.write(page.with_name("accuracy.json"))
    plot = page.with_name("accuracy.svg")
    texts = {"".join(element.itertext()).strip() for element in ElementTree.parse(plot).iter() if "text" in element.tag}
    assert {"Peer max", "Ours fast", "net: 10,000 images", "logit SQNR, dB", "best peer, off"} <= texts
    figure = docs._draw(document()["models"])
    for axis, off, on, best in zip(
        figure.axes, ([97.13, 98.51], [24.31, 30.25]), ([97.06, 98.38], [24.4, 29.96]), (97.13, 24.31), strict=True
    ):
        points = [line for line in axis.lines if line.get_marker() not in ("None", None)]
        hollow = {
            float(p.get_ydata()[0]): float(p.get_xdata()[0]) for p in points if p.get_markerfacecolor() == "white"
        }
        filled = {
            float(p.get_ydata()[0]): float(p.get_xdata()[0]) for p in points if p.get_markerfacecolor() != "white"
        }
        assert ([filled[0], filled[1]], [hollow[0], hollow[1]]) == (off, on)
        assert [line.get_xdata()[0] for line in axis.lines if line.get_linestyle() == "--"] == [best]
    drawn = plot.read_bytes()
    docs.write(page.with_name("accuracy.json"))
    assert plot.read_bytes() == drawn


@settings(deadline=None)  # the first example imports
@given(
    count=st.integers(1, 40),
    batch=st.integers(1, 12),
    ends=st.tuples(st.integers(0, 40), st.integers(0, 40)).map(sorted),
)
def test_the_reader_gives_each_image_of_its_range_once(scripts: None, count: int, batch: int, ends: list[int]) -> None:
    reader = __import__("accuracy_peers")._Reader("x", np.arange(count, dtype=np.float32), batch)

    def taken() -> list[float]:
        parts = list(iter(reader.get_next, None))
        assert all(list(part) == ["x"] and 1 <= len(part["x"]) <= batch for part in parts)
        return [value for part in parts for value in part["x"]]

    start, end = (min(end, count) for end in ends)
    assert taken() == list(range(count))
    reader.set_range(start, end)
    assert taken() == list(range(start, end))
    assert len(reader) == count


def test_a_generated_set_is_rendered_once(scripts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = __import__("accuracy_cases")
    source = Signs("validation", 3, 16, seed=5)
    held = cases.rendered_once(source, tmp_path)
    for index in range(3):
        pixels, label = render("validation", 5, index, 16)
        assert (held.image(index) == pixels).all() and held.labels[index] == label
    assert held.description == source.description
    monkeypatch.setattr(Signs, "image", lambda *_: pytest.fail("rendered again"))
    assert (cases.rendered_once(source, tmp_path).image(2) == pixels).all()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.fixture
def networks(tmp_path: Path) -> Path:
    """A file with one more network that is quick to measure, and its images."""
    onnx.save(resnet(quantized=False, width=16, px=16), tmp_path / "tiny.onnx")
    rng = np.random.default_rng(0)
    for name, count in (("calibration", 16), ("validation", 48)):
        images = rng.integers(0, 256, (count, 16, 16, 3), np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(count) % 10)
    path = tmp_path / "networks.json"
    tiny = {"model": "tiny.onnx", "calibration": "calibration.npz", "validation": "validation.npz"}
    path.write_text(json.dumps({"tiny": tiny}), encoding="utf-8")
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["accuracy.py", *map(str, arguments)])
    __import__("accuracy").main()


def test_one_command_measures_ours_beside_peers(
    scripts: None, networks: Path, page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, ours = page.with_name("accuracy.json"), ("--method", "minmax", "--effort", "fast", "--residual", "int8")
    chosen = ("--models", networks, "--model", "tiny", "--data", networks.parent, "--threads", 1)
    # This Python has no Model Optimizer, so it is skipped.
    run(monkeypatch, "--out", out, *chosen, *ours, "--modelopt", sys.executable)
    found = json.loads(out.read_text(encoding="utf-8"))["models"]
    assert found["net"] == document()["models"]["net"]  # of another run
    rows = {row["graph"]: row for row in found["tiny"]["results"]}
    peers = {f"ONNX Runtime {method}" for method in ("MinMax", "Percentile", "Entropy")}
    assert set(rows) == peers | {"edgeres minmax", "edgeres minmax, cpu graph", "edgeres fast, int8 residual"}
    for row in rows.values():
        assert all(row[name]["agreement"] > 60 and 15 < row[name]["logit_sqnr_db"] < 60 for name in ("off", "on"))
    # With 128 bins for 128 levels, ONNX Runtime's entropy ranges are those of MinMax.
    assert rows["ONNX Runtime Entropy"]["off"] == rows["ONNX Runtime MinMax"]["off"]
    assert all(row["cost"]["forward_passes"] > 0 for name, row in rows.items() if name in peers)
    assert {*found["tiny"]["skipped"]} == {"Model Optimizer max", "Model Optimizer entropy"}
    assert all("No module named 'modelopt'" in reason for reason in found["tiny"]["skipped"].values())
    assert "table written" in capsys.readouterr().out and "edgeres fast, int8 residual" in cells(page)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "resnet21"), "no such model: resnet21"),
        (("--modelopt", "nowhere/python"), "nowhere/python: no such interpreter"),
        (("--models", "nowhere.json"), "nowhere.json: no networks can be read"),
    ],
)
def test_a_wrong_option_is_told_before_anything_runs(
    scripts: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, str],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, *arguments)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


# Calibration.


def test_the_page_on_calibration_holds_what_was_measured(scripts: None) -> None:
    docs = __import__("calibration_docs")
    folder = BENCHMARKS.parent / "docs"
    found = json.loads((folder / "calibration.json").read_text(encoding="utf-8"))
    assert docs.tables(found) in (folder / docs.PAGE).read_text(encoding="utf-8")
    ElementTree.parse(folder / "calibration.svg")
    row = next(row for row in found["rows"] if row["images"] == 512 and "expected_bytes" not in row)
    assert f"{row['passes']:.2f}" in docs.tables(found) and f"{row['peak_bytes'] / 1e9:.2f} GB" in docs.tables(found)


def test_memory_that_a_peer_would_need_is_a_line_through_the_two_largest_counts(scripts: None) -> None:
    calibration = __import__("calibration")
    runs = {("peer", images): [{"peak_bytes": 1_000 + 10 * images}] for images in (32, 64, 128)}
    assert calibration._expected_bytes("peer", 512, runs) == 1_000 + 10 * 512
    runs["peer", 256] = [{"expected_bytes": 3_560.0}]  # left out, so it has no figures
    assert calibration._expected_bytes("peer", 512, runs) == 1_000 + 10 * 512
    assert calibration._expected_bytes("other", 512, runs) == 0


@pytest.mark.parametrize("tool", ["edgeres:tensorrt+cpu", "onnxruntime:MinMax"])
def test_a_calibration_in_a_process_of_its_own_tells_time_and_memory(scripts: None, tool: str, tmp_path: Path) -> None:
    graph = resnet(quantized=False, width=4, px=224)
    graph.graph.input[0].name = "input"
    for node in graph.graph.node:
        node.input[:] = ["input" if name == "x" else name for name in node.input]
    onnx.save(graph, tmp_path / "fp32.onnx")
    images = np.random.default_rng(0).integers(0, 256, (8, 224, 224, 3), np.uint8)
    (tmp_path / "images.u8").write_bytes(images.tobytes())
    child = str(BENCHMARKS / "calibration_child.py")
    done = subprocess.run([sys.executable, child, tool, str(tmp_path), "8"], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert 0 < told["seconds"]["calibration"] <= told["seconds"]["call"]
    assert len(told["forward"]) == 2 and min(told["forward"]) > 0
    assert told["peak_bytes"] > images.nbytes


# Architectures.


def zoo_row(tensorrt: float, cpu: float, speedup: float) -> dict[str, Any]:
    graphs = {"tensorrt": {"sqnr_db": tensorrt, "agreement": 99.5}, "cpu": {"sqnr_db": cpu, "agreement": 98.75}}
    peer = {"tensorrt": {"sqnr_db": 20.0, "agreement": 90.0}, "cpu": {"failed": "ValueError: no"}}
    kept = {"cpu": [["Softmax", 2, "probabilities need float"]], "tensorrt": []}
    row = {"trait": "t", "graphs": graphs, "peer": peer, "rtx": "built, not run here", "float": kept}
    return row | {"speedup": {"edgeres": speedup, "peer": 2.0}, "refinement": ["equalization, cpu: odd layout"]}


def test_the_page_of_architectures_shows_what_was_measured(scripts: None) -> None:
    zoo = __import__("zoo")
    rows = {"resnet18": zoo_row(31.0, 29.0, 3.0), "resnet34": zoo_row(17.0, 16.0, 1.0), "dla34": {"failed": "E: x"}}
    rows["dla34"]["trait"] = "t"
    text = zoo.page({"networks": rows, "effort": "fast", "environment": {"onnxruntime": "1.0"}})
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    table = {line[0]: line for line in lines}
    assert all(len(table[f"`{name}`"]) == len(zoo.COLUMNS) for name in rows)
    assert table["`resnet18`"][2:] == [
        *("31.0", "20.0", "99.5", "90.0", "none", "built"),
        *("29.0", "failed", "98.8", "failed", "3.00", "2.00"),
    ]
    assert table["`dla34`"][2] == "failed: E: x"
    assert "above ONNX Runtime's in 1 of 2 networks, at the median by 4.0 dB, at least by -3.0 dB" in text
    assert "1.00 times as fast as ONNX Runtime's own at the median, from 0.50 to 1.50 times" in text
    assert table["Softmax"] == ["Softmax", "probabilities need float", "resnet18 2, resnet34 2"]
    assert "- `resnet18`: equalization, cpu: odd layout" in text


def test_a_settled_network_has_the_statistics_of_its_images_and_knows_them(scripts: None) -> None:
    torch = pytest.importorskip("torch")
    networks = __import__("zoo_networks")
    torch.manual_seed(0)
    norm, head = torch.nn.BatchNorm2d(8), torch.nn.Linear(8, 4)
    torch.nn.init.zeros_(norm.weight)
    conv = torch.nn.Conv2d(3, 8, 3)
    body = torch.nn.Sequential(conv, norm, torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), head)
    labels = np.arange(64) % 4
    images = np.random.default_rng(0).integers(0, 64, (64, 8, 8, 3)).astype(np.uint8)
    images += (labels * 60).astype(np.uint8)[:, None, None, None]
    network = networks.settle(body, head, images, labels)
    inputs = networks.normalized(images)
    with torch.no_grad():
        maps = conv(inputs)
        assert torch.allclose(norm.running_mean, maps.mean((0, 2, 3)), atol=1e-3)
        answers = network(inputs).argmax(1)
    assert 0.1 <= norm.weight.min() <= norm.weight.max() <= 0.5
    assert (answers.numpy() == labels).mean() > 0.6  # by chance: a quarter


# Against another revision.


def package(folder: Path, seconds: float) -> Path:
    """A checkout whose ``import edgeres`` takes so long."""
    (folder / "edgeres").mkdir(parents=True)
    (folder / "edgeres" / "__init__.py").write_text(f"import time\ntime.sleep({seconds})\n")
    return folder


def test_a_slower_checkout_has_a_ratio_above_one(scripts: None, tmp_path: Path) -> None:
    against = __import__("against")
    here, there = package(tmp_path / "here", 0.3), package(tmp_path / "there", 0.0)
    found = against.by_turns(["-c", "import edgeres"], here, there, 3).to_dict()
    assert found["rounds"] == 3
    assert found["clock"]["here_s"] > 0.3
    low, high = found["clock"]["ratio_ci95"]
    assert 1 < low <= found["clock"]["ratio"] <= high
    assert f"{found['clock']['ratio']:.3f}" in against.table({"import edgeres": found}).splitlines()[1]


def test_a_revision_is_checked_out_for_a_while(scripts: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    against = __import__("against")
    source = package(tmp_path / "source", 0.0)
    me = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], [*me, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", source, *words], check=True)
    (source / "edgeres" / "__init__.py").write_text("raise SystemExit(3)\n")
    monkeypatch.setattr(against, "REPOSITORY", source)
    with against.checkout("HEAD") as there:
        assert min(against.run(["-c", "import edgeres"], there, tmp_path)) > 0
        with pytest.raises(SystemExit, match="-c import edgeres in"):
            against.run(["-c", "import edgeres"], source, tmp_path)
    assert not there.exists()
    with pytest.raises(SystemExit, match="no-such-revision"), against.checkout("no-such-revision"):
        pass


@pytest.mark.parametrize(
    ("name", "kernel"),
    [("Concat", "QLinearConcat"), ("Mul, a number", "QLinearMul"), ("Split", "Split"), ("PRelu", None)],
)
def test_the_table_of_cpu_kernels_says_what_runs_on_codes(scripts: None, name: str, kernel: str | None) -> None:
    kernels = __import__("cpu_kernels")
    row = kernels.measure(name, 1)
    assert kernels.is_on_codes(row.operators) is (kernel is not None)
    assert row.codes_us > 0 and row.difference <= 1
    line = list(kernels.table([row]))[-1]
    assert (f"| {kernel} |" if kernel else "| none |") in line and line.startswith(f"| {name} |")
