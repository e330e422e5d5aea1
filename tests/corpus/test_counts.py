"""What the manifest and the page say of the rows and of what was dropped, against numbers by hand. Each is another."""

from __future__ import annotations

import re
from pathlib import Path

from engramscope.corpus import Corpus, read_files
from engramscope.results.numbers import NARROW_SPACE

from .fake_pubmed import article_set, article_xml

#: which of the records "a" to "p" have, or lack, what
HAVING = {
    "structured": "abcdefg",
    "collective_author": "gmp",
    "book": "ab",
    "markup": "cdklm",
    "retracted": "n",
    "other_language": "efgh",
    "language_unknown": "ijklmnop",
    "types_unknown": "bcdefg",
    "no_pmid": "hijklmnop",
    "no_title": "cdefghijkl",
    "no_year": "fghijklmnop",
    "no_doi": "abcdefghijkl",
    "no_keywords": "defghijklmnop",
}
MARKED = {"c": "CO&lt;sub&gt;2&lt;/sub&gt;", "d": "&lt;i&gt;vivo&lt;/i&gt;", "k": "&amp;amp;", "l": "p &amp;lt; 0.05"}


def record(letter: str) -> str:
    """The record that has, and lacks, what `HAVING` says of its letter."""

    def has(word: str) -> bool:
        return letter in HAVING[word]

    number = "" if has("no_pmid") else f'<PMID Version="1">{100 + ord(letter)}</PMID>'
    title = "" if has("no_title") else f"Title {letter}" + (" &amp;mdash; marked" if letter == "m" else "")
    label = ' Label="AIM"' if has("structured") else ""
    text = f"<AbstractText{label}>Abstract {letter} {MARKED.get(letter, '')}</AbstractText>"
    author = "<CollectiveName>Group</CollectiveName>" if has("collective_author") else "<LastName>A</LastName>"
    code = "" if has("language_unknown") else "fre" if has("other_language") else "eng"
    kind = "" if has("types_unknown") else "Retracted Publication" if has("retracted") else "Journal Article"
    language, types = f"<Language>{code}</Language>", f"<PublicationType>{kind}</PublicationType>"
    date = "<PubDate></PubDate>" if has("no_year") else "<PubDate><Year>2001</Year></PubDate>"
    identifiers = "" if has("no_doi") else f'<ArticleId IdType="doi">10.1/{letter}</ArticleId>'
    identifiers = f"<ArticleIdList>{identifiers}</ArticleIdList>"
    keywords = "" if has("no_keywords") else "<KeywordList><Keyword>EEG</Keyword></KeywordList>"
    head = f"<ArticleTitle>{title}</ArticleTitle><Abstract>{text}</Abstract>"
    head += f"<AuthorList><Author>{author}</Author></AuthorList>{language}"
    if has("book"):
        return (
            f"<PubmedBookArticle><BookDocument>{number}{identifiers}<Book><BookTitle>B</BookTitle>{date}</Book>{head}"
            f"{types}{keywords}</BookDocument></PubmedBookArticle>"
        )
    return (
        f"<PubmedArticle><MedlineCitation>{number}<Article><Journal><JournalIssue>{date}</JournalIssue>"
        f"<Title>J</Title></Journal>{head}<PublicationTypeList>{types}</PublicationTypeList></Article>{keywords}"
        f"</MedlineCitation><PubmedData>{identifiers}</PubmedData></PubmedArticle>"
    )


def read(folder: Path, *records: str, **settings: bool) -> Corpus:
    path = folder / "records.xml"
    path.write_text(article_set(*records), encoding="utf-8")
    return read_files([path], folder / "out", **settings)  # type: ignore[arg-type]


def shown(corpus: Corpus, title: str) -> list[tuple[str, ...]]:
    """The rows of the table of the page that follows a title."""
    page = corpus.page.read_text(encoding="utf-8")
    body = page.partition(f">{title}</h")[2].partition("<tbody>")[2].partition("</tbody>")[0]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", body)
    return [tuple(re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row)) for row in rows]


def test_what_the_rows_have_and_lack_is_counted_in_the_manifest_and_on_the_page(tmp_path: Path) -> None:
    # two records come twice: what is dropped is not counted among the rows
    records = [record(letter) for letter in "abcdefghijklmnop" + "ag"]
    corpus = read(tmp_path, *records, keep_retracted=True, keep_languages=True)
    counts = corpus.manifest["counts"]
    assert (counts["read"], counts["rows"], counts["dropped"]["older_revision"]) == (18, 16, 2)
    assert counts["noted"] == {
        "structured": 7, "collective_author": 3, "book": 2, "markup": 5, "retracted": 1, "other_language": 4,
        "language_unknown": 8, "types_unknown": 6, "no_pmid": 9, "no_title": 10, "no_year": 11, "no_doi": 12,
        "no_keywords": 13,
    }  # fmt: skip
    lines = shown(corpus, "Of the abstracts in the corpus")
    words = {
        "structured abstract": 7, "a group among the authors": 3, "chapters of books": 2, "HTML tags or entities": 5,
        "retracted, kept": 1, "not in English, kept": 4, "does not say the language": 8,
        "does not say the publication type": 6, "without a PMID": 9, "without a title": 10, "without a year": 11,
        "without a DOI": 12, "without keywords": 13,
    }  # fmt: skip
    assert len(lines) == len(words)
    for part, number in words.items():
        assert [cell for name, cell in lines if part in name] == [str(number)], part


def test_the_counts_are_those_of_the_rows(tmp_path: Path) -> None:
    """The rows themselves lack what the numbers say that they lack."""
    corpus = read(tmp_path, *map(record, "abcdefghijklmnop"), keep_retracted=True, keep_languages=True)
    table, noted = corpus.table, corpus.manifest["counts"]["noted"]
    empty = {name: int((table[name] == "").sum()) for name in ("PMID", "Title", "DOI", "Keywords")}
    assert empty == {"PMID": 9, "Title": 10, "DOI": 12, "Keywords": 13}
    assert int(table["Year"].isna().sum()) == noted["no_year"]
    assert int(table["Abstract"].str.startswith("AIM: ").sum()) == noted["structured"]
    texts = (table["Title"] + "|" + table["Abstract"]).tolist()
    marked = [text for text in texts if any(sign in text for sign in ("CO2", "vivo", "&", "p < 0.05", "—"))]
    assert len(marked) == noted["markup"]
    assert not any("&amp;" in text or "&lt;" in text or "<sub>" in text for text in texts)


def test_what_no_row_has_or_lacks_is_not_on_the_page(tmp_path: Path) -> None:
    corpus = read(tmp_path, article_xml("1"))
    assert {word: number for word, number in corpus.manifest["counts"]["noted"].items() if number} == {
        "no_doi": 1, "no_keywords": 1,
    }  # fmt: skip
    assert shown(corpus, "Of the abstracts in the corpus") == [("without a DOI", "1"), ("without keywords", "1")]


def test_what_was_dropped_is_on_the_page_with_its_number_and_its_share(tmp_path: Path) -> None:
    records = [article_xml("1", abstract=f"Revision {n}.") for n in range(5)]
    records += [article_xml("2"), "<DeleteCitation><PMID Version='1'>2</PMID></DeleteCitation>"]
    records += [article_xml(f"{n}", kind="Retracted Publication") for n in range(11, 14)]
    records += [article_xml(f"{n}", language="ger") for n in range(21, 27)]
    records += [article_xml(f"{n}", abstract="") for n in range(31, 36)]
    records += [article_xml(f"{n}").replace(f"Title {n}", "One title") for n in range(41, 48)]
    same = article_xml("41").replace("Title 41", "ONE TITLE!")
    records += [same.replace(">41<", f">{n}<") for n in (51, 52)]
    corpus = read(tmp_path, *records)
    counts = corpus.manifest["counts"]
    assert counts["dropped"] == {
        "older_revision": 4, "withdrawn": 1, "retracted": 3, "other_language": 6, "no_abstract": 5, "same_text": 2,
    }  # fmt: skip
    assert (counts["read"], counts["rows"]) == (29, 8)
    lines = shown(corpus, "What was dropped, and why")
    parts = (
        "Records read", "of a PMID", "deleted", "retracted", "not in English", "without an abstract",
        "as in an earlier record", "in the corpus",
    )  # fmt: skip
    assert len(lines) == len(parts)
    assert all(part in name for part, (name, _, _) in zip(parts, lines, strict=True))
    assert [number for _, number, _ in lines] == ["29", "4", "1", "3", "6", "5", "2", "8"]
    shares = ["100.00", "13.79", "3.45", "10.34", "20.69", "17.24", "6.90", "27.59"]
    assert [share for _, _, share in lines] == [f"{share}{NARROW_SPACE}%" for share in shares]
