"""One record of a source, before anything is cleaned or dropped."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: publication types of a withdrawn article and of the note that withdraws it; NLM renamed the latter in 2025
RETRACTED_TYPES = frozenset({"retracted publication", "retraction of publication", "retraction notice"})
_RETRACTED_TITLE = re.compile(r"\s*(RETRACTED|RETRACTION)\b(\s+ARTICLE)?\s*[:.\-–]")
_ENGLISH = frozenset({"eng", "en", "english"})


@dataclass(frozen=True, slots=True)
class Article:
    """A record as its source has it.

    Attributes:
        pmid: digits; "" where the source has none.
        title: text; may still hold markup.
        abstract: text, structured abstracts as "LABEL: text" one after the other; "" where there is none.
        journal: full title of the journal, or of the book.
        keywords: the authors' keywords.
        url: "" where the source has none.
        year: of publication.
        doi: without the address of a resolver.
        languages: three-letter codes as in MEDLINE; empty where the source does not say.
        types: publication types; empty where the source does not say.
        revision: (version of the record, date of its last revision as "2024-07-28"): the larger is the later.
        structured: the abstract has labelled sections.
        collective: a group is among the authors.
        book: a book or a chapter of one.
    """

    pmid: str = ""
    title: str = ""
    abstract: str = ""
    journal: str = ""
    keywords: tuple[str, ...] = ()
    url: str = ""
    year: int | None = None
    doi: str = ""
    languages: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    revision: tuple[int, str] = (1, "")
    structured: bool = False
    collective: bool = False
    book: bool = False

    @property
    def retracted(self) -> bool:
        """By publication type, also one among others in a cell; or by a title that begins with "RETRACTED:"."""
        types = " ; ".join(self.types).casefold()
        return any(name in types for name in RETRACTED_TYPES) or _RETRACTED_TITLE.match(self.title) is not None

    @property
    def english(self) -> bool | None:
        """Whether English is among its languages; None where the source does not say."""
        if not self.languages:
            return None
        return any(code.strip().casefold() in _ENGLISH for code in self.languages)


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """MEDLINE's word that an earlier record no longer exists (`DeleteCitation` of an update file)."""

    pmid: str
