"""RS: TF-IDF cosine against scikit-learn, and the reader of reference texts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engramscope.errors import InputError
from engramscope.evaluate import reference_file
from engramscope.evaluate.reference import PUBLISHED_SHA256, References, TfIdf, terms
from engramscope.evaluate.reference_file import read_references

DOCUMENTS = [
    "The Eiffel Tower stands in Paris; the tower is 330 m tall.",
    "Berlin is the capital of Germany. It is NOT in France, isn't it?",
    "Naïve café_owner won't serve Ünïcode ½ 北京 x y zz 7 42",
    "",
    "the the the tower",
]
ENTRIES: list[dict[str, Any]] = [
    {"relation_id": "P1", "target_id": "Q1", "samples": [{"name": "Anna", "text": "Anna plays the drum."}]},
    {"relation_id": "P1", "target_id": "Q2", "samples": [{"text": "Bob ⟨likes⟩ \"it\"."}, {"text": "A kite flies."}]},
    {"relation_id": "P2", "target_id": "Q1", "samples": [{"name": "Anna", "text": "She lives in Rome."}]},
    {"relation_id": "P1", "target_id": "Q1", "samples": [{"name": "Eva", "text": "Eva drums."}]},
]  # fmt: skip


def write(path: Path, entries: Any) -> Path:
    path.write_text(json.dumps(entries, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


def test_tfidf_equals_scikit_learn() -> None:
    text = pytest.importorskip("sklearn.feature_extraction.text")
    vectors = text.TfidfVectorizer().fit(DOCUMENTS)
    ours = TfIdf.fit(DOCUMENTS)
    assert set(ours.vocabulary) == set(vectors.vocabulary_)
    for word, place in vectors.vocabulary_.items():
        assert ours.idf[ours.vocabulary[word]] == pytest.approx(vectors.idf_[place], abs=1e-14)
    probes = [*DOCUMENTS, "the tower in France", "nothing of it", "TOWER tower Tower 42 it"]
    expected = (vectors.transform(probes) @ vectors.transform(probes).T).toarray()
    found = np.array([[ours.cosine(one, other) for other in probes] for one in probes])
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_tfidf_by_hand() -> None:
    fitted = TfIdf.fit(["aa bb", "aa"])
    common, rare = 1.0, np.log(3 / 2) + 1
    assert fitted.weights("aa bb bb xx") == pytest.approx(
        {fitted.vocabulary["aa"]: common, fitted.vocabulary["bb"]: 2 * rare}
    )
    assert fitted.cosine("aa bb", "aa") == pytest.approx(1 / np.sqrt(1 + rare**2))
    assert fitted.cosine("xx", "aa") == 0.0
    assert terms("A b-cd, É12_x") == ["cd", "é12_x"]


def test_scores_join_texts_and_say_what_they_can_be_compared_with() -> None:
    references = References.from_texts({"P1|Q2": ("kites fly", "high up"), "P1|Q1": ("drums",)}, source="ours")
    joined = references.tfidf.cosine("a kite kites are high", "kites fly high up")
    assert references.score("P1|Q2", ["a kite kites", "are high"]) == joined > 0
    assert references.score("P9|Q9", ["a"]) is None
    assert references.score(None, ["a"]) is None
    assert references.score("P1|Q2", []) is None
    assert not references.comparable
    assert "not comparable" in references.note
    published = References.from_texts({}, sha256=PUBLISHED_SHA256)
    assert published.comparable
    assert "not comparable" not in published.note
    assert PUBLISHED_SHA256 == "10b5c1cd105e54d5983c72de1b45bfc88bc7af786f7b99def2557886ff23385b"


@pytest.mark.parametrize("chunk", [1, 7, 64, 2**20])
def test_a_file_is_read_an_entry_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(reference_file, "_CHUNK", chunk)
    path = write(tmp_path / "snippets.json", ENTRIES)
    seen: list[tuple[str, int, int]] = []
    found = read_references(path, {"P1|Q1"}, {"Anna"}, progress=lambda *step: seen.append(step))
    assert found.texts == {"P1|Q1": ["Anna plays the drum.", "Eva drums."]}
    assert found.about == {"Anna": ["Anna plays the drum.", "She lives in Rome."]}
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert seen[-1][1:] == (path.stat().st_size, path.stat().st_size)
    everything = [sample["text"] for entry in ENTRIES for sample in entry["samples"]]
    whole = TfIdf.fit(everything)
    assert found.tfidf.vocabulary == whole.vocabulary
    np.testing.assert_array_equal(found.tfidf.idf, whole.idf)
    assert set(read_references(path).texts) == {"P1|Q1", "P1|Q2", "P2|Q1"}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "not a JSON list"),
        ('{"relation_id": 1}', "not a JSON list"),
        ('[{"relation_id": "P1"', "not valid JSON"),
        ('[{"relation_id": "P1", "samples": []}]', "entry 0: target_id is missing"),
        ("[3]", "entry 0: expected an object"),
        ('[{"relation_id": "P1", "target_id": "Q", "samples": [{"name": "x"}]}]', "entry 0, sample 0"),
        ('[{"relation_id": "P1", "target_id": "Q", "samples": {}}]', "samples is not a list"),
        ("[] x", "after the end"),
    ],
)
def test_files_at_fault_are_refused_with_a_sentence(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "snippets.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=what):
        read_references(path)


def test_files_that_are_no_text_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "snippets.json"
    with pytest.raises(InputError, match="could not be read"):
        read_references(path)
    path.write_bytes(b'["\xff\xfe"]')
    with pytest.raises(InputError, match="not valid JSON"):
        read_references(path)
