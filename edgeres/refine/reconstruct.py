"""Ranges, biases and rounding learned against the FP32 network.

What is learned, by gradients through the fake-quantized graph (:mod:`edgeres.refine.torch_graph`):

- the scale of every quantized activation (LSQ, Esser et al. 2020);
- the bias of every coded layer;
- if asked for, whether a weight is rounded up or down (AdaRound, Nagel et al. 2020).

Where the error is measured:

- at each block's output in turn (BRECQ, Li et al. 2021, eq. 9), its input coming from the quantized blocks before it;
- at the scores, all blocks at once. The residual stream carries every block's rounding error to the end, and only there
  is it known which of it matters.

The error of a block is the noise power: mean square of the difference over mean square of the target. At the scores it
is the mean over images of its log, since the few images on which something saturates would outweigh all others. That
brought 0.2 dB of the noise power itself (resnet20, 20 and 80 steps, other images).

Left out, because it brought nothing with int8: dropping quantization at random (QDrop, Wei et al. 2022), scales of
weights, straight-through weights, rounding at the scores.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import onnx
import torch
from torch import Tensor

from edgeres.errors import UsageError
from edgeres.progress import SILENT, Advance, Progress
from edgeres.quantize.plan import plan_digest
from edgeres.records import F32
from edgeres.refine.blocks import Block, split, whole
from edgeres.refine.candidate import Draft
from edgeres.refine.resume import Resume
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
        resume: folder where the state is kept every few seconds; learning that was interrupted goes on from there when
            it is called for again, with the same result. None keeps nothing.
    """

    steps: int = 160
    block_steps: int = 0
    batch: int = 32
    rounding: bool = False
    seed: int = 0
    cache_mb: int = 2048
    resume: Path | None = None

    def __post_init__(self) -> None:
        if self.rounding and not self.block_steps:
            raise UsageError("rounding is learned at the blocks, and block_steps is 0", hint="give 120")

    @classmethod
    def balanced(cls, forwards: int, batch: int) -> ReconstructOptions:
        """Scales and biases, at the cost of so many forward passes of one image; 12 steps at least, 24 at most."""
        return cls(steps=min(max(round(forwards / (_FORWARDS_A_STEP * batch)), 12), 24), batch=batch)

    @classmethod
    def with_rounding(cls, batch: int) -> ReconstructOptions:
        """The rounding of weights as well, block by block, and a while at the scores."""
        return cls(steps=80, block_steps=120, rounding=True, batch=batch)


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
    course = _Course(learner, options, Resume(options.resume, _key(draft, fp32, images, options)))
    with progress.task("learning ranges", options.steps + options.block_steps * len(blocks)) as advance:
        if options.block_steps:
            for name in _by_block(course, teacher, inputs, advance):
                yield name, learner.draft()
        if options.steps:
            block = whole(learner.view)
            targets = _forward(teacher, whole(teacher.view), inputs)
            course.fit(_Task(block, inputs, targets, options.steps, scores=True), advance)
            yield block.name, learner.draft()
    course.resume.finish()


def _key(draft: Draft, fp32: onnx.ModelProto, images: F32, options: ReconstructOptions) -> str:
    """SHA-256 over all that the result depends on."""
    hasher = hashlib.sha256(plan_digest(draft.plan).encode())
    hasher.update(repr((replace(options, resume=None), torch.__version__)).encode())
    for model in (draft.graph, fp32):
        hasher.update(model.SerializeToString(deterministic=True))
    hasher.update(images.tobytes())
    return hasher.hexdigest()


@dataclass(frozen=True)
class _Task:
    """A block to be brought to its targets, (N, ...), from inputs, (N, ...)."""

    block: Block
    inputs: Tensor
    targets: Tensor
    steps: int
    rounding: bool = False
    scores: bool = False

    def error(self, found: Tensor, part: Tensor) -> Tensor:
        """Of the images with these indices: the sum over them, to be divided by their number."""
        squares = (found - self.targets[part]).square()
        if self.scores:
            return squares.flatten(1).sum(dim=1).clamp_min(1e-30).log().sum()
        return squares.mean() * (len(part) / self.power)

    @cached_property
    def power(self) -> float:
        """Of the targets: their mean square."""
        return self.targets.square().mean(dtype=torch.float64).item() or 1.0


def _by_block(course: _Course, teacher: TorchGraph, images: Tensor, advance: Advance) -> Iterator[str]:
    learner, options = course.learner, course.options
    blocks = list(zip(split(learner.view), split(teacher.view), strict=True))
    found = exact = images[: _images_cached(teacher, images[:1], options.cache_mb)]
    for mine, original in blocks:
        exact = _forward(teacher, original, exact)
        course.fit(_Task(mine, found, exact, options.block_steps, options.rounding), advance)
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


class _Course:
    """Tasks one after another, of which those that an interrupted run had behind it are passed over."""

    def __init__(self, learner: TorchGraph, options: ReconstructOptions, resume: Resume) -> None:
        self.learner, self.options, self.resume = learner, options, resume
        self._task = 0  # number of the one at hand
        self._before = resume.load()
        if self._before is not None:
            learner.load_state(self._before["learner"])

    def fit(self, task: _Task, advance: Advance) -> None:
        """Learn what this task's nodes hold."""
        self._task += 1
        if self._before is not None and self._task < self._before["task"]:
            advance(task.steps)
            return
        nodes = task.block.nodes
        choices = self.learner.weights(nodes) if task.rounding else []
        rising = [(self.learner.scales(nodes), SCALE_RATE), (self.learner.shifts(nodes), BIAS_RATE)]
        groups = [*rising, ([weight.v for weight in choices], ROUNDING_RATE)]
        if not any(params for params, _ in groups):
            advance(task.steps)
            return
        optimizer = torch.optim.Adam([{"params": params, "lr": rate} for params, rate in groups])
        rates = [lambda step: _rate(step, task.steps), lambda step: _rate(step, task.steps), lambda step: 1.0]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rates)
        begin = self._take_up(optimizer, schedule)
        advance(begin)
        for step, chosen in enumerate(_batches(len(task.inputs), task.steps, self.options)):
            if step < begin:
                continue
            optimizer.zero_grad()
            self._backward(task, chosen, choices, step / task.steps)
            optimizer.step()
            schedule.step()
            advance(1)
            if self.resume.is_due():
                self._keep(step + 1, optimizer, schedule)

    def _backward(self, task: _Task, chosen: Tensor, choices: Sequence[CodedWeight], done: float) -> None:
        together = max(1, _PIXELS_AT_ONCE // math.prod(task.inputs.shape[2:]))
        for weight in choices:
            weight.soft = True
        for part in torch.split(chosen, together):
            error = task.error(self.learner.run(task.block, task.inputs[part]), part)
            (error / len(chosen)).backward()  # type: ignore[no-untyped-call]
        _press_for_choices(choices, done)
        for weight in choices:
            weight.soft = False

    def _take_up(self, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LambdaLR) -> int:
        """The step at which the interrupted task goes on; 0 for a new one."""
        before, self._before = self._before, None
        if before is None or before["task"] != self._task:
            return 0
        optimizer.load_state_dict(before["optimizer"])
        schedule.load_state_dict(before["schedule"])
        return int(before["step"])

    def _keep(self, step: int, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LambdaLR) -> None:
        state = {"task": self._task, "step": step, "learner": self.learner.state()}
        self.resume.save({**state, "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()})


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
