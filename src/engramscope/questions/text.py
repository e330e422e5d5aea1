"""Abstracts as sentences, and sentences as words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import pandas as pd

T = TypeVar("T")
Progress = Callable[[str, int, int], None]

#: words that end in a full stop without ending a sentence
_POINTED = (
    "vs.",
    "e.g.",
    "i.e.",
    "al.",
    "fig.",
    "figs.",
    "dr.",
    "approx.",
    "no.",
    "cf.",
    "st.",
    "ca.",
    "resp.",
    "spp.",
)
_END = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"'”’]))\s+(?=[\"'“(\[]?[A-Z0-9Α-Ω])|(?<=[a-z%)]{2}\.)(?=[A-Z][a-z])")
_WORD = re.compile(r"[^\W_]+")
#: an open bracket keeps a sentence open, but only so long: one that is never closed must not swallow the abstract
_LONGEST = 600
_REPORT_EVERY = 500


@dataclass(frozen=True, slots=True)
class Document:
    """One abstract, its title being the first sentence.

    Attributes:
        pmid: its identifier, as the corpus has it.
        sentences: in their order, white space inside each reduced to single spaces.
    """

    pmid: str
    sentences: tuple[str, ...]


def read_documents(corpus: pd.DataFrame, progress: Progress | None = None) -> list[Document]:
    """The rows of a corpus table as documents, in their order.

    Args:
        corpus: a table with the columns PMID, Title and Abstract.
        progress: told (what, done, total).
    """
    rows = zip(*(corpus[name].fillna("").astype(str) for name in ("PMID", "Title", "Abstract")), strict=True)
    return [
        Document(pmid, (*_title(title), *sentences(abstract)))
        for pmid, title, abstract in told(rows, len(corpus), "sentences", progress)
    ]


def told(items: Iterator[T], total: int, what: str, progress: Progress | None) -> Iterator[T]:
    """The items, with a word to `progress` every few hundred."""
    for done, item in enumerate(items, start=1):
        yield item
        if progress is not None and (done % _REPORT_EVERY == 0 or done == total):
            progress(what, done, total)


def sentences(text: str) -> list[str]:
    """The sentences of a text.

    A sentence ends at `.`, `!` or `?` before white space and a capital, a digit or an opening quotation mark or
    bracket, or where the white space was forgotten ("seen.The"); not after a common abbreviation or an initial, nor
    while a bracket is open.
    """
    found: list[str] = []
    held = ""
    for piece in _END.split(" ".join(text.split())):
        held = f"{held} {piece}" if held else piece
        if held and not _goes_on(held):
            found.append(held)
            held = ""
    return [*found, held] if held else found


def words(text: str) -> list[str]:
    """Runs of letters and digits, in their spelling: "GABA-A" is two words."""
    return _WORD.findall(text)


@lru_cache(maxsize=1 << 18)
def stem(word: str) -> str:
    """A word without case and without an English plural: "Seizures" and "seizure" are one, "epilepsies" and "epilepsy".

    Greek letters and digits stay as they are; "ss", "us" and "is" at the end are no plurals.
    """
    low = word.casefold()
    if len(low) > 4 and low.endswith("ies"):
        return f"{low[:-3]}y"
    return low[:-1] if len(low) > 3 and low.endswith("s") and not low.endswith(("ss", "us", "is")) else low


def stems(text: str) -> tuple[str, ...]:
    """The stem of every word of a text."""
    return tuple(stem(word) for word in words(text))


def _title(title: str) -> list[str]:
    plain = " ".join(title.split())
    return [plain] if plain else []


def _goes_on(text: str) -> bool:
    last = text.rsplit(" ", 1)[-1].lstrip("([\"'“").lower()
    if last in _POINTED or (len(last) == 2 and last[0].isalpha() and last[1] == "."):
        return True
    return text.count("(") > text.count(")") and len(text) < _LONGEST
