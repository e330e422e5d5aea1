"""Linear models on facts × layers: against least squares done in full, closed forms, and data of which we know all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from engramscope.stats.associations import weighted_correlation, weighted_midranks, within_layers
from engramscope.stats.layer_choice import at_peak, layer_choice
from engramscope.stats.layered import explained, reliability


def _tables(seed: int, facts: int = 30, layers: int = 5, beta: float = 0.4, shared: float = 0.5) -> Any:
    """Levels that differ between layers, facts that differ in everything, and slopes that grow with the layer."""
    rng = np.random.default_rng(seed)
    fact_x, fact_y = rng.normal(0, shared, (2, facts, 1))
    x = np.linspace(0, 1, layers) + fact_x + rng.normal(size=(facts, layers))
    y = np.cos(np.arange(layers)) + beta * x * np.linspace(0, 2, layers) + fact_y + rng.normal(size=(facts, layers))
    return x, y


def _explained(x: Any, y: Any, resamples: int = 50, seed: int = 0) -> Any:
    return explained(x, y, np.arange(len(x)), rng=np.random.default_rng(seed), resamples=resamples)


def _ols(y: Any, columns: list[Any]) -> tuple[float, int, Any]:
    """Residual sum of squares, rank and coefficients, by numpy.linalg.lstsq on the design written out."""
    design = np.stack([np.broadcast_to(column, y.shape).ravel() for column in columns], axis=1)
    found, _, rank, _ = np.linalg.lstsq(design, y.ravel(), rcond=None)
    return float(((y.ravel() - design @ found) ** 2).sum()), int(rank), found


def _designs(x: Any) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
    layers = x.shape[1]
    dummies = [np.eye(layers)[layer] for layer in range(layers)]
    lines = [x * dummy for dummy in dummies]
    return dummies, [np.ones(layers), x], [*dummies, *lines], [*dummies, x]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_model_is_the_one_of_least_squares(seed: int) -> None:
    x, y = _tables(seed)
    found = _explained(x, y)
    total = float(((y - y.mean()) ** 2).sum())
    (layer, rank_layer, _), (alone, _, _), (both, rank_both, _), (_, _, common) = (
        _ols(y, columns) for columns in _designs(x)
    )
    assert found.layer.value == pytest.approx(1 - layer / total, abs=1e-12)
    assert found.predictor.value == pytest.approx(1 - alone / total, abs=1e-12)
    assert found.both.value == pytest.approx(1 - both / total, abs=1e-12)
    assert found.gain == pytest.approx((layer - both) / total, abs=1e-12)
    assert found.slope.value == pytest.approx(common[-1], abs=1e-12)
    df1, df2 = rank_both - rank_layer, y.size - rank_both
    f = (layer - both) / df1 / (both / df2)
    assert (found.f_df1, found.f_df2) == (df1, df2)
    assert found.f == pytest.approx(f, rel=1e-9)
    assert found.f_p == pytest.approx(stats.f.sf(f, df1, df2), rel=1e-9)


def test_a_table_worked_out_by_hand() -> None:
    # layer 0: y = x, exactly; layer 1: y does not follow x. Means 1 and 3.
    x = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    y = np.array([[0.0, 2.0], [1.0, 5.0], [2.0, 2.0]])
    found = _explained(x, y)
    # SST = 14; within layers 2 + 6 = 8; the lines take 2 + 0
    assert found.layer.value == pytest.approx(6 / 14)
    assert found.both.value == pytest.approx(8 / 14)
    assert found.gain == pytest.approx(2 / 14)
    # what is left, (0 + 6) / (3 - 2), is what chance gives to the lines
    assert found.gain_adjusted.value == pytest.approx((2 - 6) / 14)
    assert found.slope.value == pytest.approx(2 / 4)
    assert found.f == pytest.approx((2 / 2) / (6 / 2))


def test_a_layer_in_which_the_predictor_never_varies_has_no_line() -> None:
    x, y = _tables(3)
    x[:, 2] = 0.25
    found = _explained(x, y)
    both, rank, _ = _ols(y, _designs(x)[2])
    assert found.both.value == pytest.approx(1 - both / ((y - y.mean()) ** 2).sum(), abs=1e-12)
    assert found.f_df1 == rank - x.shape[1] == x.shape[1] - 1


def test_an_outcome_that_never_varies_explains_nothing_and_breaks_nothing() -> None:
    x, _ = _tables(4)
    found = _explained(x, np.full_like(x, 0.7))
    numbers = [found.layer, found.both, found.predictor, found.gain_adjusted]
    assert all(np.isnan([one.value, one.low, one.high]).all() for one in numbers)
    assert np.isnan([found.f_p, found.permutation_p]).all()


@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_scale_and_origin_do_not_matter(shift: float) -> None:
    x, y = _tables(5)
    one, other = _explained(x, y), _explained(3 * x + shift, -2 * y + shift)
    assert other.both.value == pytest.approx(one.both.value, rel=1e-6)
    assert other.gain_adjusted.low == pytest.approx(one.gain_adjusted.low, rel=1e-5)
    assert other.slope.value == pytest.approx(-2 / 3 * one.slope.value, rel=1e-6)


def test_facts_of_one_cluster_are_drawn_together() -> None:
    x, y = _tables(6)
    doubled = [np.repeat(table, 2, axis=0) for table in (x, y)]
    single = explained(x, y, np.arange(30), rng=np.random.default_rng(0), resamples=400)
    kept = explained(*doubled, np.repeat(np.arange(30), 2), rng=np.random.default_rng(0), resamples=400)
    torn = explained(*doubled, np.arange(60), rng=np.random.default_rng(0), resamples=400)
    assert (kept.slope.low, kept.slope.high) == pytest.approx((single.slope.low, single.slope.high))
    assert torn.slope.high - torn.slope.low < 0.85 * (kept.slope.high - kept.slope.low)
    assert kept.n_clusters == 30


@pytest.mark.parametrize(("beta", "facts"), [(0.0, 40), (0.5, 40)])
def test_intervals_cover_what_is_true(beta: float, facts: int) -> None:
    truth = _explained(*_tables(99, facts=100_000, beta=beta), resamples=2)
    names, runs = ("layer", "predictor", "both", "gain_adjusted", "slope"), 120
    covered = dict.fromkeys(names, 0)
    gains = []
    for seed in range(runs):
        found = _explained(*_tables(seed, facts=facts, beta=beta), resamples=300)
        gains.append(found.gain_adjusted.value)
        for name in names:
            one, true = getattr(found, name), getattr(truth, name).value
            # the correlation of the population is not 0 to the last digit, its interval squared begins at 0
            covered[name] += one.low - 1e-4 <= true <= one.high + 1e-4
    assert min(covered.values()) >= 0.87 * runs, covered
    assert np.mean(gains) == pytest.approx(truth.gain_adjusted.value, abs=0.015)


def test_a_planted_gain_is_found_and_nothing_where_there_is_none() -> None:
    found, none = _explained(*_tables(1, 80, beta=0.6), resamples=400), _explained(*_tables(1, 80, beta=0.0))
    assert found.gain_adjusted.low > 0.05
    assert found.permutation_p < 0.01
    assert none.gain_adjusted.low < 0 < none.gain_adjusted.high
    assert none.permutation_p > 0.05


def test_only_the_permutation_keeps_its_level_where_facts_differ_at_all_layers_alike() -> None:
    """With facts that differ alike at every layer the published F test, blind to that, rejects a true null."""
    runs = 150
    rejected = np.zeros(2)
    for seed in range(runs):
        found = _explained(*_tables(seed, 25, 24, beta=0.0, shared=5.0), resamples=99, seed=seed)
        rejected += [found.f_p < 0.05, found.permutation_p <= 0.05]
    f, permutation = rejected / runs
    assert permutation < 0.1
    assert f > 0.14


def _clustered(seed: int, beta: float) -> Any:
    """Twelve clusters of six facts, which share most of their predictor and most of their outcome."""
    rng = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(12), 6)
    x, noise = (rng.normal(size=(12, 4))[clusters] + 0.5 * rng.normal(size=(72, 4)) for _ in range(2))
    return x, beta * x + noise, clusters


def test_facts_of_one_cluster_are_not_taken_for_independent_by_p() -> None:
    runs = 150
    rejected = np.zeros(3)
    for seed in range(runs):
        x, y, clusters = _clustered(seed, beta=0.0)
        gain = explained(x, y, clusters, rng=np.random.default_rng(seed), resamples=99).permutation_p
        within = [
            within_layers(x, y, clusters, kind, rng=np.random.default_rng(seed), resamples=99).p[0]
            for kind in ("pearson", "spearman")
        ]
        rejected += np.array([gain, *within]) <= 0.05
    assert (rejected / runs < 0.11).all()
    x, y, clusters = _clustered(0, beta=1.5)
    assert explained(x, y, clusters, rng=np.random.default_rng(0), resamples=999).permutation_p < 0.01
    assert (within_layers(x, y, clusters, "pearson", rng=np.random.default_rng(0), resamples=999).p < 0.05).all()


@pytest.mark.parametrize("kind", ["pearson", "spearman"])
def test_correlations_are_those_of_scipy(kind: Any) -> None:
    x, y = _tables(7)
    x, y = np.round(x, 1), np.round(y, 1)  # ties
    found = within_layers(x, y, np.arange(30), kind, rng=np.random.default_rng(0), resamples=60)
    other = stats.pearsonr if kind == "pearson" else stats.spearmanr
    expected = [other(x[:, layer], y[:, layer]).statistic for layer in range(5)]
    np.testing.assert_allclose(found.r, expected, atol=1e-12)
    assert found.n == 30
    assert ((found.low < found.r) & (found.r < found.high)).all()


def test_a_resample_is_ranked_anew() -> None:
    rng = np.random.default_rng(8)
    x = np.round(rng.normal(size=12), 1)
    counts = rng.multinomial(12, np.full(12, 1 / 12), size=20)
    ranks = weighted_midranks(x, counts.astype(float))
    y = rng.normal(size=12)
    for row, count in zip(ranks, counts, strict=True):
        sample = np.repeat(x, count)
        np.testing.assert_allclose(np.repeat(row, count), stats.rankdata(sample))
        expected = stats.pearsonr(sample, np.repeat(y, count)).statistic
        assert weighted_correlation(x, y, count[None].astype(float))[0] == pytest.approx(expected, abs=1e-12)


def test_p_of_correlations_is_that_of_a_test_and_corrected_over_layers() -> None:
    x, y = _tables(9, facts=25, beta=0.6)
    found = within_layers(x, y, np.arange(25), "pearson", rng=np.random.default_rng(0), resamples=4000)
    expected = [stats.pearsonr(x[:, layer], y[:, layer]).pvalue for layer in range(5)]
    np.testing.assert_allclose(found.p, expected, atol=0.025)
    order = np.argsort(found.p)
    by_hand = np.minimum(1, np.maximum.accumulate(found.p[order] * np.arange(5, 0, -1)))
    np.testing.assert_allclose(found.p_holm[order], by_hand)
    assert (found.q <= found.p_holm + 1e-12).all()


def test_a_layer_without_variation_has_no_correlation() -> None:
    x, y = _tables(10)
    y[:, 1] = 1.0
    found = within_layers(x, y, np.arange(30), "spearman", rng=np.random.default_rng(0), resamples=60)
    assert np.isnan([found.r[1], found.low[1], found.p[1], found.p_holm[1]]).all()
    assert np.isfinite(np.delete(found.p_holm, 1)).all()


def test_success_at_the_own_peak_by_hand() -> None:
    predictor = np.array([[0.1, 0.9], [0.5, 0.5], [0.8, 0.2]])
    outcome = np.array([[0.0, 1.0], [0.2, 0.6], [0.3, 0.9]])
    np.testing.assert_allclose(at_peak(predictor, outcome), [1.0, 0.4, 0.3])


def test_reliability_is_the_share_of_variance_that_is_true() -> None:
    rng = np.random.default_rng(16)
    true = rng.normal(size=(400, 5)) + 10 * np.arange(5)  # levels of layers are no agreement
    draws = true + rng.normal(size=(3, 400, 5))
    # one draw is half true, the mean of three is 1 / (1 + 1/3)
    assert reliability(draws) == pytest.approx(0.75, abs=0.03)
    assert np.isnan(reliability(draws[:1]))
    assert np.isnan(reliability(np.ones((3, 10, 2))))


def test_correlations_of_resamples_are_of_ranks_made_anew() -> None:
    """One far outlier: ranks hardly feel it, so that their interval is short where Pearson's is wide."""
    rng = np.random.default_rng(17)
    x = rng.normal(size=(40, 1))
    y = x + rng.normal(size=(40, 1))
    x[0], y[0] = 60.0, -60.0
    found = {kind: within_layers(x, y, np.arange(40), kind, rng=np.random.default_rng(0), resamples=300)
             for kind in ("pearson", "spearman")}  # fmt: skip
    assert found["pearson"].high[0] - found["pearson"].low[0] > 1.2
    assert found["spearman"].high[0] - found["spearman"].low[0] < 0.7
    assert found["spearman"].low[0] > 0.1


def _choice(x: Any, y: Any, seed: int = 0) -> Any:
    return layer_choice(x, y, np.arange(len(x)), rng=np.random.default_rng(seed), resamples=500)


def test_locating_helps_where_the_peak_is_the_best_layer() -> None:
    rng = np.random.default_rng(11)
    peaks = rng.integers(0, 6, 60)
    x = rng.uniform(0, 0.3, (60, 6))
    x[np.arange(60), peaks] = 1.0
    y = np.clip(0.2 + 0.6 * (x == 1.0) + rng.normal(0, 0.05, (60, 6)), 0, 1)
    found = _choice(x, y)
    assert found.differences[0].first == "peak"
    assert found.differences[0].second == "fixed"
    assert found.differences[0].low > 0.3
    assert found.differences[0].p < 0.01
    assert found.success["peak"].value == pytest.approx(y[np.arange(60), peaks].mean())
    assert found.success["random"].value == pytest.approx(y.mean())


def test_locating_harms_where_one_layer_is_best_for_all() -> None:
    rng = np.random.default_rng(12)
    x = rng.uniform(size=(60, 6))
    y = np.clip(np.array([0.2, 0.3, 0.9, 0.3, 0.2, 0.1]) + rng.normal(0, 0.05, (60, 6)), 0, 1)
    found = _choice(x, y)
    assert found.fixed_layers == (2, 2)
    assert found.differences[0].high < -0.2
    assert found.success["fixed"].value == pytest.approx(y[:, 2].mean())


def test_the_best_fixed_layer_is_not_judged_on_the_facts_that_chose_it() -> None:
    """Where all layers are alike, the best of 30 on the same facts would look better than a random one; it is not."""
    crossed, same = [], []
    for seed in range(80):
        rng = np.random.default_rng([13, seed])
        x, y = rng.uniform(size=(2, 20, 30))
        crossed.append(
            next(d.value for d in _choice(x, y, seed).differences if (d.first, d.second) == ("fixed", "random"))
        )
        same.append(y.mean(axis=0).max() - y.mean())
    assert abs(np.mean(crossed)) < 0.02
    assert np.mean(same) > 0.1


def test_facts_without_a_peak_are_counted() -> None:
    rng = np.random.default_rng(14)
    x, y = rng.uniform(size=(2, 20, 4))
    x[:3] = 0.0
    found = _choice(x, y)
    assert found.without_peak == 3
    assert found.same_layer < 17


def test_facts_that_all_peak_at_the_best_layer_leave_nothing_to_compare() -> None:
    rng = np.random.default_rng(19)
    x, y = rng.uniform(size=(2, 20, 4))
    x[:, 3] += 1
    y[:, 3] += 1
    assert _choice(x, y).same_layer == 20
    assert _choice(x, y).differences[0].value == 0.0
    x[:5, 1] += 2
    assert _choice(x, y).same_layer == 15
    x[0] = 0.0
    x[19] = 5.0  # ties are no peak
    assert _choice(x, y).same_layer == 14


def test_tables_that_do_not_fit_are_refused() -> None:
    x, y = _tables(15)
    with pytest.raises(ValueError, match="both be"):
        _explained(x, y[:, :2])
    with pytest.raises(ValueError, match="leave out"):
        _explained(np.where(x > 1, np.nan, x), y)
    with pytest.raises(ValueError, match="at least 3 facts"):
        _explained(x[:2], y[:2])
    with pytest.raises(ValueError, match="two clusters"):
        layer_choice(x, y, np.zeros(30), rng=np.random.default_rng(0), resamples=10)


def test_the_share_of_a_predictor_that_says_nothing_may_be_0() -> None:
    """R² is never negative, so an interval of it that cannot reach 0 would call every predictor useful."""
    reached = 0
    for seed in range(40):
        x, y = np.random.default_rng([18, seed]).normal(size=(2, 30, 4))
        reached += _explained(x, y, resamples=200).predictor.low == 0.0
    assert reached >= 35
