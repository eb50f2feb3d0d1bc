"""Architectures against published figures, published checkpoints and the papers' equations."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from edgeres.errors import UsageError
from edgeres.zoo.architectures import ARCHITECTURES
from edgeres.zoo.resnet import create

SHARED = Path(__file__).parents[2] / "shared"

# Parameters and GFLOPs (multiply-adds) as on torchvision's model pages.
TORCHVISION = {
    "resnet18": (11_689_512, 1.81),
    "resnet34": (21_797_672, 3.66),
    "resnet50": (25_557_032, 4.09),
    "resnet101": (44_549_160, 7.80),
    "resnet152": (60_192_808, 11.51),
    "wide_resnet50_2": (68_883_240, 11.40),
    "wide_resnet101_2": (126_886_696, 22.75),
    "resnext50_32x4d": (25_028_904, 4.23),
    "resnext101_32x8d": (88_791_336, 16.41),
    "resnext101_64x4d": (83_455_272, 15.46),
}
# Millions of parameters in He et al. 2015, table 6.
CIFAR = {"resnet20": 0.27, "resnet32": 0.46, "resnet44": 0.66, "resnet56": 0.85, "resnet110": 1.7}


def on_meta(name: str) -> nn.Module:
    """A network on the meta device, which needs no memory and no time."""
    with torch.device("meta"):
        return create(name).eval()


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def multiply_adds(model: nn.Module, px: int) -> int:
    """Multiply-adds: outputs times inputs per output, over all convolutions and linear layers that run."""
    total = 0

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        total += output.numel() * layer.weight[0].numel()

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    model(torch.zeros(1, 3, px, px, device="meta"))
    return total


def distinct(model: nn.Module) -> nn.Module:
    """Give batch norm random statistics; the exporter would share equal ones by Identity nodes."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.1, 0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return model.eval()


def exported(model: nn.Module, px: int) -> onnx.ModelProto:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), (torch.zeros(1, 3, px, px),), file, dynamo=False, opset_version=17)
    return onnx.load_from_string(file.getvalue())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_table_says_what_the_modules_are(name: str) -> None:
    arch, model = ARCHITECTURES[name], on_meta(name)
    assert parameters(model) == arch.size.params
    # Half a unit of the last published digit.
    assert multiply_adds(model, arch.input_px) / 1e9 == pytest.approx(
        arch.size.gmacs, abs=5.1e-3 if arch.size.gmacs > 1 else 5.1e-5
    )


@pytest.mark.parametrize("name", TORCHVISION)
def test_table_has_torchvisions_figures(name: str) -> None:
    assert (ARCHITECTURES[name].size.params, ARCHITECTURES[name].size.gmacs) == TORCHVISION[name]


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_family_has_the_papers_size(name: str) -> None:
    assert ARCHITECTURES[name].size.params / 1e6 == pytest.approx(
        CIFAR[name], abs=0.05 if name == "resnet110" else 0.005
    )


@pytest.mark.parametrize(("name", "gflops"), [("plain18", 1.8), ("plain34", 3.6)])
def test_plain_networks_have_the_papers_cost(name: str, gflops: float) -> None:
    assert round(ARCHITECTURES[name].size.gmacs, 1) == gflops


def test_state_dict_has_torchvisions_keys() -> None:
    shapes = {k: tuple(v.shape) for k, v in on_meta("resnet50").state_dict().items()}
    assert len(shapes) == 320  # 53 convolutions, 53 norms of 5 entries, fc
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert shapes["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert shapes["layer1.0.downsample.1.num_batches_tracked"] == ()
    assert shapes["layer4.2.conv3.weight"] == (2048, 512, 1, 1)
    assert shapes["fc.weight"] == (1000, 2048)
    basic = on_meta("resnet18").state_dict()
    assert len(basic) == 122
    assert {key.split(".")[0] for key in basic if "downsample" in key} == {"layer2", "layer3", "layer4"}
    assert on_meta("resnext50_32x4d").state_dict()["layer3.5.conv2.weight"].shape == (512, 16, 3, 3)


def test_stride_sits_where_torchvision_has_it() -> None:
    block = on_meta("resnet50").get_submodule("layer2.0")
    assert (block.conv1.stride, block.conv2.stride, block.downsample[0].stride) == ((1, 1), (2, 2), (2, 2))


@pytest.mark.parametrize("name", ["resnet20-12fca82f", "resnet32-d509ac18"])
def test_published_cifar_checkpoint_fits_and_scores(name: str) -> None:
    file, images = SHARED / "weights" / f"{name}.th", SHARED / "data" / "cifar10_test1000.npz"
    if not (file.exists() and images.exists()):
        pytest.skip("needs ../shared/weights and ../shared/data")
    state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    model = create(name.split("-")[0]).eval()
    model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    with np.load(images) as data:
        pixels, labels = torch.from_numpy(data["images"]), torch.from_numpy(data["labels"].astype(np.int64))
    p = ARCHITECTURES[name.split("-")[0]].preprocess
    x = ((pixels / 255 - torch.tensor(p.mean)) / torch.tensor(p.std)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        hits = (model(x).argmax(1) == labels).sum().item()
    assert hits / len(labels) == {"resnet20": 0.915, "resnet32": 0.928}[name.split("-")[0]]


@pytest.mark.parametrize(("name", "channels"), [("resnet18v2", 128), ("resnet50v2", 512), ("resnet56v2", 32)])
def test_v2_identity_path_has_no_activation(name: str, channels: int) -> None:
    """With F = 0 in every block, a stage returns its input, with negative values, which v1 clips."""

    def through_silent_blocks(name: str) -> Tensor:
        blocks = list(create(name).eval().layer2)[1:]
        for block in blocks:
            last = block.conv3 if hasattr(block, "conv3") else block.conv2
            nn.init.zeros_(last.weight)
        return nn.Sequential(*blocks)(x)

    x = torch.randn(1, channels, 4, 4)
    assert torch.equal(through_silent_blocks(name), x)
    assert torch.equal(through_silent_blocks(name.removesuffix("v2")), x.clamp(min=0))


def test_v2_sum_is_linear_in_the_identity() -> None:
    """x_L = x_l + sum F(x_i), He et al. 2016, eq. 4, over two blocks with live F."""
    model = create("resnet20v2").eval()
    blocks, x, branches = list(model.layer1)[1:], torch.randn(1, 16, 8, 8), []
    for block in blocks:
        block.conv2.register_forward_hook(lambda _layer, _args, y: branches.append(y))
    y = nn.Sequential(*blocks)(x)
    torch.testing.assert_close(y, x + sum(branches))
    assert all(branch.abs().max() > 0.1 for branch in branches)


def test_option_a_keeps_even_pixels_between_zero_channels() -> None:
    x = torch.arange(2 * 4 * 6 * 6.0).reshape(2, 4, 6, 6)
    pad = type(create("resnet20").get_submodule("layer2.0.downsample"))(4)
    y = pad(x)
    assert y.shape == (2, 8, 3, 3)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert not y[:, :2].any() and not y[:, 6:].any()


@pytest.mark.parametrize(
    ("name", "operators"),
    [
        ("resnet20", {"Conv": 19, "Relu": 19, "Add": 9, "Slice": 2, "Pad": 2}),
        ("resnet18", {"Conv": 20, "Relu": 17, "Add": 8, "MaxPool": 1}),
        ("plain18", {"Conv": 17, "Relu": 17, "MaxPool": 1}),
    ],
)
def test_export_has_the_fewest_operators_and_the_same_numbers(name: str, operators: dict[str, int]) -> None:
    torch.manual_seed(0)
    model, px = distinct(create(name)), 64 if ARCHITECTURES[name].family == "imagenet" else 32
    graph = exported(model, px)
    found = Counter(node.op_type for node in graph.graph.node)
    del found["Constant"]
    assert found == {**operators, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}
    x = torch.randn(1, 3, px, px)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), model(x).detach(), rtol=1e-3, atol=1e-4)


def test_create_refuses_what_does_not_exist() -> None:
    with pytest.raises(UsageError, match=r"resnet19: no such architecture; one of resnet18, "):
        create("resnet19")
    with pytest.raises(UsageError, match="0 classes"):
        create("resnet20", 0)
    assert create("resnet20", 7).linear.out_features == 7
