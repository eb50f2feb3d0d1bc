"""The content of baseline.json, and how a later run is compared with it."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from judged import compared, judged

from edgeres.data.record import DataRecord
from edgeres.errors import InputError
from edgeres.judge.baseline import Baseline, accept, read_baseline
from edgeres.judge.gates import Limits
from edgeres.records import Measurement, ModelSpec, Preprocess
from edgeres.verify.accuracy import Comparison
from edgeres.verify.answers import pack, unpack
from edgeres.verify.classes import ALPHA_PAIRED, paired_falls, unpaired_falls

CLASSES = 8
NAMES = tuple(f"thing {i}" for i in range(CLASSES))
HERE = {"processor": "some CPU", "system": "Linux x86_64", "onnxruntime": "1.32.0"}


def comparison(n: int = 800, seed: int = 0, sqnr: float = 30.0) -> Comparison:
    """Random answers for eight classes: FP32 has about 95 % top-1; INT8 answers 1 % otherwise, which costs 0.8 pp."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)

    def wrong(answers: Any, share: float) -> Any:
        return np.where(rng.random(n) < share, rng.integers(0, CLASSES, n), answers)

    fp32 = wrong(labels, 0.05)
    cpu = {"cpu": (sqnr, (sqnr - 0.3, sqnr + 0.3))}
    return compared(labels, CLASSES, {"fp32": fp32, "cpu": wrong(fp32, 0.01)}, sqnr=cpu)


def latency(slower: float = 1.0, seed: int = 0) -> dict[str, Measurement]:
    rng = np.random.default_rng(seed)

    def taken(ms: float, block: int) -> Measurement:
        return Measurement(1e-3 * ms * rng.lognormal(0, 0.02, 30 * block), 1, "host to host", "ORT", 0.2, block)

    return {"fp32": taken(30.0, 3), "int8": taken(10.0 * slower, 10)}


def report(found: Comparison | None = None, digest: str = "ab" * 32, **changes: Any) -> dict[str, Any]:
    c = found or comparison()
    baseline = changes.pop("baseline", None)
    given: dict[str, Any] = {
        "created": "2026-01-02T03:04:05+00:00",
        "command": "",
        "options": {"method": "mse"},
        "environment": HERE,
        "model": ModelSpec("net", Preprocess((8, 8)), NAMES, "own"),
        "headline": "cpu",
        "limits": Limits.of(**changes.pop("limits", {})),
        "images": DataRecord("images", digest, c.images),
        "comparison": c,
        "latency": latency(),
        "baseline": baseline,
        "files": {"model.int8.cpu.onnx": "0" * 64},
    }
    return judged(**(given | changes))


@pytest.fixture
def accepted(tmp_path: Path) -> Callable[..., Any]:
    """Writes a report's baseline to a file and reads it back."""

    def keep(of: dict[str, Any] | None = None, **options: Any) -> Any:
        path = tmp_path / "baseline.json"
        path.write_text(json.dumps(accept(of or report(), tmp_path)))
        return read_baseline(path, **options)

    return keep


def verdicts(found: dict[str, Any]) -> dict[str, str]:
    return {verdict["gate"]["metric"]: verdict["outcome"] for verdict in found["verdicts"]}


def reasons(found: dict[str, Any]) -> dict[str, str]:
    return {verdict["gate"]["metric"]: verdict["reason"] for verdict in found["verdicts"]}


# ---- packing ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(-1, 2**31 - 1)))
def test_packed_answers_come_back(values: list[int]) -> None:
    assert unpack(pack(np.array(values, np.int64))).tolist() == values


def test_packed_answers_are_what_the_schema_says() -> None:
    text = pack(np.array([3, -1, 999]))
    assert zlib.decompress(base64.b64decode(text)) == b"\x03\0\0\0\xff\xff\xff\xff\xe7\x03\0\0"


@pytest.mark.parametrize("text", ["!", "aGVsbG8=", base64.b64encode(zlib.compress(b"123")).decode()])
def test_what_was_not_packed_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="answers cannot be unpacked"):
        unpack(text)


# ---- classes ---------------------------------------------------------------------------------------------------------


def test_a_paired_class_has_the_p_value_of_a_sign_test() -> None:
    labels = np.repeat([0, 1, 2], 40)
    before, after = np.ones(120, bool), np.ones(120, bool)
    after[:12], before[40:43] = False, False  # class 0 loses 12, class 1 gains 3
    found = paired_falls(labels, before, after, 4)
    (fall,) = found.falls
    assert (fall.label, fall.before, fall.after, fall.total) == (0, 40, 28, 40)
    assert fall.drop_pp == pytest.approx(30)
    assert fall.p == pytest.approx(0.5**12)
    assert fall.p_holm == pytest.approx(3 * 0.5**12)
    assert (found.judged, found.largest, found.least_found) == (3, 40, 7)  # 3 / 2^7 < 0.025 < 3 / 2^6


def test_an_unpaired_class_has_the_p_value_of_fishers_test() -> None:
    hits, sizes = np.array([30, 20]), np.array([31, 31])
    now, sizes_now = np.array([5, 8]), np.array([15, 12])
    found = unpaired_falls(hits, sizes, now, sizes_now)
    fall = found.falls[0]
    ways = sum(math.comb(15, k) * math.comb(31, 35 - k) for k in range(4, 6))  # 35 hits in all, at least 4 of them here
    assert fall.label == 0
    assert fall.p == pytest.approx(float(Fraction(ways, math.comb(46, 35))))


@pytest.mark.parametrize("classes", [16, 1000])
def test_false_alarms_stay_below_alpha_for_any_number_of_classes(classes: int) -> None:
    """INT8 and FP32 are right equally often, with many disagreements."""
    rng, alarms, runs = np.random.default_rng(2), 0, 150
    labels = np.repeat(np.arange(classes), 50)
    for _ in range(runs):
        draw = rng.random(len(labels))
        found = paired_falls(labels, draw > 0.12, (draw < 0.06) | (draw > 0.18), classes)
        alarms += any(fall.p_holm < ALPHA_PAIRED for fall in found.falls)
    assert alarms <= 0.025 * runs + 3 * math.sqrt(0.025 * runs)


# ---- the same images -------------------------------------------------------------------------------------------------


def test_an_unchanged_bundle_has_lost_nothing(accepted: Any) -> None:
    found = report(baseline=accepted(), latency=latency(seed=1), limits={"max_drop": 3.0})
    section = found["baseline"]
    assert section["same_images"] is True
    assert section["interval_percent"] == 95
    assert (section["fp32"]["lost"], section["graphs"]["cpu"]["lost"], section["changed"]) == (0, 0, [])
    assert section["graphs"]["cpu"]["sqnr_loss_db"] == 0
    assert set(verdicts(found).values()) == {"passed"}
    assert found["outcome"] == "passed"


FILES = {"model.fp32.onnx": "1" * 64, "model.int8.cpu.onnx": "2" * 64}


def few(seed: int = 0, noise: float = 1.0) -> Comparison:
    """30 images, of which FP32 and INT8 give the same answers; the noise of each image varies."""
    rng = np.random.default_rng(seed)
    labels, signal = rng.integers(0, CLASSES, 30), rng.uniform(500, 2000, 30)
    noise_of = noise * rng.lognormal(0, 1, 30)
    sqnr = 10 * math.log10(signal.sum() / noise_of.sum())
    given = {"sqnr": {"cpu": (sqnr, (sqnr - 4, sqnr + 4))}, "power": {"fp32": signal, "cpu": noise_of}}
    return compared(labels, CLASSES, {"fp32": labels, "cpu": labels}, **given)


AGAINST_BASELINE = ("regression_pp", "fp32_regression_pp", "class_regression_pp", "sqnr_loss_db")


def test_the_same_bundle_on_few_images_is_exactly_unchanged(accepted: Any) -> None:
    found = report(few(), files=FILES, baseline=accepted(report(few(), files=FILES)))
    section = found["baseline"]
    for row in (section["fp32"], section["graphs"]["cpu"]):
        assert (row["drop_pp"], row["drop_pp_ci95"], row["unchanged"]) == (0, [0, 0], True)
    assert section["graphs"]["cpu"]["sqnr_loss_db_ci95"] == [0, 0]
    assert [verdicts(found)[metric] for metric in AGAINST_BASELINE] == ["passed"] * 4
    assert "exactly unchanged" in reasons(found)["regression_pp"]
    assert verdicts(found)["drop_pp"] == "unsure"  # INT8 against FP32 is another question


@pytest.mark.parametrize("changes", [{"files": dict.fromkeys(FILES, "3" * 64)}, {"preprocess": Preprocess((9, 9))}])
def test_another_graph_or_preprocessing_with_the_same_answers_is_not_unchanged(
    accepted: Any, changes: dict[str, Any]
) -> None:
    given = {"files": changes.get("files", FILES)}
    if "preprocess" in changes:
        given["model"] = ModelSpec("net", changes["preprocess"], NAMES, "own")
    found = report(few(), baseline=accepted(report(few(), files=FILES)), **given)
    row = found["baseline"]["graphs"]["cpu"]
    assert (row["unchanged"], row["lost"]) == (False, 0)
    assert row["drop_pp_ci95"][1] > 5
    assert verdicts(found)["regression_pp"] == "unsure"


def test_a_loss_of_sqnr_on_the_same_images_has_a_paired_interval(accepted: Any) -> None:
    """Independent: 4,000 bootstrap samples of the images, drawn for both builds together."""
    before, now = few(), few()
    rng = np.random.default_rng(9)
    worse = now.scored["cpu"].power * rng.lognormal(0.3, 0.1, 30)
    signal = now.scored["fp32"].power
    db = 10 * math.log10(signal.sum() / worse.sum())
    given = {"sqnr": {"cpu": (db, (db - 4, db + 4))}, "power": {"fp32": signal, "cpu": worse}}
    now = compared(now.table.labels, CLASSES, now.table.answers, **given)
    found = report(now, baseline=accepted(report(before, files=FILES)), files=FILES)["baseline"]["graphs"]["cpu"]
    draws = rng.integers(0, 30, (4000, 30))
    losses = 10 * np.log10(worse[draws].sum(axis=1) / before.scored["cpu"].power[draws].sum(axis=1))
    assert found["sqnr_loss_db"] == pytest.approx(10 * math.log10(worse.sum() / before.scored["cpu"].power.sum()))
    low, high = found["sqnr_loss_db_ci95"]
    assert high - low == pytest.approx(float(np.diff(np.quantile(losses, [0.025, 0.975]))[0]), rel=0.25)
    assert high - low < 1  # 8 dB and more where the two are taken as independent


def test_the_images_that_would_decide_a_loss_of_sqnr_are_counted_in_decibels(accepted: Any) -> None:
    """4,000 runs with as many images as advised: four of five decide."""
    before = few()
    rng = np.random.default_rng(1)
    worse = before.scored["cpu"].power * rng.lognormal(0.55, 0.5, 30)
    signal = before.scored["fp32"].power
    db = 10 * math.log10(signal.sum() / worse.sum())
    given = {"sqnr": {"cpu": (db, (db - 4, db + 4))}, "power": {"fp32": signal, "cpu": worse}}
    now = compared(before.table.labels, CLASSES, before.table.answers, **given)
    found = report(now, baseline=accepted(report(before)), limits={"max_sqnr_loss": 3.4})
    (verdict,) = (v for v in found["verdicts"] if v["gate"]["metric"] == "sqnr_loss_db")
    row = found["baseline"]["graphs"]["cpu"]
    loss, low, high = row["sqnr_loss_db"], *row["sqnr_loss_db_ci95"]
    assert verdict["outcome"] == "unsure"
    spread = (high - low) / 2 / 1.96 * math.sqrt(30)
    means = rng.normal(loss, spread / math.sqrt(verdict["images_needed"]), 4000)
    half = 1.96 * spread / math.sqrt(verdict["images_needed"])
    assert np.mean(np.abs(means - 3.4) > half) == pytest.approx(0.8, abs=0.03)


def test_a_baseline_of_the_first_format_is_read_and_finds_the_same_images(tmp_path: Path) -> None:
    """It has no powers, and its digest depends on class names."""
    old = accept(report(few(), digest="0d" * 32, files=FILES), tmp_path)
    del old["digest"], old["accuracy"]["power"], old["validation"]["sha256_with_names"]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(old | {"schema": 1}))
    images = DataRecord("images", "ab" * 32, 30, sha256_with_names="0d" * 32)
    found = report(few(), baseline=read_baseline(path), files=FILES, images=images)
    assert found["baseline"]["same_images"] is True
    assert [verdicts(found)[metric] for metric in AGAINST_BASELINE] == ["passed"] * 4
    assert "validation images" not in {row["what"] for row in found["baseline"]["changed"]}
    other = DataRecord("images", "ab" * 32, 30, sha256_with_names="0e" * 32)
    assert report(few(), baseline=read_baseline(path), images=other)["baseline"]["same_images"] is False


def test_lost_images_are_counted_one_by_one(accepted: Any) -> None:
    base = comparison()
    worse = comparison()
    table = worse.table
    right = np.flatnonzero(table.right("cpu"))[:40]
    table.answers["cpu"][right] = (table.labels[right] + 1) % CLASSES
    found = report(worse, baseline=accepted(report(base)))
    section = found["baseline"]["graphs"]["cpu"]
    assert (section["lost"], section["gained"], section["total"]) == (40, 0, 800)
    assert section["drop_pp"] == pytest.approx(5.0)
    assert verdicts(found)["regression_pp"] == "failed"
    assert verdicts(found)["fp32_regression_pp"] == "passed"
    assert found["passed"] is False


def test_a_large_loss_of_one_class_fails_where_top1_passes(accepted: Any) -> None:
    worse = comparison()
    right = np.flatnonzero((worse.table.labels == 5) & worse.table.right("cpu"))
    worse.table.answers["cpu"][right[:25]] = 6
    found = report(worse, baseline=accepted(), limits={"max_drop": 10.0, "max_regression": 10.0})
    told = verdicts(found)
    assert (told["drop_pp"], told["regression_pp"]) == ("passed", "passed")
    assert (told["class_drop_pp"], told["class_regression_pp"]) == ("failed", "failed")
    assert reasons(found)["class_regression_pp"].startswith("thing 5 from ")


def test_a_loss_of_fp32_fails_another_gate_than_a_loss_of_int8(accepted: Any) -> None:
    worse = comparison()
    right = np.flatnonzero(worse.table.right("fp32"))[:60]
    for answers in worse.table.answers.values():
        answers[right] = (worse.table.labels[right] + 1) % CLASSES
    told = verdicts(report(worse, baseline=accepted(), limits={"max_drop": 3.0}))
    assert told["drop_pp"] == "passed"
    assert told["fp32_regression_pp"] == "failed"


def test_more_noise_fails_even_where_no_image_is_lost(accepted: Any) -> None:
    found = report(comparison(sqnr=20.0), baseline=accepted())
    assert verdicts(found)["sqnr_loss_db"] == "failed"
    assert reasons(found)["sqnr_loss_db"].startswith("10 dB (95 % interval 9.58 to 10.4)")


@pytest.mark.parametrize(("slower", "outcome"), [(1.03, "passed"), (0.9, "passed"), (1.30, "failed"), (1.15, "unsure")])
def test_three_percent_slower_is_noise_and_thirty_is_not(accepted: Any, slower: float, outcome: str) -> None:
    found = report(baseline=accepted(), latency=latency(slower, seed=3))
    assert verdicts(found)["slowdown_percent"] == outcome
    assert found["baseline"]["slowdown_percent"] == pytest.approx(100 * (slower - 1), abs=1.5)


def test_latency_of_another_machine_is_compared_only_on_request(accepted: Any) -> None:
    elsewhere = {**HERE, "processor": "another CPU"}
    found = report(baseline=accepted(), environment=elsewhere, latency=latency(1.5))
    assert verdicts(found)["slowdown_percent"] == "unsure"
    assert "timed on another machine (some CPU)" in reasons(found)["slowdown_percent"]
    assert found["passed"] is True
    asked = report(baseline=accepted(any_machine=True), environment=elsewhere, latency=latency(1.5))
    assert verdicts(asked)["slowdown_percent"] == "failed"


def test_changed_facts_are_listed(accepted: Any) -> None:
    newer = {**HERE, "onnxruntime": "1.33.0"}
    found = report(baseline=accepted(), environment=newer, options={"method": "minmax", "max_drop": 3.0})
    changed = {row["what"]: (row["before"], row["after"]) for row in found["baseline"]["changed"]}
    assert changed["option method"] == ("mse", "minmax")
    assert changed["version of onnxruntime"] == ("1.32.0", "1.33.0")
    assert not [what for what in changed if "max_drop" in what]


# ---- other images ----------------------------------------------------------------------------------------------------


def test_on_other_images_the_losses_of_int8_are_compared(accepted: Any) -> None:
    found = report(comparison(400, seed=5), "cd" * 32, baseline=accepted())
    section = found["baseline"]
    assert (section["same_images"], section["interval_percent"]) == (False, 99.9)
    before, now = accepted().document["accuracy"]["graphs"]["cpu"]["drop_pp"], found["accuracy"]["drop_pp"]
    assert section["graphs"]["cpu"]["drop_pp"] == pytest.approx(now - before)
    assert section["graphs"]["cpu"]["lost"] is None
    assert "the baseline was measured on other images" in reasons(found)["regression_pp"]
    assert "(99.9 % interval" in reasons(found)["regression_pp"]
    assert "(95 % interval" in reasons(found)["sqnr_loss_db"]


def test_the_same_digest_with_other_labels_is_not_the_same_images(accepted: Any) -> None:
    moved = comparison()
    labels = moved.table.labels
    labels[:2] = labels[1::-1]
    labels[0] = (labels[0] + 1) % CLASSES
    assert report(moved, baseline=accepted())["baseline"]["same_images"] is False


def test_other_images_of_an_unchanged_network_raise_no_alarm() -> None:
    base = accept(report(comparison(800, seed=100)), Path("b"))
    failed = []
    for seed in range(30):
        options = {"baseline": Baseline("b", base), "latency": latency(seed=seed), "limits": {"max_drop": 3.0}}
        found = report(comparison(300, seed=seed), "cd" * 32, **options)
        failed += [metric for metric, outcome in verdicts(found).items() if outcome == "failed"]
    assert failed == []


def test_a_class_without_images_is_reported_missing(accepted: Any) -> None:
    fewer = comparison(600, seed=6)
    fewer.table.labels[fewer.table.labels == 3] = 2
    section = report(fewer, "cd" * 32, baseline=accepted())["baseline"]
    assert [row["name"] for row in section["missing_classes"]] == ["thing 3"]
    few = comparison(12, seed=7)
    few.table.labels[few.table.labels == 3] = 2
    assert (
        report(few, "cd" * 32, baseline=accepted())["baseline"]["missing_classes"] == []
    )  # with 12 images it may be chance


def test_other_classes_cannot_be_compared(accepted: Any) -> None:
    base = report(model=ModelSpec("net", Preprocess((8, 8)), (*NAMES, "one more"), "own"))
    found = report(baseline=accepted(base))
    assert found["baseline"]["fp32"] is None
    assert reasons(found)["regression_pp"] == "not comparable: the baseline has 9 classes, this run has 8"


def test_a_new_graph_has_no_baseline(accepted: Any) -> None:
    found = comparison()
    scored = {**found.scored, "tensorrt": found.scored["cpu"]}
    table = replace(found.table, answers={**found.table.answers, "tensorrt": found.table.answers["cpu"]})
    found = replace(found, table=table, scored=scored)
    told = report(found, baseline=accepted())
    assert reasons(told)["regression_pp"] == "not comparable: the baseline has no tensorrt graph"
    assert told["passed"] is True


# ---- the file --------------------------------------------------------------------------------------------------------


def test_what_is_no_baseline_is_refused_in_one_line(tmp_path: Path) -> None:
    path, good = tmp_path / "b.json", accept(report(), tmp_path)
    three = pack(np.arange(3))

    def spoilt(document: dict[str, Any], answers: dict[str, Any]) -> str:
        accuracy = {key: value for key, value in document["accuracy"].items() if key != "answers"} | answers
        return json.dumps({key: value for key, value in document.items() if key != "digest"} | {"accuracy": accuracy})

    cases = {
        "is not a baseline": ["", "[]", "{}", '{"kind": 1}', json.dumps(good | {"kind": "other"})],
        "written in format 9, this edgeres reads 2; upgrade edgeres": [json.dumps(good | {"schema": 9})],
        "was changed after it was written": [json.dumps(good | {"outcome": "failed"})],
        r"\$\.accuracy\.answers: is missing; edgeres baseline accept BUNDLE writes one": [spoilt(good, {})],
        "accuracy.graphs are not those of accuracy.answers": [spoilt(good, {"answers": {"labels": "x", "fp32": "x"}})],
        "answers cannot be unpacked": [spoilt(good, {"answers": {"labels": "x", "fp32": "x", "cpu": "x"}})],
        "there are 4 answers of cpu for 3 labels": [
            spoilt(good, {"answers": {"labels": three, "fp32": three, "cpu": pack(np.arange(4))}})
        ],
    }
    for words, texts in cases.items():
        for text in texts:
            path.write_text(text)
            with pytest.raises(InputError, match=words):
                read_baseline(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_baseline(tmp_path / "nowhere.json")


def test_a_report_without_answers_cannot_be_accepted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no answers to accept"):
        accept(report(comparison=None, images=None), tmp_path)
