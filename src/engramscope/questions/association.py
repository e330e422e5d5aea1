"""How strongly two terms go together: Dunning's log-likelihood ratio and pointwise mutual information."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import chi2


def log_likelihood_ratio(
    together: Int[np.ndarray, "*shape"], first: Int[np.ndarray, "*shape"], second: Int[np.ndarray, "*shape"], total: int
) -> Float[np.ndarray, "*shape"]:
    """G² of the two-by-two table of two terms over `total` units: 2 Σ O ln(O / E), in nats; at least 0, 0 at chance.

    O are the four counts (both terms, one, the other, none), E what they would be if the terms were independent. It
    says how sure a difference from chance is, not in which direction it lies.

    Args:
        together: units with both terms.
        first: units with the first term.
        second: units with the second term.
        total: all units.

    Source: T. Dunning, "Accurate methods for the statistics of surprise and coincidence", Computational Linguistics
        19(1):61-74 (1993).
    """
    both, one, other = (np.asarray(part, dtype=float) for part in (together, first, second))
    observed = [both, one - both, other - both, total - one - other + both]
    rows, columns = (one, one, total - one, total - one), (other, total - other, other, total - other)
    # the order of the cells: both, first only, second only, none
    ratio = np.zeros(np.broadcast(both, one, other).shape)
    for count, row, column in zip(observed, rows, columns, strict=True):
        expected = row * column / total
        some = count > 0
        ratio = ratio + np.where(some, count * np.log(np.where(some, count, 1.0) / np.where(some, expected, 1.0)), 0.0)
    return np.maximum(2 * ratio, 0.0)


def pointwise_mutual_information(together: int, first: int, second: int, total: int) -> float:
    """log2 of how many times more often two terms stand together than by chance, in bits; -inf where they never do.

    Source: K. W. Church and P. Hanks, "Word association norms, mutual information, and lexicography", Computational
        Linguistics 16(1):22-29 (1990).
    """
    return float(np.log2(together * total / (first * second))) if together else -np.inf


def threshold(tests: int, family_error: float = 0.05) -> float:
    """G² above which one of `tests` couples of terms counts as associated: χ² with one degree of freedom, Bonferroni.

    Sentences of one abstract depend on one another, so this orders and sifts; it is no error rate to be cited.
    """
    return float(chi2.isf(family_error / max(1, tests), 1))
