"""Two equal prompts have nothing to tell apart."""

from __future__ import annotations

from typing import ClassVar

from engramscope.audit._base import AuditContext, Check, Finding, Needs
from engramscope.audit._facts import corruption_of
from engramscope.audit._show import count, listed, quoted


class IdenticalPrompts(Check):
    """Compares the clean and the corrupted prompt of each pair, as text and in tokens."""

    needs: ClassVar[Needs] = "pairs"
    title: ClassVar[str] = "Identical prompts"

    def run(self, context: AuditContext) -> list[Finding]:
        """An error if clean and corrupted are the same under a corruption of tokens."""
        how = corruption_of(context.study)
        if how.level != "tokens":
            return self.ok(f"The corruption {context.study.corruption.method!r} changes no token.")
        same = {pair.id: pair.clean for pair in context.pairs if how.needs_corrupted and pair.clean == pair.corrupted}
        for pair in context.tokenized or ():
            if pair.clean.ids == pair.corrupted.ids:
                same.setdefault(pair.pair.id, pair.pair.clean)
        if not same:
            return self.ok("The two prompts of every pair differ.")
        return [
            self.finding(
                "error",
                f"In {count(len(same), 'pair')} the clean and the corrupted prompt are the same, so nothing was "
                "corrupted and there is no gap to restore. Change the corrupted prompt, or drop the pair.",
                listed(f"{name}: {quoted(text)}" for name, text in same.items()),
            )
        ]


COMPONENT = IdenticalPrompts
