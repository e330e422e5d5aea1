"""Fluency: the entropy of a text's n-grams (GE)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import log2

from engramscope.evaluate.words import words

#: n -> weight of its entropy; they sum to 2, and the sum is divided by their number
WEIGHTS = {2: 2 / 3, 3: 4 / 3}


def ngram_entropy(text: str) -> float:
    """GE(text) = (2/3 H₂ + 4/3 H₃) / 2, with Hₙ = −Σ f log₂ f over the frequencies f of the text's n-grams of words.

    Returns:
        Bits, ≥ 0: 0 for a text that repeats one word, or that is too short for two different n-grams; the published
        figures are these times 100.

    Source: Meng et al. 2022 (2202.05262), "generation entropy", after Zhang et al. 2018.
    """
    found = words(text)
    return sum(weight * _entropy(found, n) for n, weight in WEIGHTS.items()) / len(WEIGHTS)


def _entropy(found: Sequence[str], n: int) -> float:
    counts = Counter(zip(*(found[start:] for start in range(n)), strict=False))
    total = counts.total()
    return sum(count / total * log2(total / count) for count in counts.values()) if total else 0.0
