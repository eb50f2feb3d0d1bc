"""Train the bundled weights: ``python benchmarks/train_signs.py resnet18`` (or ``resnet20``).

Images are rendered for each phase and kept in memory. No image is in two phases, so no other augmentation is needed.
resnet18 learns at low resolutions and finishes at 224 px, where its batch norm statistics settle. The script writes
``edgeres/zoo/weights/NAME-signs.safetensors`` (fp16) and ``NAME-signs.json`` (recipe, log, top-1).

Two processes of one thread each train on halves of the images and average their gradients. On a machine with other load
this is several times faster than two threads of one process, which wait for each other in every layer.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from edgeres.data.signs import CLASSES, GENERATOR, Split, render
from edgeres.records import IMAGENET_MEAN, IMAGENET_STD
from edgeres.zoo.architectures import ARCHITECTURES
from edgeres.zoo.resnet import create

WEIGHTS = Path(__file__).parents[1] / "edgeres" / "zoo" / "weights"
PROCESSES = 2
VALIDATION_IMAGES = 2000


@dataclass(frozen=True)
class Phase:
    """Some epochs over ``images`` fresh images of ``px`` squared; ``images`` and ``batch`` count over all processes.

    The learning rate rises for ``warm_up`` steps and falls from ``lr`` to ``lr_end``; momentum starts at 0.
    """

    px: int
    images: int
    epochs: int
    batch: int
    lr: float
    lr_end: float
    warm_up: int = 10


@dataclass(frozen=True)
class Recipe:
    phases: tuple[Phase, ...]
    weight_decay: float = 5e-4
    label_smoothing: float = 0.05
    momentum: float = 0.9
    seed: int = 0


RECIPES = {
    "resnet18": Recipe(
        (
            Phase(px=64, images=24_000, epochs=6, batch=128, lr=0.1, lr_end=0.01, warm_up=100),
            Phase(px=128, images=8_000, epochs=2, batch=128, lr=0.03, lr_end=0.01),
            Phase(px=224, images=3_200, epochs=2, batch=64, lr=0.02, lr_end=0.0),
            Phase(px=224, images=4_800, epochs=2, batch=64, lr=0.01, lr_end=0.0),
        )
    ),
    "resnet20": Recipe((Phase(px=32, images=24_000, epochs=10, batch=128, lr=0.15, lr_end=0.0, warm_up=100),)),
}


def rendered(split: Split, seed: int, first: int, count: int, px: int) -> tuple[Tensor, Tensor]:
    """This process's share of the images from ``first`` on: uint8 (N, px, px, 3), and their labels, int64 (N,)."""
    share = count // PROCESSES
    start = first + dist.get_rank() * share
    images, labels = zip(*(render(split, seed, i, px) for i in range(start, start + share)), strict=True)
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


def normalized(images: Tensor) -> Tensor:
    """uint8 (N, H, W, 3) -> float32 (N, 3, H, W) in channels_last memory."""
    mean, std = torch.tensor(IMAGENET_MEAN) * 255, torch.tensor(IMAGENET_STD) * 255
    return ((images - mean) / std).permute(0, 3, 1, 2)


def shuffled(count: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Index batches of equal size; the remainder of an epoch is left out."""
    order = torch.randperm(count, generator=generator)
    yield from order[: count // batch * batch].split(batch)


def optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """Weight decay acts on weights alone, not on batch norm and biases."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    free = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free}]
    return torch.optim.SGD(groups, lr=0.1, momentum=recipe.momentum, nesterov=True)


def train_phase(model: nn.Module, phase: Phase, recipe: Recipe, first: int) -> list[dict[str, float]]:
    """Train on images from ``first`` on; returns one entry of the log per epoch."""
    images, labels = rendered("train", recipe.seed, first, phase.images, phase.px)
    generator = torch.Generator().manual_seed(recipe.seed + first + dist.get_rank())
    batch = phase.batch // PROCESSES
    sgd, log = optimizer(model, recipe), []
    steps, step = phase.epochs * (len(images) // batch), 0
    for epoch in range(phase.epochs):
        start, totals = time.perf_counter(), torch.zeros(3)
        for index in shuffled(len(images), batch, generator):
            warm_up = min(1.0, (step + 1) / phase.warm_up)
            for group in sgd.param_groups:
                group["lr"] = warm_up * (phase.lr + (phase.lr_end - phase.lr) * step / steps)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(normalized(images[index]))
            loss = F.cross_entropy(logits.float(), labels[index], label_smoothing=recipe.label_smoothing)
            sgd.zero_grad(set_to_none=True)
            loss.backward()
            sgd.step()
            hits = (logits.argmax(1) == labels[index]).sum().item()
            totals += torch.tensor([loss.item() * batch, hits, batch])
            step += 1
        dist.all_reduce(totals)
        loss_mean, accuracy = (totals[:2] / totals[2]).tolist()
        entry = {"px": phase.px, "epoch": epoch + 1, "loss": round(loss_mean, 4), "accuracy": round(100 * accuracy, 2)}
        log.append(entry | {"seconds": round(time.perf_counter() - start)})
        if dist.get_rank() == 0:
            print(log[-1], flush=True)
    return log


@torch.inference_mode()
def top1(model: nn.Module, px: int) -> float:
    """Top-1 in per cent of the validation images, in float32."""
    model.eval()
    images, labels = rendered("validation", 0, 0, VALIDATION_IMAGES, px)
    batches = zip(images.split(50), labels.split(50), strict=True)
    totals = torch.tensor([sum(int((model(normalized(x)).argmax(1) == y).sum()) for x, y in batches), len(images)])
    dist.all_reduce(totals)
    return 100 * totals[0].item() / totals[1].item()


def as_stored(model: nn.Module) -> dict[str, Tensor]:
    """Round the model's state to fp16, and return it."""
    half = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(half)
    return {k: v.contiguous() for k, v in half.items()}


@dataclass(frozen=True)
class Job:
    """The arguments of every process.

    Attributes:
        resume: whether to continue after the last phase that an interrupted run finished; the result is the same.
        meeting: a file by which the processes find each other.
    """

    name: str
    out: Path
    resume: bool
    meeting: str

    @property
    def checkpoint(self) -> Path:
        return Path(tempfile.gettempdir()) / f"{self.name}-signs.pt"


def train_phases(model: nn.Module, recipe: Recipe, job: Job) -> tuple[list[dict[str, float]], int]:
    """Train all phases, or the remaining ones; returns the log and the seconds they took."""
    done = torch.load(job.checkpoint, weights_only=True) if job.resume else {"log": [], "seconds": 0, "phases": 0}
    log, seconds = done["log"], done["seconds"]
    if job.resume:
        model.load_state_dict(done["state"])
    parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)
    for number, phase in enumerate(recipe.phases):
        if number < done["phases"]:
            continue
        start = time.perf_counter()
        log += train_phase(parallel, phase, recipe, first=sum(p.images for p in recipe.phases[:number]))
        seconds += round(time.perf_counter() - start)
        if dist.get_rank() == 0:
            state = {"state": model.state_dict(), "log": log, "seconds": seconds, "phases": number + 1}
            torch.save(state, job.checkpoint)
    for buffer in model.buffers():  # the running statistics are those of the first process
        dist.broadcast(buffer, 0)
    return log, seconds


def train(rank: int, job: Job) -> None:
    """Train in one of the processes; the first one writes the results."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{job.meeting}", rank=rank, world_size=PROCESSES)
    recipe = RECIPES[job.name]
    torch.manual_seed(recipe.seed)
    model = create(job.name, len(CLASSES)).to(memory_format=torch.channels_last)
    log, seconds = train_phases(model, recipe, job)
    state = as_stored(model)
    accuracy = top1(model, ARCHITECTURES[job.name].input_px)
    if rank == 0:
        metadata = {"labels": json.dumps(CLASSES), "seed": str(recipe.seed), "top1": f"{accuracy:.2f}"}
        file = job.out / f"{job.name}-signs.safetensors"
        save_file(state, file, metadata)
        file.chmod(0o644)  # safetensors writes it for its owner alone
        summary = {
            "model": job.name,
            "generator": GENERATOR,
            "top1": accuracy,
            "validation_images": VALIDATION_IMAGES,
            "train_seconds": seconds,
            "recipe": asdict(recipe),
            "epochs": log,
        }
        file.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        print(
            f"{job.name}: top-1 {accuracy:.2f} % of {VALIDATION_IMAGES:,} images, trained in {seconds:,} s", flush=True
        )
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="directory for the weights and the log")
    parser.add_argument("--resume", action="store_true", help="continue after the last phase of an interrupted run")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        job = Job(args.name, args.out, args.resume, f"{folder}/meeting")
        torch.multiprocessing.spawn(train, (job,), nprocs=PROCESSES)


if __name__ == "__main__":
    main()
