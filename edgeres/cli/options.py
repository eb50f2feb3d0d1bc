"""Options that several commands share."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, get_args

import click
from click.core import ParameterSource

from edgeres.data.base import FORMS
from edgeres.device.targets import Flavour
from edgeres.errors import UsageError
from edgeres.files import refuse_output
from edgeres.records import CODES, INTERPOLATIONS, METHODS, RESIZE_MODES
from edgeres.refine.choice import EFFORTS, RESIDUALS
from edgeres.task import TASKS, brought_gates
from edgeres.words import did_you_mean

if TYPE_CHECKING:
    from edgeres.signing import Anyone

Command = TypeVar("Command", bound=Callable[..., Any])


class Decorator(Protocol):
    """What adds an option to a command."""

    def __call__(self, function: Command, /) -> Command: ...


SRC = FORMS[0].upper() + FORMS[1:]
MODEL = "An architecture of `edgeres models`, timm:NAME, torchvision:NAME, hf:FOLDER, or an ONNX file."
_MOST_PIXELS = 16384


def _all(*options: Decorator) -> Decorator:
    def add(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return add


# Headings of --help, in their order; what belongs to none of them stands under the last one.
_SECTIONS = ("Model", "Input", "Images", "Quantization", "Engines", "Gates", "Options")


def section(title: str, *options: Decorator) -> Decorator:
    """Add options that stand together under a heading of ``--help``."""

    def add(function: Command) -> Command:
        before = len(getattr(function, "__click_params__", ()))
        function = _all(*options)(function)
        for option in getattr(function, "__click_params__", ())[before:]:
            vars(option).setdefault("section", title)
        return function

    return add


class UserPath(click.Path):
    """A path in which ``~`` is the home directory, also where shells leave it as it is: ``--output=~/x.onnx``."""

    def __init__(self, **rules: bool) -> None:
        super().__init__(path_type=Path, **rules)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(str(Path(value).expanduser()), param, ctx)


class ImageSize(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """A height and width: ``224``, or ``224x320``."""

    name = "pixels"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        sides = str(value).lower().replace("x", " ").split()
        if not (len(sides) in (1, 2) and all(side.isdecimal() and 0 < int(side) <= _MOST_PIXELS for side in sides)):
            self.fail(f"{value!r} is no size; write 224, or 224x320 or 224 320 for height and width.", param, ctx)
        return int(sides[0]), int(sides[-1])


class ResizeSize(ImageSize):
    """The shorter side, ``256``, or height and width, ``256x256``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        sides = super().convert(value, param, ctx)
        return sides if {"x", " "} & {*str(value).lower().strip()} else sides[0]


class Numbers(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """One number per channel: ``0.5``, ``0.485 0.456 0.406``; :class:`ManyValues` brings them together."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        words = str(value).replace(",", " ").split()
        if not words or len(words) > 4 or not all(map(_is_number, words)):
            self.fail(f"{value!r} is not one number per channel; write 0.5, or 0.485 0.456 0.406.", param, ctx)
        return tuple(map(float, words))


class ManyValues(click.Command):
    """A command with many options.

    ``--help`` shows them in sections. Options may take one value or several: the numbers that follow each of them are
    one text.
    """

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        found: dict[str, list[tuple[str, str]]] = {title: [] for title in _SECTIONS}
        for option in self.get_params(ctx):
            if (record := option.get_help_record(ctx)) is not None:
                found[vars(option).get("section", _SECTIONS[-1])].append(record)
        for title, records in found.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        many = {flag for option in self.params if isinstance(option.type, Numbers | ImageSize) for flag in option.opts}
        joined: list[str] = []
        room = 0
        for arg in args:
            if room > 1 and _is_number(joined[-1].split()[0]) and _is_number(arg):
                joined[-1] += f" {arg}"
                room -= 1
                continue
            room = 5 if arg in many else room if room == 5 else 0
            joined.append(arg)
        return super().parse_args(ctx, joined)


def _is_number(text: str) -> bool:
    try:
        return bool(float(text) or True)
    except ValueError:
        return False


class Word(click.Choice):  # type: ignore[type-arg]  # generic from click 8.2 on
    """One of a few words; a misspelt one is told the nearest."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value not in self.choices and (near := did_you_mean(str(value), self.choices)):
            self.fail(f"{value!r} is none of {', '.join(self.choices)}; {near}", param, ctx)
        return super().convert(value, param, ctx)


def whole_number(flag: str, text: str, default: int | None = None, least: int = 1, metavar: str = "N") -> Decorator:
    """An option that takes an integer from ``least`` on."""
    kind, shown = click.IntRange(least), default is not None
    return click.option(flag, type=kind, default=default, show_default=shown, metavar=metavar, help=text)


def choice(flag: str, names: Sequence[str], text: str, default: str | None = None) -> Decorator:
    """An option that takes one of these names."""
    return click.option(flag, type=Word(names), default=default, show_default=default is not None, help=text)


def file_option(flag: str, text: str) -> Decorator:
    """An option that takes the path of a file."""
    return click.option(flag, type=UserPath(dir_okay=False), metavar="FILE", help=text)


def text_option(*names: str, default: str, metavar: str, text: str) -> Decorator:
    """An option that takes any text; ``names`` are its flag and, where it differs, the name of its parameter."""
    return click.option(*names, default=default, show_default=True, metavar=metavar, help=text)


def output_option(metavar: str, text: str, *, required: bool = False, **rules: bool) -> Decorator:
    """``-o``, the path that a command writes; ``rules`` are those of :class:`UserPath`."""
    path = UserPath(**rules)
    return click.option(
        "-o", "--output", required=required, type=path, metavar=metavar, help=text, callback=_check_writable
    )


def written_file(flag: str, text: str) -> Decorator:
    """An option that takes the path of a file to be written."""
    return click.option(flag, type=UserPath(dir_okay=False), metavar="FILE", help=text, callback=_check_writable)


def _check_writable(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
    """Refuse at once, before anything is computed, a path below a file or below a directory without write access.

    Pipes, devices and names of the system are refused, too.
    """
    if path is not None:
        refuse_output(path)
        above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
        if not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(above))
        if hasattr(os, "statvfs") and os.statvfs(above).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, f"{os.strerror(errno.EROFS)}, so {path.name} cannot be written", str(above))
        if not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"no permission to write {path.name} here", str(above))
    return path


# Help texts that are too long for the line of their option.
_RANGES = "Use the ranges of this calibration.json, from `edgeres calibrate` or a bundle; images are not needed then."
_EFFORT = "fast: one calibration pass. balanced: as long as 20 more passes. best: minutes."
_RESIDUAL = "Precision of the residual stream for TensorRT; auto uses float16 where int8 loses most."
_CODES = "Codes behind a ReLU, for TensorRT: half: 128. free: 256 where that takes no Pad. full: 256."
_WORKSPACE = "Scratch memory of one layer.  [default: a quarter of a Jetson's memory, else all]"
_LEVEL = "Builder optimization level. 0: fast build. 5: fast engine."
_HARDWARE = "Build engines for other GPUs from Ampere on, too; not on Jetsons."
_RTX_GPUS = "Build RTX engines for this GPU, e.g. 8.9; repeatable. Default: a portable engine."
_TRUST = "Public keys; take only a bundle that one of them signed, see `edgeres sign`."
_TRUST_FIRST = "Public keys; begin only if one of them signed the bundle as it is, see `edgeres sign`."
_KEY_AFTER = "SSH key that signs the bundle afterwards, with the new engines, as `edgeres sign` does."
_CODE = "Let code for the CPU in version-compatible engines run though no trusted key signed it."
_THUMBNAILS = "Show images that INT8 gets wrong in the report.  [default: yes]"
_CORRUPTIONS = "Also compare on 200 images darkened, blurred, noised, compressed and rotated, in three strengths each."

_TASK = "What the output is for (docs/tasks.md). Default: what the images show, else classification."
_TABLE = "Labels of these images where they are in no class folders: CSV or text with image,label in each line."
_SIZE = "Height and width of the input, where the graph leaves them free or a model of the zoo has others."
_PREPROCESS = "As in training: torchvision, timm:MODEL, keras-caffe, imagenet-inception, ... (docs/preprocessing.md)."
_RESIZE = "Shorter side before the crop; HxW: squash to both sides before it."
_CROP_RATIO = "Share of the resized image that the crop takes, as timm's crop_pct: 0.875 is 224 of 256."
_EXIF = "Turn images as their EXIF data say.  [default: yes]"
_FULL_SCALE = "Value of 16-bit gray that becomes 255, e.g. 5000 for depth in mm up to 5 m.  [default: 65535]"
_EMA = "Take the averaged weights that training kept in the checkpoint (EMA, SWA)."
_HEAD = "What stands between the layers of a checkpoint's classifier, if it has several."

as_json = click.option("--json", "as_json", is_flag=True, help="Print only the result, as JSON on stdout.")

BACKENDS = ("auto", *get_args(Flavour), "cuda", "cpu", "ort-tensorrt", "ort-rtx")
backend_option = choice("--backend", BACKENDS, "auto: the bundle's engines where they run here, else the CPU.", "auto")

trust_option = file_option("--trust", _TRUST)
key_options = _all(file_option("--trust", _TRUST_FIRST), file_option("--key", _KEY_AFTER))
trust_options = _all(trust_option, click.option("--host-code", is_flag=True, help=_CODE))


def trusted(given: dict[str, Any]) -> Path | Anyone | None:
    """Take both of these options out of those that were given."""
    from edgeres.signing import ANYONE

    keys: Path | None = given.pop("trust")
    anyone: bool = given.pop("host_code")
    if keys is not None and anyone:
        raise UsageError("--host-code trusts anyone, and --trust only some", hint="give one of them")
    return ANYONE if anyone else keys


model_options = section(
    "Model",
    click.option("--weights", metavar="TAG|FILE|URL", help="A tag of `edgeres models`, a file, a URL, or random."),
    whole_number("--num-classes", "Number of classes, for random weights; a checkpoint has its own."),
    click.option("--ema", is_flag=True, help=_EMA),
    choice("--head-activation", ("relu", "gelu", "silu", "tanh", "sigmoid", "none"), _HEAD),
)

size_option = click.option("--input-px", type=ImageSize(), metavar="PX|HxW|H W", help=_SIZE)

input_options = section(
    "Input",
    size_option,
    choice("--task", tuple(TASKS), _TASK),
    file_option("--labels", "Names of classes or values, one per line, in the order of the outputs."),
    click.option("--mean", type=Numbers(), metavar="R G B", help="Input = (pixel * S - mean) / std; one per channel."),
    click.option("--std", type=Numbers(), metavar="R G B", help="See --mean; the default is ImageNet's."),
    click.option(
        "--pixel-scale",
        type=float,
        metavar="S",
        help="1/255 by default; 1 where mean and std are in units of 0 to 255.",
    ),
    choice("--channel-order", ("RGB", "BGR"), "Order of the network's channels; --mean and --std stay R G B."),
    click.option("--preprocess", metavar="NAME", help=_PREPROCESS),
    choice("--resize-mode", RESIZE_MODES, "crop keeps the aspect ratio, squash does not, letterbox adds borders."),
    click.option("--resize", "resize_px", type=ResizeSize(), metavar="PX|HxW", help=_RESIZE),
    click.option("--crop-ratio", "--crop-pct", type=float, metavar="X", help=_CROP_RATIO),
    choice("--interpolation", INTERPOLATIONS, "Filter of the resize: Pillow's, or OpenCV's plain bilinear."),
    click.option("--fill", type=Numbers(), metavar="R G B", help="Colour of a letterbox's borders.  [default: 114]"),
    click.option("--exif/--no-exif", default=None, help=_EXIF),
    click.option("--full-scale", type=int, metavar="N", help=_FULL_SCALE),
)

unreadable_option = click.option(
    "--skip-unreadable",
    "on_unreadable",
    flag_value="skip",
    default="fail",
    help="Leave out images that cannot be read, and list them.",
)

calibration_options = section(
    "Images",
    click.option("--calibration", metavar="SRC", help=f"Images for calibration. {SRC}."),
    whole_number("--calibration-size", "Number of images taken from it.", 512),
    whole_number("--seed", "Seed of the choice of images.", 0, least=0),
    unreadable_option,
    section(
        "Quantization",
        choice("--method", METHODS, "How ranges are chosen.", "mse"),
        whole_number("--batch", "Images per calibration step.", 8),
    ),
)

calibration_file_option = section("Quantization", file_option("--calibration-file", _RANGES))

refine_options = section(
    "Quantization",
    choice("--effort", EFFORTS, _EFFORT, "balanced"),
    choice("--residual", RESIDUALS, _RESIDUAL, "int8"),
    choice("--codes", CODES, _CODES, "free"),
)

_BUDGET = "Seconds for building and timing forms; those that do not fit are passed over."
_SQNR = "Pass over a form whose logits on the probes are below this SQNR."
engine_options = section(
    "Engines",
    click.option("--also", multiple=True, type=Word(["fp32", "fp16"]), help="Also keep engines in this precision."),
    whole_number("--max-batch", "Largest batch of the engines.  [default: 1 on a Jetson, 8 elsewhere]"),
    whole_number("--opt-batch", "Batch that kernels are chosen for.", 1),
    whole_number("--workspace-mb", _WORKSPACE, metavar="MB"),
    click.option("--builder-level", type=click.IntRange(0, 5), default=3, show_default=True, help=_LEVEL),
    click.option("--version-compatible", is_flag=True, help="Build engines for later versions of TensorRT, too."),
    click.option("--hardware-compatible", is_flag=True, help=_HARDWARE),
    click.option("--compute-capability", "compute_capabilities", multiple=True, metavar="SM", help=_RTX_GPUS),
)

tune_options = _all(
    click.option("--form", metavar="NAME", help="Build this form of the graph alone; the manifest lists them."),
    click.option("--no-tune", is_flag=True, help="Take the default form, and measure nothing."),
    click.option(
        "--time-budget", type=click.FloatRange(1), default=1200.0, show_default=True, metavar="S", help=_BUDGET
    ),
    click.option("--min-sqnr", type=float, default=15.0, show_default=True, metavar="DB", help=_SQNR),
)


class Limit(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """A number, or ``off``, which disables the gate."""

    name = "limit"
    OFF = "off"

    def __init__(self, *, percent: bool = False) -> None:
        self._percent = percent  # a sign behind the number is taken

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == self.OFF or isinstance(value, float):
            return value
        try:
            number = float(value.removesuffix("%") if self._percent else value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            self.fail(f"{value!r} is neither a number nor off.", param, ctx)
        return number


def _limit(flag: str, metavar: str, text: str) -> Decorator:
    return click.option(flag, type=Limit(percent=metavar == "%"), metavar=metavar, help=text)


validation_options = section(
    "Images",
    click.option("--validation", metavar="SRC", help=f"Images to verify on. {SRC}."),
    click.option("--validation-labels", metavar="FILE", help=_TABLE),
    whole_number("--validation-size", "Number of images taken from it; all by default."),
)

gate_options = section(
    "Gates",
    _limit("--max-drop", "PP", "Gate: top-1 lost against FP32, in points.  [default: 1]"),
    _limit("--max-class-drop", "PP", "Gate: top-1 lost by any class, where it is significant.  [default: 10]"),
    _limit("--min-agreement", "%", "Gate: images that FP32 and INT8 put into the same class."),
    _limit("--min-top1", "%", "Gate: labelled images that every INT8 graph gets right."),
    _limit("--min-speedup", "X", "Gate: FP32's p50 latency over INT8's."),
    _limit("--min-speedup-fp16", "X", "Gate: FP16's p50 latency over INT8's, where both engines run."),
    _limit("--max-p99-ms", "MS", "Gate: INT8's p99 latency on this machine."),
    _limit("--max-size-mb", "MB", "Gate: size of each INT8 graph and engine."),
    file_option("--baseline", "Accepted build to compare with."),
    _limit("--max-regression", "PP", "Gate: top-1 lost against the baseline.  [default: 0.5]"),
    _limit("--max-sqnr-loss", "DB", "Gate: logit SQNR lost against the baseline.  [default: 3]"),
    _limit("--max-slowdown", "%", "Gate: latency against the baseline, in units of FP32's.  [default: 15]"),
    *(_limit(f"--{name.replace('_', '-')}", one.metavar, one.help) for name, one in brought_gates().items()),
    click.option("--corruptions", is_flag=True, default=None, help=_CORRUPTIONS),
    click.option("--any-machine", is_flag=True, default=None, help="Compare latency also between different machines."),
    choice("--on-unsure", ("warn", "fail"), "Outcome of gates that too few images leave uncertain.  [default: warn]"),
    click.option("--allow", multiple=True, metavar="CHECK", help="Only report this check, if it fails; repeatable."),
    click.option("--thumbnails/--no-thumbnails", default=None, help=_THUMBNAILS),
)


def gate_choice(given: dict[str, Any]) -> dict[str, Any]:
    """Take the options on gates out of ``given``; missing ones come from the configuration, else defaults.

    Returns:
        ``gates``, ``thumbnails``, and the images that the configuration names.

    Raises:
        UsageError: the configuration is wrong.
    """
    from edgeres.cli.config import gates_from, read_config, tell_config
    from edgeres.judge.gates import LIMITS

    config, own = read_config(), {}
    for name in (
        *LIMITS,
        *brought_gates(),
        "baseline",
        "any_machine",
        "corruptions",
        "on_unsure",
        "allow",
        "thumbnails",
    ):
        said = given.pop(name)
        if said not in (None, ()):
            own[name] = None if said == Limit.OFF else said
    gates = gates_from(config, own)
    tell_config(gates)
    values = {**config.values, **own}
    images = ("validation", "validation_labels", "validation_size")
    chosen: dict[str, Any] = {name: values[name] for name in images if name in values}
    return {**chosen, "thumbnails": values.get("thumbnails", True), "gates": gates}


def check_calibration_file(given: dict[str, Any]) -> None:
    """Refuse options that would have no effect with a file of ranges.

    Raises:
        UsageError: a method is given, or refinement without images.
    """
    if given["calibration_file"] is None:
        return
    source = click.get_current_context().get_parameter_source
    said = {name for name in ("method", "effort") if source(name) is ParameterSource.COMMANDLINE}
    if "method" in said:
        raise UsageError("the ranges in the file were chosen already", where="--method", hint="leave it out")
    if "effort" in said and given["effort"] != "fast" and given["calibration"] is None:
        raise UsageError("refinement needs images, and none are given", where="--effort", hint="add --calibration SRC")


_FIT = ("resize_mode", "crop_ratio", "interpolation", "fill")


def input_choice(given: dict[str, Any]) -> dict[str, Any]:
    """Take the options on the input out of ``given``; those that are None were not given."""
    names = ("mean", "std", "pixel_scale", "resize_px", "channel_order", "preprocess", "exif", "full_scale", *_FIT)
    return {name: value for name in names if (value := given.pop(name)) is not None}
