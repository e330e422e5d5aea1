"""What a corpus is about: how often terms are mentioned, its most frequent keywords or phrases, and its years.

Everything is read from the finished table, a few hundred rows at a time. Counts of keywords and phrases are exact and
need constant memory: a first pass keeps a bounded list of candidates (Misra & Gries 1982, "Finding repeated elements"),
a second counts those. Every entry more frequent than the summary's error is among the candidates, so the list of the
most frequent is complete where its last entry is above that; `Frequent.complete` says whether it is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pyarrow.parquet as pq

from engramscope.corpus.stop_words import stop_words
from engramscope.errors import InputError

Documents = Iterator[Sequence[str]]

#: candidates of a frequency count that are held at most
_CANDIDATES = 20_000
_ROWS = 512
_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
_TAG = re.compile(r"\[[^\]]*\]")
_QUERY_PART = re.compile(r'"([^"]+)"|([^\s()"]+)')
_OPERATORS = frozenset({"AND", "OR", "NOT"})


@dataclass(frozen=True)
class TermCount:
    """How often a term is mentioned in the abstracts.

    Attributes:
        term: as given.
        mentions: as a whole word (no letter or digit right before or after), whatever the case.
        documents: abstracts with at least one such mention.
        substring_mentions: anywhere, within longer words too ("seizures", "iEEG"); overlaps are not counted twice.
        substring_documents: abstracts with at least one of those.
    """

    term: str
    mentions: int
    documents: int
    substring_mentions: int
    substring_documents: int


@dataclass(frozen=True)
class Frequent:
    """The most frequent entries by documents.

    Attributes:
        kind: "keyword" (of the Keywords column) or "phrase" (words and pairs of words of the abstracts).
        entries: (entry, mentions, documents), the most frequent first.
        distinct_documents: abstracts that have any.
        complete: whether no other entry can belong into the list.
    """

    kind: str
    entries: tuple[tuple[str, int, int], ...]
    distinct_documents: int
    complete: bool


@dataclass(frozen=True)
class Analysis:
    """What the tables and figures of a corpus show.

    Attributes:
        abstracts: rows of the corpus.
        words: of all abstracts, as runs of letters and digits.
        terms: in the order given.
        frequent: keywords, or phrases where no row has a keyword.
        years: (year, rows), every year between the first and the last; rows without a year are not in it.
    """

    abstracts: int
    words: int
    terms: tuple[TermCount, ...]
    frequent: Frequent
    years: tuple[tuple[int, int], ...]


def analyse(
    table: Path, terms: Sequence[str], *, most: int = 50, progress: Callable[[int], None] | None = None
) -> Analysis:
    """Count terms, keywords and years of a corpus table.

    Args:
        table: `corpus.parquet`.
        terms: that are looked for in the abstracts.
        most: keywords or phrases that are listed.
        progress: called with the rows counted so far.
    """
    patterns = [(term_pattern(term), term_pattern(term, whole=False)) for term in terms]
    counts = [[0, 0, 0, 0] for _ in terms]
    years: Counter[int] = Counter()
    rows = words = with_keywords = 0
    for abstract, keywords, year in _cells(table):
        rows += 1
        words += sum(1 for _ in _WORD.finditer(abstract))
        with_keywords += bool(keywords)
        if year is not None:
            years[year] += 1
        for count, (whole, anywhere) in zip(counts, patterns, strict=True):
            for place, pattern in ((0, whole), (2, anywhere)):
                number = sum(1 for _ in pattern.finditer(abstract))
                count[place] += number
                count[place + 1] += number > 0
        if progress and rows % _ROWS == 0:
            progress(rows)
    kind, entries_of = ("keyword", _keywords) if with_keywords else ("phrase", _phrases)
    return Analysis(
        abstracts=rows,
        words=words,
        terms=tuple(TermCount(term, *count) for term, count in zip(terms, counts, strict=True)),
        frequent=_frequent(kind, lambda: map(entries_of, _cells(table)), most),
        years=tuple((year, years[year]) for year in range(min(years), max(years) + 1)) if years else (),
    )


def term_pattern(term: str, *, whole: bool = True) -> re.Pattern[str]:
    """A pattern that finds a term whatever its case; white space in it matches any.

    Args:
        term: a word or a phrase.
        whole: no letter or digit may stand right before or after.
    """
    body = r"\s+".join(re.escape(part) for part in term.split())
    return re.compile(rf"(?<![^\W_]){body}(?![^\W_])" if whole else body, re.IGNORECASE)


def checked_terms(terms: Iterable[str]) -> tuple[str, ...]:
    """Terms without the space around them, each once whatever its case.

    Raises:
        InputError: a term has no letter or digit.
    """
    kept: dict[str, str] = {}
    for term in (" ".join(term.split()) for term in terms):
        if not any(character.isalnum() for character in term):
            raise InputError(f"a term needs a letter or a digit; {term!r} has none.")
        kept.setdefault(term.casefold(), term)
    return tuple(kept.values())


def terms_of_query(query: str) -> tuple[str, ...]:
    """The words and quoted phrases of a PubMed query, without operators, field tags, ranges and what follows NOT."""
    terms: list[str] = []
    negated = False
    for quoted, bare in _QUERY_PART.findall(_TAG.sub(" ", query)):
        if bare.upper() in _OPERATORS:
            negated = bare.upper() == "NOT"
            continue
        text = (quoted or bare).strip("*").strip()
        if not negated and ":" not in text and any(character.isalpha() for character in text):
            terms.append(text)
        negated = False
    return checked_terms(terms)


def _cells(table: Path) -> Iterator[tuple[str, str, int | None]]:
    with pq.ParquetFile(table, pre_buffer=False) as file:
        for batch in file.iter_batches(_ROWS, columns=["Abstract", "Keywords", "Year"]):
            columns = (batch.column(name).to_pylist() for name in ("Abstract", "Keywords", "Year"))
            yield from zip(*columns, strict=True)


def _keywords(cells: tuple[str, str, int | None]) -> list[str]:
    return [word for part in cells[1].split(";") if (word := part.strip())]


def _phrases(cells: tuple[str, str, int | None]) -> list[str]:
    """Informative words, and pairs of them that stand next to each other."""
    found: list[str] = []
    dull = _dull()
    last, end = "", -1
    abstract = cells[0]
    for match in _WORD.finditer(abstract):
        word = match.group().casefold()
        if len(word) < 3 or word in dull or not word[0].isalpha():
            last = ""
            continue
        found.append(word)
        if last and abstract[end : match.start()] == " ":
            found.append(f"{last} {word}")
        last, end = word, match.end()
    return found


@cache
def _dull() -> frozenset[str]:
    return stop_words()


def _frequent(kind: str, documents: Callable[[], Iterable[Sequence[str]]], most: int) -> Frequent:
    candidates, error = _candidates(documents(), _CANDIDATES)
    mentions: Counter[str] = Counter()
    held: Counter[str] = Counter()
    spelling: dict[str, Counter[str]] = {}
    having = 0
    for entries in documents():
        having += bool(entries)
        folded = [entry.casefold() for entry in entries]
        mentions.update(one for one in folded if one in candidates)
        held.update({one for one in folded if one in candidates})
        for entry, key in zip(entries, folded, strict=True):
            if kind == "keyword" and key in candidates:
                spelling.setdefault(key, Counter())[entry] += 1
    # by documents, then by mentions, then by the alphabet: the same list on every run
    ranked = sorted(held, key=lambda one: (-held[one], -mentions[one], one))[:most]
    shown = {key: min(forms, key=lambda form: (-forms[form], form)) for key, forms in spelling.items()}
    entries = tuple((shown.get(key, key), mentions[key], held[key]) for key in ranked)
    complete = error == 0 or (len(entries) == most and entries[-1][2] > error)
    return Frequent(kind, entries, having, complete)


def _candidates(documents: Iterable[Sequence[str]], capacity: int) -> tuple[frozenset[str], int]:
    """Entries that may be frequent by documents, and the error: whatever is in more documents is among them.

    A batched form of Misra–Gries: when twice the capacity is held, the count of the entry in the place of the capacity
    is taken from all, and who has nothing left goes.
    """
    counts: Counter[str] = Counter()
    error = 0
    for entries in documents:
        counts.update({entry.casefold() for entry in entries})
        if len(counts) > 2 * capacity:
            taken = sorted(counts.values(), reverse=True)[capacity]
            error += taken
            counts = Counter({entry: count - taken for entry, count in counts.items() if count > taken})
    return frozenset(counts), error
