"""The report as workflow commands of GitHub, which it shows as annotations of a run and of a pull request's files."""

from __future__ import annotations

from edgeres.report.text import NOT_CERTAIN, Report, check_word, verdict_word
from edgeres.words import escaped

_KINDS = {"FAIL": "error", "warning": "warning", NOT_CERTAIN: "warning"}


def render_annotations(report: Report) -> str:
    """One line for each gate and check that failed, warns or is not certain; "" where there is none.

    Those of gates stand at the file that sets the limits, where there is one.
    """
    config = report.get("config")
    where = f"file={_value(config['file'])}," if config else ""
    told = [(verdict_word(v), where, f"{v['title']} {v['rule']}", v["reason"]) for v in report["verdicts"]]
    told += [(check_word(c), "", c["title"], c["reason"]) for c in report["checks"]]
    name = report["model"]["name"]
    return "".join(
        f"::{_KINDS[word]} {place}title={_value(f'{name}: {title}')}::{_message(reason)}\n"
        for word, place, title, reason in told
        if word in _KINDS
    )


def _message(text: str) -> str:
    """Text that ends no line: GitHub decodes %25, %0D and %0A."""
    return escaped(text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A"))


def _value(text: str) -> str:
    """The same for the value of a property, which a colon or a comma would end."""
    return _message(text).replace(":", "%3A").replace(",", "%2C")
