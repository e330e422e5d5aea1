"""Verdicts from made-up numbers: tolerances on both sides, heads near the line, the rule of five rows in six."""

from __future__ import annotations

import math

import pytest

from engramscope.replications import _verdict as verdict
from engramscope.replications._verdict import (
    DIFFERS,
    NOT_MEASURED,
    REPRODUCED,
    UNPUBLISHED,
    Detection,
    HeadSets,
    Judged,
    Outcome,
    Tolerance,
    Verdict,
    overall,
)


@pytest.mark.parametrize(
    ("measured", "outcome"),
    [(0.48, REPRODUCED), (0.501, REPRODUCED), (0.461, REPRODUCED), (0.502, DIFFERS), (0.46, DIFFERS)],
)
def test_an_absolute_tolerance_holds_on_both_sides(measured: float, outcome: Outcome) -> None:
    assert verdict.number(measured, 0.481, Tolerance(within=0.02)).outcome == outcome


@pytest.mark.parametrize(
    ("measured", "outcome"), [(0.1, REPRODUCED), (0.06, REPRODUCED), (0.101, DIFFERS), (0.059, DIFFERS)]
)
def test_a_relative_tolerance_holds_on_both_sides(measured: float, outcome: Outcome) -> None:
    assert verdict.number(measured, 0.08, Tolerance(within_share=0.25)).outcome == outcome


def test_a_relative_tolerance_of_a_negative_number() -> None:
    assert verdict.number(-0.6, -0.5, Tolerance(within_share=0.25)).outcome == REPRODUCED
    assert verdict.number(-0.7, -0.5, Tolerance(within_share=0.25)).outcome == DIFFERS
    assert verdict.number(0.5, -0.5, Tolerance(within_share=0.25)).outcome == DIFFERS


def test_bounds_and_numbers_that_are_none() -> None:
    both = Tolerance(at_least=2.0, at_most=5.0)
    assert [verdict.number(x, None, both).outcome for x in (1.9, 2.0, 5.0, 5.1)] == [
        DIFFERS, REPRODUCED, REPRODUCED, DIFFERS,
    ]  # fmt: skip
    assert verdict.number(math.nan, 1.0, Tolerance(within=1.0)).outcome == NOT_MEASURED


def test_layers_two_away_agree_with_the_nearest_published_one() -> None:
    assert [verdict.layers(layer, [14, 15], 2).outcome for layer in (11, 12, 17, 18)] == [
        DIFFERS, REPRODUCED, REPRODUCED, DIFFERS,
    ]  # fmt: skip


SETS = HeadSets(positive=("5.5", "8.6"), negative=("10.7",))


def found(**over: float) -> Detection:
    z = {"5.5": 4.0, "8.6": 2.5, "10.7": -5.0, "0.0": 0.1} | {
        key.replace("_", "."): value for key, value in over.items()
    }
    return Detection({head.removeprefix("h"): value for head, value in z.items()})


def test_the_same_heads_agree_exactly() -> None:
    assert verdict.heads(found(), SETS) == Verdict(REPRODUCED, exact=True)


@pytest.mark.parametrize(
    ("over", "outcome"),
    [
        ({"h8_6": 1.7}, REPRODUCED),  # missing, 0.3 below the line
        ({"h8_6": 1.69}, DIFFERS),
        ({"h3_0": 2.3}, REPRODUCED),  # one too many, 0.3 above it
        ({"h3_0": 2.31}, DIFFERS),
        ({"h3_0": -2.1}, REPRODUCED),
        ({"h10_7": -1.8}, REPRODUCED),
        ({"h10_7": 1.9}, DIFFERS),  # near the line of the other sign
        ({"h10_7": 2.1}, DIFFERS),
        ({"h5_5": -4.0}, DIFFERS),
    ],
)
def test_a_head_near_the_line_still_counts_but_not_exactly(over: dict[str, float], outcome: Outcome) -> None:
    said = verdict.heads(found(**over), SETS)
    assert said.outcome == outcome
    assert said.exact is False
    assert "z = " in said.why


def test_a_head_that_the_model_does_not_have_is_missing() -> None:
    assert verdict.heads(Detection({"0.0": 5.0}), HeadSets(positive=("0.0", "9.9"))).outcome == DIFFERS


def test_only_what_is_published_is_compared() -> None:
    many = found(h1_1=9.0, h2_2=-9.0)
    assert verdict.heads(many, HeadSets(positive=("1.1", "5.5", "8.6"))).outcome == REPRODUCED
    assert verdict.heads(many, HeadSets(negative=("2.2",))).outcome == DIFFERS
    assert verdict.heads(many, HeadSets(either=("1.1", "2.2", "5.5", "8.6", "10.7"))).exact is True
    assert verdict.heads(many, HeadSets(includes_positive=("5.5",), excludes=("0.0",))) == Verdict(REPRODUCED)
    assert verdict.heads(many, HeadSets(includes_negative=("5.5",))).outcome == DIFFERS
    assert verdict.heads(many, HeadSets(includes=("10.7",))).outcome == REPRODUCED
    assert verdict.heads(many, HeadSets(excludes=("1.1",))).outcome == DIFFERS
    assert verdict.heads(many, HeadSets(positive=())).outcome == DIFFERS


def test_heads_are_listed_strongest_first() -> None:
    assert found(h7_7=3.0).positive == ("5.5", "7.7", "8.6")
    assert found(h7_7=-3.0).negative == ("10.7", "7.7")


def test_counts_within_what_heads_near_the_line_could_make_of_them() -> None:
    published = {"NM": 1, "SI": 3}
    assert verdict.counts({"NM": 1, "SI": 3}, {"NM": 1, "SI": 3}, {"NM": 1, "SI": 3}, published).exact is True
    near = verdict.counts({"NM": 1, "SI": 2}, {"NM": 1, "SI": 2}, {"NM": 1, "SI": 3}, published)
    assert (near.outcome, near.exact) == (REPRODUCED, False)
    assert verdict.counts({"NM": 0, "SI": 3}, {"NM": 0, "SI": 3}, {"NM": 0, "SI": 3}, published).outcome == DIFFERS


def test_order_and_factor() -> None:
    assert verdict.order(2.0, 1.0).outcome == REPRODUCED
    assert verdict.order(1.0, 1.0).outcome == DIFFERS
    assert verdict.order(1.2, 1.0, 1.2).outcome == DIFFERS
    assert verdict.order(1.21, 1.0, 1.2).outcome == REPRODUCED
    assert verdict.order(-1.0, -2.0).outcome == REPRODUCED
    assert verdict.order(-1.0, -2.0, 1.2).outcome == DIFFERS
    assert verdict.order(math.nan, 1.0).outcome == NOT_MEASURED


def test_more_than_chance() -> None:
    assert verdict.beyond_chance(0.4, 0.01, 0.05).outcome == REPRODUCED
    assert verdict.beyond_chance(0.1, 0.2, 0.05).outcome == DIFFERS
    assert verdict.beyond_chance(math.nan, 1.0, 0.05).outcome == DIFFERS


def judged(*outcomes: Outcome, exact: bool | None = None, counts: bool = True) -> list[Judged]:
    return [Judged(Verdict(outcome, exact=exact), counts) for outcome in outcomes]


def test_the_whole_is_reproduced_when_every_value_that_counts_is() -> None:
    assert overall(judged(REPRODUCED, REPRODUCED)).outcome == REPRODUCED
    assert overall([*judged(REPRODUCED), *judged(DIFFERS, counts=False)]).outcome == REPRODUCED
    said = overall(judged(REPRODUCED, DIFFERS))
    assert said.outcome == DIFFERS
    assert said.tally[DIFFERS] == 1
    assert "1 of the 2" in said.why


def test_what_was_not_measured_leaves_the_whole_open_unless_something_differs() -> None:
    assert overall(judged(REPRODUCED, NOT_MEASURED)).outcome == NOT_MEASURED
    assert overall(judged(DIFFERS, NOT_MEASURED)).outcome == DIFFERS
    assert overall(judged(NOT_MEASURED, NOT_MEASURED)).outcome == NOT_MEASURED


def test_on_another_model_there_is_nothing_to_compare() -> None:
    assert overall(judged(UNPUBLISHED, UNPUBLISHED)).outcome == UNPUBLISHED
    assert overall(judged(UNPUBLISHED, NOT_MEASURED)).outcome == UNPUBLISHED


@pytest.mark.parametrize(("agreeing", "outcome"), [(6, REPRODUCED), (5, REPRODUCED), (4, DIFFERS)])
def test_five_rows_in_six_agree_exactly(agreeing: int, outcome: Outcome) -> None:
    rows = [*judged(*[REPRODUCED] * agreeing, exact=True), *judged(*[REPRODUCED] * (6 - agreeing), exact=False)]
    said = overall([*rows, *judged(REPRODUCED, REPRODUCED)], exact=5)
    assert said.outcome == outcome
    assert f"{agreeing} of 6 rows" in said.why


def test_a_row_with_a_head_far_from_the_line_decides_even_if_five_agree() -> None:
    rows = [*judged(*[REPRODUCED] * 5, exact=True), *judged(DIFFERS, exact=False)]
    assert overall(rows, exact=5).outcome == DIFFERS
