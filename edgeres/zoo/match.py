"""Find an architecture's network among the tensors of a checkpoint, whatever stands before and beside its names.

    tensors by path -> prefixes under which every tensor of the backbone is -> one of them -> its classifier

A prefix is what the file itself shows: ``state_dict.module.``, ``model.``, ``self.resnet.``. Nothing is guessed from
the order of tensors. A tensor beside the network is used, is known to have another purpose, or is a reason to refuse.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from edgeres.data.base import some
from edgeres.errors import WeightsError
from edgeres.inert import Inert
from edgeres.zoo.architectures import ARCHITECTURES, Architecture
from edgeres.zoo.heads import PRETRAINING, Layer, NoClassifier, Surroundings, find_head
from edgeres.zoo.others import other_architecture
from edgeres.zoo.resnet import create
from edgeres.zoo.state_dict import Checkpoint, Stored

Shapes = Mapping[str, tuple[int, ...]]

_MOST_NUMBERED = 100  # networks in one file whose children have numbers for names
_NAMED = 3  # a message names this many tensors and counts the others
# Where several networks fit, the one under the first of these names is what training scripts call the network.
_NETWORK = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module")
_AVERAGED = re.compile(r"(?:^|[._])(?:ema|swa|averaged?|avg|polyak|shadow)(?:$|[._])")
_BESIDE = re.compile(r"(?:^|\.)[^.]*(?:criteri|loss|metric|accuracy|auroc|confusion|confmat)[^.]*\.|(?:^|\.)teacher\.")
_STATISTICS = re.compile(r"(?:^|[._])(mean|std)$")
_ALONE = "save the one you mean alone"


@dataclass(frozen=True)
class Requirement:
    """What a checkpoint has to hold.

    Attributes:
        need: shapes of the backbone's tensors by name: all but the classifier's, and none that only training needs.
        head: name of the classifier.
        features: what the classifier takes.
        arch: of the zoo, whose tensors may have other usual names; None: names are taken as they are.
    """

    name: str
    need: Mapping[str, tuple[int, ...]]
    head: str
    features: int
    arch: Architecture | None = None


@dataclass(frozen=True)
class Match:
    """A network in a checkpoint.

    Attributes:
        body: the backbone's tensors by the names of the architecture.
        around: what stands beside it: the classifier's tensors by their names in the file.
        layers: the classifier.
        modules: what the file says about the backbone's layers, by name, where it holds a module.
        statistics: mean and std per channel of a layer that normalizes images before the network, where there is one.
        notes: what was chosen, and what was left out, in words.
    """

    body: dict[str, Stored]
    around: dict[str, Stored]
    layers: tuple[Layer, ...]
    modules: dict[str, Inert] = field(default_factory=dict)
    statistics: tuple[Stored, Stored] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Prefix:
    """A prefix under which the backbone is complete."""

    prefix: str
    holder: str
    values: tuple[object, ...] = field(repr=False)

    @property
    def name(self) -> str:
        """The prefix for a message."""
        return self.prefix.rstrip(".") or "the top level"

    @property
    def usual(self) -> int:
        """Rank among the names that scripts give to the network; lower is more usual."""
        last = self.holder.rstrip(".").rpartition(".")[2]
        return _NETWORK.index(last) if last in _NETWORK else len(_NETWORK)


def match(
    wanted: Requirement, checkpoint: Checkpoint, *, averaged: bool = False, activation: str | None = None
) -> Match:
    """The wanted network in the checkpoint.

    Args:
        averaged: take the average of the weights that training kept (EMA, SWA).
        activation: see :func:`~edgeres.zoo.heads.find_head`.

    Raises:
        WeightsError: no network fits, or several do, or a tensor beside it may belong to the network's computation.
    """
    named = _Named(wanted, checkpoint)
    places = named.places()
    if not places:
        raise named.misfit()
    chosen, notes = _choose(named, places, averaged, activation)
    around, statistics, left = _surroundings(named, chosen, places)
    layers = find_head(named.around(around), activation)
    used = {name for layer in layers if layer.name for name in around if name.startswith(f"{layer.name}.")}
    unused = [name for name in around if name not in used]
    left = [*left, *(name for name in unused if PRETRAINING.search(name))]
    if strange := [name for name in unused if name not in left]:
        raise named.misfit(chosen.prefix, strange)
    if left:
        notes = (*notes, f"left out, as no part of the network: {some(left, len(left), _NAMED)}")
    if statistics:
        notes = (*notes, "the checkpoint normalizes images itself: its mean and std are taken as preprocessing")
    for path in (chosen.prefix, chosen.holder):
        if path in checkpoint.modules:
            kind = checkpoint.modules[path].path
            notes = (*notes, f"the file holds a module ({kind}): its tensors are taken, its code is not run")
            break
    body = {key: named.tensors[chosen.prefix + key] for key in named.need}
    inside = {
        n.removeprefix(chosen.prefix).rstrip("."): m
        for n, m in checkpoint.modules.items()
        if n.startswith(chosen.prefix)
    }
    modules = {n: m for n, m in inside.items() if named.inside(chosen.prefix + n, chosen.prefix) or n == "maxpool"}
    return Match(body, {name: around[name] for name in sorted(used)}, layers, modules, statistics, notes)


class _Named:
    """The tensors of a checkpoint beside what an architecture needs."""

    def __init__(self, wanted: Requirement, checkpoint: Checkpoint) -> None:
        self.wanted, self.checkpoint = wanted, checkpoint
        self.need = wanted.need
        self.tops = {key.partition(".")[0] for key in self.need}
        renamed = [(name, name) for name in checkpoint.tensors]
        if wanted.arch:
            renamed = list(_as_torchvision(wanted.arch, checkpoint.tensors))
        self.tensors = {new: checkpoint.tensors[old] for new, old in renamed}
        self.holders = {new: checkpoint.holders[old] for new, old in renamed}
        self.found: Counter[str] = Counter()
        for name in self.tensors:
            parts = name.split(".")
            for start in range(len(parts)):
                if ".".join(parts[start:]) in self.need:
                    self.found[".".join((*parts[:start], ""))] += 1

    def places(self) -> list[_Prefix]:
        """Prefixes under which the backbone is complete, in the order of the file; equal values count once."""
        found: dict[tuple[object, ...], _Prefix] = {}
        for prefix, count in self.found.items():
            inside = {key: self.tensors.get(prefix + key) for key in self.need} if count == len(self.need) else {}
            fits = inside and all(t is not None and t.shape == self.need[key] for key, t in inside.items())
            if fits and not self.more_inside(prefix):
                values = tuple(t.place for t in inside.values() if t is not None)
                place = _Prefix(prefix, self.holders[prefix + next(iter(self.need))], values)
                found.setdefault((_is_average(self, place), *values), place)
        return list(found.values())

    def more_inside(self, prefix: str) -> list[str]:
        """Tensors of the backbone's own modules that the architecture does not have, such as further blocks."""
        return [n for n in self.tensors if self.inside(n, prefix) and n.removeprefix(prefix) not in self.need]

    def inside(self, name: str, prefix: str) -> bool:
        """Whether a name belongs to one of the backbone's own modules."""
        if name.startswith(f"{prefix}{self.wanted.head}."):
            return False
        return name.startswith(prefix) and name.removeprefix(prefix).partition(".")[0] in self.tops

    def around(self, tensors: Mapping[str, Stored]) -> Surroundings:
        return Surroundings(tensors, self.checkpoint.modules, self.wanted.features, self.checkpoint.path)

    def misfit(self, prefix: str | None = None, unexpected: list[str] | None = None) -> WeightsError:
        """The error that names what is missing, left over, or has another shape, and the next step."""
        if prefix is None:
            prefix = max(self.found, key=lambda p: (self.found[p], self._same_shapes(p)), default="")
        holder = next((self.holders[prefix + key] for key in self.need if prefix + key in self.tensors), "")
        scope = [name for name in self.tensors if self.holders[name] == holder]
        missing = [key for key in self.need if prefix + key not in self.tensors]
        if unexpected is None:
            inside = [name for name in scope if name.startswith(prefix) and name.removeprefix(prefix) not in self.need]
            unexpected = [name for name in inside if not (_is_head(self.wanted.head, name) or _BESIDE.search(name))]
        differ = [
            f"{key} {_dims(tensor.shape)} for {_dims(shape)}"
            for key, shape in self.need.items()
            if (tensor := self.tensors.get(prefix + key)) and tensor.shape != shape
        ]
        unexpected = [name.removeprefix(prefix) for name in unexpected]
        differences = ((missing, "missing"), (unexpected, "unexpected"), (differ, "with another shape"))
        listed = "; ".join(
            f"{len(keys)} {what} ({some(keys, len(keys), _NAMED)})" for keys, what in differences if keys
        )
        hint = _advice(self.wanted.arch, self.checkpoint, unexpected)
        return WeightsError(f"does not fit {self.wanted.name}: {listed}", where=self.checkpoint.path, hint=hint)

    def _same_shapes(self, prefix: str) -> int:
        return sum(t.shape == shape for key, shape in self.need.items() if (t := self.tensors.get(prefix + key)))


@lru_cache(maxsize=64)
def body_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the backbone's tensors by name: all but the classifier's, and none that only training needs."""
    with torch.device("meta"):
        state = create(name, 2).state_dict()
    head = ARCHITECTURES[name].head + "."
    return {
        k: tuple(t.shape) for k, t in state.items() if not (k.startswith(head) or k.endswith("num_batches_tracked"))
    }


def wanted_of(arch: Architecture) -> Requirement:
    """What a checkpoint of an architecture of the zoo has to hold."""
    need = body_shapes(arch.name)
    norms = [key for key in need if key.startswith("layer") and key.endswith("running_mean")]
    features = need["post.0.weight" if arch.preactivation else norms[-1]][0]
    return Requirement(arch.name, need, arch.head, features, arch)


def _dims(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _is_head(head: str, name: str) -> bool:
    owner, _, own = f".{name}".rpartition(".")
    return own in ("weight", "bias") and owner.endswith((f".{head}", ".fc", ".linear", ".classifier", ".head"))


def _as_torchvision(arch: Architecture, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """New and old names: children of an ``nn.Sequential`` by their names, ``shortcut`` as ``downsample``.

    ``nn.Sequential(*resnet.children())`` numbers all children, and those without tensors leave gaps.
    """
    top = list(dict.fromkeys(key.partition(".")[0] for key in body_shapes(arch.name)))
    names = list(names)
    numbered: dict[str, dict[str, str]] = {}
    for name in names:
        found = re.fullmatch(r"(.*?\.|)\d+\.0\.conv1\.weight", name)
        if found and found[1] not in numbered and len(numbered) < _MOST_NUMBERED:
            inside = (n.removeprefix(found[1]).partition(".")[0] for n in names if n.startswith(found[1]))
            children = sorted({int(child) for child in inside if child.isdigit()})
            if len(children) - len(top) in (0, 1):
                modules = [*top, arch.head][: len(children)]
                numbered[found[1]] = dict(zip(map(str, children), modules, strict=True))
    for name in names:
        new = name
        for prefix, known in numbered.items():
            child, dot, rest = name.removeprefix(prefix).partition(".")
            if name.startswith(prefix) and child in known:
                new = f"{prefix}{known[child]}{dot}{rest}"
        if arch.shortcut == "projection":
            new = re.sub(r"(?<=\.)shortcut(?=\.\d\.)", "downsample", new)
        yield new, name


def _choose(
    named: _Named, places: list[_Prefix], averaged: bool, activation: str | None
) -> tuple[_Prefix, tuple[str, ...]]:
    """The network that is meant, and notes on those that are left."""
    path = named.checkpoint.path
    averages = [place for place in places if _is_average(named, place)]
    plain = [place for place in places if place not in averages]
    if averaged and not averages:
        raise WeightsError("holds no averaged weights that fit", where=path, hint="leave out --ema")
    candidates = averages if averaged or not plain else plain
    notes: tuple[str, ...] = ()
    if averages and not averaged:
        names = " and ".join(place.name for place in averages)
        notes = (f"averaged weights are in {names}; --ema takes them" if plain else f"averaged weights: {names}",)
    if len(candidates) > 1:
        complete = [place for place in candidates if _has_classifier(named, place, places, activation)]
        candidates = complete or candidates[:1]  # without a classifier anywhere, the message is the same for all
    best = min(place.usual for place in candidates)
    usual = [place for place in candidates if place.usual == best]
    if len(usual) > 1:
        names = " and ".join(place.name for place in usual)
        raise WeightsError(f"holds several networks that fit: {names}", where=path, hint=_ALONE)
    if others := [place.name for place in (plain if usual[0] in plain else averages) if place != usual[0]]:
        notes = (*notes, f"{usual[0].name} is taken; {' and '.join(others)} would fit, too")
    return usual[0], notes


def _is_average(named: _Named, place: _Prefix) -> bool:
    """Whether the prefix says so. Lightning's WeightAveraging exchanges the two."""
    if any(name.startswith("current_model_state.") for name in named.tensors):
        return place.holder.startswith("state_dict.")
    return bool(_AVERAGED.search(place.prefix))


def _has_classifier(named: _Named, place: _Prefix, places: list[_Prefix], activation: str | None) -> bool:
    try:
        find_head(named.around(_surroundings(named, place, places)[0]), activation)
    except NoClassifier:
        return False
    except WeightsError:
        return True  # what is wrong with it is said where it is taken
    return True


def _surroundings(
    named: _Named, place: _Prefix, places: list[_Prefix]
) -> tuple[dict[str, Stored], tuple[Stored, Stored] | None, list[str]]:
    """What stands beside a backbone and may belong to it; the statistics of its images; names that are left out."""
    values, body = set(place.values), {place.prefix + key for key in named.need}
    others = [other.prefix for other in places if other != place and not place.prefix.startswith(other.prefix)]
    scope = [n for n, holder in named.holders.items() if holder == place.holder and n not in body]
    beside = [n for n in scope if named.tensors[n].place not in values and not n.startswith(tuple(others))]
    inner = [n.removeprefix(place.prefix if n.startswith(place.prefix) else place.holder) for n in beside]
    left = [n for n, short in zip(beside, inner, strict=True) if _BESIDE.search(short)]
    around = {n: named.tensors[n] for n in beside if n not in left}
    stated = {
        found[1]: name
        for name, t in around.items()
        if (found := _STATISTICS.search(name)) and sum(size > 1 for size in t.shape) == 1 and max(t.shape) == 3
    }
    statistics = None
    if len(stated) == 2:
        statistics = around.pop(stated["mean"]), around.pop(stated["std"])
    if not any(name.endswith(".weight") for name in around):
        around |= _sibling(named, place, others)
    return around, statistics, left


def _sibling(named: _Named, place: _Prefix, others: list[str]) -> dict[str, Stored]:
    """The tensors of a dictionary beside the backbone's own one, where it holds the classifier."""
    parent = place.holder.rstrip(".").rpartition(".")[0]
    start = f"{parent}." if parent else ""
    holders = {
        named.holders[name]
        for name, tensor in named.tensors.items()
        if name.startswith(start)
        and named.holders[name] not in ("", place.holder)
        and not name.startswith((place.prefix, *others))
        and not _BESIDE.search(name)
        and name.endswith("weight")
        and tensor.shape[1:] == (named.wanted.features,)
    }
    return {n: t for n, t in named.tensors.items() if named.holders[n] in holders} if len(holders) == 1 else {}


def _advice(arch: Architecture | None, checkpoint: Checkpoint, unexpected: list[str]) -> str | None:
    if fits := [name for name in ARCHITECTURES if not (arch and name == arch.name) and _fits(name, checkpoint)]:
        return f"it fits {' and '.join(fits)}: give that as the model"
    if arch and arch.family == "cifar" and any(".downsample." in key or ".shortcut." in key for key in unexpected):
        return "its shortcuts are projections (option B); the zoo's CIFAR networks have option A's, without parameters"
    other = other_architecture({name: tensor.shape for name, tensor in checkpoint.tensors.items()})
    return other or "give the architecture that it was trained as, or export the network to ONNX and give that"


def _fits(name: str, checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint has this network's backbone and nothing more inside; the blocks are counted first."""
    arch = ARCHITECTURES[name]
    ends = [f"{s}.{depth - 1}.conv1.weight" for s, depth in enumerate(arch.depths, start=1)]
    if not any(n.endswith(f"layer{ends[0]}") for n in checkpoint.tensors):
        return False
    return bool(_Named(wanted_of(arch), checkpoint).places())
