"""Facts in the tokens of a model, and two facts of one form as each other's corruption."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from engramscope.errors import PairsError
from engramscope.pairs.pair import CharSpan, Pair
from engramscope.pairs.roles import SUBJECT
from engramscope.pairs.tokenize import tokenize_pair
from engramscope.pairs.tokenized import TokenizedPair
from engramscope.questions.facts import Fact
from engramscope.questions.text import stem, stems, words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Form = Literal["prompts", "answers"]
FORMS: tuple[Form, ...] = ("prompts", "answers")

#: a partner is drawn among this many: the strongest that fit
_DRAWN_AMONG = 5
#: small words that a subject and an answer may both hold
_SMALL = frozenset(
    stems(
        "a an and are as at be been by for from has have in is it its not of on or per than that the to via was were "
        "with without"
    )
)


@dataclass(frozen=True)
class SizedFact:
    """A fact as the model will read it.

    Attributes:
        fact: the fact.
        prompt: what stands before the answer.
        span: the subject in it, in characters.
        answer: the whole answer with its leading space.
        scored: what is scored: the whole answer in form "answers" or if it is one token, else its first token's text.
        first: id of the answer's first token.
        tokens: number of tokens of the whole answer.
        form: what two facts of a couple share: relation, tokens of the prompt, positions of the subject in it, tokens
            of the answer, whether it begins with a capital, and whether the token that is scored alone is a whole word.
    """

    fact: Fact
    prompt: str
    span: CharSpan
    answer: str
    scored: str
    first: int
    tokens: int
    form: tuple[object, ...]


def size_facts(
    facts: Sequence[Fact], form: Form, tokenizer: PreTrainedTokenizerBase, dropped: Counter[str]
) -> list[SizedFact]:
    """The facts that can be asked of a model with this tokenizer, in their order.

    Left out and counted: a subject and an answer that share a word; text that the vocabulary cannot write, or where
    the tokens of the prompt change when the answer follows it; in form "prompts", answers of which only one letter, or
    something that is no letter at all, would be scored.

    Args:
        facts: the facts.
        form: "prompts": the statement, of whose answer the first token is scored; "answers": question and whole answer.
        tokenizer: a fast tokenizer.
        dropped: counts of what was left out, by reason; added to.
    """
    found = []
    for fact in facts:
        sized = _sized(fact, form, tokenizer)
        if isinstance(sized, SizedFact):
            found.append(sized)
        else:
            dropped[f"{fact.kind}: {sized}"] += 1
    return found


def draw_couples(
    facts: Sequence[SizedFact],
    most: int,
    fit: Callable[[Fact, Fact], bool],
    rng: np.random.Generator,
    dropped: Counter[str],
) -> list[tuple[SizedFact, SizedFact]]:
    """Facts two by two: of one relation and form, different first tokens, no word of an answer in the other's prompt.

    The strongest fact left takes a partner drawn among the strongest `_DRAWN_AMONG` of those that fit best. In
    definitional couples an answer with the same first letter fits better: the abbreviation gives that letter away, and
    then it tells nothing about which of the two is right. After that, answers of as many words fit better. No subject
    and no answer stands in two couples, so couples are about different things.

    Args:
        facts: the strongest first.
        most: couples at most.
        fit: whether two facts may be each other's corruption, beside their form.
        rng: draws the partners.
        dropped: counts of facts left over, by reason; added to.
    """
    buckets: dict[tuple[object, ...], list[SizedFact]] = defaultdict(list)
    for one in facts:
        buckets[one.form].append(one)
    used: set[str] = set()
    members: set[SizedFact] = set()
    found: list[tuple[SizedFact, SizedFact]] = []
    for one in facts:
        kind = one.fact.kind
        if one in members:
            continue
        if used & _names(one):
            dropped[f"{kind}: its subject or answer stands in another question already"] += 1
            continue
        if len(found) >= most:
            dropped[f"{kind}: more than were asked for"] += 1
            continue
        others = [
            other for other in buckets[one.form] if not used & _names(other) and _apart(one, other)
            and fit(one.fact, other.fact)
        ]  # fmt: skip
        likeness = [_likeness(one, other) for other in others]
        best = [other for other, alike in zip(others, likeness, strict=True) if alike == max(likeness)][:_DRAWN_AMONG]
        if not best:
            dropped[f"{kind}: no other of the same form and token length that could be its wrong answer"] += 1
            continue
        partner = best[int(rng.integers(len(best)))]
        used |= _names(one) | _names(partner)
        members |= {one, partner}
        found.append((one, partner))
    return found


def pairs_of(couples: Iterable[tuple[SizedFact, SizedFact]], form: Form) -> Iterator[Pair]:
    """Both orders of every couple, one after the other; their group is the two subjects."""
    for number, (first, second) in enumerate(couples, start=1):
        group = f"{first.fact.subject} | {second.fact.subject}"
        for order, (one, other) in enumerate(((first, second), (second, first))):
            yield Pair(
                id=f"{one.fact.kind}-{number:03d}-{'ab'[order]}",
                clean=one.prompt,
                corrupted=other.prompt if form == "prompts" else None,
                correct=(one.scored,),
                incorrect=(other.scored,),
                group=group,
                spans={SUBJECT: one.span},
                corrupted_spans={SUBJECT: other.span} if form == "prompts" else {},
                labels={
                    "kind": one.fact.kind,
                    "relation": one.fact.relation,
                    "answer": one.fact.answer,
                    "wrong_answer": other.fact.answer,
                },
            )


def _sized(fact: Fact, form: Form, tokenizer: PreTrainedTokenizerBase) -> SizedFact | str:
    template = fact.statement if form == "prompts" else fact.question
    prompt, start, answer = template.format(fact.subject), template.index("{}"), f" {fact.answer}"
    span = (start, start + len(fact.subject))
    if _content(fact.subject) & _content(fact.answer):
        return "the answer stands in the prompt"
    read = _tokenized(Pair("", prompt, (answer,), spans={SUBJECT: span}), tokenizer)
    if read is None:
        return "the tokenizer cannot write it"
    ids = read.correct[0]
    scored = answer if form == "answers" or len(ids) == 1 else _piece(read, ids[0], tokenizer)
    if scored is None or (form == "prompts" and not _tells(scored, prompt)):
        return "the answer's first token is a single letter, a small word or no word at all"
    # of whole answers every token counts, so where their first word ends is no matter
    whole_word = form == "answers" or len(ids) == 1 or _tokens_of_word(prompt, answer, tokenizer) == 1
    capital = fact.answer[0].isupper()
    form_key = (fact.relation, template, len(read.clean), read.clean.spans[SUBJECT], len(ids), capital, whole_word)
    return SizedFact(fact, prompt, span, answer, scored, ids[0], len(ids), form_key)


def _tokenized(pair: Pair, tokenizer: PreTrainedTokenizerBase) -> TokenizedPair | None:
    try:
        read = tokenize_pair(pair, tokenizer)
    except PairsError:
        return None
    # a note says that characters are unknown, or that tokens of the prompt and the answer merge
    return None if read.notes else read


def _piece(read: TokenizedPair, token: int, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The text that becomes this one token after the prompt; None where there is none."""
    text = f" {str(tokenizer.decode([token], clean_up_tokenization_spaces=False)).strip()}"
    alone = _tokenized(Pair("", read.pair.clean, (text,)), tokenizer)
    return text if alone is not None and alone.correct[0] == (token,) else None


def _tokens_of_word(prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase) -> int:
    read = _tokenized(Pair("", prompt, (f" {answer.split()[0]}",)), tokenizer)
    return 0 if read is None else len(read.correct[0])


def _tells(scored: str, prompt: str) -> bool:
    bare = scored.strip()
    return len(bare) > 1 and bare.isalnum() and bare.lower() not in _SMALL and bare not in words(prompt)


def _apart(one: SizedFact, other: SizedFact) -> bool:
    answers = _content(one.fact.answer) | _content(other.fact.answer)
    subjects = _content(one.fact.subject) | _content(other.fact.subject)
    return one.first != other.first and one.prompt != other.prompt and not answers & subjects


def _content(text: str) -> frozenset[str]:
    return frozenset(stem(word) for word in words(text)) - _SMALL


def _likeness(one: SizedFact, other: SizedFact) -> tuple[bool, bool]:
    answers = one.fact.answer, other.fact.answer
    initials, lengths = ({answer[0].lower() for answer in answers}, {len(answer.split()) for answer in answers})
    return one.fact.kind == "definitional" and len(initials) == 1, len(lengths) == 1


def _names(one: SizedFact) -> frozenset[str]:
    return frozenset({one.fact.subject, one.fact.answer})
