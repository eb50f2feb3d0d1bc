"""Count false alarms of gates and checks: ``python benchmarks/false_alarms.py [--runs 40]``.

An unchanged bundle (resnet20 on generated signs) is verified many times against its own baseline while another process
keeps a core busy. Half of the runs use the baseline's 1,000 images, half 320 to 1,080 others, each from another seed.
The outcomes of all gates and checks are counted. Every failure is a false alarm and gives exit code 1.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
from collections import Counter
from pathlib import Path

from edgeres.data.choose import DataChoice
from edgeres.files import write_json
from edgeres.judge.asked import GateChoice
from edgeres.judge.gates import Limits
from edgeres.pipeline.build import build
from edgeres.pipeline.options import VerifyOptions
from edgeres.pipeline.verify import accept_baseline, verify_bundle

LIMITS = Limits(max_drop=1.0, min_agreement=97.0, min_speedup=1.3, max_p99_ms=5.0, max_size_mb=20.0)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle, baseline = Path(folder) / "net.edgeres", Path(folder) / "baseline.json"
        build("resnet20", validation="signs:1000@0", output=bundle)
        write_json(baseline, accept_baseline(bundle))
        found = runs(bundle, baseline, given.runs)
    outcomes = ("passed", "unsure", "failed")
    print("\n| gate or check | passed | unsure | failed |\n|---|---|---|---|")
    for title in dict.fromkeys(title for title, _ in found):
        print(f"| {title} | {' | '.join(str(found[title, outcome]) for outcome in outcomes)} |")
    alarms = sum(count for (_, outcome), count in found.items() if outcome == "failed")
    print(json.dumps({"runs": given.runs, "false_alarms": alarms}))
    raise SystemExit(1 if alarms else 0)


if __name__ == "__main__":
    main()
