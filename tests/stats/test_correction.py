from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import special

from engramscope.stats.correction import benjamini_hochberg, benjamini_yekutieli, holm


def naive_bh(p: list[float]) -> list[float]:
    m = len(p)
    ranked = sorted(p)
    return [min(1.0, min(m * ranked[j] / (j + 1) for j in range(m) if ranked[j] >= x)) for x in p]


def test_against_the_definition_with_cells_outside_the_family():
    rng = np.random.default_rng(0)
    p = np.concatenate([rng.random(40), rng.random(10) * 1e-3, [0.5, 0.5, 1.0]])
    rng.shuffle(p)
    holes = np.insert(p, [3, 20], np.nan)
    q = benjamini_hochberg(holes)
    expected = np.insert(np.array(naive_bh(list(p))), [3, 20], np.nan)
    assert_allclose(q, expected, rtol=1e-12)
    harmonic = sum(1 / j for j in range(1, len(p) + 1))
    raw = np.array(naive_bh(list(p / 2)))  # BY is BH of p times the harmonic sum, capped at 1 at the end
    assert_allclose(benjamini_yekutieli(holes), np.insert(np.minimum(1, 2 * raw * harmonic), [3, 20], np.nan))


def test_empty_family_and_wrong_shape():
    assert_allclose(benjamini_hochberg([np.nan, np.nan]), [np.nan, np.nan])
    with pytest.raises(ValueError, match="n_cells"):
        benjamini_hochberg([[0.1]])


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_false_discovery_rate_of_mixtures_stays_below_q(rho):
    rng = np.random.default_rng(3)
    m, true, runs, q = 200, 40, 1000, 0.05
    shares = np.empty(runs)
    power = np.empty(runs)
    for run in range(runs):
        z = np.sqrt(rho) * rng.normal() + np.sqrt(1 - rho) * rng.normal(size=m)
        z[:true] += 3.0
        found = benjamini_hochberg(2 * special.ndtr(-np.abs(z))) <= q
        shares[run] = found[true:].sum() / max(1, found.sum())
        power[run] = found[:true].mean()
    assert shares.mean() <= q + 2 * shares.std() / np.sqrt(runs)
    assert power.mean() > 0.4


def test_holm_equals_the_definition_and_leaves_out_missing_cells():
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.005, 0.9])
    # sorted: 0.005 x 5, 0.01 x 4, 0.03 x 3, 0.04 x 2, 0.9 x 1, never falling
    expected = np.array([0.04, np.nan, 0.09, 0.09, 0.025, 0.9])
    np.testing.assert_allclose(holm(p), expected, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8))
def test_holm_rejects_exactly_what_the_step_down_rule_rejects(p: list[float]):
    adjusted = holm(p)
    for level in (0.01, 0.05, 0.3):
        rejected = set()
        for step, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
            if p[index] * (len(p) - step) > level:
                break
            rejected.add(index)
        assert {i for i, value in enumerate(adjusted) if value <= level} == rejected
