"""A profile as Chrome's trace events, which Perfetto (ui.perfetto.dev) and chrome://tracing open."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgeres.profiling.layers import Profile, Run

Json = dict[str, Any]
_PLACE = {"pid": 1, "tid": 1}
_LAID_OUT = "the profiler gives durations alone: layers are laid end to end"


def chrome_trace(profile: Profile, title: str) -> Json:
    """Runs as slices of one track, with their layers below them; times in microseconds."""
    events: list[Json] = [
        {"ph": "M", "name": "process_name", **_PLACE, "args": {"name": title}},
        {"ph": "M", "name": "thread_name", **_PLACE, "args": {"name": f"layers ({profile.source})"}},
    ]
    begin = min((run.start_ms for run in profile.runs if run.start_ms is not None), default=0.0)
    end = begin
    for number, run in enumerate(profile.runs):
        start = end if run.start_ms is None else run.start_ms
        end = start + run.length_ms
        name = f"mean of {profile.counted} runs" if profile.counted > 1 else f"run {number + 1}"
        events.append(_slice(name, start - begin, run.length_ms, "run", {}))
        events += _layers(profile, run, start, begin)
    other = {"made_by": "edgeres profile", "source": profile.source}
    if any(run.start_ms is None for run in profile.runs):
        other["starts"] = _LAID_OUT
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": other}


def _layers(profile: Profile, run: Run, start: float, begin: float) -> Iterator[Json]:
    at = start
    for one in run.slices:
        at = at if one.start_ms is None else one.start_ms
        facts = profile.facts.get(one.name)
        known = {} if facts is None else {"kind": facts.kind, "precision": facts.precision}
        yield _slice(one.name, at - begin, one.ms, "layer", {key: word for key, word in known.items() if word})
        at += one.ms


def _slice(name: str, start: float, ms: float, kind: str, facts: Json) -> Json:
    times = {"ts": round(1e3 * start, 3), "dur": round(1e3 * ms, 3)}
    return {"ph": "X", "name": name, "cat": kind, **_PLACE, **times, "args": facts}
