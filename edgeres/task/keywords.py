"""The limits of gates that tasks bring, as keyword arguments with their types; tests hold the names equal."""

from __future__ import annotations

from typing import TypedDict


class TaskKeywords(TypedDict, total=False):
    """By option; None sets no gate."""

    max_mae_increase: float | None
    min_cosine: float | None
    max_recall_drop: float | None
    max_miou_drop: float | None
