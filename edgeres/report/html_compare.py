"""Differences between builds as one page, made from the same document as the terminal's tables."""

from __future__ import annotations

from collections.abc import Sequence

from edgeres.judge.document import Json, not_measurable, why_missing
from edgeres.report.compare_text import changed, graphs, ratio, scale, since, size, title, with_interval
from edgeres.report.figures import decibels, significant, times
from edgeres.report.html_accuracy import SHOWN_ROWS
from edgeres.report.markup import Html, el, join, more, prose, render_page, section, table
from edgeres.report.text import NOT_CERTAIN


def render_comparisons(pairs: Sequence[Json]) -> str:
    """The page for one or more pairs, all with the same first build."""
    others = ", ".join(found["after"]["name"] for found in pairs)
    name = f"{pairs[0]['before']['name']} to {others}"
    several = len(pairs) > 1
    parts = (join(el("h2", title(found), class_="pair") if several else "", _pair(found)) for found in pairs)
    return render_page(name, join(el("h1", name), *parts))


def _pair(found: Json) -> Html:
    likely, *others = found["causes"]
    banner = el(
        "section",
        el("div", "Likely cause", class_="soft small"),
        el("strong", likely[:1].upper() + likely[1:], class_="long"),
        *(el("div", f"Also: {other}.") for other in others),
        class_="banner open",
    )
    parts = (_builds, _since, _accuracy, _latency, _scales, _placements, _sizes, _changed)
    return join(banner, *(part(found) for part in parts))


_WORDS = {"passed": "pass", "failed": "fail", "unsure": "unsure"}
_OUTCOMES = {"passed": "passed", "failed": "failed", "unsure": NOT_CERTAIN}


def _builds(found: Json) -> Html:
    sides = (found["before"], found["after"])
    rows: list[tuple[object, ...]] = [
        ("Verdict", *(el("span", _OUTCOMES[side["outcome"]], class_=_WORDS[side["outcome"]]) for side in sides)),
        ("Network", *(prose(side["model"]) for side in sides)),
        ("Measured", *(side["created"][:16].replace("T", " ") for side in sides)),
        ("Images", *(prose(side["validation"] or "none") for side in sides)),
    ]
    return section("Builds", table("Builds", ("What", *(side["name"] for side in sides)), rows))


def _since(found: Json) -> Html:
    rows = ((name, prose(words)) for name, words in since(found))
    same = "Both were measured on the same images, so they are compared image by image."
    if not found["same_images"]:
        same = f"They cannot be compared image by image: {why_missing('same_images', found)}."
    return section("Losses", el("p", same), table("Losses", ("What", "Since the first"), rows))


def _accuracy(found: Json) -> Html:
    rows = (
        (
            name,
            side,
            *(_two_lines(row[side][key], row[side][f"{key}_ci95"]) for key in ("top1", "drop_pp", "agreement")),
            decibels(row[side]["logit_sqnr_db"]),
        )
        for name, row in graphs(found)
        for side in ("before", "after")
    )
    head = ("Graph", "Build", "Top-1 %", "Drop pp", "Agreement %", "Logit SQNR")
    small = el("p", "Small figures are 95 % intervals.", class_="soft small")
    return section("Accuracy", table("Accuracy", head, rows, range(2, 6)), small)


def _two_lines(value: float | None, limits: list[float] | None) -> object:
    figure, _, small = with_interval(value, limits).partition(" ")
    return join(figure, el("div", small.strip("()"), class_="soft small")) if small else figure


def _latency(found: Json) -> Html:
    rows = []
    for name in ("before", "after"):
        side = found["latency"][name]
        ms = (significant(side[p][key]) for p in ("fp32", "int8") for key in ("p50_ms", "p99_ms"))
        crowded = {None: "-", False: "no", True: "yes"}[side["crowded"]]
        rows.append(
            (
                name,
                *ms,
                "not measurable" if not_measurable(side) else times(side["speedup"]),
                crowded,
                prose(side["machine"] or "-"),
            )
        )
    head = ("Build", "FP32 p50 ms", "p99", "INT8 p50 ms", "p99", "Speedup", "Busy machine", "Machine")
    told = dict(since(found))["latency"]
    return section("Latency", table("Latency", head, rows, range(1, 6)), el("p", f"{told[:1].upper()}{told[1:]}."))


def _scales(found: Json) -> Html:
    if found["scales"] is None:
        return section("Scales", el("p", f"Not compared: {why_missing('scales', found)}."))
    return section("Scales", *(_scales_of(style, scales) for style, scales in found["scales"].items()))


def _scales_of(style: str, scales: Json) -> Html:
    rows = [
        (prose(row["tensor"]), scale(row["before"]), scale(row["after"]), ratio(row["ratio"])) for row in scales["rows"]
    ]
    head, first = ("Tensor", "Before", "After", "Ratio"), min(SHOWN_ROWS, scales["changed"])
    what = "scales" if scales["of"] == "graph" else "ranges of calibration.json, as widths,"
    label, rest = f"Scales, {style} graph", rows[first:]
    return join(
        el("h3", f"{style} graph"),
        el("p", f"{scales['changed']} of {scales['tensors']} {what} changed by more than 10 %."),
        table(label, head, rows[:first], (1, 2, 3)) if first else "",
        more(f"{len(rest):,} that changed less", table(f"{label}, rest", head, rest, (1, 2, 3))) if rest else "",
    )


def _placements(found: Json) -> Html:
    if found["placements"] is None:
        return section("Q/DQ pairs", el("p", f"Not compared: {why_missing('placements', found)}."))
    parts = []
    for style, places in found["placements"].items():
        rows: list[tuple[object, ...]] = [
            (prose(name), kind, "") for kind in ("gained", "lost") for name in places[kind]
        ]
        rows += [(prose(one["what"]), "left in float", prose(one["reason"])) for one in places["left_in_float"]]
        same = el("p", f"{style} graph: the same {places['both']} tensors have a pair.")
        listed = table(f"Q/DQ pairs, {style} graph", ("Tensor", "Pair", "Why"), rows)
        parts.append(listed if rows else same)
    return section("Q/DQ pairs", *parts)


def _sizes(found: Json) -> Html:
    return section("Sizes", table("Sizes", ("File", "Before", "After", "Ratio"), map(size, found["sizes"]), (1, 2, 3)))


def _changed(found: Json) -> Html:
    rows = [tuple(map(prose, row)) for row in changed(found)]
    if not rows:
        return section("Options and versions", el("p", "No recorded option or version has changed."))
    listed = table("What was changed", ("What", "Before", "After"), rows)
    same = ", ".join(found["files"]["same"])
    told = el("p", f"Identical files: {same}.", class_="soft small") if same else ""
    return section("Options and versions", listed, told)
