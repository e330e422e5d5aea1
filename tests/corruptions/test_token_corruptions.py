"""Token replacement and the answer swap."""

from __future__ import annotations

from dataclasses import replace

import corruption_cases as cases
import pytest

from engramscope.corruptions import make_corruption
from engramscope.corruptions._base import Draw
from engramscope.errors import PairsError
from engramscope.pairs.pair import Pair

QUESTION = Pair(
    id="q1",
    clean="IEDs are associated with",
    correct=(" epilepsy", " seizures"),
    incorrect=(" normal sleep",),
    spans={"subject": (0, 4)},
)


def test_str_leaves_a_good_pair_alone() -> None:
    how = make_corruption("str", {})
    pair = cases.make_pairs()[0]
    assert how.needs_corrupted
    assert how.rewrite(pair) is pair
    assert how.draws([cases.tokenized(pair)], cases.FACTS, 9) == [[Draw(0, None)]]


@pytest.mark.parametrize("corrupted", [None, "Here Ada Byron lives in"])
def test_str_needs_another_prompt(corrupted: str | None) -> None:
    with pytest.raises(PairsError, match="pair Ada Byron"):
        make_corruption("str", {}).rewrite(replace(cases.make_pairs()[0], corrupted=corrupted))


def test_str_names_every_pair_of_unequal_length_or_equal_tokens() -> None:
    good, short, same, long = cases.make_pairs()[:4]
    short = replace(short, corrupted="Here Kurt lives in")
    same = replace(same, corrupted=same.clean + " ")
    long = replace(long, corrupted=long.clean + " the")
    with pytest.raises(PairsError) as error:
        make_corruption("str", {}).draws([cases.tokenized(p) for p in (good, short, same, long)], cases.FACTS, 0)
    faults = error.value.faults
    assert len(faults) == 3
    assert "5 tokens" in faults[0]
    assert "'Kurt', 'lives'" in faults[0]
    assert "same tokens" in faults[1]
    assert good.id not in str(error.value)


def test_answer_appends_the_first_of_each_kind() -> None:
    pair = make_corruption("answer", {}).rewrite(QUESTION)
    assert pair.clean == "IEDs are associated with epilepsy"
    assert pair.corrupted == "IEDs are associated with normal sleep"
    assert (pair.correct, pair.incorrect) == (QUESTION.correct, QUESTION.incorrect)
    spans = {**pair.spans, **pair.corrupted_spans}
    assert pair.clean[slice(*pair.spans["answer"])] == " epilepsy"
    assert pair.corrupted[slice(*spans["answer"])] == " normal sleep"
    assert pair.clean[slice(*pair.spans["subject"])] == pair.corrupted[slice(*spans["subject"])] == "IEDs"


def test_answer_aligns_at_both_ends() -> None:
    how = make_corruption("answer", {})
    assert (how.alignment, how.level, how.random, how.needs_corrupted) == ("both_ends", "tokens", False, False)


def test_answer_drops_the_pairs_own_corrupted_prompt_and_its_spans() -> None:
    pair = replace(QUESTION, corrupted="In truth, IEDs are linked to", corrupted_spans={"subject": (10, 14)})
    again = make_corruption("answer", {}).rewrite(pair)
    assert again == make_corruption("answer", {}).rewrite(QUESTION)
    assert "subject" not in again.corrupted_spans


def test_answer_keeps_a_span_that_the_pair_calls_answer() -> None:
    pair = make_corruption("answer", {}).rewrite(replace(QUESTION, spans={"answer": (0, 4)}))
    assert pair.spans["answer"] == (0, 4)
    assert pair.corrupted_spans == {}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"incorrect": ()}, "no incorrect answer"),
        ({"correct": ()}, "no correct answer"),
        ({"incorrect": (" ",)}, "empty"),
        ({"incorrect": (" epilepsy",)}, "both ' epilepsy'"),
    ],
)
def test_answer_names_what_is_missing(changes: dict[str, tuple[str, ...]], says: str) -> None:
    with pytest.raises(PairsError, match=f"'q1'.*{says}"):
        make_corruption("answer", {}).rewrite(replace(QUESTION, **changes))


@pytest.mark.parametrize("name", ["zero", "mean", "resample", "gaussian"])
def test_the_others_use_no_corrupted_prompt(name: str) -> None:
    pair = replace(cases.make_pairs()[0], corrupted_spans={"subject": (0, 4)})
    again = make_corruption(name, {}).rewrite(pair)
    assert again == replace(pair, corrupted=None, corrupted_spans={})
