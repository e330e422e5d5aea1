"""A corrupted prompt that still holds the correct answer corrupts little."""

from __future__ import annotations

from typing import ClassVar

from engramscope.audit._base import AuditContext, Check, Finding, Needs
from engramscope.audit._facts import corruption_of, holds_word
from engramscope.audit._show import count, listed, quoted


class CorruptedKeepsAnswer(Check):
    """Looks for the correct answer, as a whole word, in the corrupted prompt."""

    needs: ClassVar[Needs] = "pairs"
    title: ClassVar[str] = "Answer inside the corrupted prompt"

    def run(self, context: AuditContext) -> list[Finding]:
        """A warning where only the corrupted prompt holds it, a note where both do (tasks about copying)."""
        if not corruption_of(context.study).needs_corrupted:
            return self.ok(f"The corruption {context.study.corruption.method!r} uses no corrupted prompt of the pairs.")
        kept = [
            (pair, answer)
            for pair in context.pairs
            for answer in pair.correct
            if pair.corrupted is not None and holds_word(pair.corrupted, answer)
        ]
        both = [(pair, answer) for pair, answer in kept if holds_word(pair.clean, answer)]
        only = [(pair, answer) for pair, answer in kept if not holds_word(pair.clean, answer)]
        findings = []
        if only:
            pairs = len({pair.id for pair, _ in only})
            findings.append(
                self.finding(
                    "warning",
                    "The corrupted prompt holds the correct answer, and the clean prompt does not, in "
                    f"{count(pairs, 'pair')}: the corruption tells the model what it should take away.",
                    listed(f"{pair.id}: {quoted(answer)} in {quoted(pair.corrupted or '')}" for pair, answer in only),
                )
            )
        if both:
            pairs = len({pair.id for pair, _ in both})
            findings.append(
                self.finding(
                    "note",
                    f"Both prompts hold the correct answer in {count(pairs, 'pair')}: the corruption changes which "
                    "answer is right, not whether it can be copied.",
                    listed(f"{pair.id}: {quoted(answer)}" for pair, answer in both),
                )
            )
        return findings or self.ok("No corrupted prompt holds the correct answer.")


COMPONENT = CorruptedKeepsAnswer
