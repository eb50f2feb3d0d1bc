"""A robot's install on an emulated aarch64: what pip chose there loads a bundle and answers as this machine does.

The emulator is ../shared/tools/aarch64 (qemu and Debian's arm64 Python). It is slow, so its files are kept between
runs, and everything runs in one process there. ``EDGERES_AARCH64=DIR`` names their folder; without it the tests run
where the folder is there already.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import edgeres
from edgeres.data.signs import render
from edgeres.errors import EnvironmentError_
from edgeres.remote.wheels import RemotePython, fetch, own_wheel

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT.parent / "shared/tools/aarch64"
IMAGES, VERIFIED = 200, 16
# Under the emulator ONNX Runtime 1.32 dies in its import; on boards it does not.
NOT_EMULATED = "onnxruntime<1.24"

PROGRAM = """
import contextlib, io, json, platform, sys
import numpy as np
import edgeres
from edgeres.cli import main

bundle, images, out, verified = sys.argv[1:5]
pixels = np.load(images)["images"]
with edgeres.load(bundle) as classify:
    logits = np.array([one.logits for one in classify.batch(pixels)])
    backend = classify.backend
said = {}
for name, words in {
    "version": ["--version"],
    "doctor": ["doctor", "--json"],
    "targets": ["targets", "--json"],
    "predict": ["predict", bundle, sys.argv[5], "--json"],
    "verify": ["verify", bundle, "--validation", verified, "--json", "--max-drop", "off", "--min-speedup", "off"],
}.items():
    sys.argv = ["edgeres", *words]
    text, errors, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(errors):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    said[name] = {"code": code, "out": text.getvalue(), "err": errors.getvalue()[-2000:]}
np.savez(out, logits=logits)
print(json.dumps({"machine": platform.machine(), "backend": backend, "edgeres": edgeres.__file__, "said": said}))
"""


@pytest.fixture(scope="session")
def robot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the emulated Python, and in ``site`` what ``edgeres remote --install`` would install there."""
    given = os.environ.get("EDGERES_AARCH64")
    folder = Path(given) if given else Path.home() / ".cache/edgeres/aarch64"
    if not TOOL.is_file():
        pytest.skip("the emulator is not here: ../shared/tools/aarch64")
    if not given and not (folder / "root").is_dir():
        pytest.skip("EDGERES_AARCH64=DIR sets the emulator up there, which takes minutes")
    if not (folder / "root/usr/bin/python3.11").exists():
        done = subprocess.run([TOOL, "setup", folder, "packaging"], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"the emulator cannot be set up: {(done.stderr.strip().splitlines() or ['no words'])[-1]}")
    if shutil.which("qemu-aarch64-static") is None:
        pytest.skip("qemu is not installed (qemu-user-static)")
    site, wheels = folder / "site", tmp_path_factory.mktemp("wheels")
    (wheels / "constraints.txt").write_text(f"{NOT_EMULATED}\n")
    try:
        if (site / "onnxruntime").is_dir() and (site / "msgspec").is_dir():
            names = [own_wheel(wheels).name]
            shutil.rmtree(site / "edgeres", ignore_errors=True)
        else:
            shutil.rmtree(site, ignore_errors=True)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PIP_CONSTRAINT", str(wheels / "constraints.txt"))
                names = fetch(RemotePython("3.11.2", "aarch64", "2.36"), wheels)
    except EnvironmentError_ as error:
        pytest.skip(str(error))
    for name in names:
        with zipfile.ZipFile(wheels / name) as wheel:
            wheel.extractall(site)
    return folder


@dataclass(frozen=True)
class There:
    """What the robot said, and this machine's answers beside its own."""

    said: dict[str, Any]
    logits: np.ndarray[Any, Any]
    here: np.ndarray[Any, Any]


@pytest.fixture(scope="session")
def there(robot: Path, tmp_path_factory: pytest.TempPathFactory) -> There:
    folder = tmp_path_factory.mktemp("robot")
    options: dict[str, Any] = {"calibration": "signs:64", "validation": "signs:64@1", "effort": "fast"}
    bundle = edgeres.build("resnet20", targets=("cpu",), output=folder / "b.edgeres", **options).path
    pairs = [render("validation", 7, index, 32) for index in range(IMAGES)]
    images, labels = np.stack([image for image, _ in pairs]), np.array([label for _, label in pairs])
    np.savez(folder / "images.npz", images=images, labels=labels)
    np.savez(folder / "few.npz", images=images[:VERIFIED], labels=labels[:VERIFIED])
    Image.fromarray(images[0]).save(folder / "one.png")
    names = [bundle, folder / "images.npz", folder / "out.npz", folder / "few.npz", folder / "one.png"]
    command = [str(TOOL), "run", str(robot), "-c", PROGRAM, *map(str, names)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    with edgeres.load(bundle) as classify:
        here = np.array([one.logits for one in classify.batch(images)])
    return There(json.loads(done.stdout.splitlines()[-1]), np.load(folder / "out.npz")["logits"], here)


def test_a_bundle_answers_there_as_here(there: There) -> None:
    """The same class for at least 99 % of 200 images, and the same logits but for rounding."""
    assert there.said["machine"] == "aarch64" and there.said["backend"].startswith("ONNX Runtime")
    assert there.said["edgeres"].endswith("site/edgeres/__init__.py")
    agree = (there.logits.argmax(1) == there.here.argmax(1)).mean()
    noise = ((there.logits - there.here) ** 2).sum()
    decibel = 10 * np.log10((there.here**2).sum() / noise) if noise else np.inf
    assert len(there.logits) == IMAGES and agree >= 0.99 and decibel > 30, f"{agree:.2%}, {decibel:.1f} dB"


def test_commands_run_there(there: There) -> None:
    said = there.said["said"]
    assert {name: one["code"] for name, one in said.items()} == dict.fromkeys(said, 0), said
    assert said["version"]["out"] == f"edgeres, version {edgeres.__version__}\n"
    checks = {check["name"]: check for check in json.loads(said["doctor"]["out"])}
    assert checks["run on the CPU"]["found"] == "yes" and checks["cpu"]["ok"]
    assert "jetson-orin-nx" in said["targets"]["out"]
    (answer,) = [row for row in json.loads(said["predict"]["out"]) if "top" in row]
    assert answer["top"][0]["score"] == max(one["score"] for one in answer["top"])


def test_a_verdict_is_made_there(there: There) -> None:
    report = json.loads(there.said["said"]["verify"]["out"])
    assert report["passed"] and report["accuracy"]["fp32"]["total"] == VERIFIED
