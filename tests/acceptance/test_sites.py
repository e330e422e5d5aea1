"""Acceptance checks N1 and N2: sites that hold the same thing, and nodes that hold nothing of the prompt."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch

from engramscope.engine.executor import Kind
from engramscope.engine.plan import Constant, DerivedRun, Patch
from tests.acceptance.setting import (
    CLEAN,
    CORRUPTED,
    EVERYWHERE,
    FAMILIES,
    TOLERANCE,
    Setting,
    each_executor,
    each_family_and_executor,
    experiment_of,
    identical,
    numbers,
    places_of,
    setting_of,
    sweep,
    taken,
    text_model,
    text_pairs,
    values_of,
)
from tests.planted import planted_model, value_pairs

#: what makes up z, and the parts of which one is missing
WHOLE = ("q", "k", "v"), ("pattern", "v")
PART = tuple(part for whole in WHOLE for part in combinations(whole, len(whole) - 1))


def heads_of_group(setting: Setting, site: str, group: int | None) -> tuple[int, ...] | None:
    """The heads of a site that belong to a key/value head; None for all."""
    if group is None:
        return None
    a = setting.model.anatomy
    share = a.n_heads // a.n_kv_heads
    return (group,) if site in ("k", "v") else tuple(range(group * share, (group + 1) * share))


def jointly(setting: Setting, sites: tuple[str, ...], layer: int, group: int | None) -> DerivedRun:
    patches = tuple(taken("clean", site, layer, heads=heads_of_group(setting, site, group)) for site in sites)
    return DerivedRun(f"{sites} {layer} {group}", "corrupted", patches)


def test_n1_q_k_v_together_are_z_and_pattern_with_v_is_z(setting: Setting) -> None:
    """N1: q+k+v patched == z patched == pattern+v patched: of all heads, and of each group of queries with its key."""
    groups = (None, *range(setting.model.anatomy.n_kv_heads))
    where = [(layer, group) for layer in range(setting.model.anatomy.n_layers) for group in groups]
    every = [jointly(setting, sites, *at) for at in where for sites in (("z",), *WHOLE, *PART)]
    found = setting.run(every)
    for layer, group in where:
        z = found[f"{('z',)} {layer} {group}"]
        for sites in WHOLE:
            setting.same(found[f"{sites} {layer} {group}"], z, f"{sites} of layer {layer}, group {group}")
        for sites in PART:
            if group is None:  # of one group alone the difference may be small
                setting.differ(found[f"{sites} {layer} {group}"], z, f"{sites} of layer {layer}")


@pytest.mark.parametrize("family", FAMILIES)
def test_n1_the_rows_of_a_pattern_sum_to_1(family: str) -> None:
    """N1 needs weights: rows of a pattern sum to 1 and look at nothing that comes later."""
    model = setting_of(family, "reference").model
    for layer in range(model.anatomy.n_layers):
        for weights in values_of(model, ("pattern", layer)).values():
            identical(weights.double().sum(-1), 1.0, 1e-6)  # families take the softmax in float32
            assert weights.triu(1).abs().max() == 0


@each_family_and_executor
@pytest.mark.parametrize("corruption", ["mean", "resample"])
def test_n2_ablating_a_node_that_is_constant_over_the_set_is_a_no_op(family: str, kind: Kind, corruption: str) -> None:
    """N2: mean ablation of a constant node is a no-op; so is resampling it.

    The prompts begin with the same words: up to the first word that differs, every node is constant over the set.
    """
    experiment = experiment_of(text_model(family), text_pairs(4, sentences=1), kind, corruption=corruption)
    prompts = [pair.tokens.clean.ids for pair in experiment.prepared]
    shared = next(at for at, tokens in enumerate(zip(*prompts, strict=True)) if len(set(tokens)) > 1)
    assert shared == (3 if family == "gpt2" else 4)
    declared: dict[str, Any] = {"direction": "noise", "layers": [0, 2]}
    for site in ("z", "mlp_out", "resid_post", "pattern"):
        constant = sweep(experiment, site, positions=list(range(shared)), **declared)
        identical(numbers(constant, "effect"), 0.0, TOLERANCE.get(family, 1e-9))
        varying = sweep(experiment, site, positions=[shared], **{**declared, "layers": [0]})
        assert numbers(varying, "effect").abs().max() > 1e-3, "what is not constant is changed"


@each_executor
@pytest.mark.parametrize("corruption", ["zero", "mean", "resample"])
def test_n2_a_head_that_writes_nothing_can_be_ablated(kind: Kind, corruption: str) -> None:
    """N2 on the planted model, where L0H1 is zero: no ablation of it has an effect, at any position."""
    options = {"mean": {"positions": "all"}}.get(corruption, {})
    model = planted_model(torch.float64)
    experiment = experiment_of(model, value_pairs(5), kind, corruption=corruption, options=options)
    for positions in ("all", "each"):
        table = sweep(experiment, "z", heads="each", positions=positions, direction="noise")
        empty = table[(table["layer"] == 0) & (table["head"] == 1)]
        identical(numbers(empty, "effect"), 0.0)
        assert numbers(table[table["layer"] == 1], "effect").abs().max() > 1.0


def test_n2_without_heads_and_mlps_only_the_last_token_and_its_position_are_left(setting: Setting) -> None:
    """Zero ablation of all heads and MLPs leaves logits that depend on the token and the position alone."""
    zero = Constant(torch.zeros(()))
    patches = tuple(
        Patch(site, layer, EVERYWHERE, zero)
        for site, layer, heads in places_of(setting.model, "attn_out", "mlp_out")
        if heads is None
    )
    found = setting.run((DerivedRun("of clean", "clean", patches), DerivedRun("of corrupted", "corrupted", patches)))
    for at in EVERYWHERE:
        judge = setting.same if CLEAN[at] == CORRUPTED[at] else setting.differ
        judge(found["of clean"][at], found["of corrupted"][at], f"position {at}")
    setting.differ(setting.plain("clean")[-1], setting.plain("corrupted")[-1], "with heads and MLPs")
