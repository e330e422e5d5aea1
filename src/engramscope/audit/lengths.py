"""Position by position needs prompts of equal length."""

from __future__ import annotations

from typing import ClassVar

from engramscope.audit._base import AuditContext, Check, Finding, Needs
from engramscope.audit._facts import corruption_of
from engramscope.audit._show import count, listed, tokens


class Lengths(Check):
    """Compares the number of tokens of the two prompts of each pair."""

    needs: ClassVar[Needs] = "tokens"
    title: ClassVar[str] = "Lengths of the prompts"

    def run(self, context: AuditContext) -> list[Finding]:
        """An error for unequal lengths where positions correspond one by one, with the tokens."""
        pairs = context.tokenized or []
        if corruption_of(context.study).alignment != "equal":
            return self.ok("Prompts are aligned at both ends, so they may differ in length.")
        unequal = [pair for pair in pairs if len(pair.clean) != len(pair.corrupted)]
        if not unequal:
            return self.ok(f"In all {count(len(pairs), 'pair')} both prompts have the same number of tokens.")
        return [
            self.finding(
                "error",
                f"In {count(len(unequal), 'pair')} the two prompts differ in their number of tokens, so the same "
                "position is not the same place. Choose words of equally many tokens.",
                listed(
                    f"{pair.pair.id}: {len(pair.clean)} against {len(pair.corrupted)} tokens, "
                    f"{tokens(pair.clean.texts)} and {tokens(pair.corrupted.texts)}"
                    for pair in unequal
                ),
            )
        ]


COMPONENT = Lengths
