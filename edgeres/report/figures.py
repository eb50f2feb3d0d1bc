"""Figures as text, the same in the terminal and on the page. None becomes a dash."""

from __future__ import annotations

NOT_MEASURED = "-"


def percent(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.2f} %"


def points(value: float | None) -> str:
    """Percentage points."""
    return NOT_MEASURED if value is None else f"{value:.2f} pp"


def decibels(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.1f} dB"


def times(value: float | None) -> str:
    """A ratio."""
    return NOT_MEASURED if value is None else f"{value:.2f}x"


def significant(value: float | None) -> str:
    """Three significant digits without exponents: 0.412, 9.98, 33.9, 1,284."""
    if value is None:
        return NOT_MEASURED
    size = abs(float(f"{value:.3g}"))  # rounded first: 9.996 is 10.0
    digits = next((d for d, limit in ((3, 1.0), (2, 10.0), (1, 100.0)) if size < limit), 0)
    return f"{value:,.{digits}f}"


def megabytes(value: int | None) -> str:
    """Decimal megabytes (10^6 bytes)."""
    return NOT_MEASURED if value is None else f"{significant(value / 1e6)} MB"


def interval(limits: list[float] | None) -> str:
    return NOT_MEASURED if limits is None else f"{limits[0]:.2f} to {limits[1]:.2f}"
