"""Terms of a corpus: which there are, and which sentences mention them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from scipy.sparse import csr_array

from engramscope.errors import InputError
from engramscope.questions.glossary import Concept, meaning, singular
from engramscope.questions.kinds import GENE_CUES, KINDS, kind_of, looks_like_gene
from engramscope.questions.text import Document, Progress, stem, stems, told, words
from engramscope.registry import nearest

#: abbreviations of fewer characters mean too many things to count as a mention of their long form
_SHORTEST_SYMBOL = 3
#: words of fewer letters are not told by their ending
_SHORTEST_WORD = 6


@dataclass(frozen=True, slots=True)
class Term:
    """Something that questions can be about.

    Attributes:
        name: as questions write it.
        kind: a name in `KINDS`, or "" where no rule applies.
        symbols: spellings that count as a mention in exactly this case (abbreviations, gene symbols).
        phrases: spellings that count whatever their case, their hyphens and their plural.
        wanted: the user named it.
    """

    name: str
    kind: str
    symbols: tuple[str, ...] = ()
    phrases: tuple[str, ...] = ()
    wanted: bool = False


@dataclass(frozen=True, slots=True)
class WantedTerm:
    """A key term as the user gave it: `name`, and `kind` where it was written before it ("drug:valproic acid")."""

    name: str
    kind: str = ""


@dataclass(frozen=True)
class Mentions:
    """Who mentions what.

    Attributes:
        terms: the terms [n_terms].
        sentences: 1 where a sentence mentions a term [n_sentences, n_terms].
        document: the document of every sentence [n_sentences].
        documents: how many documents there are.
    """

    terms: tuple[Term, ...]
    sentences: csr_array
    document: np.ndarray
    documents: int


def read_wanted(given: Iterable[str]) -> tuple[WantedTerm, ...]:
    """The user's key terms.

    Raises:
        InputError: a term is empty, or names a kind that there is not; all of them at once.
    """
    found, faults = [], []
    for text in given:
        before, colon, after = text.partition(":")
        kind, name = (before.strip(), after.strip()) if colon else ("", text.strip())
        if not words(name):
            faults.append(f"The key term {text!r} holds no word; give terms with commas between them.")
        elif kind and kind not in KINDS:
            faults.append(f"The key term {text!r} names the kind {kind!r}{nearest(kind, tuple(KINDS))}")
        else:
            found.append(WantedTerm(name, kind))
    if faults:
        raise InputError(faults)
    return tuple(dict.fromkeys(found))


def collect_terms(
    documents: Sequence[Document], concepts: Sequence[Concept], wanted: Sequence[WantedTerm], least: int
) -> list[Term]:
    """Everything that could be in a question: key terms, long forms, and words of the corpus with the form of a kind.

    Args:
        documents: the corpus.
        concepts: abbreviations whose meaning is clear.
        wanted: the user's key terms; they give their name to a long form that they stand for.
        least: in how many documents a word must be called a gene, or occur at all, to be found by its form.
    """
    genes, formed = _words_of_a_kind(documents, least)
    found: list[Term] = []
    by_name = {name: one for one in concepts for name in (one.short, singular(one.short), meaning(one.long))}
    for term in wanted:
        concept = by_name.get(term.name) or by_name.get(meaning(term.name))
        found.append(_term(term.name, concept, term.kind or ("gene" if term.name in genes else ""), wanted=True))
    for one in concepts:
        called = one.short in genes and kind_of(one.long) != "disorder"
        found.append(_term(one.short if called else one.long, one, "gene" if called else ""))
    found += [Term(word, "gene", symbols=(word,)) for word in genes]
    found += [Term(word, kind_of(word), phrases=(word,)) for word in formed]
    return _merged(found)


def find_mentions(documents: Sequence[Document], terms: Sequence[Term], progress: Progress | None = None) -> Mentions:
    """Which sentence mentions which terms.

    From left to right the longest spelling that fits is a mention, and its words belong to no other: where "temporal
    lobe epilepsy" stands, "epilepsy" is not mentioned. A term counts once per sentence.
    """
    finder = _Finder(terms)
    rows, columns, document = [], [], []
    for number, one in enumerate(told(iter(documents), len(documents), "mentions", progress)):
        for sentence in one.sentences:
            found = finder.terms_in(sentence)
            rows.extend([len(document)] * len(found))
            columns.extend(found)
            document.append(number)
    shape = (len(document), len(terms))
    table = csr_array((np.ones(len(rows), dtype=np.int64), (rows, columns)), shape=shape)
    return Mentions(tuple(terms), table, np.array(document, dtype=np.int64), len(documents))


class _Finder:
    """Finds the spellings of all terms in one pass over a sentence's words."""

    def __init__(self, terms: Sequence[Term]) -> None:
        self._symbols: dict[str, list[tuple[tuple[str, ...], int]]] = defaultdict(list)
        self._phrases: dict[str, list[tuple[tuple[str, ...], int]]] = defaultdict(list)
        for number, term in enumerate(terms):
            for key in {tuple(words(text)) for text in term.symbols}:
                self._symbols[key[0]].append((key, number))
            for key in {stems(text) for text in term.phrases}:
                self._phrases[key[0]].append((key, number))

    def terms_in(self, sentence: str) -> list[int]:
        """Numbers of the terms that a sentence mentions, ascending."""
        plain = tuple(words(sentence))
        stemmed = tuple(stem(word) for word in plain)
        found: set[int] = set()
        at = 0
        while at < len(plain):
            length, term = max(
                (
                    _longest(self._symbols.get(plain[at]), plain, at),
                    _longest(self._phrases.get(stemmed[at]), stemmed, at),
                )
            )
            if length:
                found.add(term)
            at += max(length, 1)
        return sorted(found)


def _longest(candidates: list[tuple[tuple[str, ...], int]] | None, text: tuple[str, ...], at: int) -> tuple[int, int]:
    """(words, term) of the longest candidate that stands at a place; (0, 0) for none."""
    if not candidates:
        return 0, 0
    return max(((len(key), term) for key, term in candidates if text[at : at + len(key)] == key), default=(0, 0))


def _term(name: str, concept: Concept | None, kind: str, *, wanted: bool = False) -> Term:
    if concept is None:
        # a key term in capitals is an abbreviation: "SE" is not "se"
        exact = name.isupper() or kind == "gene"
        return Term(name, kind or kind_of(name), (name,) if exact else (), () if exact else (name,), wanted)
    shorts = {concept.short, singular(concept.short)}
    symbols = tuple(sorted(short for short in shorts if wanted or len(short) >= _SHORTEST_SYMBOL))
    return Term(name, kind or kind_of(concept.long), symbols, concept.spellings, wanted)


def _merged(terms: Sequence[Term]) -> list[Term]:
    """Terms that share a spelling as one, which has the name and kind of the first and every spelling of all."""
    kept: list[Term] = []
    place: dict[str, int] = {}
    for one in terms:
        keys = [*one.symbols, *map(meaning, one.phrases)]
        at = next((place[key] for key in keys if key in place), len(kept))
        if at == len(kept):
            kept.append(one)
        else:
            symbols, phrases = ({*getattr(kept[at], name), *getattr(one, name)} for name in ("symbols", "phrases"))
            kept[at] = replace(kept[at], symbols=tuple(sorted(symbols)), phrases=tuple(sorted(phrases)))
        for key in keys:
            place.setdefault(key, at)
    return kept


def _words_of_a_kind(documents: Sequence[Document], least: int) -> tuple[list[str], list[str]]:
    """Gene symbols that enough documents call a gene, and other words that have the ending of a kind."""
    called: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for document in documents:
        cued: set[str] = set()
        plain: set[str] = set()
        for sentence in document.sentences:
            every = words(sentence)
            plain.update(every)
            cued.update(_cued(every))
        called.update(cued)
        seen.update({word.casefold() for word in plain})
    genes = sorted(word for word, times in called.items() if times >= least)
    formed = sorted(word for word, times in seen.items() if times >= least and _has_form(word))
    return genes, formed


def _cued(every: Sequence[str]) -> Iterator[str]:
    for word, following in pairwise(every):
        if looks_like_gene(word) and stem(following) in GENE_CUES:
            yield word


def _has_form(word: str) -> bool:
    # a head word on its own ("syndrome", "cortex") says of what kind it is, and names nothing; a medicine is a name
    kind = KINDS.get(kind_of(word))
    if kind is None or len(word) < _SHORTEST_WORD:
        return False
    named = kind is KINDS["drug"] and word in kind.heads
    return named or (word.endswith(kind.endings) and stem(word) == word)
