"""Within each layer: do facts with a larger predictor have a larger outcome? Pearson and Spearman correlations.

A correlation over all layers at once is misleading where predictor and outcome both vary with depth; see `layered`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from engramscope.stats.bootstrap import quantile_limits, resample_clusters
from engramscope.stats.clusters import Floats, block_length
from engramscope.stats.correction import benjamini_hochberg, holm
from engramscope.stats.layered import as_tables, cluster_products, scrambled

Kind = Literal["pearson", "spearman"]


@dataclass(frozen=True)
class Associations:
    """One kind of correlation in every layer, `[n_layers]` each.

    Attributes:
        kind: "pearson" or "spearman" (Pearson's of midranks).
        n: facts in every layer.
        r: correlation over facts, -1 to 1; `NaN` where predictor or outcome does not vary.
        low, high: percentile interval, clusters of facts resampled, ranks computed anew in every resample.
        p: two-sided, outcomes exchanged between facts, whole profiles at a time; where facts come in clusters, signs of
            whole clusters flipped.
        p_holm: corrected over layers: the chance of any false one.
        q: corrected over layers: Benjamini and Hochberg's false discovery rate.
    """

    kind: Kind
    n: int
    r: Floats
    low: Floats
    high: Floats
    p: Floats
    p_holm: Floats
    q: Floats


def within_layers(
    predictor: ArrayLike,
    outcome: ArrayLike,
    clusters: ArrayLike,
    kind: Kind,
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> Associations:
    """Correlation of predictor and outcome over facts, layer by layer.

    Args:
        predictor: `[n_facts, n_layers]`.
        outcome: `[n_facts, n_layers]`.
        clusters: label of each fact `[n_facts]`.
        kind: "pearson" or "spearman".
        rng: source of randomness.
        confidence: of the intervals.
        resamples: of bootstrap and permutation.

    Raises:
        ValueError: see `layered.as_tables`.
    """
    x, y = as_tables(predictor, outcome)
    resampling = resample_clusters(clusters, resamples, rng)
    if kind == "spearman":
        ranked = np.apply_along_axis(stats.rankdata, 0, x), np.apply_along_axis(stats.rankdata, 0, y)
    else:
        ranked = x, y
    ones = np.ones((1, len(x)))
    r = np.array([weighted_correlation(*column, ones)[0] for column in _columns(*ranked)])
    low, high = np.full_like(r, np.nan), np.full_like(r, np.nan)
    for layer, (one, other) in enumerate(_columns(x, y)):
        if np.isnan(r[layer]):
            continue
        drawn = _resampled(one, other, resampling.counts, resampling.index, kind)
        limits = quantile_limits(
            drawn[None], r[[layer]], np.zeros((1, 1)), confidence=confidence, scale=np.ones(1),
            n_clusters=np.array([resampling.n_clusters]), expanded=True,
        )  # fmt: skip
        low[layer], high[layer] = limits[0, 0], limits[1, 0]
    p = _permutation_p(*ranked, r, clusters, resamples, rng)
    return Associations(kind, len(x), r, low, high, p, holm(p), benjamini_hochberg(p))


def weighted_correlation(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Pearson's correlation of two variables under each row of weights.

    Args:
        x: `[n]`, or `[B, n]` where it differs between rows.
        y: as x.
        weights: `[B, n]`, not negative.

    Returns:
        `[B]`; `NaN` where a variable does not vary.
    """
    total = weights.sum(axis=1, keepdims=True)
    dx = x - (weights * x).sum(axis=1, keepdims=True) / total
    dy = y - (weights * y).sum(axis=1, keepdims=True) / total
    xx, yy = (weights * dx * dx).sum(axis=1), (weights * dy * dy).sum(axis=1)
    sizes = (weights * x * x).sum(axis=1), (weights * y * y).sum(axis=1)
    varies = (xx > 1e-12 * sizes[0]) & (yy > 1e-12 * sizes[1])
    top = (weights * dx * dy).sum(axis=1)
    r = np.divide(top, np.sqrt(xx) * np.sqrt(yy), out=np.full(len(weights), np.nan), where=varies)
    return np.clip(r, -1.0, 1.0)


def weighted_midranks(x: Floats, weights: Floats) -> Floats:
    """Ranks of the values in the sample in which value i stands `weights[b, i]` times; ties share their mean rank.

    Args:
        x: `[n]`.
        weights: `[B, n]` counts.

    Returns:
        `[B, n]`; the rank of a value that stands there no time says nothing.
    """
    values, group = np.unique(x, return_inverse=True)
    member = np.zeros((len(x), len(values)))
    member[np.arange(len(x)), group] = 1.0
    size = weights @ member  # [B, groups]
    return (np.cumsum(size, axis=1) - (size - 1.0) / 2.0)[:, group]


def _columns(x: Floats, y: Floats) -> list[tuple[Floats, Floats]]:
    return [(x[:, layer], y[:, layer]) for layer in range(x.shape[1])]


def _resampled(x: Floats, y: Floats, counts: np.ndarray, index: np.ndarray, kind: Kind) -> Floats:
    step = block_length(8 * len(x) * (len(x) + 8 if kind == "spearman" else 8))
    parts = []
    for start in range(0, len(counts), step):
        weights = counts[start : start + step][:, index].astype(np.float64)
        if kind == "spearman":
            parts.append(weighted_correlation(weighted_midranks(x, weights), weighted_midranks(y, weights), weights))
        else:
            parts.append(weighted_correlation(x, y, weights))
    return np.concatenate(parts)


def _permutation_p(
    x: Floats, y: Floats, r: Floats, clusters: ArrayLike, resamples: int, rng: np.random.Generator
) -> Floats:
    """`p = (1 + #{|r| ≥ |r observed|}) / (1 + resamples)`, with the same exchanges in every layer (`scrambled`)."""
    dx, dy = x - x.mean(axis=0), y - y.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        dx, dy = dx / np.sqrt((dx**2).sum(axis=0)), dy / np.sqrt((dy**2).sum(axis=0))
    known = ~np.isnan(r)
    dx, dy = dx[:, known], dy[:, known]
    totals = cluster_products(dx, dy, clusters)
    reached = np.zeros(int(known.sum()))
    step = block_length(8 * x.size * 2)
    for start in range(0, resamples, step):
        drawn = scrambled(dx, dy, totals, min(step, resamples - start), rng)
        reached += (np.abs(drawn) >= np.abs(r[known]) * (1 - 1e-9)).sum(axis=0)
    p = np.full(len(r), np.nan)
    p[known] = (1 + reached) / (1 + resamples)
    return p
