"""How far two sets of cells agree, and how far chance alone would let them."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True)
class Overlap:
    """Agreement of two subsets of the same cells.

    Attributes:
        jaccard: |A ∩ B| / |A ∪ B|, in [0, 1]; NaN where both are empty.
        chance: its expectation where B is as large but drawn at random.
        p: probability that a random B has as many cells in common with A, or more; 1 where one of them is empty.
        common: |A ∩ B|.
        sizes: |A|, |B|.
    """

    jaccard: float
    chance: float
    p: float
    common: int
    sizes: tuple[int, int]


def overlap(first: Collection[Hashable], second: Collection[Hashable], cells: int) -> Overlap:
    """Compare two sets of detected cells.

    With N cells and sizes a, b, a random B has k cells in common with A with probability Hypergeometric(k; N, a, b);
    `chance = Σ_k P(k) · k / (a + b - k)` and `p = P(K ≥ k)`.

    Args:
        first, second: the sets.
        cells: number of cells that both were chosen from.

    Raises:
        ValueError: a set has more members than there are cells.
    """
    one, other = set(first), set(second)
    a, b, common = len(one), len(other), len(one & other)
    if len(one | other) > cells:
        raise ValueError(f"{len(one | other)} different cells are named, but there are only {cells}")
    if not a and not b:
        return Overlap(float("nan"), float("nan"), 1.0, 0, (0, 0))
    possible = range(max(0, a + b - cells), min(a, b) + 1)
    chance = sum(float(stats.hypergeom.pmf(k, cells, a, b)) * k / (a + b - k) for k in possible)
    p = float(stats.hypergeom.sf(common - 1, cells, a, b)) if common else 1.0
    return Overlap(common / (a + b - common), chance, min(1.0, p), common, (a, b))
