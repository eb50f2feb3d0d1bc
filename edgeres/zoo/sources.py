"""Networks of timm and torchvision, where they are installed, with the preprocessing and labels of their weights.

    timm:resnet50d.ra2_in1k        the architecture is built by timm, the tag names published weights
    torchvision:resnet18           --weights IMAGENET1K_V1, or another name of its weights

Published weights are fetched and read like any checkpoint; timm's own cache is looked into first. Code of the package
runs, code of a file never does.
"""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from edgeres.data.labels import imagenet_classes
from edgeres.errors import EnvironmentError_, UsageError, WeightsError, reading
from edgeres.files import refuse_special
from edgeres.files import sha256 as file_sha256
from edgeres.progress import SILENT, Progress
from edgeres.records import Interpolation, ModelSpec, Preprocess
from edgeres.zoo.checkpoint import SEED, Loaded, WeightsChoice, find_network, normalized_as, settle
from edgeres.zoo.download import fetch, limits_for
from edgeres.zoo.heads import head_tensors
from edgeres.zoo.match import Match, Requirement
from edgeres.zoo.transfer import DownloadLimits

PACKAGES = ("timm", "torchvision")
_HUB = "https://huggingface.co/{repository}/resolve/main/{file}"
_NEAR = 4


def load_source(name: str, choice: WeightsChoice, progress: Progress = SILENT) -> Loaded:
    """A network that another package builds.

    Args:
        name: ``timm:NAME`` or ``torchvision:NAME``.
        choice: None as the weights takes the package's published ones.

    Raises:
        EnvironmentError_: the package is not installed.
        UsageError: it has no such network or weights.
        WeightsError: weights cannot be fetched, read or matched.
    """
    package, _, own = name.partition(":")
    source = (_Timm if package == "timm" else _Torchvision)(own, choice)
    if choice.weights == "random":
        if choice.averaged:
            raise UsageError("random weights have no average", where="--ema", hint="leave it out")
        network = source.build(choice.num_classes)
        _settle(network, source.preprocess.crop_px[0])
        classes = _classes(network, source.preprocess.crop_px)
        return Loaded(network.eval(), ModelSpec(own, source.preprocess, _unnamed(classes)), source.notes)
    file, words = source.file(progress)
    network = source.build(None)
    wanted = _wanted(name, network, source.head)
    found = find_network(wanted, file, choice)
    classes = found.around[f"{found.layers[-1].name}.weight"].shape[0]
    network = source.build(classes)
    _fill(network, found, source.head, file)
    labels = source.labels if len(source.labels) == classes and words != file.name else _unnamed(classes)
    spec = ModelSpec(own, source.preprocess, labels, weights=words, weights_sha256=file_sha256(file))
    if found.statistics:
        spec = replace(spec, preprocess=normalized_as(spec.preprocess, found.statistics, file))
    return Loaded(network.eval(), spec, (*source.notes, *found.notes))


def _imported(package: str, *modules: str) -> Any:
    """A package, imported with these modules.

    Raises:
        EnvironmentError_: it is missing, or a package that it needs.
    """
    try:
        for module in modules:
            importlib.import_module(f"{package}.{module}")
        return importlib.import_module(package)
    except ImportError as error:
        missing = (error.name or package).partition(".")[0]
        what = f"{package} is not installed" if missing == package else f"{package} needs {missing}, which is missing"
        raise EnvironmentError_(what, hint=f"pip install {missing}") from error
    except Exception as error:  # a package that does not fit the installed torch fails in its own ways
        reason = str(error).partition("\n")[0]
        raise EnvironmentError_(
            f"{package} cannot be imported ({reason:.160})", hint=f"pip install -U {package}"
        ) from error


def _unknown(package: str, name: str, known: Iterable[str]) -> UsageError:
    near = difflib.get_close_matches(name, known, _NEAR, 0.5)
    hint = f"perhaps {', '.join(near)}" if near else f"{package}.list_models() in Python lists all"
    return UsageError(f"{package} has no such model", where=f"{package}:{name}", hint=hint)


class _Timm:
    """A network of timm."""

    def __init__(self, name: str, choice: WeightsChoice) -> None:
        self.name, self.choice = name, choice
        self.timm = _imported("timm", "data", "models")
        self.arch, _, tag = name.partition(".")
        if not self.timm.is_model(self.arch):
            raise _unknown("timm", self.arch, self.timm.list_models())
        tagged = list(self.timm.list_pretrained(f"{self.arch}.*"))
        if tag and name not in tagged:
            hint = f"there are {', '.join(tagged)}" if tagged else "leave out what follows the dot"
            raise UsageError(f"timm has no weights {tag!r} of it", where=f"timm:{name}", hint=hint)
        model = self.build(None)
        self.limits = limits_for(sum(p.numel() for p in model.parameters()))
        self.config: Mapping[str, Any] = model.pretrained_cfg
        self.head = str(self.config.get("classifier") or "fc")
        known = self.timm.data.resolve_data_config({}, model=model)
        self.preprocess, self.notes = _timm_preprocess(known)

    def build(self, num_classes: int | None) -> Any:
        options = {} if num_classes is None else {"num_classes": num_classes}
        return self.timm.create_model(self.name, pretrained=False, exportable=True, **options)

    @property
    def labels(self) -> tuple[str, ...]:
        """ImageNet's where the tag says that the weights have its 1,000 classes."""
        tag = str(self.config.get("tag") or "")
        return tuple(name for _, name in imagenet_classes()) if tag.endswith("in1k") else ()

    def file(self, progress: Progress) -> tuple[Path, str]:
        if self.choice.weights:
            return _given(self.choice.weights, progress, self.limits)
        repository, url = self.config.get("hf_hub_id"), self.config.get("url")
        words = str(self.config.get("tag") or "pretrained")
        if repository:
            file = self.config.get("hf_hub_filename") or "model.safetensors"
            known = _HUB.format(repository=repository, file=file)
            return fetch(known, None, progress, self.limits, _cached(repository, file)), words
        if url:
            return fetch(url, _digest(url), progress, self.limits), words
        raise WeightsError(
            "timm publishes no weights for it", where=f"timm:{self.name}", hint="give --weights FILE or random"
        )


class _Torchvision:
    """A network of torchvision."""

    def __init__(self, name: str, choice: WeightsChoice) -> None:
        self.name, self.choice = name, choice
        self.models = _imported("torchvision", "models").models
        known = self.models.list_models(module=self.models)
        if name not in known:
            raise _unknown("torchvision", name, known)
        published = {entry.name: entry for entry in self.models.get_model_weights(name)}
        asked = (choice.weights or "DEFAULT").upper()
        self.entry = published.get(asked) or (self.models.get_model_weights(name).DEFAULT if published else None)
        self.published = asked in published or choice.weights is None or asked == "DEFAULT"
        self.names = list(published)
        self.head = self._head()
        self.preprocess, self.notes = _torchvision_preprocess(self.entry.transforms() if self.entry else None)

    def build(self, num_classes: int | None) -> nn.Module:
        options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
        if self.name in ("googlenet", "inception_v3"):
            options["init_weights"] = False
        made: nn.Module = self.models.get_model(self.name, weights=None, **options)
        return made

    def _head(self) -> str:
        """The last matrix of the network: fc, classifier, classifier.6, heads.head."""
        with torch.device("meta"):
            layers = [name for name, layer in self.build(None).named_modules() if isinstance(layer, nn.Linear)]
        return layers[-1] if layers else "fc"

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.entry.meta.get("categories", ())) if self.entry and self.published else ()

    def file(self, progress: Progress) -> tuple[Path, str]:
        if self.entry is not None and self.published:
            return fetch(self.entry.url, _digest(self.entry.url), progress, self._limits()), self.entry.name
        weights = str(self.choice.weights)
        if not ("://" in weights or Path(weights).exists()) and weights.replace("_", "").isalnum():
            hint = f"there are {', '.join((*self.names, 'random'))}, or a file or URL"
            raise UsageError(
                f"torchvision has no weights {weights!r} of it", where=f"torchvision:{self.name}", hint=hint
            )
        return _given(weights, progress, self._limits())

    def _limits(self) -> DownloadLimits:
        with torch.device("meta"):
            return limits_for(sum(p.numel() for p in self.build(None).parameters()))


def _given(weights: str, progress: Progress, limits: DownloadLimits) -> tuple[Path, str]:
    """The user's own file, or what a URL gives, and its name."""
    path = fetch(weights, None, progress, limits) if "://" in weights else Path(weights)
    if path.is_dir():
        raise WeightsError("is a directory", where=weights, hint="give the checkpoint's file")
    if path.exists():
        with reading(path, error=WeightsError, hint="give the checkpoint's file"):
            refuse_special(path)
    else:
        raise WeightsError(
            "no such file", where=weights, hint="or leave out --weights for the published ones, or random"
        )
    return path, path.name


def _digest(url: str) -> str | None:
    """The first digits of the file's SHA-256 that its name ends in, as torch.hub's files have them."""
    digits = Path(url).stem.rpartition("-")[2]
    return digits if len(digits) == 8 and all(c in "0123456789abcdef" for c in digits) else None


def _cached(repository: str, file: str) -> tuple[Path, ...]:
    """The file in the cache of the Hugging Face hub, where it is; large files lie there under their SHA-256."""
    try:
        hub = importlib.import_module("huggingface_hub")
        found = hub.try_to_load_from_cache(repository, file)
    except Exception:  # without the cache, the file is fetched
        return ()
    return (Path(found),) if isinstance(found, str) else ()


def _timm_preprocess(config: Mapping[str, Any]) -> tuple[Preprocess, tuple[str, ...]]:
    """timm's evaluation transform: the shorter side to size / crop_pct, rounded down, and a crop at the centre."""
    notes = []
    channels, height, width = config["input_size"]
    if channels != 3:
        raise UsageError(f"the network takes {channels} channels", where="timm", hint="images with three are taken")
    resize: int | None = math.floor(min(height, width) / config["crop_pct"])
    mode, interpolation = config.get("crop_mode", "center"), config["interpolation"]
    if mode == "squash":
        resize = None
    elif mode != "center":
        notes.append(f"timm pads images here (crop_mode {mode}); they are cropped at the centre instead")
    if interpolation not in get_args(Interpolation):
        notes.append(f"interpolation {interpolation} is not known here; bilinear is used")
        interpolation = "bilinear"
    known = Preprocess((height, width), resize, interpolation, tuple(config["mean"]), tuple(config["std"]))
    return known, tuple(notes)


def _torchvision_preprocess(transforms: Any) -> tuple[Preprocess, tuple[str, ...]]:
    """The sizes, filter and statistics of torchvision's preset for classification."""
    if transforms is None:
        return Preprocess((224, 224), 256), ("torchvision publishes no preprocessing for it: ImageNet's is used",)
    crop, resize = (list(getattr(transforms, name)) for name in ("crop_size", "resize_size"))
    size = (crop[0], crop[-1])
    notes: tuple[str, ...] = ()
    interpolation = str(getattr(transforms.interpolation, "value", transforms.interpolation))
    if interpolation not in get_args(Interpolation):
        notes = (f"interpolation {interpolation} is not known here; bilinear is used",)
        interpolation = "bilinear"
    return Preprocess(size, resize[0], interpolation, tuple(transforms.mean), tuple(transforms.std)), notes  # type: ignore[arg-type]


def _wanted(name: str, network: nn.Module, head: str) -> Requirement:
    """What a checkpoint of this network has to hold."""
    state = {k: t for k, t in network.state_dict().items() if t.is_floating_point()}
    layer = network.get_submodule(head)
    if not isinstance(layer, nn.Linear) and not (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)):
        what = f"its classifier is a {type(layer).__name__}"
        raise WeightsError(what, where=name, hint="export it as ONNX and give that as the model")
    features = layer.weight.shape[1]
    return Requirement(
        name, {k: tuple(t.shape) for k, t in state.items() if not k.startswith(f"{head}.")}, head, features
    )


def _fill(network: nn.Module, found: Match, head: str, path: Path) -> None:
    """Load the values of a match into a network with as many classes."""
    if len(found.layers) > 1:
        what = "has a classifier of several layers, and the architecture's has one"
        raise WeightsError(what, where=path, hint="export it as ONNX and give that as the model")
    named = dict(found.body)
    for own, theirs in head_tensors(found.layers, found.around).items():
        named[f"{head}.{own}"] = found.around[theirs]
    values = {key: tensor.read(key, path) for key, tensor in named.items()}
    own_state = network.state_dict()
    for key, tensor in own_state.items():
        if key in values:
            tensor.copy_(values[key].reshape(tensor.shape))
        elif key == f"{head}.bias":
            tensor.zero_()


def _settle(network: nn.Module, px: int) -> None:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(SEED)
        settle(network.train(), px)


def _classes(network: nn.Module, size_px: tuple[int, int]) -> int:
    with torch.no_grad():
        return int(network.eval()(torch.zeros(1, 3, *size_px)).shape[-1])


def _unnamed(classes: int) -> tuple[str, ...]:
    return tuple(f"class {i}" for i in range(classes))
