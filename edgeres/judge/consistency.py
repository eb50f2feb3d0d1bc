"""Whether what a team has committed fits together: limits, baseline and bundle. No image is read, nothing is run.

It takes a second, so it can stand before every commit; ``edgeres verify`` measures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from edgeres.bundle import Bundle
from edgeres.judge.baseline import Baseline
from edgeres.judge.checks import Check
from edgeres.judge.gates import METRICS, Limits, judge_gates
from edgeres.made import artefacts_of
from edgeres.records import Outcome


def consistency(baseline: Baseline, limits: Limits, bundles: Iterable[Bundle]) -> list[Check]:
    """What was looked for, and what was found.

    Raises:
        BundleError: a file of a bundle is missing, or not as it was written.
    """
    found = [_accepted(baseline), _limits(baseline, limits)]
    for bundle in bundles:
        bundle.check()
        found.append(_same_build(baseline, bundle))
    return found


def _accepted(baseline: Baseline) -> Check:
    then: Outcome = baseline.document["outcome"]
    told = {"failed": "was accepted although a gate had failed", "unsure": "was accepted, a gate unsure"}
    day = str(baseline.document["accepted"])[:10]
    words = f"{baseline.where}: {told.get(then, 'was accepted, every gate passed')}, {day}"
    return Check("accepted", "accepted build", "failed" if then == "failed" else "passed", words)


def _limits(baseline: Baseline, limits: Limits) -> Check:
    """The accepted figures themselves against the limits of today; without intervals, which a baseline has not."""
    title = "limits and baseline"
    document = baseline.document
    figures = {part: document[part] for part in ("accuracy", "latency", "sizes")}
    wanted = [gate for gate in limits.gates() if METRICS[gate.metric].path]
    beyond = [
        f"{METRICS[verdict.gate.metric].title} {verdict.reason}"
        for verdict in judge_gates(wanted, figures)
        if verdict.observed is not None and verdict.outcome == "failed"
    ]
    if beyond:
        return Check("limits", title, "failed", f"the accepted build itself is beyond a limit: {'; '.join(beyond)}")
    names = ", ".join(METRICS[gate.metric].title for gate in wanted) or "no limit is set"
    return Check("limits", title, "passed", f"the accepted build lies within: {names}")


def _same_build(baseline: Baseline, bundle: Bundle) -> Check:
    title = f"baseline of {bundle.path}"
    then: Mapping[str, str] = baseline.document["files"]
    now = artefacts_of(bundle.manifest.files)
    shared = [name for name in now if name in then]
    other = [name for name in shared if now[name] != then[name]] + [name for name in then if name not in now]
    if not shared or other:
        named = f"{other[0]} is another" if other else "they have no file in common"
        hint = f"edgeres baseline accept {bundle.path} after it passed, or restore the bundle"
        return Check("files", title, "failed", f"{baseline.where} is of another build, {named}; {hint}")
    return Check("files", title, "passed", f"{len(shared)} graphs and engines are those that were accepted")
