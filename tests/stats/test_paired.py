"""Paired differences: against t tests, a loop, and their error rate where nothing differs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from engramscope.stats.correction import holm
from engramscope.stats.intervals import harmonic_mean
from engramscope.stats.paired import paired_differences

PAIRS = [(0, 1), (0, 2), (1, 2)]


def columns(n: int, shift: tuple[float, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, 1)) + rng.normal(0, 0.3, (n, len(shift))) + np.array(shift))[:, :, None]


def test_equal_a_loop() -> None:
    values = columns(40, (0.0, 0.1, 0.3), 0)
    found = paired_differences(values, PAIRS, rng=np.random.default_rng(3), resamples=400)
    again = np.random.default_rng(3)
    differences = np.stack([values[:, a, 0] - values[:, b, 0] for a, b in PAIRS], axis=1)
    drawn = np.array([differences[row].mean(axis=0) for row in again.integers(0, 40, size=(400, 40))])
    estimate, spread = differences.mean(axis=0), drawn.std(axis=0)
    # 40 clusters have tails as Student's t with 39 degrees of freedom, and a spread that is too small by √(40 / 39)
    wide = np.sqrt(40 / 39)
    t = wide * stats.t.ppf(stats.norm.cdf(np.abs(drawn - estimate) / spread), 39)
    level = stats.norm.cdf(wide * stats.t.ppf(0.025, 39))
    np.testing.assert_allclose(found.difference, estimate)
    np.testing.assert_allclose([found.low, found.high], np.quantile(drawn, [level, 1 - level], axis=0))
    np.testing.assert_allclose(found.p, (1 + (t >= np.abs(estimate) / spread).sum(axis=0)) / 401)
    largest = t.max(axis=1)
    np.testing.assert_allclose(found.p_max_t, (1 + (largest[:, None] >= np.abs(estimate) / spread).sum(axis=0)) / 401)
    np.testing.assert_allclose(found.high_all - found.difference, np.quantile(largest, 0.95) * spread, rtol=1e-3)
    np.testing.assert_allclose(found.difference - found.low_all, np.quantile(largest, 0.95) * spread, rtol=1e-3)
    np.testing.assert_allclose(found.p_holm, holm(found.p))
    assert (found.p_max_t >= found.p).all()
    assert (found.n_cases, found.n_clusters) == (40, 40)


def test_p_agrees_with_the_paired_t_test() -> None:
    values = columns(200, (0.0, 0.04), 5)
    found = paired_differences(values, [(0, 1)], rng=np.random.default_rng(0))
    assert found.p[0] == pytest.approx(stats.ttest_rel(values[:, 0, 0], values[:, 1, 0]).pvalue, abs=0.01)
    assert found.p_max_t[0] == found.p[0]


def test_the_family_is_wrong_as_seldom_as_it_says() -> None:
    wrong = {"alone": 0, "max_t": 0, "holm": 0}
    pairs = [(i, j) for i in range(4) for j in range(i)]
    for seed in range(150):
        found = paired_differences(columns(50, (0.0,) * 4, seed), pairs, rng=np.random.default_rng(seed), resamples=300)
        wrong["alone"] += bool((found.p <= 0.05).any())
        wrong["max_t"] += bool((found.p_max_t <= 0.05).any())
        wrong["holm"] += bool((found.p_holm <= 0.05).any())
    assert wrong["alone"] > 20
    # 5 % of 150 are 7.5; 15 is the 99 % point
    assert wrong["max_t"] <= 15
    assert wrong["holm"] <= 15


@pytest.mark.parametrize("n", [2, 3, 4, 6, 10, 20])
def test_few_records_do_not_make_a_difference(n: int) -> None:
    wrong = np.zeros(2)
    for seed in range(200):
        rng = np.random.default_rng(seed)
        shares = (rng.random((n, 2, 1)) < 0.5).astype(float)
        for place, values in enumerate((rng.normal(size=(n, 2, 1)), shares)):
            wrong[place] += paired_differences(values, [(0, 1)], rng=rng, resamples=200).p[0] <= 0.05
    # 5 % of 200 are 10; 18 is the 99 % point
    assert (wrong <= 18).all()


@pytest.mark.parametrize("n", [2, 3, 8, 30])
def test_p_is_never_below_that_of_an_exchange_of_signs(n: int) -> None:
    values = np.stack([np.ones((n, 1)), np.zeros((n, 1)), np.linspace(0.0, 0.01, n)[:, None]], axis=1)
    found = paired_differences(values, PAIRS, rng=np.random.default_rng(0), resamples=999)
    for p in (found.p, found.p_max_t):
        assert p[0] == pytest.approx(max(2.0 ** (1 - n), 0.001))
        assert (p >= 2.0 ** (1 - n)).all()
    assert (found.p_holm >= found.p).all()


def test_a_statistic_of_several_parts() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((80, 2, 3))
    found = paired_differences(values, [(0, 1)], rng=rng, statistic=harmonic_mean, resamples=500)
    one, other = (stats.hmean(values[:, column].mean(axis=0)) for column in (0, 1))
    assert found.difference[0] == pytest.approx(one - other)
    assert found.low[0] < found.difference[0] < found.high[0]


def test_missing_cases_are_left_out_for_all() -> None:
    values = columns(30, (0.0, 1.0, 2.0), 2)
    values[3, 2] = np.nan
    found = paired_differences(values, PAIRS, rng=np.random.default_rng(0), resamples=200)
    kept = np.delete(values, 3, axis=0)
    again = paired_differences(kept, PAIRS, rng=np.random.default_rng(0), resamples=200)
    np.testing.assert_array_equal(found.difference, again.difference)
    assert found.n_cases == 29


def test_clusters_are_drawn_whole() -> None:
    values = columns(20, (0.0, 0.1), 3)
    many = np.repeat(values, 15, axis=0)
    rng = np.random.default_rng
    alone = paired_differences(values, [(0, 1)], rng=rng(0), resamples=500)
    whole = paired_differences(many, [(0, 1)], np.repeat(np.arange(20), 15), rng=rng(0), resamples=500)
    np.testing.assert_allclose([whole.low, whole.high, whole.p], [alone.low, alone.high, alone.p])
    assert whole.n_clusters == 20


def test_differences_without_any_spread() -> None:
    values = np.zeros((10, 3, 1))
    values[:, 1] = 1.0
    found = paired_differences(values, PAIRS, rng=np.random.default_rng(0), resamples=99)
    np.testing.assert_array_equal(found.difference, [-1.0, 0.0, 1.0])
    np.testing.assert_allclose(found.p, [0.01, 1.0, 0.01])
    assert np.isfinite([found.low_all, found.high_all]).all()


def test_too_few_clusters_have_no_answer() -> None:
    found = paired_differences(np.ones((1, 2, 1)), [(0, 1)], rng=np.random.default_rng(0))
    assert np.isnan([found.difference, found.p, found.low]).all()
    assert len(paired_differences(np.ones((5, 1, 1)), [], rng=np.random.default_rng(0)).p) == 0
