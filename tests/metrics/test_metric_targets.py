"""Answers that do not fit a metric are named in sentences, with their tokens."""

from __future__ import annotations

import pytest

from engramscope.metrics import check_targets, get_metric, metric_names, target_remarks
from engramscope.metrics._base import Target

WORDS = {1: " Paris", 2: " Rome", 3: " New", 4: " York", 5: " Haven"}


def faults(name: str, target: Target) -> list[str]:
    return check_targets(get_metric(name), target, "p7", WORDS.__getitem__)


@pytest.mark.parametrize("name", metric_names())
def test_good_targets_have_no_fault(name: str) -> None:
    target = Target(((1,),), ((2,),))
    assert faults(name, target) == []
    assert target_remarks(get_metric(name), target, "p7") == []


@pytest.mark.parametrize("name", ["logit_diff", "prob", "log_prob", "rank"])
def test_a_multi_token_answer_is_named_with_its_tokens(name: str) -> None:
    (fault,) = faults(name, Target(((3, 4),), ((2,),)))
    assert "'p7'" in fault
    assert repr(name) in fault
    assert "' New' (3), ' York' (4)" in fault
    assert "3, 4" in check_targets(get_metric(name), Target(((3, 4),), ((2,),)), "p7")[0]


def test_a_multi_token_incorrect_answer_matters_only_where_it_is_scored() -> None:
    target = Target(((1,),), ((3, 4),))
    assert len(faults("logit_diff", target)) == 1
    assert faults("prob", target) == []


@pytest.mark.parametrize("name", ["kl", "mean_logit_diff", "answer_log_prob"])
def test_multi_token_answers_are_welcome_elsewhere(name: str) -> None:
    assert faults(name, Target(((3, 4),), ((1, 2),))) == []


@pytest.mark.parametrize("name", metric_names())
def test_missing_answers(name: str) -> None:
    assert "no correct answer" in faults(name, Target((), ((2,),)))[0]
    assert any("has no tokens" in fault for fault in faults(name, Target(((),), ((2,),))))
    missing = faults(name, Target(((1,),)))
    assert bool(missing) == get_metric(name).needs_incorrect
    assert all("incorrect" in fault for fault in missing)


def test_the_same_token_on_both_sides() -> None:
    (fault,) = faults("logit_diff", Target(((1,), (2,)), ((2,),)))
    assert "' Rome' (2)" in fault
    assert faults("prob", Target(((1,),), ((1,),))) == []


def test_all_faults_at_once() -> None:
    assert len(faults("logit_diff", Target(((3, 4), (3, 5)), ((), (1, 2))))) == 4


def test_shared_tokens_under_mean_logit_diff() -> None:
    some = Target(((3, 4),), ((3, 5),))
    assert faults("mean_logit_diff", some) == []
    (remark,) = target_remarks(get_metric("mean_logit_diff"), some, "p7", WORDS.__getitem__)
    assert "' New' (3)" in remark
    assert "York" not in remark
    (fault,) = faults("mean_logit_diff", Target(((3,),), ((3, 5),)))
    assert "every token of the correct answers" in fault
    (fault,) = faults("mean_logit_diff", Target(((3, 4),), ((4,),)))
    assert "every token of the incorrect answers" in fault


def test_answers_that_begin_with_one_another_are_counted_twice() -> None:
    assert len(faults("answer_log_prob", Target(((3,), (3, 4))))) == 1
    assert len(faults("answer_log_prob", Target(((3, 4), (3,))))) == 1
    assert len(faults("answer_log_prob", Target(((3, 4), (3, 4))))) == 1
    assert faults("answer_log_prob", Target(((3, 4), (3, 5), (4,)))) == []
