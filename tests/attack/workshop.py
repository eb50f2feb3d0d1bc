"""A small network, its bundle and one good input for every reader, all made here; and the command that reads each.

The seeds of the fuzzers, and the inputs that must be taken.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE, CLASSES = 32, 16
# Of the drawn road signs, the source of images that needs no file.
SIGNS = ["--calibration", "signs:4"]
QUIET = ["--max-drop", "off", "--max-class-drop", "off"]


def network() -> bytes:
    """Two convolutions and a classifier of 16 classes."""
    from foreign_graphs import Writer

    writer = Writer()
    x = writer.op("Relu", writer.bn(writer.conv("data", (3, 8), stride=2), 8))
    x = writer.op("Add", writer.op("Relu", writer.conv(x, (8, 8))), x)
    flat = writer.op("Flatten", writer.op("GlobalAveragePool", x))
    scores = writer.op("Gemm", flat, writer.random(CLASSES, 8), writer.random(CLASSES), transB=1)
    return bytes(writer.model(scores, output_shape=("N", CLASSES)).SerializeToString())


@dataclass(frozen=True)
class Reader:
    """A kind of input.

    Attributes:
        file: its name below the folder of an attempt.
        good: an input that is taken.
        command: what reads it, run in the folder of the attempt, beside the bundle ``b.edgeres`` and ``net.onnx``.
        sealed: a JSON document that carries its own digest.
        torch: whether torch reads it.
        rounds: it gets a mutant in one of so many rounds, since its command takes seconds.
        form: how its parts can be told: ``ONNX`` by the fields of protobuf, ``ends`` where all but plain
            numbers lies in the first and the last bytes.
    """

    file: str
    good: bytes
    command: tuple[str, ...]
    is_json: bool = False
    seal: Callable[[str], str] = str
    torch: bool = False
    rounds: int = 1
    form: str = ""


def write(folder: Path) -> Path:
    """A bundle of graphs alone, made without a build, for the readers that need no more."""
    from bundles import write_bundle

    (folder / "net.onnx").write_bytes(network())
    write_bundle(folder / "b.edgeres")
    return folder


def build(folder: Path) -> Path:
    """Build the bundle of the network in ``folder``: net.onnx, b.edgeres, baseline.json; done once for all attempts."""
    (folder / "net.onnx").write_bytes(network())
    common = ["--effort", "fast", "--target", "cpu", *QUIET]
    build = ["build", "--model", "net.onnx", "--calibration", "signs:8", "--validation", "signs:32", *common]
    commands = [
        [*build, "-o", "b.edgeres"],
        ["baseline", "accept", "b.edgeres", "-o", "baseline.json"],
        ["calibrate", "b.edgeres", "--export", "trt-cache", "-o", "t.cache"],
        ["calibrate", "net.onnx", "--calibration", "signs:8", "--shard", "1/2", "-o", "one.state"],
        ["calibrate", "net.onnx", "--calibration", "signs:8", "--shard", "2/2", "-o", "two.state"],
        *([["sign", "b.edgeres", "--key", "k"]] if _key(folder) else []),
    ]
    for command in commands:
        done = subprocess.run([sys.executable, "-m", "edgeres", *command], cwd=folder, capture_output=True, check=False)
        assert done.returncode in (0, 1), done.stderr  # random weights fail checks
    return folder


def _key(folder: Path) -> bool:
    """Make a pair of keys, k and k.pub; False where there is no OpenSSH."""
    if shutil.which("ssh-keygen") is None:
        return False
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "k"], check=True)
    return True


def place(folder: Path, attempt: Path) -> None:
    """What ``build`` made in the folder of an attempt; all of it is a copy."""
    shutil.copytree(folder / "b.edgeres", attempt / "b.edgeres")
    for name in ("net.onnx", "baseline.json", "k.pub", "two.state"):
        if (folder / name).is_file():
            shutil.copy(folder / name, attempt / name)


def readers(folder: Path) -> Mapping[str, Reader]:
    """Every kind of input, with a good one."""
    bundle = folder / "b.edgeres"
    calibrate, to = ("calibrate", "net.onnx", "--calibration"), ("-o", "out.json")
    manifest = (bundle / "manifest.json").read_bytes()
    predict = ("predict", "b.edgeres")
    found = {
        "manifest": Reader("b.edgeres/manifest.json", manifest, (*predict, "a.png"), True),
        "manifest, sealed": Reader("b.edgeres/manifest.json", manifest, (*predict, "a.png"), True, resealed),
        "labels": Reader(
            "l.txt",
            "\n".join(f"class {i}" for i in range(CLASSES)).encode(),
            ("calibrate", "net.onnx", "--labels", "l.txt", *SIGNS, *to),
        ),
        "ONNX": Reader("m.onnx", (folder / "net.onnx").read_bytes(), ("calibrate", "m.onnx", *SIGNS, *to), form="ONNX"),
        "ONNX, inspected": Reader(
            "m.onnx", (bundle / "model.int8.cpu.onnx").read_bytes(), ("inspect", "m.onnx"), form="ONNX"
        ),
        "graph of a bundle": Reader(
            "b.edgeres/model.int8.cpu.onnx",
            (bundle / "model.int8.cpu.onnx").read_bytes(),
            (*predict, "a.png"),
            form="ONNX",
        ),
        "manifest, deployed": Reader(
            "b.edgeres/manifest.json", manifest, ("deploy", "b.edgeres", "--to", "triton"), True, resealed
        ),
        "npz": Reader("i.npz", npz(), (*calibrate, "i.npz", *to)),
        "zip": Reader("i.zip", zipped(), (*calibrate, "i.zip", *to)),
        "tar": Reader("i.tar", tarred(), (*calibrate, "i.tar", *to)),
        "CIFAR pickle": Reader("cifar/data_batch_1", cifar(), (*calibrate, "cifar", *to)),
        "engine": Reader("e.engine", b"ftrt" + bytes(200), ("inspect", "e.engine")),
        "calibration cache": Reader(
            "t.cache",
            (_made(folder, "t.cache") or b"TRT-100300-EntropyCalibration2\n") + b"data: 3c010a14\n",
            ("calibrate", "net.onnx", "--import", "t.cache", *to),
        ),
        "signature": Reader(
            "b.edgeres/signature.json",
            _made(folder, "b.edgeres/signature.json")
            or json.dumps({"schema": 1, "manifest": manifest.decode(), "signature": "x"}).encode(),
            ("verify-signature", "b.edgeres", "--trust", "k.pub"),
            True,
        ),
        **(_of_checkpoints() if (bundle / "report.json").exists() else {}),
    }
    if (bundle / "report.json").exists():
        found |= _of_builds(folder)
    for kind in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM"):
        found[kind] = Reader(f"i.{kind.lower()}", image(kind), (*predict, f"i.{kind.lower()}"))
    return found


def _of_builds(folder: Path) -> dict[str, Reader]:
    """Inputs that a whole build makes."""
    verify = ("verify", "b.edgeres", "--validation", "i", "--validation-labels", "i/labels.csv", *QUIET)
    check = ("baseline", "check", "b.edgeres")
    texts = {name: (folder / "b.edgeres" / name).read_bytes() for name in ("report.json", "calibration.json")}
    toml = b'[tool.edgeres]\nmax-drop = 1.0\nvalidation = "signs:16"\nbaseline = "baseline.json"\n'
    quantize = ("quantize", "net.onnx", "--calibration-file", "c.json", "--target", "cpu", "-o", "q.onnx")
    return {
        "report.json": Reader("r.json", texts["report.json"], ("compare", "r.json", "r.json"), True),
        "report.json, drawn": Reader(
            "r.json", texts["report.json"], ("history", "r.json", "b.edgeres", "--plot", "h.html"), True
        ),
        "baseline.json": Reader(
            "k.json", (folder / "baseline.json").read_bytes(), (*check, "--baseline", "k.json"), True
        ),
        "calibration.json": Reader("c.json", texts["calibration.json"], quantize, True, resealed),
        "pyproject.toml": Reader("pyproject.toml", toml, check),
        "state of a shard": Reader(
            "one.state", _made(folder, "one.state"), ("calibrate", "--merge", "one.state", "two.state", "-o", "o.json")
        ),
        "trusted keys": Reader("t.pub", _made(folder, "k.pub"), ("verify-signature", "b.edgeres", "--trust", "t.pub")),
        "pixels.json": Reader(
            "b.edgeres/pixels.json", _made(folder, "b.edgeres/pixels.json"), ("predict", "b.edgeres", "a.png"), True
        ),
        "bill of materials": Reader(
            "b.edgeres/sbom.cdx.json", _made(folder, "b.edgeres/sbom.cdx.json"), ("sbom", "b.edgeres"), True
        ),
        "labels CSV": Reader("i/labels.csv", b"image,label\na.png,3\nb.png,4\n", verify, rounds=16),
    }


def _made(folder: Path, name: str) -> bytes:
    path = folder / name
    return path.read_bytes() if path.is_file() else b""


def _of_checkpoints() -> dict[str, Reader]:
    """Weights of a whole ResNet-20, so that a mutant gets as far as the network."""
    export = ("export", "--model", "resnet20", "-o", "o.onnx", "--weights")
    contents = {"checkpoint": checkpoint(), "checkpoint, old form": checkpoint(old=True), "safetensors": safetensors()}
    return {
        name: Reader(file, contents[name], (*export, file), torch=True, rounds=4, form="ends")
        for name, file in (("checkpoint", "w.pt"), ("checkpoint, old form", "w.th"), ("safetensors", "w.safetensors"))
    }


def resealed(text: str) -> str:
    """A JSON document with the digest that fits what is in it."""
    from edgeres.documents import digest

    try:
        content = json.loads(text)
        body = {key: value for key, value in content.items() if key != "digest"}
    except (ValueError, AttributeError, RecursionError):
        return text
    return json.dumps({**body, "digest": digest(body)})


def image(kind: str, side: int = SIDE, **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def npz() -> bytes:
    rng, stream = np.random.default_rng(0), io.BytesIO()
    np.savez(stream, images=rng.integers(0, 256, (6, SIDE, SIDE, 3), np.uint8), labels=np.arange(6))
    return stream.getvalue()


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for index in range(4):
            archive.writestr(f"class{index % 2}/{index}.png", image("PNG"))
    return stream.getvalue()


def tarred() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for index in range(4):
            content = image("PNG")
            entry = tarfile.TarInfo(f"class{index % 2}/{index}.png")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def cifar() -> bytes:
    planes = np.random.default_rng(0).integers(0, 256, (6, 3072), np.uint8)
    return pickle.dumps({b"data": planes, b"labels": list(range(6)), b"filenames": [b"a.png"] * 6}, protocol=2)


def weights() -> dict[str, Any]:
    """The state dict of a ResNet-20 for ten classes, of random numbers, as tensors."""
    import torch

    from edgeres.zoo.architectures import ARCHITECTURES
    from edgeres.zoo.resnet import ResNet

    torch.manual_seed(0)
    return dict(ResNet(ARCHITECTURES["resnet20"], 10).state_dict())


def checkpoint(*, old: bool = False) -> bytes:
    """As ``torch.save`` writes it; the newer form without checksums, which would refuse every mutant."""
    import torch

    stream = io.BytesIO()
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"state_dict": weights(), "epoch": 3}, stream, _use_new_zipfile_serialization=not old)
    finally:
        torch.serialization.set_crc32_options(before)
    return stream.getvalue()


def safetensors() -> bytes:
    header, data = {}, b""
    for name, tensor in weights().items():
        value = tensor.numpy()
        kind = {"float32": "F32", "int64": "I64"}[str(value.dtype)]
        offsets = [len(data), len(data) + value.nbytes]
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": offsets}
        data += value.tobytes()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data
