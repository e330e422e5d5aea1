"""Differences between columns that were measured on the same cases, with a correction for how many are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from engramscope.stats.clusters import Floats
from engramscope.stats.correction import holm
from engramscope.stats.intervals import resampled_means

#: a spread below this part of the statistic's size is rounding
_ROUNDING = 1e-12

#: means of one column's parts [..., parts] -> its statistic [...]
Statistic = Callable[[Floats], Floats]


@dataclass(frozen=True)
class PairedDifferences:
    """First minus second, for each comparison [comparisons]."""

    difference: Floats
    low: Floats  # percentile bootstrap of this comparison alone
    high: Floats
    low_all: Floats  # holds for all comparisons together (max-T)
    high_all: Floats
    p: Floats  # this comparison alone, two-sided, never 0
    p_max_t: Floats  # family-wise over the comparisons
    p_holm: Floats  # Holm's correction of p
    n_cases: int
    n_clusters: int


def paired_differences(
    values: ArrayLike, comparisons: Sequence[tuple[int, int]], clusters: ArrayLike | None = None, *,
    rng: np.random.Generator, statistic: Statistic | None = None, confidence: float = 0.95, resamples: int = 10_000,
) -> PairedDifferences:  # fmt: skip
    """Compare columns by the bootstrap over the cases that all of them have, the same draws for all.

    With d the difference, d_b that of resample b and s the standard deviation of the d_b: t_b = (d_b − d) / s, and
    p = (1 + #{b: |t_b| ≥ |d| / s}) / (B + 1). Max-T takes the largest |t_b| over the comparisons in each resample; the
    interval for all together is d ± q s with q its quantile.

    Resamples of K clusters vary too little and have the tails of a normal distribution, so t_b is widened to
    √(K / (K − 1)) t_{K−1}⁻¹(Φ(t_b)), and the percentiles of the interval likewise; with many clusters that changes
    nothing. No p is below 2^(1 − K), the smallest that exchanging the signs of K clusters can give.

    Args:
        values: [cases, columns, parts]; the statistic is of the means of the parts over cases. NaN = missing: such a
            case is left out for all columns.
        comparisons: pairs of columns.
        clusters: label of each case; by default each is its own.
        rng: source of randomness.
        statistic: by default the mean of the only part.
        confidence: of the intervals.
        resamples: of the bootstrap.

    Returns:
        NaN throughout where fewer than two clusters have all columns. A difference that is the same in every resample
        has p = 1 where it is 0, and else the smallest p that is possible: all cases agree.

    Source: Westfall & Young 1993 (max-T); Romano & Wolf 2005, algorithm 4.1 (centred at the estimate, with one s for
        all resamples); Hesterberg 2015 (expanded percentiles).
    """
    found = np.asarray(values, dtype=np.float64)
    labels = np.arange(len(found)) if clusters is None else np.asarray(clusters)
    whole = ~np.isnan(found).any(axis=(1, 2))
    found, labels = found[whole], labels[whole]
    n_clusters = len(np.unique(labels))
    if n_clusters < 2 or not comparisons:
        empty = np.full(len(comparisons), np.nan)
        return PairedDifferences(empty, empty, empty, empty, empty, empty, empty, empty, len(found), n_clusters)
    chosen = statistic or _only
    cases, columns, parts = found.shape
    sampled = resampled_means(found.reshape(cases, -1), labels, rng=rng, resamples=resamples).means
    first, second = (np.array([pair[side] for pair in comparisons]) for side in (0, 1))
    estimates = chosen(found.mean(axis=0))
    replicates = chosen(sampled.reshape(resamples, columns, parts))
    difference = estimates[first] - estimates[second]
    drawn = replicates[:, first] - replicates[:, second]
    spread = drawn.std(axis=0)
    size = np.abs(estimates[first]) + np.abs(estimates[second])
    still = spread <= _ROUNDING * size
    t_drawn = np.where(still, 0.0, np.abs(drawn - difference) / np.where(still, 1.0, spread))
    t = np.where(still, np.where(np.abs(difference) <= _ROUNDING * size, 0.0, np.inf),
                 np.abs(difference) / np.where(still, 1.0, spread))  # fmt: skip
    largest = t_drawn.max(axis=1)
    tail = special.ndtr(-_widened(special.ndtri((1.0 + confidence) / 2.0), n_clusters))
    low, high = np.quantile(drawn, [tail, 1.0 - tail], axis=0)
    reach = _widened(np.quantile(largest, confidence), n_clusters) * spread
    # not what was drawn is widened but what it is compared with is narrowed, which are few numbers
    least, bound = 2.0 ** (1 - n_clusters), _narrowed(t, n_clusters)
    p = np.maximum((1 + (t_drawn >= bound).sum(axis=0)) / (resamples + 1), least)
    p_max = np.maximum((1 + (largest[:, None] >= bound).sum(axis=0)) / (resamples + 1), least)
    return PairedDifferences(difference, low, high, difference - reach, difference + reach, p, p_max, holm(p), cases,
                             n_clusters)  # fmt: skip


def _widened(t: ArrayLike, n_clusters: int) -> Floats:
    """Normal quantiles ≥ 0 as those of Student's t, with the standard error of so many clusters."""
    freedom = n_clusters - 1.0
    return -np.sqrt(n_clusters / freedom) * special.stdtrit(freedom, special.ndtr(-np.asarray(t, dtype=np.float64)))


def _narrowed(t: ArrayLike, n_clusters: int) -> Floats:
    """The other way round."""
    freedom = n_clusters - 1.0
    return -special.ndtri(special.stdtr(freedom, -np.asarray(t, dtype=np.float64) * np.sqrt(freedom / n_clusters)))


def _only(means: Floats) -> Floats:
    return means[..., 0]
