"""Train a small ResNet on rendered images for a task beside classification, in a few minutes on two cores.

    python train_tasks.py road out/         the point of a lane ahead: regression
    python train_tasks.py patterns out/     which of many patterns an image shows: embedding
    python train_tasks.py boxes out/        the class of each pixel: segmentation

It writes model.onnx, images to calibrate with in train/, others in val/ with their truth, and prints the command that
builds a bundle of them. torch is needed; weights are not kept anywhere else.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

PX, PATTERNS, CLASSES = 48, 40, 4
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


class Block(nn.Module):
    """A residual block."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.skip = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.main(x) + self.skip(x))


class Network(nn.Module):
    """Three blocks and a head: values of the whole image, or scores of each pixel."""

    def __init__(self, values: int, *, places: bool) -> None:
        super().__init__()
        self.places = places
        self.blocks = nn.Sequential(Block(3, 16, 1), Block(16, 32, 2), Block(32, 48, 2))
        self.head = nn.Conv2d(48, values, 1) if places else nn.Linear(48, values)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = self.blocks(x)
        if not self.places:
            return self.head(seen.mean((2, 3)))
        return nn.functional.interpolate(self.head(seen), size=(PX, PX), mode="bilinear", align_corners=False)


def road(rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """A road whose lane leads to x at the horizon y, both from -1 to 1."""
    x, y = rng.uniform(-0.8, 0.8, 2)
    down, right = np.mgrid[0:PX, 0:PX] / PX * 2 - 1
    image = rng.normal((100, 120, 100), 12, (PX, PX, 3))
    middle = x * (1 - down) / 2
    image[np.abs(right - middle) < 0.1 + 0.15 * (down + 1)] = (60, 60, 65)
    image[np.abs(right - middle) < 0.03] = (230, 220, 80)
    image[down < y * 0.5 - 0.4] = (140, 170, 230)
    return image, np.array([x, y], np.float32)


def pattern(rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """One of the patterns of coloured squares, somewhere in the image and in some light."""
    which = rng.randint(PATTERNS)
    squares = np.random.RandomState(which).uniform(20, 235, (4, 4, 3)).repeat(9, 0).repeat(9, 1)
    top, left = rng.randint(0, PX - 36, 2)
    image = rng.normal(90, 25, (PX, PX, 3))
    image[top : top + 36, left : left + 36] = squares * rng.uniform(0.7, 1.1) + rng.normal(0, 12, squares.shape)
    return image, np.array(which)


def boxes(rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of three colours on gray, and the class of each pixel; 0 is the ground."""
    image, mask = rng.normal(90, 15, (PX, PX, 3)), np.zeros((PX, PX), np.uint8)
    for label, colour in ((1, (200, 50, 50)), (2, (50, 190, 60)), (3, (60, 70, 200))):
        (top, left), (height, width) = rng.randint(0, PX - 10, 2), rng.randint(8, 22, 2)
        place = slice(top, top + height), slice(left, left + width)
        image[place], mask[place] = colour, label
    return image + rng.normal(0, 10, image.shape), mask


RENDER = {"road": road, "patterns": pattern, "boxes": boxes}
OPTIONS = {
    "road": "--task regression --validation-labels {out}/val.csv",
    "patterns": "--task embedding",
    "boxes": "--task segmentation --validation-labels {out}/masks",
}


def train(kind: str, images: np.ndarray, truth: np.ndarray, epochs: int) -> Network:
    """Train a network; that of patterns ends in a classifier, of which the features before are exported."""
    values = {"road": 2, "patterns": PATTERNS, "boxes": CLASSES}[kind]
    network = Network(values, places=kind == "boxes")
    loss = nn.L1Loss() if kind == "road" else nn.CrossEntropyLoss()
    inputs = (torch.tensor(images).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD
    wanted = torch.tensor(truth if kind == "road" else truth.astype(np.int64))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        for chosen in torch.randperm(len(inputs)).split(32):
            optimizer.zero_grad()
            found = loss(network(inputs[chosen]), wanted[chosen])
            found.backward()
            optimizer.step()
        schedule.step()
        print(f"epoch {epoch + 1} of {epochs}: loss {found.item():.4f}", flush=True)
    if kind == "patterns":
        network.head = nn.Identity()
    return network.eval()


def write(kind: str, out: Path, count: int, epochs: int) -> str:
    """Write everything; returns the command that builds a bundle."""
    rng = np.random.RandomState(0)
    torch.manual_seed(0)
    scenes = [RENDER[kind](rng) for _ in range(count + count // 4)]
    images = np.clip(np.stack([image for image, _ in scenes]), 0, 255).astype(np.uint8)
    truth = np.stack([known for _, known in scenes])
    network = train(kind, images[:count], truth[:count], epochs)
    for folder in ("train", "val", "masks"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    rows = ["image,x,y"]
    for index, (image, known) in enumerate(zip(images, truth, strict=True)):
        name, folder = f"{index:04d}.png", out / ("train" if index < count else "val")
        if kind == "patterns":
            folder /= f"pattern{int(known):02d}"
            folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / name)
        if kind == "road":
            rows.append(f"{name},{known[0]:.5f},{known[1]:.5f}")
        elif kind == "boxes":
            Image.fromarray(known).save(out / "masks" / name)
    (out / "val.csv").write_text("\n".join(rows) + "\n")
    torch.onnx.export(
        network,
        (torch.zeros(2, 3, PX, PX),),
        str(out / "model.onnx"),
        dynamo=False,
        opset_version=17,
        input_names=["image"],
        output_names=["answer"],
        dynamic_axes={"image": {0: "n"}, "answer": {0: "n"}},
    )
    task = OPTIONS[kind].format(out=out)
    return f"edgeres build --model {out}/model.onnx --calibration {out}/train --validation {out}/val {task}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=sorted(RENDER))
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=1200, help="images to train with; a quarter as many to validate")
    parser.add_argument("--epochs", type=int, default=8)
    given = parser.parse_args()
    print(write(given.kind, given.out, given.images, given.epochs))
