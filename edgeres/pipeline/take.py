"""Loads the model that the user names, as an FP32 graph with its description.

    name + weights       -> torch module -> export   \\
    torch module         ----------------> export     > FP32 ONNX, canonical, with a ModelSpec
    ONNX file            -------------> normalize    /
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgeres.bundle import MANIFEST
from edgeres.data.plausible import check_normalization
from edgeres.data.preprocess import resized
from edgeres.data.text import read_class_names, repeated_names
from edgeres.errors import InputError, UsageError, needs
from edgeres.pipeline.input_choice import InputChoice, usual_resize
from edgeres.progress import SILENT, Progress
from edgeres.records import CLASSIFICATION, ModelSpec, Preprocess, TensorRange
from edgeres.task import task_named
from edgeres.zoo.architectures import ARCHITECTURES

if TYPE_CHECKING:
    import onnx

    from edgeres.graph.normalize import Canonical
    from edgeres.graph.stated import Stated
    from edgeres.task import Task
    from edgeres.zoo.checkpoint import Loaded


# Other sources of models, before a colon.
SOURCES = ("timm", "torchvision", "hf")


@dataclass(frozen=True)
class ModelChoice:
    """The user's choice of a network.

    Attributes:
        model: a zoo name, ``timm:NAME``, ``torchvision:NAME``, ``hf:FOLDER``, the path of an ``.onnx`` file, or (from
            Python) a ``torch.nn.Module``.
        weights: tag, file, URL or ``random``; None takes the default of the zoo.
        num_classes: number of classes, for random weights only; otherwise the checkpoint has it.
        labels: class names in the order of the outputs, or the path of a text file with one name per line.
        input: how pixels become the input; needed for a module, optional otherwise.
        name: name of a module.
        input_px: height and width of the input: of a module (None: 224x224), of a graph that leaves them free, or of a
            zoo model in place of its own.
        task: what the outputs are for, a name in :data:`edgeres.task.TASKS`; None: scores of classes, unless the file
            states another one.
        ema: take the averaged weights of a checkpoint.
        head_activation: what stands between the matrices of a checkpoint's classifier of several layers.
    """

    model: Any
    weights: str | None = None
    num_classes: int | None = None
    labels: Sequence[str] | Path | None = None
    input: InputChoice = InputChoice()
    name: str | None = None
    input_px: tuple[int, int] | None = None
    ema: bool = False
    head_activation: str | None = None
    task: str | None = None

    def shown(self) -> str:
        """The model in the user's words."""
        return str(self.model) if isinstance(self.model, str | Path) else self.name or type(self.model).__name__


@dataclass(frozen=True)
class Fp32Model:
    """The FP32 network: the reference for everything that follows.

    Attributes:
        graph: canonical FP32 ONNX graph.
        max_error: largest difference to the original model (torch, or the graph of the file), as a share of the
            largest output.
        notes: findings and changes, in words.
        known: ranges that are known without calibration, by tensor.
    """

    graph: onnx.ModelProto
    spec: ModelSpec
    max_error: float
    notes: tuple[str, ...] = ()
    known: Mapping[str, TensorRange] = field(default_factory=dict)


def with_exact_input(model: Fp32Model, interface: Literal["bytes", "normalized"] = "bytes") -> Fp32Model:
    """The same network with bytes minus 128 as input, which int8 codes represent exactly; unchanged if not possible.

    Args:
        interface: ``normalized`` keeps the input of the graph, which then computes the bytes from it.
    """
    from edgeres.refine.exact_input import ExactInput, exact_input

    found = exact_input(model.graph, model.spec.preprocess, interface)
    if not isinstance(found, ExactInput):
        return replace(model, notes=(*model.notes, f"{found.what}: {found.reason}"))
    taken_over = model.spec.preprocess if found.preprocess != model.spec.preprocess else None
    spec = replace(model.spec, preprocess=found.preprocess, given=taken_over)
    return replace(model, graph=found.graph, spec=spec, known=found.known)


def take(choice: ModelChoice, progress: Progress = SILENT) -> Fp32Model:
    """Load, export or normalize the model.

    Raises:
        UsageError: the architecture does not exist, or options contradict each other.
        WeightsError, ModelError: the checkpoint or the graph cannot be used.
        EnvironmentError_: the ``export`` extra is not installed.
    """
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise needs("export", "onnx") from error
    notes: tuple[str, ...] = ()
    task_named(choice.task or CLASSIFICATION)  # a misspelt one fails before anything is read
    if isinstance(choice.labels, str | Path):
        named = read_class_names(choice.labels)
        choice, notes = replace(choice, labels=named.names), named.notes
    if not isinstance(choice.model, str | Path):
        taken = _take_module(choice, progress)
    elif str(choice.model).lower().endswith(".onnx"):
        with progress.task("reading the graph", total=None):
            taken = _take_onnx(Path(choice.model).expanduser(), choice)
    else:
        taken = _take_zoo(str(choice.model), choice, progress)
    if choice.labels is not None:
        taken = replace(taken, notes=(*taken.notes, *notes, *repeated_names(taken.spec.labels)))
    for note in (*taken.notes, *check_normalization(taken.spec.preprocess)):
        progress.say(f"note: {note}")
    return taken


def _take_zoo(name: str, choice: ModelChoice, progress: Progress) -> Fp32Model:
    from edgeres.zoo.registry import find_model

    if Path(name).suffix in {".pt", ".pth", ".th", ".safetensors"}:
        raise UsageError(
            "a checkpoint holds weights, not the architecture", where=name, hint=f"--model resnet18 --weights {name}"
        )
    if (path := Path(name).expanduser()).exists() and name not in ARCHITECTURES:
        what = "is a directory, not a model" if path.is_dir() else "is neither an ONNX file nor an architecture"
        bundle = path.is_dir() and (path / MANIFEST).is_file()
        hint = (
            f"edgeres verify {name} measures a bundle again"
            if bundle
            else "give a FILE.onnx, or a name of edgeres models"
        )
        raise UsageError("is a bundle, built already" if bundle else what, where=name, hint=hint)
    source = name.partition(":")[0] if ":" in name else ""
    if source and source not in SOURCES:
        hint = f"an architecture of `edgeres models`, or {', '.join(f'{known}:NAME' for known in SOURCES)}"
        raise UsageError("no such source of models", where=name, hint=hint)
    if not source:
        find_model(name)  # so that a misspelt name fails before torch is loaded
    try:
        with progress.task("starting torch", total=None):
            import torch  # noqa: F401
    except ImportError as error:
        raise needs("export", "torch") from error
    from edgeres.zoo.export import export

    weights = choice.weights
    if weights and weights.startswith("~"):
        weights = str(Path(weights).expanduser())
    module, spec, notes = _loaded(name, source, replace(choice, weights=weights), progress)
    if choice.input_px:
        spec = replace(spec, preprocess=resized(spec.preprocess, choice.input_px))
    spec = _described(spec, choice)
    progress.say(f"{name}: weights {spec.weights}, {spec.num_classes} classes")
    with progress.task("exporting", total=None):
        exported = export(module, spec, _task(choice).outputs)
    spec = _answering(spec, exported.canonical, choice)
    return Fp32Model(exported.model, spec, exported.relative_error, (*notes, *exported.canonical.notes))


def _loaded(name: str, source: str, choice: ModelChoice, progress: Progress) -> Loaded:
    """The network, from the zoo or from another source of models."""
    from edgeres.zoo.checkpoint import WeightsChoice, load_model
    from edgeres.zoo.hf_folder import load_folder
    from edgeres.zoo.sources import load_source

    wanted = WeightsChoice(choice.weights, choice.num_classes, choice.ema, choice.head_activation)
    if source == "hf":
        return load_folder(name, wanted)
    return load_source(name, wanted, progress) if source else load_model(name, wanted, progress)


def _take_module(choice: ModelChoice, progress: Progress) -> Fp32Model:
    from edgeres.zoo.export import export

    size = choice.input_px or (224, 224)
    known = Preprocess(crop_px=size, resize_px=usual_resize(size))
    spec = ModelSpec(choice.name or type(choice.model).__name__.lower(), known, (), weights="module")
    with progress.task("exporting", total=None):
        exported = export(choice.model, spec, _task(choice).outputs)
    spec = _described_by_graph(spec, exported.canonical, choice)
    return Fp32Model(exported.model, spec, exported.relative_error, exported.canonical.notes)


def _take_onnx(path: Path, choice: ModelChoice) -> Fp32Model:
    from edgeres.files import sha256
    from edgeres.graph.normalize import load_onnx, normalize_foreign
    from edgeres.graph.stated import stated

    if choice.weights is not None or choice.num_classes is not None or choice.ema or choice.head_activation:
        what = "an ONNX file brings its own weights and classes"
        raise UsageError(what, hint="drop --weights, --num-classes, --ema and --head-activation")
    model = load_onnx(path, tried=False)
    said = stated(model, path)
    size = choice.input_px or (said.preprocess.crop_px if said.preprocess else None)
    choice = replace(choice, task=choice.task or said.task)
    canonical = normalize_foreign(model, where=path, size_px=size, outputs=_task(choice).outputs)
    known, notes = _known_input(canonical, said, choice.input, path)
    spec = ModelSpec(path.stem, known, (), weights=path.name, weights_sha256=sha256(path))
    spec = _described_by_graph(spec, canonical, replace(choice, labels=choice.labels or _fitting(said, canonical)))
    return Fp32Model(canonical.model, spec, canonical.max_error, (*canonical.notes, *notes))


def _fitting(said: Stated, canonical: Canonical) -> tuple[str, ...] | None:
    return said.labels if len(said.labels) == canonical.num_classes else None


def _known_input(
    canonical: Canonical, said: Stated, asked: InputChoice, where: object
) -> tuple[Preprocess, tuple[str, ...]]:
    """The preprocessing that the file states, or else what its graph tells; and notes.

    Raises:
        UsageError: a graph of one or four channels needs a mean and std that nobody gave.
    """
    found = canonical.preprocess
    if said.preprocess is not None and said.preprocess.channels == found.channels:
        known = resized(replace(said.preprocess, layout=found.layout), found.crop_px)
        return known, ("preprocessing as the file states it, since edgeres exported it",)
    if found.channels != 3 and canonical.input_values == "normalized" and not (asked.mean and asked.std):
        count = found.channels
        what = f"the network takes {count} channel{'s' * (count > 1)}, whose mean and std are not known"
        values = " ".join(["0.5"] * count)
        raise UsageError(what, where=where, hint=f"give both as in training, such as --mean {values} --std {values}")
    return replace(found, resize_px=usual_resize(found.crop_px)), ()


def _described_by_graph(spec: ModelSpec, canonical: Canonical, choice: ModelChoice) -> ModelSpec:
    labels = tuple(f"class {i}" for i in range(canonical.num_classes))
    known = replace(spec, labels=labels, output="probabilities" if canonical.ends_in_softmax else "logits")
    return _answering(_described(known, choice), canonical, choice)


def _task(choice: ModelChoice) -> Task:
    return task_named(choice.task or CLASSIFICATION)


def _answering(spec: ModelSpec, canonical: Canonical, choice: ModelChoice) -> ModelSpec:
    """The spec as its task describes it, with the user's names of the outputs."""
    outputs = [str(value.name) for value in canonical.model.graph.output]
    described = _task(choice).describe(spec, outputs)
    return replace(described, labels=spec.labels) if choice.labels is not None else described


def _described(spec: ModelSpec, choice: ModelChoice) -> ModelSpec:
    """The spec with the user's labels and preprocessing in place of its own.

    Raises:
        InputError: the number of labels is not that of the classes.
        UsageError: mean, std and pixel scale do not fit together.
    """
    labels = spec.labels
    if choice.labels is not None and not isinstance(choice.labels, Path):  # files are read by then
        labels = tuple(choice.labels)
        if len(labels) != spec.num_classes:
            raise InputError(
                f"{len(labels)} labels for {spec.num_classes} classes", where=spec.name, hint="one label per output"
            )
    described = replace(spec, labels=labels, preprocess=choice.input.over(spec.preprocess))
    check_normalization(described.preprocess)
    return described
