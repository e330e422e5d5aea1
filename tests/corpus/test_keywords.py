"""The keyword analysis against plain counts."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engramscope.corpus.keywords import _candidates, analyse, checked_terms, terms_of_query
from engramscope.corpus.write import SCHEMA
from engramscope.errors import InputError


def table(path: Path, rows: list[tuple[str, str, int | None]]) -> Path:
    cells = {name: ["" for _ in rows] for name in SCHEMA.names}
    cells["Abstract"], cells["Keywords"], cells["Year"] = map(list, zip(*rows, strict=True))  # type: ignore[assignment]
    pq.write_table(pa.table(cells, schema=SCHEMA), path)
    return path


def test_terms_years_and_keywords_by_hand(tmp_path: Path) -> None:
    made = table(
        tmp_path / "t.parquet",
        [
            ("Seizures, a seizure; SEIZURE-free. iEEG and EEG.", "EEG; Epilepsy", 2001),
            ("No such word: pseudoseizure.", "epilepsy", 2003),
            ("Status  epilepticus, status\nepilepticus", "Epilepsy; epilepsy", None),
        ],
    )
    found = analyse(made, ["seizure", "EEG", "status epilepticus", "a.c"])
    assert [(t.mentions, t.documents, t.substring_mentions, t.substring_documents) for t in found.terms] == [
        (2, 1, 4, 2), (1, 1, 2, 1), (2, 1, 2, 1), (0, 0, 0, 0),
    ]  # fmt: skip
    assert found.years == ((2001, 1), (2002, 0), (2003, 1))
    assert found.abstracts == 3
    assert found.words == 7 + 5 - 1 + 4
    assert found.frequent.kind == "keyword"
    assert found.frequent.entries == (("Epilepsy", 4, 3), ("EEG", 1, 1))
    assert found.frequent.complete


def test_phrases_stand_in_where_nothing_has_keywords(tmp_path: Path) -> None:
    made = table(
        tmp_path / "t.parquet",
        [("The temporal lobe epilepsy. Temporal lobe!", "", 1999), ("A temporal, lobe of 12 patients", "", 1999)],
    )
    found = analyse(made, [])
    assert found.frequent.kind == "phrase"
    assert found.frequent.entries == (
        ("lobe", 3, 2), ("temporal", 3, 2), ("temporal lobe", 2, 1), ("epilepsy", 1, 1), ("lobe epilepsy", 1, 1),
    )  # fmt: skip


def test_the_list_is_that_of_a_plain_count_on_random_texts(tmp_path: Path) -> None:
    draw = random.Random(3)
    words = [f"w{n}x" for n in range(300)]
    weights = [1 / (n + 1) for n in range(300)]
    documents = ["; ".join(draw.choices(words, weights, k=draw.randint(0, 9))) for _ in range(1500)]
    found = analyse(table(tmp_path / "t.parquet", [("x", one, None) for one in documents]), [], most=20)
    lists = [[word for word in one.split("; ") if word] for one in documents]
    plain = Counter(word for one in lists for word in set(one))
    mentions = Counter(word for one in lists for word in one)
    expected = sorted(plain, key=lambda word: (-plain[word], -mentions[word], word))[:20]
    assert found.frequent.entries == tuple((word, mentions[word], plain[word]) for word in expected)
    assert found.frequent.distinct_documents == sum(map(bool, lists))


def test_a_bounded_count_loses_nothing_above_its_error() -> None:
    draw = random.Random(0)
    names = [f"n{n}" for n in range(5000)]
    documents = [
        [draw.choice(names) for _ in range(5)] + (["often"] if draw.random() < 0.2 else []) for _ in range(3000)
    ]
    held, error = _candidates(documents, 100)
    counts = Counter(name for one in documents for name in set(one))
    assert len(held) <= 200
    assert 0 < error < sum(counts.values()) / 100
    assert all(name in held for name, count in counts.items() if count > error)
    assert "often" in held


def test_mentions_agree_with_another_way_of_counting(tmp_path: Path) -> None:
    draw = random.Random(1)
    bits = ["EEG", "eeg", "Eegs", "iEEG", " ", "-", "; ", "é", "9", "_", ". "]
    texts = ["".join(draw.choices(bits, k=60)) for _ in range(50)]
    (term,) = analyse(table(tmp_path / "t.parquet", [(text, "", None) for text in texts]), ["EEG"]).terms
    pieces = [[word for word in re.split(r"[\W_]+", text.lower()) if word == "eeg"] for text in texts]
    assert term.mentions == sum(map(len, pieces)) > 0
    assert term.documents == sum(map(bool, pieces))
    assert term.substring_mentions == sum(text.lower().count("eeg") for text in texts)


@pytest.mark.parametrize(
    ("query", "terms"),
    [
        ("epilepsy AND (EEG OR seizure)", ("epilepsy", "EEG", "seizure")),
        ('"status epilepticus"[MeSH Terms] NOT child AND 2010:2020[dp]', ("status epilepticus",)),
        ("seizur* OR Epilepsy[ti] or epilepsy", ("seizur", "Epilepsy")),
        ("2020[dp]", ()),
    ],
)
def test_the_terms_of_a_query(query: str, terms: tuple[str, ...]) -> None:
    assert terms_of_query(query) == terms


def test_terms_are_checked() -> None:
    assert checked_terms([" EEG ", "eeg", "status  epilepticus"]) == ("EEG", "status epilepticus")
    with pytest.raises(InputError, match=r"'\.\.\.' has none"):
        checked_terms(["..."])
