"""Ranges, biases and rounding learned against the FP32 network.

What is learned, by gradients through the fake-quantized graph (:mod:`edgeres.refine.torch_graph`):

- the scale of every quantized activation (LSQ, Esser et al. 2020);
- the bias of every coded layer;
- if asked for, whether a weight is rounded up or down (AdaRound, Nagel et al. 2020).

Where the error is measured:

- at each block's output in turn (BRECQ, Li et al. 2021, eq. 9), its input coming from the quantized blocks before it;
- at the scores, all blocks at once. The residual stream carries every block's rounding error to the end, and only there
  is it known which of it matters.

The error is the noise power: mean square of the difference over mean square of the target.

Left out, because it brought nothing with int8: dropping quantization at random (QDrop, Wei et al. 2022), scales of
weights, straight-through weights, rounding at the scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import onnx
import torch
from torch import Tensor

from edgeres.errors import UsageError
from edgeres.progress import SILENT, Advance, Progress
from edgeres.records import F32
from edgeres.refine.blocks import Block, split, whole
from edgeres.refine.draft import Draft
from edgeres.refine.torch_graph import CodedWeight, TorchGraph

# Learning rates of Adam at their height, in units that do not depend on the network.
SCALE_RATE = 0.02  # e-folds of an activation's scale
BIAS_RATE = 0.02  # what one step of the input's codes does to the output
ROUNDING_RATE = 0.03  # of v, in which 2.4 lie between a choice not made and one made
WARM_UP = 0.1  # share of the steps in which the rate rises; Adam's first steps have no statistics to lean on
# Of the choices not made, against a noise power of about 0.001; it sets in after a fifth of the steps, and its exponent
# falls from 20 to 2, as in the paper's implementation.
UNDECIDED_WEIGHT, UNDECIDED_FROM, UNDECIDED_BETAS = 0.01, 0.2, (20.0, 2.0)
# What goes through the graph together, for memory: with 4 images of 224x224 a ResNet-50's process takes 2.3 GB.
_PIXELS_AT_ONCE = 4 * 224 * 224
_FORWARD_BATCH = 32
_FORWARDS_A_STEP = 6.5


@dataclass(frozen=True)
class ReconstructOptions:
    """How long, and what.

    One step at the scores, or one at every block, costs as much as 6.5 forward passes of ``batch`` images on ONNX
    Runtime (resnet20, one thread): 24 steps of 32 are 10 passes of 512 calibration images.

    Attributes:
        steps: at the scores, all blocks together.
        block_steps: at the output of every block, before that; 0 leaves it out, and with 8-bit weights nothing is lost.
        batch: images a step.
        rounding: learn the rounding of weights too, at the blocks; needs 100 block steps or more.
        seed: of the images' order.
        cache_mb: bound on the activations kept between two blocks; where they take more, fewer images are used.
    """

    steps: int = 160
    block_steps: int = 0
    batch: int = 32
    rounding: bool = False
    seed: int = 0
    cache_mb: int = 2048

    def __post_init__(self) -> None:
        if self.rounding and not self.block_steps:
            raise UsageError("rounding is learned at the blocks, and block_steps is 0", hint="give 120")

    @classmethod
    def balanced(cls, forwards: int, batch: int) -> ReconstructOptions:
        """Scales and biases, at the cost of so many forward passes of one image; 12 steps at least, 24 at most."""
        return cls(steps=min(max(round(forwards / (_FORWARDS_A_STEP * batch)), 12), 24), batch=batch)

    @classmethod
    def best(cls, batch: int) -> ReconstructOptions:
        """The rounding of weights as well, block by block."""
        return cls(block_steps=120, rounding=True, batch=batch)


def reconstruct(
    draft: Draft,
    fp32: onnx.ModelProto,
    images: F32,
    options: ReconstructOptions = ReconstructOptions(),
    progress: Progress = SILENT,
) -> Draft:
    """Learn everything; see :func:`reconstruct_blocks`, of which this is the last Draft."""
    for _, learned in reconstruct_blocks(draft, fp32, images, options, progress):
        draft = learned
    return draft


def reconstruct_blocks(
    draft: Draft,
    fp32: onnx.ModelProto,
    images: F32,
    options: ReconstructOptions = ReconstructOptions(),
    progress: Progress = SILENT,
) -> Iterator[tuple[str, Draft]]:
    """Learn block by block, then at the scores, and hand out what there is after each.

    Nothing given is changed, so that the work can be stopped at any time and the last Draft be kept.

    Args:
        draft: where to begin; its scales and codes are the first ones.
        fp32: the untouched network with the input that ``draft.graph`` takes. For ``block_steps`` its inner tensors
            must be the same too: a rewrite that scales channels is to be made in both.
        images: float32 (N, ...), the network's inputs.

    Yields:
        The tensor at which the error was measured, and a whole network learned so far.

    Raises:
        ModelError: an operator that cannot be learned through, by name.
    """
    learner, teacher = TorchGraph(draft.graph, draft.plan), TorchGraph(fp32)
    inputs = torch.from_numpy(images)
    blocks = split(learner.view)
    with progress.task("learning ranges", options.steps + options.block_steps * len(blocks)) as advance:
        if options.block_steps:
            for name in _by_block(learner, teacher, inputs, options, advance):
                yield name, learner.draft()
        if options.steps:
            block = whole(learner.view)
            targets = _forward(teacher, whole(teacher.view), inputs)
            _fit(_Task(learner, block, inputs, targets, options.steps), options, advance)
            yield block.name, learner.draft()


@dataclass(frozen=True)
class _Task:
    """A block to be brought to its targets, (N, ...), from inputs, (N, ...)."""

    learner: TorchGraph
    block: Block
    inputs: Tensor
    targets: Tensor
    steps: int
    rounding: bool = False


def _by_block(
    learner: TorchGraph, teacher: TorchGraph, images: Tensor, options: ReconstructOptions, advance: Advance
) -> Iterator[str]:
    blocks = list(zip(split(learner.view), split(teacher.view), strict=True))
    found = exact = images[: _images_cached(teacher, images[:1], options.cache_mb)]
    for mine, original in blocks:
        exact = _forward(teacher, original, exact)
        _fit(_Task(learner, mine, found, exact, options.block_steps, options.rounding), options, advance)
        found = _forward(learner, mine, found)
        yield mine.name


def _images_cached(teacher: TorchGraph, image: Tensor, cache_mb: int) -> int:
    """How many images' activations fit: at a block's end those of its input and its output are kept, each twice."""
    sizes = [image.nbytes]
    for block in split(teacher.view):
        image = _forward(teacher, block, image)
        sizes.append(image.nbytes)
    return max(1, cache_mb * 2**20 // (2 * max(a + b for a, b in pairwise(sizes))))


def _forward(graph: TorchGraph, block: Block, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([graph.run(block, part) for part in torch.split(inputs, _FORWARD_BATCH)])


def _fit(task: _Task, options: ReconstructOptions, advance: Advance) -> None:
    learner, nodes = task.learner, task.block.nodes
    choices = learner.weights(nodes) if task.rounding else []
    rising = [(learner.scales(nodes), SCALE_RATE), (learner.shifts(nodes), BIAS_RATE)]
    groups = [*rising, ([weight.v for weight in choices], ROUNDING_RATE)]
    if not any(params for params, _ in groups):
        advance(task.steps)
        return
    optimizer = torch.optim.Adam([{"params": params, "lr": rate} for params, rate in groups])
    rates = [lambda step: _rate(step, task.steps), lambda step: _rate(step, task.steps), lambda step: 1.0]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rates)
    power = task.targets.square().mean(dtype=torch.float64).item() or 1.0
    together = max(1, _PIXELS_AT_ONCE // math.prod(task.inputs.shape[2:]))
    for weight in choices:
        weight.soft = True
    for step, chosen in enumerate(_batches(len(task.inputs), task.steps, options)):
        optimizer.zero_grad()
        for part in torch.split(chosen, together):
            error = learner.run(task.block, task.inputs[part]) - task.targets[part]
            (error.square().mean() * (len(part) / (len(chosen) * power))).backward()  # type: ignore[no-untyped-call]
        _press_for_choices(choices, step / task.steps)
        optimizer.step()
        schedule.step()
        advance(1)
    for weight in choices:
        weight.soft = False


def _press_for_choices(choices: Sequence[CodedWeight], done: float) -> None:
    """Add the regulariser's gradient; ``done`` is the share of the steps behind."""
    if choices and done >= UNDECIDED_FROM:
        first, last = UNDECIDED_BETAS
        falling = 0.5 * (1 + math.cos(math.pi * (done - UNDECIDED_FROM) / (1 - UNDECIDED_FROM)))
        beta = last + (first - last) * falling
        terms = [weight.undecided(beta) * weight.v.numel() for weight in choices]
        share = UNDECIDED_WEIGHT / sum(weight.v.numel() for weight in choices)
        (torch.stack(terms).sum() * share).backward()  # type: ignore[no-untyped-call]


def _rate(step: int, steps: int) -> float:
    """Share of the full rate: a linear rise, a cosine fall to zero."""
    return min(1.0, (step + 1) / (WARM_UP * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _batches(count: int, steps: int, options: ReconstructOptions) -> Iterator[Tensor]:
    """Indices of images: every one once before any comes again."""
    generator = torch.Generator().manual_seed(options.seed)
    waiting = torch.empty(0, dtype=torch.int64)
    size = min(options.batch, count)
    for _ in range(steps):
        if len(waiting) < size:
            waiting = torch.randperm(count, generator=generator)
        yield waiting[:size]
        waiting = waiting[size:]
