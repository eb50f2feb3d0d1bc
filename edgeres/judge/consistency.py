"""Checks that limits, baseline and bundle fit together, without images and without running a graph.

This takes less than a second, so it can run before every commit.
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
    """Check the baseline against the limits and against each bundle.

    Raises:
        BundleError: a file of a bundle is missing, or was changed.
    """
    checks = [_accepted(baseline), _limits(baseline, limits)]
    for bundle in bundles:
        bundle.check()
        checks.append(_same_build(baseline, bundle))
    return checks


def _accepted(baseline: Baseline) -> Check:
    outcome: Outcome = baseline.document["outcome"]
    words = {"failed": "although a gate or check had failed", "unsure": "with a gate that is not certain"}
    day = str(baseline.document["accepted"])[:10]
    reason = f"{baseline.where}: accepted on {day} {words.get(outcome, 'with every gate passed')}"
    return Check("accepted", "accepted build", "failed" if outcome == "failed" else "passed", reason)


def _limits(baseline: Baseline, limits: Limits) -> Check:
    """Compare the accepted figures with the current limits; without intervals, because a baseline has none."""
    title = "limits and baseline"
    figures = {part: baseline.document[part] for part in ("accuracy", "latency", "sizes")}
    wanted = [gate for gate in limits.gates() if METRICS[gate.metric].path]
    beyond = [
        f"{METRICS[verdict.gate.metric].title} {verdict.reason}"
        for verdict in judge_gates(wanted, figures)
        if verdict.observed is not None and verdict.outcome == "failed"
    ]
    if beyond:
        return Check("limits", title, "failed", f"the accepted build itself is beyond a limit: {'; '.join(beyond)}")
    names = ", ".join(METRICS[gate.metric].title for gate in wanted)
    reason = f"the accepted build is within the limits of {names}" if names else "no limit is set"
    return Check("limits", title, "passed", reason)


def _same_build(baseline: Baseline, bundle: Bundle) -> Check:
    title = f"baseline of {bundle.path}"
    accepted: Mapping[str, str] = baseline.document["files"]
    files = artefacts_of(bundle.manifest.files)
    shared = [name for name in files if name in accepted]
    other = [name for name in accepted if files.get(name) != accepted[name]]
    if not shared or other:
        difference = f"{other[0]} {'differs' if other[0] in files else 'is missing'}" if other else "no file is shared"
        hint = f"edgeres baseline accept {bundle.path} after it passed, or restore the bundle"
        return Check("files", title, "failed", f"{baseline.where} is of another build, {difference}; {hint}")
    return Check("files", title, "passed", f"{len(shared)} graphs and engines are those that were accepted")
