"""Biopython's parser, which shares nothing with ours, must give the same rows on every record."""

from __future__ import annotations

import gzip
import html
import io
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from Bio import Entrez
from Bio.Entrez import Parser

from engramscope.corpus import Corpus, read_files
from engramscope.corpus.articles import Article
from engramscope.corpus.search import Found, read_search
from engramscope.corpus.xml_stream import XmlError
from engramscope.errors import InputError

from .fake_pubmed import FakePubmed, Fault, article_set, article_xml, serve
from .test_records import FULL, parse
from .test_retrieval import fetch, pmids

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


def first(article: Article | Found, like: dict[str, Any]) -> dict[str, Any]:
    return {name: getattr(article, name) for name in like}


def records_of(document: bytes) -> list[Any]:
    """The records of a file as Biopython reads them."""
    # Biopython has the DTD of the year before only; the records use nothing new
    document = document.replace(b"nlmmedlinecitationset_160101.dtd", b"nlmmedlinecitationset_150101.dtd")
    read: Any = Entrez.read(io.BytesIO(document), validate=False, escape=True)
    return next(read[name] for name in ("PubmedArticle", "MedlineCitation") if name in read)


def compare(document: bytes) -> int:
    ours = [one for one in parse(document, 4096) if isinstance(one, Article) and not one.book]
    theirs = [second(record) for record in records_of(document)]
    assert [first(article, like) for article, like in zip(ours, theirs, strict=True)] == theirs
    return len(ours)


def recorded() -> list[Path]:
    """PubMed's answers: sixty-four of one record, two of two, and one of none."""
    files = [*sorted((XML / "efetch").glob("*.xml")), *sorted((XML / "biopython_entrez").glob("pubmed*.xml"))]
    return [*files, XML / "pubmed-29768149.xml"]


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
    assert compare(document) == 604


@real
def test_it_agrees_on_every_recorded_answer() -> None:
    counts = {path.name: compare(path.read_bytes()) for path in recorded()}
    assert len(counts) == 67
    assert sum(counts.values()) == 68


RETRACTED = {"Retracted Publication", "Retraction of Publication", "Retraction Notice"}


def revision(record: Any) -> tuple[int, ...]:
    citation = record.get("MedlineCitation", record)
    revised = citation.get("DateRevised", {})
    day = (int(revised.get(part, 0)) for part in ("Year", "Month", "Day"))
    return int(citation["PMID"].attributes["Version"]), *day


def second_corpus(documents: Sequence[bytes]) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The rows of a corpus and what is dropped, from Biopython's lists: one rule after the other, all in memory."""
    records = [record for document in documents for record in records_of(document)]
    revisions: dict[str, list[tuple[tuple[int, ...], int]]] = {}
    for place, record in enumerate(records):
        revisions.setdefault(second(record)["pmid"], []).append((revision(record), place))
    rows: list[dict[str, Any]] = []
    dropped: Counter[str] = Counter()
    texts: set[str] = set()
    for place, one in enumerate(map(second, records)):
        text = "".join(letter for letter in f"{one['title']}|{one['abstract']}".lower() if letter.isalnum())
        if max(revisions[one["pmid"]])[1] != place:
            dropped["older_revision"] += 1
        elif RETRACTED.intersection(one["types"]) or one["title"].startswith("RETRACTED"):
            dropped["retracted"] += 1
        elif "eng" not in one["languages"]:
            dropped["other_language"] += 1
        elif not any(letter.isalnum() for letter in one["abstract"]):
            dropped["no_abstract"] += 1
        elif text in texts:
            dropped["same_text"] += 1
        else:
            texts.add(text)
            words = (word.strip("*;. ") for word in one["keywords"])
            rows.append({
                "PMID": one["pmid"], "Title": one["title"], "Abstract": one["abstract"], "Journal": one["journal"],
                "Keywords": "; ".join(dict.fromkeys(filter(None, words))),
                "URL": f"https://pubmed.ncbi.nlm.nih.gov/{one['pmid']}/", "Year": one["year"], "DOI": one["doi"],
            })  # fmt: skip
    return rows, dropped


def compare_corpus(corpus: Corpus, documents: Sequence[bytes]) -> Counter[str]:
    rows, dropped = second_corpus(documents)
    table = corpus.table
    assert table.astype(object).where(table.notna(), None).to_dict("records") == rows
    counts = corpus.manifest["counts"]
    assert {why: number for why, number in counts["dropped"].items() if number} == dict(dropped)
    assert (counts["read"], counts["rows"]) == (len(rows) + dropped.total(), len(rows))
    return dropped


def texts_of(document: bytes) -> list[str]:
    """The records of an answer as they came."""
    return re.findall(r"<PubmedArticle>.*?</PubmedArticle>", document.decode(), re.DOTALL)


@real
def test_recorded_answers_fetched_through_faults_become_the_rows_of_a_second_parser(tmp_path: Path) -> None:
    documents = [path.read_bytes() for path in recorded()]
    (known,) = texts_of((XML / "efetch" / "23657305.xml").read_bytes())
    # nothing recorded is retracted or there twice
    documents.append(article_set(
        article_xml("90000001", kind="Retracted Publication"), article_xml("90000002", kind="Retraction Notice"),
        known.replace(">23657305<", ">90000003<"),
    ).encode())  # fmt: skip
    texts = [text for document in documents for text in texts_of(document)]
    numbers = [re.findall(r"<PMID[^>]*>(\d+)<", text)[0] for text in texts]
    server = FakePubmed(numbers, records=dict(zip(numbers, texts, strict=True)))
    server.faults = [Fault("esearch", "backend"), Fault("efetch", "cut body", after=1), Fault("efetch", "429", after=2)]
    with serve(server):
        corpus = fetch(server, tmp_path / "c")
    assert server.sent == Counter(numbers)
    assert server.count("efetch") == 8 + 2
    dropped = compare_corpus(corpus, documents)
    assert (dropped["retracted"], dropped["same_text"]) == (2, 1)
    assert min(dropped["other_language"], dropped["no_abstract"]) > 0


@real
def test_a_recorded_medline_file_becomes_the_rows_of_a_second_parser(tmp_path: Path) -> None:
    file, later = XML / "medline16n0902.xml.gz", tmp_path / "later.xml"
    newer = article_xml("18621939", abstract="Of another version.").replace('Version="1"', 'Version="2"')
    # the first one has no date of revision, so that it is not the later one, though it comes later
    later.write_text(article_set(article_xml("17942999"), newer, article_xml("90000001", kind="Retraction Notice")))
    corpus = read_files([file, later], tmp_path / "out")
    dropped = compare_corpus(corpus, [gzip.decompress(file.read_bytes()), later.read_bytes()])
    assert (dropped["older_revision"], dropped["retracted"]) == (2, 1)
    assert min(dropped["other_language"], dropped["no_abstract"]) > 0


def second_search(document: bytes) -> dict[str, Any]:
    """What an answer to a search says, from Biopython's dictionary."""
    read: Any = Entrez.read(io.BytesIO(document))
    said = [*read.get("ErrorList", {}).items(), *read.get("WarningList", {}).items()]
    return {
        "count": int(read["Count"]),
        "pmids": tuple(map(str, read["IdList"])),
        "web_env": str(read.get("WebEnv", "")),
        "query_key": str(read.get("QueryKey", "")),
        "translation": " ".join(read["QueryTranslation"].split()),
        "warnings": tuple(f"{name}: {text}" for name, texts in said for text in texts),
    }


def search_answer(number: int) -> bytes:
    return (XML / "biopython_entrez" / f"esearch{number}.xml").read_bytes()


@real
def test_recorded_searches_say_what_a_second_parser_reads() -> None:
    theirs = {number: second_search(search_answer(number)) for number in (1, 2, 3, 5, 6, 7, 8)}
    assert {n: first(read_search(search_answer(n), None), like) for n, like in theirs.items()} == theirs
    assert [n for n, said in theirs.items() if said["web_env"]] == [2], "the others were not put on the history server"
    assert [len(said["pmids"]) for said in theirs.values()] == [20, 100, 6, 5, 20, 20, 0]
    assert theirs[8]["warnings"] == ("PhraseNotFound: abcXYZ", "OutputMessage: No items found.")


@real
def test_recorded_answers_to_other_questions_are_no_searches() -> None:
    others = [path for path in (XML / "biopython_entrez").glob("*.xml") if not path.name.startswith("esearch")]
    assert len(others) == 29
    # one of them is cut off, four are errors of the server
    words = r"no answer to a search: its root element is <|PubMed says: |no well-formed XML: no element found"
    for path in others:
        with pytest.raises(XmlError, match=words):
            read_search(path.read_bytes(), None)


class OneAnswer(FakePubmed):
    """Every search gets the same recorded answer."""

    answer = b""

    def search(self, fields: dict[str, str]) -> str:
        return self.answer.decode()


@real
def test_a_recorded_search_without_a_history_is_fetched_by_name(tmp_path: Path) -> None:
    wanted = list(second_search(search_answer(5))["pmids"])
    server = OneAnswer(wanted)
    server.answer = search_answer(5)
    with serve(server):
        assert pmids(fetch(server, tmp_path / "c", batch=2)) == wanted
    assert [fields["id"] for tool, fields in server.calls if tool == "efetch"] == [
        f"{wanted[0]},{wanted[1]}", f"{wanted[2]},{wanted[3]}", wanted[4],
    ]  # fmt: skip


@real
def test_a_recorded_search_that_finds_nothing_says_why(tmp_path: Path) -> None:
    server = OneAnswer([])
    server.answer = search_answer(8)
    with serve(server), pytest.raises(InputError, match=r"finds nothing .*: abcXYZ\. OutputMessage: No items found"):
        fetch(server, tmp_path / "c")
    assert not (tmp_path / "c").exists()
