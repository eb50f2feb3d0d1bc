"""Right ways to build: networks that see their images, each with the preprocessing and the data that it was fitted to.

What bundled and published weights were trained on is known. Others get a classifier fitted by ridge regression to
images of their own preprocessing, so that no other preprocessing can be the right one.
"""

from __future__ import annotations

import colorsys
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from PIL import Image

from edgeres.data.choose import DataChoice, choose_calibration
from edgeres.data.loader import Loader
from edgeres.data.signs import CLASSES, Signs, Split
from edgeres.files import write_file
from edgeres.graph.stated import state
from edgeres.pipeline.input_choice import InputChoice
from edgeres.pipeline.take import ModelChoice, take

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import foreign_graphs

FITTED, SHOWN = 480, 160  # images that classifiers are fitted to, and that are validated on
SPLITS: dict[Split, int] = {"calibration": FITTED, "validation": SHOWN}
SQUARE, WIDE, TALL = (96, 96), (96, 160), (160, 96)
RIDGE = 1e-2  # of the mean square of a feature
FOREIGN = (
    *("mxnet v1, opset 7", "torchscript, opset 9", "paddle, opset 11", "keras pixels, opset 15", "uint8 pixels"),
    *("squeeze and excite", "option A", "groups"),
)
Place = Callable[[int], str]  # the folder of an image of a class
Change = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Setup:
    """A way to build; ``options`` are keywords of ``edgeres.build``."""

    name: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)


class Pictures:
    """Rendered signs, written as files in the ways that people keep them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._signs = {split: Signs(split, count, SQUARE[0]) for split, count in SPLITS.items()}
        self._images = {
            split: [(int(signs.labels[i]), Image.fromarray(signs.image(i))) for i in range(len(signs))]
            for split, signs in self._signs.items()
        }

    def write(
        self, form: str, place: Place = CLASSES.__getitem__, change: Change = Image.Image.copy, **saved: Any
    ) -> dict[str, str]:
        """Write both splits; the sources by split, as keywords of a build.

        Args:
            form: name of the folder; what stands behind its last dot is the ending of the files.
            saved: keywords of Pillow's ``save``.
        """
        ending = form.rpartition(".")[2]
        for split, images in self._images.items():
            for number, (label, picture) in enumerate(images):
                path = self.folder / form / split / place(label) / f"{number:04}.{ending}"
                path.parent.mkdir(parents=True, exist_ok=True)
                change(picture).save(path, **saved)
        return {split: str(self.folder / form / split) for split in self._images}

    def table(self, form: str) -> str:
        """Labels of the validation images as CSV, for images that lie side by side."""
        path = self.folder / f"{form}.csv"
        rows = (f"{number:04}.png,{CLASSES[label]}\n" for number, (label, _) in enumerate(self._images["validation"]))
        path.write_text("image,label\n" + "".join(rows), encoding="utf-8-sig")
        return str(path)

    def archive(self, form: str) -> dict[str, str]:
        """Zip files of what :meth:`write` wrote in this form."""
        for split in self._images:
            root = self.folder / form / split
            with zipfile.ZipFile(self.folder / f"{split}.zip", "w") as archive:
                for path in sorted(root.rglob("*.*")):
                    archive.write(path, path.relative_to(root.parent))
        return {split: str(self.folder / f"{split}.zip") for split in self._images}


def wide(picture: Image.Image) -> Image.Image:
    return picture.resize(WIDE[::-1], Image.Resampling.BICUBIC)


def in_surroundings(picture: Image.Image) -> Image.Image:
    """A wide photograph, of which a crop of 0.875 of the shorter side is the picture."""
    pixels = np.asarray(picture)
    around = round(len(pixels) * (1 / 0.875 - 1) / 2)
    return Image.fromarray(np.pad(pixels, ((around, around), (4 * around, 4 * around), (0, 0)), "reflect"))


def deep(picture: Image.Image) -> Image.Image:
    """Gray of 12 bits in a file of 16."""
    values = np.asarray(wide(picture).convert("L"), np.uint16) * 16
    return Image.fromarray(values)


def with_fourth(picture: Image.Image) -> Image.Image:
    """A fourth channel that depends on the image: its blurred brightness."""
    image = wide(picture)
    image.putalpha(image.convert("L").reduce(8).resize(image.size))
    return image


def zoo_setups(pictures: Pictures, folder: Path, weights: Sequence[Path], images: Path | None) -> Iterator[Setup]:
    """Trained networks by name, as exported files, with values in units of 0 to 255, on data in all forms."""
    networks: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        (name, {}, {"calibration": f"signs:64@{seed}", "validation": f"signs:{SHOWN}@{seed}"})
        for name, seed in (("resnet20", 20), ("resnet20", 21), ("resnet18", 22))
    ]
    if images is not None:
        data = {"calibration": str(images), "validation": str(images), "validation_size": 320}
        networks += [(path.name.split("-")[0], {"weights": str(path)}, data) for path in weights]
    for number, (name, given, data) in enumerate(networks):
        taken = take(ModelChoice(name, **given))
        state(taken.graph, taken.spec)  # as edgeres export does
        exported = folder / f"{name}-{number}.onnx"
        write_file(exported, taken.graph.SerializeToString())
        known = taken.spec.preprocess
        values = {key: tuple(255 * value for value in getattr(known, key)) for key in ("mean", "std")}
        of = f"{name}, {Path(given['weights']).name if given else data['validation']}"
        yield Setup(of, name, {**given, **data})
        yield Setup(f"{of}, exported", str(exported), data)
        if name != "resnet18":
            yield Setup(f"{of}, in 0 to 255", name, {**given, **data, **values, "pixel_scale": 1.0})
    yield from _forms_of_data(pictures, str(folder / "resnet20-0.onnx"))


def _forms_of_data(pictures: Pictures, model: str) -> Iterator[Setup]:
    """One network, whose images lie in other ways, and are of other kinds."""
    in_folders = pictures.write("folders.png")
    yield Setup("class folders", model, in_folders)
    yield Setup("zip", model, pictures.archive("folders.png"))
    yield Setup("folders in classes", model, pictures.write("nested.png", lambda label: f"{CLASSES[label]}/monday"))
    yield Setup("folders from one", model, pictures.write("numbered.png", lambda label: str(label + 1)))
    loose = pictures.write("loose.png", lambda label: "")
    yield Setup("CSV labels", model, {**loose, "validation_labels": pictures.table("loose")})
    yield Setup("wide photographs, squash", model, pictures.write("wide.jpg", change=wide, quality=90))
    turned = Image.Exif()
    turned[0x0112] = 6  # stored turned by 90 degrees to the left
    on_side = pictures.write("turned.jpg", change=lambda p: wide(p).transpose(Image.Transpose.ROTATE_90), exif=turned)
    yield Setup("EXIF orientation", model, on_side)
    yield Setup("palette", model, pictures.write("palette.png", change=lambda p: p.quantize(256)))


def fitted_setups(pictures: Pictures, folder: Path) -> Iterator[Setup]:
    """The bundled resnet20 with another preprocessing built into its first layer, and its classifier fitted anew."""
    photographs = pictures.write("photographs.png", change=wide)
    framed = pictures.write("framed.png", change=in_surroundings)
    gray = {"mean": (0.45,), "std": (0.22,)}
    four = {"mean": (0.485, 0.456, 0.406, 0.5), "std": (0.229, 0.224, 0.225, 0.25)}
    rows: list[tuple[str, dict[str, Any], dict[str, str]]] = [
        ("crop of a resize", {"resize_mode": "crop", "resize_px": 36}, framed),
        ("crop ratio", {"crop_ratio": 0.875, "interpolation": "bicubic"}, framed),
        ("squash, OpenCV", {"resize_mode": "squash", "interpolation": "cv2-bilinear"}, photographs),
        ("BGR, Caffe's mean", {"preprocess": "keras-caffe"}, photographs),
        ("inception", {"preprocess": "imagenet-inception"}, framed),
        ("bytes", {"preprocess": "bytes", "resize_mode": "squash"}, photographs),
        ("channels last", {"resize_mode": "squash"}, photographs),
        ("gray", {"resize_mode": "squash", **gray}, photographs),
        ("16-bit gray", {"resize_mode": "squash", "full_scale": 4095, **gray}, pictures.write("d.png", change=deep)),
        ("four channels", {"resize_mode": "squash", **four}, pictures.write("four.png", change=with_fourth)),
    ]
    for name, options, data in rows:
        path = folder / f"{name.replace(' ', '-')}.onnx"
        given = {**options, "labels": _labels(folder)}
        _write_adapted(path, given, 4 if name == "four channels" else len(options.get("mean", "RGB")), name)
        _fit(path, given, data)
        yield Setup(name, str(path), {**given, **data})


def foreign_setups(folder: Path, files: Sequence[Path]) -> Iterator[Setup]:
    """Files of other exporters with random filters: the writers of tests/foreign_graphs.py, and ``files``.

    They are fitted to ten colours, which random filters can tell.
    """
    data, wide_data = _colours(folder, 32), _colours(folder, 52)
    boxed = folder / "letterbox.onnx"
    write_file(boxed, foreign_graphs.FOREIGN["option A"]().SerializeToString())
    _fit(boxed, {"preprocess": "letterbox"}, wide_data)
    yield Setup("letterbox", str(boxed), {"preprocess": "letterbox", **wide_data})
    graphs = {name: foreign_graphs.FOREIGN[name]() for name in FOREIGN}
    graphs |= {path.stem: onnx.load(path) for path in files}
    for number, (name, graph) in enumerate(graphs.items()):
        path = folder / f"foreign-{number}.onnx"
        onnx.save(graph, path)
        _fit(path, {}, data)
        yield Setup(f"foreign: {name}", str(path), data)


def _colours(folder: Path, width: int) -> dict[str, str]:
    """Arrays of ten hues in patches of uneven light, with noise."""
    rng = np.random.default_rng(0)
    for split, count in SPLITS.items():
        labels = np.arange(count) % foreign_graphs.CLASSES
        light = np.stack(
            [Image.fromarray(rng.uniform(60, 250, (4, 4)).astype(np.float32)).resize((width, 32)) for _ in labels]
        )
        hues = labels / foreign_graphs.CLASSES + rng.uniform(-0.02, 0.02, count)
        colours = np.array([colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.5, 0.9), 1.0) for hue in hues])
        images = light[..., None] * colours[:, None, None] + rng.normal(0, 8, (count, 32, width, 3))
        np.savez(folder / f"colours{width}-{split}.npz", images=np.clip(images, 0, 255).astype(np.uint8), labels=labels)
    return {split: str(folder / f"colours{width}-{split}.npz") for split in SPLITS}


def _labels(folder: Path) -> str:
    path = folder / "labels.txt"
    path.write_text("\n".join(CLASSES))
    return str(path)


def _write_adapted(path: Path, options: Mapping[str, Any], channels: int, name: str) -> None:
    """resnet20 with the first convolution changed so that it takes inputs of this preprocessing."""
    taken = take(ModelChoice("resnet20"))
    model, known = taken.graph, taken.spec.preprocess
    preset = {key: value for key, value in options.items() if key != "labels"}
    reading = replace(known.reading, channels=channels)
    blank = replace(known, mean=(0.5,) * channels, std=(0.5,) * channels, reading=reading)
    new = InputChoice.of(preset).over(blank)
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    weight, bias = (next(t for t in model.graph.initializer if t.name == name) for name in conv.input[1:3])
    filters = numpy_helper.to_array(weight).astype(np.float64)
    if channels == 1:
        filters = filters.sum(axis=1, keepdims=True)
    elif channels == 4:
        filters = np.concatenate([filters, 0.3 * filters[:, 1:2]], axis=1)
    elif new.channel_order == "BGR":
        filters = filters[:, ::-1]
    gain = np.array(new.std) / new.pixel_scale / 255 / np.mean(known.std)
    offset = (np.array(new.mean) / new.pixel_scale / 255 - np.mean(known.mean)) / np.mean(known.std)
    shifted = numpy_helper.to_array(bias) + (filters * offset[:, None, None]).sum(axis=(1, 2, 3))
    filters = filters * gain[:, None, None]
    for tensor, values in ((weight, filters), (bias, shifted)):
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    shape = model.graph.input[0].type.tensor_type.shape.dim
    shape[1].dim_value = channels
    if name == "channels last":
        shape[1].dim_value, shape[2].dim_value, shape[3].dim_value = 32, 32, 3
        turned = onnx.helper.make_node("Transpose", [model.graph.input[0].name], ["turned"], perm=[0, 3, 1, 2])
        conv.input[0] = "turned"
        model.graph.node.insert(0, turned)
    del model.graph.value_info[:]
    onnx.save(model, path)


def _fit(path: Path, options: Mapping[str, Any], data: Mapping[str, str]) -> None:
    """Replace the classifier of a file by one fitted to the calibration images, as the file's input takes them."""
    preset = {name: value for name, value in options.items() if name != "labels"}
    spec = take(ModelChoice(str(path), labels=options.get("labels"), input=InputChoice.of(preset))).spec
    source = choose_calibration(DataChoice(calibration=data["calibration"], calibration_size=FITTED), spec)
    batches = list(Loader(source, spec.preprocess, 64))
    inputs, labels = (np.concatenate([getattr(batch, key) for batch in batches]) for key in ("inputs", "labels"))
    if source.classes:
        outputs = [spec.labels.index(CLASSES[int(name) - 1] if name.isdecimal() else name) for name in source.classes]
        labels = np.array(outputs)[labels]
    model = onnx.load(path)
    features, weight, bias, flip = _head(model)
    found = _features(model, features, inputs)
    wanted = np.eye(len(spec.labels))[labels]
    centre, offset = (found.mean(0), wanted.mean(0)) if bias else (0.0, 0.0)
    centred = found - centre
    gram = centred.T @ centred / len(found)
    gram += RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    solved = np.linalg.solve(gram, centred.T @ (wanted - offset) / len(found))
    new = {weight: 10 * (solved.T if flip else solved)}
    if bias:
        new[bias] = 10 * (offset - centre @ solved)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = node.attribute[0].t
    for name, values in new.items():  # an error where the classifier is no constant
        shape = tuple(constants[name].dims)
        constants[name].CopyFrom(
            numpy_helper.from_array(values.astype(np.float32).reshape(shape), constants[name].name)
        )
    onnx.save(model, path)


def _head(model: onnx.ModelProto) -> tuple[str, str, str, bool]:
    """The last product with a constant: its input, the weight, the bias or "", and whether the weight is transposed."""
    node = [node for node in model.graph.node if node.op_type in ("Gemm", "MatMul")][-1]
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    bias = node.input[2] if len(node.input) > 2 else ""
    for other in model.graph.node:
        if node.op_type == "MatMul" and other.op_type == "Add" and node.output[0] in other.input:
            bias = next(name for name in other.input if name != node.output[0])
    return node.input[0], node.input[1], bias, transposed


def _features(model: onnx.ModelProto, tensor: str, inputs: Any) -> Any:
    """Values of a tensor, float64 (N, F), for inputs in the layout of the file."""
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    extended.graph.output.append(onnx.ValueInfoProto(name=tensor))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(extended.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    size = given.shape[0] if isinstance(given.shape[0], int) else 32
    inputs = inputs.astype(np.uint8) if "uint8" in given.type else inputs
    parts = [
        session.run([tensor], {given.name: inputs[i : i + size]})[0] for i in range(0, len(inputs) // size * size, size)
    ]
    found = np.concatenate([part.reshape(size, -1) for part in parts])
    left = inputs[len(found) :]
    if len(left):
        padded = np.concatenate([left, np.repeat(left[-1:], size - len(left), axis=0)])
        found = np.concatenate([found, session.run([tensor], {given.name: padded})[0].reshape(size, -1)[: len(left)]])
    return found.astype(np.float64)
