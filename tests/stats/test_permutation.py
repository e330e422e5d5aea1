from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from engramscope.stats.permutation import sign_flip, sign_matrix

NAN = np.nan


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def naive_exact(effect: np.ndarray, clusters: np.ndarray, family: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All sign flips, one at a time, with the one-sample t of cluster sums."""
    labels = sorted(set(clusters.tolist()))
    sums = np.array([[np.nansum(effect[clusters == k, c]) for c in range(effect.shape[1])] for k in labels])
    scale = np.sqrt((sums**2).sum(axis=0))
    observed = np.abs(sums.sum(axis=0)) / scale
    alone, joint, flips = np.zeros(len(observed)), np.zeros(len(observed)), 0
    for signs in itertools.product([1, -1], repeat=len(labels)):
        t = np.abs(np.array(signs) @ sums) / scale
        alone += t >= observed - 1e-12
        joint += t[family].max() >= observed - 1e-12
        flips += 1
    return alone / flips, np.where(family, joint / flips, NAN)


def test_exact_enumeration_against_a_loop_over_all_flips():
    r = rng()
    effect = r.normal(0.4, 1.0, (20, 6))
    effect[r.random(effect.shape) < 0.15] = NAN
    clusters = r.integers(0, 9, 20)
    family = np.array([True, True, False, True, True, True])
    result = sign_flip(effect, clusters, rng=r, resamples=1000, family=family)
    p, p_max = naive_exact(effect, clusters, family)
    assert result.exact
    assert_allclose(result.p, p, rtol=1e-12)
    assert_allclose(result.p_max_t, p_max, rtol=1e-12)


def test_against_scipy_permutation_test_and_the_t_statistic():
    x = rng(1).normal(0.5, 1.0, 12)
    ours = sign_flip(x[:, None], np.arange(12), rng=rng(), resamples=4096)
    reference = stats.permutation_test(
        (x,), lambda d, axis: np.mean(d, axis=axis), permutation_type="samples", n_resamples=5000, vectorized=True
    )
    assert_allclose(ours.p, reference.pvalue, rtol=1e-12)
    t = stats.ttest_1samp(x, 0.0).statistic
    assert_allclose(ours.statistic * np.sqrt(11 / (12 - ours.statistic**2)), t, rtol=1e-12)


def test_drawn_flips_approach_the_exact_p():
    x = rng(2).normal(0.35, 1.0, (12, 5))
    exact = sign_flip(x, np.arange(12), rng=rng(), resamples=4096)
    drawn = sign_flip(x, np.arange(12), rng=rng(), resamples=4095)
    assert exact.exact
    assert not drawn.exact
    assert_allclose(drawn.p, exact.p, atol=4 * 0.5 / 64)
    assert_allclose(drawn.p_max_t, exact.p_max_t, atol=4 * 0.5 / 64)


@pytest.mark.parametrize(("n", "resamples"), [(8, 10_000), (40, 500)])
def test_p_is_never_0_and_the_smallest_is_known(n, resamples):
    result = sign_flip(np.full((n, 1), 2.0), np.arange(n), rng=rng(), resamples=resamples)
    assert_allclose([result.p[0], result.p_max_t[0]], result.smallest_p)
    assert_allclose(result.smallest_p, 2 / 2**8 if n == 8 else 1 / 501)


def test_cells_without_test():
    effect = np.ones((6, 5))
    effect[:, 1] = 0.0
    effect[:, 2] = NAN
    effect[1:, 3] = NAN
    effect[:, 4] = [1, -1, 2, -2, 0.1, -0.1]  # cancels within clusters
    clusters = np.array([0, 0, 1, 1, 2, 2])
    result = sign_flip(effect, clusters, rng=rng())
    assert_allclose(result.p, [2 / 8, 1, NAN, 1, 1])
    assert_allclose(result.p_max_t, [2 / 8, 1, NAN, 1, 1])
    assert_allclose(result.statistic, [np.sqrt(3), NAN, NAN, 1, NAN])
    assert_allclose(sign_flip(np.ones((4, 2)), [7] * 4, rng=rng()).p, [1, 1])


def test_scale_of_a_cell_does_not_matter_even_when_tiny():
    effect = rng(4).normal(0.5, 1, (30, 3))
    base = sign_flip(effect, np.arange(30), rng=rng(), resamples=999)
    small = sign_flip(effect * np.array([1e-200, 1.0, 1e150]), np.arange(30), rng=rng(), resamples=999)
    assert_allclose(small.p, base.p)
    assert_allclose(small.p_max_t, base.p_max_t)


@pytest.mark.parametrize("step_down", [False, True])
def test_order_of_cells_does_not_matter_and_the_seed_decides(step_down):
    r = rng(5)
    effect = r.normal(0.2, 1, (40, 30))
    effect[:, 7] = effect[:, 3]
    effect[r.random(effect.shape) < 0.1] = NAN
    order = r.permutation(30)
    one = sign_flip(effect, np.arange(40) // 2, rng=rng(9), resamples=700, step_down=step_down)
    two = sign_flip(effect[:, order], np.arange(40) // 2, rng=rng(9), resamples=700, step_down=step_down)
    again = sign_flip(effect, np.arange(40) // 2, rng=rng(9), resamples=700, step_down=step_down)
    assert_array_equal(two.p, one.p[order])
    assert_array_equal(two.p_max_t, one.p_max_t[order])
    assert_array_equal(again.p_max_t, one.p_max_t)


def test_step_down_against_its_definition_and_never_above_single_step():
    effect = rng(6).normal([1.0, 0.8, 0.5, 0.2, 0.0], 1.0, (10, 5))
    single = sign_flip(effect, np.arange(10), rng=rng(), resamples=1024)
    down = sign_flip(effect, np.arange(10), rng=rng(), resamples=1024, step_down=True)
    signs = np.array(list(itertools.product([1, -1], repeat=10)))
    flipped = np.abs(signs @ effect) / np.sqrt((effect**2).sum(axis=0))
    order = np.argsort(-np.abs(single.statistic))
    expected, running = np.empty(5), 0.0
    for i, cell in enumerate(order):
        p = (flipped[:, order[i:]].max(axis=1) >= flipped[0, cell] - 1e-12).mean()
        running = max(running, p)
        expected[cell] = running
    assert_allclose(down.p_max_t, expected, rtol=1e-12)
    assert (down.p_max_t <= single.p_max_t).all()


def test_all_pairs_of_a_cluster_flip_together():
    x = rng(7).normal(0.5, 1, 10)
    repeated = sign_flip(np.repeat(x, 5)[:, None], np.repeat(np.arange(10), 5), rng=rng())
    once = sign_flip(x[:, None], np.arange(10), rng=rng())
    assert_allclose(repeated.p, once.p)


@pytest.mark.parametrize("n", [12, 30])
def test_p_is_uniform_under_the_null(n):
    effect = rng(8).normal(size=(n, 3000))
    p = sign_flip(effect, np.arange(n), rng=rng(), resamples=4096).p
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert p.min() >= 1 / 4097


@pytest.mark.parametrize("step_down", [False, True])
def test_family_error_with_correlated_cells_and_clustered_pairs(step_down):
    r = rng(10)
    runs, alpha, hits, naive = 600, 0.05, 0, 0
    clusters = np.repeat(np.arange(20), 3)
    for _ in range(runs):
        shared = r.normal(size=(60, 1)) + r.normal(size=(20, 1))[clusters]
        effect = shared + r.standard_t(5, size=(60, 40)) + r.normal(size=(20, 40))[clusters]
        effect[:15, :10] = NAN
        result = sign_flip(effect, clusters, rng=r, resamples=199, step_down=step_down)
        hits += bool((result.p_max_t <= alpha).any())
        naive += bool((result.p <= alpha).any())
    assert hits / runs <= alpha + 2 * np.sqrt(alpha * (1 - alpha) / runs)
    assert hits / runs >= 0.02  # the error rate is used, not wasted
    assert naive / runs > 0.3


def test_planted_cells_are_found_and_only_those():
    effect = rng(11).normal(size=(50, 144))
    effect[:, [5, 77]] += 1.0
    result = sign_flip(effect, np.arange(50), rng=rng(), resamples=2000)
    assert_array_equal(np.flatnonzero(result.p_max_t <= 0.05), [5, 77])


def test_sign_matrix_holds_half_of_all_flips_with_the_observed_first():
    signs, exact = sign_matrix(4, 16, rng())
    assert exact
    assert signs.shape == (8, 4)
    assert_array_equal(signs[0], [1, 1, 1, 1])
    assert len({tuple(row) for row in signs} | {tuple(-row) for row in signs}) == 16
    with pytest.raises(ValueError, match="resamples"):
        sign_matrix(4, 0, rng())


def test_skewed_effects_break_the_assumption_of_symmetry_by_a_known_amount():
    sizes = []
    for n in (10, 30, 100):
        effect = rng(5).exponential(1.0, (n, 4000)) - 1.0
        sizes.append(np.mean(sign_flip(effect, np.arange(n), rng=rng(), resamples=999).p <= 0.05))
    assert_allclose(sizes, [0.10, 0.08, 0.065], atol=0.015)


def test_no_cells_at_all():
    result = sign_flip(np.empty((5, 0)), np.arange(5), rng=rng())
    assert result.p.shape == result.p_max_t.shape == (0,)
