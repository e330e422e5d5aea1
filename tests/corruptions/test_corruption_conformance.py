"""Every corruption that is found by its name passes these."""

from __future__ import annotations

import random

import corruption_cases as cases
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engramscope.corruptions import corruption_names, describe_corruption, make_corruption
from engramscope.corruptions._base import Corruption
from engramscope.errors import StudyError, UnknownNameError

NAMES = corruption_names()
each_corruption = pytest.mark.parametrize("name", NAMES)


def test_ours_are_found_by_name() -> None:
    assert {"answer", "base_model", "gaussian", "mean", "resample", "str", "zero"} <= set(NAMES)


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'gaussian'"):
        make_corruption("gausian", {})


@each_corruption
def test_says_what_it_is(name: str) -> None:
    how = make_corruption(name, {})
    assert describe_corruption(name).endswith(".")
    assert how.level in {"tokens", "embedding", "activation", "weights"}
    assert how.alignment in {"equal", "both_ends"}
    assert "Source:" in (type(how).__doc__ or "")
    for option in type(how).Options.model_fields:
        assert f"{option}:" in (type(how).Options.__doc__ or ""), option


@each_corruption
def test_unknown_options_are_refused_with_the_nearest(name: str) -> None:
    known = sorted(type(make_corruption(name, {})).Options.model_fields)
    wrong = {"no_such_option": 1, **({f"{known[0]}x": 1} if known else {})}
    with pytest.raises(StudyError) as error:
        make_corruption(name, wrong)
    assert len(error.value.faults) == len(wrong)
    assert all(name in fault for fault in error.value.faults)
    if known:
        assert f"did you mean {known[0]!r}" in str(error.value)


@each_corruption
def test_rewriting_keeps_who_the_pair_is(name: str) -> None:
    how = make_corruption(name, {})
    for pair in cases.make_pairs():
        again = how.rewrite(pair)
        assert (again.id, again.group, again.correct, again.incorrect) == (
            pair.id, pair.group, pair.correct, pair.incorrect,
        )  # fmt: skip
        assert again.labels == pair.labels
        assert again.clean.startswith(pair.clean)
        assert (again.corrupted is not None) == (how.level == "tokens")
        assert again.clean[slice(*again.spans["subject"])] == pair.clean[slice(*pair.spans["subject"])]
        if again.corrupted is not None:
            spans = {**again.spans, **again.corrupted_spans}
            assert all(0 <= start < end <= len(again.corrupted) for start, end in spans.values())


@each_corruption
def test_draws_or_ablations_never_both(name: str) -> None:
    how = make_corruption(name, {})
    pairs = cases.prepared(how, cases.make_pairs())
    draws, ablations = how.draws(pairs, cases.FACTS, 0), how.ablations(pairs, 0)
    ablates = how.level == "activation"
    assert [bool(x) for x in draws] == [not ablates] * len(pairs)
    assert [bool(x) for x in ablations] == [ablates] * len(pairs)
    for made in draws:
        assert [draw.seed for draw in made] == list(range(len(made)))
        assert all((draw.noise is not None) == (how.level == "embedding") for draw in made)


@each_corruption
def test_the_seed_decides_and_nothing_else(name: str) -> None:
    how = make_corruption(name, {})
    pairs = cases.prepared(how, cases.make_pairs())
    first = cases.described(how, pairs, 3)
    random.seed(5)  # the global generator has no part in it
    assert cases.described(make_corruption(name, {}), pairs, 3) == first
    other = cases.described(how, pairs, 4)
    if how.random:
        assert all(other[pair.pair.id] != first[pair.pair.id] for pair in pairs)
    else:
        assert other == first


@each_corruption
@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(len(cases.NAMES))))
def test_the_order_of_the_pairs_changes_nothing(name: str, order: list[int]) -> None:
    how = make_corruption(name, {})
    pairs = cases.prepared(how, cases.make_pairs())
    assert cases.described(how, [pairs[i] for i in order], 0) == cases.described(how, pairs, 0)


@pytest.mark.parametrize("name", [name for name in NAMES if make_corruption(name, {}).level != "activation"])
def test_limiting_the_set_changes_no_draw(name: str) -> None:
    # σ under key_texts = "spans" depends on the set by definition, and so do the reference sets of ablations, which
    # have tests of their own; the draws themselves do not
    how = make_corruption(name, {"key_texts": "vocabulary"} if name == "gaussian" else {})
    pairs = cases.prepared(how, cases.make_pairs())
    whole = cases.described(how, pairs, 0)
    for kept in (pairs[:3], pairs[4:], pairs[2:3]):
        assert cases.described(how, kept, 0) == {pair.pair.id: whole[pair.pair.id] for pair in kept}


@each_corruption
def test_the_pairs_are_left_as_they_are(name: str) -> None:
    how = make_corruption(name, {})
    pairs = cases.make_pairs()
    assert how.rewrite(pairs[0]) == how.rewrite(cases.make_pairs()[0])
    assert pairs == cases.make_pairs()
    tokens = cases.prepared(how, pairs)
    cases.described(how, tokens, 0)
    assert tokens == cases.prepared(how, cases.make_pairs())


def test_the_base_class_says_none_for_ablations() -> None:
    class Nothing(Corruption):
        level = "activation"

    how = Nothing(Nothing.Options())
    pairs = [cases.tokenized(pair) for pair in cases.make_pairs()]
    assert how.draws(pairs, cases.FACTS, 0) == [[]] * len(pairs)
    assert how.ablations(pairs, 0) == [[]] * len(pairs)
