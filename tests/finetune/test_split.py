"""Which documents are held out: the right number of every stratum, and no text on both sides."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest

from engramscope.errors import InputError
from engramscope.finetune.documents import corpus_hash, mentions_of, read_documents, same_text
from engramscope.finetune.split import SMALL, draw_stratified, merge_small, split_documents
from tests.finetune.small import corpus_table

TERMS = ("epilepsy", "EEG", "seizure")


def _split(table: pd.DataFrame, share: float = 0.2, seed: int = 42):
    documents = read_documents(table, "abstract", TERMS, None, seed)
    return documents, split_documents(documents, TERMS, share, seed)


def test_every_stratum_gives_its_share() -> None:
    documents, split = _split(corpus_table(300))
    # counted anew from the texts
    names = [" + ".join(term for term in TERMS if term.lower() in text.lower()) or "(none)" for text in documents.texts]
    assert list(split.strata) == names
    assert Counter(names) == {"(none)": 100, "epilepsy": 100, "EEG": 50, "epilepsy + EEG": 50}
    held = Counter(name for name, out in zip(names, split.held_out, strict=True) if out)
    assert held == {"(none)": 20, "epilepsy": 20, "EEG": 10, "epilepsy + EEG": 10}


def test_the_same_seed_gives_the_same_split_and_another_one_another() -> None:
    table = corpus_table(100)
    first, again, other = (_split(table, seed=seed)[1].held_out for seed in (42, 42, 43))
    assert (first == again).all()
    assert (first != other).any()
    assert first.sum() == other.sum() == 20


@pytest.mark.parametrize("count", [2, 3, 7, 33, 101])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.37])
def test_the_total_is_the_rounded_share(count: int, share: float) -> None:
    names = merge_small([f"s{number % 7 % 4}" for number in range(count)], share)
    drawn = draw_stratified(names, share, np.random.default_rng(0))
    assert drawn.sum() == round(share * count)
    for name in set(names):
        inside = [bool(one) for one, own in zip(drawn, names, strict=True) if own == name]
        assert abs(sum(inside) - share * len(inside)) < 1


def test_small_strata_are_put_together() -> None:
    names = ["a"] * 10 + ["b"] * 4 + ["c"] + ["d"] * 5
    assert Counter(merge_small(names, 0.2)) == {"a": 10, SMALL: 5, "d": 5}
    assert Counter(merge_small(names, 0.8)) == {"a": 10, SMALL: 5, "d": 5}


def test_copies_of_a_text_lie_on_one_side() -> None:
    table = corpus_table(60)
    copies = table.head(30).copy()
    copies["PMID"] = [f"c{number}" for number in range(30)]
    copies["Abstract"] = "  " + copies["Abstract"].str.upper().str.replace(". ", " ...\n", regex=False)
    for seed in range(5):
        documents, split = _split(pd.concat([table, copies], ignore_index=True), 0.3, seed)
        assert (split.held_out[:30] == split.held_out[60:]).all()
        assert 0 < split.held_out[:30].sum() < 30
        assert not {text.strip() for text, out in zip(documents.texts, split.held_out, strict=True) if out} & {
            text.strip() for text, out in zip(documents.texts, split.held_out, strict=True) if not out
        }


def test_same_text_knows_what_is_not_the_same() -> None:
    texts = ["A b.", "a  B", "ab", "a b c", "…", "!", "µ a", "μ a"]
    groups = same_text(texts).tolist()
    assert groups == [0, 0, 1, 2, 3, 4, 5, 5]


def test_mentions_do_not_mind_case() -> None:
    found = mentions_of(["Seizures and eeg", "none", "Status  Epilepticus"], ("seizure", "EEG", "status epilepticus"))
    assert found.tolist() == [[True, True, False], [False, False, False], [False, False, True]]
    assert mentions_of(["a", "b"], ()).shape == (2, 0)


def test_rows_without_a_text_are_counted_and_an_empty_corpus_is_refused() -> None:
    table = corpus_table(10)
    table.loc[[2, 5], "Abstract"] = ["", "  "]
    documents = read_documents(table, "abstract", TERMS, None, 0)
    assert (len(documents.ids), documents.without_text) == (8, 2)
    assert "1002" not in documents.ids
    for empty in (table.head(0), table.assign(Abstract="")):
        with pytest.raises(InputError, match="no abstract in any"):
            read_documents(empty, "abstract", TERMS, None, 0)


def test_the_title_comes_before_the_abstract_where_it_is_asked_for() -> None:
    table = corpus_table(3)
    both = read_documents(table, "title+abstract", TERMS, None, 0)
    assert both.texts[1] == f"Title 1\n{table['Abstract'][1]}"
    assert corpus_hash(both) != corpus_hash(read_documents(table, "abstract", TERMS, None, 0))


def test_a_limit_is_a_sample_in_the_order_of_the_corpus() -> None:
    table = corpus_table(50)
    found = [read_documents(table, "abstract", TERMS, 10, seed).ids for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
    assert list(found[0]) == sorted(found[0], key=int)
    assert len(set(found[0])) == 10


def test_a_side_that_would_be_empty_is_refused() -> None:
    with pytest.raises(InputError, match="leaves the validation side empty"):
        _split(corpus_table(2))
    same = pd.concat([corpus_table(1)] * 5, ignore_index=True)
    with pytest.raises(InputError, match="has 1 different texts"):
        _split(same, 0.5)


def test_the_table_names_every_document() -> None:
    documents, split = _split(corpus_table(50))
    table = split.table(documents)
    assert list(table.columns) == ["row", "PMID", "side", "stratum"]
    assert list(table["row"]) == list(range(50))
    assert list(table["PMID"]) == list(documents.ids)
    assert ((table["side"] == "validation").to_numpy() == split.held_out).all()
    assert set(table["side"]) == {"train", "validation"}
