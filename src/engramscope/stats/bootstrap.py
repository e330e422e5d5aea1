"""Cluster bootstrap intervals for pooled ratios: mean effect and recovery, percentile and BCa.

A pooled ratio is `sum numerator / sum denominator` over pairs; with denominator 1 it is a mean. Numerator and
denominator are resampled together, whole clusters at a time. A resample is a row of counts, so that all
resamples of a block of cells are one product `counts [B, rows] @ totals [rows, cells]`, and memory is bounded
by the block, whatever the number of cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from engramscope.stats.clusters import (
    BLOCK_BYTES,
    Bools,
    Floats,
    Indices,
    block_length,
    cluster_index,
    cluster_totals,
    presence_patterns,
)

Counts = NDArray[np.uint16]

DRAW_ROWS = 512  # resamples drawn per call of the generator; part of what a seed means


@dataclass(frozen=True)
class Resampling:
    """One set of bootstrap resamples, to be shared by every cell and every statistic."""

    counts: Counts  # [resamples, rows]; a row is a cluster, or a (pair, draw) when there are noise draws
    index: Indices  # [n_pairs] cluster of each pair
    n_clusters: int
    n_draws: int  # 0 = no noise draws


@dataclass(frozen=True)
class Interval:
    """Confidence limits per cell `[n_cells]`, in units of the statistic; `NaN` where there is no interval."""

    low: Floats
    high: Floats
    bca_low: Floats
    bca_high: Floats
    unstable: Bools  # the resampled denominator changes its sign too often: no interval exists


def resample_clusters(clusters: ArrayLike, resamples: int, rng: np.random.Generator) -> Resampling:
    """Draws clusters with replacement, as many as there are.

    Args:
        clusters: Label of each pair `[n_pairs]`.
        resamples: Number of resamples B.
        rng: Source of randomness.

    Returns:
        Counts `[B, n_clusters]`; each row sums to the number of clusters.

    Source: Davison & Hinkley 1997, §3.8 (resample the highest level, keep clusters whole).
    """
    index, n_clusters = cluster_index(clusters, len(np.asarray(clusters)))
    return Resampling(_cluster_counts(n_clusters, resamples, rng), index, n_clusters, 0)


def resample_draws(
    clusters: ArrayLike, n_draws: int, resamples: int, rng: np.random.Generator, *, shared: bool = False
) -> Resampling:
    """Two-level resampling: clusters of prompts outside, noise draws inside.

    Nested (default): each time a pair is drawn, its own draws are drawn anew with replacement. Shared: draw `d`
    is the same noise for every pair, so one resample of draws serves all pairs (clusters × draws, crossed).

    Args:
        clusters: Label of each pair `[n_pairs]`.
        n_draws: Noise draws per pair D.
        resamples: Number of resamples B.
        rng: Source of randomness.
        shared: Whether the draws are the same noise for all pairs.

    Returns:
        Counts `[B, n_pairs * D]`, pair-major.

    Source: Davison & Hinkley 1997, §3.8; crossed: Owen 2007 (pigeonhole bootstrap). Both count part of the
        variance between draws twice: the intervals are a little too wide, never too short for that reason.
    """
    if n_draws < 1:
        raise ValueError(f"n_draws must be at least 1, got {n_draws}")
    index, n_clusters = cluster_index(clusters, len(np.asarray(clusters)))
    outer = _cluster_counts(n_clusters, resamples, rng)
    n_pairs = len(index)
    counts = np.empty((resamples, n_pairs * n_draws), dtype=np.uint16)
    step = max(1, min(DRAW_ROWS, 2**20 // (n_pairs * n_draws)))
    for start in range(0, resamples, step):
        pairs = outer[start : start + step][:, index].astype(np.intp)  # [b, n_pairs]
        if shared:
            inner = _cluster_counts(n_draws, len(pairs), rng)
            block = (pairs[:, :, None] * inner[:, None, :]).reshape(len(pairs), -1)
        else:
            which = np.repeat(np.arange(pairs.size), pairs.ravel() * n_draws)
            drawn = which * n_draws + rng.integers(0, n_draws, which.size)
            block = np.bincount(drawn, minlength=pairs.size * n_draws).reshape(len(pairs), -1)
        counts[start : start + step] = block
    return Resampling(counts, index, n_clusters, n_draws)


def ratio_intervals(
    numerator: Floats,
    denominator: Floats,
    resampling: Resampling,
    *,
    confidence: float = 0.95,
    expanded: bool = False,
) -> Interval:
    """Percentile and BCa intervals of `sum numerator / sum denominator` per cell.

    Percentile: the `(1 ± confidence)/2` quantiles of the resampled ratio. BCa: the quantiles at
    `Phi(z0 + (z0 + z) / (1 - a (z0 + z)))`, with `z0` from the share of resamples below the estimate (half of
    the ties) and `a = sum d^3 / (6 (sum d^2)^1.5)`, `d = mean - value` of the leave-one-cluster-out ratios.

    Args:
        numerator: `[n_pairs, n_cells]`, or `[n_pairs, n_draws, n_cells]` with noise draws; `NaN` = missing.
        denominator: `[n_pairs]`, or `[n_pairs, n_draws]`.
        resampling: The resamples to use.
        confidence: Of the two-sided interval, in (0, 1).
        expanded: Widen the percentile levels for few clusters K, to `Phi(-sqrt(K/(K-1)) t_{K-1})`.

    Returns:
        Limits per cell. `NaN` with fewer than two clusters, and where the resampled denominator has another
        sign than the denominator in more than `(1 - confidence)/2` of the resamples (`unstable`): the ratio has
        then no bounded confidence set. Where no resample moves the ratio, the interval is a point. Resamples
        which leave a cell without pairs are skipped for that cell.

    Source: Efron 1987 (BCa); Hesterberg 2015, arXiv 1411.5279 (expanded); Fieller 1954 (unbounded sets).
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    n_cells = numerator.shape[-1]
    limits = np.full((4, n_cells), np.nan)
    unstable = np.zeros(n_cells, dtype=np.bool_)
    step = block_length(8 * len(resampling.counts))
    for start in range(0, n_cells, step):
        cells = slice(start, start + step)
        block = _block_intervals(numerator[..., cells], denominator, resampling, confidence, expanded)
        limits[:, cells], unstable[cells] = block
    low, high, bca_low, bca_high = limits
    return Interval(low, high, bca_low, bca_high, unstable)


def bootstrap_mean(
    effect: Floats, clusters: ArrayLike, *, rng: np.random.Generator, confidence: float = 0.95, resamples: int = 10_000
) -> Interval:
    """Intervals of the mean effect per cell; `effect [n_pairs, n_cells]` in units of the metric."""
    ones = np.ones(len(effect))
    return ratio_intervals(effect, ones, resample_clusters(clusters, resamples, rng), confidence=confidence)


def bootstrap_recovery(
    effect: Floats,
    gap: Floats,
    clusters: ArrayLike,
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> Interval:
    """Intervals of the pooled recovery `sum effect / sum gap`; `effect = patched - corrupted [n_pairs, n_cells]`."""
    return ratio_intervals(effect, gap, resample_clusters(clusters, resamples, rng), confidence=confidence)


def quantile_limits(
    replicates: Floats,
    estimate: Floats,
    jackknife: Floats,
    *,
    confidence: float,
    scale: Floats,
    n_clusters: NDArray[np.int64],
    expanded: bool = False,
) -> Floats:
    """Percentile and BCa limits of any statistic from its resampled and its leave-one-out values.

    Args:
        replicates: Resampled values `[n_cells, B]`, `NaN` = skip; **sorted in place**.
        estimate: `[n_cells]`.
        jackknife: Leave-one-cluster-out values `[n_clusters, n_cells]`, `NaN` = the cluster has no such cell.
        confidence: Of the two-sided interval.
        scale: Magnitude of the statistic's terms `[n_cells]`; a spread below 1e-12 of it is rounding.
        n_clusters: Clusters that have the cell `[n_cells]`.
        expanded: See `ratio_intervals`.

    Returns:
        `[4, n_cells]`: low, high, BCa low, BCa high.
    """
    replicates.sort(axis=1)  # NaN last
    valid = np.count_nonzero(~np.isnan(replicates), axis=1)
    tail = np.full(len(estimate), (1.0 - confidence) / 2.0)
    plain = tail
    if expanded:
        k = np.maximum(n_clusters, 2).astype(np.float64)
        plain = special.ndtr(np.sqrt(k / (k - 1.0)) * special.stdtrit(k - 1.0, tail))
    below, above = _bca_levels(replicates, valid, estimate, jackknife, tail)
    levels = (plain, 1.0 - plain, below, above)
    limits = np.stack([_sorted_quantile(replicates, valid, level) for level in levels])
    last = np.take_along_axis(replicates, np.maximum(valid - 1, 0)[:, None], axis=1)[:, 0]
    point = last - replicates[:, 0] <= 1e-12 * scale
    limits[:, point] = estimate[point]
    limits[:, (n_clusters < 2) | (valid == 0)] = np.nan
    return limits


def _cluster_counts(n_clusters: int, resamples: int, rng: np.random.Generator) -> Counts:
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    counts = np.empty((resamples, n_clusters), dtype=np.uint16)
    for start in range(0, resamples, DRAW_ROWS):
        rows = min(DRAW_ROWS, resamples - start)
        drawn = rng.integers(0, n_clusters, size=(rows, n_clusters)) + n_clusters * np.arange(rows)[:, None]
        counts[start : start + rows] = np.bincount(drawn.ravel(), minlength=rows * n_clusters).reshape(rows, -1)
    return counts


def _weighted_totals(counts: Counts, totals: Floats) -> Floats:
    """`(counts @ totals).T`, `[columns, B]`, converting the small integers to float a few rows at a time."""
    out = np.empty((totals.shape[1], len(counts)))
    step = max(1, BLOCK_BYTES // (16 * counts.shape[1]))
    for start in range(0, len(counts), step):
        rows = slice(start, start + step)
        out[:, rows] = totals.T @ counts[rows].astype(np.float64).T
    return out


def _block_intervals(
    numerator: Floats, denominator: Floats, resampling: Resampling, confidence: float, expanded: bool
) -> tuple[Floats, Bools]:
    n_cells, index, n_clusters = numerator.shape[-1], resampling.index, resampling.n_clusters
    flat = numerator.reshape(-1, n_cells)  # [rows, cells]: pairs, or (pair, draw)
    present = ~np.isnan(flat)
    patterns, pattern = presence_patterns(present)
    weights = patterns * denominator.reshape(-1, 1)  # [rows, patterns]
    row_cluster = np.repeat(index, max(1, resampling.n_draws))
    tops = cluster_totals(flat, row_cluster, n_clusters)  # [K, cells]
    bottoms = cluster_totals(weights, row_cluster, n_clusters)
    has = cluster_totals(patterns.astype(np.float64), row_cluster, n_clusters) > 0
    top, bottom = np.nansum(flat, axis=0), weights.sum(axis=0)[pattern]
    if resampling.n_draws:
        sampled_top = _weighted_totals(resampling.counts, np.where(present, flat, 0.0))
        sampled_bottom = _weighted_totals(resampling.counts, weights)
    else:
        sampled_top = _weighted_totals(resampling.counts, tops)
        sampled_bottom = _weighted_totals(resampling.counts, bottoms)
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = top / bottom
        scale = np.nansum(np.abs(flat), axis=0) / np.abs(bottom)
        leave_out = (top - tops) / (bottom - bottoms[:, pattern])
        kept = sampled_bottom != 0.0  # a resample without any pair of the cell has no ratio
        flipped = (sampled_bottom * bottoms.sum(axis=0)[:, None] < 0.0).sum(axis=1) / np.maximum(kept.sum(axis=1), 1)
        sampled_bottom[~kept] = np.nan
        for patt in range(patterns.shape[1]):
            mine = pattern == patt
            sampled_top[mine] /= sampled_bottom[patt]
    leave_out[~has[:, pattern] | ~np.isfinite(leave_out)] = np.nan
    unstable = (flipped[pattern] > (1.0 - confidence) / 2.0) | ((bottom == 0.0) & has[:, pattern].any(axis=0))
    limits = quantile_limits(
        sampled_top, np.where(np.isfinite(estimate), estimate, np.nan), leave_out, confidence=confidence,
        scale=np.where(np.isfinite(scale), scale, 0.0), n_clusters=has.sum(axis=0)[pattern], expanded=expanded,
    )  # fmt: skip
    limits[:, unstable] = np.nan
    return limits, unstable


def _bca_levels(
    ordered: Floats, valid: NDArray[np.intp], estimate: Floats, jackknife: Floats, tail: Floats
) -> tuple[Floats, Floats]:
    """The two levels at which BCa reads the sorted replicates, `[n_cells]` each."""
    less = np.count_nonzero(ordered < estimate[:, None], axis=1)
    ties = np.count_nonzero(ordered == estimate[:, None], axis=1)
    n = np.maximum(valid, 1).astype(np.float64)
    z0 = special.ndtri(np.clip((less + 0.5 * ties) / n, 0.5 / n, 1.0 - 0.5 / n))
    known = ~np.isnan(jackknife)
    values = np.where(known, jackknife, 0.0)
    mean = values.sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    d = np.where(known, mean - values, 0.0)
    squares = (d**2).sum(axis=0)
    a = np.zeros_like(squares)
    np.divide((d**3).sum(axis=0), 6.0 * squares**1.5, out=a, where=squares**1.5 > 0.0)
    z = special.ndtri(tail)

    def level(z_side: Floats) -> Floats:
        shift = z0 + z_side
        room = np.maximum(1.0 - a * shift, 1e-9)
        return special.ndtr(z0 + shift / room)

    return level(z), level(-z)


def _sorted_quantile(ordered: Floats, valid: NDArray[np.intp], level: Floats) -> Floats:
    """Linear-interpolation quantile of the first `valid` values of each sorted row, one level a row."""
    last = np.maximum(valid - 1, 0)
    place = np.clip(level, 0.0, 1.0) * last
    lower = np.floor(place).astype(np.intp)
    upper = np.minimum(lower + 1, last)
    rows = np.arange(len(ordered))
    a, b = ordered[rows, lower], ordered[rows, upper]
    return a + (place - lower) * (b - a)
