"""The abbreviations of a corpus, with what its documents agree that they stand for."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from engramscope.questions.abbreviations import definitions
from engramscope.questions.text import Document, Progress, stems, told

#: sentences that are kept as evidence
EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Example:
    """A sentence that supports something.

    Attributes:
        pmid: of its document.
        sentence: the text.
    """

    pmid: str
    sentence: str


@dataclass(frozen=True)
class Concept:
    """An abbreviation and its long form.

    Attributes:
        short: the abbreviation in its most frequent spelling ("AED" and "AEDs" are one).
        long: the long form in its most frequent spelling, one from inside a sentence where there is one.
        spellings: every spelling of the long form that was found.
        documents: how many documents define the abbreviation like this.
        agreement: their share of all documents that define it, in (0, 1].
        examples: sentences with the definition, each of another document, at most `EXAMPLES`.
    """

    short: str
    long: str
    spellings: tuple[str, ...]
    documents: int
    agreement: float
    examples: tuple[Example, ...]


@dataclass
class _Sense:
    """One meaning of one abbreviation while it is being counted."""

    documents: set[int] = field(default_factory=set)
    shorts: Counter[str] = field(default_factory=Counter)
    longs: Counter[tuple[str, str]] = field(default_factory=Counter)
    opening: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: list[Example] = field(default_factory=list)


def read_glossary(documents: Sequence[Document], progress: Progress | None = None) -> list[Concept]:
    """Every abbreviation that the documents define, with the meaning that most of them give it.

    Two long forms are the same when they are equal without case, hyphens, spaces and English plurals. A document counts
    once for each meaning that it gives. Abbreviations without a capital letter ("e.g.") are left out.

    Returns:
        One concept per abbreviation, those of most documents first.
    """
    senses: dict[str, dict[str, _Sense]] = defaultdict(lambda: defaultdict(_Sense))
    for number, document in enumerate(told(iter(documents), len(documents), "abbreviations", progress)):
        for sentence in document.sentences:
            if "(" in sentence:
                _count(senses, number, document.pmid, sentence)
    found = [_concept(by_meaning) for by_meaning in senses.values()]
    return sorted(found, key=lambda concept: (-concept.documents, concept.short, concept.long))


def meaning(long: str) -> str:
    """What two spellings of a long form have in common: its stems, run together."""
    return "".join(stems(long))


def singular(short: str) -> str:
    """An abbreviation without the "s" of its plural: "AEDs" is "AED", "iPSCs" "iPSC"; "LoS" and "ms" stay."""
    return short[:-1] if len(short) > 2 and short.endswith("s") and short[-2].isupper() else short


def _count(senses: dict[str, dict[str, _Sense]], number: int, pmid: str, sentence: str) -> None:
    for one in definitions(sentence):
        long = one.long.strip(" \"'“”‘’.,;:")
        if not any(character.isupper() for character in one.short) or not long[:1].isalnum():
            continue
        sense = senses[singular(one.short)][meaning(long)]
        if number not in sense.documents and len(sense.examples) < EXAMPLES:
            sense.examples.append(Example(pmid, sentence))
        sense.documents.add(number)
        sense.shorts[one.short] += 1
        # a capital at the beginning of a sentence, or after "METHODS:", is not part of the term
        begins = sentence.startswith(long) or f": {long}" in sentence
        (sense.opening if begins else sense.longs)[one.short, long] += 1


def _concept(by_meaning: dict[str, _Sense]) -> Concept:
    _, best = max(by_meaning.items(), key=lambda item: (len(item[1].documents), item[0]))
    every = set().union(*(sense.documents for sense in by_meaning.values()))
    short = _most_frequent(best.shorts)
    # the long form as it stands beside this spelling of the abbreviation: one plural needs the other
    beside = Counter({long: times for (own, long), times in best.longs.items() if own == short})
    beside = beside or Counter({_inside(long): times for (own, long), times in best.opening.items() if own == short})
    spellings = {long for _, long in (*best.longs, *best.opening)}
    return Concept(
        short=short,
        long=_most_frequent(beside),
        spellings=tuple(sorted(spellings)),
        documents=len(best.documents),
        agreement=len(best.documents) / len(every),
        examples=tuple(best.examples),
    )


def _inside(opening: str) -> str:
    # a single word is hardly ever a name; of several, the first may be: "Angelman syndrome"
    return opening.lower() if opening.istitle() and opening.isalpha() else opening


def _most_frequent(counts: Counter[str]) -> str:
    return min(counts, key=lambda text: (-counts[text], text))
