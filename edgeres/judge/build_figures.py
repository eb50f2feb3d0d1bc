"""The figures of one build for a comparison: measured now, accepted as the baseline, or read back from a report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeres.data.record import DataRecord
from edgeres.errors import InputError
from edgeres.judge.document import Json
from edgeres.records import F64
from edgeres.verify.accuracy import Comparison
from edgeres.verify.answers import AnswerTable, unpack_power
from edgeres.verify.statistics import Estimate


@dataclass(frozen=True)
class BuildFigures:
    """The figures of one build.

    Attributes:
        name: how messages name it, e.g. ``the baseline``.
        images, table: None where nothing was compared.
        sqnr: finite logit SQNR in dB by candidate.
        power: of each image's noise by candidate, and of its logits by the reference's name, as reports hold it;
            empty where it is not known.
        class_names: in the order of the outputs; None where they are not known.
        latency: the section ``latency`` of the report.
        environment: versions and machine of the measurement.
        facts: how the build was made.
        files: SHA-256 of its graphs and engines by path.
    """

    name: str
    images: DataRecord | None
    table: AnswerTable | None
    sqnr: Mapping[str, Estimate]
    power: Mapping[str, F64]
    class_names: tuple[str, ...] | None
    latency: Json
    environment: Mapping[str, str]
    facts: Mapping[str, Any]
    files: Mapping[str, str]


def finite_sqnr(comparison: Comparison | None) -> dict[str, Estimate]:
    """Logit SQNR of the candidates in dB; infinite and undefined ones are left out."""
    return {
        name: Estimate(value, *(scored.sqnr_db_ci95 or (value, value)))
        for name, scored in (comparison.scored.items() if comparison else ())
        if (value := scored.sqnr_db) is not None and math.isfinite(value)
    }


def figures_of(document: Mapping[str, Any], name: str) -> BuildFigures:
    """Read the figures from a report or a baseline.

    Raises:
        InputError: the answers are damaged.
    """
    accuracy, facts = document["accuracy"], document["facts"]
    validation = document["validation"] if "validation" in document else document["data"]["validation"]
    labels = document.get("model", facts).get("labels")
    class_names = None if labels is None else tuple(labels)
    sqnr = {
        candidate: Estimate(value, *(graph["logit_sqnr_db_ci95"] or (value, value)))
        for candidate, graph in accuracy["graphs"].items()
        if (value := graph["logit_sqnr_db"]) is not None
    }
    packed = accuracy["answers"]
    return BuildFigures(
        name,
        _images(validation) if validation else None,
        AnswerTable.unpack(packed, len(class_names or ())) if packed else None,
        sqnr,
        unpacked_power(accuracy.get("power"), validation["images"] if validation else 0),
        class_names,
        document["latency"],
        document["environment"],
        facts,
        document["files"],
    )


def unpacked_power(packed: Mapping[str, str] | None, images: int) -> dict[str, F64]:
    """The power of each image by column, as a report holds it; documents of earlier versions have none.

    Raises:
        InputError: a column is damaged.
    """
    columns = {name: unpack_power(text) for name, text in (packed or {}).items()}
    for name, column in columns.items():
        if len(column) != images:
            raise InputError(f"there are {len(column):,} powers of {name} for {images:,} images")
    return columns


def _images(validation: Mapping[str, Any]) -> DataRecord:
    with_names = validation.get("sha256_with_names") or ""
    shown = (validation["description"], validation["sha256"], validation["images"])
    return DataRecord(*shown, sha256_with_names=with_names)
