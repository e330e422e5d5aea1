"""A few pairs carry a few pairs' worth of evidence."""

from __future__ import annotations

from typing import ClassVar

from engramscope.audit._base import AuditContext, Check, Finding, Needs
from engramscope.audit._show import count

FEW, SOME = 10, 30


class SampleSize(Check):
    """Counts the pairs."""

    needs: ClassVar[Needs] = "pairs"
    title: ClassVar[str] = "Number of pairs"

    def run(self, context: AuditContext) -> list[Finding]:
        """A warning below 10 pairs, a note below 30."""
        n = len(context.pairs)
        if n >= SOME:
            return self.ok(f"{count(n, 'pair')}.")
        told = f"{count(n, 'pair')}"
        if n < FEW:
            return [
                self.finding(
                    "warning",
                    f"{told} only: this shows what happens in these prompts, not what the model does in general.",
                )
            ]
        return [self.finding("note", f"{told}: intervals are wide, and weak components will not be detected.")]


COMPONENT = SampleSize
