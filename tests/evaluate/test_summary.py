"""Tables: means, both intervals, differences between editors, and the published table."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from scipy import stats

from engramscope.errors import InputError
from engramscope.evaluate.case import CaseResult, Row
from engramscope.evaluate.measures import MEASURES, TABLE4
from engramscope.evaluate.published import Figure, published_for, published_tables
from engramscope.evaluate.summary import Estimate, differences, measures_of, summarise
from engramscope.stats.intervals import harmonic_mean, wilson_interval


def cases(prefix: str = "r", **columns: list[float]) -> list[CaseResult]:
    """Cases with one row a measure; a NaN is no row, and NSplus is NS+."""
    names = [name.replace("plus", "+") for name in columns]
    rows = zip(*columns.values(), strict=True)
    return [
        CaseResult(
            f"{prefix}{i}", tuple(Row(f"{prefix}{i}", name, 0, value) for name, value in found if value == value)
        )
        for i, found in enumerate([list(zip(names, row, strict=True)) for row in rows])
    ]


def pick(table: list[Estimate], editor: str, measure: str) -> Estimate:
    return next(one for one in table if (one.editor, one.measure) == (editor, measure))


def random_cases(n: int, seed: int = 0) -> list[CaseResult]:
    rng = np.random.default_rng(seed)
    return cases(ES=list((rng.random(n) < 0.9).astype(float)), PS=list(rng.integers(0, 3, n) / 2),
                 NS=list(rng.integers(0, 11, n) / 10), EM=list(rng.normal(0.4, 0.3, n)))  # fmt: skip


@pytest.mark.parametrize(("ones", "n", "half"), [(1665, 7500, 0.94), (326, 2000, 1.62)])
def test_the_published_width(ones: int, n: int, half: float) -> None:
    found = pick(summarise({"none": cases(ES=[1.0] * ones + [0.0] * (n - ones))}, resamples=20), "none", "ES")
    assert found.mean == pytest.approx(100 * ones / n)
    assert round(found.half_width, 2) == half
    assert found.n == n


@pytest.mark.parametrize("model", ["gpt2-xl", "gpt-j"])
def test_s_follows_from_the_published_columns(model: str) -> None:
    table = published_tables()[model]
    for editor, row in table.editors.items():
        s = float(harmonic_mean([row["ES"].value, row["PS"].value, row["NS"].value]))
        # the columns are rounded, too: S may be off by what half a unit of their last digit does
        shifted = [
            float(harmonic_mean([row[name].value + sign * 0.05 for name in ("ES", "PS", "NS")])) for sign in (-1, 1)
        ]
        assert shifted[0] - 0.05 <= row["S"].value <= shifted[1] + 0.05, editor
        assert abs(s - row["S"].value) <= 0.1


def test_the_published_table_is_whole() -> None:
    tables = published_tables()
    assert sum(len(table.editors) for table in tables.values()) == 14
    for table in tables.values():
        for row in table.editors.values():
            assert set(row) == {"S", *TABLE4}
            assert row["S"].half_width is None
            assert all(row[name].half_width is not None for name in TABLE4)
    assert published_for("openai-community/gpt2-xl") is published_for("x") is None or published_for("gpt2-xl")
    xl, j = published_for("openai-community/gpt2-xl"), published_for("EleutherAI/gpt-j-6B")
    assert xl is not None
    assert j is not None
    assert (xl.title, xl.n, j.title, j.n) == ("GPT-2 XL", 7500, "GPT-J", 2000)
    assert xl.editors["rome"]["ES"] == Figure(100.0, 0.1)
    assert j.editors["ft"]["GE"] == Figure(387.8, 7.3)
    assert published_for("openai-community/gpt2") is None
    assert published_for("/models/gpt2-xl/") == xl


def test_published_widths_of_shares_agree_with_their_means() -> None:
    """At one prompt a case, the half-width is 1.96 √(p (1 − p) / n)."""
    for table in published_tables().values():
        for row in table.editors.values():
            p, half = row["ES"].value / 100, row["ES"].half_width
            assert half is not None
            # the mean and the half-width are rounded to 0.1
            ends = np.clip([p - 0.0005, p, p + 0.0005], 0, 1)
            widths = 100 * 1.96 * np.sqrt(ends * (1 - ends) / table.n)
            assert widths.min() - 0.0501 <= half <= widths.max() + 0.0501


def test_means_and_intervals() -> None:
    results = {"rome": random_cases(150)}
    table = summarise(results)
    assert [one.measure for one in table] == ["S", "ES", "EM", "PS", "NS"]
    values = {name: np.array([case.values[name] for case in results["rome"]]) for name in ("ES", "PS", "NS", "EM")}
    for name, column in values.items():
        found = pick(table, "rome", name)
        half = 100 * 1.96 * column.std() / np.sqrt(150)
        assert (found.mean, found.low, found.high) == pytest.approx(
            (100 * column.mean(), 100 * column.mean() - half, 100 * column.mean() + half)
        )
    share = pick(table, "rome", "ES")
    oracle = stats.binomtest(int(values["ES"].sum()), 150).proportion_ci(method="wilson")
    assert (share.better_low / 100, share.better_high / 100, share.rule) == (
        pytest.approx(oracle.low), pytest.approx(oracle.high), "wilson",
    )  # fmt: skip
    found = pick(table, "rome", "EM")
    oracle = stats.bootstrap((values["EM"],), np.mean, rng=np.random.default_rng(5), n_resamples=9999)
    assert found.rule == "bootstrap"
    assert (found.better_low / 100, found.better_high / 100) == pytest.approx(
        (oracle.confidence_interval.low, oracle.confidence_interval.high), abs=0.004
    )


def test_s_has_a_bootstrap_interval_over_cases() -> None:
    results = {"rome": random_cases(200, 3)}
    found = pick(summarise(results), "rome", "S")
    parts = [np.array([case.values[name] for case in results["rome"]]) for name in ("ES", "PS", "NS")]
    assert found.mean == pytest.approx(100 * stats.hmean([part.mean() for part in parts]))
    assert np.isnan(found.low)
    assert np.isnan(found.high)

    def s(*columns: np.ndarray, axis: int = -1) -> np.ndarray:
        return stats.hmean(np.stack([column.mean(axis=axis) for column in columns]), axis=0)

    oracle = stats.bootstrap(parts, s, paired=True, rng=np.random.default_rng(7), n_resamples=9999)
    assert (found.better_low / 100, found.better_high / 100) == pytest.approx(
        (oracle.confidence_interval.low, oracle.confidence_interval.high), abs=0.005
    )


def test_a_perfect_score_has_a_width() -> None:
    table = summarise({"ft": cases(ES=[1.0] * 50, PS=[1.0] * 50, NS=[0.0] * 50)}, resamples=200)
    for name, share in (("ES", 1.0), ("PS", 1.0), ("NS", 0.0)):
        found = pick(table, "ft", name)
        assert (found.better_low, found.better_high) == pytest.approx([100 * end for end in wilson_interval(share, 50)])
        assert found.half_width == 0.0
    assert pick(table, "ft", "S").mean == 0.0
    tokens = [
        CaseResult(
            f"r{i}", tuple(Row(f"r{i}", f"zsRE {name}", 0, 1.0) for name in ("efficacy", "paraphrase", "specificity"))
        )
        for i in range(50)
    ]
    table = summarise({"ft": tokens}, resamples=200)
    for name in ("zsRE S", "zsRE efficacy", "zsRE specificity"):
        assert pick(table, "ft", name).better_low == pytest.approx(100 * wilson_interval(1.0, 50)[0])


@pytest.mark.parametrize("shares", [(1.0, 1.0, 1.0), (0.0, 0.5, 1.0)])
def test_where_s_is_the_same_in_every_resample_its_interval_follows_from_those_of_its_parts(
    shares: tuple[float, ...],
) -> None:
    es, ps, ns = ([share] * 8 for share in shares)
    table = summarise({"rome": cases(ES=es, PS=[0.0, 1.0] * 4 if shares[1] == 0.5 else ps, NS=ns)}, resamples=200)
    found, parts = pick(table, "rome", "S"), [pick(table, "rome", name) for name in ("ES", "PS", "NS")]
    assert found.rule == "parts"
    assert found.better_low == pytest.approx(float(harmonic_mean([part.better_low for part in parts])))
    assert found.better_high == pytest.approx(float(harmonic_mean([part.better_high for part in parts])))
    assert found.better_low <= found.mean <= found.better_high
    assert found.better_high - found.better_low > 10


def test_clusters_are_drawn_whole() -> None:
    values = list(np.repeat(np.random.default_rng(0).normal(size=30), 10))
    results = {"rome": cases(EM=values, ES=[1.0] * 300)}
    clusters = {f"r{i}": f"s{i // 10}" for i in range(300)}
    alone, together = summarise(results), summarise(results, clusters=clusters)
    wide, narrow = pick(together, "rome", "EM"), pick(alone, "rome", "EM")
    assert (wide.better_high - wide.better_low) / (narrow.better_high - narrow.better_low) == pytest.approx(
        np.sqrt(10), rel=0.08
    )
    assert pick(together, "rome", "ES").better_low == pytest.approx(100 * wilson_interval(1.0, 30)[0])


def test_an_estimate_stands_by_itself() -> None:
    one, other = random_cases(60), random_cases(60, 9)
    whole = summarise({"a": one, "b": other}, resamples=500)
    # as text, because NaN is not equal to itself
    assert str([row for row in whole if row.editor == "b"]) == str(summarise({"b": other}, resamples=500))
    assert summarise({"b": other}, ["EM"], resamples=500) == [pick(whole, "b", "EM")]


def test_cases_without_a_measure_are_not_counted() -> None:
    nan = float("nan")
    table = summarise({"rome": cases(ES=[1.0, 0.0, 1.0], PS=[nan, 1.0, nan], NS=[nan, nan, nan])}, resamples=50)
    assert pick(table, "rome", "ES").n == 3
    only = pick(table, "rome", "PS")
    assert (only.n, only.mean) == (1, 100.0)
    assert not any(one.measure in ("NS", "S") for one in table)
    assert summarise({"rome": []}) == []


def test_an_infinite_value_makes_an_infinite_mean() -> None:
    results = cases(NKL=[0.1, inf, 0.2])
    broken = CaseResult("r9", (Row("r9", "NKL", 0, inf, "collapsed"),))
    found = pick(summarise({"kn": [*results, broken]}, resamples=50), "kn", "NKL")
    assert (found.mean, found.rule, found.collapsed, found.n) == (inf, "none", 1, 4)
    assert np.isnan([found.low, found.better_low, found.better_high]).all()


def test_collapsed_cases_are_counted_as_failures() -> None:
    lost = CaseResult("r3", (Row("r3", "ES", 0, 0.0, "collapsed"), Row("r3", "PS", 0, 1.0), Row("r3", "NS", 0, 1.0)))
    table = summarise({"kn": [*cases(ES=[1.0] * 3, PS=[1.0] * 3, NS=[1.0] * 3), lost]}, resamples=50)
    found = pick(table, "kn", "ES")
    assert (found.mean, found.n, found.collapsed) == (75.0, 4, 1)
    assert (pick(table, "kn", "S").collapsed, pick(table, "kn", "PS").collapsed) == (1, 0)


def test_differences_are_paired() -> None:
    rng = np.random.default_rng(1)
    hard = rng.normal(size=80)  # what a case brings, for every editor
    results = {name: cases(EM=list(hard + shift + 0.05 * rng.normal(size=80))) for name, shift in
               (("a", 0.0), ("b", 0.03), ("c", 0.0))}  # fmt: skip
    found = {(one.first, one.second): one for one in differences(results, "EM")}
    assert set(found) == {("a", "b"), ("a", "c"), ("b", "c")}
    both = [np.array([case.values["EM"] for case in results[name]]) for name in "ab"]
    pair = found["a", "b"]
    assert pair.difference == pytest.approx(100 * (both[0] - both[1]).mean())
    oracle = stats.ttest_rel(*both)
    assert pair.p == pytest.approx(oracle.pvalue, abs=0.01)
    assert pair.high < 0
    assert found["a", "c"].p > 0.05
    # unpaired, the difference could not be seen at all
    assert stats.ttest_ind(*both).pvalue > 0.5


def test_differences_against_one_editor_and_of_s() -> None:
    results = {"none": random_cases(60, 1), "rome": random_cases(60, 2), "ft": random_cases(60, 3)}
    found = differences(results, "S", against="none")
    assert [(one.first, one.second) for one in found] == [("rome", "none"), ("ft", "none")]
    table = summarise(results, ["S"])
    assert found[0].difference == pytest.approx(pick(table, "rome", "S").mean - pick(table, "none", "S").mean)
    assert [(one.second, one.first) for one in differences(results, "S")[:2]] == [("rome", "none"), ("ft", "none")]


def test_cases_that_one_editor_lacks_are_left_out_and_counted() -> None:
    results = {"a": cases(EM=[1.0, 2.0, 3.0, 9.0]), "b": cases(EM=[1.5, 2.0, 3.5])}
    found = differences(results, "EM", resamples=200)[0]
    assert (found.n, found.left_out) == (3, 1)
    assert found.difference == pytest.approx(-100 / 3)
    results = {"a": cases(NKL=[1.0, 2.0, inf, 4.0]), "b": cases(NKL=[1.5, 2.0, 3.5, 4.0])}
    found = differences(results, "NKL", resamples=200)[0]
    assert (found.n, found.left_out) == (3, 1)
    assert found.difference == pytest.approx(-0.5 / 3)


def test_wrong_names_are_refused() -> None:
    results = {"a": cases(EM=[1.0, 2.0])}
    with pytest.raises(InputError, match="no measure 'XX'"):
        differences(results, "XX")
    with pytest.raises(InputError, match="no measure 'XX'"):
        summarise(results, ["XX"])
    with pytest.raises(InputError, match="no editor 'rome'"):
        differences(results, "EM", against="rome")
    assert differences(results, "EM") == []
    assert differences({**results, "b": cases(ES=[1.0])}, "ES", against="a") == []


def test_measures_are_in_the_order_of_the_table() -> None:
    found = measures_of({"a": cases(NSplus=[1.0], NS=[1.0], PS=[1.0], ES=[1.0], GE=[1.0])})
    assert found == ["S", "ES", "PS", "NS", "GE", "NS+"]
    assert set(TABLE4) <= set(MEASURES)
