"""The page's section on accuracy: figures with intervals, classes, confusions, and images."""

from __future__ import annotations

from typing import Any

from edgeres.judge.document import titled, why_missing
from edgeres.report.charts import class_chart, interval_chart
from edgeres.report.figures import NOT_MEASURED, decibels, interval, percent, points
from edgeres.report.markup import Html, el, join, more, prose, section, table
from edgeres.report.text import Report, precision_of, unreadable

SHOWN_ROWS = 20  # rows of a long table; the others are folded
SHOWN_BARS = 16
LISTED_IMAGES = 100


def accuracy_section(report: Report) -> Html:
    """All figures on accuracy, or the reason why nothing was compared."""
    accuracy, validation = report["accuracy"], report["data"]["validation"]
    if not accuracy["graphs"]:
        return section("Accuracy", el("p", f"Not measured: {why_missing('accuracy', report)}."))
    graphs = [(network(name), graph) for name, graph in accuracy["graphs"].items()]
    figures = {"top1": percent, "top5": percent, "drop_pp": points, "agreement": percent, "logit_sqnr_db": decibels}
    if accuracy["fp32"].get("top5") is None:  # few classes, or no labels
        del figures["top5"]
    rows = (
        (name, *(_with_interval(words(row.get(key)), row.get(f"{key}_ci95")) for key, words in figures.items()))
        for name, row in [("FP32", accuracy["fp32"]), *graphs]
    )
    titles = {
        "top1": "Top-1",
        "top5": "Top-5",
        "drop_pp": "Drop",
        "agreement": "Agreement",
        "logit_sqnr_db": "Logit SQNR",
    }
    head = ("Graph", *(titles[name] for name in figures))
    notes = [f" {name}: {graph['note']}." for name, graph in graphs if graph["note"]]
    return section(
        "Accuracy",
        el("p", f"On {validation['description']}.") if validation else "",
        el("p", f"{unreadable(validation)}.", class_="remark") if validation and validation["unreadable"] else "",
        table("Accuracy", head, rows, range(1, len(head))),
        el("p", "Small figures are 95 % intervals.", *notes, class_="soft small"),
        el("p", f"FP32: {accuracy['reference']}.", class_="soft small") if accuracy.get("reference") else "",
        _explained(report),
        _drops(report),
        _images(report),
        _confusions(report),
        _classes(report),
    )


def network(name: str) -> str:
    """A candidate as a heading: ``INT8, cpu graph``; the name of an engine says its precision."""
    return name if name.endswith(" engine") else f"INT8, {titled(name)}"


def _with_interval(figure: str, limits: list[float] | None) -> object:
    return figure if limits is None else join(figure, el("div", interval(limits), class_="soft small"))


def _explained(report: Report) -> Html:
    a = report["accuracy"]
    if a["drop_pp"] is None:
        return el("p", f"No accuracy: {why_missing('accuracy.drop_pp', report)}.")
    lost = f"{precision_of(report)} ({titled(a['graph'])}) loses {a['lost']} that FP32 gets right"
    gained = f"gains {a['gained']} that FP32 gets wrong (McNemar's test, mid-p: {a['mcnemar_p']:.2g})"
    return el("p", f"Of {a['int8']['total']:,} labelled images, {lost} and {gained}.")


def _drops(report: Report) -> Html:
    graphs = report["accuracy"]["graphs"]
    rows = [(name, graph["drop_pp"], graph["drop_pp_ci95"]) for name, graph in graphs.items()]
    if any(drop is None for _, drop, _ in rows):
        return Html()
    limits = [v["gate"]["limit"] for v in report["verdicts"] if v["gate"]["metric"] == "drop_pp"]
    return interval_chart(rows, limits[0] if limits else None, "top-1 lost against FP32, points", "drop")


def _images(report: Report) -> Html:
    graph = report["accuracy"]["graphs"][report["accuracy"]["graph"]]
    lost = _answers(report, "INT8 gets wrong and FP32 right", graph["lost_images"])
    gained = _answers(report, "FP32 gets wrong and INT8 right", graph["gained_images"])
    return join(_gallery(report), lost, gained)


def _gallery(report: Report) -> Html:
    """Pictures of images that FP32 gets right and an INT8 graph wrong, with both answers."""
    labels, pictures = report["model"]["labels"], report["thumbnails"]
    shown: list[Html] = []
    for name, graph in report["accuracy"]["graphs"].items():
        for image in graph["lost_images"]:
            if image["image"] in pictures:
                right, wrong = labels[image["reference"]], labels[image["candidate"]]
                shown.append(_picture(image["image"], pictures[image["image"]], right, wrong, titled(name)))
    if not shown:
        return Html()
    title = f"Pictures of what INT8 gets wrong and FP32 right ({len(shown)})"
    return more(title, el("div", *shown, class_="gallery"), open_=True)


def _picture(name: str, jpeg: str, right: str, wrong: str, graph: str) -> Html:
    said = f"{name}: FP32 says {right}, INT8 says {wrong}"
    return el(
        "figure",
        el("img", src=f"data:image/jpeg;base64,{jpeg}", alt=said, loading="lazy"),
        el(
            "figcaption",
            el("span", right, class_="pass"),
            el("span", wrong, class_="fail"),
            el("span", f"{name}, {graph}", class_="soft small"),
        ),
    )


def _answers(report: Report, what: str, images: list[dict[str, Any]]) -> Html:
    if not images:
        return Html()
    labels = report["model"]["labels"]
    rows = [
        (prose(image["image"]), *(labels[image[key]] for key in ("label", "reference", "candidate")))
        for image in images[:LISTED_IMAGES]
    ]
    beyond = len(images) - len(rows)
    return more(
        f"{len(images):,} image{'s' * (len(images) > 1)} that {what}",
        table(f"Images that {what}", ("Image", "Label", "FP32 says", "INT8 says"), rows),
        el("p", f"{beyond:,} more are listed in report.json.", class_="soft small") if beyond else "",
    )


def _confusions(report: Report) -> Html:
    graph = report["accuracy"]["graphs"][report["accuracy"]["graph"]]
    labels = report["model"]["labels"]
    rows = []
    for one in graph["confusions"]:
        fp32, int8 = one["reference"], one["candidate"]
        rows.append((labels[one["label"]], labels[one["answer"]], f"{fp32:,}", f"{int8:,}", f"{int8 - fp32:+,}"))
    if not rows:
        return Html()
    head = ("Images of", "taken for", "by FP32", "by INT8", "Change")
    return more(f"Confusions that changed ({len(rows)})", table("Confusions that changed", head, rows, (2, 3, 4)))


def _classes(report: Report) -> Html:
    classes = report["accuracy"]["per_class"]
    if not classes:
        return Html()
    changes = [100 * (row["int8"] - row["fp32"]) / row["total"] for row in classes]
    largest_first = sorted(zip(changes, classes, strict=True), key=lambda pair: (-abs(pair[0]), pair[0]))
    names = report["model"]["labels"]
    rows = []
    for change, row in largest_first:
        top1 = (percent(100 * row[name] / row["total"]) for name in ("fp32", "int8"))
        rows.append((names[row["class"]], f"{row['total']:,}", *top1, f"{change:+.2f} pp" if change else "0"))
    changed = [(names[row["class"]], change) for change, row in largest_first if change]
    first = min(SHOWN_ROWS, len(changed))
    head, numbers, rest = ("Class", "Images", "FP32", "INT8", "Change"), range(1, 5), rows[first:]
    return join(
        el("h3", "Top-1 by class, largest change first"),
        _named(report),
        class_chart(changed[:SHOWN_BARS]) if changed else "",
        table("Top-1 by class", head, rows[:first], numbers) if first else el("p", "No class changed."),
        more(f"{len(rest):,} more classes", table("More classes", head, rest, numbers)) if rest else "",
    )


def _named(report: Report) -> Html:
    """Which classes lost significantly."""
    classes = report["accuracy"]["graphs"][report["accuracy"]["graph"]]["classes"]
    sure = [row for row in classes["falling"] if row["p_holm"] < classes["alpha"]]
    if sure:
        told = ", ".join(f"{row['name']} (p = {row['p_holm']:.2g})" for row in sure)
        return el("p", f"Significant over all classes: {told}.", class_="remark")
    least = f"{classes['least_found']} images lost and none gained" if classes["judged"] else NOT_MEASURED
    return el("p", f"No loss is significant over all classes; that would take {least}.", class_="soft small")
