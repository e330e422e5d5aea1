"""A few pairs carry a few pairs' worth of evidence."""

from __future__ import annotations

from typing import ClassVar

from engramscope.audit._base import AuditContext, Check, Finding, Needs
from engramscope.audit._show import count, listed

FEW, SOME = 10, 30


class SampleSize(Check):
    """Counts the pairs."""

    needs: ClassVar[Needs] = "pairs"
    title: ClassVar[str] = "Number of pairs"

    def run(self, context: AuditContext) -> list[Finding]:
        """A warning below 10 pairs, a note below 30; a note where pairs lack the label that is compared by."""
        n, lacking = len(context.pairs), self._without_label(context)
        told = f"{count(n, 'pair')}"
        if n >= SOME:
            return lacking or self.ok(f"{told}.")
        if n < FEW:
            return [
                *lacking,
                self.finding(
                    "warning",
                    f"{told} only: this shows what happens in these prompts, not what the model does in general.",
                ),
            ]
        few = self.finding("note", f"{told}: intervals are wide, and weak components will not be detected.")
        return [*lacking, few]

    def _without_label(self, context: AuditContext) -> list[Finding]:
        label = context.study.stats.contrast
        without = [pair.id for pair in context.pairs if label is not None and label not in pair.labels]
        if not without:
            return []
        told = f"{len(without)} of {count(len(context.pairs), 'pair')} have no label {label!r} and are left out of the"
        return [self.finding("note", f"{told} comparison of its values.", listed(without))]


COMPONENT = SampleSize
