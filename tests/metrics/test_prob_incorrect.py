"""The probability of the wrong answers."""

from __future__ import annotations

import pytest
import torch

from engramscope.metrics import get_metric
from engramscope.metrics._base import Target


def _score(logits: list[float], target: Target) -> float:
    return get_metric("prob_incorrect").score(torch.tensor([[logits]]), [target]).item()


def test_it_is_the_sum_over_distinct_wrong_tokens() -> None:
    assert _score([0.0, 0.0, 0.0, 0.0], Target(((0,),), ((1,), (2,), (2,)))) == pytest.approx(0.5)
    assert _score([0.0, 1.0, -torch.inf], Target(((0,),), ((2,),))) == 0.0


def test_with_one_answer_of_each_it_is_prob_with_the_two_exchanged() -> None:
    logits = [0.3, -1.0, 2.0, 0.1]
    swapped = torch.tensor([[logits]])
    expected = get_metric("prob").score(swapped, [Target(((2,),), ((0,),))]).item()
    assert _score(logits, Target(((0,),), ((2,),))) == pytest.approx(expected)


def test_lower_is_better_and_wrong_answers_must_be_given() -> None:
    metric = get_metric("prob_incorrect")
    assert not metric.higher_is_better
    assert metric.needs_incorrect
    with pytest.raises(ValueError, match="at least one answer"):
        metric.score(torch.zeros(1, 1, 3), [Target(((0,),))])
