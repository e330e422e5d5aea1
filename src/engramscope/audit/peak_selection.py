"""A peak chosen and reported on the same pairs looks too strong."""

from __future__ import annotations

from typing import ClassVar

from engramscope.audit._base import AuditContext, Check, Finding, Needs
from engramscope.audit._facts import clusters_of
from engramscope.audit._show import count, number


class PeakSelection(Check):
    """Looks at whether the peak can be chosen on one half of the clusters and confirmed on the other."""

    needs: ClassVar[Needs] = "pairs"
    title: ClassVar[str] = "Choosing the peak"

    def run(self, context: AuditContext) -> list[Finding]:
        """A warning with too few clusters to split, or too few in a half for a test to reach significance."""
        k = len(set(clusters_of(context)))
        half = k // 2
        alpha = 1 - context.study.stats.confidence
        if half < 2:
            return [
                self.finding(
                    "warning",
                    f"{count(k, 'cluster')} cannot be split into a half that chooses the peak and one that confirms "
                    "it: a peak chosen and measured on the same pairs looks stronger than it is.",
                )
            ]
        smallest = 2.0 ** (1 - half)
        told = f"The peak is chosen on one half of the {k} clusters and measured on the other ({half} at least)"
        if smallest > alpha:
            return [
                self.finding(
                    "warning",
                    f"{told}, but with {half} clusters p cannot be smaller than {number(smallest)}: the peak cannot be "
                    f"confirmed at {number(alpha)}.",
                )
            ]
        return self.ok(f"{told}.")


COMPONENT = PeakSelection
