from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from engramscope.stats.permutation import sign_flip
from engramscope.stats.split import Split, confirmed_peak, split_by_cluster

NAN = np.nan


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("seed", range(20))
def test_halves_share_no_cluster_and_strata_are_even(seed):
    r = rng(seed)
    clusters = r.integers(0, 23, 90)
    strata = np.where(clusters < 9, "definitional", "associative")
    split = split_by_cluster(clusters, rng(seed), strata=strata)
    assert_array_equal(split.selection, ~split.confirmation)
    assert not set(clusters[split.selection]) & set(clusters[split.confirmation])
    for wanted in (strata == "definitional", strata == "associative", np.ones(90, bool)):
        sizes = [len(set(clusters[half & wanted])) for half in (split.selection, split.confirmation)]
        assert abs(sizes[0] - sizes[1]) <= 1


def test_both_halves_are_equally_likely_for_a_cluster_and_the_seed_decides():
    clusters = np.repeat(np.arange(5), 2)
    chosen = np.mean([split_by_cluster(clusters, rng(s)).selection for s in range(2000)], axis=0)
    assert_allclose(chosen, 0.5, atol=0.05)
    assert_array_equal(split_by_cluster(clusters, rng(3)).selection, split_by_cluster(clusters, rng(3)).selection)


def test_a_cluster_of_both_strata_stays_whole():
    split = split_by_cluster([0, 0, 1, 1, 2, 2], rng(), strata=list("ababab"))
    assert_array_equal(split.selection[::2], split.selection[1::2])
    assert split.selection[::2].sum() in (1, 2)


def test_peak_is_chosen_on_one_half_and_measured_on_the_other():
    r = rng(1)
    effect = r.normal(size=(40, 6))
    gap = r.normal(4, 0.5, 40)
    effect[:, 2] -= 1.5
    effect[:, 4] += 50.0
    effect[7, 2] = NAN
    split = split_by_cluster(np.arange(40), rng(2))
    gap_with_hole = gap.copy()
    gap_with_hole[11] = NAN
    peak = confirmed_peak(
        effect, np.arange(40), split, rng=rng(3), gap=gap_with_hole, cut=np.arange(6) == 4, resamples=2000
    )
    held, chosen = effect[split.confirmation, 2], effect[split.selection, 2]
    assert peak.cell == 2
    assert_allclose(peak.selection_effect, np.nanmean(chosen))
    assert_allclose(peak.effect, np.nanmean(held))
    use = split.confirmation & ~np.isnan(gap_with_hole) & ~np.isnan(effect[:, 2])
    assert_allclose(peak.recovery, effect[use, 2].sum() / gap[use].sum())
    assert peak.effect_low < peak.effect < peak.effect_high < 0
    assert peak.recovery_low < peak.recovery < peak.recovery_high < 0
    assert peak.p < 0.01
    assert (peak.n_selection + peak.n_confirmation, peak.status) == (39, "ok")
    assert peak.n_clusters == peak.n_confirmation == np.sum(~np.isnan(held))
    assert peak.n_pooled == peak.n_clusters_pooled == use.sum()


def test_the_peak_counts_the_pairs_of_its_recovery():
    effect = rng(5).normal(1, 0.1, size=(12, 2))
    effect[6, :] = NAN
    gap = np.full(12, 2.0)
    gap[[7, 8, 9]] = NAN
    split = Split(np.arange(12) < 6, np.arange(12) >= 6)
    peak = confirmed_peak(effect, np.arange(12) // 2, split, rng=rng(), gap=gap, resamples=200)
    assert (peak.n_confirmation, peak.n_clusters, peak.n_pooled, peak.n_clusters_pooled) == (5, 3, 2, 1)
    assert_allclose(peak.recovery, effect[10:, peak.cell].sum() / 4.0)
    alone = confirmed_peak(effect, np.arange(12) // 2, split, rng=rng(), resamples=200)
    assert (alone.n_pooled, alone.n_clusters_pooled) == (0, 0)


def test_under_the_null_the_confirmed_peak_is_honest_and_the_reused_one_is_not():
    r, runs = rng(4), 400
    p, reused, bias, covered = (np.empty(runs) for _ in range(4))
    for run in range(runs):
        effect = r.normal(size=(40, 60))
        split = split_by_cluster(np.arange(40), r)
        peak = confirmed_peak(effect, np.arange(40), split, rng=r, resamples=399)
        p[run], covered[run] = peak.p, peak.effect_low <= 0 <= peak.effect_high
        bias[run] = np.sign(peak.selection_effect) * peak.effect
        half = effect[split.selection][:, [peak.cell]]
        reused[run] = sign_flip(half, np.arange(20), rng=r, resamples=399).p[0]
    assert np.mean(p <= 0.05) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / runs)
    assert np.mean(reused <= 0.05) > 0.8
    assert abs(bias.mean()) < 3 * bias.std() / np.sqrt(runs)
    assert covered.mean() > 0.88  # percentile interval of 20 clusters


@pytest.mark.parametrize(
    ("split", "cut", "status"),
    [
        (Split(np.ones(4, bool), np.zeros(4, bool)), None, "a half has no pairs"),
        (Split(np.arange(4) < 2, np.arange(4) >= 2), np.ones(2, bool), "no cell could be chosen"),
        (Split(np.arange(4) < 3, np.arange(4) >= 3), None, "one cluster on the confirmation half"),
        (Split(np.arange(4) >= 1, np.arange(4) < 1), None, "no pair of the confirmation half"),
    ],
)
def test_what_cannot_be_confirmed_says_why(split, cut, status):
    effect = np.array([[1.0, NAN], [1.0, 5.0], [2.0, 5.0], [1.0, 5.0]])
    peak = confirmed_peak(effect, np.arange(4), split, rng=rng(), cut=cut)
    assert peak.status.startswith(status)
    assert np.isnan(peak.effect_low)
