"""Architectures for :mod:`zoo`: made by timm, with random weights that are settled so that quantization can be judged.

An untrained network says little: its last normalizations begin at zero, so that blocks do nothing, and its running
statistics are not those of its activations. So weights of normalizations are drawn, running statistics are those of
images, and the classifier is a ridge regression of the labels on the network's own features. Sizes of activations,
dead ReLUs and skips then are like those of a trained network. Random features tell little about images that the
classifier has not seen, so it is judged on images that it was fitted on: there its margins are those of a classifier.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SEED = 0
_BATCH = 32
# Of the features' mean variance: less would make the scores depend on directions that hardly any image has.
_RIDGE = 5.0
# Weights of normalizations, and at the end of a branch; then mean and spread of their biases. Around zero, a
# deep network without training amplifies any noise from layer to layer (Yang et al. 2019, A Mean Field Theory of Batch
# Normalization); where most values pass the ReLU it does so much less, as a trained one.
_WEIGHTS, _WEIGHTS_OF_BRANCH = (0.5, 1.0), (0.1, 0.5)
_BIASES, _BIASES_OF_BRANCH = (0.5, 0.25), (0.0, 0.2)
_NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True)
class Network:
    """An architecture of timm, and its trait in a few words."""

    timm: str
    trait: str


NETWORKS = {
    network.timm: network
    for network in (
        Network("resnet10t", "tiered stem"),
        Network("resnet18", "basic blocks"),
        Network("resnet34", "basic blocks"),
        Network("resnet50", "bottlenecks"),
        Network("resnet18d", "deep stem, pooled shortcuts"),
        Network("resnet26d", "deep stem, pooled shortcuts"),
        Network("resnet50c", "deep stem"),
        Network("resnet33ts", "SiLU"),
        Network("resnext50_32x4d", "grouped convolutions"),
        Network("seresnet18", "squeeze and excite"),
        Network("seresnext26t_32x4d", "squeeze and excite, grouped"),
        Network("eca_resnext26ts", "ECA, SiLU"),
        Network("ecaresnet26t", "ECA"),
        Network("ecaresnetlight", "ECA"),
        Network("gcresnext26ts", "global context"),
        Network("skresnet18", "selective kernels"),
        Network("resnest14d", "split attention"),
        Network("resnest26d", "split attention"),
        Network("resnetblur18", "BlurPool"),
        Network("resnetaa34d", "anti-aliased pooling"),
        Network("resnet50_clip_gap", "CLIP, average pooled"),
        Network("resnet50_gn", "group norm"),
        Network("resnet50_mlp", "two linear layers"),
        Network("resnetv2_18", "pre-activation"),
        Network("resnetv2_50", "pre-activation"),
        Network("resnetv2_50x1_bit", "pre-activation, group norm"),
        Network("nf_resnet26", "no normalization"),
        Network("tresnet_m", "space to depth, leaky ReLU"),
        Network("cspresnet50", "cross-stage partial"),
        Network("res2net50_26w_4s", "splits within a block"),
        Network("regnetx_004", "RegNetX"),
        Network("regnety_004", "RegNetY"),
        Network("hrnet_w18_small", "parallel resolutions"),
        Network("dla34", "aggregation by Concat"),
        Network("selecsls42b", "Concat"),
        Network("darknet53", "LeakyReLU"),
        Network("mobilenetv2_100", "inverted residuals"),
        Network("efficientnet_lite0", "inverted residuals"),
        Network("repvgg_a0", "parallel branches"),
        Network("densenet121", "Concat"),
        Network("convnext_atto", "LayerNorm, GELU"),
    )
}


def settled(network: Network, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> nn.Module:
    """The network in evaluation mode, the same in every run.

    Args:
        images: (N, px, px, 3) RGB.
        labels: (N,).

    Raises:
        ImportError: timm is not installed.
    """
    import timm

    torch.manual_seed(SEED)
    fixed = timm.get_pretrained_cfg(network.timm).fixed_input_size
    size = {"img_size": images.shape[1]} if fixed else {}
    body: nn.Module = timm.create_model(network.timm, num_classes=int(labels.max()) + 1, **size)
    classifier = body.get_classifier()
    if not isinstance(classifier, nn.Linear | nn.Conv2d):
        raise TypeError(f"the classifier of {network.timm} is a {type(classifier).__name__}")
    return settle(body, classifier, images, labels)


def settle(
    body: nn.Module, classifier: nn.Linear | nn.Conv2d, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]
) -> nn.Module:
    """Give a network with random weights the statistics of images and a classifier for them; it is changed."""
    _draw_norms(body)
    inputs = normalized(images)
    _take_statistics(body, inputs)
    _fit(body, classifier, inputs, torch.from_numpy(labels))
    return body.eval()


def normalized(images: npt.NDArray[np.uint8]) -> Tensor:
    """(N, 3, px, px) float32."""
    values = (images.astype(np.float32) / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(0, 3, 1, 2)))


def _draw_norms(body: nn.Module) -> None:
    """Weights as training leaves them: around one, smaller at the end of a branch, no two the same."""
    with torch.no_grad():
        for module in body.modules():
            if isinstance(module, _NORMS) and module.weight is not None:
                ends_branch = not module.weight.any()
                module.weight.uniform_(*(_WEIGHTS_OF_BRANCH if ends_branch else _WEIGHTS))
                module.bias.normal_(*(_BIASES_OF_BRANCH if ends_branch else _BIASES))
            elif not any(True for _ in module.children()):
                for parameter in module.parameters(recurse=False):
                    if parameter.ndim == 0 and not parameter.any():  # a gain that begins at zero
                        parameter.fill_(0.2)


def _take_statistics(body: nn.Module, inputs: Tensor) -> None:
    norms = [module for module in body.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the plain mean over all batches
        norm.reset_running_stats()
    body.eval()
    for norm in norms:
        norm.train()
    with torch.no_grad():
        for part in inputs.split(_BATCH):
            body(part)
    body.eval()


def _fit(body: nn.Module, classifier: nn.Linear | nn.Conv2d, inputs: Tensor, labels: Tensor) -> None:
    """Ridge regression of one-hot labels on the features that the classifier reads."""
    read: list[Tensor] = []
    hook = classifier.register_forward_hook(lambda module, given, scores: read.append(given[0].detach().flatten(1)))
    with torch.no_grad():
        for part in inputs.split(_BATCH):
            body(part)
    hook.remove()
    features = torch.cat(read).double()
    wanted = nn.functional.one_hot(labels, classifier.weight.shape[0]).double()
    centre, mean = features.mean(0), wanted.mean(0)
    centred = features - centre
    squares = centred.T @ centred
    squares += _RIDGE * squares.diagonal().mean() * torch.eye(len(squares)).double()
    weight = torch.linalg.solve(squares, centred.T @ (wanted - mean)).T
    with torch.no_grad():
        classifier.weight.copy_(weight.float().reshape(classifier.weight.shape))
        if classifier.bias is not None:
            classifier.bias.copy_((mean - weight @ centre).float())
