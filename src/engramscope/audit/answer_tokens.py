"""A metric on one token scores only the beginning of a longer answer."""

from __future__ import annotations

from typing import ClassVar

from engramscope.audit._base import AuditContext, Check, Finding, Needs
from engramscope.audit._facts import metrics_of, token_texts
from engramscope.audit._show import count, listed, named, tokens
from engramscope.pairs.tokenized import TokenizedPair


class AnswerTokens(Check):
    """Compares the answers with what the metrics can score."""

    needs: ClassVar[Needs] = "tokens"
    title: ClassVar[str] = "Answers in tokens"

    def run(self, context: AuditContext) -> list[Finding]:
        """Errors for missing incorrect answers, and for answers of several tokens under a single-token metric."""
        pairs = context.tokenized or []
        metrics = metrics_of(context.study)
        single = [name for name, metric in metrics.items() if metric.single_token]
        against = [name for name, metric in metrics.items() if metric.needs_incorrect]
        lacking = [pair.pair.id for pair in pairs if not pair.incorrect]
        findings = []
        if against and lacking:
            findings.append(
                self.finding(
                    "error",
                    f"{named(against)} compares with an incorrect answer, but "
                    f"{count(len(lacking), 'pair has', 'pairs have')} none. Give incorrect answers, or another metric.",
                    listed(lacking),
                )
            )
        both = any(metrics[name].needs_incorrect for name in single)
        long = [(pair, answer) for pair in pairs for answer in _scored(pair, both) if len(answer) > 1]
        if single and long:
            findings.append(
                self.finding(
                    "error",
                    f"{named(single)} scores a single token, but "
                    f"{count(len({pair.pair.id for pair, _ in long}), 'pair has', 'pairs have')} answers of several "
                    "tokens. Use answer_log_prob for whole answers, or answers of one token; a missing leading space "
                    "often splits a word.",
                    listed(f"{pair.pair.id}: {tokens(token_texts(context, answer))}" for pair, answer in long),
                )
            )
        return findings or self.ok(f"The answers of all {count(len(pairs), 'pair')} can be scored by {named(metrics)}.")


def _scored(pair: TokenizedPair, both: bool) -> tuple[tuple[int, ...], ...]:
    return (*pair.correct, *(pair.incorrect if both else ()))


COMPONENT = AnswerTokens
