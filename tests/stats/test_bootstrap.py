from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from engramscope.stats.bootstrap import (
    bootstrap_mean,
    bootstrap_recovery,
    ratio_intervals,
    resample_clusters,
    resample_draws,
)

NAN = np.nan


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def limits(interval):
    return np.stack([interval.low, interval.high, interval.bca_low, interval.bca_high])


def covers(low, high, truth):
    return float(np.mean((low <= truth) & (truth <= high)))


def test_percentile_against_a_loop_over_resamples_and_pairs():
    r = rng(1)
    effect = r.normal(0.5, 1.0, (14, 5))
    effect[r.random(effect.shape) < 0.2] = NAN
    gap = r.normal(4.0, 0.5, 14)
    clusters = np.array(list("aabbccddeeffgg"))
    resampling = resample_clusters(clusters, 200, rng(3))
    names = sorted(set(clusters))
    expected = np.empty((2, 5))
    for c in range(5):
        values = []
        for row in resampling.counts:
            top = bottom = 0.0
            for i in range(14):
                if not np.isnan(effect[i, c]):
                    times = row[names.index(clusters[i])]
                    top, bottom = top + times * effect[i, c], bottom + times * gap[i]
            values.append(top / bottom)
        expected[:, c] = np.quantile(values, [0.05, 0.95])
    got = ratio_intervals(effect, gap, resampling, confidence=0.9)
    assert_allclose([got.low, got.high], expected, rtol=1e-12)


@pytest.mark.parametrize("method", ["percentile", "BCa"])
def test_against_scipy_bootstrap(method):
    r = rng(2)
    effect, gap = r.exponential(1.0, 40), r.normal(3.0, 0.6, 40)
    ours = bootstrap_recovery(effect[:, None], gap, np.arange(40), rng=rng(), resamples=60_000)
    reference = stats.bootstrap(
        (effect, gap), lambda e, g, axis=-1: e.sum(axis=axis) / g.sum(axis=axis), paired=True, method=method,
        n_resamples=60_000, rng=rng(5),
    ).confidence_interval  # fmt: skip
    mine = (ours.low, ours.high) if method == "percentile" else (ours.bca_low, ours.bca_high)
    assert_allclose(np.ravel(mine), [reference.low, reference.high], atol=4e-3)


def test_counts_are_resamples_of_whole_clusters():
    resampling = resample_clusters(np.repeat(np.arange(7), 3), 5000, rng())
    assert resampling.counts.shape == (5000, 7)
    assert_array_equal(resampling.counts.sum(axis=1), 7)
    assert_allclose(resampling.counts.mean(axis=0), 1.0, atol=0.06)
    assert_allclose(resampling.counts.var(axis=0), 6 / 7, atol=0.08)


def test_degenerate_cells():
    effect = rng(3).normal(size=(12, 6))
    effect[:, 1] = 0.1
    effect[:, 2] = NAN
    effect[3:, 3] = NAN  # one cluster only
    effect[6:, 4] = NAN  # two clusters
    effect[:, 5] = 0.0
    got = bootstrap_mean(effect, np.arange(12) // 3, rng=rng())
    assert_allclose(limits(got)[:, 1], [0.1] * 4, rtol=1e-15)
    assert (limits(got)[:, 1] == got.low[1]).all()
    assert_array_equal(limits(got)[:, 5], [0.0] * 4)
    assert np.isnan(limits(got)[:, [2, 3]]).all()
    assert np.isfinite(limits(got)[:, [0, 4]]).all()
    assert (got.low <= got.high)[[0, 1, 4, 5]].all()
    assert np.isnan(limits(bootstrap_mean(effect, np.zeros(12), rng=rng()))).all()


def test_effect_proportional_to_the_gap_is_a_point():
    gap = rng(4).uniform(1, 3, 30)
    got = bootstrap_recovery(0.7 * gap[:, None], gap, np.arange(30) // 2, rng=rng())
    assert_allclose(limits(got)[:, 0], 0.7, rtol=1e-12)
    assert got.low[0] == got.high[0]


def test_a_gap_around_0_has_no_interval_and_says_so():
    gap = rng(5).normal(0.0, 1.0, 30)
    got = bootstrap_recovery(np.ones((30, 1)), gap, np.arange(30), rng=rng())
    assert got.unstable[0]
    assert np.isnan(limits(got)).all()
    zero = bootstrap_recovery(np.ones((4, 1)), np.array([1.0, -1.0, 1.0, -1.0]), np.arange(4), rng=rng())
    assert zero.unstable[0]


def test_same_seed_same_interval_in_any_order_and_block_size(monkeypatch):
    effect = rng(6).normal(size=(30, 40))
    effect[rng(7).random(effect.shape) < 0.1] = NAN
    one = limits(bootstrap_mean(effect, np.arange(30) // 2, rng=rng(1), resamples=900))
    order = rng(8).permutation(40)
    two = limits(bootstrap_mean(effect[:, order], np.arange(30) // 2, rng=rng(1), resamples=900))
    assert_allclose(two, one[:, order], rtol=1e-12)
    monkeypatch.setattr("engramscope.stats.clusters.BLOCK_BYTES", 1 << 14)
    monkeypatch.setattr("engramscope.stats.bootstrap.BLOCK_BYTES", 1 << 14)
    assert_allclose(limits(bootstrap_mean(effect, np.arange(30) // 2, rng=rng(1), resamples=900)), one, rtol=1e-12)


def test_coverage_on_normal_data():
    effect = rng(9).normal(1.0, 2.0, (50, 3000))
    got = bootstrap_mean(effect, np.arange(50), rng=rng(), resamples=2000)
    for low, high in ((got.low, got.high), (got.bca_low, got.bca_high)):
        assert 0.93 <= covers(low, high, 1.0) <= 0.97


def test_coverage_of_pooled_recovery():
    r = rng(10)
    gap = r.normal(3.0, 1.0, 50)
    effect = 0.4 * gap[:, None] + r.normal(0.0, 1.0, (50, 3000))
    got = bootstrap_recovery(effect, gap, np.arange(50), rng=rng(), resamples=2000)
    assert 0.93 <= covers(got.low, got.high, 0.4) <= 0.97


def test_bca_is_nearer_to_its_level_than_percentile_on_skewed_data():
    effect = rng(11).lognormal(0.0, 1.0, (40, 3000))
    got = bootstrap_mean(effect, np.arange(40), rng=rng(), resamples=2000)
    truth = np.exp(0.5)
    percentile, bca = covers(got.low, got.high, truth), covers(got.bca_low, got.bca_high, truth)
    assert percentile < bca < 0.95
    tail_p, tail_b = np.mean(got.high < truth), np.mean(got.bca_high < truth)
    assert abs(tail_b - 0.025) < abs(tail_p - 0.025)


def test_clusters_are_what_makes_the_interval_honest():
    r = rng(12)
    clusters = np.repeat(np.arange(40), 5)
    effect = r.normal(size=(40, 2000))[clusters] + 0.5 * r.normal(size=(200, 2000))
    ours = bootstrap_mean(effect, clusters, rng=rng(), resamples=1000)
    alone = bootstrap_mean(effect, np.arange(200), rng=rng(), resamples=1000)
    assert covers(ours.low, ours.high, 0.0) >= 0.925
    assert covers(alone.low, alone.high, 0.0) < 0.75


def test_expanded_levels_repair_few_clusters():
    effect = rng(13).normal(size=(8, 3000))
    resampling = resample_clusters(np.arange(8), 4000, rng())
    plain = ratio_intervals(effect, np.ones(8), resampling)
    wide = ratio_intervals(effect, np.ones(8), resampling, expanded=True)
    assert covers(plain.low, plain.high, 0.0) < 0.91
    assert 0.92 <= covers(wide.low, wide.high, 0.0) <= 0.97


def test_cells_that_few_pairs_have_are_covered_too():
    effect = rng(14).normal(size=(60, 2000))
    effect[25:] = NAN
    got = bootstrap_mean(effect, np.arange(60), rng=rng(), resamples=1500)
    assert 0.91 <= covers(got.low, got.high, 0.0) <= 0.97


def test_nested_draws_against_a_loop():
    values = rng(15).normal(size=(4, 3, 2))
    resampling = resample_draws([0, 0, 1, 2], 3, 300, rng(), shared=False)
    counts = resampling.counts.reshape(300, 4, 3)
    per_pair = counts.sum(axis=2)
    assert_array_equal(per_pair % 3, 0)
    assert_array_equal(per_pair[:, 0], per_pair[:, 1])  # one cluster
    assert_array_equal(per_pair[:, [0, 2, 3]].sum(axis=1), 9)
    means = np.einsum("bnd,ndc->bc", counts, values) / counts.sum(axis=(1, 2))[:, None]
    got = ratio_intervals(values, np.ones((4, 3)), resampling)
    assert_allclose([got.low, got.high], np.quantile(means, [0.025, 0.975], axis=0), rtol=1e-10)


def test_shared_draws_are_resampled_once_for_all_pairs():
    counts = resample_draws(np.arange(5), 4, 200, rng(), shared=True).counts.reshape(200, 5, 4)
    for block in counts:
        kept = block[block.sum(axis=1) > 0]
        shares = kept / kept.sum(axis=1, keepdims=True)
        assert_allclose(shares, np.broadcast_to(shares[0], shares.shape))
    with pytest.raises(ValueError, match="n_draws"):
        resample_draws([0, 1], 0, 10, rng())


@pytest.mark.parametrize("shared", [False, True])
def test_coverage_with_noise_draws(shared):
    r = rng(16)
    n, d, c = 25, 6, 600
    noise = r.normal(size=(1 if shared else n, d, c))
    effect = r.normal(size=(n, 1, c)) + 1.5 * noise + 0.3 * r.normal(size=(n, d, c))
    resampling = resample_draws(np.arange(n), d, 800, rng(), shared=shared)
    got = ratio_intervals(effect, np.ones((n, d)), resampling)
    ignoring = bootstrap_mean(effect.mean(axis=1), np.arange(n), rng=rng(), resamples=800)
    assert covers(got.low, got.high, 0.0) >= (0.85 if shared else 0.93)
    if shared:
        assert covers(ignoring.low, ignoring.high, 0.0) < 0.6


def test_bad_arguments():
    with pytest.raises(ValueError, match="confidence"):
        ratio_intervals(np.ones((2, 1)), np.ones(2), resample_clusters([0, 1], 10, rng()), confidence=95.0)
    with pytest.raises(ValueError, match="resamples"):
        resample_clusters([0, 1], 0, rng())
    with pytest.raises(ValueError, match="one label"):
        bootstrap_mean(np.ones((3, 1)), [[0, 1, 2]], rng=rng())
