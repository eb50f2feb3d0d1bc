"""Comparisons and reports for tests, made from given values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeres.judge.asked import Asked, GateChoice
from edgeres.judge.gates import LIMITS, Limits
from edgeres.judge.judge import judge
from edgeres.made import Made, Making
from edgeres.pipeline.make import facts_of
from edgeres.pipeline.options import facts_among
from edgeres.records import I64, Manifest
from edgeres.verify.accuracy import Comparison, Scored
from edgeres.verify.answers import AnswerTable
from edgeres.verify.measure import Measured

ORT = "ONNX Runtime 1.32.0 CPU"
NO_LIMITS = Limits.of(**dict.fromkeys(LIMITS))


def compared(labels: I64, classes: int, answers: Mapping[str, I64], **more: Any) -> Comparison:
    """A comparison in which every label is among the top five.

    ``sqnr`` is (dB, interval) by candidate, ``power`` that of each image's logits or noise.
    """
    sqnr, power = more.pop("sqnr", {}), more.pop("power", {})
    top5 = int((labels >= 0).sum())
    scored = {name: Scored(ORT, top5, *sqnr.get(name, (None, None)), power.get(name)) for name in answers}
    names = more.pop("names", {i: f"{i}.png" for i in range(len(labels))})
    return Comparison(AnswerTable(np.asarray(labels), classes, answers), scored, names, **more)


def limits(**set_: float) -> Limits:
    """These limits and no others."""
    return Limits.of(**{**dict.fromkeys(LIMITS), **set_})


def judged(**given: Any) -> dict[str, Any]:
    """The report for given fields of Asked, Made, Making, Measured and GateChoice.

    ``made_earlier``: the bundle was made by an earlier run; ``facts`` are computed from the fields unless given.
    """
    gates = GateChoice(
        **{name: given.pop(name) for name in ("limits", "on_unsure", "allow", "config") if name in given}
    )
    asked = Asked(given.pop("command", ""), given.pop("options", {}), gates, given.pop("baseline", None))
    measured = Measured(
        **{name: given.pop(name) for name in list(given) if name in Measured.__dataclass_fields__},
    )
    parts: dict[str, Any] = {"export": {"max_error": None, "notes": None}, "calibration": None, "plans": {}}
    own = {name: given.pop(name) for name in list(given) if name in Making.__dataclass_fields__}
    model, engines = given.pop("model"), given.pop("engines", ())
    making = None if given.pop("made_earlier", False) else Making(**(parts | own))
    made: dict[str, Any] = {
        "folder": Path("bundle"),
        "manifest": Manifest(model, {}, {}, {}, {}, engines),
        "files": {},
        "sizes": {},
        "facts": facts_of(model, facts_among(asked.options), making, measured.environment) if making else {},
        "making": making,
    }
    if making and making.calibration:
        made["calibration_pixels"] = making.calibration.data.pixels
    return judge(asked, Made(**(made | given)), measured)
