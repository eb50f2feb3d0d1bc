"""The figures of one build for a comparison: measured now, accepted as the baseline, or read back from a report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeres.data.record import DataRecord
from edgeres.judge.document import Json
from edgeres.verify.accuracy import Comparison
from edgeres.verify.answers import AnswerTable
from edgeres.verify.statistics import Estimate


@dataclass(frozen=True)
class BuildFigures:
    """The figures of one build.

    Attributes:
        name: how messages name it, e.g. ``the baseline``.
        images, table: None where nothing was compared.
        sqnr: finite logit SQNR in dB by candidate.
        class_names: in the order of the outputs; None where they are not known.
        latency: the section ``latency`` of the report.
        environment: versions and machine of the measurement.
        facts: how the build was made.
    """

    name: str
    images: DataRecord | None
    table: AnswerTable | None
    sqnr: Mapping[str, Estimate]
    class_names: tuple[str, ...] | None
    latency: Json
    environment: Mapping[str, str]
    facts: Mapping[str, Any]


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
        DataRecord(validation["description"], validation["sha256"], validation["images"]) if validation else None,
        AnswerTable.unpack(packed, len(class_names or ())) if packed else None,
        sqnr,
        class_names,
        document["latency"],
        document["environment"],
        facts,
    )
