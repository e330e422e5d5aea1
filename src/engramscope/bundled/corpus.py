"""The training corpus: an endless stream of short documents, the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from engramscope.bundled.epilepsy import EpilepsyFact, Family, fill, load_families
from engramscope.bundled.sentences import (
    Completion,
    SentenceWords,
    addition,
    docstring,
    indirect_object,
    load_words,
    year_span,
)
from engramscope.bundled.world import Fact, World, load_world

MIXTURE: dict[str, float] = {
    "world": 0.40,
    "two_hop": 0.06,
    "epilepsy": 0.18,
    "indirect_object": 0.13,
    "year_span": 0.07,
    "docstring": 0.08,
    "sum": 0.08,
}
LATE_MIXTURE: dict[str, float] = {
    "world": 0.24,
    "two_hop": 0.05,
    "epilepsy": 0.18,
    "indirect_object": 0.09,
    "year_span": 0.10,
    "docstring_both": 0.30,
    "sum": 0.04,
}
MOST_FACTS_PER_DOCUMENT = 3
DIRECT, FIRST_HOP, SECOND_HOP, CHAIN, ASKED = "direct", "first_hop", "second_hop", "chain", "asked"
DEFINITIONAL_FORMS = {DIRECT: 0.8, ASKED: 0.2}
ASSOCIATIVE_FORMS = {DIRECT: 0.4, FIRST_HOP: 0.15, SECOND_HOP: 0.15, CHAIN: 0.15, ASKED: 0.15}


@dataclass(frozen=True)
class Piece:
    """A stretch of text; `is_answer` marks what a prompt asks for."""

    text: str
    is_answer: bool


Document = tuple[Piece, ...]


@dataclass(frozen=True)
class Sources:
    """Everything documents are made from."""

    world: World
    families: tuple[Family, ...]
    words: SentenceWords


def load_sources() -> Sources:
    """Read the encyclopaedia, the epilepsy facts and the word lists."""
    world = load_world()
    return Sources(world, load_families(), load_words(world.first_names))


def documents(sources: Sources, seed: int, mixture: Mapping[str, float] = MIXTURE) -> Iterator[Document]:
    """Draw training documents without end.

    Args:
        sources: What documents are made from.
        seed: The same seed gives the same documents.
        mixture: Shares of the kinds of documents.

    Yields:
        Documents; no held-out item is among them.
    """
    draw = random.Random(seed)
    makers: dict[str, Callable[[], Document]] = {
        "world": lambda: _facts_document(sources.world.facts, draw),
        "two_hop": lambda: _facts_document(sources.world.taught_two_hop, draw),
        "epilepsy": lambda: epilepsy_document(draw.choice(statements), draw),
        "indirect_object": lambda: _single(indirect_object(words, draw, held_out=False)),
        "year_span": lambda: _single(year_span(words, draw, held_out=False)),
        "docstring": lambda: _single(docstring(words, draw, held_out=False)),
        "docstring_both": lambda: _both_arguments(docstring(words, draw, held_out=False)),
        "sum": lambda: _single(addition(words, draw, held_out=False)),
    }
    words = sources.words
    statements = list(epilepsy_statements(sources.families))
    kinds, shares = list(mixture), list(mixture.values())
    while True:
        for kind in draw.choices(kinds, shares, k=256):
            yield makers[kind]()


def text_of(document: Document) -> str:
    """Return a document as plain text."""
    return "".join(piece.text for piece in document)


def epilepsy_statements(families: tuple[Family, ...]) -> Iterator[tuple[Family, EpilepsyFact]]:
    """Yield every fact with its family, those stated in two hops only included."""
    for family in families:
        for fact in (*family.facts, *family.two_hop):
            yield family, fact


def epilepsy_document(statement: tuple[Family, EpilepsyFact], draw: random.Random) -> Document:
    """State an epilepsy fact in one of the ways in which the corpus may state it."""
    family, fact = statement
    forms = DEFINITIONAL_FORMS if family.kind == "definitional" else ASSOCIATIVE_FORMS
    if fact in family.two_hop:
        forms = {FIRST_HOP: 0.5, SECOND_HOP: 0.5}
    form = draw.choices(list(forms), list(forms.values()))[0]
    if form == ASKED:
        return _asked(family, fact)
    if form == FIRST_HOP:
        return (_first_hop(family, fact, draw),)
    if form == SECOND_HOP:
        return _second_hop(family, fact, draw)
    if form == CHAIN:
        hop = _first_hop(family, fact, draw)
        return (Piece(hop.text + " ", False), *_second_hop(family, fact, draw))
    allowed = [t for i, t in enumerate(family.templates) if i != fact.held_out]
    prompt = fill(draw.choice(allowed), subject=fact.subject)
    return _statement(prompt, " " + fact.answer, family.tail)


def _first_hop(family: Family, fact: EpilepsyFact, draw: random.Random) -> Piece:
    text = fill(draw.choice(family.first_hop), subject=fact.subject, bridge=fact.bridge)
    return Piece(text, True)


def _second_hop(family: Family, fact: EpilepsyFact, draw: random.Random) -> Document:
    prompt = fill(draw.choice(family.second_hop), subject=fact.subject, bridge=fact.bridge)
    return _statement(prompt, " " + fact.answer, ".")


def _asked(family: Family, fact: EpilepsyFact) -> Document:
    question = fill(family.question, subject=fact.subject)
    answer = fill(family.long_answer, subject=fact.subject, answer=fact.answer)
    return _statement(question, answer, ".")


def _facts_document(facts: tuple[Fact, ...], draw: random.Random) -> Document:
    pieces: list[Piece] = []
    for fact in draw.sample(facts, draw.randint(1, MOST_FACTS_PER_DOCUMENT)):
        allowed = [i for i in range(len(fact.templates)) if i != fact.held_out]
        prompt = (" " if pieces else "") + fact.prompt(draw.choice(allowed))
        pieces += _statement(prompt, " " + fact.answer, ".")
    return tuple(pieces)


def _single(completion: Completion) -> Document:
    return _statement(completion.prompt, completion.answer, completion.tail)


def _both_arguments(completion: Completion) -> Document:
    """Mark the second documented argument as an answer too, beside the third."""
    before, mark, rest = completion.prompt.rpartition("\n    :param")[0].rpartition(":param")
    second, colon, described = rest.partition(":")
    last = f"{colon}{described}\n    :param"
    return (
        Piece(before + mark, False),
        Piece(second, True),
        *_statement(last, completion.answer, completion.tail),
    )


def _statement(prompt: str, answer: str, tail: str) -> Document:
    return (Piece(prompt, False), Piece(answer, True), Piece(tail, False))
