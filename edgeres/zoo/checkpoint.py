"""Load the network that ``--weights`` names: find the file, read its tensors, match them to the architecture.

    tag, file or URL -> file -> state dict -> network in evaluation mode, and its ModelSpec

A checkpoint must fit exactly: every tensor is used, and an error names those that are missing or left over.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from edgeres.data.base import some
from edgeres.data.labels import imagenet_classes
from edgeres.documents import OPTIONAL, DocumentKind
from edgeres.errors import WeightsError
from edgeres.files import sha256 as file_sha256
from edgeres.progress import SILENT, Progress
from edgeres.records import ModelSpec, Preprocess, Weights
from edgeres.zoo.architectures import ARCHITECTURES, Architecture
from edgeres.zoo.download import fetch
from edgeres.zoo.registry import ZooModel, find_model, find_weights
from edgeres.zoo.resnet import create
from edgeres.zoo.state_dict import State, is_safetensors, load_state

SEED = 0
_NAMED = 3  # a message names this many tensors and counts the others


def load_model(
    name: str, weights: str | None = None, num_classes: int | None = None, progress: Progress = SILENT
) -> tuple[nn.Module, ModelSpec]:
    """A network of the zoo with its weights, in evaluation mode, and its description.

    Args:
        name: a key of :data:`~edgeres.zoo.architectures.ARCHITECTURES`.
        weights: ``signs``, ``imagenet``, ``imagenet:v2``, ``random``, a file, or a URL (``#sha256=...`` is checked);
            None: the bundled weights where there are any, else ``imagenet``.
        num_classes: None: that of the checkpoint; for random weights, that of the published architecture.

    Labels and preprocessing come from the registry where the file's digest is known there, else from the metadata of a
    safetensors file (``labels``, a JSON list, and ``preprocess``, a JSON object). Otherwise labels are ``class 0``,
    ``class 1``, ... (ten classes need not be CIFAR-10's) and preprocessing is the architecture's.

    Raises:
        UsageError: there is no such architecture.
        WeightsError: there are no such weights, or they cannot be fetched, read, or matched.
    """
    model = find_model(name)
    weights = weights or model.default
    if weights is None:
        raise WeightsError("no weights are published for it", where=name, hint="give --weights FILE, URL or random")
    if weights == "random":
        return _random(model.architecture, num_classes)
    origin = _locate(model, weights, progress)
    state = load_state(origin.path)
    classes = _fit(model.architecture, state, num_classes, origin.path)
    with torch.device("meta"):  # no initialization: every tensor comes from the checkpoint
        network = create(name, classes)
    counters = {key: torch.tensor(0) for key in network.state_dict() if key.endswith("num_batches_tracked")}
    network.load_state_dict({**counters, **state}, assign=True)
    return network.eval(), _describe(model.architecture, origin, classes)


@dataclass(frozen=True)
class _Origin:
    """The weights' file, their name, their digest, and the registry's record of them where there is one."""

    path: Path
    words: str
    sha256: str
    known: Weights | None


@dataclass(frozen=True)
class _Metadata:
    """What a checkpoint says about itself."""

    labels: tuple[str, ...] = field(default=(), metadata=OPTIONAL)
    preprocess: Preprocess | None = field(default=None, metadata=OPTIONAL)


_METADATA = DocumentKind(_Metadata, "metadata", "write it as JSON", error=WeightsError)


def _locate(model: ZooModel, weights: str, progress: Progress) -> _Origin:
    words = weights
    if "://" in weights:
        path = fetch(weights, None, progress)
        words = weights.partition("#")[0].rpartition("/")[2]
    elif Path(weights).is_file():
        path = Path(weights)
        words = path.name
    elif Path(weights).is_dir():
        raise WeightsError("is a directory", where=weights, hint="give the checkpoint's file")
    elif re.fullmatch(r"[a-z]+(:\w+)?", weights):
        tagged = find_weights(model.architecture.name, weights)
        path = model.bundled if tagged.tag == "signs" and model.bundled else fetch(tagged.url, tagged.sha256, progress)
    else:
        raise WeightsError("no such file", where=weights, hint=f"or name one of {', '.join(model.tags)}, or a URL")
    digest = file_sha256(path)
    known = next((w for w in model.weights.values() if digest.startswith(w.sha256)), None)
    return _Origin(path, known.tag if known else words, digest, known)


def _describe(arch: Architecture, origin: _Origin, classes: int) -> ModelSpec:
    stated = _metadata(origin.path)
    labels, preprocess = stated.labels, stated.preprocess
    if origin.known:
        preprocess = origin.known.preprocess
        if origin.known.tag.startswith("imagenet"):
            labels = tuple(name for _, name in imagenet_classes())
    return ModelSpec(
        name=arch.name,
        preprocess=preprocess or arch.preprocess,
        labels=labels if len(labels) == classes else _unnamed(classes),
        weights=origin.words,
        weights_sha256=origin.sha256,
    )


def _metadata(path: Path) -> _Metadata:
    """Labels and preprocessing in the metadata of a safetensors file; other files have none."""
    if not is_safetensors(path):
        return _Metadata()
    with safe_open(path, framework="pt") as file:
        entries = file.metadata() or {}
    stated = ", ".join(f'"{key}": {entries[key]}' for key in ("labels", "preprocess") if key in entries)
    return _METADATA.decode(f"{{{stated}}}".encode(), f"{path}, metadata")


def _unnamed(classes: int) -> tuple[str, ...]:
    return tuple(f"class {i}" for i in range(classes))


def _random(arch: Architecture, num_classes: int | None) -> tuple[nn.Module, ModelSpec]:
    """A network with random weights, the same in every run; batch norm's statistics come from two images of noise.

    Without the statistics, each block doubles the variance: logits of resnet152 reach 1e8, too large for FP16.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(SEED)
        network = create(arch.name, num_classes)
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None  # the plain mean over all batches, here one
        network(torch.randn(2, 3, min(arch.input_px, 64), min(arch.input_px, 64)))
        for norm in norms:
            norm.momentum = 0.1
    classes = arch.num_classes if num_classes is None else num_classes
    return network.eval(), ModelSpec(arch.name, arch.preprocess, _unnamed(classes))


def _fit(arch: Architecture, state: State, num_classes: int | None, path: Path) -> int:
    """Rename the state dict's classifier as the architecture has it; return its classes, or raise what does not fit."""
    _rename_head(state, arch.head)
    head = state.get(f"{arch.head}.weight")
    classes = arch.num_classes if head is None else len(head)
    if num_classes not in (None, classes):
        raise WeightsError(f"has {classes} classes, not {num_classes}", where=path)
    need = _shapes(arch.name, classes)
    missing = [key for key in need if key not in state]
    unexpected = [key for key in state if key not in need]
    reshaped = [
        f"{k} {_dims(t.shape)} for {_dims(need[k])}" for k, t in state.items() if need.get(k, t.shape) != t.shape
    ]
    differences = ((missing, "missing"), (unexpected, "unexpected"), (reshaped, "with another shape"))
    if any(keys for keys, _ in differences):
        listed = "; ".join(
            f"{len(keys)} {what} ({some(keys, len(keys), _NAMED)})" for keys, what in differences if keys
        )
        raise WeightsError(f"does not fit {arch.name}: {listed}", where=path, hint=_advice(arch, state, unexpected))
    return classes


def _rename_head(state: State, head: str) -> None:
    """Rename the classifier to ``head``. It is the only matrix of a residual network (fc, linear, fc.1, head)."""
    matrices = [key for key, tensor in state.items() if tensor.ndim == 2 and key.endswith(".weight")]
    if len(matrices) == 1:
        name = matrices[0].removesuffix(".weight")
        for key in [key for key in state if key.startswith(name + ".")]:
            state[head + key.removeprefix(name)] = state.pop(key)


def _advice(arch: Architecture, state: State, unexpected: list[str]) -> str | None:
    if fits := [name for name in ARCHITECTURES if name != arch.name and _fits(name, state)]:
        return f"it fits {' and '.join(fits)}: give that as the model"
    if arch.family == "cifar" and any(".downsample." in key or ".shortcut." in key for key in unexpected):
        return "its shortcuts are projections (option B); the zoo's CIFAR networks have option A's, without parameters"
    return None


def _fits(name: str, state: State) -> bool:
    state = dict(state)
    head = ARCHITECTURES[name].head
    _rename_head(state, head)
    if f"{head}.weight" not in state:
        return False
    return _shapes(name, len(state[f"{head}.weight"])) == {key: tensor.shape for key, tensor in state.items()}


def _shapes(name: str, classes: int) -> dict[str, torch.Size]:
    with torch.device("meta"):
        state = create(name, classes).state_dict()
    return {key: tensor.shape for key, tensor in state.items() if not key.endswith("num_batches_tracked")}


def _dims(shape: torch.Size) -> str:
    return "x".join(map(str, shape)) or "scalar"
