"""Answers that begin with the same token cannot be told apart by it."""

from __future__ import annotations

from typing import ClassVar

from engramscope.audit._base import AuditContext, Check, Finding, Needs
from engramscope.audit._facts import metrics_of, token_texts
from engramscope.audit._show import count, listed, named, tokens
from engramscope.pairs.tokenized import TokenizedPair


class SharedFirstToken(Check):
    """Compares the first tokens of the correct and the incorrect answers."""

    needs: ClassVar[Needs] = "tokens"
    title: ClassVar[str] = "Answers that begin alike"

    def run(self, context: AuditContext) -> list[Finding]:
        """An error under metrics on one token, a warning under metrics on all tokens of an answer, else a note."""
        pairs = context.tokenized or []
        shared = [(pair, token) for pair in pairs if (token := _shared(pair)) is not None]
        if not shared:
            return self.ok("Correct and incorrect answers begin with different tokens in every pair.")
        metrics = metrics_of(context.study)
        blind = [name for name, metric in metrics.items() if metric.single_token]
        bags = [name for name, metric in metrics.items() if metric.needs_incorrect and not metric.single_token]
        items = listed(
            f"{pair.pair.id}: {tokens(token_texts(context, pair.correct[0]))} and "
            f"{tokens(token_texts(context, pair.incorrect[0]))} share {tokens(token_texts(context, (token,)))}"
            for pair, token in shared
        )
        told = f"In {count(len(shared), 'pair')} a correct and an incorrect answer begin with the same token"
        if blind:
            return [
                self.finding(
                    "error",
                    f"{told}, which {named(blind)} cannot tell apart: a difference between the two is 0 whatever the "
                    "model does. Choose other answers, or score whole answers with answer_log_prob.",
                    items,
                )
            ]
        if bags:
            message = f"{told}; it counts on both sides of {named(bags)} and says nothing about which is right."
            return [self.finding("warning", message, items)]
        return [self.finding("note", f"{told}. The metrics of this study do not compare first tokens.", items)]


def _shared(pair: TokenizedPair) -> int | None:
    first = {answer[0] for answer in pair.correct if answer}
    return next((answer[0] for answer in pair.incorrect if answer and answer[0] in first), None)


COMPONENT = SharedFirstToken
