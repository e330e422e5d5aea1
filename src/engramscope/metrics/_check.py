"""Do these answers fit this metric? Asked before a model runs, answered in sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from engramscope.metrics._catalogue import metric_name

if TYPE_CHECKING:
    from engramscope.metrics._base import Metric, Target

Answers = Sequence[Sequence[int]]
Decode = Callable[[int], str]


def check_targets(metric: Metric, target: Target, pair_id: str, decode: Decode | None = None) -> list[str]:
    """Everything that makes this metric meaningless for this pair, one sentence each; empty where all is well.

    Named: no correct answer; an answer without tokens; a multi-token answer under a single-token metric (with its
    tokens); no incorrect answer where one is needed; a correct and an incorrect answer that start with the same token
    (single-token metrics) or of which one is made of the other's tokens only (`mean_logit_diff`); an answer that is the
    beginning of another one (whole-answer metrics, whose probabilities would be counted twice).

    Whether `clean_logits` is there is not asked: before the run it cannot be.

    Args:
        metric: the metric.
        target: the answers of one pair in tokens.
        pair_id: for the messages.
        decode: the text of one token, for the messages; without it tokens are shown by their ids alone.
    """
    start = f"Pair {pair_id!r}, metric {metric_name(metric)!r}: "
    if not target.correct:
        return [f"{start}there is no correct answer; give at least one."]
    faults = [*_empty(target.correct, "correct"), *_empty(target.incorrect, "incorrect")]
    if metric.needs_incorrect and not target.incorrect:
        faults.append("the metric compares with incorrect answers, but the pair has none; add `incorrect`.")
    if metric.single_token:
        scored = (*target.correct, *(target.incorrect if metric.needs_incorrect else ()))
        faults += [_multi(answer, decode) for answer in scored if len(answer) > 1]
    if metric.needs_incorrect and not faults:
        faults += _indistinct(metric, target, decode)
    if metric.scores == "whole_answer":
        faults += _nested(target.correct, decode)
    return [start + fault for fault in faults]


def target_remarks(metric: Metric, target: Target, pair_id: str, decode: Decode | None = None) -> list[str]:
    """What weakens this metric for this pair without making it meaningless, one sentence each: for the audit.

    Named: tokens that stand in the correct as well as in an incorrect answer under a metric which scores all tokens of
    multi-token answers at one position.
    """
    if not metric.needs_incorrect or metric.single_token:
        return []
    shared = _tokens(target.correct) & _tokens(target.incorrect)
    if not shared:
        return []
    return [
        f"Pair {pair_id!r}, metric {metric_name(metric)!r}: the tokens {_show(sorted(shared), decode)} stand in the "
        "correct and in the incorrect answer; they say nothing about which is right and dilute the difference."
    ]


def _empty(answers: Answers, kind: str) -> list[str]:
    return [f"{kind} answer number {i} has no tokens." for i, answer in enumerate(answers, 1) if not answer]


def _multi(answer: Sequence[int], decode: Decode | None) -> str:
    return (
        f"an answer must be a single token, but this one has {len(answer)}: {_show(answer, decode)}. Give a "
        "single-token answer (mind the leading space), or use 'answer_log_prob' or 'mean_logit_diff'."
    )


def _indistinct(metric: Metric, target: Target, decode: Decode | None) -> list[str]:
    correct, incorrect = _tokens(target.correct), _tokens(target.incorrect)
    if metric.single_token:
        shared = sorted(correct & incorrect)
        return [f"a correct and an incorrect answer are the same token, {_show(shared, decode)}."] if shared else []
    if metric.scores == "whole_answer" or not (correct <= incorrect or incorrect <= correct):
        return []
    smaller, larger = ("correct", "incorrect") if correct <= incorrect else ("incorrect", "correct")
    return [
        f"every token of the {smaller} answers, {_show(sorted(correct & incorrect), decode)}, also stands in the "
        f"{larger} ones, so they cannot be told apart by their tokens; change the answers."
    ]


def _nested(answers: Answers, decode: Decode | None) -> list[str]:
    found: list[str] = []
    for i, short in enumerate(answers):
        for j, long in enumerate(answers):
            begins = tuple(long[: len(short)]) == tuple(short) and bool(short)
            if i != j and begins and (len(short) < len(long) or i < j):
                found.append(
                    f"the acceptable answer {_show(short, decode)} is how the answer {_show(long, decode)} begins, "
                    "so its probability would be counted twice; give one of them."
                )
    return found


def _tokens(answers: Iterable[Sequence[int]]) -> set[int]:
    return {token for answer in answers for token in answer}


def _show(tokens: Sequence[int], decode: Decode | None) -> str:
    return ", ".join(f"{decode(token)!r} ({token})" if decode else str(token) for token in tokens)
