"""The weights of each architecture: bundled ones and those that torchvision publishes. No torch is imported.

URLs, top-1 and preprocessing are those of the ``*_Weights`` classes in torchvision's ``models/resnet.py``. Its file
names hold the first eight hex digits of a file's SHA-256; the table has the full digest where a second publisher of the
file states it. torchvision has the BSD-3-Clause licence and states no other one for its files; its README adds that
pre-trained models may be subject to the terms of their training set (ImageNet: non-commercial research).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgeres.documents import DocumentKind, require
from edgeres.errors import UsageError, WeightsError
from edgeres.files import sha256
from edgeres.records import Preprocess, Weights
from edgeres.words import did_you_mean
from edgeres.zoo.architectures import ARCHITECTURES, Architecture

BUNDLED = Path(__file__).with_name("weights")
_URL = "https://download.pytorch.org/models/{name}-{digest:.8}.pth"

# Architecture, digest, top-1 in per cent, shorter side in pixels before the 224 crop: of IMAGENET1K_V1, then of V2.
# The shorter side is 256 for the original training recipe and 232 for that of 2021.
_TORCHVISION: tuple[tuple[str, str, float, int], ...] = (
    ("resnet18", "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec", 69.758, 256),
    ("resnet34", "b627a593bcbe140c234610266fe4f8ae95ea42fc881d091c9b6052e6b1d0590f", 73.314, 256),
    ("resnet50", "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a", 76.130, 256),
    ("resnet50", "11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca", 80.858, 232),
    ("resnet101", "63fe2227b86e8f1f2063f43a75c84d195911b6a0eace650907dd3dc62dd49a0a", 77.374, 256),
    ("resnet101", "cd907fc2a0de2292b2ba2b27d2216bc672d84632d1cf20058d01c0c03b5e020e", 81.886, 232),
    ("resnet152", "394f9c45966e3651a89bbb78a48410a6755854ce4a5ab64927cf1c7247f85e58", 78.312, 256),
    ("resnet152", "f82ba261", 82.284, 232),
    ("wide_resnet50_2", "95faca4d11227dddf8633dbb5ff6c8a9003c1aa5b8945c73834b8007b10950b8", 78.468, 256),
    ("wide_resnet50_2", "9ba9bcbebc349d733a72eb7608143fd754e4689ac8d8ce2916ca0bdff6443950", 81.602, 232),
    ("wide_resnet101_2", "32ee11565f95f2f07223b243ada444a6457c4b90a88e6e293922813faf6dfd06", 78.848, 256),
    ("wide_resnet101_2", "d733dc28", 82.510, 232),
    ("resnext50_32x4d", "7cdf4587", 77.618, 256),
    ("resnext50_32x4d", "1a0047aa", 81.198, 232),
    ("resnext101_32x8d", "8ba56ff5", 79.312, 256),
    ("resnext101_32x8d", "110c445d", 82.834, 232),
    ("resnext101_64x4d", "173b62eb", 83.246, 232),
)


@dataclass(frozen=True)
class _TrainingLog:
    """What ``benchmarks/train_signs.py`` leaves beside the weights it trained; ``top1`` is in per cent."""

    model: str
    generator: int
    top1: float
    validation_images: int
    train_seconds: float
    recipe: Any
    epochs: Any

    def __post_init__(self) -> None:
        require(0 <= self.top1 <= 100, "top1 must be 0 to 100")


_LOG = DocumentKind(_TrainingLog, "a training log", "install edgeres again", error=WeightsError)


@dataclass(frozen=True)
class ZooModel:
    """An architecture with its weights.

    Attributes:
        weights: by tag: ``signs`` where bundled, ``imagenet`` and ``imagenet:v2`` where published.
    """

    architecture: Architecture
    weights: dict[str, Weights]

    @property
    def bundled(self) -> Path | None:
        """The file in this package, trained on the ``signs`` set; None where there is none."""
        return BUNDLED / f"{self.architecture.name}-signs.safetensors" if "signs" in self.weights else None

    @property
    def default(self) -> str | None:
        """The tag that is used where none is given; None where only random weights exist."""
        return next(iter(self.weights), None)

    @property
    def tags(self) -> tuple[str, ...]:
        """All names that ``--weights`` accepts."""
        return (*self.weights, "random")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        a = self.architecture
        return {
            "name": a.name,
            "family": a.family,
            "params": a.size.params,
            "gmacs": a.size.gmacs,
            "input_px": a.input_px,
            "num_classes": a.num_classes,
            "default": self.default,
            "bundled": self.bundled is not None,
            "weights": [asdict(w) for w in self.weights.values()],
        }


def find_model(name: str) -> ZooModel:
    """An architecture of the zoo with its weights.

    Raises:
        UsageError: there is no such architecture; the message has a similar one, or lists all.
    """
    if name not in ARCHITECTURES:
        hint = did_you_mean(name, ARCHITECTURES) or f"one of {', '.join(ARCHITECTURES)}"
        raise UsageError("no such architecture", where=name, hint=hint)
    weights = (*_bundled(ARCHITECTURES[name]), *_published(name))
    return ZooModel(ARCHITECTURES[name], {w.tag: w for w in weights})


def list_models() -> list[ZooModel]:
    """All architectures of the zoo, in the order of its table."""
    return [find_model(name) for name in ARCHITECTURES]


def find_weights(name: str, tag: str) -> Weights:
    """The weights of an architecture under a tag (``signs``, ``imagenet``, ``imagenet:v2``).

    Raises:
        UsageError: there is no such architecture.
        WeightsError: it has no weights of this tag; the message lists all tags.
    """
    model = find_model(name)
    weights = model.weights.get(tag.removesuffix(":v1"))
    if weights is None:
        hint = f"there are {', '.join(model.tags)}, or a file or URL"
        raise WeightsError(f"no weights {tag!r}", where=name, hint=hint)
    return weights


def _bundled(arch: Architecture) -> list[Weights]:
    """Weights trained by ``benchmarks/train_signs.py``, which writes a log beside them."""
    file, log = (BUNDLED / f"{arch.name}-signs{suffix}" for suffix in (".safetensors", ".json"))
    if not (file.is_file() and log.is_file()):
        return []
    top1 = _LOG.read(log).top1
    preprocess = replace(arch.preprocess, resize_px=None)  # signs are rendered at the size the network takes
    return [Weights("signs", file.as_uri(), sha256(file), "Apache-2.0", top1, preprocess)]


def _published(name: str) -> list[Weights]:
    weights = []
    rows = [row for row in _TORCHVISION if row[0] == name]
    for version, (_, digest, top1, resize_px) in enumerate(rows, start=1):
        tag = "imagenet" if version == 1 else f"imagenet:v{version}"
        url = _URL.format(name=name, digest=digest)
        preprocess = Preprocess(crop_px=(224, 224), resize_px=resize_px)
        weights.append(Weights(tag, url, digest, "BSD-3-Clause", top1, preprocess))
    return weights
