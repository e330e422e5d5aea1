"""A peak chosen and reported on the same pairs looks too strong."""

from __future__ import annotations

import math
from typing import ClassVar

from engramscope.audit._base import AuditContext, Check, Finding, Needs
from engramscope.audit._facts import clusters_of
from engramscope.audit._show import number


class PeakSelection(Check):
    """Looks at whether the peak can be chosen on one half of the clusters and confirmed on the other."""

    needs: ClassVar[Needs] = "pairs"
    title: ClassVar[str] = "Choosing the peak"

    def run(self, context: AuditContext) -> list[Finding]:
        """A warning where the clusters cannot be split, or a half has too few for a test to reach significance.

        The study is split as `stats.split.split_by_cluster` does it: halves whose sizes differ by one cluster at most,
        chance deciding which of them measures. A sign flip of k clusters gives no p below 2^(1 - k).
        """
        unknown = {pair for pair, _ in context.unknown}
        found = zip(context.pairs, clusters_of(context), strict=True)
        k = len({cluster for pair, cluster in found if pair.id not in unknown})
        if k < 2:
            return [
                self.finding(
                    "warning",
                    "All pairs are in one cluster, which cannot be split into a half that chooses the peak and one "
                    "that measures it: no peak is named.",
                )
            ]
        alpha, few, many = 1 - context.study.stats.confidence, k // 2, k - k // 2
        sizes = f"{few}" if few == many else f"{few} or {many}"
        told = f"The peak is chosen on one half of the {k} clusters and measured on the other ({sizes})"
        most, least = (2.0 ** (1 - half) for half in (few, many))
        enough = f"{2 * math.ceil(1 - math.log2(alpha))} clusters or more will do"
        if least > alpha:
            text = f"{told}, where p cannot be smaller than {number(least)}: it cannot be confirmed at {number(alpha)}."
            return [self.finding("warning", f"{text} {enough}.")]
        if most > alpha:
            text = f"{told}, but with {few} clusters p cannot be smaller than {number(most)}: the peak can be confirmed"
            return [self.finding("warning", f"{text} at {number(alpha)} by the larger half only. {enough}.")]
        return self.ok(f"{told}.")


COMPONENT = PeakSelection
