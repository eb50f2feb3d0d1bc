"""Figures of one network over its builds, in the order in which they were measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path

from edgeres.bundle import MANIFEST, REPORT, Bundle, steady
from edgeres.errors import BundleError, InputError, UsageError
from edgeres.judge.document import Json
from edgeres.reports import read_report

SCHEMA = 1
_IMAGES_HINT = "give reports on the same images, or --any-images"


def read_history(paths: Sequence[Path], *, any_images: bool = False) -> Json:
    """The history of bundles and report.json files.

    Args:
        any_images: also list builds that were verified on different images; a note says so.

    Returns:
        ``model``; ``images``, a description, None where there are several or none; ``builds``, oldest first; ``notes``
        on what does not compare.

    Raises:
        BundleError, InputError: a report is missing or damaged.
        UsageError: they are of different networks or images.
    """
    reports = [(str(path), _report_at(path)) for path in paths]
    (first_name, first), *others = reports
    for name, report in others:
        _refuse_other_network(name, report, first_name, first)
        if not any_images and _images(report) != _images(first):
            what = f"was verified on {_described(report)}, and {first_name} on {_described(first)}"
            raise UsageError(f"{what}: their figures do not compare", where=name, hint=_IMAGES_HINT)
    timed = sorted(((_time(name, report), name, report) for name, report in reports), key=lambda one: one[0])
    builds = [_build(name, time, report) for time, name, report in timed]
    return {
        "schema": SCHEMA,
        "model": first["model"]["name"],
        "images": _described(first) if len({_images(report) for _, report in reports}) == 1 else None,
        "builds": builds,
        "notes": list(_notes([report for *_, report in timed], builds)),
    }


def _report_at(path: Path) -> Json:
    if path.is_file():
        return read_report(path)
    if (path / REPORT).is_file() and not (path / MANIFEST).exists():  # what edgeres verify -o wrote
        return read_report(path / REPORT)

    def read(bundle: Bundle) -> Json:
        if not bundle.has(REPORT):
            raise BundleError(f"has no {REPORT}, so there are no figures", where=path, hint="build it again")
        return bundle.report()

    return steady(path, read)


def _refuse_other_network(name: str, report: Json, first_name: str, first: Json) -> None:
    (of, classes), (first_of, first_classes) = (
        (one["model"]["name"], len(one["model"]["labels"])) for one in (report, first)
    )
    if (of, classes) != (first_of, first_classes):
        what = f"is of {of} with {classes:,} classes, and {first_name} of {first_of} with {first_classes:,}"
        raise UsageError(what, where=name, hint="give the builds of one network")


def _images(report: Json) -> str | None:
    validation = report["data"]["validation"]
    return validation["sha256"] if validation else None


def _described(report: Json) -> str:
    validation = report["data"]["validation"]
    return validation["description"] if validation else "no images"


def _time(name: str, report: Json) -> datetime:
    try:
        time = datetime.fromisoformat(report["created"].replace("Z", "+00:00"))
    except ValueError:
        what = f"states no time of its measurement: {report['created']!r:.60}"
        raise InputError(what, where=name, hint="edgeres verify BUNDLE -o DIR writes a report") from None
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)


def _build(name: str, time: datetime, report: Json) -> Json:
    """The figures of a build; those that were not measured are None."""
    accuracy, latency = report["accuracy"], report["latency"]
    return {
        "name": name,
        "created": time.astimezone(timezone.utc).isoformat(timespec="seconds"),
        "outcome": report["outcome"],
        "passed": report["passed"],
        "graph": accuracy["graph"],
        "fp32_top1": accuracy["fp32"]["top1"],
        "top1": accuracy["int8"]["top1"],
        "drop_pp": accuracy["drop_pp"],
        "drop_pp_ci95": accuracy["drop_pp_ci95"],
        "logit_sqnr_db": accuracy["logit_sqnr_db"],
        "fp32_p50_ms": latency["fp32"]["p50_ms"],
        "p50_ms": latency["int8"]["p50_ms"],
        "speedup": latency["speedup"],
        "size_bytes": report["sizes"]["int8_bytes"],
    }


def _notes(reports: Sequence[Json], builds: Sequence[Json]) -> Iterable[str]:
    """What differs between the builds, so that their figures do not compare as they stand."""
    images = {_images(report): _described(report) for report in reports}
    if len(images) > 1:
        yield f"accuracy was measured on different images: {'; '.join(images.values())}"
    graphs = _counted(str(build["graph"]) for build in builds if build["graph"])
    if len(graphs) > 1:
        yield f"the INT8 figures are of different graphs: {_listed(graphs)}"
    timed = [report for report in reports if report["latency"]["int8"]["p50_ms"] is not None]
    machines = _counted(str(report["environment"].get("processor") or "unknown") for report in timed)
    if len(machines) > 1:
        yield f"latency was measured on different machines: {_listed(machines)}"
    scopes = _counted(f"{report['latency']['backend']}, {report['latency']['scope']}" for report in timed)
    if len(scopes) > 1:
        yield f"latency was measured in different ways: {_listed(scopes)}"


def _counted(words: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    return counts


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{word} ({count:,})" for word, count in counts.items())
