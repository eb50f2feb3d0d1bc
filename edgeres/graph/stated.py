"""What an ONNX file that edgeres exported says about its input and its classes, in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from onnx import ModelProto

from edgeres.documents import OPTIONAL, DocumentKind, plain
from edgeres.errors import ModelError
from edgeres.records import ModelSpec, Preprocess, complete_preprocess

_PREFIX = "edgeres."


@dataclass(frozen=True)
class Stated:
    """Preprocessing, class names and the task; None and () where the file does not state them."""

    preprocess: Preprocess | None = field(default=None, metadata=OPTIONAL)
    labels: tuple[str, ...] = field(default=(), metadata=OPTIONAL)
    task: str | None = field(default=None, metadata=OPTIONAL)


_KIND = DocumentKind(
    Stated, "metadata of edgeres", "export it again", error=ModelError, root="metadata", upgrade=complete_preprocess
)
_NAMES = tuple(f"{_PREFIX}{name}" for name in ("preprocess", "labels", "task"))


def state(model: ModelProto, spec: ModelSpec) -> None:
    """Write preprocessing, class names, and another task than classification into the model's metadata."""
    _take_out(model)
    task = spec.heads[0].task if spec.heads else None
    for name, value in zip(_NAMES, (plain(spec.preprocess), spec.labels, *([task] if task else [])), strict=False):
        model.metadata_props.add(key=name, value=json.dumps(value))


def stated(model: ModelProto, where: object) -> Stated:
    """What the metadata states; it is taken out, because a graph made from this one may take another input.

    Raises:
        ModelError: it is damaged.
    """
    found = _take_out(model)
    entries = ", ".join(f'"{name.removeprefix(_PREFIX)}": {text}' for name, text in found.items())
    return _KIND.decode(f"{{{entries}}}".encode(), where)


def _take_out(model: ModelProto) -> Mapping[str, str]:
    found = {entry.key: entry.value for entry in model.metadata_props if entry.key in _NAMES}
    others = [entry for entry in model.metadata_props if entry.key not in _NAMES]
    del model.metadata_props[:]
    model.metadata_props.extend(others)
    return found
