"""Sign-flip tests by cluster: p per cell, and max-T adjusted p over all cells.

Null hypothesis: the effects of a cluster are as likely to come with the opposite sign. All pairs of a cluster
flip together, and all cells flip together, so both kinds of dependence are kept.

Statistic: `T = sum_k g_k S_k / sqrt(sum_k S_k^2)`, with `S_k` the sum of the effects of cluster `k` and `g_k = ±1`.
The denominator is the exact standard deviation of the numerator under the flips. `T` is a monotone function of
the one-sample t of the cluster sums, `t = T sqrt((K-1) / (K - T^2))`, so a single cell's p is the same with either;
it is bounded by `sqrt(K)`, so a cell that few clusters have cannot take the maximum by a short denominator.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engramscope.stats.clusters import (
    Bools,
    Floats,
    as_cells,
    as_mask,
    block_length,
    cluster_index,
    cluster_totals,
)

Signs = NDArray[np.int8]

SLACK = 1e-9  # a flipped statistic that equals the observed one up to rounding counts as reaching it
DRAW_ROWS = 512  # flips drawn per call of the generator; part of what a seed means


@dataclass(frozen=True)
class SignFlip:
    """Result of the test for each cell `[n_cells]`."""

    statistic: Floats  # T, positive = the effect raises the metric; NaN where all cluster sums are 0
    p: Floats  # two-sided, never 0; 1 where nothing can be tested; NaN where no pair has the cell
    p_max_t: Floats  # family-wise adjusted; NaN outside the family
    exact: bool  # all flips were enumerated
    n_flips: int  # how many p is based on
    smallest_p: float  # the smallest p that was possible


def sign_flip(
    effect: ArrayLike,
    clusters: ArrayLike,
    *,
    rng: np.random.Generator,
    resamples: int = 10_000,
    family: ArrayLike | None = None,
    step_down: bool = False,
) -> SignFlip:
    """Tests each cell's mean effect against 0, alone and within a family of cells.

    Drawn flips: `p = (1 + #{b: |T_b| >= |T|}) / (B + 1)`. Enumerated flips, when `2^K <= resamples` for K clusters:
    `p = #{|T_b| >= |T|} / 2^K`, the observed signs among them. Neither can be 0. Max-T: the same with
    `max_c |T_bc|` over the family in place of `|T_b|`.

    Args:
        effect: `[n_pairs, n_cells]`, `NaN` = missing.
        clusters: Label of each pair `[n_pairs]`.
        rng: Source of randomness.
        resamples: Number of flips B.
        family: Cells that are tested together `[n_cells]`; default all. Cells that no pair has are never in it.
        step_down: Westfall-Young step-down in place of single-step: never larger p, the same error control.

    Returns:
        The statistic and both p. With one cluster p is 1 by construction.

    Source: Winkler et al. 2014 (sign flips by exchangeability block); Westfall & Young 1993, algorithms 2.5 and
        2.8; Phipson & Smyth 2010 (the + 1). Deviation: the statistic is studentised by its standard deviation
        under the flips, not about the observed mean (same order; see the module).
    """
    cells = as_cells(effect, "effect")
    n_cells = cells.shape[1]
    index, n_clusters = cluster_index(clusters, len(cells))
    some = ~np.isnan(cells).all(axis=0)
    members = as_mask(family, n_cells, "family", default=True) & some
    unit, statistic = _unit_totals(cells, index, n_clusters)
    signs, exact = sign_matrix(n_clusters, resamples, rng)
    observed = np.abs(np.nan_to_num(statistic))
    reached, reached_max = _count(unit, signs, observed, members, step_down)
    ones = 0 if exact else 1
    p = np.where(some, (reached + ones) / (len(signs) + ones), np.nan)
    p_max = np.full(n_cells, np.nan)
    p_max[members] = (reached_max[members] + ones) / (len(signs) + ones)
    if step_down:
        p_max = _monotone(p_max, observed)
    smallest = 1.0 / (len(signs) + ones)
    return SignFlip(statistic, p, p_max, exact, 2 * len(signs) if exact else len(signs), smallest)


def sign_matrix(n_clusters: int, resamples: int, rng: np.random.Generator) -> tuple[Signs, bool]:
    """Rows of ±1 `[B, n_clusters]`; all of them when `2^K <= resamples`.

    The enumeration holds only the half with `+1` for the first cluster, because `|T|` does not change when all signs
    do; it contains the observed signs. The generator is not used then.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    if n_clusters < 63 and 2**n_clusters <= resamples:
        bits = (np.arange(2 ** (n_clusters - 1))[:, None] >> np.arange(n_clusters)[None, :]) & 1
        return (1 - 2 * bits[:, ::-1]).astype(np.int8), True
    signs = np.empty((resamples, n_clusters), dtype=np.int8)
    for start in range(0, resamples, DRAW_ROWS):
        rows = min(DRAW_ROWS, resamples - start)
        signs[start : start + rows] = 2 * rng.integers(0, 2, size=(rows, n_clusters)) - 1
    return signs, False


def _unit_totals(cells: Floats, index: NDArray[np.intp], n_clusters: int) -> tuple[Floats, Floats]:
    """Cluster sums divided by their norm `[n_clusters, n_cells]` (0 where there is none), and `T [n_cells]`."""
    totals = cluster_totals(cells, index, n_clusters)
    size = np.nansum(np.abs(cells), axis=0)
    largest = np.max(np.abs(totals), axis=0)
    real = largest > 1e-12 * size  # below it the pairs of every cluster cancel up to rounding
    scaled = totals / np.where(real, largest, 1.0)  # so that squares of tiny effects do not underflow
    norm = np.sqrt((scaled**2).sum(axis=0))
    unit = np.where(real, scaled / np.where(real, norm, 1.0), 0.0)
    return unit, np.where(real, unit.sum(axis=0), np.nan)


def _count(
    unit: Floats, signs: Signs, observed: Floats, members: Bools, step_down: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many flips reach each cell's statistic, by the cell itself and by the family's maximum.

    Cells are visited from the smallest to the largest statistic; the running maximum over the visited members is
    then the maximum that step-down asks for, and after the last cell the one of single-step.
    """
    n_cells = unit.shape[1]
    threshold = observed * (1.0 - SLACK)
    alone = np.zeros(n_cells, dtype=np.int64)
    joint = np.zeros(n_cells, dtype=np.int64)
    order = np.lexsort((np.arange(n_cells), observed))
    rows = max(1, min(len(signs), block_length(8 * (unit.shape[0] + n_cells)), 4096))
    columns = block_length(8 * rows)
    for first in range(0, len(signs), rows):
        block = signs[first : first + rows].astype(np.float64)
        highest = np.full(len(block), -np.inf)
        for start in range(0, n_cells, columns):
            which = order[start : start + columns]
            flipped = np.abs(block @ unit[:, which])  # [b, cells]
            alone[which] += (flipped >= threshold[which]).sum(axis=0)
            flipped[:, ~members[which]] = -np.inf
            if step_down:
                flipped[:, 0] = np.maximum(flipped[:, 0], highest)
                np.maximum.accumulate(flipped, axis=1, out=flipped)
                joint[which] += (flipped >= threshold[which]).sum(axis=0)
                highest = flipped[:, -1]
            else:
                highest = np.maximum(highest, flipped.max(axis=1))
        if not step_down:
            joint += len(block) - np.searchsorted(np.sort(highest), threshold, side="left")
    return alone, joint


def _monotone(p: Floats, observed: Floats) -> Floats:
    """Step-down p may not fall as the statistic falls: a running maximum from the largest statistic down."""
    order = np.lexsort((np.arange(len(p)), observed))[::-1]  # the reverse of the order of counting
    order = order[~np.isnan(p[order])]
    out = p.copy()
    out[order] = np.maximum.accumulate(p[order])
    return out
