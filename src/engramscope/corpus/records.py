"""From the tree of a PubMed record to an article."""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element

from engramscope.corpus.articles import Article, Withdrawal
from engramscope.corpus.text import squeezed

_YEAR = re.compile(r"(?<!\d)(1[5-9]\d\d|20\d\d|21\d\d)(?!\d)")
_DOI_PREFIX = re.compile(r"^(?:https?://(?:dx\.)?doi\.org/|doi:\s*)", re.IGNORECASE)
#: labels that PubMed gives to a section without one
_NO_LABEL = frozenset({"", "UNLABELLED", "UNLABELED"})
_NO_TITLE = frozenset({"", "[Not Available].", "[Not Available]"})


def article_of(record: Element) -> list[Article | Withdrawal]:
    """What one record of `xml_stream.RECORDS` says: an article, or the withdrawal of one or more."""
    if record.tag == "DeleteCitation":
        return [Withdrawal(bare_pmid(_text(one))) for one in record.findall("PMID")]
    if record.tag == "PubmedBookArticle":
        return [_book(record)]
    citation = record if record.tag == "MedlineCitation" else record.find("MedlineCitation")
    return [] if citation is None else [_citation(record, citation)]


def year_in(text: str) -> int | None:
    """The first year from 1500 to 2199 in a date such as "1998 Dec-1999 Jan"; None where there is none."""
    found = _YEAR.search(text)
    return int(found.group()) if found else None


def bare_doi(text: str) -> str:
    """A DOI without white space and without the address of a resolver."""
    return _DOI_PREFIX.sub("", squeezed(text))


def bare_pmid(text: str) -> str:
    """A PMID as digits; "12345.0" and "PMID: 012345" are 12345. Without a digit it is none; else it stays as it is."""
    bare = re.sub(r"^pmid:?\s*", "", squeezed(text), flags=re.IGNORECASE)
    bare = bare.removesuffix(".0") if bare.removesuffix(".0").isdecimal() else bare
    if not any(character.isdigit() for character in bare):
        return ""  # "NA", "-", "nan": what tables write where there is none
    return str(int(bare)) if bare.isascii() and bare.isdecimal() and len(bare) < 20 else bare


def _citation(record: Element, citation: Element) -> Article:
    article = citation.find("Article")
    if article is None:
        article = Element("Article")
    abstract, structured = _abstract(article.find("Abstract"))
    return Article(
        pmid=bare_pmid(_text(citation.find("PMID"))),
        title=_title(article),
        abstract=abstract,
        journal=_text(article.find("Journal/Title")) or _text(citation.find("MedlineJournalInfo/MedlineTA")),
        keywords=_keywords(citation),
        year=_year(article.find("Journal/JournalIssue/PubDate")) or _year(article.find("ArticleDate")),
        # only the article's own list: the references of an article have lists of the same name
        doi=_doi(article.findall("ELocationID"), record.findall("PubmedData/ArticleIdList/ArticleId")),
        languages=_texts(article.findall("Language")),
        types=_texts(article.findall("PublicationTypeList/PublicationType")),
        revision=(_version(citation.find("PMID")), _date(citation.find("DateRevised"))),
        structured=structured,
        collective=article.find("AuthorList/Author/CollectiveName") is not None,
    )


def _book(record: Element) -> Article:
    document = record.find("BookDocument")
    if document is None:
        document = Element("BookDocument")
    abstract, structured = _abstract(document.find("Abstract"))
    book = _text(document.find("Book/BookTitle"))
    return Article(
        pmid=bare_pmid(_text(document.find("PMID"))),
        title=_title(document) or book,
        abstract=abstract,
        journal=book,
        keywords=_keywords(document),
        year=_year(document.find("Book/PubDate")) or _year(document.find("ContributionDate")),
        doi=_doi(document.findall("ELocationID"), document.findall("ArticleIdList/ArticleId")),
        languages=_texts(document.findall("Language")),
        types=_texts(document.findall("PublicationType")),
        revision=(_version(document.find("PMID")), _date(document.find("DateRevised"))),
        structured=structured,
        collective=any(one.tag == "CollectiveName" for one in document.iter()),
        book=True,
    )


def _text(element: Element | None) -> str:
    return "" if element is None else squeezed("".join(element.itertext()))


def _texts(elements: list[Element]) -> tuple[str, ...]:
    return tuple(text for text in map(_text, elements) if text)


def _title(article: Element) -> str:
    title = _text(article.find("ArticleTitle"))
    # older records of other languages have their title only in that language
    return (_text(article.find("VernacularTitle")) or title) if title in _NO_TITLE else title


def _abstract(element: Element | None) -> tuple[str, bool]:
    """The sections as "LABEL: text", one after the other; and whether any has a label."""
    if element is None:
        return "", False
    parts, structured = [], False
    for section in element.findall("AbstractText"):
        text = _text(section)
        label = squeezed(section.get("Label", ""))
        if not text:
            continue
        if label.upper() in _NO_LABEL:
            parts.append(text)
        else:
            structured = True
            parts.append(f"{label.rstrip(':')}: {text}")
    return " ".join(parts), structured


def _keywords(element: Element) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_texts(element.findall("KeywordList/Keyword"))))


def _year(date: Element | None) -> int | None:
    if date is None:
        return None
    return year_in(_text(date.find("Year"))) or year_in(_text(date.find("MedlineDate")))


def _doi(locations: list[Element], identifiers: list[Element]) -> str:
    for one in locations:
        if one.get("EIdType") == "doi" and one.get("ValidYN", "Y") != "N" and _text(one):
            return bare_doi(_text(one))
    return next((bare_doi(_text(one)) for one in identifiers if one.get("IdType") == "doi" and _text(one)), "")


def _version(pmid: Element | None) -> int:
    text = "" if pmid is None else pmid.get("Version", "1")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 1


def _date(date: Element | None) -> str:
    if date is None:
        return ""
    year, month, day = (_text(date.find(name)) for name in ("Year", "Month", "Day"))
    return f"{year:0>4}-{month:0>2}-{day:0>2}"
