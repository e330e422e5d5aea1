"""Do two groups of pairs differ: in each cell, and in how concentrated their layer profiles are?

Clusters may hold pairs of one group or of both. If every cluster is pure, clusters are resampled within each group
and the labels are permuted among clusters. If some cluster holds both groups, all clusters are resampled jointly, so
that the pairing is kept; labels are permuted among the pure clusters and swapped, by the toss of a coin, within the
mixed ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engramscope.stats.bootstrap import quantile_limits
from engramscope.stats.clusters import (
    Bools,
    Floats,
    as_cells,
    as_mask,
    as_pairs,
    block_length,
    cluster_index,
    cluster_totals,
)

MEASURES = ("effective_layers", "centre_of_mass", "top_share")
SLACK = 1e-9


@dataclass(frozen=True)
class CellContrast:
    """First group minus second group, per cell `[n_cells]`; `NaN` where a group has no such cell."""

    first: Floats
    second: Floats
    difference: Floats
    low: Floats  # percentile
    high: Floats
    bca_low: Floats
    bca_high: Floats
    p: Floats  # two-sided, permutation of labels at cluster level
    p_max_t: Floats  # NaN outside the family
    n_clusters_first: int
    n_clusters_second: int


@dataclass(frozen=True)
class MeasureContrast:
    """One measure of concentration in the two groups; freed of noise; intervals are percentile."""

    name: str  # one of MEASURES
    first: float
    first_low: float
    first_high: float
    second: float
    second_low: float
    second_high: float
    difference: float  # first minus second
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class _Groups:
    """Cluster totals of the two groups: numerators `[K, c]` and denominators `[K, c]`, and who holds what `[K]`."""

    top: tuple[Floats, Floats]
    bottom: tuple[Floats, Floats]
    holds: tuple[Bools, Bools]


def contrast_cells(
    effect: ArrayLike,
    gap: ArrayLike | None,
    in_first: ArrayLike,
    clusters: ArrayLike,
    *,
    rng: np.random.Generator,
    family: ArrayLike | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> CellContrast:
    """Difference of pooled recovery, or of mean effect, between two groups of pairs.

    `D = sum_1 e / sum_1 g - sum_2 e / sum_2 g`; tested by the permutation distribution of `D / se(D)`, with the
    linearised cluster variance `se^2 = sum_k (r_1k / G_1 - r_2k / G_2)^2`, where `r_jk` is the residual `e - R_j g` of
    cluster `k`.

    Args:
        effect: `[n_pairs, n_cells]`, `NaN` = missing.
        gap: `clean - corrupted` `[n_pairs]`; `None` compares mean effects.
        in_first: True for the pairs of the first group `[n_pairs]`.
        clusters: Label of each pair `[n_pairs]`.
        rng: Source of randomness.
        family: Cells tested together `[n_cells]`; default all.
        confidence: Of the intervals.
        resamples: Of bootstrap and permutations.

    Returns:
        Differences without unit (recovery) or in units of the metric; positive = larger in the first group. With fewer
        than two clusters in a group there is no interval.

    Source: Chung & Romano 2013, arXiv 1304.5939 (studentised permutation holds asymptotically also when the groups
        differ in spread). Deviation: the variance is linearised and by cluster.
    """
    cells = as_cells(effect, "effect")
    n_pairs, n_cells = cells.shape
    weights = np.ones(n_pairs) if gap is None else as_pairs(gap, n_pairs, "gap")
    first = as_mask(in_first, n_pairs, "in_first", default=False)
    index, n_clusters = cluster_index(clusters, n_pairs)
    members = as_mask(family, n_cells, "family", default=True)
    whole = _totals(cells[:, :0], weights, first, index, n_clusters)
    counts = _resample(whole.holds, resamples, rng)
    keep = _relabel(whole.holds, resamples, rng)
    limits, p = np.full((4, n_cells), np.nan), np.full(n_cells, np.nan)
    observed, points = np.full(n_cells, np.nan), np.full((2, n_cells), np.nan)
    highest = np.zeros(resamples)
    step = block_length(8 * resamples * 8)
    for start in range(0, n_cells, step):
        part = slice(start, start + step)
        groups = _totals(cells[:, part], weights, first, index, n_clusters)
        points[:, part] = _ratios(groups)
        limits[:, part] = _difference_limits(groups, counts, confidence)
        observed[part] = np.abs(_studentised(groups, np.ones((1, n_clusters)))[0])
        flipped = np.abs(_studentised(groups, keep))
        flipped[np.isnan(flipped)] = np.inf  # a relabelling that empties a group counts against the cell
        p[part] = (1 + (flipped >= observed[part] * (1 - SLACK)).sum(axis=0)) / (resamples + 1)
        tested = members[part] & ~np.isnan(observed[part])
        highest = np.maximum(highest, flipped[:, tested].max(axis=1, initial=0.0))
    p[np.isnan(observed)] = np.nan
    joint = (1 + (highest[:, None] >= observed * (1 - SLACK)).sum(axis=0)) / (resamples + 1)
    p_max = np.where(members & ~np.isnan(observed), joint, np.nan)
    sizes = [int(np.count_nonzero(held)) for held in whole.holds]
    low, high, bca_low, bca_high = limits
    return CellContrast(
        points[0], points[1], points[0] - points[1], low, high, bca_low, bca_high, p, p_max, sizes[0], sizes[1]
    )


def concentration(profile: ArrayLike, variance: ArrayLike | None = None, layers: ArrayLike | None = None) -> Floats:
    """Three measures of a layer profile, along its last axis, from `w_l = e_l^2 - variance_l`.

    * `effective_layers = (sum w)^2 / sum w^2`: participation ratio, from 1 (one layer) to the number of layers;
    * `centre_of_mass = sum l w_l / sum w`, with l the number of the layer: from the first to the last of `layers`;
    * `top_share = max w / sum w`: from 1 / number of layers to 1.

    Args:
        profile: Effect or recovery of each layer `[..., n_layers]`; the scale does not matter, the sign neither.
        variance: Squared standard error of each value. Noise adds it to `e^2`, and so makes every profile look spread
            out; taking it off leaves `w` without bias. Default 0: then `effective_layers = (sum e^2)^2 / sum e^4`.
        layers: Number of each layer `[n_layers]`; default 0, 1, 2, …

    Returns:
        `[3, ...]` in the order of `MEASURES`, held to the ranges above; `NaN` where a layer is missing or `sum w <= 0`
        (the profile is not larger than its noise).
    """
    e = np.asarray(profile, dtype=np.float64)
    n_layers = e.shape[-1]
    numbers = np.asarray(np.arange(n_layers) if layers is None else layers, dtype=np.float64)
    largest = np.abs(e).max(axis=-1, keepdims=True, initial=0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        unit = np.where(largest > 0.0, largest, np.nan)
        w = (e / unit) ** 2 - (0.0 if variance is None else np.asarray(variance, dtype=np.float64) / unit / unit)
        total = w.sum(axis=-1)
        total = np.where(total > 0.0, total, np.nan)
        effective = np.clip(total**2 / (w**2).sum(axis=-1), 1.0, n_layers)
        centre = np.clip((w * numbers).sum(axis=-1) / total, numbers.min(initial=np.inf), numbers.max(initial=-np.inf))
        return np.stack([effective, centre, np.clip(w.max(axis=-1) / total, 1.0 / n_layers, 1.0)])


def contrast_concentration(
    effect: ArrayLike,
    in_first: ArrayLike,
    clusters: ArrayLike,
    *,
    rng: np.random.Generator,
    layers: ArrayLike | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> tuple[MeasureContrast, ...]:
    """Compares how concentrated the mean layer profiles of two groups are.

    Profiles are freed of their noise by the squared cluster standard errors; in a bootstrap resample twice, because it
    adds the noise once more. Before labels are permuted, each group is divided by its own `sqrt(sum w)`, so that the
    null hypothesis is "the same shape", not "the same size".

    Args:
        effect: `[n_pairs, n_layers]`, layers in order, those that are cut left out.
        in_first: True for the pairs of the first group `[n_pairs]`.
        clusters: Label of each pair `[n_pairs]`.
        rng: Source of randomness.
        layers: Number of each layer `[n_layers]`, where the first is not 0 or some are left out; default 0, 1, 2, …
        confidence: Of the percentile intervals.
        resamples: Of bootstrap and permutations.

    Returns:
        One result for each of `MEASURES`. Everything is `NaN` where a group has fewer than two clusters or no profile
        above its noise; the interval is, where more than `(1 - confidence)/2` of its resamples have none.

    Deviation: ours; the participation ratio is common, its correction for noise and this test are not from a paper.
    """
    cells = as_cells(effect, "effect")
    n_pairs, ones = len(cells), np.ones(len(cells))
    first = as_mask(in_first, n_pairs, "in_first", default=False)
    index, n_clusters = cluster_index(clusters, n_pairs)
    groups = _totals(cells, ones, first, index, n_clusters)
    counts = _resample(groups.holds, resamples, rng)
    keep = _relabel(groups.holds, resamples, rng)
    whole = _profiles(groups, np.ones((1, n_clusters)))
    points = _three(*(concentration(*m, layers) for m in whole))[..., 0]  # [kind, measure]
    sampled = _three(*(concentration(m, 2.0 * v, layers) for m, v in _profiles(groups, counts)))
    sizes = np.full(3, min(np.count_nonzero(held) for held in groups.holds), dtype=np.int64)
    limits = np.stack([_percentiles(sampled[kind], points[kind], sizes, confidence) for kind in range(3)])
    size = [np.sqrt(np.maximum((m**2 - v).sum(), 0.0)) for m, v in whole]
    unit = np.where(first, *(s if s > 0.0 else 1.0 for s in size))
    scaled = _totals(cells / unit[:, None], ones, first, index, n_clusters)
    flipped = _three(*(concentration(*m, layers) for m in _profiles(scaled, keep, relabel=True)))[2]
    reached = ~(np.abs(flipped) < np.abs(points[2])[:, None] * (1 - SLACK))
    p = np.where(np.isnan(points[2]), np.nan, (1 + reached.sum(axis=1)) / (resamples + 1))
    return tuple(
        MeasureContrast(
            name,
            float(points[0, i]), float(limits[0, 0, i]), float(limits[0, 1, i]),
            float(points[1, i]), float(limits[1, 0, i]), float(limits[1, 1, i]),
            float(points[2, i]), float(limits[2, 0, i]), float(limits[2, 1, i]), float(p[i]),
        )
        for i, name in enumerate(MEASURES)
    )  # fmt: skip


def _percentiles(sampled: Floats, points: Floats, sizes: NDArray[np.int64], confidence: float) -> Floats:
    """Percentile limits `[2, 3 measures]`; none where too many resamples have no value."""
    missing = np.isnan(sampled).mean(axis=1) > (1.0 - confidence) / 2.0
    limits = quantile_limits(
        sampled.copy(),
        points,
        np.zeros((1, len(points))),
        confidence=confidence,
        scale=np.abs(points),
        n_clusters=sizes,
    )[:2]
    limits[:, missing | np.isnan(points)] = np.nan
    return limits


def _profiles(
    groups: _Groups, rows: Floats, *, relabel: bool = False
) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
    """Mean profile and squared cluster standard error `[B, n_layers]` of each group, under each row of weights.

    `variance = K/(K-1) sum_k (S_k - m N_k)^2 / (sum_k N_k)^2` over the K clusters of the group. A row holds bootstrap
    counts, or, with `relabel`, says which clusters keep their labels.
    """
    pieces: list[tuple[Floats, Floats]] = []
    (t1, t2), (b1, b2) = groups.top, groups.bottom
    for x1, x2 in ((t1, t2), (b1, b2), (t1**2, t2**2), (t1 * b1, t2 * b2), (b1**2, b2**2)):
        if relabel:
            one = rows @ (x1 - x2) + x2.sum(axis=0)
            pieces.append((one, (x1 + x2).sum(axis=0) - one))
        else:
            pieces.append((rows @ x1, rows @ x2))
    out: list[tuple[Floats, Floats]] = []
    for group in (0, 1):
        top, bottom, tt, tb, bb = (piece[group] for piece in pieces)
        k = float(np.count_nonzero(groups.holds[group]))
        mean = _over(top, bottom)
        spread = np.maximum(tt - 2.0 * mean * tb + mean**2 * bb, 0.0)
        out.append((mean, _over(spread, bottom**2) * (k / (k - 1.0) if k > 1.0 else np.nan)))
    return out[0], out[1]


def _three(first: Floats, second: Floats) -> Floats:
    """Both groups and their difference, stacked."""
    return np.stack([first, second, first - second])


def _totals(cells: Floats, weights: Floats, first: Bools, index: NDArray[np.intp], n_clusters: int) -> _Groups:
    tops, bottoms, holds = [], [], []
    for mine in (first, ~first):
        value = np.where(mine[:, None], cells, np.nan)
        weight = np.where(np.isnan(value), np.nan, weights[:, None])
        tops.append(cluster_totals(value, index, n_clusters))
        bottoms.append(cluster_totals(weight, index, n_clusters))
        holds.append(np.bincount(index, weights=mine, minlength=n_clusters) > 0)
    return _Groups((tops[0], tops[1]), (bottoms[0], bottoms[1]), (holds[0], holds[1]))


def _over(top: Floats, bottom: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(bottom == 0.0, np.nan, top / bottom)


def _ratios(groups: _Groups) -> tuple[Floats, Floats]:
    first, second = (_over(t.sum(axis=0), b.sum(axis=0)) for t, b in zip(groups.top, groups.bottom, strict=True))
    return first, second


def _weighted_ratios(groups: _Groups, counts: Floats) -> tuple[Floats, Floats]:
    first, second = (_over(counts @ t, counts @ b) for t, b in zip(groups.top, groups.bottom, strict=True))
    return first, second


def _leave_one_out(groups: _Groups) -> tuple[Floats, Floats]:
    pairs = zip(groups.top, groups.bottom, strict=True)
    first, second = (_over(t.sum(axis=0) - t, b.sum(axis=0) - b) for t, b in pairs)
    return first, second


def _resample(holds: tuple[Bools, Bools], resamples: int, rng: np.random.Generator) -> Floats:
    """Bootstrap counts `[B, K]`: within each group where all clusters are pure, over all clusters otherwise."""
    pure = not (holds[0] & holds[1]).any()
    counts = np.zeros((resamples, len(holds[0])))
    for stratum in holds if pure else (holds[0] | holds[1],):
        size = int(np.count_nonzero(stratum))
        if size:
            counts[:, stratum] = rng.multinomial(size, np.full(size, 1.0 / size), size=resamples)
    return counts


def _relabel(holds: tuple[Bools, Bools], resamples: int, rng: np.random.Generator) -> Floats:
    """Which clusters keep their labels `[B, K]` (1) and which have them exchanged (0)."""
    mixed = holds[0] & holds[1]
    keep = np.ones((resamples, len(mixed)))
    keep[:, mixed] = rng.integers(0, 2, size=(resamples, int(np.count_nonzero(mixed))))
    own = holds[0][~mixed]
    keep[:, ~mixed] = rng.permuted(np.tile(own, (resamples, 1)), axis=1) == own
    return keep


def _difference_limits(groups: _Groups, counts: Floats, confidence: float) -> Floats:
    first, second = _ratios(groups)
    sampled_first, sampled_second = _weighted_ratios(groups, counts)
    left_first, left_second = _leave_one_out(groups)
    clusters = [np.count_nonzero(b, axis=0) for b in groups.bottom]
    return quantile_limits(
        np.ascontiguousarray((sampled_first - sampled_second).T), first - second, left_first - left_second,
        confidence=confidence, scale=np.nan_to_num(np.abs(first) + np.abs(second)),
        n_clusters=np.minimum(*clusters).astype(np.int64),
    )  # fmt: skip


def _studentised(groups: _Groups, keep: Floats) -> Floats:
    """`D / se(D)` under each relabelling, `[B, c]`; `NaN` where a group is empty, ±inf without any variance."""
    (t1, t2), (b1, b2) = groups.top, groups.bottom

    def both(x1: Floats, x2: Floats) -> tuple[Floats, Floats]:
        one = keep @ (x1 - x2) + x2.sum(axis=0)
        return one, (x1 + x2).sum(axis=0) - one

    (s1, s2), (g1, g2) = both(t1, t2), both(b1, b2)
    r1, r2 = _over(s1, g1), _over(s2, g2)
    (tt1, tt2), (tb1, tb2) = both(t1**2, t2**2), both(t1 * b1, t2 * b2)
    (bb1, bb2), (x12, x21) = both(b1**2, b2**2), both(t1 * b2, t2 * b1)
    own1 = _over(tt1 - 2.0 * r1 * tb1 + r1**2 * bb1, g1**2)
    own2 = _over(tt2 - 2.0 * r2 * tb2 + r2**2 * bb2, g2**2)
    shared = (t1 * t2).sum(axis=0) - r2 * x12 - r1 * x21 + r1 * r2 * (b1 * b2).sum(axis=0)
    variance = own1 + own2 - 2.0 * _over(shared, g1 * g2)
    spread = np.sqrt(np.maximum(variance, 0.0))
    difference = r1 - r2
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = (np.abs(t1) + np.abs(t2)).sum(axis=0) * (1.0 / np.abs(g1) + 1.0 / np.abs(g2))
        flat = np.where(np.abs(difference) <= 1e-9 * scale, 0.0, np.sign(difference) * np.inf)
        statistic = np.where(spread > 1e-7 * scale, difference / spread, flat)
    return np.where(np.isnan(difference), np.nan, statistic)
