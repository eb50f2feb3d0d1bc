"""The classifier of a checkpoint: found by its shape beside the backbone, whatever it is called.

fc.weight                          one Linear, with a bias or without
fc.1.weight                        the same behind a Dropout
fc.0.weight, fc.3.weight           Linear, an activation and a Dropout, Linear; BatchNorm1d may stand between
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from edgeres.errors import WeightsError
from edgeres.inert import Inert
from edgeres.zoo.state_dict import Stored

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "none": nn.Identity,
}
_NO_EFFECT = {"Dropout", "Identity", "Flatten", "AlphaDropout", "FeatureAlphaDropout"}
_NEXT = "train a classifier on it (a linear layer, or fine-tuning) and give that checkpoint"
# Names that self-supervised training gives to what stands behind its backbone, and to its second encoder.
_SELF_SUPERVISED = re.compile(
    r"(?:^|\.)(encoder_[qk]|queue|queue_ptr|momentum_encoder|predictor|prototypes|last_layer|"
    r"proj(?:ector|ection)?(?:_head|_mlp|ion)?|online_encoder|target_encoder|mlp_head)(?:\.|$)"
)
# Of these, the ones that never compute scores: they are left out where a classifier stands beside them.
PRETRAINING = re.compile(
    r"(?:^|\.)(?:encoder_k|queue|queue_ptr|momentum_\w+|predictor|prototypes|projector|projection_head|target_encoder)"
    r"(?:\.|$)"
)


@dataclass(frozen=True)
class Layer:
    """One layer of a classifier: ``linear`` and ``norm`` have tensors under ``name``; other kinds are activations."""

    kind: str
    name: str = ""


class NoClassifier(WeightsError):
    """The checkpoint has a backbone alone."""


@dataclass(frozen=True)
class Surroundings:
    """What stands beside a backbone.

    Attributes:
        tensors: those that are not the backbone's, by name.
        modules: pickled modules by their path, with a dot at its end.
        features: channels that the backbone gives.
    """

    tensors: Mapping[str, Stored]
    modules: Mapping[str, Inert]
    features: int
    path: Path


def find_head(around: Surroundings, activation: str | None) -> tuple[Layer, ...]:
    """The layers of the classifier in order.

    Args:
        activation: a key of :data:`ACTIVATIONS` that stands between matrices; None: not known.

    Raises:
        NoClassifier: there is none. WeightsError: it is not known how the matrices follow each other.
    """
    pretraining = {name: found[1] for name in around.tensors if (found := _SELF_SUPERVISED.search(name))}
    matrices = [
        n.removesuffix(".weight") for n, t in around.tensors.items() if _is_matrix(n, t) and n not in pretraining
    ]
    if pretraining and not matrices:
        named = ", ".join(dict.fromkeys(pretraining.values()))
        what = f"comes from self-supervised training ({named}) and has no classifier"
        raise NoClassifier(what, where=around.path, hint=_NEXT)
    if not matrices:
        what = f"has no classifier: no matrix with {around.features} inputs beside the backbone"
        raise NoClassifier(what, where=around.path, hint=_NEXT)
    parents = {name.rpartition(".")[0] for name in matrices}
    if len(matrices) == 1 and not _has_norms(around, matrices[0]):
        layers: tuple[Layer, ...] = (Layer("linear", matrices[0]),)
    elif len(parents) == 1 and all(name.rpartition(".")[2].isdigit() for name in matrices):
        layers = _chain(around, parents.pop(), activation)
    else:
        listed = ", ".join(f"{name} {'x'.join(map(str, around.tensors[name + '.weight'].shape))}" for name in matrices)
        hint = "save the network with one of them, or export it as ONNX"
        raise WeightsError(
            f"has several matrices, and which is the classifier is open: {listed}", where=around.path, hint=hint
        )
    _check_sizes(around, layers)
    return layers


def build_head(layers: Sequence[Layer], shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
    """A module of these layers; the shapes are those of ``<name>.weight``. A matrix always has a bias here."""
    if len(layers) == 1:
        classes, features = shapes[f"{layers[0].name}.weight"][:2]
        return nn.Linear(features, classes)
    made: list[nn.Module] = []
    for layer in layers:
        shape = shapes.get(f"{layer.name}.weight", ())
        if layer.kind == "linear":
            made.append(nn.Linear(shape[1], shape[0]))
        else:
            made.append(nn.BatchNorm1d(shape[0]) if layer.kind == "norm" else ACTIVATIONS[layer.kind]())
    return nn.Sequential(*made)


def head_tensors(layers: Sequence[Layer], around: Mapping[str, Stored]) -> dict[str, str]:
    """Names in the checkpoint by the names in :func:`build_head`'s module."""
    named: dict[str, str] = {}
    for index, layer in enumerate(layers):
        if layer.name:
            place = "" if len(layers) == 1 else f"{index}."
            parts = ("weight", "bias") if layer.kind == "linear" else ("weight", "bias", "running_mean", "running_var")
            named |= {f"{place}{part}": f"{layer.name}.{part}" for part in parts if f"{layer.name}.{part}" in around}
    return named


def missing_biases(module: nn.Module, given: Mapping[str, object]) -> dict[str, torch.Tensor]:
    """Zeros for the biases of matrices that have none in the checkpoint."""
    absent = {name: p for name, p in module.named_parameters() if name.endswith("bias") and name not in given}
    return {name: torch.zeros(parameter.shape) for name, parameter in absent.items()}


def _is_matrix(name: str, tensor: Stored) -> bool:
    """Whether it is the weight of a Linear, or of a 1x1 convolution in place of one."""
    flat = tensor.shape[2:] in ((), (1, 1))
    return len(tensor.shape) in (2, 4) and flat and name.endswith(".weight")


def _has_norms(around: Surroundings, matrix: str) -> bool:
    parent, _, own = matrix.rpartition(".")
    return own.isdigit() and any(n.startswith(f"{parent}.") and n.endswith("running_mean") for n in around.tensors)


def _chain(around: Surroundings, parent: str, activation: str | None) -> tuple[Layer, ...]:
    """Layers of an ``nn.Sequential``: the numbers between those with tensors are activations and Dropout."""
    start = f"{parent}." if parent else ""
    numbers = {n.removeprefix(start).partition(".")[0] for n in around.tensors if n.startswith(start)}
    layers: list[Layer] = []
    before = None
    for number in sorted(int(n) for n in numbers if n.isdigit()):
        name = f"{start}{number}"
        weight = around.tensors.get(f"{name}.weight")
        linear, norm = weight is not None and len(weight.shape) == 2, f"{name}.running_mean" in around.tensors
        if not (linear or norm):
            what = f"{name} in the classifier is neither a Linear nor a BatchNorm1d"
            raise WeightsError(what, where=around.path, hint="export the network as ONNX and give that as the model")
        if before is not None and number - before > 1:
            layers.append(Layer(_between(around, start, range(before + 1, number), activation)))
        layers.append(Layer("linear" if linear else "norm", name))
        before = number
    return tuple(layers)


def _between(around: Surroundings, start: str, numbers: range, activation: str | None) -> str:
    """The activation among layers without tensors: by its class where the file has modules, else as the user says."""
    classes = [found.path.rpartition(".")[2] for n in numbers if (found := around.modules.get(f"{start}{n}."))]
    if len(classes) == len(numbers):
        known = {kind.__name__: name for name, kind in ACTIVATIONS.items()}
        active = [name for name in classes if name not in _NO_EFFECT]
        if len(active) > 1 or not all(name in known for name in active):
            what = f"the classifier has {', '.join(active)}, which is not known here"
            raise WeightsError(what, where=around.path, hint="export the network as ONNX and give that as the model")
        return known[active[0]] if active else "none"
    if activation is None:
        between = f"{start}{numbers[0]}" if len(numbers) == 1 else f"{start}{numbers[0]} to {start}{numbers[-1]}"
        what = f"the classifier has several layers, and a checkpoint does not say which activation is at {between}"
        hint = (
            f"give --head-activation {'|'.join(ACTIVATIONS)}; a projection of self-supervised training is no classifier"
        )
        raise WeightsError(what, where=around.path, hint=hint)
    return activation


def _check_sizes(around: Surroundings, layers: Sequence[Layer]) -> None:
    """Raise if a layer does not take what the one before it gives."""
    width = around.features
    for layer in layers:
        if not layer.name:
            continue
        shape = around.tensors[f"{layer.name}.weight"].shape
        takes = shape[1] if layer.kind == "linear" else shape[0]
        if takes != width:
            what = f"{layer.name} takes {takes} values where {width} arrive"
            raise WeightsError(what, where=around.path, hint="export the network as ONNX and give that as the model")
        if layer.kind == "linear" and (bias := around.tensors.get(f"{layer.name}.bias")) and bias.shape != shape[:1]:
            raise WeightsError(f"{layer.name}.bias has {bias.shape} for {shape[0]} outputs", where=around.path)
        width = shape[0]
    if width < 2:
        hint = "train with two classes and cross entropy, which computes the same"
        raise WeightsError(
            "its classifier gives one number, and two or more scores are judged", where=around.path, hint=hint
        )
