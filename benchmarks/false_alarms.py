"""Count false alarms of gates and checks: ``python benchmarks/false_alarms.py [--runs 40]``.

An unchanged bundle (resnet20 on generated signs) is verified many times against its own baseline while another process
keeps a core busy. Half of the runs use the baseline's 1,000 images, half 320 to 1,080 others, each from another seed.
The outcomes of all gates and checks are counted. Every failure is a false alarm and gives exit code 1.

``--setups`` builds networks in right ways instead, on images whose preprocessing is known, and counts the checks:
resnet20 and resnet18 on signs, and with ``--weights FILE`` (one or more) and ``--images NPZ`` resnet20 and resnet32 on
CIFAR-10, each as a checkpoint, as an exported file, and with mean and std in units of 0 to 255.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import edgeres
from edgeres.data.choose import DataChoice
from edgeres.files import write_file, write_json
from edgeres.graph.stated import state
from edgeres.judge.asked import GateChoice
from edgeres.judge.gates import Limits, SpeedupLimits
from edgeres.pipeline.build import build
from edgeres.pipeline.options import VerifyOptions
from edgeres.pipeline.take import ModelChoice, take
from edgeres.pipeline.verify import accept_baseline, verify_bundle

LIMITS = Limits(
    max_drop=1.0, min_agreement=97.0, speedups=SpeedupLimits(min_speedup=1.3), max_p99_ms=5.0, max_size_mb=20.0
)


def _busy() -> None:
    while True:
        pass


def runs(bundle: Path, baseline: Path, count: int) -> Counter[tuple[str, str]]:
    """The number of outcomes of each gate and check."""
    found: Counter[tuple[str, str]] = Counter()
    for number in range(count):
        others = number % 2 == 1
        images = f"signs:{320 + 40 * (number % 20)}@{100 + number}" if others else "signs:1000@0"
        load = multiprocessing.get_context("spawn").Process(target=_busy, daemon=True)
        load.start()
        try:
            report = verify_bundle(
                bundle, DataChoice(validation=images), VerifyOptions(GateChoice(LIMITS, baseline=baseline))
            )
        finally:
            load.kill()
        told = {verdict["title"]: verdict["outcome"] for verdict in report["verdicts"]}
        told |= {check["title"]: check["outcome"] for check in report["checks"]}
        found.update(told.items())
        failed = [title for title, outcome in told.items() if outcome == "failed"]
        print(f"{number + 1:3} {images:16} {', '.join(failed) or 'no alarm'}", flush=True)
    return found


def setups(folder: Path, weights: Sequence[Path], images: Path | None) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Right ways to build: a name, the model, and keywords of ``edgeres.build``."""
    networks: list[tuple[str, dict[str, Any], list[dict[str, str]]]] = [
        (name, {}, [{"calibration": f"signs:64@{seed}", "validation": f"signs:128@{seed}"} for seed in seeds])
        for name, seeds in (("resnet20", range(20, 26)), ("resnet18", range(20, 22)))
    ]
    if images is not None:
        data = dict.fromkeys(("calibration", "validation"), str(images))
        networks += [(path.name.split("-")[0], {"weights": str(path)}, [data]) for path in weights]
    for name, given, sources in networks:
        size = {} if name == "resnet18" else {"validation_size": 320}
        exported = folder / f"{name}-{len(given)}.onnx"
        taken = take(ModelChoice(name, **{key: str(value) for key, value in given.items()}))
        state(taken.graph, taken.spec)  # as edgeres export does
        write_file(exported, taken.graph.SerializeToString())
        known = taken.spec.preprocess
        values = {key: tuple(255 * value for value in getattr(known, key)) for key in ("mean", "std")}
        for number, data in enumerate(sources):
            if "signs" not in data["validation"]:
                data = {**data, **size}
            yield f"{name} {number}", name, {**given, **data}
            yield f"{name} {number} exported", str(exported), data
            yield f"{name} {number} in 0 to 255", name, {**given, **data, **values, "pixel_scale": 1.0}


def right_setups(folder: Path, weights: Sequence[Path], images: Path | None) -> Counter[tuple[str, str]]:
    """The number of outcomes of each check over all set-ups."""
    found: Counter[tuple[str, str]] = Counter()
    for number, (name, model, given) in enumerate(setups(folder, weights, images)):
        options = {"effort": "fast", "targets": "cpu", "calibration_size": 64, **given}
        bundle = edgeres.build(model, output=folder / f"{number}.edgeres", **options)
        checks = json.loads((Path(bundle.path) / "report.json").read_text())["checks"]
        found.update((check["title"], check["outcome"]) for check in checks)
        failed = [check["title"] for check in checks if check["outcome"] == "failed"]
        print(f"{number + 1:3} {name:28} {', '.join(failed) or 'no alarm'}", flush=True)
        found["set-ups", "passed"] += not failed
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--setups", action="store_true")
    parser.add_argument("--weights", type=Path, nargs="*", default=[])
    parser.add_argument("--images", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.setups:
            found = right_setups(Path(folder), given.weights, given.images)
        else:
            bundle, baseline = Path(folder) / "net.edgeres", Path(folder) / "baseline.json"
            build("resnet20", validation="signs:1000@0", output=bundle)
            write_json(baseline, accept_baseline(bundle))
            found = runs(bundle, baseline, given.runs)
    outcomes = ("passed", "unsure", "failed")
    print("\n| gate or check | passed | unsure | failed |\n|---|---|---|---|")
    for title in dict.fromkeys(title for title, _ in found):
        print(f"| {title} | {' | '.join(str(found[title, outcome]) for outcome in outcomes)} |")
    alarms = sum(count for (_, outcome), count in found.items() if outcome == "failed")
    print(json.dumps({"runs": found["set-ups", "passed"] if given.setups else given.runs, "false_alarms": alarms}))
    raise SystemExit(1 if alarms else 0)


if __name__ == "__main__":
    main()
