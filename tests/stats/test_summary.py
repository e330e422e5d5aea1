from __future__ import annotations

import dataclasses
import tracemalloc

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from engramscope.stats import estimates
from engramscope.stats.bootstrap import ratio_intervals, resample_clusters
from engramscope.stats.correction import benjamini_hochberg
from engramscope.stats.permutation import sign_flip
from engramscope.stats.summary import REASONS, CellSummary, summarise
from engramscope.stats.two_sd import two_sd

NAN = np.nan


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def arrays(summary: CellSummary) -> dict[str, np.ndarray]:
    values = {f.name: getattr(summary, f.name) for f in dataclasses.fields(summary)}
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


@pytest.fixture
def sweep():
    r = rng(1)
    n, c = 40, 12
    corrupted = r.normal(-2.0, 0.5, n)
    clean = corrupted + r.normal(4.0, 1.0, n)
    share = np.zeros(c)
    share[[2, 7]] = [0.5, -0.3]
    share[11] = 1.0
    patched = corrupted[:, None] + share * (clean - corrupted)[:, None] + 0.3 * r.normal(size=(n, c))
    patched[:, 11] = clean  # a cut
    patched[3, 2] = patched[:25, 5] = NAN
    return {
        "patched": patched, "clean": clean, "corrupted": corrupted,
        "clusters": np.repeat(np.arange(20), 2), "cut": np.arange(c) == 11,
    }  # fmt: skip


def test_columns_equal_the_routines_that_they_name(sweep):
    got = summarise(**sweep, direction="denoise", floor=0.01, resamples=2000, rng=rng(3))
    effect = sweep["patched"] - sweep["corrupted"][:, None]
    gap = sweep["clean"] - sweep["corrupted"]
    r = rng(3)
    resampling = resample_clusters(sweep["clusters"], 2000, r)
    mean, share = ratio_intervals(effect, np.ones(40), resampling), ratio_intervals(effect, gap, resampling)
    test = sign_flip(effect, sweep["clusters"], rng=r, resamples=2000, family=~sweep["cut"])
    p = np.where(sweep["cut"], NAN, test.p)
    expected = {
        "n": (~np.isnan(effect)).sum(axis=0), "mean_effect": np.nanmean(effect, axis=0),
        "mean_effect_low": mean.low, "mean_effect_high": mean.high,
        "mean_effect_bca_low": mean.bca_low, "mean_effect_bca_high": mean.bca_high,
        "recovery": estimates.ratio_of_means(effect, gap), "recovery_low": share.low, "recovery_high": share.high,
        "recovery_bca_low": share.bca_low, "recovery_bca_high": share.bca_high,
        "p": p, "p_max_t": test.p_max_t, "q_bh": benjamini_hochberg(p), "statistic": test.statistic,
        "d_z": estimates.cohen_dz(effect), "same_sign_share": estimates.same_sign_share(effect),
        "effect_iqr": estimates.interquartile_range(effect),
    }  # fmt: skip
    for name, value in expected.items():
        assert_allclose(getattr(got, name), value, rtol=1e-12, err_msg=name)
    assert_array_equal(got.two_sd, two_sd(np.nanmean(effect, axis=0), cut=sweep["cut"]).detected)
    assert_array_equal(got.detected, (got.p_max_t <= 0.05) & ~sweep["cut"] & (np.abs(got.mean_effect) > 0.01))
    assert got.detected[[2, 7]].all()
    assert_array_equal(got.n_clusters, [20] * 5 + [8] + [20] * 6)


def test_a_cut_cell_is_described_but_outside_every_family(sweep):
    got = summarise(**sweep, direction="denoise", resamples=500, rng=rng())
    assert_allclose([got.recovery[11], got.recovery_low[11], got.recovery_high[11]], 1.0)
    assert np.isnan([got.p[11], got.p_max_t[11], got.q_bh[11]]).all()
    assert not got.detected[11]
    assert not got.two_sd[11]
    assert got.status[11] == "cut"
    without = {**sweep, "patched": sweep["patched"][:, :11], "cut": None}
    other = summarise(**without, direction="denoise", resamples=500, rng=rng())
    for name in ("p", "p_max_t", "q_bh", "two_sd", "detected"):
        assert_array_equal(getattr(got, name)[:11], getattr(other, name), err_msg=name)
    assert_allclose([got.two_sd_mean, got.two_sd_sd], [other.two_sd_mean, other.two_sd_sd])


def test_recovery_is_by_the_definition_in_both_directions(sweep):
    denoise = summarise(**sweep, direction="denoise", resamples=800, rng=rng())
    noise = summarise(**sweep, direction="noise", resamples=800, rng=rng())
    for name in ("recovery", "recovery_low", "recovery_high", "recovery_bca_low", "recovery_bca_high"):
        assert_allclose(getattr(noise, name), getattr(denoise, name), atol=1e-10, err_msg=name)
    assert_allclose(noise.mean_effect, np.nanmean(sweep["patched"] - sweep["clean"][:, None], axis=0))
    by_hand = [
        np.nansum(column - sweep["corrupted"]) / (sweep["clean"] - sweep["corrupted"])[~np.isnan(column)].sum()
        for column in sweep["patched"].T
    ]
    assert_allclose(noise.recovery, by_hand)


def test_ablation_has_no_recovery(sweep):
    got = summarise(**{**sweep, "corrupted": None}, direction="noise", resamples=300, rng=rng())
    assert np.isnan([got.recovery, got.recovery_low, got.recovery_bca_high]).all()
    assert_array_equal(got.n_pooled, 0)
    assert np.isfinite(got.mean_effect_low).all()
    assert "unstable_gap" not in got.status


def test_pairs_out_of_the_pool_stay_in_the_test(sweep):
    pooled = np.arange(40) >= 6
    got = summarise(**sweep, direction="denoise", pooled=pooled, resamples=400, rng=rng())
    base = summarise(**sweep, direction="denoise", resamples=400, rng=rng())
    assert_array_equal(got.p, base.p)
    assert_array_equal(got.mean_effect_low, base.mean_effect_low)
    effect = (sweep["patched"] - sweep["corrupted"][:, None])[pooled]
    gap = (sweep["clean"] - sweep["corrupted"])[pooled]
    assert_allclose(got.recovery, estimates.ratio_of_means(effect, gap))
    assert_array_equal(got.n_pooled, (~np.isnan(effect)).sum(axis=0))


def test_noise_draws_are_averaged_for_the_test_and_resampled_for_the_interval(sweep):
    r = rng(5)
    draws = sweep["patched"][:, None, :] + 0.2 * r.normal(size=(40, 6, 12))
    corrupted = sweep["corrupted"][:, None] + 0.1 * r.normal(size=(40, 6))
    given = {**sweep, "patched": draws, "corrupted": corrupted}
    got = summarise(**given, direction="denoise", resamples=600, rng=rng())
    effect = draws - corrupted[:, :, None]
    assert_allclose(got.mean_effect, np.nanmean(effect.mean(axis=1), axis=0))
    p = sign_flip(effect.mean(axis=1), sweep["clusters"], rng=rng(8), resamples=600).p
    assert_allclose(got.p[:11], p[:11], atol=0.08)
    assert (got.recovery_low[:11] < got.recovery[:11]).all()
    assert (got.recovery[:11] < got.recovery_high[:11]).all()
    assert_array_equal(got.n, (~np.isnan(sweep["patched"])).sum(axis=0))


def test_the_noise_floor_forbids_detection():
    patched = 1e-6 * (1 + 0.1 * rng().normal(size=(30, 3)))
    clean, corrupted = np.ones(30), np.zeros(30)
    above = summarise(patched, clean, corrupted, np.arange(30), direction="denoise", rng=rng(), resamples=200)
    below = summarise(
        patched, clean, corrupted, np.arange(30), direction="denoise", rng=rng(), resamples=200, floor=2e-6
    )
    assert above.detected.all()
    assert not below.detected.any()
    assert (below.p_max_t <= 0.05).all()


def test_status_says_why_a_value_is_missing():
    patched = rng().normal(size=(12, 5)) + 5
    patched[:, 1] = NAN
    patched[2:, 2] = NAN
    patched[:, 3] = 0.0
    patched[6:, 4] = NAN
    clusters = np.arange(12) // 2
    got = summarise(patched, np.ones(12), np.zeros(12), clusters, direction="denoise", rng=rng())
    assert_array_equal(got.status, ["ok", "empty", "one_cluster", "no_effect", "few_clusters"])
    assert_array_equal(got.reason, [REASONS[s] for s in got.status])
    assert_allclose(got.p, [2 / 64, NAN, 1, 1, 2 / 8])
    assert got.exact
    assert_allclose([got.recovery_low[3], got.recovery_high[3]], 0.0)
    gap = np.where(np.arange(12) % 2, 1.0, -1.1)
    flat = summarise(patched[:, :1], gap, np.zeros(12), np.arange(12), direction="denoise", rng=rng())
    assert flat.status[0] == "unstable_gap"
    assert np.isfinite(flat.recovery[0])
    assert np.isnan([flat.recovery_low[0], flat.recovery_high[0]]).all()


def test_one_cluster_does_not_crash():
    got = summarise(np.ones((3, 2)), np.ones(3), np.zeros(3), ["a"] * 3, direction="denoise", rng=rng())
    assert_array_equal(got.p, [1, 1])
    assert np.isnan(got.recovery_low).all()
    assert_allclose(got.recovery, 1.0)
    assert set(got.status) == {"one_cluster"}


def test_order_of_cells_and_seed(sweep):
    order = rng(2).permutation(12)
    one = summarise(**sweep, direction="denoise", resamples=300, rng=rng(4))
    again = summarise(**sweep, direction="denoise", resamples=300, rng=rng(4))
    shuffled = {**sweep, "patched": sweep["patched"][:, order], "cut": sweep["cut"][order]}
    two = arrays(summarise(**shuffled, direction="denoise", resamples=300, rng=rng(4)))
    for name, value in arrays(one).items():
        assert_array_equal(arrays(again)[name], value, err_msg=name)
        if value.dtype.kind == "f":
            assert_allclose(two[name], value[order], rtol=1e-10, atol=1e-12, err_msg=name)
        else:
            assert_array_equal(two[name], value[order], err_msg=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corrupted": None}, "denoise"),
        ({"direction": "up"}, "direction"),
        ({"clean": np.ones(3)}, "clean"),
        ({"corrupted": np.full(40, NAN)}, "corrupted"),
        ({"corrupted": np.ones((40, 2))}, "corrupted must have the shape"),
        ({"clusters": np.arange(39)}, "clusters"),
        ({"cut": np.zeros(12)}, "cut must be 12 booleans"),
        ({"patched": np.ones(12)}, "patched"),
        ({"patched": np.full((40, 12), np.inf)}, "infinite"),
        ({"floor": NAN}, "floor"),
        ({"confidence": 1.0}, "confidence"),
    ],
)
def test_bad_input(sweep, change, message):
    given = {**sweep, "direction": "denoise", "rng": rng(), "resamples": 10, **change}
    with pytest.raises(ValueError, match=message):
        summarise(**given)


def knows_nothing(r: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs whose gap is a sum of 30 parts without any structure; each patch restores one part."""
    parts = r.normal(size=(60, 30))
    corrupted = r.normal(size=60)
    return corrupted[:, None] + parts, corrupted + parts.sum(axis=1), corrupted


def test_choosing_pairs_by_the_sign_of_the_gap_invents_detections():
    r, runs = rng(6), 200
    honest = chosen = 0
    for _ in range(runs):
        patched, clean, corrupted = knows_nothing(r)
        good = clean > corrupted
        n = int(good.sum())
        pool = summarise(
            patched, clean, corrupted, np.arange(60), direction="denoise", pooled=good, rng=r, resamples=199
        )
        drop = summarise(
            patched[good], clean[good], corrupted[good], np.arange(n), direction="denoise", rng=r, resamples=199
        )
        honest += bool(pool.detected.any())
        chosen += bool(drop.detected.any())
    assert honest / runs <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / runs)
    assert chosen / runs > 2 * 0.05


def test_no_cells_at_all():
    got = summarise(np.empty((5, 0)), np.ones(5), np.zeros(5), np.arange(5), direction="denoise", rng=rng())
    assert all(value.shape == (0,) for value in arrays(got).values())


@pytest.mark.slow
def test_a_large_sweep_stays_within_500_mb():
    r = rng()
    corrupted = r.normal(size=1000)
    patched = corrupted[:, None] + r.normal(size=(1000, 2000))
    tracemalloc.start()
    summarise(patched, corrupted + 3.0, corrupted, np.arange(1000), direction="denoise", rng=r)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500e6
