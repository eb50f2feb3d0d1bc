"""Load the network that ``--weights`` names: find the file, read its tensors, match them to the architecture.

    tag, file or URL -> file -> tensors by name -> network in evaluation mode, its ModelSpec, and notes

A checkpoint must fit exactly: every tensor of the network is in it, and every other one is left out for a known reason.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

import torch
from safetensors import safe_open
from torch import nn

from edgeres.data.labels import imagenet_classes
from edgeres.data.signs import OWN_WEIGHTS
from edgeres.documents import OPTIONAL, DocumentKind
from edgeres.errors import UsageError, WeightsError, reading
from edgeres.files import refuse_special
from edgeres.files import sha256 as file_sha256
from edgeres.progress import SILENT, Progress
from edgeres.records import ModelSpec, Preprocess, Weights, complete_preprocess
from edgeres.words import escaped
from edgeres.zoo.architectures import Architecture
from edgeres.zoo.download import fetch, limits_for
from edgeres.zoo.heads import build_head, head_tensors, missing_biases
from edgeres.zoo.match import Match, Requirement, match, wanted_of
from edgeres.zoo.modules import check_modules
from edgeres.zoo.registry import BUNDLED, ZooModel, find_model, find_weights
from edgeres.zoo.resnet import create
from edgeres.zoo.state_dict import Stored, is_safetensors, load_checkpoint

SEED = 0
_MEAN_OF_PIXELS = 2  # above it, a mean is one of pixels from 0 to 255


class Loaded(NamedTuple):
    """A network in evaluation mode, its description, and what was chosen or left out on the way, in words."""

    network: nn.Module
    spec: ModelSpec
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class WeightsChoice:
    """The user's choice of weights.

    Attributes:
        weights: ``signs``, ``imagenet``, ``imagenet:v2``, ``random``, a file, or a URL (``#sha256=...`` is checked);
            None: the bundled weights where there are any, else ``imagenet``.
        num_classes: None: that of the checkpoint; for random weights, that of the published architecture.
        averaged: take the average of the weights that training kept in the checkpoint (EMA, SWA).
        head_activation: what stands between the matrices of a classifier of several layers.
    """

    weights: str | None = None
    num_classes: int | None = None
    averaged: bool = False
    head_activation: str | None = None


def load_model(name: str, choice: WeightsChoice | str | None = None, progress: Progress = SILENT) -> Loaded:
    """A network of the zoo with its weights.

    Args:
        name: a key of :data:`~edgeres.zoo.architectures.ARCHITECTURES`.
        choice: text is the name of weights.

    Labels and preprocessing come from the registry where the file's digest is known there, else from the metadata of a
    safetensors file (``labels``, a JSON list, and ``preprocess``, a JSON object). Otherwise labels are ``class 0``,
    ``class 1``, ... (ten classes need not be CIFAR-10's) and preprocessing is the architecture's, or that of a layer in
    the checkpoint that normalizes images.

    Raises:
        UsageError: there is no such architecture, or averages of random weights are asked for.
        WeightsError: there are no such weights, or they cannot be fetched, read, or matched.
    """
    model = find_model(name)
    choice = choice if isinstance(choice, WeightsChoice) else WeightsChoice(choice)
    weights = choice.weights or model.default
    if weights is None:
        raise WeightsError("no weights are published for it", where=name, hint="give --weights FILE, URL or random")
    if weights == "random":
        if choice.averaged:
            raise UsageError("random weights have no average", where="--ema", hint="leave it out")
        return _random(model.architecture, choice.num_classes)
    origin = _locate(model, weights, progress)
    path = origin.path
    found = find_network(wanted_of(model.architecture), path, choice)
    network = network_of(model.architecture, found, path)
    classes = found.around[f"{found.layers[-1].name}.weight"].shape[0]
    spec = _describe(model.architecture, origin, classes)
    if found.statistics and not origin.known:
        spec = replace(spec, preprocess=normalized_as(spec.preprocess, found.statistics, path))
    return Loaded(network, spec, found.notes)


def find_network(wanted: Requirement, path: Path, choice: WeightsChoice) -> Match:
    """The network in a file, with as many classes as the user says.

    Raises:
        WeightsError: the file cannot be read, or the network is not in it.
    """
    found = match(wanted, load_checkpoint(path), averaged=choice.averaged, activation=choice.head_activation)
    classes = found.around[f"{found.layers[-1].name}.weight"].shape[0]
    if choice.num_classes not in (None, classes):
        where, hint = (path, "leave out --num-classes") if path.parent != BUNDLED else (path.name, OWN_WEIGHTS)
        raise WeightsError(f"has {classes} classes, not {choice.num_classes}", where=where, hint=hint)
    return found


def network_of(arch: Architecture, found: Match, path: Path) -> nn.Module:
    """The architecture with the checkpoint's classifier and all its values."""
    shapes = {name: tensor.shape for name, tensor in found.around.items()}
    with torch.device("meta"):  # no initialization: every tensor comes from the checkpoint
        network = create(arch.name, 2)
        head = build_head(found.layers, shapes)
        network.add_module(arch.head, head)
    check_modules(network, found.modules, path)
    named = {**found.body}
    for own, theirs in head_tensors(found.layers, found.around).items():
        named[f"{arch.head}.{own}"] = found.around[theirs]
    state = {key: tensor.read(key, path) for key, tensor in named.items()}
    needed = network.state_dict()
    state |= {
        key: tensor.reshape(needed[key].shape) for key, tensor in state.items() if tensor.ndim == 4 > needed[key].ndim
    }
    state |= missing_biases(network, state)
    state |= {key: torch.tensor(0) for key in needed if key.endswith("num_batches_tracked")}
    network.load_state_dict(state, assign=True)
    return network.eval()


def normalized_as(known: Preprocess, statistics: tuple[Stored, Stored], path: Path) -> Preprocess:
    """The preprocessing of a layer that subtracts a mean and divides by a standard deviation."""
    mean, std = (tuple(tensor.read("statistics", path).flatten().tolist()) for tensor in statistics)
    scale = 1.0 if max(mean) > _MEAN_OF_PIXELS else known.pixel_scale
    if min(std) <= 0:
        raise WeightsError(f"normalizes images with std {std}", where=path, hint="save the network alone")
    return replace(known, mean=mean, std=std, pixel_scale=scale)


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


_METADATA = DocumentKind(_Metadata, "metadata", "write it as JSON", error=WeightsError, upgrade=complete_preprocess)


def _locate(model: ZooModel, weights: str, progress: Progress) -> _Origin:
    words = weights
    limits = limits_for(model.architecture.size.params)
    if "://" in weights:
        path = fetch(weights, None, progress, limits)
        words = escaped(PurePosixPath(urlsplit(weights).path).name) or "a URL"
    elif Path(weights).exists() and not Path(weights).is_dir():
        path = Path(weights)
        with reading(path, error=WeightsError, hint="give the checkpoint's file"):
            refuse_special(path)
        words = path.name
    elif Path(weights).is_dir():
        raise WeightsError("is a directory", where=weights, hint="give the checkpoint's file")
    elif re.fullmatch(r"[a-z]+(:\w+)?", weights):
        tagged = find_weights(model.architecture.name, weights)
        bundled = model.bundled if tagged.tag == "signs" else None
        path = bundled or fetch(tagged.url, tagged.sha256, progress, limits)
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


def settle(network: nn.Module, px: int) -> None:
    """Give the batch norms of a network in training mode the statistics of two images of noise."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the plain mean over all batches, here one
    network(torch.randn(2, 3, px, px))
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum


def _random(arch: Architecture, num_classes: int | None) -> Loaded:
    """A network with random weights, the same in every run; batch norm's statistics come from two images of noise.

    Without the statistics, each block doubles the variance: logits of resnet152 reach 1e8, too large for FP16.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(SEED)
        network = create(arch.name, num_classes)
        settle(network, min(arch.input_px, 64))
    classes = arch.num_classes if num_classes is None else num_classes
    return Loaded(network.eval(), ModelSpec(arch.name, arch.preprocess, _unnamed(classes)))
