"""Count false alarms of gates and checks: ``python benchmarks/false_alarms.py [--runs 40]``.

An unchanged bundle (resnet20 on generated signs) is verified many times against its own baseline while another process
keeps a core busy. Half of the runs use the baseline's 1,000 images, half 320 to 1,080 others, each from another seed.
The outcomes of all gates and checks are counted. Every failure is a false alarm and gives exit code 1.

``--setups`` builds networks in right ways instead, on images whose preprocessing is known, and counts the checks: see
``right_setups.py``. ``--weights FILE...`` and ``--images NPZ`` add published networks of CIFAR-10, and
``--foreign FILE...`` ONNX files of ten classes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import tempfile
from collections import Counter
from pathlib import Path

from right_setups import Pictures, fitted_setups, foreign_setups, zoo_setups

import edgeres
from edgeres.data.choose import DataChoice
from edgeres.files import write_json
from edgeres.judge.asked import GateChoice
from edgeres.judge.gates import Limits, SpeedupLimits
from edgeres.pipeline.build import build
from edgeres.pipeline.options import VerifyOptions
from edgeres.pipeline.verify import accept_baseline, verify_bundle

LIMITS = Limits(
    max_drop=1.0, min_agreement=97.0, speedups=SpeedupLimits(min_speedup=1.3), max_p99_ms=5.0, max_size_mb=20.0
)


def _busy() -> None:
    while True:
        pass


def verified(bundle: Path, baseline: Path, count: int) -> Counter[tuple[str, str]]:
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


def right_setups(folder: Path, given: argparse.Namespace) -> Counter[tuple[str, str]]:
    """The number of outcomes of each check over all set-ups."""
    found: Counter[tuple[str, str]] = Counter()
    pictures = Pictures(folder)
    parts = {
        "zoo": zoo_setups(pictures, folder, given.weights, given.images),
        "fitted": fitted_setups(pictures, folder),
        "foreign": foreign_setups(folder, given.foreign),
    }
    for number, setup in enumerate(itertools.chain(*(parts[name] for name in given.setups or parts)), 1):
        options = {"effort": "fast", "targets": "cpu", "calibration_size": 64, "thumbnails": False, **setup.options}
        bundle = edgeres.build(setup.model, output=folder / f"{number}.edgeres", **options)
        report = json.loads((Path(bundle.path) / "report.json").read_text())
        found.update((check["title"], check["outcome"]) for check in report["checks"])
        failed = [check["title"] for check in report["checks"] if check["outcome"] == "failed"]
        warned = [f"warns: {check['title']}" for check in report["checks"] if check["warns"]]
        top1 = f"{report['accuracy']['fp32']['top1']:6.2f} %"
        print(f"{number:3} {setup.name:56} {top1}  {', '.join((*failed, *warned)) or 'no alarm'}", flush=True)
        found["set-ups", "passed"] += not failed
        found["set-ups", "failed"] += bool(failed)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--setups", nargs="*", choices=["zoo", "fitted", "foreign"])
    parser.add_argument("--weights", type=Path, nargs="*", default=[])
    parser.add_argument("--images", type=Path)
    parser.add_argument("--foreign", type=Path, nargs="*", default=[])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.setups is not None:
            found = right_setups(Path(folder), given)
        else:
            bundle, baseline = Path(folder) / "net.edgeres", Path(folder) / "baseline.json"
            build("resnet20", validation="signs:1000@0", output=bundle)
            write_json(baseline, accept_baseline(bundle))
            found = verified(bundle, baseline, given.runs)
    outcomes = ("passed", "unsure", "failed")
    print("\n| gate or check | passed | unsure | failed |\n|---|---|---|---|")
    for title in dict.fromkeys(title for title, _ in found):
        print(f"| {title} | {' | '.join(str(found[title, outcome]) for outcome in outcomes)} |")
    alarms = sum(count for (title, outcome), count in found.items() if outcome == "failed" and title != "set-ups")
    runs = sum(found["set-ups", outcome] for outcome in outcomes) if given.setups is not None else given.runs
    print(json.dumps({"runs": runs, "false_alarms": alarms}))
    raise SystemExit(1 if alarms else 0)


if __name__ == "__main__":
    main()
