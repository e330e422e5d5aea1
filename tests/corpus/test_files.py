"""Local files of every kind give the same corpus; wrong ones give one sentence and leave nothing."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import os
import random
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engramscope.corpus import COLUMNS, Corpus, read_corpus, read_files
from engramscope.errors import InputError, ResultsError

from .fake_pubmed import article_set, article_xml

ROWS = [
    {"PMID": "11", "Title": "One", "Abstract": 'Text, with "quotes"\nand lines.', "Journal": "J",
     "Keywords": "EEG; fits", "Year": "2001", "DOI": "10.1/a"},
    {"PMID": "12", "Title": "Two é", "Abstract": "More ≤ text", "Journal": "", "Keywords": "", "Year": "", "DOI": ""},
]  # fmt: skip


def write(folder: Path, kind: str, rows: list[dict[str, str]] = ROWS) -> Path:
    path = folder / f"abstracts.{kind}"
    if kind in ("csv", "tsv"):
        with path.open("w", encoding="utf-8-sig", newline="") as handle:
            writer = csv.DictWriter(handle, list(rows[0]), delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    elif kind == "parquet":
        pd.DataFrame(rows).astype({"PMID": "int64"}).to_parquet(path)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_table_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    corpus = read_files([write(tmp_path, kind)], tmp_path / "out", terms=["text"])
    table = read_corpus(corpus.folder)
    assert tuple(table.columns) == COLUMNS
    assert table["Abstract"].tolist() == ['Text, with "quotes" and lines.', "More ≤ text"]
    assert table["PMID"].tolist() == ["11", "12"]
    assert table["Keywords"].tolist() == ["EEG; fits", ""]
    assert table["Year"].tolist()[0] == 2001
    assert table["Year"].isna().tolist() == [False, True]
    assert table["URL"].tolist() == [f"https://pubmed.ncbi.nlm.nih.gov/{n}/" for n in (11, 12)]


def test_what_a_folder_holds_agrees_with_itself(tmp_path: Path) -> None:
    corpus = read_files([write(tmp_path, "csv")], tmp_path / "out", terms=["text"])
    assert sorted(path.name for path in corpus.folder.iterdir()) == [
        "corpus.csv", "corpus.parquet", "figures", "keywords.csv", "manifest.json", "report.html", "years.csv",
    ]  # fmt: skip
    assert sorted(path.name for path in (corpus.folder / "figures").iterdir()) == [
        "keywords.svg",
        "terms.svg",
        "years.svg",
    ]
    with (corpus.folder / "corpus.csv").open(encoding="utf-8", newline="") as handle:
        lines = list(csv.DictReader(handle))
    same = corpus.table.astype(object).where(corpus.table.notna(), "")
    assert lines == [{name: str(value) for name, value in row.items()} for row in same.to_dict("records")]
    assert corpus.manifest["counts"]["rows"] == corpus.manifest["counts"]["read"] == 2
    with (corpus.folder / "keywords.csv").open(encoding="utf-8", newline="") as handle:
        words = list(csv.DictReader(handle))
    assert [(row["kind"], row["text"], row["mentions"], row["documents"]) for row in words] == [
        ("term", "text", "2", "2"), ("keyword", "EEG", "1", "1"), ("keyword", "fits", "1", "1"),
    ]  # fmt: skip
    assert (corpus.folder / "years.csv").read_text() == "year,documents\n2001,1\n"
    assert "2 abstracts" in corpus.page.read_text(encoding="utf-8")


def test_a_corpus_read_again_is_the_same_corpus(tmp_path: Path) -> None:
    one = read_files([write(tmp_path, "csv")], tmp_path / "one")
    hashes = {one.manifest["rows_sha256"]}
    for name in ("corpus.csv", "corpus.parquet"):
        hashes.add(read_files([one.folder / name], tmp_path / name).manifest["rows_sha256"])
    assert len(hashes) == 1


def test_compressed_xml_and_several_files(tmp_path: Path) -> None:
    packers = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
    files = [write(tmp_path, "csv")]
    for number, (ending, pack) in enumerate(packers.items(), start=21):
        path = tmp_path / f"{ending}.xml.{ending}"
        path.write_bytes(pack(article_set(article_xml(str(number))).encode()))
        files.append(path)
    unpacked = tmp_path / "packed-though-named-otherwise.xml"
    unpacked.write_bytes(gzip.compress(article_set(article_xml("31")).encode()))
    # an answer without records is one, as long as others have some
    (tmp_path / "empty.xml").write_text(article_set())
    files.append(tmp_path / "empty.xml")
    told: list[tuple[str, int, int]] = []
    corpus = read_files([*files, unpacked], tmp_path / "out", progress=lambda *what: told.append(what))
    assert corpus.table["PMID"].tolist() == ["11", "12", "21", "22", "23", "31"]
    assert {what for what, _, _ in told} >= {"finding revisions", "cleaning"}
    assert all(0 <= done <= total for _, done, total in told)


def test_names_of_columns(tmp_path: Path) -> None:
    rows = [
        {"pubmed_id": "7.0", "HEADLINE": "t", "abstract text": "a", "Publication Year": "2019 Mar", "Journal/Book": "J"}
    ]
    table = read_files([write(tmp_path, "csv", rows)], tmp_path / "out", columns={"title": "headline"}).table
    assert table.iloc[0].tolist() == ["7", "t", "a", "J", "", "https://pubmed.ncbi.nlm.nih.gov/7/", 2019, ""]


def test_a_key_that_only_later_lines_have_is_not_lost(tmp_path: Path) -> None:
    rows = [
        {"abstract": "a"},
        {"abstract": "b", "keywords": ["EEG", "fits"], "year": 2000},
        {"keywords": None, "abstract": "c"},
    ]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    table = read_files([path], tmp_path / "out").table
    assert table["Keywords"].tolist() == ["", "EEG; fits", ""]
    assert table["Year"].tolist()[1] == 2000


@pytest.mark.parametrize(
    ("cell", "keywords"),
    [
        ("EEG; fits|sleep", "EEG; fits; sleep"),
        ("['EEG', 'West\\'s syndrome']", "EEG; West's syndrome"),  # as pandas writes a list into a CSV file
        ("['EEG' 'fits']", "EEG; fits"),  # as numpy does
        ('["EEG", "caf\\u00e9 [1]"]', "EEG; café [1]"),  # as JSON does
        (json.dumps(["𝛼-synuclein", None, "N/A"]).replace("/", "\\/"), "𝛼-synuclein; N/A"),
        ("['EEG', None, nan]", "EEG"),
        ("[]", ""),
        ("[EEG] in sleep", "[EEG] in sleep"),
    ],
)
def test_a_list_in_one_cell_is_taken_apart(tmp_path: Path, cell: str, keywords: str) -> None:
    rows = [{"Abstract": "An abstract.", "Keywords": cell, "PublicationType": "['Journal Article', 'Review']",
             "Language": "['eng']"}]  # fmt: skip
    corpus = read_files([write(tmp_path, "csv", rows)], tmp_path / "out")
    assert corpus.table["Keywords"].tolist() == [keywords]


@pytest.mark.parametrize(
    "types", ["Journal Article, Retracted Publication", "['Journal Article', 'Retraction Notice']"]
)
def test_a_retracted_article_of_a_table_is_dropped_and_counted(tmp_path: Path, types: str) -> None:
    rows = [
        {"Abstract": "Kept.", "PublicationType": "Journal Article"},
        {"Abstract": "Gone.", "PublicationType": types},
    ]
    corpus = read_files([write(tmp_path, "csv", rows)], tmp_path / "out")
    assert corpus.table["Abstract"].tolist() == ["Kept."]
    assert corpus.manifest["counts"]["dropped"]["retracted"] == 1


def test_bytes_are_text_and_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"Abstract": pa.array(["Épilepsie.".encode()], pa.binary())}), path)
    assert read_files([path], tmp_path / "out").table["Abstract"].tolist() == ["Épilepsie."]
    pq.write_table(pa.table({"Abstract": pa.array([b"x", b"\xff\xfe"], pa.binary())}), path)
    with pytest.raises(InputError, match=r"x\.parquet: row 2: Abstract: a cell holds bytes that are no text in UTF-8"):
        read_files([path], tmp_path / "other")
    lines = tmp_path / "x.jsonl"
    lines.write_text('{"Abstract": "one"}\n{"Abstract": {"AbstractText": "two"}}\n')
    with pytest.raises(
        InputError, match=r"x\.jsonl: line 2: Abstract: a cell holds an object with the keys 'AbstractText'"
    ):
        read_files([lines], tmp_path / "other")
    lines.write_text('{"Abstract": "one", "Journal": {"name": "J"}}\n')
    with pytest.raises(InputError, match="or leave it out with --columns Journal="):
        read_files([lines], tmp_path / "other")
    table = read_files([lines], tmp_path / "third", columns={"Journal": ""}).table
    assert table[["Abstract", "Journal"]].to_numpy().tolist() == [["one", ""]]
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "a.csv",
            b"PMID,Title,Text\n1,t,x\n",
            r"there is no abstract column; found are 'PMID', 'Title', 'Text'\. .*--columns",
        ),
        ("a.csv", b"Abstract,abstract\nx,y\n", "both Abstract and abstract could be Abstract"),
        ("a.csv", b"", r"a\.csv is empty"),
        ("a.csv", b"\n1\n", "its first line, which should name the columns, is empty"),
        ("a.csv", b"Abstract,Title\nx,y\nx\n", r"row 3 \(line 3\) has 1 cells, the header 2"),
        ("a.csv", b'Abstract\n"never closed\nx\n', "is a quotation mark not closed"),
        ("a.csv", b'Abstract\n"' + b"x" * 200_000, "longer than 131,072 characters"),
        ("a.csv", b"Abstract\n\xff\xfe\x00junk", "is no text in UTF-8"),
        ("a.csv", b"Abstract\n", "the files hold no record"),
        ("a.jsonl", b'{"abstract": "x"}\n{broken\n', "line 2 is no JSON"),
        ("a.jsonl", b'["x"]\n', "line 1 is no JSON object .* but list"),
        ("a.jsonl", b"\n\n", "no object with an abstract"),
        ("a.jsonl", b'{"text": "x"}\n', "there is no abstract column; found are 'text'"),
        ("a.parquet", random.Random(0).randbytes(64), "cannot be read as Parquet"),
        ("a.xml", b"\x00\x01\x02\x03", "no well-formed XML"),
        ("a.xml", b"<PubmedArticleSet></PubmedArticleSet>", "the files hold no record"),
        ("a.xml", article_set(article_xml("1")).encode()[:-9], "cut off"),
        (
            "a.xml",
            b"<eFetchResult><ERROR>Empty result</ERROR></eFetchResult>",
            "an error of the E-utilities: Empty result",
        ),
        ("a.xml.gz", b"<PubmedArticleSet/>", r"is named \.gz, but its content is not compressed"),
        ("a.xml.gz", gzip.compress(random.Random(0).randbytes(99999))[:-50], "cannot be unpacked|no well-formed"),
        ("a.csv.gz", gzip.compress(b"Abstract\n" + b"x\n" * 99999)[:-20], "cannot be unpacked"),
        ("a.docx", b"x", r"its name does not say what it is; known are \.xml"),
        ("README", b"x", "its name does not say what it is"),
    ],
)
def test_a_wrong_file_is_one_sentence_and_nothing_is_left(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        read_files([path], tmp_path / "out")
    assert len(caught.value.faults) == 1
    assert not (tmp_path / "out").exists()


def test_a_damage_in_the_middle_leaves_nothing_and_an_empty_folder_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"abstract": "x"}\n' * 3000 + "{")
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="line 3001 is no JSON"):
        read_files([path], tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_stop_while_the_page_is_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("engramscope.corpus.build.write_page", stop)
    with pytest.raises(KeyboardInterrupt):
        read_files([write(tmp_path, "csv")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_faults_of_all_files_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_files(
            [tmp_path / "no.csv", tmp_path, write(tmp_path, "csv")],
            tmp_path / "out",
            columns={"Titel": "x", "URL": "y"},
        )
    assert len(caught.value.faults) == 4
    assert "is a folder" in str(caught.value)
    assert "--columns names 'Titel'" in str(caught.value)


def test_an_occupied_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years")
    with pytest.raises(ResultsError, match=r"is not empty; give a new folder\.$"):
        read_files([write(tmp_path, "csv")], tmp_path / "out")
    with pytest.raises(ResultsError, match="is a file"):
        read_files([write(tmp_path, "csv")], tmp_path / "out" / "thesis.txt")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_hostile_text_does_no_harm(tmp_path: Path) -> None:
    rows = [
        {"abstract": "<script>alert(1)</script> $\\frac{", "keywords": "$x^{; <img src=x onerror=y>; 脳", "title": "t"}
    ]
    corpus = read_files([write(tmp_path, "jsonl", rows)], tmp_path / "out", terms=["<script>", "$\\frac"])
    page = corpus.page.read_text(encoding="utf-8")
    assert "<script" not in page
    assert "onerror=y>" not in page
    assert "<script" not in (corpus.folder / "figures" / "terms.svg").read_text(encoding="utf-8")


real = pytest.mark.skipif(
    "ENGRAMSCOPE_SHARED" not in os.environ, reason="ENGRAMSCOPE_SHARED names no folder with abstracts"
)


@real
def test_real_abstracts_come_through_word_by_word(tmp_path: Path) -> None:
    path = Path(os.environ["ENGRAMSCOPE_SHARED"]) / "data" / "pubmed_epilepsy" / "epilepsy_pubmed.csv"
    corpus = read_files([path], tmp_path / "out", terms=["epilepsy", "EEG", "seizure"])
    counts = corpus.manifest["counts"]
    assert (counts["read"], counts["rows"], counts["dropped"]["same_text"]) == (7486, 7483, 3)
    original = pd.read_csv(path, dtype=str, keep_default_na=False).set_index("PMID")
    table = corpus.table.set_index("PMID")
    assert table.index.is_unique
    same = original.loc[table.index]
    squeezed = same["Abstract"].str.replace(r"\s+", " ", regex=True).str.strip()
    # one byte-order mark and one misread apostrophe are in the file
    squeezed = squeezed.str.replace("\ufeff", "").str.replace("\x92", "’")
    marked = squeezed.str.contains(r"&#?\w+;|</?(?:i|b|sup|sub|strike)>", regex=True)
    assert (table["Abstract"][~marked] == squeezed[~marked]).all()
    assert marked.sum() < 10
    assert (table["Year"].astype(int) == same["Year"].astype(int)).all()
    for term in corpus.manifest["analysis"]["terms"]:
        assert term["substring_mentions"] == table["Abstract"].str.lower().str.count(term["term"].lower()).sum()


def test_the_table_streams_in_small_groups(tmp_path: Path) -> None:
    rows = [{"abstract": f"text number {n}", "title": str(n)} for n in range(2500)]
    corpus = read_files([write(tmp_path, "jsonl", rows)], tmp_path / "out")
    assert pq.ParquetFile(corpus.folder / "corpus.parquet").metadata.num_row_groups == 3
    assert isinstance(corpus, Corpus)
    assert len(corpus.table) == 2500
