"""Models of timm and torchvision, played by small packages of their form, and folders of transformers."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edgeres.data.labels import imagenet_classes
from edgeres.errors import EdgeresError, EnvironmentError_, InputError, UsageError, WeightsError
from edgeres.pipeline.take import ModelChoice, take
from edgeres.zoo.checkpoint import WeightsChoice
from edgeres.zoo.hf_folder import load_folder
from edgeres.zoo.resnet import create
from edgeres.zoo.sources import load_source

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=1000):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, classes)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.stem(x))).mean((2, 3)))
"""
TIMM = (
    NET
    + """
from timm import data, models
CONFIG = {"classifier": "fc", "tag": "a1_in1k", "hf_hub_id": None, "url": "URL", "hf_hub_filename": None}

def is_model(name): return name.partition(".")[0] in list_models()
def list_models(): return ["resnet50d", "resnet50t"]
def list_pretrained(pattern): return ["resnet50d.a1_in1k"]
def create_model(name, pretrained=False, exportable=False, num_classes=1000):
    assert not pretrained and exportable
    model = Net(num_classes)
    model.pretrained_cfg = CONFIG
    return model
"""
)
TIMM_DATA = """
CONFIG = {"input_size": (3, 64, 96), "crop_pct": 0.9, "crop_mode": "center", "interpolation": "bicubic",
          "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
def resolve_data_config(args, model): return CONFIG
"""
TORCHVISION_MODELS = (
    NET
    + """
import enum, types

class Preset:
    crop_size, resize_size, mean, std, interpolation = [64], [70], [0.4, 0.5, 0.6], [0.2, 0.3, 0.4], "bilinear"

class Weights(enum.Enum):
    V1 = "URL"
    DEFAULT = V1
    url = property(lambda self: self.value)
    transforms = lambda self: Preset()
    meta = property(lambda self: {"categories": [f"c{i}" for i in range(1000)]})

def list_models(module=None): return ["resnet18", "resnet34"]
def get_model_weights(name): return Weights
def get_model(name, weights=None, num_classes=1000): return Net(num_classes)
"""
)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A timm and a torchvision whose weights are published by a server on this machine; gives the server's folder."""
    monkeypatch.setenv("EDGERES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "*")
    site = tmp_path / "site"
    site.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/net.pth"
    files = {
        "timm/__init__.py": TIMM.replace("URL", url),
        "timm/data.py": TIMM_DATA,
        "timm/models.py": "",
        "torchvision/__init__.py": "",
        "torchvision/models.py": TORCHVISION_MODELS.replace("URL", url),
    }
    for name, text in files.items():
        (tmp_path / "lib" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lib" / name).write_text(text)
    kept = {name: module for name, module in sys.modules.items() if re.match(r"(timm|torchvision)(\.|$)", name)}
    for name in kept:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    yield site
    for name in [name for name in sys.modules if re.match(r"(timm|torchvision)(\.|$)", name)]:
        del sys.modules[name]
    server.shutdown()
    server.server_close()


def state(classes: int = 1000) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(classes)
    shapes = {"stem.weight": (8, 3, 3, 3), "fc.weight": (classes, 8), "fc.bias": (classes,)}
    shapes |= {f"norm.{name}": (8,) for name in ("weight", "bias", "running_mean", "running_var")}
    return {key: torch.rand(shape, generator=generator) + 0.1 for key, shape in shapes.items()}


def expected(tensors: dict[str, Tensor], images: Tensor) -> Tensor:
    x = nn.functional.conv2d(images, tensors["stem.weight"], None, 2, 1)
    norm = [tensors[f"norm.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
    x = nn.functional.batch_norm(x, *norm).relu().mean((2, 3))
    return x @ tensors["fc.weight"].T + tensors["fc.bias"]


NAMES = {"timm": "resnet50d", "torchvision": "resnet18"}


@pytest.mark.parametrize("package", NAMES)
def test_published_weights_come_with_preprocessing_and_labels(packages: Path, package: str) -> None:
    torch.save(state(), packages / "net.pth")
    images = torch.randn(2, 3, 64, 64)
    network, spec, notes = load_source(f"{package}:{NAMES[package]}", WeightsChoice())
    torch.testing.assert_close(network(images), expected(state(), images))
    assert (spec.name, spec.num_classes, notes) == (NAMES[package], 1000, ())
    assert spec.weights_sha256 == hashlib.sha256((packages / "net.pth").read_bytes()).hexdigest()
    known = spec.preprocess
    assert (known.mean, known.std, known.pixel_scale) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), 1 / 255)
    if package == "timm":
        assert (known.crop_px, known.resize_px, known.interpolation) == ((64, 96), 71, "bicubic")
        assert spec.labels == tuple(name for _, name in imagenet_classes()) and spec.weights == "a1_in1k"
    else:
        assert (known.crop_px, known.resize_px, known.interpolation) == ((64, 64), 70, "bilinear")
        assert spec.labels[:2] == ("c0", "c1") and spec.weights == "V1"


@pytest.mark.parametrize("package", NAMES)
def test_a_checkpoint_of_training_fits_the_packages_model(packages: Path, tmp_path: Path, package: str) -> None:
    averaged = {key: value + 1 for key, value in state(5).items()}
    torch.save({"state_dict": {f"module.{k}": v for k, v in state(5).items()}, "ema": averaged}, tmp_path / "a.pth")
    images, file = torch.randn(2, 3, 64, 64), str(tmp_path / "a.pth")
    network, spec, notes = load_source(f"{package}:{NAMES[package]}", WeightsChoice(file))
    torch.testing.assert_close(network(images), expected(state(5), images))
    assert (spec.weights, spec.labels[0], spec.num_classes) == ("a.pth", "class 0", 5)
    assert "--ema takes them" in notes[0]
    network, _, _ = load_source(f"{package}:{NAMES[package]}", WeightsChoice(file, averaged=True))
    torch.testing.assert_close(network(images), expected(averaged, images))
    torch.save({k: v for k, v in state(5).items() if k != "norm.bias"}, tmp_path / "b.pth")
    with pytest.raises(WeightsError, match=rf"does not fit {package}:{NAMES[package]}: 1 missing \(norm.bias\)"):
        load_source(f"{package}:{NAMES[package]}", WeightsChoice(str(tmp_path / "b.pth")))


def test_random_weights_reach_the_canonical_graph(packages: Path) -> None:
    taken = take(ModelChoice("timm:resnet50d", weights="random", num_classes=7))
    assert (taken.spec.num_classes, taken.spec.weights, taken.spec.preprocess.crop_px) == (7, "random", (64, 96))


REFUSED = [
    ("timm:resnet50x", None, UsageError, "timm has no such model; perhaps resnet50"),
    ("timm:resnet50d.b9", None, UsageError, "timm has no weights 'b9' of it; there are resnet50d.a1_in1k"),
    ("torchvision:resnet19", None, UsageError, "torchvision has no such model; perhaps resnet18"),
    ("torchvision:resnet18", "V9", UsageError, "torchvision has no weights 'V9' of it; there are V1, random"),
    ("timm:resnet50d", "none.pth", WeightsError, "none.pth: no such file"),
    ("timm:resnet50d", None, WeightsError, "cannot be fetched|404"),
]


@pytest.mark.parametrize(("name", "weights", "kind", "words"), REFUSED)
def test_what_is_not_there_is_one_line(
    packages: Path, name: str, weights: str | None, kind: type[EdgeresError], words: str
) -> None:
    with pytest.raises(kind, match=words) as caught:
        load_source(name, WeightsChoice(weights))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("package", NAMES)
def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EnvironmentError_, match=f"{package} is not installed; pip install {package}$"):
        load_source(f"{package}:resnet18", WeightsChoice())


def test_another_source_is_refused() -> None:
    with pytest.raises(UsageError, match=r"keras:resnet50: no such source of models; .*timm:NAME"):
        take(ModelChoice("keras:resnet50"))


def test_timms_other_crops_and_filters_are_said(packages: Path) -> None:
    import timm.data

    timm.data.CONFIG |= {"crop_mode": "border", "interpolation": "random"}
    _, spec, notes = load_source("timm:resnet50d", WeightsChoice("random"))
    assert spec.preprocess.interpolation == "bilinear"
    assert len(notes) == 2 and "crop_mode border" in notes[0] and "interpolation random" in notes[1]
    timm.data.CONFIG |= {"crop_mode": "squash"}
    assert load_source("timm:resnet50d", WeightsChoice("random")).spec.preprocess.resize_px is None


# Folders of transformers


def theirs(name: str) -> str:
    """transformers' name of a tensor of the zoo."""
    part, _, own = name.rpartition(".")
    if part in ("conv1", "bn1"):
        return f"resnet.embedder.embedder.{'convolution' if part == 'conv1' else 'normalization'}.{own}"
    if part == "fc":
        return f"classifier.1.{own}"
    stage, block, *rest = part.split(".")
    place = f"resnet.encoder.stages.{int(stage[-1]) - 1}.layers.{block}"
    if rest[0] == "downsample":
        return f"{place}.shortcut.{('convolution', 'normalization')[int(rest[1])]}.{own}"
    kind = "convolution" if rest[0].startswith("conv") else "normalization"
    return f"{place}.layer.{int(rest[0][-1]) - 1}.{kind}.{own}"


CONFIG = {
    "model_type": "resnet",
    "layer_type": "basic",
    "depths": [2, 2, 2, 2],
    "hidden_sizes": [64, 128, 256, 512],
    "embedding_size": 64,
    "hidden_act": "relu",
    "id2label": {"0": "stop", "1": "go", "2": "turn"},
}
PROCESSOR = {
    "feature_extractor_type": "ConvNextFeatureExtractor",
    "size": 224,
    "crop_pct": 0.875,
    "resample": 3,
    "do_normalize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
}


def folder(path: Path, network: nn.Module, processor: dict[str, Any] | None = PROCESSOR, **changed: Any) -> Path:
    path.mkdir()
    tensors = {theirs(k): v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({**CONFIG, **changed}))
    if processor is not None:
        (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    made = create(name, 3)
    for norm in made.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_mean, -0.1, 0.1)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    return made.eval()


def test_a_folder_gives_its_network_labels_and_preprocessing(tmp_path: Path) -> None:
    original, images = network("resnet18"), torch.randn(2, 3, 64, 64)
    found, spec, notes = load_folder(f"hf:{folder(tmp_path / 'signs', original)}", WeightsChoice())
    with torch.no_grad():
        torch.testing.assert_close(found(images), original(images))
    assert (spec.name, spec.labels, spec.weights, notes) == ("signs", ("stop", "go", "turn"), "model.safetensors", ())
    known = spec.preprocess
    assert (known.crop_px, known.resize_px, known.interpolation) == ((224, 224), 256, "bicubic")
    assert (known.mean, known.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def test_the_stride_of_bottlenecks_is_where_the_folder_says(tmp_path: Path) -> None:
    original, images = network("resnet50"), torch.randn(2, 3, 64, 64)
    sizes = {"layer_type": "bottleneck", "depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048]}
    path = folder(tmp_path / "a", original, **sizes, downsample_in_bottleneck=True)
    for stage in (original.layer2, original.layer3, original.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    with torch.no_grad():
        torch.testing.assert_close(load_folder(f"hf:{path}", WeightsChoice()).network(images), original(images))


PROCESSORS: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
    ({"size": {"height": 96, "width": 128}, "resample": 2}, ((96, 128), None, "bilinear")),
    ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}, ((224, 224), 256, "bicubic")),
    ({**PROCESSOR, "size": {"shortest_edge": 384}}, ((384, 384), None, "bicubic")),
    ({"size": 224, "resample": 1}, ((224, 224), 224, "lanczos")),
]


@pytest.mark.parametrize(("processor", "want"), PROCESSORS)
def test_processors_become_preprocessing(tmp_path: Path, processor: dict[str, Any], want: tuple[Any, ...]) -> None:
    path = folder(tmp_path / "a", network("resnet18"), processor)
    known = load_folder(f"hf:{path}", WeightsChoice()).spec.preprocess
    assert (known.crop_px, known.resize_px, known.interpolation) == want


def test_what_a_folder_lacks_is_noted_or_refused(tmp_path: Path) -> None:
    path = folder(tmp_path / "a", network("resnet18"), None, id2label={"0": "stop"})
    _, spec, notes = load_folder(f"hf:{path}", WeightsChoice())
    assert spec.labels == ("class 0", "class 1", "class 2")
    assert [note.partition(":")[0] for note in notes] == [
        "config.json names no 3 classes (id2label)",
        "there is no preprocessor_config.json",
    ]
    for wrong in ('{"size": {"longest": 3}}', '{"size": 1e999}', '{"size": 224, "resample": [1]}'):
        (path / "preprocessor_config.json").write_text(wrong)
        with pytest.raises(InputError, match="is no image processor"):
            load_folder(f"hf:{path}", WeightsChoice())
    (path / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"holds no weights; one of model.safetensors"):
        load_folder(f"hf:{path}", WeightsChoice())
    with pytest.raises(InputError, match="hf:some/name: no such folder; fetch it first"):
        load_folder("hf:some/name", WeightsChoice())


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"hidden_act": "gelu"}, "no ResNet with hidden_act 'gelu'"),
        ({"depths": [1, 1, 1, 1]}, r"no ResNet with depths \[1, 1, 1, 1\]"),
        ({"hidden_sizes": [32, 64, 128, 256]}, "hidden_sizes"),
        ({"downsample_in_first_stage": True}, "downsample_in_first_stage"),
        ({"model_type": "vit"}, "is a model of type 'vit', not resnet"),
        ({"architecture": "resnet50d", "pretrained_cfg": {}}, "is a model of timm; --model timm:resnet50d --weights"),
    ],
)
def test_other_forms_in_a_folder_are_refused(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    path = folder(tmp_path / "a", network("resnet18"), **changed)
    with pytest.raises(InputError, match=words):
        load_folder(f"hf:{path}", WeightsChoice())


def test_transformers_computes_the_same(tmp_path: Path) -> None:
    try:
        from transformers import ResNetConfig, ResNetForImageClassification
    except Exception as error:  # without one of its dependencies it raises several types
        pytest.skip(f"transformers is not here ({error})")
    torch.manual_seed(0)
    for block, depths in (("basic", [2, 2, 2, 2]), ("bottleneck", [3, 4, 6, 3])):
        sizes = [64, 128, 256, 512] if block == "basic" else [256, 512, 1024, 2048]
        config = ResNetConfig(embedding_size=64, hidden_sizes=sizes, depths=depths, layer_type=block, num_labels=3)
        original = ResNetForImageClassification(config).train()
        images = torch.randn(4, 3, 64, 64)
        original(images)
        original.eval().save_pretrained(tmp_path / block)
        with torch.no_grad():
            got = load_folder(f"hf:{tmp_path / block}", WeightsChoice()).network(images)
            torch.testing.assert_close(got, original(images).logits)
