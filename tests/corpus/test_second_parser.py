"""Biopython's parser, which shares nothing with ours, must give the same rows on every record."""

from __future__ import annotations

import gzip
import html
import io
import os
import re
from pathlib import Path
from typing import Any

import pytest
from Bio import Entrez
from Bio.Entrez import Parser

from engramscope.corpus.articles import Article

from .fake_pubmed import article_set, article_xml
from .test_records import FULL, parse

SHARED = os.environ.get("ENGRAMSCOPE_SHARED")
XML = Path(SHARED or ".") / "data" / "pubmed_xml"
real = pytest.mark.skipif(SHARED is None, reason="ENGRAMSCOPE_SHARED names no folder with data/pubmed_xml")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Biopython fetches a DTD that it does not have; here that is a failure."""

    def refuse(url: str, *rest: object) -> None:
        raise AssertionError(f"Biopython wants {url}")

    monkeypatch.setattr(Parser, "urlopen", refuse)


def plain(text: Any) -> str:
    """Biopython leaves the tags inside of a text as they are, and escapes (when asked to) the "<" that is no tag."""
    return " ".join(html.unescape(re.sub(r"<[^<>]*>", "", str(text))).split())


def second(record: Any) -> dict[str, Any]:
    """A row from Biopython's lists and dictionaries."""
    citation = record.get("MedlineCitation", record)
    article = citation["Article"]
    parts = []
    for section in article.get("Abstract", {}).get("AbstractText", []):
        label = section.attributes.get("Label", "")
        named = label and label.upper() != "UNLABELLED"
        if plain(section):
            parts.append(f"{label.rstrip(':')}: {plain(section)}" if named else plain(section))
    date = article["Journal"]["JournalIssue"]["PubDate"]
    year = re.search(r"\d{4}", str(date.get("Year", date.get("MedlineDate", ""))))
    listed = [one for one in record.get("PubmedData", {}).get("ArticleIdList", []) if one.attributes["IdType"] == "doi"]
    dois = [one for one in article.get("ELocationID", []) if one.attributes["EIdType"] == "doi"]
    dois = [one for one in dois if one.attributes.get("ValidYN", "Y") == "Y"] + listed
    authors = article.get("AuthorList", [])
    title = plain(article["ArticleTitle"])
    if title in ("", "[Not Available]."):
        title = plain(article.get("VernacularTitle", "")) or title
    return {
        "pmid": str(citation["PMID"]),
        "title": title,
        "abstract": " ".join(parts),
        "journal": plain(article["Journal"]["Title"]),
        "keywords": tuple(dict.fromkeys(plain(word) for words in citation["KeywordList"] for word in words)),
        "year": int(year.group()) if year else None,
        "doi": plain(dois[0]) if dois else "",
        "languages": tuple(str(code) for code in article["Language"]),
        "types": tuple(plain(name) for name in article["PublicationTypeList"]),
        "collective": any("CollectiveName" in author for author in authors),
    }


def first(article: Article, like: dict[str, Any]) -> dict[str, Any]:
    return {name: getattr(article, name) for name in like}


def compare(document: bytes) -> int:
    ours = [one for one in parse(document, 4096) if isinstance(one, Article) and not one.book]
    read: Any = Entrez.read(io.BytesIO(document), validate=False, escape=True)
    records = next(read[name] for name in ("PubmedArticle", "MedlineCitation") if name in read)
    theirs = [second(record) for record in records]
    assert [first(article, like) for article, like in zip(ours, theirs, strict=True)] == theirs
    return len(ours)


def test_the_second_parser_agrees_on_records_made_by_hand() -> None:
    odd = article_xml("5", abstract="<i>In&#160;vivo</i>  study,\n p &lt; 0.05 &amp; more, &lt;r.m.s.&gt; 2")
    assert compare(article_set(FULL, odd, article_xml("6", abstract="")).encode()) == 3


def test_the_comparison_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engramscope.corpus.records._NO_LABEL", frozenset({"", "AIM"}))
    with pytest.raises(AssertionError):
        compare(article_set(FULL).encode())


@real
def test_it_agrees_on_604_citations_of_a_medline_file() -> None:
    document = gzip.decompress((XML / "medline16n0902.xml.gz").read_bytes())
    # Biopython has the DTD of the year before only; the records use nothing new
    document = document.replace(b"nlmmedlinecitationset_160101.dtd", b"nlmmedlinecitationset_150101.dtd")
    assert compare(document) == 604


@real
def test_it_agrees_on_every_recorded_answer() -> None:
    files = [*sorted((XML / "efetch").glob("*.xml")), *sorted((XML / "biopython_entrez").glob("pubmed*.xml"))]
    counts = {path.name: compare(path.read_bytes()) for path in [*files, XML / "pubmed-29768149.xml"]}
    assert len(counts) == 67
    assert sum(counts.values()) == 68
