"""Does a predictor say more about an outcome than the layer does? Linear models on a table of facts × layers.

Every fact is measured at every layer, so the rows of one fact are not independent. Point estimates and the F test are
those of ordinary least squares over all rows; intervals resample whole clusters of facts, and a permutation test
exchanges the predictor between facts, a whole profile at a time. Facts of one cluster cannot be exchanged one by one;
there the test flips the sign of what a whole cluster adds to the association of predictor and outcome.

With layer as a factor, least squares falls apart into one simple regression per layer. So every model follows from six
sums per layer, and a resample is one product of counts and sums.

Source: Hase, Bansal, Kim & Ghandeharioun 2023 (arXiv 2301.04213), the three models, R² and the F test.
Deviation: their F test takes all rows for independent; interval and permutation test by fact are added.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from engramscope.stats.bootstrap import quantile_limits, resample_clusters
from engramscope.stats.clusters import Bools, Floats, block_length, cluster_index, cluster_totals

#: a share of what was summed, or of the largest value, that is rounding
_ROUNDING = 1e-13


@dataclass(frozen=True)
class Estimate:
    """A number and its percentile interval; `NaN` where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Explained:
    """What layer and predictor explain of an outcome.

    Attributes:
        n_facts, n_layers, n_clusters: size of the table, and how many clusters were resampled.
        layer: R² of the outcome on the layer as a factor.
        predictor: R² on the predictor alone. Pooled over layers, so misleading where both vary with depth.
        both: R² of layer × predictor: a line of its own in each layer.
        gain: both - layer, as published; never negative, so chance alone makes it positive.
        gain_adjusted: the gain freed of chance, `(Σ_l SSR_l - Σ_l SSE_l / (n - 2)) / SST`: on average 0 where the
            predictor says nothing, and then negative as often as not.
        slope: of one line for all layers with a level of its own in each; units of the outcome per unit of predictor.
        f, f_df1, f_df2, f_p: F test of `both` against `layer`, as published; it takes all rows for independent.
        permutation_p: share of the exchanges of profiles between facts with at least this gain; where facts come in
            clusters, of the flips of whole clusters.
    """

    n_facts: int
    n_layers: int
    n_clusters: int
    layer: Estimate
    predictor: Estimate
    both: Estimate
    gain: float
    gain_adjusted: Estimate
    slope: Estimate
    f: float
    f_df1: int
    f_df2: int
    f_p: float
    permutation_p: float


@dataclass(frozen=True)
class _Sums:
    """Per resample and layer `[B, n_layers]`: number of facts, and centred sums of squares and products."""

    n: Floats
    mean_x: Floats
    mean_y: Floats
    xx: Floats
    xy: Floats
    yy: Floats


def as_tables(predictor: ArrayLike, outcome: ArrayLike) -> tuple[Floats, Floats]:
    """Checks two tables `[n_facts, n_layers]` of finite numbers.

    Raises:
        ValueError: shapes differ, there are not two axes, fewer than 3 facts, or a value is not finite: facts that
            lack a layer must be left out.
    """
    x, y = np.asarray(predictor, dtype=np.float64), np.asarray(outcome, dtype=np.float64)
    if x.ndim != 2 or x.shape != y.shape:
        raise ValueError(f"predictor and outcome must both be [n_facts, n_layers], got {x.shape} and {y.shape}")
    if len(x) < 3 or x.shape[1] < 1:
        raise ValueError(f"at least 3 facts and one layer are needed, got {x.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("predictor and outcome must be finite: leave out facts that lack a layer")
    return x, y


def explained(
    predictor: ArrayLike,
    outcome: ArrayLike,
    clusters: ArrayLike,
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> Explained:
    """R² of layer, predictor and both, and whether the predictor adds anything to the layer.

    Args:
        predictor: `[n_facts, n_layers]`, for instance the share that tracing restores.
        outcome: `[n_facts, n_layers]`, for instance the success of an edit.
        clusters: label of each fact `[n_facts]`; facts of one cluster are resampled together.
        rng: source of randomness.
        confidence: of the percentile intervals.
        resamples: of bootstrap and permutation.

    Returns:
        Estimates with intervals. R² is as published; noise makes it too large, and a resample, which repeats facts,
        adds that noise once more. So the intervals of `layer` and `both` are those of the resamples less twice the
        distance of their mean from the estimate, and from the gain of a resample the noise is taken off twice. The
        interval of the R² of the predictor alone is that of the signed correlation, squared, so that it can reach 0.
        `NaN` throughout where the outcome does not vary.

    Raises:
        ValueError: see `as_tables`.
    """
    x, y = as_tables(predictor, outcome)
    moments = _moments(x - x.mean(), y - y.mean())  # [n_facts, 6 * n_layers]
    rounding = (_rounding_of(x), _rounding_of(y))
    point = _models(_sums(moments, np.ones((1, len(x)))), rounding, twice=False)
    resampling = resample_clusters(clusters, resamples, rng)
    drawn = _in_blocks(moments, resampling.counts, resampling.index, rounding)
    many = np.full(1, resampling.n_clusters, dtype=np.int64)

    def estimate(name: str) -> Estimate:
        value = float(point[name][0])
        return Estimate(value, *_limits(drawn[name], value, many, confidence))

    def share(name: str) -> Estimate:
        raw = estimate(name)
        chance = 2.0 * (_mean(drawn[name]) - raw.value)
        low, high = np.clip([raw.low - chance, raw.high - chance], 0.0, 1.0)
        return Estimate(raw.value, float(low), float(high))

    layer, both, gain = share("layer"), share("both"), float(point["gain"][0])
    df1 = int(point["slopes"][0])
    df2 = x.size - x.shape[1] - df1
    f, f_p = _f_test(gain, both.value, df1, df2)
    return Explained(
        n_facts=len(x), n_layers=x.shape[1], n_clusters=resampling.n_clusters,
        layer=layer, predictor=_squared(estimate("correlation")), both=both,
        gain=gain, gain_adjusted=estimate("gain_adjusted"), slope=estimate("slope"),
        f=f, f_df1=df1, f_df2=df2, f_p=f_p, permutation_p=_permutation_p(x, y, clusters, resamples, rng),
    )  # fmt: skip


def _moments(x: Floats, y: Floats) -> Floats:
    ones = np.ones_like(x)
    return np.concatenate([ones, x, y, x * x, x * y, y * y], axis=1)


def _sums(moments: Floats, weights: Floats) -> _Sums:
    """Sums under each row of weights `[B, n_facts]`."""
    totals = weights @ moments
    n, x, y, xx, xy, yy = np.split(totals, 6, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _Sums(n, x / n, y / n, xx - x * x / n, xy - x * y / n, yy - y * y / n)


def _in_blocks(
    moments: Floats, counts: np.ndarray, index: np.ndarray, rounding: tuple[float, float]
) -> dict[str, Floats]:
    """The models of every resample, a block of resamples at a time."""
    step = block_length(8 * (moments.shape[1] + len(moments)) * 4)
    parts = [
        _models(_sums(moments, counts[start : start + step][:, index].astype(np.float64)), rounding, twice=True)
        for start in range(0, len(counts), step)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _models(sums: _Sums, rounding: tuple[float, float], *, twice: bool) -> dict[str, Floats]:
    """Every quantity of the linear models, `[B]` each; sums of squares up to `rounding` are 0."""
    n, total = sums.n, sums.n.sum(axis=1)
    grand_x, grand_y = ((n * mean).sum(axis=1) / total for mean in (sums.mean_x, sums.mean_y))
    dx, dy = sums.mean_x - grand_x[:, None], sums.mean_y - grand_y[:, None]
    within_x, within_xy, within_y = sums.xx.sum(axis=1), sums.xy.sum(axis=1), np.maximum(sums.yy.sum(axis=1), 0.0)
    sst, sxx = within_y + (n * dy * dy).sum(axis=1), within_x + (n * dx * dx).sum(axis=1)
    sxy = within_xy + (n * dx * dy).sum(axis=1)
    sloped = sums.xx > rounding[0]
    ssr = np.divide(sums.xy**2, sums.xx, out=np.zeros_like(sums.xx), where=sloped)
    ssr = np.minimum(ssr, np.maximum(sums.yy, 0.0))
    noise = np.where(sloped & (n > 2), (np.maximum(sums.yy, 0.0) - ssr) / np.maximum(n - 2.0, 1.0), 0.0).sum(axis=1)
    explained_sum = ssr.sum(axis=1)
    sst = np.where(sst > rounding[1], sst, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        layer, gain = 1.0 - within_y / sst, explained_sum / sst
        flat = sxx <= rounding[0]
        return {
            "layer": layer,
            "gain": gain,
            "both": layer + gain,
            "gain_adjusted": gain - (2.0 if twice else 1.0) * noise / sst,
            "correlation": np.where(flat, 0.0, sxy / np.sqrt(np.where(flat, 1.0, sxx) * sst)),
            "slope": np.where(within_x > rounding[0], within_xy / within_x, np.nan),
            "slopes": sloped.sum(axis=1).astype(np.float64),
        }


def _rounding_of(values: Floats) -> float:
    """Below this a sum of squares of the values about a mean is rounding: of the values, or of the sums."""
    about = float(((values - values.mean()) ** 2).sum())
    return _ROUNDING * about + values.size * (_ROUNDING * float(np.abs(values).max())) ** 2


def _f_test(gain: float, both: float, df1: int, df2: int) -> tuple[float, float]:
    """`F = (gain / df1) / ((1 - R²_both) / df2)` and its p; `NaN` where a model has no freedom."""
    if df1 < 1 or df2 < 1 or not np.isfinite(both):
        return float("nan"), float("nan")
    left = (1.0 - both) / df2
    f = np.inf if left <= _ROUNDING else gain / df1 / left
    return float(f), float(stats.f.sf(f, df1, df2))


def cluster_products(dx: Floats, dy: Floats, clusters: ArrayLike) -> Floats | None:
    """Sums of products over the facts of each cluster `[n_clusters, n_layers]`; None where each fact is its own."""
    index, n_clusters = cluster_index(clusters, len(dx))
    return None if n_clusters == len(dx) else cluster_totals(dx * dy, index, n_clusters)


def scrambled(dx: Floats, dy: Floats, totals: Floats | None, size: int, rng: np.random.Generator) -> Floats:
    """Sums of products over facts `[size, n_layers]` as they would be if predictor and outcome had nothing in common.

    Profiles of the predictor are dealt anew to the facts: layers keep their levels and layers of a fact their
    dependence. Where facts come in clusters, what a cluster adds comes with one sign or the other, in all layers alike.

    Args:
        dx, dy: `[n_facts, n_layers]`, layer means taken off.
        totals: of `cluster_products`.
        size: how many times.
        rng: source of randomness.
    """
    if totals is not None:
        return (2.0 * rng.integers(0, 2, size=(size, len(totals))) - 1.0) @ totals
    order = rng.permuted(np.tile(np.arange(len(dx)), (size, 1)), axis=1)
    return np.einsum("bfl,fl->bl", dx[order], dy)


def _permutation_p(x: Floats, y: Floats, clusters: ArrayLike, resamples: int, rng: np.random.Generator) -> float:
    """`p = (1 + #{gain ≥ observed}) / (1 + resamples)`, see `scrambled`."""
    dx, dy = x - x.mean(axis=0), y - y.mean(axis=0)
    weight = (dx**2).sum(axis=0)
    sloped = weight > _rounding_of(x)
    if not sloped.any() or not (dy**2).sum() > _rounding_of(y):
        return float("nan")
    dx, dy, weight = dx[:, sloped], dy[:, sloped], weight[sloped]
    totals = cluster_products(dx, dy, clusters)
    observed = ((dx * dy).sum(axis=0) ** 2 / weight).sum()
    reached, step = 0, block_length(8 * dx.size * 2)
    for start in range(0, resamples, step):
        drawn = scrambled(dx, dy, totals, min(step, resamples - start), rng)
        reached += int(((drawn**2 / weight).sum(axis=1) >= observed * (1 - 1e-9)).sum())
    return (1 + reached) / (1 + resamples)


def _limits(drawn: Floats, value: float, n_clusters: np.ndarray, confidence: float) -> tuple[float, float]:
    """Percentile limits, a little wider for few clusters."""
    limits = quantile_limits(
        drawn[None].copy(), np.array([value]), np.zeros((1, 1)), confidence=confidence, scale=np.abs([value]),
        n_clusters=n_clusters, expanded=True,
    )  # fmt: skip
    return (float(limits[0, 0]), float(limits[1, 0])) if np.isfinite(value) else (float("nan"), float("nan"))


def _mean(drawn: Floats) -> float:
    """The mean of the resamples that have a value."""
    known = drawn[~np.isnan(drawn)]
    return float(known.mean()) if len(known) else float("nan")


def _squared(signed: Estimate) -> Estimate:
    low, high = sorted((signed.low**2, signed.high**2))
    return Estimate(signed.value**2, 0.0 if signed.low <= 0.0 <= signed.high else low, high)


def finite_rows(*tables: Floats) -> Bools:
    """Which facts have a finite value at every layer of every table, `[n_facts]`."""
    return np.logical_and.reduce([np.isfinite(table).all(axis=1) for table in tables])


def reliability(draws: ArrayLike) -> float:
    """How far the mean over repeated measurements would be found again: Spearman–Brown over all pairs of draws.

    `D r / (1 + (D - 1) r)`, r the mean correlation of two draws over facts and layers, layer means taken off.
    A predictor of reliability ρ can explain at most ρ of what its true value explains within layers.

    Args:
        draws: `[n_draws, n_facts, n_layers]`.

    Returns:
        At most 1; `NaN` with fewer than two draws, or where one does not vary.
    """
    values = np.asarray(draws, dtype=np.float64)
    count = len(values)
    if count < 2 or values.shape[1] < 3:
        return float("nan")
    flat = (values - values.mean(axis=1, keepdims=True)).reshape(count, -1)
    if not (flat.std(axis=1) > 1e-12).all():
        return float("nan")
    r = float(np.corrcoef(flat)[np.triu_indices(count, 1)].mean())
    return count * r / (1.0 + (count - 1) * r) if 1.0 + (count - 1) * r > 0 else float("nan")
