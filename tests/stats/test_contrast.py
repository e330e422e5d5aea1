from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from engramscope.stats.contrast import (
    MEASURES,
    _profiles,
    _relabel,
    _resample,
    _studentised,
    _totals,
    concentration,
    contrast_cells,
    contrast_concentration,
)

NAN = np.nan


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_concentration_of_known_profiles():
    flat, single, pair = np.ones(8), np.eye(8)[3], np.array([0, 2.0, 0, -2.0, 0, 0, 0, 0])
    values = concentration(np.stack([flat, single, pair, np.zeros(8), 1e-200 * single]))
    assert_allclose(values[0], [8, 1, 2, NAN, 1])
    assert_allclose(values[1], [3.5, 3, 2, NAN, 3])
    assert_allclose(values[2], [1 / 8, 1, 1 / 2, NAN, 1])
    e = rng(0).normal(size=8)
    assert_allclose(concentration(e)[0], (e**2).sum() ** 2 / (e**4).sum())


def test_the_centre_of_mass_is_the_number_of_a_layer():
    """Layers 4, 5, 7 were swept: the weight of all is in 7 or, for the other group, half in 4 and half in 5."""
    first = np.arange(40) % 2 == 0
    effect = np.where(first[:, None], [0.0, 0.0, 1.0], [1.0, -1.0, 0.0])
    got = contrast_concentration(effect, first, np.arange(40), rng=rng(), layers=[4, 5, 7], resamples=200)
    centre = got[1]
    assert (centre.name, centre.first, centre.second, centre.difference) == ("centre_of_mass", 7.0, 4.5, 2.5)
    assert (centre.first_low, centre.first_high, centre.second_low, centre.second_high) == (7.0, 7.0, 4.5, 4.5)
    plain = contrast_concentration(effect, first, np.arange(40), rng=rng(), resamples=200)
    assert (plain[1].first, plain[1].second) == (2.0, 0.5)
    assert (plain[0], plain[2]) == (got[0], got[2])


def test_taking_off_the_variance_undoes_what_noise_adds():
    profile = np.array([0.0, 0.3, 1.5, 0.8, 0.0, 0.0])
    noisy = profile + 0.3 * rng(20).normal(size=(20_000, 6))
    truth = concentration(profile)
    plain, freed = (np.nanmean(concentration(noisy, v), axis=1) for v in (None, np.full(6, 0.09)))
    assert plain[0] - truth[0] > 0.3
    assert abs(freed[0] - truth[0]) < 0.1
    assert abs(freed[2] - truth[2]) < 0.3 * abs(plain[2] - truth[2])
    assert np.isnan(concentration([0.1, 0.1], [1.0, 1.0])).all()


def test_profiles_and_their_variance_against_loops():
    r = rng(21)
    clusters, first = np.repeat(np.arange(9), 3), np.arange(27) % 3 == 0
    effect = r.normal(1, 1, (27, 4))
    effect[4, 2] = effect[6, 1] = NAN
    groups = _totals(effect, np.ones(27), first, clusters, 9)
    counts = r.multinomial(9, np.full(9, 1 / 9), size=6).astype(float)
    for (mean, variance), mine in zip(_profiles(groups, counts), (first, ~first), strict=True):
        for row, m, v in zip(counts, mean, variance, strict=True):
            for layer in range(4):
                drawn = [k for k in range(9) for _ in range(int(row[k]))]
                values = [effect[mine & (clusters == k), layer] for k in drawn]
                values = [x[~np.isnan(x)] for x in values]
                average = np.concatenate(values).mean()
                spread = sum((x.sum() - average * len(x)) ** 2 for x in values) / sum(map(len, values)) ** 2
                assert_allclose([m[layer], v[layer]], [average, spread * 9 / 8], rtol=1e-9)


def naive_t(effect, gap, first, clusters):
    """Difference of pooled ratios over its linearised cluster standard error, with loops."""
    shares, totals = [], []
    for mine in (first, ~first):
        keep = mine & ~np.isnan(effect)
        shares.append(effect[keep].sum() / gap[keep].sum())
        totals.append(gap[keep].sum())
    variance = 0.0
    for k in np.unique(clusters):
        influence = 0.0
        for i in np.flatnonzero((clusters == k) & ~np.isnan(effect)):
            g = 0 if first[i] else 1
            influence += (1 - 2 * g) * (effect[i] - shares[g] * gap[i]) / totals[g]
        variance += influence**2
    return (shares[0] - shares[1]) / np.sqrt(variance)


@pytest.mark.parametrize("mixed", [False, True])
def test_studentised_difference_against_loops_under_relabelling(mixed):
    r = rng(1)
    clusters = np.repeat(np.arange(10), 4)
    first = np.arange(40) % 2 == 0 if mixed else clusters < 4
    if mixed:
        first[:4], first[4:8] = True, False  # two pure clusters among mixed ones
    effect, gap = r.normal(1, 1, (40, 3)), r.normal(4, 1, 40)
    effect[r.random(effect.shape) < 0.1] = NAN
    groups = _totals(effect, gap, first, clusters, 10)
    keep = _relabel(groups.holds, 25, r)
    got = _studentised(groups, keep)
    expected = [
        [naive_t(effect[:, c], gap, np.where(row[clusters] == 1, first, ~first), clusters) for c in range(3)]
        for row in keep
    ]
    assert_allclose(got, expected, rtol=1e-9)
    if not mixed:
        assert_array_equal((keep == (np.arange(10) < 4)).sum(axis=1), 4)  # group sizes are kept


def test_equals_a_t_like_permutation_test_of_scipy_for_independent_pairs():
    r = rng(2)
    x, y = r.normal(0.9, 1, 15), r.normal(0, 1, 12)
    ours = contrast_cells(
        np.concatenate([x, y])[:, None], None, np.arange(27) < 15, np.arange(27), rng=rng(), resamples=20_000
    )
    reference = stats.permutation_test(
        (x, y), lambda a, b, axis: stats.ttest_ind(a, b, axis=axis, equal_var=False).statistic,
        n_resamples=20_000, vectorized=True, rng=rng(3),
    )  # fmt: skip
    assert_allclose(ours.p[0], reference.pvalue, atol=0.01)
    assert_allclose(ours.difference[0], x.mean() - y.mean())


def test_paired_clusters_equal_a_sign_flip_of_cluster_differences():
    r = rng(4)
    subject = np.repeat(r.normal(0, 3, 12), 2)
    first = np.arange(24) % 2 == 0
    effect = (subject + 0.8 * first + 0.5 * r.normal(size=24))[:, None]
    got = contrast_cells(effect, None, first, np.arange(24) // 2, rng=rng(), resamples=20_000)
    d = effect[::2, 0] - effect[1::2, 0]
    reference = stats.permutation_test(
        (d,), lambda v, axis: v.mean(axis=axis), permutation_type="samples", n_resamples=5000, vectorized=True
    )
    assert_allclose(got.p[0], reference.pvalue, atol=0.005)
    assert got.high[0] - got.low[0] < 1.5  # the spread between subjects cancels
    assert got.low[0] < d.mean() < got.high[0]


@pytest.mark.parametrize("mixed", [False, True])
def test_intervals_cover_and_tests_hold_their_level(mixed):
    r, cells = rng(5), 1500
    clusters = np.repeat(np.arange(48), 2)
    first = np.arange(96) % 2 == 0 if mixed else clusters % 3 == 0
    gap = r.normal(3, 0.5, 96) + 1.0 * first  # the groups differ in gap and in spread, not in recovery
    noise = r.normal(size=(48, cells))[clusters] + r.normal(size=(96, cells)) * np.where(first, 2.0, 1.0)[:, None]
    effect = 0.5 * gap[:, None] + noise
    got = contrast_cells(effect, gap, first, clusters, rng=r, resamples=800)
    assert 0.92 <= np.mean((got.low <= 0) & (got.high >= 0)) <= 0.97
    assert 0.035 <= np.mean(got.p <= 0.05) <= 0.07
    assert np.isfinite(got.p_max_t).all()
    assert (got.p_max_t >= got.p).all()


def test_family_error_and_power_of_max_t():
    r, runs, hits, found = rng(6), 300, 0, 0
    first = np.arange(30) < 15
    for _ in range(runs):
        effect = r.normal(size=(30, 1)) + r.normal(size=(30, 20))
        effect[:, 0] += 3.0 * first
        got = contrast_cells(effect, None, first, np.arange(30), rng=r, resamples=199)
        hits += bool((got.p_max_t[1:] <= 0.05).any())
        found += bool(got.p_max_t[0] <= 0.05)
    assert hits / runs <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / runs)
    assert found / runs > 0.9


def test_degenerate_cells_and_small_groups():
    effect = rng(7).normal(size=(8, 4))
    first = np.arange(8) < 4
    effect[:, 1] = 2.0
    effect[:4, 2] = NAN
    effect[:, 3] = np.where(first, 1.0, 0.5)
    got = contrast_cells(effect, None, first, np.arange(8), rng=rng(), resamples=999)
    assert_allclose(got.difference[1:], [0.0, NAN, 0.5])
    assert_allclose([got.p[1], got.low[1], got.high[1]], [1.0, 0.0, 0.0], atol=1e-15)
    assert np.isnan([got.p[2], got.p_max_t[2], got.low[2]]).all()
    assert got.p[3] < 0.06
    one = contrast_cells(effect, None, np.arange(8) < 1, np.arange(8), rng=rng(), resamples=99)
    assert np.isnan(one.low).all()
    assert (one.p[:2] > 0.05).all()
    none = contrast_cells(effect, None, np.zeros(8, bool), np.arange(8), rng=rng(), resamples=99)
    assert np.isnan(none.difference).all()
    assert np.isnan(none.p).all()


def layers(r, n, profile, noise=0.3):
    return r.normal(1.0, 0.3, (n, 1)) * np.asarray(profile) + noise * r.normal(size=(n, len(profile)))


def test_localised_against_distributed_is_found():
    r = rng(8)
    effect = np.vstack([layers(r, 30, [0, 0, 2.0, 0.2, 0, 0]), layers(r, 30, [0.4, 0.4, 0.5, 0.4, 0.4, 0.3])])
    got = contrast_concentration(effect, np.arange(60) < 30, np.arange(60) // 2, rng=rng(), resamples=2000)
    assert tuple(m.name for m in got) == MEASURES
    layers_, _, top = got
    half = effect[:30].reshape(15, 2, 6).mean(axis=1)
    assert_allclose(layers_.first, concentration(half.mean(axis=0), half.var(axis=0, ddof=1) / 15)[0])
    assert layers_.high < 0 < top.low
    assert max(layers_.p, top.p) < 0.01


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_same_shape_of_another_size_is_no_difference(noise):
    r, runs = rng(9), 300
    profile = np.array([0.1, 0.3, 1.5, 0.8, 0.2, 0.1])
    truth = concentration(profile)
    p, covered, single = np.empty((runs, 3)), np.empty((runs, 3)), np.empty((runs, 3))
    for run in range(runs):
        effect = np.vstack([layers(r, 30, profile, noise), 2.0 * layers(r, 30, profile, noise)])
        got = contrast_concentration(effect, np.arange(60) < 30, np.arange(60), rng=r, resamples=399)
        p[run] = [m.p for m in got]
        covered[run] = [m.low <= 0 <= m.high for m in got]
        single[run] = [m.first_low <= t <= m.first_high for m, t in zip(got, truth, strict=True)]
    assert (np.mean(p <= 0.05, axis=0) <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / runs)).all()
    assert (covered.mean(axis=0) >= 0.90).all()
    assert (single.mean(axis=0) >= 0.89).all()


def test_a_profile_within_its_noise_has_no_concentration():
    effect = rng(12).normal(size=(20, 4))
    effect -= effect.mean(axis=0) * np.repeat([1.0, 0.0], 10)[:, None]
    effect[:10] -= effect[:10].mean(axis=0)
    for measure in contrast_concentration(effect, np.arange(20) < 10, np.arange(20), rng=rng(), resamples=99):
        assert np.isnan([measure.first, measure.first_low, measure.difference, measure.p]).all()
    for measure in contrast_concentration(effect, np.arange(20) < 1, np.arange(20), rng=rng(), resamples=99):
        assert np.isnan([measure.first, measure.difference, measure.low, measure.p]).all()


def test_same_seed_same_contrast():
    effect = layers(rng(10), 20, [0.0, 2.0, 1.0, 0.0, 0.0])
    first = np.arange(20) % 2 == 0
    one, two = (contrast_concentration(effect, first, np.arange(20), rng=rng(1), resamples=200) for _ in range(2))
    assert one == two


def test_cells_do_not_depend_on_their_order_or_the_block_size(monkeypatch):
    effect, gap = rng(13).normal(size=(24, 9)), rng(14).uniform(1, 2, 24)
    first, order = np.arange(24) % 3 == 0, rng(15).permutation(9)
    one = contrast_cells(effect, gap, first, np.arange(24) // 2, rng=rng(1), resamples=300)
    monkeypatch.setattr("engramscope.stats.clusters.BLOCK_BYTES", 1 << 15)
    two = contrast_cells(effect[:, order], gap, first, np.arange(24) // 2, rng=rng(1), resamples=300)
    for name in ("difference", "low", "bca_high", "p", "p_max_t"):
        assert_allclose(getattr(two, name), getattr(one, name)[order], rtol=1e-10, err_msg=name)


def test_the_size_of_a_group_does_not_change_its_concentration_test():
    effect = np.vstack([layers(rng(16), 12, [0.2, 1.0, 0.3, 0.1]), layers(rng(17), 12, [0.4, 0.8, 0.5, 0.1])])
    first = np.arange(24) < 12
    scaled = effect * np.where(first, 1.0, 100.0)[:, None]
    one, two = (contrast_concentration(e, first, np.arange(24), rng=rng(1), resamples=500) for e in (effect, scaled))
    for a, b in zip(one, two, strict=True):
        assert_allclose([a.difference, a.low, a.high, a.p], [b.difference, b.low, b.high, b.p], rtol=1e-9)


def test_a_single_layer_at_the_edge_of_the_range_is_covered():
    r, runs, profile = rng(18), 200, np.array([0, 0, 1.5, 0, 0, 0])
    covered = np.empty((runs, 3))
    for run in range(runs):
        effect = np.vstack([layers(r, 30, profile, 0.5), layers(r, 5, profile, 0.5)])
        got = contrast_concentration(effect, np.arange(35) < 30, np.arange(35), rng=r, resamples=399)
        covered[run] = [m.first_low <= t <= m.first_high for m, t in zip(got, [1, 2, 1], strict=True)]
    assert (covered.mean(axis=0) >= 0.97).all()


def test_resamples_keep_group_sizes_only_where_clusters_are_pure():
    pure = np.arange(10) < 4
    counts = _resample((pure, ~pure), 500, rng())
    assert_array_equal(counts[:, :4].sum(axis=1), 4)
    assert_array_equal(counts[:, 4:].sum(axis=1), 6)
    some_mixed = _resample((np.arange(10) < 6, np.arange(10) >= 4), 500, rng())
    assert_array_equal(some_mixed.sum(axis=1), 10)
    assert some_mixed[:, :4].sum(axis=1).std() > 1.0
    assert_allclose(some_mixed.mean(axis=0), 1.0, atol=0.2)
