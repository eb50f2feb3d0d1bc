"""Chooses among the engines of several forms by what the device said of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeres.records import F32, Measurement
from edgeres.verify.engines import sqnr_db
from edgeres.verify.latency import speedup

SAME_PERCENT = 2.0  # of two engines whose times differ by less, the more accurate is taken
MIN_SQNR_DB = 15.0  # of the logits on the probes; below, a thirtieth of the signal's power is noise
_WORSE_DB = 6.0  # than the form's own graph: an engine with four times its noise computes something else


@dataclass(frozen=True)
class MeasuredForm:
    """One engine that runs.

    Attributes:
        precision: of its graph.
        sqnr_db: of its logits on the probes against FP32's, inf where they are equal.
        agreement: per cent of the probes that it puts into FP32's class.
        time: its latency, in the same run as that of the others.
    """

    precision: str
    sqnr_db: float
    agreement: float
    time: Measurement


def on_probes(reference: F32, scores: F32) -> tuple[float, float]:
    """SQNR in dB and agreement in per cent of scores, float32 (N, classes) both."""
    same = (reference.argmax(axis=1) == scores.argmax(axis=1)).mean()
    return sqnr_db(reference, scores), 100 * float(same)


def why_wrong(sqnr: float, own_db: float | None, floor_db: float) -> str:
    """Why an engine is not taken whatever its speed; "" where it may be.

    Args:
        own_db: SQNR of the graph it was built from, measured on the host; None: unknown.
        floor_db: the least SQNR that is asked for.
    """
    if own_db is not None and sqnr < own_db - _WORSE_DB:
        return f"wrong on this device: {sqnr:.1f} dB on the probes, and its graph has {own_db:.1f} dB on the host"
    return f"not accurate enough: {sqnr:.1f} dB on the probes, at least {floor_db:g} dB" if sqnr < floor_db else ""


def choose(tried: Mapping[str, MeasuredForm]) -> tuple[str, dict[str, str]]:
    """The engine to load, by name, and why each was chosen or not.

    The fastest by the median is taken. Engines that are within 2 % of it, as far as the interval of the ratio can tell,
    count as equally fast, and of them the most accurate is taken, so noise does not decide.
    """
    fastest = min(tried, key=lambda name: tried[name].time.p(50))
    ratios = {name: speedup(one.time, tried[fastest].time) for name, one in tried.items()}
    equal = [name for name in tried if name == fastest or ratios[name].low <= 1 + SAME_PERCENT / 100]
    taken = max(equal, key=lambda name: (tried[name].sqnr_db, -tried[name].time.p(50)))
    why = {}
    for name, one in tried.items():
        slower = 100 * (ratios[name].value - 1)
        if name == taken:
            rivals = f", and more accurate than {fastest}, which is as fast within {SAME_PERCENT:g} %"
            why[name] = f"the fastest{rivals if taken != fastest else ''}"
        elif name in equal:
            why[name] = f"as fast within {SAME_PERCENT:g} %, but less accurate ({one.sqnr_db:.1f} dB)"
        else:
            why[name] = f"{slower:.0f} % slower than {fastest}"
    if tried[taken].precision == "fp16" and any(one.precision == "int8" for one in tried.values()):
        why[taken] += ": FP16 beats every INT8 form on this device"
    return taken, why
