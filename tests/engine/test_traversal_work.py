"""How little a traversal computes: tokens are counted as they pass the modules of the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from engramscope.engine.executor import Executor
from engramscope.engine.plan import BaseRun, DerivedRun, Noise, Plan, Readout
from engramscope.models.hooks import input_tensor
from engramscope.models.model import Model
from tests.engine.comparing import compare, quickest_executor
from tests.engine.test_traversal import BASES, CLEAN, from_run, reads
from tests.tiny_models import tiny_hf


@cache
def own_model(family: str) -> Model:
    """A model of this file's own: whatever others leave on theirs would be counted."""
    return Model.from_parts(tiny_hf(family), name=family)


@cache
def own_executor(family: str) -> Executor:
    return quickest_executor(own_model(family))


@contextmanager
def counted(modules: dict[str, nn.Module]) -> Iterator[dict[str, int]]:
    """How many tokens go through each module inside the context."""
    counts = dict.fromkeys(modules, 0)

    def counter(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
            value = input_tensor(args, kwargs)
            assert value is not None
            counts[name] += value.numel() // value.shape[-1]

        return hook

    handles = [module.register_forward_hook(counter(name), with_kwargs=True) for name, module in modules.items()]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def tokens_through(family: str, plan: Plan, skip_identities: bool = True) -> list[int]:
    """Tokens that pass the MLP of each block, and the head."""
    model = own_model(family)
    inside = "transformer.h.{}.mlp" if family in ("gpt2", "bloom") else "model.layers.{}.mlp"
    paths = [inside.format(layer) for layer in range(model.anatomy.n_layers)]
    modules = {path: model.hf.get_submodule(path) for path in [*paths, model.anatomy.head]}
    executor = own_executor(family)
    with counted(modules) as counts:
        list(executor.execute(plan, skip_identities=skip_identities))
    return list(counts.values())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_shared_beginning_is_computed_once_and_the_last_block_only_where_it_is_read(family: str) -> None:
    n = len(CLEAN)
    assert tokens_through(family, Plan(BASES[:1], (), reads("clean"))) == [n, n, 1, 1]
    assert tokens_through(family, Plan(BASES, (), reads("clean", "corrupted"))) == [n + 3, n + 3, 2, 2]
    assert tokens_through(family, Plan(BASES, (), reads("clean", "corrupted", at=(1, 7)))) == [n + 3, n + 3, 3, 3]
    three = (*BASES, BaseRun("other", (*CLEAN[:3], 50, 51)))
    asked = (*reads("clean", "corrupted"), Readout("other", (4,)))
    assert tokens_through(family, Plan(three, (), asked)) == [n + 3 + 2, n + 3 + 2, 3, 3]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_noise_shares_what_comes_before_it(family: str) -> None:
    n = len(CLEAN)
    noise = tuple(BaseRun(f"n{d}", CLEAN, Noise((4, 3), torch.full((2, 32), 0.1 + d))) for d in range(3))
    plan = Plan((BASES[0], *noise), (), reads("clean", "n0", "n1", "n2"))
    assert tokens_through(family, plan) == [n + 3 * (n - 3), n + 3 * (n - 3), 4, 4]


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom"])
def test_equal_prompts_are_run_once(family: str) -> None:
    again = BaseRun("again", CLEAN)
    once = tokens_through(family, Plan(BASES[:1], (), reads("clean")))
    twice = Plan((BASES[0], again), (), reads("clean", "again"))
    assert tokens_through(family, twice)[:2] == once[:2]
    compare(own_model(family), twice, own_executor(family))


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom"])
def test_a_run_is_born_at_its_first_patched_layer(family: str) -> None:
    bases_only = tokens_through(family, Plan(BASES, (), reads("clean", "corrupted")))
    for layer in range(3):
        derived = tuple(
            DerivedRun(f"{position}", "corrupted", (from_run("clean", "resid_pre", layer, (position,)),))
            for position in (5, 6)
        )
        asked = reads("clean", "corrupted", "5", "6")
        counts = tokens_through(family, Plan(BASES, derived, asked))
        assert counts[:layer] == bases_only[:layer]
        if layer < 2 and family != "bloom":  # from the first patched position on, and not before
            assert counts[layer:2] == [count + 3 + 2 for count in bases_only[layer:2]]
        if family != "bloom":
            assert counts[2:] == [4, 4]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_nobody_looks_at_is_not_computed(family: str) -> None:
    late = DerivedRun("late", "corrupted", (from_run("clean", "resid_post", 1, (6,)),))
    unread = DerivedRun("unread", "corrupted", (from_run("clean", "resid_pre", 0, (5,)),))
    after = DerivedRun("after", "corrupted", (from_run("clean", "resid_pre", 0, (6,)),))
    plan = Plan(BASES, (late, unread, after), (*reads("late"), Readout("after", (4,))))
    counts = tokens_through(family, plan)
    n = len(CLEAN)
    assert counts[0] <= n + 3
    assert counts[1] <= n + 3
    assert counts[2:] == [2, 2]
    compare(own_model(family), plan, own_executor(family))


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom"])
def test_a_source_that_nobody_looks_at_is_not_run(family: str) -> None:
    after = DerivedRun("after", "corrupted", (from_run("clean", "resid_pre", 1, (6,)),))  # read before it differs
    counts = tokens_through(family, Plan(BASES, (after,), (Readout("after", (4,)),)))
    assert counts[0] <= len(CLEAN)
    compare(own_model(family), Plan(BASES, (after,), (Readout("after", (4,)),)), own_executor(family))


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom"])
def test_a_patch_with_the_same_value_costs_nothing_and_changes_nothing(family: str) -> None:
    shared = DerivedRun("shared", "corrupted", (from_run("clean", "mlp_out", 1, (2, 4)),))
    own = DerivedRun("own", "clean", (from_run("clean", "z", 0, (5,), (1,)), from_run("clean", "k", 1, (6,))))
    plan = Plan(BASES, (shared, own), reads("clean", "corrupted", "shared", "own"))
    bases_only = tokens_through(family, Plan(BASES, (), reads("clean", "corrupted")))
    assert tokens_through(family, plan)[:2] == bases_only[:2]
    assert sum(tokens_through(family, plan, skip_identities=False)) > sum(bases_only)
    model, executor = own_model(family), own_executor(family)
    compare(model, plan, executor, tolerance=1e-5)
    compare(model, plan, executor, skip_identities=False)
