"""Where the corruption hardly hurts, or helps, there is nothing to restore."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from engramscope.audit._base import AuditContext, Check, Finding, Needs
from engramscope.audit._facts import gaps, is_ablation
from engramscope.audit._show import count, listed, number, percent

#: a mean gap of fewer standard errors than this is not told apart from none
STANDARD_ERRORS = 2.0


class Gap(Check):
    """Counts and lists the pairs that recovery leaves out, and looks at the pooled gap."""

    needs: ClassVar[Needs] = "results"
    title: ClassVar[str] = "Gap between clean and corrupted"

    def run(self, context: AuditContext) -> list[Finding]:
        """A warning if pairs are excluded, and for each metric whose pooled gap is tiny or of the wrong sign."""
        findings: list[Finding] = []
        n, out = len(context.pairs) - len(context.unknown), len(context.excluded)
        if out:
            findings.append(
                self.finding(
                    "warning",
                    f"Recovery leaves out {count(out, 'pair')} of {n} ({percent(out / n)}), listed in the report. What "
                    "holds for the others need not hold for them.",
                    listed(f"{pair}: {reason}" for pair, reason in context.excluded),
                )
            )
        if not is_ablation(context.study):
            findings += [found for name in context.study.metrics.names if (found := self._pooled(context, name))]
        return findings or self.ok(f"The corruption hurts in all {count(n, 'pair')}; none is excluded.")

    def _pooled(self, context: AuditContext, metric: str) -> Finding | None:
        gap = np.array(list(gaps(context, metric).values()))
        if not len(gap):
            return None
        mean, wrong = float(gap.mean()), int((gap <= 0).sum())
        error = float(gap.std(ddof=1)) / math.sqrt(len(gap)) if len(gap) > 1 else math.inf
        about = (
            f"{metric}: over all {count(len(gap), 'pair')} the clean run is better than the corrupted one by "
            f"{number(mean)} on average, and in {wrong} of them it is not better at all."
        )
        if mean <= 0:
            return self.finding("warning", f"{about} The gap has the wrong sign, so this recovery means nothing.")
        if len(gap) > 1 and mean < STANDARD_ERRORS * error:
            return self.finding(
                "warning",
                f"{about} This is less than two standard errors ({number(error)}): recovery divides by noise.",
            )
        return None


COMPONENT = Gap
