"""INT8 beside FP32 on corrupted images: the figures, and whether INT8 is the one that breaks."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

from edgeres.judge.document import Json
from edgeres.records import Outcome
from edgeres.verify.accuracy import CorruptedAnswers
from edgeres.verify.answers import REFERENCE
from edgeres.verify.statistics import holm, paired_drop_pp, sign_tail

LIMIT_PP = 5.0  # top-1 that INT8 may lose against FP32 under a corruption
ALPHA = 0.025  # probability of a false alarm over all corruptions and graphs


def corruption_rows(measured: Sequence[CorruptedAnswers]) -> list[Json] | None:
    """Figures by corruption, the images as they are first; None where nothing was corrupted.

    The loss of each graph against FP32 on the same corrupted images has the p-value of the exact McNemar test, by Holm
    over all corruptions and graphs, and Tango's interval, wide enough to hold for all of them together.
    """
    if not measured:
        return None
    tested = [(i, name) for i, row in enumerate(measured) if row.corruption for name in row.table.candidates]
    z = NormalDist().inv_cdf(1 - ALPHA / max(len(tested), 1))
    rows = [_row(row, z) for row in measured]
    pairs = [(rows[i]["graphs"][name]["lost"], rows[i]["graphs"][name]["gained"]) for i, name in tested]
    for (i, name), p in zip(
        tested, holm([sign_tail(*pair) if pair[0] is not None else 1.0 for pair in pairs]), strict=True
    ):
        rows[i]["graphs"][name]["p_holm"] = p if rows[i]["graphs"][name]["lost"] is not None else None
    return rows


def _row(measured: CorruptedAnswers, z: float) -> Json:
    table, of = measured.table, measured.corruption
    graphs = {}
    for name in table.candidates:
        counts: Json = dict.fromkeys(("correct", "lost", "gained", "drop_pp", "drop_pp_limits", "p_holm"))
        if table.labelled:
            lost, gained = int(table.lost(name).sum()), int(table.gained(name).sum())
            drop = paired_drop_pp(lost, gained, table.labelled, z)
            counts |= {"correct": int(table.right(name).sum()), "lost": lost, "gained": gained}
            counts |= {"drop_pp": drop.value, "drop_pp_limits": [drop.low, drop.high]}
        graphs[name] = {**counts, "same": table.same(name)}
    return {
        "kind": of.kind if of else "none",
        "strength": of.strength if of else 0,
        "value": of.value if of else None,
        "images": table.images,
        "labelled": table.labelled,
        "fp32": int(table.right(REFERENCE).sum()) if table.labelled else None,
        "graphs": graphs,
    }


def judge_corruptions(rows: list[Json] | None) -> tuple[Outcome, str] | tuple[Outcome, str, bool]:
    """Outcome, reason, and whether it warns: as a check gives them."""
    if rows is None:
        return "unsure", "no image was corrupted: --corruptions was not given"
    if not rows[0]["labelled"]:
        return "unsure", "there are no labels"
    found = [(row, name, graph) for row in rows[1:] for name, graph in row["graphs"].items()]
    if sign_tail(rows[0]["labelled"], 0) * len(found) > ALPHA:
        return "unsure", f"{rows[0]['labelled']} images are too few: no loss could be significant"
    found.sort(key=lambda one: -one[2]["drop_pp"])
    sure = [one for one in found if one[2]["p_holm"] < ALPHA and one[2]["drop_pp"] > LIMIT_PP]
    broken = [one for one in sure if one[2]["drop_pp_limits"][0] > LIMIT_PP]
    told = "; ".join(_words(*one) for one in (broken or sure or found)[:3])
    if broken:
        more = f"; and {len(broken) - 3} more" if len(broken) > 3 else ""
        return "failed", f"INT8 breaks where FP32 does not: {told}{more}; the limit is {LIMIT_PP:g} pp"
    if sure:
        return "passed", f"INT8 may break where FP32 does not: {told}; the limit is {LIMIT_PP:g} pp", True
    return (
        "passed",
        f"INT8 keeps what FP32 gets right under {len(rows) - 1} corruptions; the largest loss: {_words(*found[0])}",
    )


def _words(row: Json, name: str, graph: Json) -> str:
    right = f"FP32 {row['fp32']} and INT8 {graph['correct']} of {row['labelled']} right"
    return f"{row['kind']} {row['strength']}, {name} graph: {right} ({graph['lost']} lost, {graph['gained']} gained)"
