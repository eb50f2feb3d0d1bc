"""Learn ranges, biases and rounding against the FP32 network.

Learned, by gradients through the fake-quantized graph (:mod:`edgeres.refine.torch_graph`):

- the scale of every quantized activation (LSQ, Esser et al. 2020);
- the bias of every coded layer;
- optionally, whether a weight is rounded up or down (AdaRound, Nagel et al. 2020).

The error is measured

- at each block's output in turn (BRECQ, Li et al. 2021, eq. 9), its input coming from the quantized blocks before it;
- at the scores, for all blocks at once. The residual stream carries every block's rounding error to the end, and only
  the scores show which errors matter.

The error of a block is the noise power: mean square of the difference over mean square of the target. At the scores it
is the mean over images of the log of that: otherwise the few images on which something saturates would outweigh all
others. That lowered the noise power itself by 0.2 dB (resnet20, 20 and 80 steps, other images). A network may pay for
that with these few images; for such a one the mean error, over what it was at first, is added (``guarded``).

Tried without gain for int8, and left out: dropping quantization at random (QDrop, Wei et al. 2022), learned scales of
weights, straight-through weights, rounding learned at the scores.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import torch
from onnx import ModelProto
from torch import Tensor

from edgeres.errors import UsageError
from edgeres.progress import SILENT, Advance, Progress
from edgeres.quantize.plan import plan_digest
from edgeres.records import F32
from edgeres.refine.blocks import Block, split, whole
from edgeres.refine.candidate import CandidatePlan
from edgeres.refine.resume import Resume
from edgeres.refine.torch_graph import CodedWeight, TorchGraph

# Learning rates of Adam at their height, in units that do not depend on the network.
SCALE_RATE = 0.02  # e-folds of an activation's scale
BIAS_RATE = 0.02  # in units of the output's change for one step of the input's codes
ROUNDING_RATE = 0.03  # of v, which changes by 2.4 between an open choice and a made one
WARM_UP = 0.1  # share of the steps in which the rate rises: Adam has no statistics in its first steps
# The regularizer that presses for a choice between two codes: its weight beside a noise power of about 0.001, the share
# of the steps before it sets in, and its exponent at first and at last, as in the paper's implementation.
UNDECIDED_WEIGHT, UNDECIDED_FROM, UNDECIDED_BETAS = 0.01, 0.2, (20.0, 2.0)
# Input pixels that go through the graph at once, with gradients and without.
_PIXELS_AT_ONCE, _PIXELS_FORWARD = 224 * 224, 4 * 224 * 224
_FORWARD_BATCH = 32
_FORWARDS_A_STEP = 6.5


@dataclass(frozen=True)
class ReconstructOptions:
    """What is learned, and for how long.

    One step at the scores, or one at every block, costs as much as 6.5 forward passes of ``batch`` images on ONNX
    Runtime (resnet20, one thread): 24 steps of 32 are 10 passes of 512 calibration images.

    Attributes:
        steps: at the scores, for all blocks together.
        block_steps: at the output of every block, before that; 0 leaves them out, without loss for 8-bit weights.
        batch: images per step.
        rounding: whether the rounding of weights is learned too, at the blocks; it needs 100 block steps or more.
        guarded: whether the mean error at the scores counts as much as the typical one.
        seed: of the images' order.
        cache_mb: limit on the activations kept between two blocks; with large activations fewer images are used.
        resume: folder where the state is saved every few seconds. The same call goes on from there after an
            interruption, with the same result. None saves nothing.
    """

    steps: int = 160
    block_steps: int = 0
    batch: int = 32
    rounding: bool = False
    guarded: bool = False
    seed: int = 0
    cache_mb: int = 2048
    resume: Path | None = None

    def __post_init__(self) -> None:
        if self.rounding and not self.block_steps:
            raise UsageError("rounding is learned at the blocks, and block_steps is 0", hint="give 120")

    @classmethod
    def balanced(cls, forwards: int, batch: int) -> ReconstructOptions:
        """Learn scales and biases at the cost of this many forward passes of one image, in 12 to 24 steps."""
        return cls(steps=min(max(round(forwards / (_FORWARDS_A_STEP * batch)), 12), 24), batch=batch)

    @classmethod
    def with_rounding(cls, batch: int) -> ReconstructOptions:
        """Learn the rounding of weights as well, block by block, then scales and biases at the scores."""
        return cls(steps=80, block_steps=120, rounding=True, batch=batch)


def reconstruct(
    candidate: CandidatePlan,
    fp32: ModelProto,
    images: F32,
    options: ReconstructOptions = ReconstructOptions(),
    progress: Progress = SILENT,
) -> CandidatePlan:
    """Learn everything; the last candidate plan of :func:`reconstruct_blocks`."""
    for _, learned in reconstruct_blocks(candidate, fp32, images, options, progress):
        candidate = learned
    return candidate


def reconstruct_blocks(
    candidate: CandidatePlan,
    fp32: ModelProto,
    images: F32,
    options: ReconstructOptions = ReconstructOptions(),
    progress: Progress = SILENT,
) -> Iterator[tuple[str, CandidatePlan]]:
    """Learn block by block, then at the scores, and yield the result after each.

    The arguments are not changed, so learning can be stopped at any time and the last result be kept.

    Args:
        candidate: the plan to start from.
        fp32: the float network that is learned from, with the input of ``candidate.graph``. With ``block_steps`` its
            inner tensors must be the same too: scale channels in both graphs or in neither.
        images: float32 (N, ...), the network's inputs.

    Yields:
        The tensor at which the error was measured, and the candidate plan learned so far.

    Raises:
        ModelError: an operator has no gradient here; names it.
    """
    learner, teacher = TorchGraph(candidate.graph, candidate.plan), TorchGraph(fp32)
    inputs = torch.from_numpy(images)
    blocks = split(learner.graph)
    course = _Course(learner, options, Resume(options.resume, _key(candidate, fp32, images, options)))
    with progress.task("learning ranges", options.steps + options.block_steps * len(blocks)) as advance:
        if options.block_steps:
            for name in _by_block(course, teacher, inputs, advance):
                yield name, learner.candidate()
        if options.steps:
            block = whole(learner.graph)
            targets = _forward(teacher, whole(teacher.graph), inputs)
            task = _LearningTask(block, inputs, targets, options.steps, scores=True)
            if options.guarded:
                task = replace(task, first=_mean_error(learner, task))
            course.fit(task, advance)
            yield block.name, learner.candidate()
    course.resume.finish()


def _key(candidate: CandidatePlan, fp32: ModelProto, images: F32, options: ReconstructOptions) -> str:
    """SHA-256 over everything that the result depends on."""
    hasher = hashlib.sha256(plan_digest(candidate.plan).encode())
    hasher.update(repr((replace(options, resume=None), torch.__version__)).encode())
    for model in (candidate.graph, fp32):
        hasher.update(model.SerializeToString(deterministic=True))
    hasher.update(images.tobytes())
    return hasher.hexdigest()


@dataclass(frozen=True)
class _LearningTask:
    """Learn that a block computes its targets, (N, ...), from its inputs, (N, ...)."""

    block: Block
    inputs: Tensor
    targets: Tensor
    steps: int
    rounding: bool = False
    scores: bool = False
    first: float = math.inf  # sum of squared errors of an image at first, in the mean; see ReconstructOptions.guarded

    def error(self, found: Tensor, part: Tensor) -> Tensor:
        """Sum of the errors of the images with the indices ``part``; the caller divides by their number."""
        squares = (found - self.targets[part]).square()
        if self.scores:
            errors = squares.flatten(1).sum(dim=1).clamp_min(1e-30)
            return errors.log().sum() + errors.sum() / self.first
        return squares.mean() * (len(part) / self.power)

    @cached_property
    def power(self) -> float:
        """Mean square of the targets."""
        return self.targets.square().mean(dtype=torch.float64).item() or 1.0


def _mean_error(learner: TorchGraph, task: _LearningTask) -> float:
    found = _forward(learner, task.block, task.inputs)
    return max(float((found - task.targets).square().flatten(1).sum(dim=1).mean()), 1e-30)


def _by_block(course: _Course, teacher: TorchGraph, images: Tensor, advance: Advance) -> Iterator[str]:
    learner, options = course.learner, course.options
    blocks = list(zip(split(learner.graph), split(teacher.graph), strict=True))
    found = exact = images[: _images_cached(teacher, images[:1], options.cache_mb)]
    for mine, original in blocks:
        exact = _forward(teacher, original, exact)
        course.fit(_LearningTask(mine, found, exact, options.block_steps, options.rounding), advance)
        found = _forward(learner, mine, found)
        yield mine.name


def _images_cached(teacher: TorchGraph, image: Tensor, cache_mb: int) -> int:
    """Number of images whose activations fit: those of a block's input and output are kept, each twice."""
    sizes = [image.nbytes]
    for block in split(teacher.graph):
        image = _forward(teacher, block, image)
        sizes.append(image.nbytes)
    return max(1, cache_mb * 2**20 // (2 * max(a + b for a, b in pairwise(sizes))))


def _forward(graph: TorchGraph, block: Block, inputs: Tensor) -> Tensor:
    together = min(_FORWARD_BATCH, max(1, _PIXELS_FORWARD // math.prod(inputs.shape[2:])))
    with torch.no_grad():
        return torch.cat([graph.run(block, part) for part in torch.split(inputs, together)])


class _Course:
    """Learns one task after another, and skips those that an interrupted run had finished."""

    def __init__(self, learner: TorchGraph, options: ReconstructOptions, resume: Resume) -> None:
        self.learner, self.options, self.resume = learner, options, resume
        self._task = 0  # number of the present one
        self._before = resume.load()
        if self._before is not None:
            learner.load_state(self._before["learner"])

    def fit(self, task: _LearningTask, advance: Advance) -> None:
        """Learn the scales, biases and roundings of the task's nodes."""
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
        begin = self._resume_at(optimizer, schedule)
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

    def _backward(self, task: _LearningTask, chosen: Tensor, choices: Sequence[CodedWeight], done: float) -> None:
        together = max(1, _PIXELS_AT_ONCE // math.prod(task.inputs.shape[2:]))
        for weight in choices:
            weight.soft = True
        for part in torch.split(chosen, together):
            error = task.error(self.learner.run(task.block, task.inputs[part]), part)
            (error / len(chosen)).backward()  # type: ignore[no-untyped-call]
        _press_for_choices(choices, done)
        for weight in choices:
            weight.soft = False

    def _resume_at(self, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LambdaLR) -> int:
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
    """Add the regularizer's gradient; ``done`` is the share of the steps that are done."""
    if choices and done >= UNDECIDED_FROM:
        first, last = UNDECIDED_BETAS
        falling = 0.5 * (1 + math.cos(math.pi * (done - UNDECIDED_FROM) / (1 - UNDECIDED_FROM)))
        beta = last + (first - last) * falling
        terms = [weight.undecided(beta) * weight.v.numel() for weight in choices]
        share = UNDECIDED_WEIGHT / sum(weight.v.numel() for weight in choices)
        (torch.stack(terms).sum() * share).backward()  # type: ignore[no-untyped-call]


def _rate(step: int, steps: int) -> float:
    """Learning rate as a share of the full one: a linear rise, then a cosine fall to zero."""
    return min(1.0, (step + 1) / (WARM_UP * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _batches(count: int, steps: int, options: ReconstructOptions) -> Iterator[Tensor]:
    """Indices of images: each is used once before any is used again."""
    generator = torch.Generator().manual_seed(options.seed)
    waiting = torch.empty(0, dtype=torch.int64)
    size = min(options.batch, count)
    for _ in range(steps):
        if len(waiting) < size:
            waiting = torch.randperm(count, generator=generator)
        yield waiting[:size]
        waiting = waiting[size:]
