"""Every metric that is found by its name passes these, and each check is shown to reject a wrong metric."""

from __future__ import annotations

import math
import subprocess
import sys

import metric_checks as checks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from engramscope.errors import UnknownNameError
from engramscope.metrics import describe_metric, get_metric, metric_name, metric_names
from engramscope.metrics._base import Metric
from engramscope.metrics.logit_diff import LogitDiff

NAMES = metric_names()
OURS = ("answer_log_prob", "kl", "log_prob", "logit_diff", "mean_logit_diff", "prob", "rank")
each_metric = pytest.mark.parametrize("name", NAMES)


def test_ours_are_found_by_name() -> None:
    assert set(OURS) <= set(NAMES)


def test_names_import_no_torch() -> None:
    code = (
        "import sys; from engramscope.metrics import metric_names, describe_metric, combine\n"
        "from engramscope.corruptions import corruption_names, describe_corruption\n"
        "assert 'logit_diff' in metric_names() and 'str' in corruption_names()\n"
        "assert describe_metric('kl') and describe_corruption('str') and combine([0.0]) == 0.0\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'logit_diff'"):
        get_metric("logit_dif")


@each_metric
def test_says_what_it_is(name: str) -> None:
    metric = get_metric(name)
    assert metric_name(metric) == name
    assert describe_metric(name).endswith(".")
    assert metric.unit
    assert metric.range[0] < metric.range[1]
    documentation = type(metric).__doc__ or ""
    for word in ("Unit:", "Range:", "Source:", "better" if name != "logit_diff" else "Higher"):
        assert word in documentation, word


@each_metric
def test_is_per_item(name: str) -> None:
    checks.check_per_item(get_metric(name))


@each_metric
def test_shift_invariant(name: str) -> None:
    checks.check_shift(get_metric(name))


@each_metric
def test_dtype(name: str) -> None:
    checks.check_dtype(get_metric(name))


@each_metric
def test_direction(name: str) -> None:
    checks.check_direction(get_metric(name))


@each_metric
def test_signed_is_whether_a_change_without_meaning_can_go_either_way(name: str) -> None:
    checks.check_signed(get_metric(name))


def test_a_distance_that_calls_itself_signed_is_rejected() -> None:
    class Wrong(type(get_metric("kl"))):
        signed = True

    with pytest.raises(AssertionError):
        checks.check_signed(Wrong())


@each_metric
def test_leaves_its_input_alone(name: str) -> None:
    checks.check_untouched(get_metric(name))


@each_metric
@settings(max_examples=30, deadline=None)
@given(scale=st.sampled_from([0.0, 1e-6, 1.0, 30.0, 3e3]), seed=st.integers(0, 10**6), narrow=st.booleans())
def test_range_and_finite(name: str, scale: float, seed: int, narrow: bool) -> None:
    metric = get_metric(name)
    logits, targets = checks.case(metric, 4, seed, scale)
    logits = logits.clamp(-1e4, 1e4)
    checks.check_range(metric, logits.float() if narrow else logits, targets)


@each_metric
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_extreme_logits(name: str, dtype: torch.dtype) -> None:
    metric = get_metric(name)
    logits, targets = checks.case(metric, 6, seed=2)
    checks.check_range(metric, torch.where(logits > 0, 1e4, -1e4).to(dtype), targets)


@pytest.mark.parametrize("name", OURS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([0.1, 3.0, 25.0]))
def test_agrees_with_plain_python(name: str, seed: int, scale: float) -> None:
    metric = get_metric(name)
    logits, targets = checks.case(metric, 5, seed, scale)
    expected = torch.tensor(
        [checks.naive(name, x.tolist(), target) for x, target in zip(logits, targets, strict=True)],
        dtype=torch.float64,
    )
    torch.testing.assert_close(metric.score(logits, targets), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        metric.score(logits.float(), targets).double(), expected, rtol=1e-5, atol=2e-5 * max(1.0, scale / 10)
    )


@each_metric
def test_refuses_a_wrong_shape(name: str) -> None:
    metric = get_metric(name)
    logits, targets = checks.case(metric, 3)
    for wrong in (logits[:2], logits[:, 0], torch.cat([logits, logits], dim=1)):
        # in tests the shapes of the annotations are checked as well, and may speak first
        with pytest.raises((ValueError, TypeCheckError), match=r"expected|tokens|type"):
            metric.score(wrong, targets)


@pytest.mark.parametrize("name", [n for n in OURS if n != "kl"])
@pytest.mark.parametrize("token", [-1, checks.VOCAB])
def test_refuses_a_token_outside_the_vocabulary(name: str, token: int) -> None:
    metric = get_metric(name)
    logits, _ = checks.case(metric, 1)
    answer = (1, 2, token) if metric.scores == "whole_answer" else (token,)
    with pytest.raises(ValueError, match="vocabulary"):
        metric.score(logits, [checks.Target((answer,), ((3,),))])


@pytest.mark.parametrize("name", OURS)
def test_nan_is_not_turned_into_a_number(name: str) -> None:
    metric = get_metric(name)
    logits, targets = checks.case(metric, 2)
    logits[0] = torch.nan
    scores = metric.score(logits, targets)
    assert scores[0].isnan()
    assert scores[1].isfinite()


class _BatchMean(LogitDiff):
    def score(self, logits, targets):
        scores = super().score(logits, targets)
        return scores - scores.mean() if len(targets) else scores


class _RawLogit(LogitDiff):
    def score(self, logits, targets):
        return torch.stack([x[0, t.correct[0][0]] for x, t in zip(logits, targets, strict=True)])


class _Reversed(LogitDiff):
    higher_is_better = False


class _Narrow(LogitDiff):
    def score(self, logits, targets):
        return super().score(logits.bfloat16(), targets)


class _InPlace(LogitDiff):
    def score(self, logits, targets):
        return super().score(logits.mul_(2.0), targets)


class _Positive(LogitDiff):
    range = (0.0, math.inf)


@pytest.mark.parametrize(
    ("check", "wrong"),
    [
        (checks.check_per_item, _BatchMean()),
        (checks.check_shift, _RawLogit()),
        (checks.check_direction, _Reversed()),
        (checks.check_dtype, _Narrow()),
        (checks.check_untouched, _InPlace()),
        (lambda metric: checks.check_range(metric, *checks.case(metric, 8)), _Positive()),
    ],
)
def test_checks_reject_wrong_metrics(check, wrong: Metric) -> None:
    check_passes = True
    try:
        check(wrong)
    except AssertionError:
        check_passes = False
    assert not check_passes
