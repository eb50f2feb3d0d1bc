"""The keyword arguments of the functions of ``edgeres``, with their types, so that editors complete them.

What each means is said at the record that has it; tests hold the names equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from edgeres.data.loader import OnUnreadable
from edgeres.engine.builder import Precision
from edgeres.judge.asked import GateChoice, OnUnsure
from edgeres.records import ChannelOrder, Codes, Interpolation, Method, ResizeMode
from edgeres.refine.choice import Effort, Residual
from edgeres.task.keywords import TaskKeywords


class ImageKeywords(TypedDict, total=False):
    """:class:`DataChoice`, and what is done with images that cannot be read."""

    calibration: str | Path
    calibration_size: int
    validation: str | Path
    validation_size: int | None
    validation_labels: str | Path
    seed: int
    on_unreadable: OnUnreadable


class GateKeywords(TaskKeywords, total=False):
    """:class:`GateChoice` and :class:`Limits`; None as a limit sets no gate."""

    max_drop: float | None
    max_class_drop: float | None
    min_agreement: float | None
    min_top1: float | None
    min_speedup: float | None
    min_speedup_fp16: float | None
    max_p99_ms: float | None
    max_size_mb: float | None
    max_regression: float | None
    max_sqnr_loss: float | None
    max_slowdown: float | None
    baseline: str | Path | None
    any_machine: bool
    corruptions: bool
    on_unsure: OnUnsure
    allow: Sequence[str]
    task_limits: Mapping[str, float | None]


class VerifyKeywords(ImageKeywords, GateKeywords, total=False):
    """Images and gates of a verification."""


class ModelKeywords(TypedDict, total=False):
    """:class:`ModelChoice` and :class:`InputChoice`."""

    weights: str
    num_classes: int
    labels: Sequence[str] | str | Path
    name: str
    input_px: tuple[int, int]
    ema: bool
    head_activation: str
    task: str
    mean: Sequence[float]
    std: Sequence[float]
    pixel_scale: float
    resize_px: int | tuple[int, int]
    channel_order: ChannelOrder
    exif: bool
    full_scale: int
    preprocess: str
    resize_mode: ResizeMode
    crop_ratio: float
    interpolation: Interpolation
    fill: Sequence[float]


class QuantizeKeywords(ModelKeywords, ImageKeywords, total=False):
    """:class:`RangeOptions` and :class:`RefineChoice` too."""

    method: Method
    codes: Codes
    calibration_file: str | Path
    batch: int
    effort: Effort
    residual: Residual


class BuildKeywords(QuantizeKeywords, GateKeywords, total=False):
    """All options of a build."""

    targets: Sequence[str] | str
    also: Sequence[Precision]
    max_batch: int | None
    opt_batch: int
    workspace_mb: int
    builder_level: int
    version_compatible: bool
    hardware_compatible: bool
    compute_capabilities: Sequence[str]
    gates: GateChoice
    thumbnails: bool
    output: str | Path
    force: bool
