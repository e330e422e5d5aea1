"""Of many cells tested some look strong by chance."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from engramscope.audit._base import AuditContext, Check, Finding, Needs
from engramscope.audit._facts import cut_shares
from engramscope.audit._show import count, listed, number


class Multiplicity(Check):
    """Counts the tests and says how they are corrected."""

    needs: ClassVar[Needs] = "model"
    title: ClassVar[str] = "Many cells at once"

    def run(self, context: AuditContext) -> list[Finding]:
        """A note with the number of tests where there is more than one family of them."""
        tested = [cell for cell, share in cut_shares(context).items() if share < 1.0]
        metrics = len(context.study.metrics.names)
        families = Counter((cell.sweep, cell.direction) for cell in tested)
        tests, groups = metrics * len(tested), metrics * len(families)
        alpha = context.study.stats.family_error
        told = (
            f"{count(tests, 'test')}: {count(len(tested), 'cell')} by {count(metrics, 'metric')}. All are corrected "
            f"for one another: p by max-T (the chance of any false detection in the study is at most {number(alpha)}), "
            "and q by Benjamini–Hochberg."
        )
        if groups <= 1:
            return self.ok(told)
        return [
            self.finding(
                "note",
                f"{told} What is tested beside it makes each cell a little harder to detect; leave out sweeps and "
                "metrics that the question does not need.",
                listed(
                    f"{sweep}, {direction}: {count(cells, 'cell')}" for (sweep, direction), cells in families.items()
                ),
            )
        ]


COMPONENT = Multiplicity
