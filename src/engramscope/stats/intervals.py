"""Intervals of a mean over cases, and of a harmonic mean of such means: as published, and better ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from engramscope.stats.bootstrap import DRAW_ROWS, quantile_limits, resample_clusters
from engramscope.stats.clusters import Floats, cluster_index, cluster_totals

#: the publication's constant for 95 %
_Z = 1.96


def published_interval(values: ArrayLike) -> tuple[float, float]:
    """mean ± 1.96 · s / √n, with s² = Σ (x − mean)² / n.

    Its half-width is 0 where all values are equal, and it can leave the range of the measure: it is there for
    comparison with published tables.

    Args:
        values: one for each case [n].

    Returns:
        Low and high; NaN without values, or where one is not finite.

    Source: Meng et al. 2022 (2202.05262), Table 4 (ddof 0 as in the release).
    """
    found = np.asarray(values, dtype=np.float64)
    if not found.size or not np.isfinite(found).all():
        return float("nan"), float("nan")
    half = _Z * found.std() / np.sqrt(found.size)
    return float(found.mean() - half), float(found.mean() + half)


def wilson_interval(share: float, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion: centre (p + z²/2n) / (1 + z²/n), within [0, 1], never of width 0.

    Args:
        share: the proportion observed, in [0, 1].
        n: how many independent observations.
        confidence: of the two-sided interval.

    Source: Wilson 1927.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    z = float(special.ndtri(0.5 + confidence / 2))
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def harmonic_mean(means: ArrayLike) -> Floats:
    """k / Σ 1/m over the last axis, for means ≥ 0; 0 where one of them is 0."""
    found = np.asarray(means, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return found.shape[-1] / (1.0 / found).sum(axis=-1)


@dataclass(frozen=True)
class ResampledMeans:
    """Means of columns over cases, drawn anew, and with each cluster left out.

    Attributes:
        means: of the resamples [resamples, columns]; NaN where a resample has nothing of a column.
        left_out: without one cluster [clusters, columns]; NaN where the cluster has nothing of the column.
        n_clusters: how many clusters have something of a column [columns].
    """

    means: Floats
    left_out: Floats
    n_clusters: NDArray[np.int64]


def resampled_means(
    values: Floats, clusters: ArrayLike, *, rng: np.random.Generator, resamples: int = 10_000
) -> ResampledMeans:
    """Draw clusters with replacement, the same draws for all columns.

    Args:
        values: [cases, columns]; NaN = the case does not have it.
        clusters: label of each case: cases of one cluster are drawn together.
        rng: source of randomness; its use does not depend on the columns.
        resamples: how many times all clusters are drawn.
    """
    index, n_clusters = cluster_index(clusters, len(values))
    sums = cluster_totals(values, index, n_clusters)
    sizes = cluster_totals((~np.isnan(values)).astype(np.float64), index, n_clusters)
    out = np.empty((resamples, values.shape[1]))
    with np.errstate(invalid="ignore", divide="ignore"):
        for start in range(0, resamples, DRAW_ROWS):
            rows = min(DRAW_ROWS, resamples - start)
            counts = resample_clusters(np.arange(n_clusters), rows, rng).counts.astype(np.float64)
            out[start : start + rows] = (counts @ sums) / (counts @ sizes)
        left_out = (sums.sum(axis=0) - sums) / (sizes.sum(axis=0) - sizes)
    left_out[sizes == 0] = np.nan
    return ResampledMeans(out, left_out, np.count_nonzero(sizes, axis=0))


def bootstrap_limits(
    estimates: ArrayLike, sampled: ResampledMeans, *, confidence: float = 0.95
) -> tuple[Floats, Floats]:
    """BCa limits of each column.

    Args:
        estimates: the statistic of the cases themselves [columns].
        sampled: the same statistic of the resamples; a statistic of several means is put in place of them.
        confidence: of the two-sided interval.

    Returns:
        Low and high [columns]; NaN with fewer than two clusters.
    """
    values = np.asarray(estimates, dtype=np.float64)
    limits = quantile_limits(
        sampled.means.T.copy(), values, sampled.left_out, confidence=confidence, scale=np.abs(values),
        n_clusters=sampled.n_clusters,
    )  # fmt: skip
    return limits[2], limits[3]
