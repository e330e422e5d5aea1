"""What each metric says in the cases where definitions differ: several answers, ties, infinities, underflow."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engramscope.metrics import combine, get_metric
from engramscope.metrics._base import Target

INF = math.inf


def row(*logits: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor([[logits]], dtype=dtype)


def score(name: str, logits: Tensor, target: Target) -> float:
    return get_metric(name).score(logits, [target]).item()


def test_logit_diff_is_the_plain_difference_for_one_of_each() -> None:
    assert score("logit_diff", row(1.0, 5.0, 2.5), Target(((1,),), ((2,),))) == 2.5


def test_logit_diff_takes_the_best_of_each_set() -> None:
    # docstring: logit(r) - max over the wrong answers
    assert score("logit_diff", row(4.0, 1.0, 3.0, -9.0), Target(((0,),), ((1,), (2,), (3,)))) == 1.0
    assert score("logit_diff", row(4.0, 1.0, 3.0, -9.0), Target(((3,), (0,), (0,)), ((1,),))) == 3.0


def test_logit_diff_of_large_logits_is_exact() -> None:
    assert score("logit_diff", row(1e4, 1e4 - 0.5, 0.0), Target(((0,),), ((1,),))) == 0.5


def test_impossible_answers_under_logit_diff() -> None:
    logits = row(-INF, 1.0, -INF)
    assert score("logit_diff", logits, Target(((0,),), ((1,),))) == -INF
    assert score("logit_diff", logits, Target(((1,),), ((0,),))) == INF
    assert math.isnan(score("logit_diff", logits, Target(((0,),), ((2,),))))
    assert score("logit_diff", logits, Target(((0,), (1,)), ((1,),))) == 0.0


def test_impossible_tokens_under_the_others() -> None:
    logits = row(-INF, 1.0, 1.0, -INF)
    assert score("prob", logits, Target(((0,),))) == 0.0
    assert score("prob", logits, Target(((0,), (1,)))) == pytest.approx(0.5)
    assert score("log_prob", logits, Target(((0,),))) == -INF
    assert score("log_prob", logits, Target(((0,), (1,)))) == pytest.approx(math.log(0.5), rel=1e-6)
    assert score("rank", logits, Target(((0,),))) == 3.0
    assert score("mean_logit_diff", logits, Target(((0, 1),), ((2,),))) == -INF
    assert math.isnan(score("mean_logit_diff", logits, Target(((0, 1),), ((3,),))))
    assert score("answer_log_prob", logits, Target(((0,),))) == -INF


def test_kl_with_impossible_tokens() -> None:
    same = Target(((0,),), (), torch.tensor([0.0, 0.0, -INF]))
    assert score("kl", row(0.0, 0.0, -INF), same) == 0.0
    # P_clean = (1/2, 1/2, 0), P = (1/3, 1/3, 1/3): ln(3/2)
    assert score("kl", row(0.0, 0.0, 0.0), same) == pytest.approx(math.log(1.5), rel=1e-6)
    assert score("kl", row(0.0, -INF, 0.0), same) == INF


def test_kl_has_clean_first() -> None:
    # P_clean = (1/4, 3/4), P = (1/2, 1/2): 1/4 ln(1/2) + 3/4 ln(3/2); the reverse would be 1/2 ln 2 + 1/2 ln(2/3)
    target = Target(((0,),), (), torch.tensor([0.0, math.log(3.0)]))
    assert score("kl", row(0.0, 0.0), target) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), rel=1e-6)


def test_kl_of_nearby_distributions_does_not_drown() -> None:
    # second order: KL = 1/2 Var_P(delta), about 5e-9 here, a hundred times below float32 rounding of a naive sum
    g = torch.Generator().manual_seed(0)
    clean = 3 * torch.randn(5000, generator=g)
    delta = (1e-4 * torch.randn(5000, generator=g)).float()
    other = clean + delta
    real = other.double() - clean.double()
    p = torch.softmax(clean.double(), 0)
    expected = 0.5 * ((p * real.square()).sum() - (p * real).sum().square()).item()
    assert score("kl", other.reshape(1, 1, -1), Target(((0,),), (), clean)) == pytest.approx(expected, rel=1e-3)


def test_kl_never_rounds_below_zero() -> None:
    g = torch.Generator().manual_seed(8)
    clean = 3 * torch.randn(100, 300, generator=g, dtype=torch.float64)
    other = clean + 1e-10 * torch.randn(100, 300, generator=g, dtype=torch.float64)
    log_p, log_q = clean.log_softmax(1), other.log_softmax(1)
    assert bool(((log_p.exp() * (log_p - log_q)).sum(1) < 0).any()), "the case would not show it"
    targets = [Target(((0,),), (), row_) for row_ in clean]
    assert bool((get_metric("kl").score(other.unsqueeze(1), targets) >= 0).all())


def test_kl_agrees_with_torch() -> None:
    g = torch.Generator().manual_seed(1)
    clean, other = torch.randn(6, 40, generator=g).double(), torch.randn(6, 40, generator=g).double()
    expected = torch.nn.functional.kl_div(
        other.log_softmax(1), clean.log_softmax(1), log_target=True, reduction="none"
    ).sum(1)
    targets = [Target(((0,),), (), c) for c in clean]
    torch.testing.assert_close(get_metric("kl").score(other.unsqueeze(1), targets), expected, rtol=1e-9, atol=1e-12)


def test_kl_needs_the_clean_run() -> None:
    with pytest.raises(ValueError, match="clean_logits"):
        get_metric("kl").score(row(0.0, 1.0), [Target(((0,),))])
    with pytest.raises(ValueError, match="differ in shape"):
        get_metric("kl").score(row(0.0, 1.0), [Target(((0,),), (), torch.zeros(3))])


def test_prob_counts_a_token_once() -> None:
    assert score("prob", row(0.0, 0.0, 0.0, 0.0), Target(((1,), (1,), (2,)))) == pytest.approx(0.5)
    assert score("log_prob", row(0.0, 0.0, 0.0, 0.0), Target(((1,), (1,), (2,)))) == pytest.approx(math.log(0.5))


def test_certainty_never_rounds_beyond_certainty() -> None:
    # all tokens are acceptable: the probability is 1, and float32 sums land on both sides of it
    logits = 2 * torch.randn(200, 1, 300, generator=torch.Generator().manual_seed(6))
    targets = [Target(tuple((v,) for v in range(300)))] * 200
    assert bool((logits.softmax(-1).sum(-1) > 1).any()), "the case would not show it"
    prob, log_prob = (get_metric(name).score(logits, targets) for name in ("prob", "log_prob"))
    assert bool((prob <= 1).all() and (prob > 0.9999).all())
    assert bool((log_prob <= 0).all() and (log_prob > -1e-4).all())


def test_log_prob_where_the_probability_underflows() -> None:
    logits = row(500.0, 0.0, 0.0, -100.0)
    assert score("prob", logits, Target(((1,), (2,)))) == 0.0
    assert score("log_prob", logits, Target(((1,), (2,)))) == pytest.approx(math.log(2) - 500.0, rel=1e-7)
    # 1e4 in float32 has steps of 1e-3: the constant must be taken off before anything is summed
    shifted = row(1e4, 1e4 - 0.25, 1e4 - 3.0)
    expected = -0.25 - math.log(1 + math.exp(-0.25) + math.exp(-3.0))
    assert score("log_prob", shifted, Target(((1,),))) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("logits", "correct", "rank"),
    [
        ((3.0, 2.0, 1.0), ((0,),), 0),
        ((3.0, 2.0, 1.0), ((2,),), 2),
        ((3.0, 2.0, 1.0), ((2,), (1,)), 1),  # the best of the set; the others never count against it
        ((3.0, 3.0, 1.0), ((0,),), 1),  # a tie counts against, whichever id is lower
        ((3.0, 3.0, 1.0), ((1,),), 1),
        ((3.0, 3.0, 1.0), ((0,), (1,)), 0),  # a tie among the correct ones does not
        ((3.0, 3.0, 3.0), ((1,), (1,)), 2),  # all equal: the worst rank
    ],
)
def test_rank(logits: tuple[float, ...], correct: tuple[tuple[int, ...], ...], rank: int) -> None:
    assert score("rank", row(*logits), Target(correct)) == rank


def test_rank_of_a_row_with_nan_elsewhere() -> None:
    assert math.isnan(score("rank", row(3.0, math.nan, 1.0), Target(((0,),))))


def test_mean_logit_diff_uses_whole_answers_and_distinct_tokens() -> None:
    logits = row(1.0, 2.0, 4.0, 8.0, 16.0)
    # C = {0, 1, 2}, I = {3, 4}: 7/3 - 12
    assert score("mean_logit_diff", logits, Target(((0, 1), (1, 2)), ((3, 4, 3),))) == pytest.approx(7 / 3 - 12)


def test_mean_logit_diff_is_not_the_sum() -> None:
    # M4: the sum over sets of unequal size moves with a constant, the mean does not
    target = Target(((0, 1, 2),), ((3,),))
    base = score("mean_logit_diff", row(1.0, 2.0, 3.0, 5.0), target)
    assert base == -3.0
    assert score("mean_logit_diff", row(101.0, 102.0, 103.0, 105.0), target) == pytest.approx(base)


def test_answer_log_prob_reads_one_position_per_token() -> None:
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]]))
    assert score("answer_log_prob", logits, Target(((0, 2),))) == pytest.approx(math.log(0.5 * 0.8), rel=1e-6)
    assert score("answer_log_prob", logits, Target(((2, 0),))) == pytest.approx(math.log(0.25 * 0.1), rel=1e-6)


def test_answer_log_prob_is_log_prob_for_one_token() -> None:
    g = torch.Generator().manual_seed(3)
    logits = torch.randn(4, 1, 11, generator=g)
    targets = [Target(((i,),)) for i in range(4)]
    torch.testing.assert_close(
        get_metric("answer_log_prob").score(logits, targets), get_metric("log_prob").score(logits, targets)
    )


def test_answer_log_prob_refuses_answers_of_another_length() -> None:
    logits = torch.zeros(1, 2, 5)
    for correct in (((1,),), ((1, 2, 3),), ((1, 2), (1, 2)), ()):
        with pytest.raises(ValueError, match="expected one answer of 2 tokens"):
            get_metric("answer_log_prob").score(logits, [Target(correct)])


@pytest.mark.parametrize("name", ["logit_diff", "prob", "log_prob", "rank"])
def test_single_token_metrics_never_cut_an_answer(name: str) -> None:
    with pytest.raises(ValueError, match="exactly one token"):
        get_metric(name).score(row(0.0, 1.0, 2.0), [Target(((0, 1),), ((2,),))])


def test_prob_effect_has_a_floor() -> None:
    # M2: m(patched) - m(corrupted) >= -P_corrupted
    g = torch.Generator().manual_seed(4)
    logits = 4 * torch.randn(2, 50, 1, 9, generator=g)
    targets = [Target(((i % 9,),)) for i in range(50)]
    patched, corrupted = (get_metric("prob").score(x, targets) for x in logits)
    assert bool((patched - corrupted >= -corrupted).all())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-700, 0), min_size=1, max_size=6))
def test_combine_is_the_log_of_the_sum(scores: list[float]) -> None:
    top = max(scores)
    expected = min(0.0, top + math.log(math.fsum(math.exp(s - top) for s in reversed(scores))))
    assert combine(scores) == pytest.approx(expected, abs=1e-12)
    assert combine(scores) >= top - 1e-12


def test_combine_at_the_edges() -> None:
    assert combine([-3.5]) == -3.5
    assert combine([math.log(0.25), math.log(0.5)]) == pytest.approx(math.log(0.75))
    assert combine([-5000.0, -5000.0]) == pytest.approx(-5000.0 + math.log(2))
    assert combine([-INF, -2.0]) == -2.0
    assert combine([-INF, -INF]) == -INF
    assert combine([0.0, -1e-20]) == 0.0
    assert math.isnan(combine([math.nan, -1.0]))
    with pytest.raises(ValueError, match="at least one"):
        combine([])


def test_sum_logit_diff_is_the_published_sum_and_moves_with_a_constant() -> None:
    logits, target = row(1.0, 2.0, 4.0, 8.0, 16.0), Target(((0,), (1,), (2,), (1,)), ((3,), (4,)))
    assert score("sum_logit_diff", logits, target) == pytest.approx(1 + 2 + 4 - 8 - 16)
    # YY = 45: 54 years above, 45 below
    years = Target(tuple((year,) for year in range(46, 100)), tuple((year,) for year in range(45)))
    assert score("sum_logit_diff", row(*[3.0] * 100), years) == pytest.approx(9 * 3.0)
