"""An answer that stands in the prompt can be copied: what is found may be copying, not knowledge."""

from __future__ import annotations

from typing import ClassVar

from engramscope.audit._base import AuditContext, Check, Finding, Needs
from engramscope.audit._facts import holds_word
from engramscope.audit._show import count, listed, percent, quoted


class AnswerInPrompt(Check):
    """Looks for the correct answer, as a whole word, in the clean prompt."""

    needs: ClassVar[Needs] = "pairs"
    title: ClassVar[str] = "Answer inside the prompt"

    def run(self, context: AuditContext) -> list[Finding]:
        """A warning that lists such pairs; under the corruption `answer` a note, because there it is the design."""
        found = [(pair, answer) for pair in context.pairs for answer in pair.correct if holds_word(pair.clean, answer)]
        pairs = len({pair.id for pair, _ in found})
        n = len(context.pairs)
        findings: list[Finding] = []
        if context.study.corruption.method == "answer":
            findings.append(
                self.finding(
                    "note",
                    "By design each prompt ends with an answer (question ⊕ answer), and that answer's tokens are "
                    "scored: what is found is how the model carries an answer that it was given, not where it looks "
                    "one up.",
                )
            )
        if pairs:
            findings.append(
                self.finding(
                    "warning",
                    f"The correct answer stands in the clean prompt in {pairs} of {count(n, 'pair')} "
                    f"({percent(pairs / n)}). The model may copy it, and the map then shows copying; that is meant in "
                    "tasks about copying only.",
                    listed(f"{pair.id}: {quoted(answer)} in {quoted(pair.clean)}" for pair, answer in found),
                )
            )
        return findings or self.ok(f"No correct answer stands in its clean prompt ({count(n, 'pair')}).")


COMPONENT = AnswerInPrompt
