"""Many residual architectures beside ONNX Runtime's quantizer: ``python benchmarks/zoo.py --out docs/zoo.json``.

    timm's network, random weights, settled -> edgeres build                        -> JSON -> docs/zoo.md
                                            -> ONNX Runtime's quantizer, same images /

It needs ``pip install timm``; nothing is downloaded. Each network runs in its own process, and its row is written at
once: a run that was stopped goes on with the networks that are missing. ``--page`` measures nothing and writes the page
from the figures in ``--out``. What is measured, and how, is said on the page.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from zoo_networks import NETWORKS

from edgeres.data.signs import Signs
from edgeres.device.cpu import has_vnni
from edgeres.device.environment import environment
from edgeres.files import write_file, write_json
from edgeres.refine.choice import EFFORTS

ROOT = Path(__file__).parents[1]
PX, FITTED_IMAGES = 64, 320
Json = Mapping[str, Any]

HEAD = """\
# Architectures

Made by `python benchmarks/zoo.py`: do not edit it by hand.

{count} architectures of timm, quantized by `edgeres build --effort {effort}` and ONNX Runtime's quantizer in one run.
Weights are random: running statistics come from images, weights of normalizations are drawn, and the classifier is a
ridge regression on the network's features, fitted on the images that it is judged on (`benchmarks/zoo_networks.py`). So
the table shows which architectures are understood and how much noise quantization adds, not what accuracy a trained
network keeps. Images are {px} px signs: 64 for calibration, 160 others for the figures.

- **dB**: SQNR of the scores. **Agreement**: % of the images with the same class as in FP32. `TensorRT`: float
  arithmetic between Q/DQ pairs on ONNX Runtime, as a stand-in. `RTX`: the graph for TensorRT-RTX, likewise. `CPU`:
  integer kernels of ONNX Runtime.
- **ORT**: ONNX Runtime's `quantize_static` after its `quant_pre_process`, per channel, with its default calibration
  (MinMax): symmetric int8 activations and float biases beside the graph for TensorRT, uint8 activations beside the CPU
  graph.
- **Engine**: whether TensorRT-RTX built one; it was not run.
- **Speed-up** over FP32 on ONNX Runtime, one image, one thread: medians of ratios that were measured in turn.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, default=ROOT / "docs" / "zoo.json", help="JSON file; the page is written beside it")
    add("--network", action="append", choices=NETWORKS, metavar="NAME", help="only this one, again; repeatable")
    add("--effort", choices=EFFORTS, default="fast", help="of edgeres build; fast calibrates alone, as the peer does")
    add("--page", action="store_true", help="write the page from the figures in --out, measure nothing")
    given = parser.parse_args()
    found = json.loads(given.out.read_text(encoding="utf-8")) if given.out.is_file() else {"networks": {}}
    if not given.page:
        wanted = given.network or [name for name in NETWORKS if name not in found["networks"]]
        if found.setdefault("effort", given.effort) != given.effort:
            parser.error(f"{given.out} has figures of effort {found['effort']}: give another --out")
        with tempfile.TemporaryDirectory() as folder:
            # The first of them are those that the networks are judged on: see zoo_networks.
            fitted = Signs("validation", FITTED_IMAGES, PX, seed=1)
            images = np.stack([fitted.image(i) for i in range(len(fitted))])
            np.savez(Path(folder) / "images.npz", images=images, labels=fitted.labels)
            for name in wanted:
                found["networks"][name] = measured(name, folder, given.effort)
                found["environment"] = environment() | {"vnni": str(has_vnni())}
                write_json(given.out, found)
                print(f"{name}: {'  '.join(cells(name, found['networks'][name])[2:])}", flush=True)
    write_file(given.out.with_suffix(".md"), page(found).encode())


def measured(name: str, folder: str, effort: str) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).resolve().with_name("zoo_child.py")), name, folder, effort]
    # ONNX Runtime's quantizer leaves files where it runs.
    ran = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if ran.returncode:
        lines = ran.stderr.strip().splitlines()
        return {"failed": lines[-1] if lines else f"exit code {ran.returncode}", "trait": NETWORKS[name].trait}
    row: dict[str, Any] = json.loads(ran.stdout)
    return row


COLUMNS = (
    *("network", "trait", "TensorRT, dB", "ORT", "agreement", "ORT", "RTX, dB", "engine"),
    *("CPU, dB", "ORT", "agreement", "ORT", "speed-up", "ORT"),
)


def page(found: Json) -> str:
    """The page in Markdown."""
    rows = {name: found["networks"][name] for name in NETWORKS if name in found["networks"]}
    lines = [
        HEAD.format(count=len(rows), px=PX, effort=found["effort"]),
        f"Measured with {versions(found.get('environment', {}))}.",
        "",
    ]
    lines += [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(cells(name, row))} |" for name, row in rows.items()]
    return "\n".join([*lines, "", *summary(rows), *floats(rows), *refinements(rows)]).rstrip() + "\n"


def versions(known: Mapping[str, str]) -> str:
    names = ("edgeres", "torch", "onnxruntime", "tensorrt-rtx-cu13", "processor")
    return ", ".join(f"{name} {known[name]}" for name in names if name in known)


def cells(name: str, row: Json) -> list[str]:
    """The cells of one network's row."""
    first = [f"`{name}`", str(row["trait"])]
    if "failed" in row:
        return [*first, f"failed: {row['failed']}", *[""] * (len(COLUMNS) - 3)]
    graphs, peers, speed = row["graphs"], row["peer"], row["speedup"]
    built = "built" if str(row["rtx"]).startswith("built") else str(row["rtx"])
    return [
        *first,
        *(_figure(of, key) for key in ("sqnr_db", "agreement") for of in (graphs.get("tensorrt"), peers["tensorrt"])),
        _figure(graphs.get("rtx"), "sqnr_db"),
        built,
        *(_figure(of, key) for key in ("sqnr_db", "agreement") for of in (graphs.get("cpu"), peers["cpu"])),
        *(f"{speed[who]:.2f}" if who in speed else "" for who in ("edgeres", "peer")),
    ]


def _figure(of: Json | None, key: str) -> str:
    if of is None:
        return "none"
    return "failed" if "failed" in of else f"{of[key]:.1f}"


def summary(rows: Mapping[str, Json]) -> Iterator[str]:
    """How often edgeres is ahead of the peer, and by how much at the median."""
    done = [row for row in rows.values() if "failed" not in row]
    for style, words in (("tensorrt", "Graph for TensorRT"), ("cpu", "CPU graph")):
        ahead = [
            row["graphs"][style]["sqnr_db"] - row["peer"][style]["sqnr_db"]
            for row in done
            if style in row["graphs"] and "failed" not in row["peer"][style]
        ]
        if ahead:
            better = sum(gain > 0 for gain in ahead)
            gain = f"at the median by {np.median(ahead):.1f} dB, at least by {min(ahead):.1f} dB"
            yield f"{words}: SQNR above ONNX Runtime's in {better} of {len(ahead)} networks, {gain}."
            yield ""
    speeds = [row["speedup"] for row in done]
    faster = [speed["edgeres"] / speed["peer"] for speed in speeds if {"edgeres", "peer"} <= speed.keys()]
    if faster:
        limits = f"from {min(faster):.2f} to {max(faster):.2f} times"
        yield f"CPU graph: {np.median(faster):.2f} times as fast as ONNX Runtime's own at the median, {limits}."
        yield ""


def floats(rows: Mapping[str, Json]) -> Iterator[str]:
    """What stays in float, by reason: operators, and the networks that have them."""
    for style, words in (("tensorrt", "the graph for TensorRT"), ("cpu", "the CPU graph")):
        by_reason: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        for name, row in rows.items():
            for op, count, reason in row.get("float", {}).get(style, ()):
                by_reason[op, reason].append(f"{name} {count}")
        yield f"## What stays in float in {words}"
        yield ""
        yield "| operator | why | networks, and how many of these nodes |"
        yield "|---|---|---|"
        for (op, reason), names in sorted(by_reason.items()):
            listed = f"all {len(names)}" if len(names) == len(rows) else ", ".join(names)
            yield f"| {op} | {reason} | {listed} |"
        yield ""


def refinements(rows: Mapping[str, Json]) -> Iterator[str]:
    """Refinements that were left out, and why."""
    noted = {name: [n for n in row.get("refinement", ()) if "no gain" not in n] for name, row in rows.items()}
    if any(noted.values()):
        yield "## Refinements that were left out"
        yield ""
        for name, notes in noted.items():
            for note in notes:
                yield f"- `{name}`: {note}"
        yield ""


if __name__ == "__main__":
    main()
