"""What a build and a verification give in Python: the report, on one screen of text and as a page in a notebook."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

from edgeres.judge.document import Json


@dataclass(frozen=True, repr=False)
class VerifyResult:
    """A finished verification; ``report`` is the content of a report.json."""

    report: Json

    @property
    def passed(self) -> bool:
        return bool(self.report["passed"])

    def __repr__(self) -> str:
        """The outcome and the figures, at most a screen."""
        from edgeres.report.text import findings, headline, outcome_line, top1_line
        from edgeres.words import escaped

        outcome, others = outcome_line(self.report)
        told = [headline(self.report), top1_line(self.report), outcome, *(f"{title}: {why}" for title, why in others)]
        told += [f"{name}: {words}" for name, words in findings(self.report, brief=True)]
        return "\n".join(map(escaped, told))

    def _repr_html_(self) -> str:
        """The whole page in a frame of its own, for notebooks."""
        from edgeres.report.html import render_html

        page = html.escape(render_html(self.report))
        return f'<iframe srcdoc="{page}" style="width:100%;height:40em;border:0" title="report of edgeres"></iframe>'


@dataclass(frozen=True, repr=False)
class BuildResult(VerifyResult):
    """A finished build; ``path`` is the bundle, ``report`` the content of its report.json."""

    path: Path

    def __repr__(self) -> str:
        return f"{super().__repr__()}\nbundle: {self.path}"
