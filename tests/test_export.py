"""Exported graphs compared with torch, and with the operators of TensorRT's oldest parser."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from edgeres.errors import ModelError
from edgeres.graph.graph import Graph
from edgeres.graph.normalize import normalize
from edgeres.records import ModelSpec, Preprocess
from edgeres.zoo.architectures import ARCHITECTURES
from edgeres.zoo.export import Exported, export
from edgeres.zoo.resnet import ResNet

# One network of each kind: blocks, shortcuts, groups, widths.
FAMILIES = (
    "resnet18",
    "resnet50",
    "wide_resnet50_2",
    "resnext50_32x4d",
    "resnet18v2",
    "resnet50v2",
    "plain18",
    "resnet20",
    "resnet20v2",
)
# From the support matrix of TensorRT's ONNX parser (onnx/onnx-tensorrt, docs/operators.md), FP32 without restrictions
# that a residual network meets.
TENSORRT = {
    *("Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Conv", "Flatten", "Gemm", "GlobalAveragePool"),
    *("LeakyRelu", "MatMul", "MaxPool", "Mul", "Pad", "Relu", "Reshape", "Slice", "Softmax", "Squeeze", "Transpose"),
}
PX = 32


def trained(network: nn.Module) -> nn.Module:
    """Give batch norm random statistics; with the initial ones it is the identity, and folding is not tested."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.2, 0.2)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.2, 0.2)
    return network


def spec_of(name: str, px: int = PX) -> ModelSpec:
    return ModelSpec(name, Preprocess(crop_px=(px, px)), ())


def shallow(name: str) -> tuple[nn.Module, Exported]:
    """Two stages of one and two blocks, which have all block shapes of the whole network."""
    torch.manual_seed(0)
    network = trained(ResNet(replace(ARCHITECTURES[name], depths=(1, 2)), 7))
    return network, export(network, spec_of(name))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name: str) -> None:
    network, exported = shallow(name)
    images = np.random.default_rng(3).standard_normal((5, 3, PX, PX)).astype(np.float32)
    with torch.inference_mode():
        expected = network.eval()(torch.from_numpy(images)).numpy()
    session = ort.InferenceSession(exported.model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"input": images})
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=1e-5 * largest, rtol=0)
    assert 0 < exported.max_error < 1e-4 * largest and exported.relative_error < 1e-5

    onnx.checker.check_model(exported.model, full_check=True)
    assert [(entry.domain, entry.version) for entry in exported.model.opset_import] == [("", 17)]
    graph = exported.model.graph
    shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.input, *graph.output)]
    assert shapes == [["batch", 3, PX, PX], ["batch", 7]]
    assert {node.op_type for node in graph.node} <= TENSORRT


@pytest.mark.parametrize("name", FAMILIES)
def test_batch_norm_is_left_only_where_no_convolution_takes_it(name: str) -> None:
    """v2 keeps a batch norm before each block but the first, and after the last: the next skip reads its input, too."""
    network, exported = shallow(name)
    counts = Counter(node.op_type for node in exported.model.graph.node)
    assert counts["Conv"] == sum(isinstance(layer, nn.Conv2d) for layer in network.modules())
    blocks = 3
    assert counts["BatchNormalization"] == (blocks if ARCHITECTURES[name].preactivation else 0)
    view = Graph(exported.model)
    for node in view.nodes:
        if node.op_type == "BatchNormalization":
            assert view.producer(node.input[0]).op_type == "Add"  # type: ignore[union-attr]


def test_whole_resnet20() -> None:
    torch.manual_seed(0)
    arch = ARCHITECTURES["resnet20"]
    exported = export(trained(ResNet(arch, 10)), ModelSpec(arch.name, arch.preprocess, ()))
    counts = Counter(node.op_type for node in exported.model.graph.node)
    layers = {"Conv": 19, "Relu": 19, "Add": 9, "Slice": 2, "Pad": 2, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}
    assert counts == layers
    assert exported.relative_error < 1e-5 and exported.canonical.size_px == (32, 32)


# Option A slices with a step, which opset 9 does not support.
@pytest.mark.parametrize(
    ("name", "opset"),
    [("resnet18", 9), ("resnet50v2", 9), ("resnet20", 11), ("resnet18", 13), ("resnet20", 16), ("resnet50v2", 20)],
)
@pytest.mark.filterwarnings("ignore")
def test_what_torch_writes_unfused_at_any_opset_becomes_the_same_graph(name: str, opset: int) -> None:
    torch.manual_seed(0)
    network = trained(ResNet(replace(ARCHITECTURES[name], depths=(1, 1)), 7)).eval()
    file = io.BytesIO()
    torch.onnx.export(
        network,
        (torch.zeros(1, 3, PX, PX),),
        file,
        opset_version=opset,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        keep_initializers_as_inputs=opset == 9,
        dynamo=False,
    )
    written = onnx.load_from_string(file.getvalue())
    assert sum(node.op_type == "BatchNormalization" for node in written.graph.node) >= 5
    canonical = normalize(written)
    assert canonical.max_error < 1e-5
    operators = Counter(node.op_type for node in canonical.model.graph.node)
    assert operators == Counter(node.op_type for node in export(network, spec_of(name)).model.graph.node)


class Foreign(nn.Module):
    """A network with the given ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 5)

    def features(self, x: Tensor) -> Tensor:
        return self.drop(torch.relu(self.norm(self.conv(x))).mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def test_module_is_left_as_it_was() -> None:
    module = Foreign().half().train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    exported = export(module, spec_of("mine"))
    assert exported.canonical.num_classes == 5
    assert module.training and module.drop.training
    assert next(module.parameters()).dtype == torch.float16
    after = module.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("rows", [lambda x: x.view(x.size(0), -1), lambda x: x.reshape(-1, 5), lambda x: x.squeeze()])
def test_ways_to_flatten(rows: object) -> None:
    class Flattens(Foreign):
        def forward(self, x: Tensor) -> Tensor:
            return rows(self.head(self.features(x))[:, :, None, None])  # type: ignore[operator,no-any-return]

    assert export(Flattens(), spec_of("flattens")).relative_error < 1e-5


def test_scores_of_rank_four() -> None:
    class Convolutional(Foreign):
        def forward(self, x: Tensor) -> Tensor:
            return self.features(x)[:, :, None, None]

    exported = export(Convolutional(), spec_of("convolutional"))
    assert exported.canonical.num_classes == 4 and exported.relative_error < 1e-5


class GivesTuple(Foreign):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        features = self.features(x)
        return self.head(features), features


class GivesMap(Foreign):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Crashes(Foreign):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("no image\nfits")


class CountsInPython(Foreign):
    """Tracing unrolls the loop over the images: the graph returns two rows of scores for any batch."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.head(self.features(x[i : i + 1])) for i in range(len(x))])


class Grey(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, torch.ones(2, 1, 3, 3)).mean((2, 3))


@pytest.mark.parametrize(
    ("module", "line"),
    [
        (GivesTuple(), "net: the module gives a tuple; wrap it in a module that gives the logits alone, (N, classes)"),
        (GivesMap(), "net: output logits is float (batch, 4, 15, 15), and a classifier's is float (N, classes)"),
        (Crashes(), "net: torch cannot export this module (no image fits)"),
        (Grey(), "net: torch cannot export this module (Given groups=1, weight of size [2, 1, 3, 3], expected input"),
        (
            CountsInPython(),
            "net: a batch of 1 is built into the graph (2 rows of scores for 3 images); export with two",
        ),
    ],
)
def test_refusals(module: nn.Module, line: str) -> None:
    with pytest.raises(ModelError) as caught:
        export(module, spec_of("net"))
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_graph_that_computes_something_else_is_refused() -> None:
    """The module reads its training flag in Python; the comparison with torch finds it."""

    class Unlike(Foreign):
        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.head(self.features(x))
            return scores * 2 if torch.onnx.is_in_onnx_export() else scores

    with pytest.raises(ModelError, match=r"net: ONNX and torch differ by 1\.0e\+00 of the largest logit"):
        export(Unlike(), spec_of("net"))
