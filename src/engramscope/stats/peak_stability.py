"""How stable the place of a peak is when the pairs are drawn anew."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from engramscope.stats.bootstrap import resample_clusters
from engramscope.stats.clusters import Floats, as_cells, as_mask, cluster_totals


@dataclass(frozen=True)
class PeakStability:
    """The place of the largest mean effect over bootstrap resamples.

    Attributes:
        peak: the cell with the largest mean over all pairs; -1 where there is none.
        shares: share of the resamples in which each cell has the largest mean [n_cells], ties split evenly; they add up
            to 1.
        near: share of the resamples whose peak is the peak or next to it, for cells in a natural order (layers).
        centre, low, high: centre of mass `Σ cell · max(mean, 0) / Σ max(mean, 0)` over all pairs, with the percentile
            interval over resamples; NaN where no mean is positive.
    """

    peak: int
    shares: Floats
    near: float
    centre: float
    low: float
    high: float

    def smallest_set(self, level: float) -> tuple[int, ...]:
        """The fewest cells that hold the peak in at least this share of the resamples, ascending.

        This says how much the place moves with the pairs; it is no confidence set with guaranteed coverage.
        """
        order = np.argsort(-self.shares, kind="stable")
        enough = int(np.searchsorted(np.cumsum(self.shares[order]), level - 1e-12)) + 1
        return tuple(sorted(int(cell) for cell in order[:enough] if self.shares[cell] > 0))


def peak_stability(
    effect: ArrayLike,
    clusters: ArrayLike,
    *,
    rng: np.random.Generator,
    cut: ArrayLike | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> PeakStability:
    """Resample whole clusters, and look where the largest mean effect is each time.

    Args:
        effect: `[n_pairs, n_cells]`, signed so that larger is more; `NaN` = missing.
        clusters: label of each pair `[n_pairs]`.
        rng: source of randomness.
        cut: cells that may not be chosen `[n_cells]`.
        resamples: number of resamples.
        confidence: of the interval of the centre of mass.
    """
    cells = as_cells(effect, "effect")
    allowed = ~as_mask(cut, cells.shape[1], "cut", default=False)
    resampling = resample_clusters(clusters, resamples, rng)
    present = ~np.isnan(cells)
    totals = cluster_totals(np.where(present, cells, 0.0), resampling.index, resampling.n_clusters)
    counts = cluster_totals(present.astype(np.float64), resampling.index, resampling.n_clusters)
    weights = resampling.counts.astype(np.float64)
    drawn = _means(weights @ totals, weights @ counts, allowed)
    whole = _means(totals.sum(axis=0)[None], counts.sum(axis=0)[None], allowed)[0]
    if np.isneginf(whole).all():
        nan = float("nan")
        return PeakStability(-1, np.zeros(cells.shape[1]), nan, nan, nan, nan)
    largest = drawn == drawn.max(axis=1, keepdims=True)
    largest &= ~np.isneginf(drawn)
    kept = largest.any(axis=1)
    split = largest[kept] / largest[kept].sum(axis=1, keepdims=True)
    shares, peak = split.mean(axis=0), int(np.argmax(whole))
    near = float(shares[max(0, peak - 1) : peak + 2].sum())
    centres = _centres(drawn[kept])
    centres = centres[~np.isnan(centres)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(centres, [tail, 1 - tail]) if len(centres) else (np.nan, np.nan)
    return PeakStability(peak, shares, near, float(_centres(whole[None])[0]), float(low), float(high))


def _means(totals: Floats, counts: Floats, allowed: np.ndarray) -> Floats:
    """Means, minus infinity where there is none or the cell may not be chosen."""
    means = np.divide(totals, counts, out=np.full(totals.shape, -np.inf), where=counts > 0)
    return np.where(allowed, means, -np.inf)


def _centres(means: Floats) -> Floats:
    weights = np.where(np.isneginf(means), 0.0, np.maximum(means, 0.0))
    total = weights.sum(axis=1)
    moment = weights @ np.arange(means.shape[1], dtype=np.float64)
    return np.divide(moment, total, out=np.full(len(total), np.nan), where=total > 0)
