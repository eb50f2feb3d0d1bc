"""report.json and baseline.json read back, as their published JSON Schemas describe them.

The records that they are decoded into are made from the schemas, so what is published is what is checked. Callers get
the plain document, which is then known to have every key, every type and every bound.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Callable
from dataclasses import field, make_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from edgeres.documents import OPTIONAL, DocumentKind, Json, named, require

SCHEMAS = Path(__file__).with_name("report")
REPORT_SCHEMA, BASELINE_SCHEMA = "schema.json", "baseline.schema.json"
REPORT_FORMAT, BASELINE_FORMAT = 2, 2
_BASELINE = "edgeres baseline"
# What DocumentKind reads by itself, in the document and not in its parts.
_HEAD = frozenset({"schema", "kind", "digest"})
_SIZES = {"fp32_bytes", "int8_bytes", "deployed_bytes"}
_PLAIN: dict[str, Any] = {"string": str, "integer": int, "number": float, "boolean": bool, "null": None}
_LACKS: Any = object()  # a key that a document does not have; null is a value
_BOUNDS = {"minimum": "ge", "exclusiveMinimum": "gt", "maximum": "le", "pattern": "pattern"}


def read_report(path: Path) -> Json:
    """The document in a report.json.

    Raises:
        InputError: it is damaged, in another format, or something else.
    """
    return report_kind().content(report_kind().read(path))


def read_baseline(path: Path) -> Json:
    """The document in a baseline.json.

    Raises:
        InputError: it is damaged, in another format, or something else.
    """
    return baseline_kind().content(baseline_kind().read(path))


@cache
def report_kind() -> DocumentKind[Any]:
    """How a report.json is read."""
    record = _record(_schema(REPORT_SCHEMA), REPORT_SCHEMA, _consistent_report)
    hint = "edgeres verify BUNDLE -o DIR writes one"
    return DocumentKind(record, "a report of edgeres", hint, schemas=(2, REPORT_FORMAT))


@cache
def baseline_kind() -> DocumentKind[Any]:
    """How a baseline.json is read and written."""
    record = _record(_schema(BASELINE_SCHEMA), BASELINE_SCHEMA, _consistent)
    hint, schemas = "edgeres baseline accept BUNDLE writes one", (1, BASELINE_FORMAT)
    return DocumentKind(record, "a baseline of edgeres", hint, schemas, kind=_BASELINE, digest="optional")


def _consistent(document: Any) -> None:
    """Refuse a report or a baseline whose parts contradict each other."""
    sizes, latency, labels = document.sizes, document.latency, document.facts.get("labels") or ()
    are_names = isinstance(labels, list | tuple) and all(isinstance(name, str) for name in labels)
    require(are_names, "facts.labels must be names")
    known = sizes.keys() >= _SIZES and all(key in _SIZES or re.fullmatch("int8_.+_bytes", key) for key in sizes)
    require(
        known and all(isinstance(of, dict) == (key == "deployed_bytes") for key, of in sizes.items()),
        "sizes must have the keys of the schema",
    )
    graphs, answers = document.accuracy.graphs, document.accuracy.answers
    same = not graphs if answers is None else answers.keys() == {"labels", "fp32", *graphs}
    require(same, "accuracy.graphs are not those of accuracy.answers")
    power = document.accuracy.power
    require(power in (None, _LACKS) or power.keys() == {"fp32", *graphs}, "accuracy.power has not one column per graph")
    if latency.speedup is not None:
        times = [(part.p50_ms, part.p99_ms, part.throughput_ips) for part in (latency.fp32, latency.int8)]
        figures = (latency.scope, latency.batch, latency.speedup_ci95, *times[0], *times[1])
        require(None not in figures and 0 < latency.speedup_ci95[0] <= latency.speedup_ci95[1], "latency is incomplete")


def _consistent_report(report: Any) -> None:
    _consistent(report)
    accuracy, classes = report.accuracy, len(report.model.labels)
    require(report.model.num_classes == classes, "num_classes is not the number of labels")
    require(accuracy.graph is None or accuracy.graph in accuracy.graphs, "accuracy.graph is not one of the graphs")
    indices = [row.class_ for row in accuracy.per_class or ()]
    for graph in accuracy.graphs.values():
        indices += [index for row in graph.confusions for index in (row.label, row.answer)]
        images = (*graph.lost_images, *graph.gained_images)
        indices += [index for row in images for index in (row.label, row.reference, row.candidate)]
    require(all(0 <= index < classes for index in indices), "a class index has no label")
    bins = report.latency.histogram
    require(bins is None or len(bins.fp32) == len(bins.int8) > 0, "the histograms have different lengths")


@cache
def _schema(file: str) -> Json:
    content: Json = json.loads((SCHEMAS / file).read_text(encoding="utf-8"))
    return content


def _type(schema: Json, file: str) -> Any:
    """The type that a schema describes; ``file`` is where its references begin."""
    if "$ref" in schema:
        return _type(*_referred(schema["$ref"], file))
    if "oneOf" in schema:
        return Union[tuple(_type(one, file) for one in schema["oneOf"])]  # noqa: UP007
    if "enum" in schema:
        words = all(isinstance(value, str) for value in schema["enum"])
        return Literal[tuple(schema["enum"])] if words else float
    kinds = schema.get("type", ())
    if isinstance(kinds, list):
        return Union[tuple(_type({**schema, "type": kind}, file) for kind in kinds)]  # noqa: UP007
    if kinds == "object":
        return _object(schema, file)
    if kinds == "array":
        item: Any = _type(schema["items"], file)
        return tuple.__class_getitem__((item,) * schema["maxItems"] if "maxItems" in schema else (item, ...))
    return _scalar(schema, kinds) if kinds else Any


def _scalar(schema: Json, kind: str) -> Any:
    from msgspec import Meta

    applies = _BOUNDS.keys() & schema.keys() if kind != "null" else ()
    bounds: Json = {_BOUNDS[name]: schema[name] for name in applies}
    return Annotated[_PLAIN[kind], Meta(**bounds)] if bounds else _PLAIN[kind]


def _object(schema: Json, file: str) -> Any:
    """A mapping where keys are free, otherwise a record."""
    values = [*schema.get("properties", {}).values(), *schema.get("patternProperties", {}).values()]
    if "allOf" not in schema and ("patternProperties" in schema or not values):
        inner = tuple(_type(value, file) for value in values or [schema.get("additionalProperties") or {}])
        return dict.__class_getitem__((str, Union[inner]))  # noqa: UP007
    return _record(schema, file)


def _record(schema: Json, file: str, consistent: Callable[[Any], None] | None = None) -> type[Any]:
    """A record of the schema's keys; that of the whole document, which has ``consistent``, leaves out its head."""
    head = _HEAD if consistent else frozenset()
    parts = [(schema, file), *(_referred(part["$ref"], file) for part in schema.get("allOf", ()))]
    keys = {key: (of, where) for part, where in parts for key, of in part.get("properties", {}).items()}
    required = {key for part, _ in parts for key in part.get("required", ())}
    own = {key: _type(*of) for key, of in keys.items() if key not in head}
    rows = [
        (f"{key}_" if keyword.iskeyword(key) else key, kind, field(metadata=named(key)))
        if key in required
        else (key, kind, field(default=_LACKS, metadata=OPTIONAL))
        for key, kind in own.items()
    ]
    methods = {"__post_init__": consistent} if consistent else {}
    return make_dataclass("Part", rows, frozen=True, kw_only=True, namespace=methods)


def _referred(reference: str, file: str) -> tuple[Json, str]:
    """The schema at ``file#/path``, and the file it is in."""
    other, _, pointer = reference.partition("#")
    file = other or file
    inner: Any = _schema(file)
    for key in pointer.split("/")[1:]:
        inner = inner[int(key) if key.isdigit() else key]
    return inner, file
