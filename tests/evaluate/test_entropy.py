"""GE: words as the Treebank counts them, and the entropy of their n-grams."""

from __future__ import annotations

import json
import os
from collections import Counter
from math import log2
from pathlib import Path

import numpy as np
import pytest

from engramscope.evaluate.entropy import ngram_entropy
from engramscope.evaluate.words import sentences, words

SHARED = os.environ.get("ENGRAMSCOPE_SHARED")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("She can't go.", ["She", "ca", "n't", "go", "."]),
        ("In the U.S. law is law.", ["In", "the", "U.S.", "law", "is", "law", "."]),
        ('He said "no", twice.', ["He", "said", "``", "no", "''", ",", "twice", "."]),
        ("It cost $3,500 (or so)!", ["It", "cost", "$", "3,500", "(", "or", "so", ")", "!"]),
        ("Anna's dog, they'll say, isn't", ["Anna", "'s", "dog", ",", "they", "'ll", "say", ",", "is", "n't"]),
        ("I cannot wait... gonna go--now", ["I", "can", "not", "wait", "...", "gon", "na", "go", "--", "now"]),
        ("One ends. Two begins.", ["One", "ends", ".", "Two", "begins", "."]),
        ("“Naïve” café: 12:30 – 北京", ["“", "Naïve", "”", "café", ":", "12:30", "–", "北京"]),
        ("", []),
        (" \n ", []),
    ],
)  # fmt: skip
def test_words_are_those_of_the_treebank(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_a_sentence_ends_only_before_a_capital_a_quote_or_a_bracket() -> None:
    text = 'At 3 p.m. he left. "Why?" Ah! (Nobody knew.) so. É fine. yes'
    assert sentences(text) == ["At 3 p.m. he left.", '"Why?" Ah!', "(Nobody knew.) so.", "É fine. yes"]


def test_entropy_by_hand() -> None:
    # a b a b c: bigrams ab 2, ba 1, bc 1; trigrams aba, bab, abc once each
    bigrams = 2 / 4 * log2(2) + 2 * (1 / 4 * log2(4))
    trigrams = log2(3)
    assert ngram_entropy("a b a b c") == pytest.approx((2 / 3 * bigrams + 4 / 3 * trigrams) / 2, abs=1e-12)


def test_entropy_of_a_text_that_says_nothing_is_zero() -> None:
    for text in ("", "a", "a b", "a a a a a a"):
        assert str(ngram_entropy(text)) == "0.0"
    assert ngram_entropy("a b c") == pytest.approx(2 / 3 / 2)


def test_entropy_is_largest_where_no_ngram_comes_twice() -> None:
    distinct = " ".join(f"w{i}" for i in range(90))
    assert ngram_entropy(distinct) == pytest.approx((2 / 3 * log2(89) + 4 / 3 * log2(88)) / 2)
    assert ngram_entropy(distinct) > ngram_entropy(" ".join(f"w{i % 30}" for i in range(90)))


@pytest.mark.skipif(SHARED is None, reason="ENGRAMSCOPE_SHARED names no folder with the generations of the publication")
@pytest.mark.parametrize(
    ("method", "measured"), [("GPT-2 XL", 626.5), ("FT_L", 621.2), ("MEND", 627.4), ("ROME", 623.0)]
)
def test_entropy_of_the_published_generations(method: str, measured: float) -> None:
    assert SHARED is not None
    path = Path(SHARED) / "data" / "counterfact" / "rome_human_generations_100.json"
    cases = json.loads(path.read_text(encoding="utf-8"))
    assert len(cases) == 100
    found = 100 * np.mean([np.mean([ngram_entropy(text) for text in case[method]]) for case in cases])
    # the task asks for 1.5; a splitter that is a little off shows at 0.1
    assert found == pytest.approx(measured, abs=0.1)


def test_entropy_equals_a_count_of_its_own() -> None:
    text = "the cat saw the dog and the cat saw the man"
    split = text.split()
    total = 0.0
    for n, weight in ((2, 2 / 3), (3, 4 / 3)):
        counts = np.array(list(Counter(tuple(split[i : i + n]) for i in range(len(split) - n + 1)).values()))
        shares = counts / counts.sum()
        total += weight * float(-(shares * np.log2(shares)).sum())
    assert ngram_entropy(text) == pytest.approx(total / 2, abs=1e-12)
