"""Corrupted prompts for facts that come without: the same sentence about another subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engramscope.pairs.pair import Pair, PairSet
from engramscope.pairs.roles import SUBJECT
from engramscope.pairs.tokenize import tokenize_pairs
from engramscope.pairs.tokenized import TokenizedPair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PairedUp:
    """Facts with partners.

    Attributes:
        pairs: the facts that found a partner, in their order.
        left_out: id -> why, for all others.
    """

    pairs: PairSet
    left_out: Mapping[str, str]


def pair_up(facts: PairSet, tokenizer: PreTrainedTokenizerBase) -> PairedUp:
    """Give every fact another fact of the same template as its corrupted prompt.

    The partner is the next fact, in the order of the set and around its end, whose prompt is the same but for the
    subject, has as many tokens with the subject at the same ones, and has another answer. Answers of more than one
    token are left out. The partner's answer becomes the incorrect one. Nothing is drawn at random.

    Args:
        facts: pairs with a span `subject`; `corrupted` and `incorrect` are replaced.
        tokenizer: a fast tokenizer.

    Raises:
        PairsError: the prompts cannot be tokenised.

    Source: PairedFacts of Zhang & Nanda 2309.16042, section 2 (prompts of equal length from one relation, single-token
        answers).
    Deviation: a fact may be the partner of more than one other; pairs that share a prompt share their `group`, if
    facts of
        one template do.
    """
    plain = [replace(fact, corrupted=None, corrupted_spans={}, incorrect=()) for fact in facts]
    tokens = tokenize_pairs(plain, tokenizer)
    buckets: dict[tuple[object, ...], list[TokenizedPair]] = {}
    left_out: dict[str, str] = {}
    for one in tokens:
        problem = _problem(one)
        if problem:
            left_out[one.pair.id] = problem
        else:
            buckets.setdefault(_key(one), []).append(one)
    found: dict[str, Pair] = {}
    for bucket in buckets.values():
        for index, one in enumerate(bucket):
            partner = _partner(one, bucket[index + 1 :] + bucket[:index])
            if partner is None:
                left_out[one.pair.id] = "no other fact with this template, token length and another answer"
            else:
                found[one.pair.id] = _with(one.pair, partner.pair)
    return PairedUp(PairSet(tuple(found[fact.id] for fact in facts if fact.id in found), facts.name), left_out)


def _problem(one: TokenizedPair) -> str | None:
    if SUBJECT not in one.clean.spans:
        return "no span named 'subject'"
    if any(len(answer) != 1 for answer in one.correct):
        return f"an answer of more than one token: {', '.join(map(repr, one.pair.correct))}"
    return None


def _key(one: TokenizedPair) -> tuple[object, ...]:
    start, end = one.pair.spans[SUBJECT]
    text = one.pair.clean
    return text[:start], text[end:], len(one.clean), one.clean.spans[SUBJECT]


def _partner(one: TokenizedPair, others: Sequence[TokenizedPair]) -> TokenizedPair | None:
    return next(
        (other for other in others if not set(other.correct) & set(one.correct) and other.clean.ids != one.clean.ids),
        None,
    )


def _with(fact: Pair, partner: Pair) -> Pair:
    return replace(fact, corrupted=partner.clean, incorrect=partner.correct, corrupted_spans=dict(partner.spans))
