"""A filter by what the model knows says how many pairs it has left out."""

from __future__ import annotations

from typing import ClassVar

from engramscope.audit._base import AuditContext, Check, Finding, Needs
from engramscope.audit._show import count, listed, percent


class KnownFacts(Check):
    """Counts the pairs that `pairs.known` leaves out because the model does not know their answer."""

    needs: ClassVar[Needs] = "results"
    title: ClassVar[str] = "Facts that the model knows"

    def run(self, context: AuditContext) -> list[Finding]:
        """A note where pairs were left out: the result holds for what the model knows."""
        if not context.study.pairs.known:
            return self.ok("Pairs are used whether or not the model knows their answer (pairs.known = false).")
        n, out = len(context.pairs), len(context.unknown)
        if not out:
            return self.ok(f"The model knows the answer of all {count(n, 'pair')}.")
        message = (
            f"The model does not know the answer of {count(out, 'pair')} of {n} ({percent(out / n)}); they are not "
            "patched and enter no estimate, as in Meng et al.; the scale of noise, means and donors are still taken "
            "from all pairs. The result holds for what the model knows."
        )
        return [self.finding("note", message, listed(f"{pair}: {reason}" for pair, reason in context.unknown))]


COMPONENT = KnownFacts
