"""Names an architecture that is not in the zoo, as far as the names and shapes of its tensors tell."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_LAYERS: dict[tuple[int, ...], tuple[str, str]] = {
    (2, 2, 2, 2): ("18", "26"),
    (3, 4, 6, 3): ("34", "50"),
    (3, 4, 23, 3): ("101", "101"),
    (3, 8, 36, 3): ("152", "152"),
}
_ONNX = "give --model timm:NAME or torchvision:NAME where it is theirs, else its ONNX export, or the module in Python"

# A pattern of tensor names, and the architecture that has them. The first that is found counts.
_OTHERS = (
    (r"embedder\.embedder\.convolution\.", "transformers' ResNet"),
    (r"\bres2\.0\.conv1\.norm\.|\bstem\.conv1\.norm\.", "Detectron2's ResNet"),
    (r"\.conv2\.attn\.fc_(?:select|reduce)|\.conv2\.paths\.", "a selective-kernel network"),
    (r"\.conv2\.fc1\.|\.conv2\.radix|\.conv2\.bn0\.", "ResNeSt"),
    (r"\.conv2\.(?:conv|fc)\.weight|\.(?:eca|attn)\.conv\.weight", "a ResNet with attention over channels"),
    (r"\.se(?:_module|_layer)?\.(?:fc|conv|\d)", "SE-ResNet"),
    (r"\.convs\.0\.weight", "Res2Net"),
    (r"denseblock1\.", "DenseNet"),
    (r"patch_embed|pos_embed|\.attn\.qkv|encoder\.layers\.encoder_layer_0", "a vision transformer"),
    (r"stages\.0\.(?:blocks\.)?0\.(?:conv_dw|dwconv)|dwconv\.weight", "ConvNeXt"),
    (r"conv_stem\.|\._depthwise_conv\.", "EfficientNet"),
    (r"s1\.b1\.conv1|trunk_output\.block1|stem\.conv\.weight", "RegNet"),
    (r"features\.\d+\.conv\.0\.0\.weight|features\.\d+\.block\.0\.0\.weight", "MobileNet or EfficientNet"),
    (r"mixed_5b|Mixed_5b|inception", "Inception"),
)


def other_architecture(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """What the tensors are, and the next step; None where they tell nothing."""
    names = "\n".join(shapes)
    named = next((words for pattern, words in _OTHERS if re.search(pattern, names)), None) or _variant(shapes)
    if named is None:
        return None
    if named.startswith("transformers"):
        return f"it is {named}: give its folder, --model hf:FOLDER, or its ONNX export"
    return f"it is {named}, which is not in the zoo: {_ONNX}"


def _variant(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """A residual network whose stem or shortcuts differ from torchvision's."""
    size = _depth(shapes)
    stem = shapes.get(
        min((name for name in shapes if re.search(r"(?:^|\.)conv1\.weight$", name)), key=len, default=""), ()
    )
    if any(re.search(r"(?:^|\.)conv1\.[36]\.weight$", name) for name in shapes):
        pooled = any(name.endswith("downsample.1.weight") and len(shape) == 4 for name, shape in shapes.items())
        letter = "d" if pooled else "s"
        extra = ", average pooling in the shortcuts" if pooled else ""
        return f"a ResNet with three convolutions in its stem{extra} (timm's resnet{size}{letter})"
    if size and len(stem) == 4 and stem[2:] == (3, 3):
        return f"a ResNet-{size} with a 3x3 convolution as its stem, for small images"
    if size and len(stem) == 4 and stem[1] != 3:
        return f"a ResNet-{size} for images with {stem[1]} channel{'s' if stem[1] > 1 else ''}"
    return None


def _depth(names: Iterable[str]) -> str:
    """The number in the usual name of a network of four stages; "" where there is none."""
    blocks: dict[int, int] = {}
    bottleneck = False
    for name in names:
        if found := re.search(r"(?:^|\.)layer(\d)\.(\d+)\.conv(\d)", name):
            stage, block, index = map(int, found.groups())
            blocks[stage] = max(blocks.get(stage, 0), block + 1)
            bottleneck |= index == 3
    return _LAYERS.get(tuple(blocks[s] for s in sorted(blocks)), ("", ""))[bottleneck]
