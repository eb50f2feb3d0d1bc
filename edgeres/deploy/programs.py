"""The files of each program, from a network; what they cannot say goes into notes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

from edgeres.deploy.network import Deployable, Deployed
from edgeres.deploy.ros2 import ros2
from edgeres.errors import EngineError, ModelError
from edgeres.records import Preprocess
from edgeres.runtime.runner import TensorSpec
from edgeres.words import escaped

_TRITON_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "uint8": "TYPE_UINT8", "int8": "TYPE_INT8"}
_QUEUE_US = 1000
_DEFAULT_BATCH = 8


def triton(network: Deployable, max_batch: int | None) -> Deployed:
    """A model repository: ``NAME/config.pbtxt``, its labels, and TensorRT's engines, else the graph for the CPU.

    Raises:
        EngineError: the bundle has neither an engine of TensorRT nor a graph for the CPU, or ``max_batch`` is more
            than an engine takes.
    """
    of_bytes = bool(network.engines) and network.engines[0].record.origin.takes_bytes
    notes = [_contract(network.model.preprocess, of_bytes=of_bytes)]
    files: dict[str, bytes] = {}
    by_gpu: dict[str, str] = {}
    if network.engines:
        batch, more = _engine_batch(network, max_batch)
        backend = "tensorrt"
        for engine in network.engines:
            gpus = engine.record.portability.compute_capabilities
            words = "-".join(re.sub(r"\W", "", gpu) for gpu in gpus)  # a manifest may state anything
            file = f"model.sm{words}.plan" if gpus else "model.plan"
            files[file] = engine.content
            by_gpu |= dict.fromkeys(gpus, file)
        versions = sorted({engine.record.version for engine in network.engines})
        notes += [*more, f"Triton must have TensorRT {' or '.join(versions)}, which built the engines"]
        if any(engine.record.portability.version_compatible for engine in network.engines):
            notes.append(
                "a version-compatible engine needs tritonserver --backend-config=tensorrt,version-compatible=true"
            )
    elif network.for_cpu is not None:
        batch, backend, files = max_batch or _DEFAULT_BATCH, "onnxruntime", {"model.onnx": network.for_cpu}
        notes.append("the bundle has no TensorRT engine, so Triton runs the INT8 graph on its CPU")
    else:
        hint = "build an engine on the GPU: edgeres engine BUNDLE; or build the bundle with --target cpu"
        raise EngineError("the bundle has neither a TensorRT engine nor a graph for the CPU", hint=hint)
    name, default = network.name, next(iter(files))
    given = network.engine_input or network.input
    sizes = tuple(size or 0 for size in given.shape[1:])
    kind = "KIND_GPU" if backend == "tensorrt" else "KIND_CPU"
    lines = [
        f"name: {_quoted(name)}",
        f"backend: {_quoted(backend)}",
        f"max_batch_size: {batch}",
        f"default_model_filename: {_quoted(default)}",
        *(f"cc_model_filenames {{ key: {_quoted(gpu)} value: {_quoted(file)} }}" for gpu, file in by_gpu.items()),
        f"input [ {{ {_triton_tensor(given.name, str(given.dtype), sizes)} }} ]",
        f"output [ {', '.join(map(_triton_output(network), network.outputs))} ]",
        f"instance_group [ {{ kind: {kind} }} ]",
        *([f"dynamic_batching {{ max_queue_delay_microseconds: {_QUEUE_US} }}"] if batch > 1 else []),
    ]
    written = {f"{name}/1/{file}": content for file, content in files.items()}
    written |= {f"{name}/config.pbtxt": _text(lines), f"{name}/labels.txt": _text(network.model.labels)}
    return Deployed(written, tuple(notes))


def _triton_output(network: Deployable) -> Callable[[TensorSpec], str]:
    """What writes one output; that of a row has the names of its values."""
    named = ' label_filename: "labels.txt"' if network.model.labels else ""

    def written(tensor: TensorSpec) -> str:
        sizes = tuple(size or 0 for size in tensor.shape[1:])
        return f"{{ {_triton_tensor(tensor.name, str(tensor.dtype), sizes)}{named} }}"

    return written


def _refuse_outputs(network: Deployable) -> None:
    """Raise a ModelError where nvinfer cannot name the output, or would misread it."""
    if re.search(r"[;\s]", network.output.name):
        raise ModelError(
            f"nvinfer cannot name the output {network.output.name!r:.100}", hint="rename it, and build again"
        )
    if network.model.heads:
        what = f"nvinfer would read its answers as scores of classes, and its task is {network.model.heads[0].task}"
        raise ModelError(what, hint="deploy it to triton, or load it with edgeres.load")


def deepstream(network: Deployable, max_batch: int | None) -> Deployed:
    """The configuration of DeepStream's ``nvinfer`` as a primary classifier, with graph, engine and labels.

    Raises:
        EngineError: there is no graph for TensorRT, or ``max_batch`` is more than an engine takes.
        ModelError: ``nvinfer`` cannot feed such a network.
    """
    preprocess, graph = network.model.preprocess, _graph_for_tensorrt(network)
    _refuse_outputs(network)
    colour = {("RGB", 3): 0, ("BGR", 3): 1, ("RGB", 1): 2}.get((preprocess.channel_order, preprocess.channels))
    if colour is None:
        raise ModelError(f"nvinfer has no images of {preprocess.channels} channels", hint="edgeres.load takes them")
    files = {"model.int8.onnx": graph, "labels.txt": _text([";".join(_label(name) for name in network.model.labels)])}
    notes, batch = [], max_batch or 1
    engine = network.engines[0] if network.engines else None
    if engine is not None and engine.record.origin.takes_bytes:
        notes.append(
            "the bundle's engine takes bytes, which nvinfer does not give: nvinfer builds its own at the start"
        )
        engine = None
    if engine is not None:
        batch, more = _engine_batch(network, max_batch)
        files["model.engine"] = engine.content
        gpus = ", ".join(engine.record.portability.compute_capabilities) or "several GPUs"
        notes += [
            *more,
            f"model.engine is for SM {gpus} and TensorRT {engine.record.version}; elsewhere nvinfer builds",
        ]
    scale, offsets, said = _one_scale(preprocess)
    notes += [*said, *_geometry(preprocess)]
    if network.model.output != "probabilities":
        notes.append(
            "the scores are logits: nvinfer shows the largest as a probability, and nothing where none is above 0"
        )
    height, width = preprocess.crop_px
    dims = network.image() if preprocess.layout == "NCHW" else (preprocess.channels, height, width)
    letterbox = preprocess.resize_mode == "letterbox"
    keys: dict[str, object] = {
        "gpu-id": 0,
        "gie-unique-id": 1,
        "process-mode": 1,
        "network-type": 1,
        "network-mode": 1,
        "onnx-file": "model.int8.onnx",
        **({"model-engine-file": "model.engine"} if engine is not None else {}),
        "labelfile-path": "labels.txt",
        "batch-size": batch,
        "infer-dims": ";".join(map(str, dims)),
        "network-input-order": 0 if preprocess.layout == "NCHW" else 1,
        "model-color-format": colour,
        "net-scale-factor": repr(scale),
        "offsets": ";".join(repr(offset) for offset in offsets),
        "maintain-aspect-ratio": int(letterbox),
        **({"symmetric-padding": 1} if letterbox else {}),
        "scaling-filter": 1,
        "output-blob-names": network.output.name,
        "classifier-threshold": 0,
    }
    text = [f"# {note}" for note in notes] + ["[property]", *(f"{key}={value}" for key, value in keys.items())]
    return Deployed({**files, f"{network.name}.txt": _text(text)}, tuple(notes))


def trtexec(network: Deployable, max_batch: int | None) -> Deployed:
    """A script with trtexec's command line that builds and times the engine as edgeres does.

    Raises:
        EngineError: there is no graph for TensorRT.
    """
    graph, batch = _graph_for_tensorrt(network), max_batch or 1
    shapes = "x".join(map(str, network.image()))
    words = [
        "trtexec",
        "--onnx=model.int8.onnx",
        "--stronglyTyped",
        *(
            f"--{name}Shapes={network.input.name}:{size}x{shapes}"
            for name, size in (("min", 1), ("opt", 1), ("max", batch))
        ),
        "--builderOptimizationLevel=3",
        "--timingCacheFile=timing.cache",
        f"--saveEngine={network.name}.engine",
        "--warmUp=200",
        "--duration=3",
        "--useCudaGraph",
        "--percentile=90,95,99",
    ]
    script = ["#!/bin/sh", 'cd "$(dirname "$0")" || exit 1', f'exec {shlex.join(words)} "$@"']
    notes = (
        "TensorRT 11 has strongly typed networks alone: leave --stronglyTyped out there",
        _contract(network.model.preprocess),
    )
    return Deployed({"model.int8.onnx": graph, "build.sh": _text(script)}, notes)


PROGRAMS: dict[str, Callable[[Deployable, int | None], Deployed]] = {
    "triton": triton,
    "deepstream": deepstream,
    "trtexec": trtexec,
    "ros2": ros2,
}


def _engine_batch(network: Deployable, wanted: int | None) -> tuple[int, list[str]]:
    """The batch that all engines take, and what is not known of it."""
    known = [engine.max_batch for engine in network.engines if engine.max_batch is not None]
    largest = min(known) if len(known) == len(network.engines) else None
    if largest is None:
        return wanted or 1, [f"the bundle does not say an engine's largest batch; {wanted or 1} is written"]
    if wanted is not None and wanted > largest:
        hint = "edgeres engine BUNDLE --max-batch N builds one that takes more"
        raise EngineError(f"an engine takes at most {largest} images at once, not {wanted}", hint=hint)
    return wanted or largest, []


def _graph_for_tensorrt(network: Deployable) -> bytes:
    if network.for_gpu is None:
        hint = "build the bundle with --target tensorrt or that of a Jetson"
        raise EngineError("the bundle has no INT8 graph for TensorRT", hint=hint)
    return network.for_gpu


def _contract(preprocess: Preprocess, *, of_bytes: bool = False) -> str:
    """What a client sends, in words.

    Args:
        of_bytes: whether that is bytes.
    """
    height, width = preprocess.crop_px
    how = {
        "crop": f"shorter side to {preprocess.resize_px}, centre cut to {height}x{width}",
        "squash": f"resized to {height}x{width}"
        if preprocess.resize_px is None
        else f"resized to {preprocess.resize_px}, cut",
        "letterbox": f"letterbox of {height}x{width}",
    }[preprocess.resize_mode]
    values = f"(pixel * {preprocess.pixel_scale:.6g} - {_list(preprocess.mean)}) / {_list(preprocess.std)}"
    order = preprocess.channel_order if preprocess.channels > 1 else "gray"
    if of_bytes:
        return f"a client sends uint8 NHWC {order}, {how} ({preprocess.interpolation}), as bytes from 0 to 255"
    return f"a client sends {preprocess.layout} {order}, {how} ({preprocess.interpolation}), {values}"


def _one_scale(preprocess: Preprocess) -> tuple[float, list[float], list[str]]:
    """nvinfer's ``scale * (pixel - offset)``: one scale for all channels, the middle one where they differ."""
    scales = [preprocess.pixel_scale / std for std in preprocess.std]
    offsets = [mean / preprocess.pixel_scale for mean in preprocess.mean]
    scale = (min(scales) + max(scales)) / 2
    off = max(abs(own - scale) * max(offset, 255 - offset) for own, offset in zip(scales, offsets, strict=True))
    if min(scales) == max(scales):
        return scales[0], offsets, []
    words = f"up to {off:.3f} off in the network's input, whose values reach {max(s * 255 for s in scales):.1f} apart"
    return (
        scale,
        offsets,
        [f"nvinfer has one scale for all channels and std is {_list(preprocess.std)}: {words}"],
    )


def _geometry(preprocess: Preprocess) -> list[str]:
    found = []
    if preprocess.resize_mode == "crop" or (preprocess.resize_mode == "squash" and preprocess.resize_px is not None):
        what = f"nvinfer squashes the whole frame; the network was built to see {preprocess.resize_px} px cut to"
        found.append(
            f"{what} {preprocess.crop_px[0]}x{preprocess.crop_px[1]}: crop the frame ahead of it (nvvideoconvert)"
        )
    if preprocess.resize_mode == "letterbox" and any(preprocess.fit.fill or ()):
        found.append(f"nvinfer pads with black, and the network was built with {_list(preprocess.fit.fill or ())}")
    if preprocess.interpolation != "cv2-bilinear":
        found.append(
            f"nvinfer resizes without antialiasing, which this network's {preprocess.interpolation} resize has"
        )
    return found


def _triton_tensor(name: str, dtype: str, dims: tuple[int, ...]) -> str:
    return f"name: {_quoted(name)} data_type: {_TRITON_TYPES[dtype]} dims: [ {', '.join(map(str, dims))} ]"


def _quoted(text: str) -> str:
    """A string of protobuf's text format; it states other bytes than printable ASCII in octal."""
    plain = set(range(0x20, 0x7F)) - set(b'"\\')
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in text.encode()) + '"'


def _label(name: str) -> str:
    """A class name without the separator of nvinfer's file."""
    return name.replace(";", ",")


def _list(values: tuple[float, ...]) -> str:
    """One number where all are equal."""
    shown = values[:1] if len(set(values)) == 1 else values
    text = ", ".join(f"{value:.6g}" for value in shown)
    return text if len(shown) == 1 else f"[{text}]"


def _text(lines: list[str] | tuple[str, ...]) -> bytes:
    """Lines of a file. No line end in a name begins another: a line of ``nvinfer`` can name a library to load."""
    return ("\n".join(map(escaped, lines)) + "\n").encode("utf-8", "backslashreplace")
