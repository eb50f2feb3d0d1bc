"""The records that stages pass to each other: frozen, numpy only, units in names.

    source -> calibration -> ranges -> plan -> Q/DQ graph -> engine -> verdict

:mod:`edgeres.documents` reads those that are stored on disk; their ``__post_init__`` checks bounds.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from edgeres.documents import GROUPED, OPTIONAL, is_sha256, named, plain, require
from edgeres.files import is_inside

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_SIDE_PX = 1 << 16

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming", "cv2-bilinear"]
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)
ResizeMode = Literal["crop", "squash", "letterbox"]
RESIZE_MODES: tuple[ResizeMode, ...] = get_args(ResizeMode)
ChannelOrder = Literal["RGB", "BGR"]
Layout = Literal["NCHW", "NHWC"]
Style = Literal["tensorrt", "cpu"]
# Of activations behind a ReLU in a graph for TensorRT: those that are not negative; all 256 where that needs no Pad;
# all 256.
Codes = Literal["half", "free", "full"]
CODES: tuple[Codes, ...] = get_args(Codes)
# How YUV is meant: the standard's matrix, and whether its levels are those of video or all of a byte's.
Colour = Literal["bt601", "bt601-full", "bt709", "bt709-full"]
COLOURS: tuple[Colour, ...] = get_args(Colour)
# Frames of one byte per sample that need no demosaicing.
ByteFormat = Literal["rgb8", "bgr8", "rgba8", "bgra8", "mono8", "yuyv", "yvyu", "uyvy", "nv12", "nv21", "i420", "yv12"]
BYTE_FORMATS: tuple[ByteFormat, ...] = get_args(ByteFormat)
# Bytes per pixel of a row, where it is not one.
_PIXEL_BYTES = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "yuyv": 2, "yvyu": 2, "uyvy": 2}
PLANAR = ("nv12", "nv21", "i420", "yv12")
Outcome = Literal["passed", "failed", "unsure"]
Method = Literal["mse", "entropy", "percentile", "minmax"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class PixelReading:
    """How files and arrays become pixels of one byte per channel, before any resize.

    Attributes:
        channels: 1 (gray), 3 (RGB) or 4 (RGB and a fourth one, such as alpha); images with others are converted.
        exif: whether the orientation that a camera noted in the file is applied.
        full_scale: the value of 16-bit gray images that becomes 255; larger ones do too.
    """

    channels: Literal[1, 3, 4] = 3
    exif: bool = True
    full_scale: int = 65535

    def __post_init__(self) -> None:
        require(1 <= self.full_scale <= 65535, "full_scale must be 1 to 65535")


AS_RGB = PixelReading()


@dataclass(frozen=True)
class Fit:
    """How an image is brought to the input's size where neither a plain resize nor its shorter side decides.

    Attributes:
        fill: letterbox: the image is resized to fit into ``crop_px``, and the rest filled with this colour, one byte
            per channel in the order RGB; None: no letterbox.
        keep_aspect: of the meanings of a ``resize_px`` with two sides: True, the image just covers them; False, it is
            resized to exactly them.
    """

    fill: tuple[int, ...] | None = None
    keep_aspect: bool = True

    def __post_init__(self) -> None:
        require(all(0 <= value <= 255 for value in self.fill or ()), "fill must be 0 to 255 per channel")


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes the network's input, in calibration, in verification and on the robot.

    ``input = (pixel * pixel_scale - mean) / std`` after resize and centre crop; see :mod:`edgeres.data.preprocess`.

    Attributes:
        crop_px: height and width of the network's input.
        resize_px: length of the image's shorter side before the crop; or height and width, see :class:`Fit`; None: the
            image is resized to ``crop_px`` exactly, and not changed where it already has that size.
        interpolation: filter of the resize, with Pillow's antialiasing; ``cv2-bilinear``: OpenCV's without any.
        mean, std: per channel, in units of ``pixel * pixel_scale``, in the order of ``channel_order``.
        channel_order: order of the first three channels in the network's input; images are always decoded to RGB.
        pixel_scale: 1/255 for networks trained on [0, 1], 1.0 for raw pixels.
        layout: axis order of the network's input.
        fit: letterbox, and how two sides of ``resize_px`` are meant.
        reading: channels, orientation and depth of images.
    """

    crop_px: tuple[int, int]
    resize_px: int | tuple[int, int] | None = None
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channel_order: ChannelOrder = "RGB"
    pixel_scale: float = 1 / 255
    layout: Layout = "NCHW"
    fit: Fit = field(default=Fit(), metadata=GROUPED)
    reading: PixelReading = field(default=AS_RGB, metadata=GROUPED)

    def __post_init__(self) -> None:
        resized = self.resize_px if isinstance(self.resize_px, tuple) else (self.resize_px or 1,)
        sides = (*self.crop_px, *(resized if self.resize_px is not None else ()))
        require(all(1 <= side <= MAX_SIDE_PX for side in sides), f"crop_px and resize_px must be 1 to {MAX_SIDE_PX}")
        count, fill = self.reading.channels, self.fit.fill
        words = {1: "one value", 3: "three values", 4: "four values"}[count]
        require(len(self.mean) == len(self.std) == count, f"mean and std must have {words} each")
        require(all(value > 0 for value in (*self.std, self.pixel_scale)), "std and pixel_scale must be above 0")
        require(fill is None or len(fill) == count, f"fill must have {words}")
        require(fill is None or self.resize_px is None, "resize_px must be null with a letterbox, which has a fill")
        both = isinstance(self.resize_px, tuple)
        require(self.fit.keep_aspect or both, "keep_aspect must be true unless resize_px has two sides")
        require(count > 1 or self.channel_order == "RGB", "channel_order must be RGB with one channel")

    @property
    def channels(self) -> int:
        return self.reading.channels

    @property
    def resize_mode(self) -> ResizeMode:
        """``crop``: the aspect ratio is kept, and what is beyond ``crop_px`` cut off; ``squash``: it is not kept."""
        if self.fit.fill is not None:
            return "letterbox"
        return "squash" if self.resize_px is None or not self.fit.keep_aspect else "crop"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the network's input for one image, in its layout."""
        return (self.channels, *self.crop_px) if self.layout == "NCHW" else (*self.crop_px, self.channels)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, as in documents."""
        found: dict[str, Any] = plain(self)
        return found


@dataclass(frozen=True)
class FrameSpec:
    """A camera's frame as an engine takes it: its bytes, as the camera lays them.

    Attributes:
        step_bytes: distance between rows, of the first plane; the rows of i420's and yv12's chroma have half of it.
        rows: of the first plane, of which ``height_px`` are the picture; chroma follows them.
        colour: how YUV is meant.
    """

    format: ByteFormat
    height_px: int
    width_px: int
    step_bytes: int
    rows: int
    colour: Colour = "bt601"

    def __post_init__(self) -> None:
        height, width = self.height_px, self.width_px
        require(1 <= height <= MAX_SIDE_PX and 1 <= width <= MAX_SIDE_PX, f"a frame's sides must be 1 to {MAX_SIDE_PX}")
        pairs = self.format in PLANAR or _PIXEL_BYTES.get(self.format) == 2
        require(not (pairs and width % 2), f"the width of {self.format} must be even")
        require(self.step_bytes >= self.row_bytes, f"step must be {self.row_bytes} or more: a row has that many bytes")
        require(pairs or self.colour == "bt601", f"{self.colour} is for YUV, not for {self.format}")
        require(height <= self.rows <= MAX_SIDE_PX, f"rows must be {height} to {MAX_SIDE_PX}")
        if self.format in PLANAR:
            require(not height % 2 and not self.rows % 2, f"height and rows of {self.format} must be even")
            require(not self.step_bytes % 2, f"step of {self.format} must be even")
        else:
            require(self.rows == height, f"rows are for formats with planes, not for {self.format}")
        require(prod(self.shape) < 1 << 31, "a frame must have fewer than 2^31 bytes")

    @property
    def pixel_bytes(self) -> int:
        """Bytes of a pixel in the first plane."""
        return _PIXEL_BYTES.get(self.format, 1)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row without the gap behind it."""
        return self.width_px * self.pixel_bytes

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the engine's input for one frame, uint8: (H, W, bytes), (H, W) or (1.5 H, W); (rows, step) with gaps."""
        if self.format in PLANAR:
            return self.rows * 3 // 2, self.step_bytes
        if self.step_bytes != self.row_bytes:
            return self.height_px, self.step_bytes
        return (self.height_px, self.width_px, *((self.pixel_bytes,) if self.pixel_bytes > 1 else ()))

    @property
    def slug(self) -> str:
        """As it stands in a file's name: ``1280x720-bgr8``."""
        return re.sub("[^0-9a-z]+", "-", str(self))

    def __str__(self) -> str:
        """As the user writes it: ``1280x720:bgr8``, ``1920x1080:nv12:step=2048:rows=1088:bt709``."""
        more = f":step={self.step_bytes}" if self.step_bytes != self.row_bytes else ""
        more += f":rows={self.rows}" if self.rows != self.height_px else ""
        more += f":{self.colour}" if self.colour != "bt601" else ""
        return f"{self.width_px}x{self.height_px}:{self.format}{more}"


def complete_preprocess(holder: Mapping[str, Any], schema: int) -> dict[str, Any]:
    """A document's part with ``preprocess`` as it is written today, from one that was written before ``fit`` and
    ``reading``: EXIF was ignored, and 16-bit values above 255 were white. Without ``schema``, today's defaults hold.

    Raises:
        ValueError: that preprocessing is no longer done.
    """
    reading = PixelReading(exif=False, full_scale=255) if schema else AS_RGB
    found = dict(holder)
    for name in ("preprocess", "given"):
        if not isinstance(said := holder.get(name), dict):
            continue
        crop, resize = said.get("crop_px"), said.get("resize_px")
        if schema and isinstance(crop, list) and len(crop) == 2 and crop[0] != crop[1] and resize is not None:
            raise ValueError("its resize for an input that is not square is no longer done")
        found[name] = {**plain(Fit()), **plain(reading), **said}
    return found


@dataclass(frozen=True)
class Head:
    """One output of a network, and what it is for.

    Attributes:
        output: name of the graph's output.
        task: name of a module in :mod:`edgeres.task`.
    """

    output: str
    task: str


CLASSIFICATION = "classification"


@dataclass(frozen=True)
class ModelSpec:
    """The description of a network, without its graph.

    Attributes:
        name: architecture or file stem, e.g. ``resnet18``.
        preprocess: the preprocessing that the network was trained with.
        labels: one name per class, or per value where the output holds other values, in the order of the outputs.
        weights: where the weights came from, in words (``signs``, ``imagenet (V1)``, a file's name).
        weights_sha256: digest of the weights' file, None for random weights.
        output: ``probabilities`` where the graph ends in Softmax.
        given: the preprocessing as the user gave it, where the graph took over mean and std; else None.
        heads: the outputs, where they are other than one row of scores of classes.
    """

    name: str
    preprocess: Preprocess
    labels: tuple[str, ...]
    weights: str = "random"
    weights_sha256: str | None = None
    output: Literal["logits", "probabilities"] = "logits"
    given: Preprocess | None = field(default=None, metadata=OPTIONAL)
    heads: tuple[Head, ...] = field(default=(), metadata=OPTIONAL)

    def __post_init__(self) -> None:
        require(self.weights_sha256 is None or is_sha256(self.weights_sha256), "weights_sha256 must have 64 hex digits")

    @property
    def num_classes(self) -> int:
        return len(self.labels)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks of its heads, each once."""
        return tuple(dict.fromkeys(head.task for head in self.heads)) or (CLASSIFICATION,)

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = plain(self)
        return found


@dataclass(frozen=True)
class Weights:
    """Published weights of an architecture.

    Attributes:
        sha256: full digest, or its leading digits, which the publisher put into the file's name.
        published_top1: per cent on the validation set of the training data, as the publisher states it.
    """

    tag: str
    url: str
    sha256: str
    license: str
    published_top1: float
    preprocess: Preprocess


@dataclass(frozen=True)
class TensorRange:
    """The interval of real values that a tensor's codes cover.

    Attributes:
        low, high: in the tensor's own units; low <= 0 <= high, so that a code represents zero exactly.
        method: how the range was chosen.
        samples: number of images it was measured on.
    """

    tensor: str
    low: float
    high: float
    method: str
    samples: int

    @property
    def amax(self) -> float:
        return max(-self.low, self.high)


@dataclass(frozen=True)
class QuantParams:
    """An affine code: ``real = (code - zero_point) * scale`` (Jacob et al. 2018, eq. 1).

    Attributes:
        scale: float32; shape () for one scale per tensor, (C,) for one per channel along ``axis``.
        zero_point: the code of real zero, one for the whole tensor.
        dtype: type of the codes.
    """

    scale: F32
    zero_point: int
    dtype: Literal["int8", "uint8", "int32"]
    axis: int | None = None

    @property
    def code_limits(self) -> tuple[int, int]:
        info = np.iinfo(self.dtype)
        return int(info.min), int(info.max)


@dataclass(frozen=True)
class Edge:
    """A Q/DQ pair on an activation.

    Attributes:
        tensor: the float tensor that is quantized.
        consumers: names of the nodes that read the dequantized tensor; other nodes read the float tensor.
        reason: why the pair is placed here.
    """

    tensor: str
    params: QuantParams
    consumers: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class HalfEdge:
    """An activation that the named nodes read through a pair of Casts to float16 and back."""

    tensor: str
    consumers: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class WeightEdge:
    """A constant that is stored as codes, followed by a DequantizeLinear.

    Attributes:
        tensor: name of the initializer.
        node: the node that reads it: a Conv, Gemm or MatMul; or an Add, Mul or Concat, with uint8 codes.
        codes: shape of the initializer, type ``params.dtype``.
    """

    tensor: str
    node: str
    params: QuantParams
    codes: npt.NDArray[Any]


@dataclass(frozen=True)
class Skipped:
    """A node or tensor that was left in floating point on purpose."""

    what: str
    reason: str


@dataclass(frozen=True)
class QuantPlan:
    """What is quantized and how; with the FP32 graph, this is the input of the rewrite to Q/DQ.

    Attributes:
        style: ``tensorrt`` (symmetric int8) or ``cpu`` (uint8 activations for ONNX Runtime).
        calibration_digest: SHA-256 of the calibration that the plan was made from.
    """

    style: Style
    edges: tuple[Edge, ...]
    weights: tuple[WeightEdge, ...]
    skipped: tuple[Skipped, ...]
    calibration_digest: str
    halves: tuple[HalfEdge, ...] = ()


@dataclass(frozen=True)
class Portability:
    """Where an engine runs, apart from the machine that built it.

    Attributes:
        compute_capabilities: those of the GPUs it was built on or for; empty: TensorRT-RTX's portable default, Ampere
            and later.
        version_compatible: whether later versions of TensorRT load it; it then contains code for the CPU.
        hardware_compatible: whether it runs on other GPUs from Ampere on, except Jetsons.
    """

    compute_capabilities: tuple[str, ...] = ()
    version_compatible: bool = False
    hardware_compatible: bool = False


def is_engine_name(name: str) -> bool:
    """Whether a path inside a bundle is that of an engine; no other file is written or removed as one."""
    return is_inside(name) and name.startswith("engines/") and name.endswith(".engine")


@dataclass(frozen=True)
class KernelCounts:
    """What an engine's list of kernels shows of how well INT8 fused.

    Attributes:
        kernels: layers that run on the GPU.
        float_convolutions: convolutions and matrix products whose output is not INT8.
        reformats: layers that only change a tensor's layout or type.
        slices: layers that only copy parts of a tensor, as a Pad that did not fuse does.
        float_layers: other layers whose output is FP32 or FP16.
    """

    kernels: int
    float_convolutions: int
    reformats: int
    slices: int
    float_layers: int


@dataclass(frozen=True)
class FormTrial:
    """What the device said of an engine that was built from one form of the graph.

    Attributes:
        form: name of the graph's form, see :class:`FormRecord`.
        chosen: whether this engine is the one that is loaded on this GPU.
        why: why it was chosen, or why not, in words.
        p50_ms, p50_ms_ci95: median latency, host to host at batch 1, with its interval; None: not timed.
        sqnr_db: of its logits on the probes against FP32's; None: not measured, or not finite.
        agreement: per cent of the probes that it puts into FP32's class; None: not measured.
        kernels: None where the engine inspector said nothing.
        clocks: of the GPU before and after the measurement, in words; "": unknown.
    """

    form: str
    chosen: bool
    why: str
    p50_ms: float | None = None
    p50_ms_ci95: tuple[float, float] | None = None
    sqnr_db: float | None = None
    agreement: float | None = None
    kernels: KernelCounts | None = None
    clocks: str = ""

    def __post_init__(self) -> None:
        require(self.p50_ms is None or self.p50_ms > 0, "p50_ms must be above 0")


@dataclass(frozen=True)
class EngineOrigin:
    """How an engine was built, beside its graph.

    Attributes:
        build_seconds: None where it was not built, or not timed.
        form: name of the graph's form, where an engine takes frames; "": see :class:`FormTrial`, or the default form.
        frame: the camera's frame that it takes as its input; None: it takes prepared images.
        takes_bytes: whether prepared images go in as bytes, uint8 (N, h, w, channels), not as float32.
    """

    build_seconds: float | None = None
    form: str = field(default="", metadata=OPTIONAL)
    frame: FrameSpec | None = field(default=None, metadata=OPTIONAL)
    takes_bytes: bool = field(default=False, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        require(self.build_seconds is None or self.build_seconds >= 0, "build_seconds must not be negative")


@dataclass(frozen=True)
class EngineRecord:
    """A built engine, or the reason why there is none.

    Attributes:
        precision: precision of the graph it was built from.
        status: ``built, not run here``, or why it was not built and which command to run where.
        file: ``engines/*.engine`` inside the bundle; None where it was not built.
        size_bytes: 0 where it was not built.
        trial: what the device said of it where forms were measured; None: it was not measured.
    """

    target: str
    runtime: str
    version: str
    precision: Literal["fp32", "fp16", "int8"]
    status: str
    file: str | None = None
    size_bytes: int = 0
    portability: Portability = field(default=Portability(), metadata=GROUPED)
    origin: EngineOrigin = field(default=EngineOrigin(), metadata=GROUPED)
    trial: FormTrial | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        require(self.file is None or is_engine_name(self.file), "file must be an engine in engines/ of the bundle")
        require(self.size_bytes >= 0, "size_bytes must not be negative")

    @property
    def key(self) -> tuple[str, ...]:
        """A newer engine with the same key replaces this one."""
        form = self.trial.form if self.trial and self.file is None else ""
        frame = str(self.frame) if self.frame else ""
        return (self.target, self.precision, form, frame, *self.portability.compute_capabilities)

    @property
    def frame(self) -> FrameSpec | None:
        """The camera's frame that it takes; None: it takes prepared images."""
        return self.origin.frame

    @property
    def is_chosen(self) -> bool:
        """Whether the device's clock chose this engine among the forms."""
        return self.trial is not None and self.trial.chosen

    def to_dict(self) -> dict[str, Any]:
        return dict(plain(self))


def percentile_nearest(seconds: F64, percent: float) -> float:
    """A percentile without interpolation, as trtexec reports it: ``sorted[max(n - 1 - int((1 - p/100) n), 0)]``.

    >>> percentile_nearest(np.arange(1.0, 101.0), 99)
    99.0
    """
    n = len(seconds)
    return float(np.sort(seconds)[max(n - 1 - int((1 - percent / 100) * n), 0)])


@dataclass(frozen=True)
class Measurement:
    """Raw latencies of one runner; all other figures are computed from them.

    Attributes:
        seconds: float64, one per inference, in the order of measurement.
        batch: images per inference.
        scope: what was timed, e.g. ``host to host, batch 1, 1 thread``.
        backend: e.g. ``ONNX Runtime 1.32 CPU``.
        warmup_seconds: time spent before the first recorded inference.
        block: inferences per turn, where several runners took turns; ``seconds`` consists of whole blocks.
        cpu_seconds: processor time of this process, float64, one per inference; None: not measured.
    """

    seconds: F64
    batch: int
    scope: str
    backend: str
    warmup_seconds: float
    block: int = 1
    cpu_seconds: F64 | None = None

    def p(self, percent: float) -> float:
        """Percentile in milliseconds."""
        return 1e3 * percentile_nearest(self.seconds, percent)

    @property
    def throughput_ips(self) -> float:
        """Images per second."""
        return float(self.batch * len(self.seconds) / self.seconds.sum())


@dataclass(frozen=True)
class Accuracy:
    """Hits of one graph on a labelled set; top-1 and top-5 in per cent."""

    correct: int
    correct_top5: int
    total: int

    @property
    def top1(self) -> float:
        return 100.0 * self.correct / self.total

    @property
    def top5(self) -> float:
        return 100.0 * self.correct_top5 / self.total


@dataclass(frozen=True)
class Gate:
    """A limit on one figure, e.g. ``Gate("drop_pp", 1.0, "pp")``."""

    metric: str
    limit: float
    unit: str


@dataclass(frozen=True)
class Verdict:
    """The outcome of a gate.

    Attributes:
        observed: the figure; None where it was not measured, ``reason`` then says why.
        images_needed: about how many images would decide an unsure gate; None where more images do not help.
    """

    gate: Gate
    observed: float | None
    outcome: Outcome
    reason: str
    images_needed: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a graph; None in the shape: any size."""

    dtype: str
    shape: tuple[int | None, ...]

    def __post_init__(self) -> None:
        require(all(size is None or size >= 1 for size in self.shape), "sizes in shape must be 1 or more, or null")


@dataclass(frozen=True)
class LeftOut:
    """A target that the bundle has no graph or no engine for, because its own failed.

    Attributes:
        asked: whether the user named the target; otherwise it was chosen because this machine can build for it.
    """

    target: str
    why: str
    asked: bool


@dataclass(frozen=True)
class FormRecord:
    """One graph of the network in a bundle: what it is, and which runtimes it is written for.

    Attributes:
        file: path inside the bundle.
        runtimes: that run it, or that engines are built from it for.
        precision: of its convolutions: ``int8`` of at least some of them.
        codes: of activations behind a ReLU; None where it holds no codes, or codes of another kind.
        between: type of what is not in codes; ``float`` on disk.
        description: how it differs from the other forms, in words.
        sqnr_db: of its scores against FP32's on calibration images, computed on ONNX Runtime; None where it was not
            measured, or the scores are equal.
        weights: further files of the bundle, in the same folder, that it reads weights from.
    """

    name: str
    file: str
    runtimes: tuple[str, ...]
    precision: Literal["int8", "fp16"]
    codes: Codes | None
    between: Literal["float32", "float16"] = field(metadata=named("float"))
    description: str
    sqnr_db: float | None = field(default=None, metadata=OPTIONAL)
    weights: tuple[str, ...] = field(default=(), metadata=OPTIONAL)

    def __post_init__(self) -> None:
        require(all(map(is_inside, (self.file, *self.weights))), "file and weights must be paths inside the bundle")


@dataclass(frozen=True)
class Manifest:
    """The content of a bundle's manifest.json; see :mod:`edgeres.bundle`.

    Attributes:
        inputs, outputs: the graph's tensors, by name.
        files: SHA-256 of every other file of the bundle, by path relative to the bundle.
        plan_digests: SHA-256 of each INT8 graph's plan, by style.
        environment: versions of the software that made it.
        left_out: targets of the build that failed while the others were built.
        forms: the INT8 and FP16 graphs; empty in a bundle of schema 2, see :attr:`edgeres.bundle.Bundle.forms`.
        default_form: by runtime, the name of the form that is used where nothing was measured.
    """

    model: ModelSpec
    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    files: Mapping[str, str]
    plan_digests: Mapping[str, str]
    engines: tuple[EngineRecord, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = field(default=(), metadata=OPTIONAL)
    forms: tuple[FormRecord, ...] = field(default=(), metadata=OPTIONAL)
    default_form: Mapping[str, str] = field(default_factory=dict, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        require(all(map(is_inside, self.files)), "files must be named by paths inside the bundle")
        require("manifest.json" not in self.files, "files must not name the manifest itself")
        require("signature.json" not in self.files, "files must not name the signature of the manifest")
        plain_names = {unicodedata.normalize("NFC", name).casefold() for name in self.files}
        require(len(plain_names) == len(self.files), "files must not have names that differ in case alone")
        folders = {str(parent) for name in self.files for parent in PurePosixPath(name).parents}
        require(not folders & self.files.keys(), "files must not be named as folders of others")
        by_name = {form.name: form for form in self.forms}
        require(len(by_name) == len(self.forms), "forms must have names of their own")
        for runtime, name in self.default_form.items():
            fits = name in by_name and runtime in by_name[name].runtimes
            require(fits, f"default_form of {runtime} must be a form for it")
        digests = (*self.files.values(), *self.plan_digests.values())
        require(all(map(is_sha256, digests)), "digests must have 64 hex digits")
        known = {head.output for head in self.model.heads} <= self.outputs.keys()
        require(known, "heads must be of outputs of the graph")

    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Of each output that is used for one image, by its name: one score per class, or what each head has."""
        if not self.model.heads:
            return {next(iter(self.outputs), "scores"): (self.model.num_classes,)}
        return {head.output: self.outputs[head.output].shape[1:] for head in self.model.heads}


THUMBNAIL_PX = 128  # longer side


@dataclass(frozen=True)
class Prediction:
    """The answer of a classifier for one image.

    Attributes:
        scores: probabilities, float32 (classes,).
        logits: the network's output, float32 (classes,); equal to ``scores`` where the graph ends in Softmax.
        labels: one name per class.
    """

    scores: F32
    logits: F32
    labels: tuple[str, ...]

    @property
    def index(self) -> int:
        return int(self.scores.argmax())

    @property
    def label(self) -> str:
        return self.labels[self.index]

    @property
    def score(self) -> float:
        return float(self.scores.max())

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The best classes with their probabilities, best first."""
        order = np.argsort(-self.scores, kind="stable")[:count].tolist()
        return [(self.labels[i], float(self.scores[i])) for i in order]


@dataclass(frozen=True)
class ImageFile:
    """An image file to classify.

    Attributes:
        path: as it is shown.
        named: whether the user named the file itself, not a folder above it.
        label: the class that its folder is named after; None where folders are not classes.
    """

    path: Path
    named: bool
    label: str | None = None


@dataclass(frozen=True)
class ImagePrediction:
    """The prediction for an image file.

    Attributes:
        prediction: a :class:`Prediction`, or the answer of another task.
        jpeg: a small picture, :data:`THUMBNAIL_PX` on its longer side; empty where none was asked for.
    """

    file: ImageFile
    prediction: Any
    jpeg: bytes = b""

    @property
    def wrong(self) -> bool:
        return self.file.label is not None and self.file.label != self.prediction.label


@dataclass(frozen=True)
class UnreadableImage:
    """An image file that cannot be decoded; ``why`` is the reason."""

    file: ImageFile
    why: str


_IMAGE_ORDERS: dict[str, Callable[[ImagePrediction], tuple[object, ...]]] = {
    "path": lambda image: (),  # keep the order in which files were found
    "sure": lambda image: (-image.prediction.score,),
    "unsure": lambda image: (image.prediction.score,),
    "class": lambda image: (image.prediction.index, image.prediction.score),
}
IMAGE_ORDERS = tuple(_IMAGE_ORDERS)


def in_order(images: Sequence[ImagePrediction], by: str) -> list[ImagePrediction]:
    """Sort by one of :data:`IMAGE_ORDERS`; within a class, the lowest score comes first."""
    return sorted(images, key=_IMAGE_ORDERS[by])
