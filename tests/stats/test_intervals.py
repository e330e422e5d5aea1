"""Intervals of means over cases, against scipy, the published widths and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from engramscope.stats.intervals import (
    bootstrap_limits,
    harmonic_mean,
    published_interval,
    resampled_means,
    wilson_interval,
)


@pytest.mark.parametrize(("share", "n", "half"), [(0.222, 7500, 0.0094), (0.163, 2000, 0.0162)])
def test_the_published_widths(share: float, n: int, half: float) -> None:
    ones = round(share * n)
    low, high = published_interval([1.0] * ones + [0.0] * (n - ones))
    assert round((high - low) / 2, 4) == half
    assert (low + high) / 2 == pytest.approx(ones / n)


def test_the_published_interval_divides_by_n() -> None:
    low, high = published_interval([1.0, 3.0])
    assert (low, high) == pytest.approx((2 - 1.96 / np.sqrt(2), 2 + 1.96 / np.sqrt(2)))
    assert np.isnan(published_interval([])).all()


@pytest.mark.parametrize(("ones", "n"), [(0, 5), (5, 5), (1, 7), (99, 100), (1, 1), (3700, 7500)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_equals_scipy(ones: int, n: int, confidence: float) -> None:
    oracle = stats.binomtest(ones, n).proportion_ci(confidence, "wilson")
    assert wilson_interval(ones / n, n, confidence=confidence) == pytest.approx((oracle.low, oracle.high), abs=1e-9)
    with pytest.raises(ValueError, match="at least 1"):
        wilson_interval(0.5, 0)


def test_harmonic_means() -> None:
    assert float(harmonic_mean([1.0, 0.5, 0.25])) == pytest.approx(3 / 7)
    assert float(harmonic_mean([1.0, 0.0, 0.25])) == 0.0
    rows = np.random.default_rng(0).random((4, 3))
    np.testing.assert_allclose(harmonic_mean(rows), stats.hmean(rows, axis=1))


def test_resampled_means_equal_a_loop() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(20, 3))
    values[rng.random((20, 3)) < 0.3] = np.nan
    clusters = rng.integers(0, 6, 20)
    values[clusters == 2, 1] = np.nan
    found = resampled_means(values, clusters, rng=np.random.default_rng(4), resamples=700)
    again = np.random.default_rng(4)
    drawn = np.concatenate([again.integers(0, 6, size=(512, 6)), again.integers(0, 6, size=(188, 6))])
    for index in (0, 5, 511, 512, 699):
        taken = np.concatenate([np.flatnonzero(clusters == cluster) for cluster in drawn[index]])
        np.testing.assert_allclose(found.means[index], np.nanmean(values[taken], axis=0))
    for cluster in range(6):
        left = np.nanmean(values[clusters != cluster], axis=0)
        some = (~np.isnan(values[clusters == cluster])).any(axis=0)
        np.testing.assert_allclose(found.left_out[cluster], np.where(some, left, np.nan))
    np.testing.assert_array_equal(
        found.n_clusters, [len(set(clusters[~np.isnan(values[:, column])])) for column in range(3)]
    )


def test_bca_limits_equal_scipy() -> None:
    values = np.random.default_rng(2).exponential(size=60)
    sampled = resampled_means(values[:, None], np.arange(60), rng=np.random.default_rng(0), resamples=20_000)
    low, high = bootstrap_limits([values.mean()], sampled)
    oracle = stats.bootstrap((values,), np.mean, rng=np.random.default_rng(1), n_resamples=20_000).confidence_interval
    assert (low[0], high[0]) == pytest.approx((oracle.low, oracle.high), abs=0.01)
    # BCa, not percentile: of a skewed mean both ends lie higher
    percentile = np.quantile(sampled.means[:, 0], [0.025, 0.975])
    assert low[0] > percentile[0] + 0.005
    assert high[0] > percentile[1] + 0.005


def test_one_cluster_has_no_interval() -> None:
    sampled = resampled_means(np.ones((3, 1)), np.zeros(3, dtype=int), rng=np.random.default_rng(0), resamples=50)
    assert np.isnan(bootstrap_limits([1.0], sampled)).all()
