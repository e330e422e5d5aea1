from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from engramscope.stats import estimates
from engramscope.stats.noise_floor import above_floor, noise_floor
from engramscope.stats.two_sd import two_sd

NAN = np.nan


@pytest.mark.parametrize(
    ("patched", "clean", "corrupted", "expected"),
    [(0.43, 0.76, -0.34, 0.70), (2.1928, 2.1928, 0.9691, 1.0), (-0.0899, 0.1261, -1.4626, 0.864)],
    ids=["CLAP table 3", "CLAP table 4", "CLAP table 5"],
)
def test_recovery_of_the_published_logit_differences(patched, clean, corrupted, expected):
    assert_allclose(estimates.recovery(patched, clean, corrupted), expected, atol=5e-4, rtol=0)


@given(
    st.floats(-50, 50),
    st.floats(-50, 50).filter(lambda x: abs(x) > 1e-3),
    st.floats(-20, 20).filter(lambda x: abs(x) > 1e-3),
    st.floats(-20, 20),
)
def test_recovery_is_0_corrupted_1_clean_and_ignores_scale_and_shift(corrupted, gap, scale, shift):
    clean = corrupted + gap
    patched = corrupted + 0.3 * gap
    values = estimates.recovery([corrupted, clean, patched], clean, corrupted)
    assert_allclose(values, [0.0, 1.0, 0.3], atol=1e-9)
    moved = estimates.recovery(scale * patched + shift, scale * clean + shift, scale * corrupted + shift)
    assert_allclose(moved, 0.3, atol=1e-7)


def test_recovery_without_gap_is_missing():
    assert_array_equal(estimates.recovery([1.0, 2.0], [3.0, 2.0], [3.0, 1.0]), [NAN, 1.0])


def test_every_estimate_against_a_loop_over_pairs():
    rng = np.random.default_rng(0)
    effect = rng.normal(0.3, 1.0, (23, 7))
    effect[rng.random(effect.shape) < 0.2] = NAN
    effect[:, 5] = NAN
    effect[:, 6] = 0.5
    gap = rng.normal(3.0, 1.0, 23)
    expected = np.full((5, 7), NAN)
    for c in range(7):
        kept = [i for i in range(23) if not np.isnan(effect[i, c])]
        if not kept:
            continue
        e = effect[kept, c]
        mean = sum(e) / len(e)
        expected[0, c] = mean
        expected[1, c] = sum(e) / sum(gap[kept])
        spread = (sum((x - mean) ** 2 for x in e) / (len(e) - 1)) ** 0.5
        expected[2, c] = mean / spread if spread > 1e-9 else NAN
        expected[3, c] = sum(x * mean > 0 for x in e) / len(e)
        expected[4, c] = np.percentile(e, 75) - np.percentile(e, 25)
    actual = [
        estimates.mean_effect(effect), estimates.ratio_of_means(effect, gap), estimates.cohen_dz(effect),
        estimates.same_sign_share(effect), estimates.interquartile_range(effect),
    ]  # fmt: skip
    assert_allclose(actual, expected, rtol=1e-12)
    assert_array_equal(estimates.pair_counts(effect), (~np.isnan(effect)).sum(axis=0))


def test_effects_follow_the_direction():
    patched, clean, corrupted = [[1.0, NAN], [4.0, 5.0]], [2.0, 5.0], [-1.0, 1.0]
    assert_array_equal(estimates.effects(patched, clean, corrupted, "denoise"), [[2.0, NAN], [3.0, 4.0]])
    assert_array_equal(estimates.effects(patched, clean, None, "noise"), [[-1.0, NAN], [-1.0, 0.0]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: estimates.effects([[1.0]], [0.0], None, "denoise"), "corrupted"),
        (lambda: estimates.effects([[1.0]], [0.0], [0.0], "sideways"), "sideways"),  # type: ignore[arg-type]
        (lambda: estimates.effects([[np.inf]], [0.0], None, "noise"), "infinite in 1 places, first at pair 0"),
        (lambda: estimates.effects([[1.0]], [NAN], None, "noise"), "clean is not finite"),
        (lambda: estimates.ratio_of_means([[1.0]], [1.0, 2.0]), "gap must have one value"),
        (lambda: estimates.mean_effect([1.0]), r"\[n_pairs, n_cells\]"),
        (lambda: estimates.mean_effect(np.empty((0, 3))), "no pair"),
        (lambda: noise_floor([NAN]), "unknown"),
        (lambda: noise_floor([np.inf]), "infinite"),
        (lambda: above_floor([1.0], -1.0), "floor"),
        (lambda: two_sd([[1.0]]), "n_cells"),
        (lambda: two_sd([1.0], cut=[0]), "booleans"),
    ],
)
def test_bad_input_is_refused_with_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_noise_floor_is_the_largest_self_patch_effect():
    floor = noise_floor([[1e-7, -3e-6], [NAN, 2e-6]])
    assert floor == 3e-6
    assert_array_equal(above_floor([3e-6, -4e-6, NAN, 0.0], floor), [False, True, False, False])


def test_two_sd_against_the_definition_and_without_cut_cells():
    means = np.array([0.0, 0.1, -0.1, 0.05, -0.05, 0.02, -0.02, 3.0, 99.0, NAN])
    cut = np.arange(10) == 8
    rule = two_sd(means, cut=cut)
    kept = means[:8]
    sd = (((kept - kept.mean()) ** 2).sum() / 7) ** 0.5
    assert_allclose([rule.mean, rule.sd], [kept.mean(), sd])
    assert_array_equal(rule.detected, np.arange(10) == 7)
    assert rule.ddof == 1
    assert not two_sd([1.0, NAN]).detected.any()


def test_two_sd_marks_6_4_of_144_cells_of_pure_noise():
    rng = np.random.default_rng(1)
    counts = [two_sd(row).detected.sum() for row in rng.normal(size=(4000, 144))]
    assert_allclose(np.mean(counts), 6.4, atol=0.3)
    assert np.mean(np.array(counts) > 0) > 0.99


def test_two_sd_overlooks_small_cells_beside_one_large_cell():
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(300):
        means = rng.normal(0.0, 0.02, 144)
        means[0] += 1.0
        means[1] += 0.15
        hits += int(two_sd(means).detected[1])
    assert hits / 300 < 0.1
