"""Choose the peak on one half of the clusters, measure it on the other.

The largest of many noisy cells is too large: chosen and reported on the same pairs it overstates itself. Halves
that share no cluster keep choice and measurement independent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from engramscope.stats.bootstrap import ratio_intervals, resample_clusters
from engramscope.stats.clusters import Bools, as_cells, as_mask, as_pairs, cluster_index
from engramscope.stats.estimates import mean_effect, pair_counts, ratio_of_means
from engramscope.stats.permutation import sign_flip


@dataclass(frozen=True)
class Split:
    """Two halves of the pairs which share no cluster; masks `[n_pairs]`."""

    selection: Bools
    confirmation: Bools


@dataclass(frozen=True)
class ConfirmedPeak:
    """The cell chosen on the selection half, measured on the confirmation half."""

    cell: int  # column; -1 = there was nothing to choose
    selection_effect: float  # on the half that chose it: too large on average
    effect: float  # on the confirmation half, units of the metric
    effect_low: float
    effect_high: float
    recovery: float  # pooled, on the confirmation half; NaN without a gap
    recovery_low: float
    recovery_high: float
    p: float  # two-sided sign flip on the confirmation half, one cell: no correction is due
    n_selection: int  # pairs that have the cell
    n_confirmation: int
    n_clusters: int  # on the confirmation half, with a pair that has the cell
    n_pooled: int  # pairs that the recovery is computed from; 0 without a gap
    n_clusters_pooled: int
    status: str  # "ok", or why not


def split_by_cluster(clusters: ArrayLike, rng: np.random.Generator, *, strata: ArrayLike | None = None) -> Split:
    """Deals whole clusters into two halves at random, evenly within each stratum.

    Args:
        clusters: Label of each pair `[n_pairs]`.
        rng: Source of randomness.
        strata: A label of each pair `[n_pairs]` of which both halves shall have the same share, such as the kind
            of question. A cluster with pairs of several strata is dealt as a stratum of its own kind.

    Returns:
        The halves. Their numbers of clusters differ by at most one, in total and in each stratum.
    """
    labels = np.asarray(clusters)
    index, n_clusters = cluster_index(labels, len(labels))
    kind = np.zeros(n_clusters, dtype=np.intp)
    if strata is not None:
        stratum, n_strata = cluster_index(strata, len(labels))
        holds = np.zeros((n_clusters, n_strata), dtype=np.bool_)
        holds[index, stratum] = True
        kind = np.unique(holds, axis=0, return_inverse=True)[1].reshape(n_clusters)
    order = np.lexsort((rng.permutation(n_clusters), kind))
    first = np.zeros(n_clusters, dtype=np.bool_)
    first[order[int(rng.integers(0, 2)) :: 2]] = True
    return Split(first[index], ~first[index])


def confirmed_peak(
    effect: ArrayLike,
    clusters: ArrayLike,
    split: Split,
    *,
    rng: np.random.Generator,
    gap: ArrayLike | None = None,
    cut: ArrayLike | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> ConfirmedPeak:
    """Chooses the cell with the largest absolute mean effect on one half and estimates it on the other.

    Args:
        effect: `[n_pairs, n_cells]`, `NaN` = missing.
        clusters: Label of each pair `[n_pairs]`.
        split: The halves.
        rng: Source of randomness.
        gap: `clean - corrupted` `[n_pairs]`, `NaN` for pairs that are not pooled; for a pooled
            `sum effect / sum gap` (recovery for `denoise`, recovery minus one for `noise`).
        cut: Cells that may not be chosen `[n_cells]`.
        confidence: Of the intervals (percentile).
        resamples: Of bootstrap and sign flips.

    Returns:
        The peak. Since the cell was fixed before the confirmation half was looked at, interval and p hold as for
        a single cell.
    """
    cells = as_cells(effect, "effect")
    labels = np.asarray(clusters)
    allowed = ~as_mask(cut, cells.shape[1], "cut", default=False)
    chosen, held = cells[split.selection], cells[split.confirmation]
    if len(chosen) == 0 or len(held) == 0:
        return _nothing("a half has no pairs: two clusters are needed at least")
    strength = np.where(allowed, np.abs(mean_effect(chosen)), np.nan)
    if np.isnan(strength).all():
        return _nothing("no cell could be chosen: all are cut or missing")
    cell = int(np.nanargmax(strength))
    column = held[:, [cell]]
    n_held = int(pair_counts(column)[0])
    selected = float(mean_effect(chosen[:, [cell]])[0])
    if n_held == 0:
        return _nothing("no pair of the confirmation half has the chosen cell", cell, selected)
    n_clusters = len(np.unique(labels[split.confirmation][~np.isnan(column[:, 0])]))
    n_pooled = n_clusters_pooled = 0
    resampling = resample_clusters(labels[split.confirmation], resamples, rng)
    bounds = ratio_intervals(column, np.ones(len(column)), resampling, confidence=confidence)
    test = sign_flip(column, labels[split.confirmation], rng=rng, resamples=resamples)
    pooled, low, high = (float("nan"),) * 3
    if gap is not None:
        gaps = np.asarray(gap, dtype=np.float64)[split.confirmation]
        counted = np.where(np.isnan(gaps)[:, None], np.nan, column)
        known = ~np.isnan(counted[:, 0])
        n_pooled, n_clusters_pooled = int(known.sum()), len(np.unique(labels[split.confirmation][known]))
        gaps = as_pairs(np.nan_to_num(gaps), len(column), "gap")
        pooled = float(ratio_of_means(counted, gaps)[0])
        shares = ratio_intervals(counted, gaps, resampling, confidence=confidence)
        low, high = float(shares.low[0]), float(shares.high[0])
    return ConfirmedPeak(
        cell=cell, selection_effect=selected, effect=float(mean_effect(column)[0]),
        effect_low=float(bounds.low[0]), effect_high=float(bounds.high[0]),
        recovery=pooled, recovery_low=low, recovery_high=high, p=float(test.p[0]),
        n_selection=int(pair_counts(chosen[:, [cell]])[0]), n_confirmation=n_held, n_clusters=n_clusters,
        n_pooled=n_pooled, n_clusters_pooled=n_clusters_pooled,
        status="ok" if n_clusters > 1 else "one cluster on the confirmation half: no interval and no test",
    )  # fmt: skip


def _nothing(status: str, cell: int = -1, selected: float = float("nan")) -> ConfirmedPeak:
    nan = float("nan")
    return ConfirmedPeak(cell, selected, nan, nan, nan, nan, nan, nan, nan, 0, 0, 0, 0, 0, status)
