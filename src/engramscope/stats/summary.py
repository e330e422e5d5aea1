"""From the values of a sweep to one row of statistics per cell: the entry point of this package."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engramscope.stats import estimates
from engramscope.stats.bootstrap import Interval, Resampling, ratio_intervals, resample_clusters, resample_draws
from engramscope.stats.clusters import Bools, Floats, as_cells, as_mask, as_pairs, cluster_index, clusters_per_cell
from engramscope.stats.correction import benjamini_hochberg
from engramscope.stats.estimates import Direction
from engramscope.stats.noise_floor import above_floor
from engramscope.stats.permutation import SignFlip, sign_flip
from engramscope.stats.two_sd import two_sd

REASONS: dict[str, str] = {
    "ok": "",
    "cut": "the site cuts every path to the metric: its effect follows from the design and is not tested",
    "empty": "no pair has this cell",
    "one_cluster": "all pairs belong to one cluster: no interval and no test",
    "no_effect": "the cluster totals are 0 in every cluster: p is 1",
    "few_clusters": "with so few clusters no p can reach the level: nothing can be detected",
    "unstable_gap": "the pooled clean-corrupted gap is not reliably different from 0: recovery has no interval",
}  # fmt: skip


@dataclass(frozen=True)
class CellSummary:
    """Statistics of one sweep and one metric; arrays are `[n_cells]`. Effects are in units of the metric."""

    n: NDArray[np.int64]  # pairs that have the cell
    n_clusters: NDArray[np.int64]  # clusters with such a pair
    n_pooled: NDArray[np.int64]  # pairs that enter recovery
    mean_effect: Floats
    mean_effect_low: Floats  # percentile
    mean_effect_high: Floats
    mean_effect_bca_low: Floats
    mean_effect_bca_high: Floats
    recovery: Floats  # pooled: 0 = as corrupted, 1 = as clean
    recovery_low: Floats  # percentile
    recovery_high: Floats
    recovery_bca_low: Floats
    recovery_bca_high: Floats
    statistic: Floats  # studentised cluster mean, sign of the effect
    p: Floats  # one cell alone; NaN for cut and empty cells
    p_max_t: Floats  # family-wise over all cells that are not cut
    q_bh: Floats  # false discovery rate over the same cells
    two_sd: Bools  # the rule of Zhang & Nanda, for reproduction
    detected: Bools
    d_z: Floats
    same_sign_share: Floats
    effect_iqr: Floats
    status: NDArray[np.str_]  # a key of REASONS
    reason: NDArray[np.str_]  # the sentence
    confidence: float
    resamples: int
    floor: float
    exact: bool  # p by enumeration of all sign flips
    smallest_p: float  # the smallest p that was possible
    two_sd_mean: float
    two_sd_sd: float


def summarise(
    patched: ArrayLike,
    clean: ArrayLike,
    corrupted: ArrayLike | None,
    clusters: ArrayLike,
    *,
    direction: Direction,
    rng: np.random.Generator,
    cut: ArrayLike | None = None,
    floor: float = 0.0,
    pooled: ArrayLike | None = None,
    confidence: float = 0.95,
    level: float | None = None,
    resamples: int = 10_000,
    step_down: bool = False,
    expanded: bool = False,
    shared_draws: bool = False,
) -> CellSummary:
    """Estimates, intervals and tests for every cell of a sweep, under one metric.

    The effect is `patched - corrupted` (`denoise`) or `patched - clean` (`noise`); intervals of the mean effect and all
    tests are about it. Recovery is `sum(patched - corrupted) / sum(clean - corrupted)` over the pooled pairs, in both
    directions. A cell is *detected* when `p_max_t <= level`, it is not cut, and `|mean effect| > floor`.

    Args:
        patched: Metric of the patched runs `[n_pairs, n_cells]`, or `[n_pairs, n_draws, n_cells]` with noise draws.
            `NaN` = this pair has no such cell.
        clean: Metric of the clean runs `[n_pairs]`.
        corrupted: Metric of the corrupted runs `[n_pairs]`, or `[n_pairs, n_draws]`; `None` for ablations.
        clusters: Label of each pair `[n_pairs]`.
        direction: Which run was patched.
        rng: Source of randomness. Its use does not depend on the number or order of cells.
        cut: Cells whose effect follows from the design `[n_cells]`: described, but outside every family.
        floor: Noise floor in units of the metric.
        pooled: Pairs that enter recovery `[n_pairs]`; default all. Leave out those whose gap is tiny or of the wrong
            sign **here**, not from `patched`: a selection by the sign of the gap is a selection by the outcome, and
            makes the effects of a model that knows nothing significant.
        confidence: Of the intervals.
        level: Of detection: the family-wise error allowed; default `1 - confidence`.
        resamples: Of the bootstrap and of the sign flips.
        step_down: Westfall-Young step-down for `p_max_t`.
        expanded: Widen percentile intervals for few clusters.
        shared_draws: Noise draw `d` is the same noise for every pair.

    Returns:
        One row per cell. `status` and `reason` say why a value is missing.

    Raises:
        ValueError: If shapes do not fit, a clean or corrupted value is not finite, or a patched one is infinite.

    Source: Zhang & Nanda, arXiv 2309.16042 (recovery, 2-SD rule); Winkler et al. 2014 and Westfall & Young 1993
        (sign flips, max-T); Benjamini & Hochberg 1995.
    """
    values = np.asarray(patched, dtype=np.float64)
    if values.ndim not in (2, 3):
        raise ValueError(f"patched must be [n_pairs, n_cells] or [n_pairs, n_draws, n_cells], got {values.shape}")
    n_pairs, n_cells = values.shape[0], values.shape[-1]
    cuts = as_mask(cut, n_cells, "cut", default=False)
    inside = as_mask(pooled, n_pairs, "pooled", default=True)
    index, n_clusters = cluster_index(clusters, n_pairs)
    effect, gap = _effect_and_gap(values, clean, corrupted, direction)
    each = _per_pair(effect)
    if effect.ndim == 3:
        resampling = resample_draws(index, effect.shape[1], resamples, rng, shared=shared_draws)
    else:
        resampling = resample_clusters(index, resamples, rng)
    ones = np.ones(effect.shape[:-1])
    means = ratio_intervals(effect, ones, resampling, confidence=confidence, expanded=expanded)
    offset = 1.0 if direction == "noise" else 0.0
    share, shares = _recovery(effect, gap, inside, offset, resampling, confidence, expanded)
    test = sign_flip(each, index, rng=rng, resamples=resamples, family=~cuts, step_down=step_down)
    counts = clusters_per_cell(~np.isnan(each), index, n_clusters)
    status = _status(cuts, counts, test, shares.unstable, _level(confidence, level))
    mean, p = estimates.mean_effect(each), np.where(cuts, np.nan, test.p)
    rule = two_sd(mean, cut=cuts)
    reached = np.nan_to_num(test.p_max_t, nan=1.0) <= _level(confidence, level)
    in_pool = np.where(inside[:, None] & (gap is not None), each, np.nan)
    return CellSummary(
        n=estimates.pair_counts(each), n_clusters=counts, n_pooled=estimates.pair_counts(in_pool),
        mean_effect=mean, mean_effect_low=means.low, mean_effect_high=means.high,
        mean_effect_bca_low=means.bca_low, mean_effect_bca_high=means.bca_high,
        recovery=share, recovery_low=shares.low, recovery_high=shares.high,
        recovery_bca_low=shares.bca_low, recovery_bca_high=shares.bca_high,
        statistic=test.statistic, p=p, p_max_t=test.p_max_t, q_bh=benjamini_hochberg(p),
        two_sd=rule.detected, detected=reached & ~cuts & above_floor(mean, floor),
        d_z=estimates.cohen_dz(each), same_sign_share=estimates.same_sign_share(each),
        effect_iqr=estimates.interquartile_range(each),
        status=status, reason=np.array([REASONS[str(s)] for s in status], dtype=np.str_),
        confidence=confidence, resamples=resamples, floor=floor, exact=test.exact, smallest_p=test.smallest_p,
        two_sd_mean=rule.mean, two_sd_sd=rule.sd,
    )  # fmt: skip


def _level(confidence: float, level: float | None) -> float:
    return round(1.0 - confidence, 12) if level is None else level


def _effect_and_gap(
    values: Floats, clean: ArrayLike, corrupted: ArrayLike | None, direction: Direction
) -> tuple[Floats, Floats | None]:
    """Effects in the shape of `values`, and `clean - corrupted` without the cell axis (`None` for ablations)."""
    shape = values.shape[:-1]
    cleans = as_pairs(clean, shape[0], "clean").reshape(-1, *[1] * (len(shape) - 1)) * np.ones(shape)
    if corrupted is None:
        if direction != "noise":
            raise ValueError("direction 'denoise' needs the metric of the corrupted run")
        return values - cleans[..., None], None
    given = np.asarray(corrupted, dtype=np.float64)
    if given.shape == shape[:1]:
        given = given.reshape(-1, *[1] * (len(shape) - 1)) * np.ones(shape)
    if given.shape != shape:
        raise ValueError(f"corrupted must have the shape {shape} or {shape[:1]}, got {given.shape}")
    if not np.isfinite(given).all():
        raise ValueError("corrupted holds values that are not finite: leave those pairs out")
    if direction not in ("denoise", "noise"):
        raise ValueError(f"direction must be 'denoise' or 'noise', got {direction!r}")
    base = given if direction == "denoise" else cleans
    return values - base[..., None], cleans - given


def _per_pair(effect: Floats) -> Floats:
    """Effects `[n_pairs, n_cells]`: the mean over the noise draws that are present, where there are draws."""
    if effect.ndim == 2:
        return as_cells(effect, "patched")
    draws = np.count_nonzero(~np.isnan(effect), axis=1)
    mean = np.nansum(effect, axis=1) / np.maximum(draws, 1)
    return as_cells(np.where(draws > 0, mean, np.nan), "patched")


def _recovery(
    effect: Floats, gap: Floats | None, inside: Bools, offset: float, resampling: Resampling,
    confidence: float, expanded: bool,
) -> tuple[Floats, Interval]:  # fmt: skip
    """Pooled recovery and its intervals, `offset + sum effect / sum gap` over the pairs inside."""
    n_cells = effect.shape[-1]
    nan = np.full(n_cells, np.nan)
    if gap is None:
        return nan, Interval(nan, nan, nan, nan, np.zeros(n_cells, dtype=np.bool_))
    counted = np.where(inside.reshape(-1, *[1] * (effect.ndim - 1)), effect, np.nan)
    share = estimates.ratio_of_means(counted.reshape(gap.size, n_cells), gap.reshape(-1))
    bounds = ratio_intervals(counted, gap, resampling, confidence=confidence, expanded=expanded)
    limits = (bounds.low, bounds.high, bounds.bca_low, bounds.bca_high)
    return offset + share, Interval(*(offset + limit for limit in limits), unstable=bounds.unstable)


def _status(
    cuts: Bools, n_clusters: NDArray[np.int64], test: SignFlip, unstable: Bools, level: float
) -> NDArray[np.str_]:
    """A key of `REASONS` per cell; of several that apply, the one that says most."""
    few = 2.0 / 2.0 ** np.minimum(n_clusters, 60) > level
    choices = [n_clusters == 0, cuts, n_clusters == 1, np.isnan(test.statistic), few, unstable]
    names = ["empty", "cut", "one_cluster", "no_effect", "few_clusters", "unstable_gap"]
    return np.select(choices, names, default="ok").astype(np.str_)
