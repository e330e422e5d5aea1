"""From articles to rows: what is kept, what is dropped and why, everything counted.

Two passes over the source: the first finds the last revision of every PMID, the second writes. So the memory holds one
number per PMID and sixteen bytes per text, however long the abstracts are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from engramscope.corpus.articles import Article, Withdrawal
from engramscope.corpus.text import plain_form, same_text_key, squeezed, without_markup
from engramscope.results.numbers import whole

Articles = Callable[[], Iterator[Article | Withdrawal]]

#: why a record is dropped, in the order in which it is asked
DROPPED: dict[str, str] = {
    "older_revision": "earlier revisions, or repetitions, of a PMID",
    "withdrawn": "deleted from MEDLINE by a later file",
    "retracted": "retracted, or the notice of a retraction",
    "other_language": "not in English",
    "no_abstract": "without an abstract",
    "same_text": "with title and abstract as in an earlier record",
}
#: what the rows that are kept have, or lack
NOTED: dict[str, str] = {
    "structured": "with a structured abstract (sections joined as LABEL: text)",
    "collective_author": "with a group among the authors",
    "book": "books and chapters of books",
    "markup": "with HTML tags or entities, which were removed or decoded",
    "retracted": "retracted, kept as asked",
    "other_language": "not in English, kept as asked",
    "language_unknown": "whose source does not say the language (kept)",
    "types_unknown": "whose source does not say the publication type (retractions known by title only)",
    "no_pmid": "without a PMID (not compared by PMID)",
    "no_title": "without a title",
    "no_year": "without a year",
    "no_doi": "without a DOI",
    "no_keywords": "without keywords",
}
#: what stands in place of an abstract
_PLACEHOLDERS = frozenset(
    {"no abstract", "no abstract available", "abstract not available", "not available", "n a", "nan"}
)
PUBMED_PAGE = "https://pubmed.ncbi.nlm.nih.gov/"


@dataclass(frozen=True)
class Rules:
    """What is dropped by default and may be kept."""

    keep_retracted: bool = False
    keep_languages: bool = False


@dataclass
class Tally:
    """Counts of one cleaning; `read` is the sum of `dropped` and `rows`.

    Attributes:
        read: records of the source.
        rows: that were kept.
        dropped: by the reasons of `DROPPED`; each record by the first that holds.
        noted: of the rows kept, by the words of `NOTED`.
    """

    read: int = 0
    rows: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DROPPED, 0))
    noted: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NOTED, 0))

    def facts(self) -> dict[str, Any]:
        """As it stands in a manifest."""
        return {"read": self.read, "dropped": dict(self.dropped), "rows": self.rows, "noted": dict(self.noted)}

    def losses(self) -> str:
        """Why nothing, or less, is left: "3 without an abstract, 2 not in English"."""
        return ", ".join(f"{whole(number)} {DROPPED[why]}" for why, number in self.dropped.items() if number)


@dataclass
class _Latest:
    """Of every PMID, which record of the source counts: the one with the highest number here."""

    rank: dict[int | str, int] = field(default_factory=dict)
    withdrawn: dict[int | str, int] = field(default_factory=dict)


def cleaned_rows(articles: Articles, rules: Rules, tally: Tally) -> Iterator[dict[str, Any]]:
    """The rows of a corpus, in the order of the source.

    Of records with the same PMID the one with the highest version counts, then the one revised last, then the last one.
    That record alone decides whether the PMID is dropped for another reason. Of records with the same text the first
    stays.

    Args:
        articles: the source; called twice.
        rules: what is kept.
        tally: filled meanwhile.

    Yields:
        Rows with the keys of `table.COLUMNS`.
    """
    latest = _latest(articles())
    texts: set[bytes] = set()
    for ordinal, article in enumerate(articles()):
        if isinstance(article, Withdrawal):
            continue
        tally.read += 1
        title, abstract = tidy(article.title), tidy(article.abstract)
        why = _refused(article, abstract, ordinal, latest, rules)
        if not why:
            key = same_text_key(title, abstract)
            why = "same_text" if key in texts else ""
            texts.add(key)
        if why:
            tally.dropped[why] += 1
            continue
        tally.rows += 1
        row = _row(article, title, abstract)
        _note(tally.noted, article, row)
        yield row


def tidy(text: str) -> str:
    """Without markup, entities, control characters and needless white space."""
    return squeezed(without_markup(text))


def is_missing(abstract: str) -> bool:
    """Whether a text is no abstract: it has no letter or digit, or says that there is none."""
    plain = plain_form(abstract[:100])
    return not plain or plain in _PLACEHOLDERS


def _latest(articles: Iterator[Article | Withdrawal]) -> _Latest:
    latest = _Latest()
    for ordinal, article in enumerate(articles):
        if isinstance(article, Withdrawal):
            latest.withdrawn[_pmid_key(article.pmid)] = ordinal
        elif article.pmid:
            key, rank = _pmid_key(article.pmid), _rank(article, ordinal)
            if rank > latest.rank.get(key, -1):
                latest.rank[key] = rank
    return latest


def _rank(article: Article, ordinal: int) -> int:
    version, revised = article.revision
    day = revised.replace("-", "")
    # one whole number in place of a tuple: a million of them is a matter of memory
    return ((version * 10**8 + (int(day) if day.isdecimal() and len(day) == 8 else 0)) << 40) | ordinal


def _pmid_key(pmid: str) -> int | str:
    return int(pmid) if pmid.isascii() and pmid.isdecimal() else pmid


def _refused(article: Article, abstract: str, ordinal: int, latest: _Latest, rules: Rules) -> str:
    """The reason of `DROPPED` that holds first; "" where none does."""
    if article.pmid:
        key = _pmid_key(article.pmid)
        if latest.rank.get(key) != _rank(article, ordinal):
            return "older_revision"
        if latest.withdrawn.get(key, -1) > ordinal:
            return "withdrawn"
    if article.retracted and not rules.keep_retracted:
        return "retracted"
    if article.english is False and not rules.keep_languages:
        return "other_language"
    return "no_abstract" if is_missing(abstract) else ""


def _row(article: Article, title: str, abstract: str) -> dict[str, Any]:
    keywords = (tidy(word).strip("*;. ") for word in article.keywords)
    return {
        "PMID": article.pmid,
        "Title": title,
        "Abstract": abstract,
        "Journal": tidy(article.journal),
        "Keywords": "; ".join(dict.fromkeys(word for word in keywords if word)),
        "URL": _address(article),
        "Year": article.year,
        "DOI": squeezed(article.doi),
    }


def _address(article: Article) -> str:
    if article.url.startswith(("http://", "https://")):
        return squeezed(article.url)
    return f"{PUBMED_PAGE}{article.pmid}/" if article.pmid.isascii() and article.pmid.isdecimal() else ""


def _note(noted: dict[str, int], article: Article, row: dict[str, Any]) -> None:
    held = {
        "structured": article.structured,
        "collective_author": article.collective,
        "book": article.book,
        "markup": (row["Title"], row["Abstract"]) != (squeezed(article.title), squeezed(article.abstract)),
        "retracted": article.retracted,
        "other_language": article.english is False,
        "language_unknown": article.english is None,
        "types_unknown": not article.types,
        "no_pmid": not row["PMID"],
        "no_title": not row["Title"],
        "no_year": row["Year"] is None,
        "no_doi": not row["DOI"],
        "no_keywords": not row["Keywords"],
    }
    for word, holds in held.items():
        noted[word] += holds
