"""Checks that every metric must pass, as functions of a metric, so that they can be shown to reject wrong ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from engramscope.metrics._base import Metric, Target

VOCAB = 23
POSITIONS = 3


def case(metric: Metric, rows: int, seed: int = 0, scale: float = 3.0) -> tuple[Tensor, list[Target]]:
    """Random float64 logits and targets of the form that the metric asks for; set sizes differ from row to row."""
    g = torch.Generator().manual_seed(seed)
    whole = metric.scores == "whole_answer"
    logits = scale * torch.randn(rows, POSITIONS if whole else 1, VOCAB, generator=g, dtype=torch.float64)
    targets = []
    for row in range(rows):
        ids = torch.randperm(VOCAB, generator=g).tolist()
        clean = torch.randn(VOCAB, generator=g, dtype=torch.float64)
        if whole:
            correct = (tuple(ids[:POSITIONS]),)
        else:
            correct = _answers(ids[:8], 1 + row % 3, 1 if metric.single_token else 1 + row % 2)
        incorrect = _answers(ids[8:], 1 + (row + 1) % 3, 1 if metric.single_token else 1 + (row + 1) % 2)
        targets.append(Target(correct, incorrect, clean if metric.needs_clean else None))
    return logits, targets


def check_per_item(metric: Metric) -> None:
    """Rows do not see one another: a permutation permutes, a batch is its rows, an empty batch is empty."""
    logits, targets = case(metric, 7)
    scores = metric.score(logits, targets)
    assert scores.shape == (7,)
    order = [3, 0, 6, 1, 5, 2, 4]
    permuted = metric.score(logits[order], [targets[i] for i in order])
    torch.testing.assert_close(permuted, scores[order], rtol=1e-12, atol=1e-12)
    alone = torch.cat([metric.score(logits[i : i + 1], targets[i : i + 1]) for i in range(7)])
    torch.testing.assert_close(alone, scores, rtol=1e-12, atol=1e-12)
    assert metric.score(logits[:0], []).shape == (0,)


def check_shift(metric: Metric) -> None:
    """A constant added to all logits of a position changes nothing, or as much as the metric says that it does."""
    logits, targets = case(metric, 6)
    shift = torch.linspace(-50, 80, 6 * logits.shape[1], dtype=torch.float64).reshape(6, -1, 1)
    wanted = metric.score(logits, targets)
    if not metric.shift_invariant:
        more = [len(set(target.correct)) - len(set(target.incorrect)) for target in targets]
        assert any(more), "sets of one size would not show it"
        wanted = wanted + torch.tensor(more) * shift[:, 0, 0]
    torch.testing.assert_close(metric.score(logits + shift, targets), wanted, rtol=1e-9, atol=1e-9)


def check_signed(metric: Metric) -> None:
    """Random changes of the clean run's logits raise and lower a signed metric, and never lower one that is not."""
    logits, targets = case(metric, 60)
    clean = [replace(target, clean_logits=row[0]) for target, row in zip(targets, logits, strict=True)]
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    change = metric.score(logits + noise, clean) - metric.score(logits, clean)
    lower, higher = float((change < 0).double().mean()), float((change > 0).double().mean())
    expected = (0.2, 0.2) if metric.signed else (0.0, 1.0)
    assert (min(lower, 0.2), min(higher, 0.2)) == expected if metric.signed else (lower, higher) == expected


def check_range(metric: Metric, logits: Tensor, targets: Sequence[Target]) -> None:
    """Finite and inside the declared range."""
    scores = metric.score(logits, list(targets)).double()
    low, high = metric.range
    assert bool(torch.isfinite(scores).all()), scores
    assert bool(((scores >= low) & (scores <= high)).all()), (scores, metric.range)


def check_dtype(metric: Metric) -> None:
    """At least float32 out, float64 stays, and a narrow input is scored as its own values in float32."""
    logits, targets = case(metric, 5)
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        narrow = logits.to(dtype)
        scores = metric.score(narrow, targets)
        assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(
            scores.double(), metric.score(narrow.double(), targets).double(), rtol=2e-6, atol=2e-6
        )


def check_direction(metric: Metric) -> None:
    """Moving the logits towards the correct answer (or towards the clean run) moves the score the declared way."""
    logits, targets = case(metric, 6, seed=5)
    for row, target in enumerate(targets):
        for position, token in _correct_places(metric, target):
            logits[row, position, token] = -4.0
    better = logits.clone()
    for row, target in enumerate(targets):
        if target.clean_logits is not None:
            better[row, 0] = (logits[row, 0] + target.clean_logits) / 2
        else:
            for position, token in _correct_places(metric, target):
                better[row, position, token] += 4.0
    change = metric.score(better, targets) - metric.score(logits, targets)
    assert bool(((change > 0) if metric.higher_is_better else (change < 0)).all()), change


def check_untouched(metric: Metric) -> None:
    """Scoring changes neither the logits nor the clean run's logits."""
    logits, targets = case(metric, 4)
    before = logits.clone()
    cleans = [None if t.clean_logits is None else t.clean_logits.clone() for t in targets]
    metric.score(logits, targets)
    torch.testing.assert_close(logits, before, rtol=0, atol=0)
    for target, clean in zip(targets, cleans, strict=True):
        if clean is not None and target.clean_logits is not None:
            torch.testing.assert_close(target.clean_logits, clean, rtol=0, atol=0)


def naive(name: str, logits: list[list[float]], target: Target) -> float:
    """What the metric's formula says, in plain Python floats; `logits` is [positions][vocab]."""
    first = logits[0]
    if name == "logit_diff":
        return max(first[a[0]] for a in target.correct) - max(first[a[0]] for a in target.incorrect)
    if name == "mean_logit_diff":
        right = {t for a in target.correct for t in a}
        wrong = {t for a in target.incorrect for t in a}
        return math.fsum(first[t] for t in right) / len(right) - math.fsum(first[t] for t in wrong) / len(wrong)
    if name == "prob":
        return math.fsum(_softmax(first)[t] for t in {a[0] for a in target.correct})
    if name == "log_prob":
        return math.log(math.fsum(_softmax(first)[t] for t in {a[0] for a in target.correct}))
    if name == "rank":
        right = {a[0] for a in target.correct}
        best = max(first[t] for t in right)
        return float(sum(1 for v, x in enumerate(first) if v not in right and x >= best))
    if name == "kl":
        assert target.clean_logits is not None
        p, q = _softmax(target.clean_logits.tolist()), _softmax(first)
        return math.fsum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)
    assert name == "answer_log_prob", name
    return math.fsum(math.log(_softmax(x)[t]) for x, t in zip(logits, target.correct[0], strict=True))


def _softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    total = math.fsum(math.exp(x - top) for x in logits)
    return [math.exp(x - top) / total for x in logits]


def _answers(ids: list[int], count: int, length: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(ids[i * length : (i + 1) * length]) for i in range(count))


def _correct_places(metric: Metric, target: Target) -> list[tuple[int, int]]:
    if metric.scores == "whole_answer":
        return list(enumerate(target.correct[0]))
    return [(0, token) for answer in target.correct for token in answer]
