"""Ranges from a file: what a build then needs no images for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgeres.calibrate.ranges_file import RangesFile, read_calibration
from edgeres.data.choose import DataChoice
from edgeres.errors import UsageError
from edgeres.refine.choice import RefineChoice


def reuse(path: Path | None, data: DataChoice, refine: RefineChoice) -> tuple[RangesFile | None, RefineChoice]:
    """The ranges that the user wants instead of measuring, and the refinement that is possible with them.

    Refinement learns from images; without any there is none.

    Raises:
        UsageError: images are named that nothing would be done with.
        InputError: the file cannot be used.
    """
    if path is None:
        return None, refine
    refines = refine.effort != "fast" or refine.residual == "auto"
    if data.calibration is not None and not refines:
        raise UsageError(
            "with ranges from a file and --effort fast no calibration images are needed",
            where=path,
            hint="drop --calibration or --calibration-file",
        )
    recorded = read_calibration(path)
    if data.calibration is None and refines:
        refine = replace(refine, effort="fast", residual="int8" if refine.residual == "auto" else refine.residual)
    return recorded, refine
