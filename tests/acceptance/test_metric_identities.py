"""Acceptance checks M: what the numbers of a sweep must be, with both executors.

A full patch (the embedding at all positions) makes the corrupted run the clean one; an idle one (the last layer's
residual stream anywhere but where the answer is read) leaves it as it is.
"""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import torch

from engramscope import patch
from engramscope.engine.executor import Kind
from engramscope.locate.experiment import Experiment
from engramscope.locate.rows import recovery_of
from engramscope.metrics import get_metric
from engramscope.metrics._base import Target
from engramscope.models import Model
from engramscope.pairs import Pair
from engramscope.results.schema import Frame
from tests.acceptance.setting import (
    TOLERANCE,
    each_executor,
    each_family_and_executor,
    experiment_of,
    identical,
    numbers,
    sweep,
    text_model,
    text_pairs,
)
from tests.tiny_models import tiny_hf
from tests.tiny_study import ANSWERS, tokenizer

DIRECTIONS = ("denoise", "noise")


def full_patch(experiment: Experiment, direction: str = "denoise") -> Frame:
    return sweep(experiment, "embed", direction=direction)


def idle_patch(experiment: Experiment, direction: str = "denoise") -> Frame:
    last = experiment.model.anatomy.n_layers - 1
    return sweep(experiment, "resid_post", layers=[last], positions=["subject"], direction=direction)


@each_family_and_executor
def test_m1_recovery_is_0_for_the_corrupted_run_and_1_for_the_clean_one(family: str, kind: Kind) -> None:
    """M1: normalised LD is 0 for the corrupted and 1 for the clean run."""
    experiment = experiment_of(text_model(family), text_pairs(), kind)
    # what rounding leaves is divided by the gap of the pair
    tolerance = 1e-8 if family not in TOLERANCE else 1e-2
    for direction, full, idle in zip(DIRECTIONS, (1.0, 0.0), (0.0, 1.0), strict=True):
        identical(numbers(full_patch(experiment, direction), "recovery"), full, tolerance)
        identical(numbers(idle_patch(experiment, direction), "recovery"), idle, tolerance)
    table = full_patch(experiment)
    assert (numbers(table, "clean") - numbers(table, "corrupted")).abs().min() > 1e-3
    for clean, corrupted in zip(table["clean"], table["corrupted"], strict=True):
        assert (recovery_of(corrupted, clean, corrupted), recovery_of(clean, clean, corrupted)) == (0.0, 1.0)


@each_executor
def test_m1_pooled_over_pairs_it_is_0_and_1_too(kind: Kind) -> None:
    """M1, for the ratio of means that a summary shows."""
    model, pairs = text_model("gpt2"), text_pairs()
    options = {"corruption": "str", "resamples": 100, "executor": kind, "check": 0}
    full = patch(model, pairs, "embed", **options).summary
    idle = patch(model, pairs, "resid_post", layers=[2], positions=["subject"], **options).summary
    for table, wanted in ((full, 1.0), (idle, 0.0)):
        assert table["estimate_kind"].tolist() == ["recovery"]
        identical(numbers(table, "estimate"), wanted)


@each_family_and_executor
def test_m2_the_effect_on_a_probability_has_a_floor(family: str, kind: Kind) -> None:
    """M2: probability effect >= -P_*(r); the floor is where the patched probability is 0, and some come close."""
    experiment = experiment_of(text_model(family), text_pairs(), kind, ("prob",))
    tables = [sweep(experiment, site, heads="each") for site in ("z", "v")] + [sweep(experiment, "mlp_out")]
    table: Frame = pd.concat(tables, ignore_index=True)
    effect, floor = numbers(table, "effect"), -numbers(table, "corrupted")
    assert (effect >= floor).all()
    identical(effect - floor, numbers(table, "patched"), 1e-15)
    assert (effect < 0.5 * floor).any()


@each_family_and_executor
def test_m3_kl_of_a_full_patch_is_that_of_the_corrupted_run(family: str, kind: Kind) -> None:
    """M3: KL >= 0; KL effect of full patch = KL_*: all of it is taken away."""
    experiment = experiment_of(text_model(family), text_pairs(), kind, ("kl",))
    tolerance = TOLERANCE.get(family, 1e-9)
    full, idle = full_patch(experiment), idle_patch(experiment)
    corrupted = numbers(full, "corrupted")
    assert corrupted.min() > 1e-4
    identical(numbers(full, "patched"), 0.0, tolerance)
    identical(numbers(full, "effect"), -corrupted, tolerance)
    identical(numbers(idle, "patched"), corrupted, tolerance)
    identical(numbers(full_patch(experiment, "noise"), "effect"), corrupted, tolerance)
    some = sweep(experiment, "z", heads="each", positions=["last"])
    assert (numbers(some, "patched") >= 0).all()
    assert (numbers(some, "patched") > 0).any()


def test_m3_kl_is_0_exactly_where_the_distributions_are_equal() -> None:
    """M3: KL >= 0, 0 iff equal: the same logits, or the same but for a constant; the least change is seen."""
    g = torch.Generator().manual_seed(0)
    clean = 3 * torch.randn(20, 50, generator=g, dtype=torch.float64)
    targets = [Target(((0,),), (), row) for row in clean]

    def kl(logits: torch.Tensor) -> torch.Tensor:
        return get_metric("kl").score(logits.unsqueeze(1), targets)

    assert (kl(clean) == 0).all()
    identical(kl(clean + torch.linspace(-40, 40, 20, dtype=torch.float64)[:, None]), 0.0, 1e-12)
    for size in (1e-4, 1.0, 30.0):
        other = clean + size * torch.randn(20, 50, generator=g, dtype=torch.float64)
        log_p, log_q = clean.log_softmax(1), other.log_softmax(1)
        identical(kl(other), (log_p.exp() * (log_p - log_q)).sum(1), 1e-12)
        assert (kl(other) > 0).all()


@each_executor
def test_m3_the_clean_run_is_no_distance_from_itself_to_the_last_digit(kind: Kind) -> None:
    """M3: in float64 nothing on the way is rounded to float32."""
    experiment = experiment_of(text_model("gpt2"), text_pairs(2), kind, ("kl",))
    assert max(abs(line.clean["kl"]) for line in experiment.base.values()) <= 1e-15


@each_executor
def test_m4_a_constant_in_all_logits_changes_no_effect(kind: Kind) -> None:
    """M4, end to end: a bias of the head that is the same for all tokens; only the published sum sees it."""
    pairs = text_pairs(3, sentences=2)
    # two correct answers and one incorrect: sets of one size would not show it
    pairs = type(pairs)(tuple(_with_another_answer(pair) for pair in pairs), "uneven")
    words, metrics = tokenizer(), ("logit_diff", "prob", "kl", "log_prob", "mean_logit_diff", "sum_logit_diff")
    tables = []
    for constant in (0.0, 7.0):
        hf = tiny_hf("gptj", vocab_size=len(words)).double()
        with torch.no_grad():
            hf.lm_head.bias += constant
        experiment = experiment_of(Model.from_parts(hf, words, name="gptj", check=False), pairs, kind, metrics)
        tables.append(sweep(experiment, "mlp_out"))
    for metric in metrics:
        plain, moved = (table[table["metric"] == metric] for table in tables)
        by = 7.0 if metric == "sum_logit_diff" else 0.0
        for column in ("clean", "corrupted", "patched"):
            identical(numbers(moved, column), numbers(plain, column) + by, 1e-6)
        identical(numbers(moved, "effect"), numbers(plain, "effect"), 1e-6)


def _with_another_answer(pair: Pair) -> Pair:
    left = next(answer for answer in ANSWERS if answer not in (*pair.correct, *pair.incorrect))
    return replace(pair, correct=(*pair.correct, left))
