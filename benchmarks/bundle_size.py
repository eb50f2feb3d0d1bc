"""Size of a bundle with and without what a device tries: ``python benchmarks/bundle_size.py [--model NAME]``.

Builds the network for each set of targets, and compares the bundle with its own size without the further forms, the
FP16 graph, the graphs of bytes and the probe images. Nothing is timed; ``--effort fast`` gives the same files in size
as any other.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from edgeres import build
from edgeres.bundle import PROBES, Bundle, is_of_bytes
from edgeres.runtime.probes import read_probes

TARGETS = (("cpu", "rtx", "jetson-orin-nano"), ("jetson-orin-nano",))
CALIBRATION = "signs:64"  # one probe image each


def row(model: str, targets: tuple[str, ...], folder: Path) -> str:
    """A line of the table in docs/formulations.md."""
    result = build(
        model,
        calibration=CALIBRATION,
        validation="signs:32@1",
        targets=targets,
        effort="fast",
        max_drop=None,
        output=folder / "-".join(targets),
    )
    bundle = Bundle(result.path)
    sizes = {name: (bundle.path / name).stat().st_size for name in bundle.manifest.files}
    default = set(bundle.manifest.default_form.values())
    further = [form.file for form in bundle.forms if form.name not in default]
    of_bytes = [name for name in sizes if is_of_bytes(Path(name))]
    added = sum(sizes[name] for name in (*further, *of_bytes, PROBES))
    total = sum(sizes.values())
    fp16 = next(sizes[form.file] for form in bundle.forms if form.precision == "fp16")
    cells = (
        ", ".join(targets),
        f"{total / 1e6:.1f}",
        f"{(total - added) / 1e6:.1f}",
        f"{total / (total - added):.2f}",
        f"{len(bundle.forms)}",
        f"{fp16 / 1e6:.2f}",
        f"{sizes[PROBES] / 1e6:.2f}, {len(read_probes(bundle).inputs)} images",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18", help="with weights that need no download  [default: resnet18]")
    model = parser.parse_args().model
    print("| targets | MB | without | times | forms | FP16 graph, MB | probes, MB |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for targets in TARGETS:
            print(row(model, targets, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
