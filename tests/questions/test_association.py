"""Association measures against scipy, and counts against plain loops."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, power_divergence

from engramscope.questions.association import log_likelihood_ratio, pointwise_mutual_information, threshold
from engramscope.questions.associations import Associations
from engramscope.questions.terms import Term, find_mentions
from engramscope.questions.text import read_documents
from tests.questions.corpora import table


def g_test(both: int, one: int, other: int, total: int) -> float:
    cells = np.array([[both, one - both], [other - both, total - one - other + both]])
    return float(chi2_contingency(cells, correction=False, lambda_="log-likelihood").statistic)


@given(st.lists(st.integers(0, 500), min_size=4, max_size=4))
def test_the_ratio_is_scipys_g_test(cells: list[int]) -> None:
    both, first_only, second_only, _ = cells
    one, other, total = both + first_only, both + second_only, sum(cells)
    if not 0 < one < total or not 0 < other < total:
        return
    ours = log_likelihood_ratio(np.array([both]), np.array([one]), np.array([other]), total)
    assert ours[0] == pytest.approx(g_test(both, one, other, total), abs=1e-8, rel=1e-9)


def test_the_ratio_by_hand_and_by_power_divergence() -> None:
    # 10 of 20 and 10 of 80: expected 4, 16, 16, 64
    observed, expected = [10, 10, 10, 70], [4, 16, 16, 64]
    by_hand = 2 * sum(o * math.log(o / e) for o, e in zip(observed, expected, strict=True))
    statistic = power_divergence(observed, expected, lambda_="log-likelihood").statistic
    ours = float(log_likelihood_ratio(np.array(10), np.array(20), np.array(20), 100))
    assert ours == pytest.approx(by_hand)
    assert ours == pytest.approx(float(statistic))


def test_independence_is_zero_and_mutual_information_counts_doublings() -> None:
    assert float(log_likelihood_ratio(np.array(4), np.array(20), np.array(20), 100)) == pytest.approx(0, abs=1e-12)
    assert pointwise_mutual_information(8, 20, 20, 100) == pytest.approx(1)
    assert pointwise_mutual_information(1, 20, 20, 100) == pytest.approx(-2)
    assert pointwise_mutual_information(0, 20, 20, 100) == -math.inf


def test_the_threshold_is_chi_squared_and_grows_with_the_tests() -> None:
    assert threshold(1) == pytest.approx(3.841459, abs=1e-5)
    assert threshold(0) == threshold(1)
    assert threshold(50) == pytest.approx(10.827566, abs=1e-5)  # p = 0.001


TERMS = [
    Term("epilepsy", "disorder", phrases=("epilepsy",)),
    Term("temporal lobe epilepsy", "disorder", symbols=("TLE",), phrases=("temporal lobe epilepsy",)),
    Term("SCN1A", "gene", symbols=("SCN1A",)),
    Term("seizure", "disorder", phrases=("seizures",)),
]


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("Temporal-lobe epilepsies differ.", [1]),
        ("Epilepsy, and TLE, with one seizure.", [0, 1, 3]),
        ("The scn1a and tle are no symbols.", []),
        ("SCN1A-related epilepsy", [0, 2]),
        ("SCN1AB and preepilepsy", []),
        ("epilepsy epilepsy epilepsy", [0]),
    ],
)
def test_mentions_of_a_sentence(sentence: str, expected: list[int]) -> None:
    mentions = find_mentions(read_documents(table([sentence])), TERMS)
    assert np.flatnonzero(mentions.sentences.toarray().sum(axis=0)).tolist() == expected


def test_counts_agree_with_plain_loops() -> None:
    rng = np.random.default_rng(0)
    names = ["alpha", "beta", "gamma", "delta"]
    abstracts = [
        " ".join(f"{' '.join(rng.choice([*names, 'and'], 3))} Then." .capitalize() for _ in range(rng.integers(1, 5)))
        for _ in range(60)
    ]  # fmt: skip
    documents = read_documents(table(abstracts))
    counts = Associations(find_mentions(documents, [Term(name, "", phrases=(name,)) for name in names]))
    units = {
        "sentences": [sentence for document in documents for sentence in document.sentences],
        "documents": [" ".join(document.sentences) for document in documents],
    }
    for unit, texts in units.items():
        table_of = getattr(counts, unit)
        held = [{name for name in names if re.search(rf"\b{name}\b", text, re.IGNORECASE)} for text in texts]
        assert table_of.total == len(texts)
        for i, one in enumerate(names):
            assert table_of.alone[i] == sum(one in words for words in held)
            for j, other in enumerate(names):
                if i != j:
                    both = sum({one, other} <= words for words in held)
                    assert table_of.both(i, j) == both
                    expected = sum(one in w for w in held) * sum(other in w for w in held) / len(texts)
                    assert table_of.expected(i, j) == pytest.approx(expected)
                    assert table_of.above_chance(i, j) == (both > expected)
    for i, one in enumerate(names):
        for j, other in enumerate(names[:i]):
            shared = sum(
                any(re.search(rf"\b{one}\b", s, re.I) and re.search(rf"\b{other}\b", s, re.I) for s in d.sentences)
                for d in documents
            )
            assert counts.sharing(i, j) == shared


def test_terms_are_apart_only_below_chance_everywhere_and_rarely_in_one_sentence() -> None:
    abstracts = [*["Alpha is here. Beta is there."] * 5, *["Nothing at all."] * 20]
    names = ("alpha", "beta")
    counts = Associations(find_mentions(read_documents(table(abstracts)), [Term(n, "", phrases=(n,)) for n in names]))
    # never in one sentence, but always in one document
    assert counts.sentences.both(0, 1) == 0
    assert not counts.apart(0, 1, 3)
    # common terms, below chance, in many sentences all the same
    abstracts = [*["Alpha and beta."] * 4, *["Alpha."] * 50, *["Beta."] * 50]
    counts = Associations(find_mentions(read_documents(table(abstracts)), [Term(n, "", phrases=(n,)) for n in names]))
    assert not counts.sentences.above_chance(0, 1)
    assert not counts.apart(0, 1, 4)
    assert counts.apart(0, 1, 5)
