"""Compare the cost of calibration with other tools: ``python benchmarks/calibration.py --out docs/calibration.json``.

    ResNet-18 and -50 at 224x224, 32 to 512 images
        -> ONNX Runtime's quantizer, NVIDIA Model Optimizer, edgeres: each in a process of its own, in turns
        -> wall time in plain forward passes over the same images, peak memory -> JSON -> table and plot

Every process also measures the plain forward pass, before and after; see calibration_child.py. A run that is expected
to need more memory than is free, by extrapolation of smaller counts, is left out, and the table shows the estimate.
Weights are random, which does not change the work. Model Optimizer needs its own environment, as for accuracy.py; where
it is missing, it is skipped with a message. ``--plot`` measures nothing and draws the figures in ``--out``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import calibration_docs
import numpy as np
import onnx
from calibration_child import INPUT, PX

from edgeres.data.signs import Signs
from edgeres.device.environment import environment
from edgeres.files import write_json
from edgeres.pipeline.take import ModelChoice, take

ROOT = Path(__file__).parents[1]
CHILD = Path(__file__).with_name("calibration_child.py")
MODELOPT = ROOT / ".venv-modelopt" / "bin" / "python"

TOOLS = {
    "edgeres:tensorrt": "edgeres, graph for TensorRT",
    "edgeres:tensorrt+cpu": "edgeres, both graphs",
    "onnxruntime:MinMax": "ONNX Runtime MinMax",
    "onnxruntime:Percentile": "ONNX Runtime Percentile",
    "modelopt:max": "Model Optimizer max",
    "modelopt:entropy": "Model Optimizer entropy",
}
MODELS, COUNTS = ("resnet18", "resnet50"), (32, 64, 128, 256, 512)
# Largest share of the free memory that a tool may be expected to need.
_MEMORY_SHARE = 0.7


@dataclass(frozen=True)
class Conditions:
    counts: Sequence[int]
    tools: Sequence[str]
    repeats: int
    modelopt: Path


def measure(model: str, c: Conditions, folder: Path) -> list[dict[str, Any]]:
    """Measure all tools on all counts, round after round, so that other load affects all of them equally."""
    _export(model, folder / "fp32.onnx")
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for _ in range(c.repeats):
        for count, tool in product(c.counts, c.tools):
            row = _measure(model, tool, count, c.modelopt, folder, runs)
            runs.setdefault((tool, count), []).append(row)
    return [_row(model, tool, count, found) for (tool, count), found in runs.items()]


def _measure(
    model: str, tool: str, count: int, modelopt: Path, folder: Path, runs: dict[tuple[str, int], list[dict[str, Any]]]
) -> dict[str, Any]:
    needed = _expected_bytes(tool, count, runs)
    if needed > _MEMORY_SHARE * _free_bytes():
        print(f"{model} {count:4} {TOOLS[tool]:28} left out: would need about {needed / 1e9:.0f} GB", flush=True)
        return {"expected_bytes": needed}
    python = modelopt if tool.startswith("modelopt") else Path(sys.executable)
    done = subprocess.run(
        [str(python), str(CHILD), tool, str(folder), str(count)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{tool} on {count} images of {model} failed:\n{done.stderr[-2000:]}")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    row["passes"] = row["seconds"]["call"] / statistics.mean(row["forward"])
    row["calibration_passes"] = row["seconds"].get("calibration", np.nan) / statistics.mean(row["forward"])
    print(
        f"{model} {count:4} {TOOLS[tool]:28} {row['passes']:6.2f} passes, calibration alone"
        f" {row['calibration_passes']:6.2f}; {row['peak_bytes'] / 1e9:5.2f} GB",
        flush=True,
    )
    return row


def _expected_bytes(tool: str, count: int, runs: dict[tuple[str, int], list[dict[str, Any]]]) -> float:
    """Peak memory extrapolated linearly from the two largest counts that were measured; 0: unknown."""
    known = {
        images: max(run["peak_bytes"] for run in found)
        for (name, images), found in runs.items()
        if name == tool and "peak_bytes" in found[0]
    }
    if len(known) < 2:
        return 0.0
    (n1, b1), (n2, b2) = sorted(known.items())[-2:]
    return b2 + (b2 - b1) / (n2 - n1) * (count - n2)


def _free_bytes() -> int:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def _row(model: str, tool: str, count: int, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    row = {"model": model, "tool": TOOLS[tool], "by": tool.split(":")[0], "images": count}
    if "expected_bytes" in found[0]:
        return row | {"expected_bytes": found[0]["expected_bytes"]}

    def median(values: Iterator[float]) -> float | None:
        value = statistics.median(values)
        return None if np.isnan(value) else value

    return row | {
        "passes": median(run["passes"] for run in found),
        "calibration_passes": median(run["calibration_passes"] for run in found),
        "seconds": median(run["seconds"]["call"] for run in found),
        "forward_seconds": median(statistics.mean(run["forward"]) for run in found),
        "peak_bytes": max(run["peak_bytes"] for run in found),
        "runs": len(found),
        "versions": found[0]["versions"],
    }


def _export(model: str, path: Path) -> None:
    graph = take(ModelChoice(model, "random")).graph
    (given,) = graph.graph.input
    assert given.name == INPUT, given.name
    onnx.save(graph, path)


def _render(path: Path, count: int) -> None:
    if path.is_file() and path.stat().st_size >= count * PX * PX * 3:
        return
    signs = Signs("calibration", count, PX)
    path.write_bytes(b"".join(signs.image(index).tobytes() for index in range(count)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, help="JSON file; the plot is written beside it, the table into calibration.md beside it")
    add("--plot", action="store_true", help="draw the figures in --out (docs/calibration.json), measure nothing")
    add("--model", action="append", choices=MODELS, help="only this one; repeatable")
    add("--images", type=int, action="append", help="only this number; repeatable.  [default: 32, 64, 128, 256, 512]")
    add("--tool", action="append", choices=TOOLS, help="only this one; repeatable")
    add("--repeats", type=int, default=3, help="number of rounds; medians are shown.  [default: 3]")
    add("--modelopt", type=Path, default=MODELOPT, help="Python that has Model Optimizer.  [default: .venv-modelopt]")
    given = parser.parse_args()
    if given.plot:
        print("\n".join(calibration_docs.write(given.out or ROOT / "docs" / "calibration.json")))
        return
    skipped = {} if given.modelopt.is_file() else {"Model Optimizer": f"no Python that has it ({given.modelopt})"}
    tools = [tool for tool in given.tool or TOOLS if not (skipped and tool.startswith("modelopt"))]
    chosen = Conditions(sorted(given.images or COUNTS), tools, given.repeats, given.modelopt)
    found: dict[str, Any] = {
        "environment": environment() | {"cores": os.cpu_count()},
        "skipped": skipped,
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        _render(Path(folder) / "images.u8", max(chosen.counts))
        for model in given.model or MODELS:
            found["rows"] += measure(model, chosen, Path(folder))
            if given.out:
                write_json(given.out, found)
    print("\n".join(calibration_docs.write(given.out)) if given.out else calibration_docs.tables(found))


if __name__ == "__main__":
    main()
