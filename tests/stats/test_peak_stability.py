"""Where the peak is when pairs are drawn anew: against a plain loop, and on data whose peak is known."""

from __future__ import annotations

import numpy as np
import pytest

from engramscope.stats.bootstrap import resample_clusters
from engramscope.stats.peak_stability import peak_stability

CLUSTERS = np.array(["a", "a", "b", "c", "c", "c", "d", "e"])


def test_against_a_plain_loop_over_the_same_resamples() -> None:
    effect = np.random.default_rng(0).normal(size=(8, 5))
    effect[2, 1] = effect[5, 0] = np.nan
    cut = np.array([False, False, True, False, False])
    found = peak_stability(effect, CLUSTERS, rng=np.random.default_rng(1), cut=cut, resamples=400)
    drawn = resample_clusters(CLUSTERS, 400, np.random.default_rng(1))
    shares, centres = np.zeros(5), []
    for counts in drawn.counts:
        rows = [row for row in range(8) for _ in range(int(counts[drawn.index[row]]))]
        means = [float(np.nanmean(effect[rows, cell])) if cell != 2 else -np.inf for cell in range(5)]
        shares[int(np.argmax(means))] += 1 / 400
        weights = [max(value, 0.0) if value > -np.inf else 0.0 for value in means]
        if sum(weights) > 0:
            centres.append(sum(cell * weight for cell, weight in enumerate(weights)) / sum(weights))
    np.testing.assert_allclose(found.shares, shares, atol=1e-12)
    assert found.low == pytest.approx(float(np.quantile(centres, 0.025)), abs=1e-12)
    assert found.high == pytest.approx(float(np.quantile(centres, 0.975)), abs=1e-12)
    assert found.shares[2] == 0


def test_a_clear_peak_is_always_there() -> None:
    effect = np.random.default_rng(0).normal(0, 0.1, size=(40, 6))
    effect[:, 4] += 3
    found = peak_stability(effect, np.arange(40), rng=np.random.default_rng(0), resamples=300)
    assert (found.peak, found.smallest_set(0.95), found.near) == (4, (4,), 1.0)


def test_two_equal_peaks_are_both_in_the_set() -> None:
    effect = np.random.default_rng(0).normal(0, 0.5, size=(60, 6))
    effect[:, 1] += 1.0
    effect[:, 4] = effect[::-1, 1]  # the same mean, and other pairs that make it
    found = peak_stability(effect, np.arange(60), rng=np.random.default_rng(0), resamples=1000)
    assert found.smallest_set(0.95) == (1, 4)
    assert found.shares.sum() == pytest.approx(1.0)


def test_ties_are_split() -> None:
    found = peak_stability(np.ones((5, 4)), np.arange(5), rng=np.random.default_rng(0), resamples=50)
    np.testing.assert_allclose(found.shares, 0.25)
    assert found.smallest_set(0.5) == (0, 1)


def test_nothing_to_choose_from() -> None:
    found = peak_stability(np.ones((5, 2)), np.arange(5), rng=np.random.default_rng(0), cut=[True, True])
    assert found.peak == -1
    assert found.smallest_set(0.9) == ()
