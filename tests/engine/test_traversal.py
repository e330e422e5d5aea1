"""The traversal executor on plans made by hand: every site, every shape of prompt, and how little it computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from engramscope.engine.executor import make_executor
from engramscope.engine.plan import BaseRun, Constant, DerivedRun, FromRun, Noise, Patch, Plan, Readout, Source
from engramscope.models import Model
from engramscope.models.hooks import input_tensor
from tests.engine.comparing import compare, reference_logits
from tests.engine.plans import places_of
from tests.tiny_models import FAMILIES, tiny_model

PACKED = (
    "gpt2", "gptj", "gpt_neox", "gpt_neox_sequential", "llama", "llama_mha", "llama_mqa", "mistral", "mixtral", "qwen2",
    "qwen3", "gemma2", "gemma3", "phi", "phi_gqa", "phi3", "opt", "olmo2", "stablelm", "stablelm_parallel", "cohere2",
    "gpt_oss",
)  # fmt: skip
ROWS = ("gpt_neo", "bloom", "falcon", "falcon_mha", "falcon_sequential", "falcon_new", "falcon_alibi")
#: attention sees the last few tokens only, in some layers or in all
WINDOWED = ("mistral", "gemma2", "gemma3", "cohere2", "gpt_oss", "gpt_neo")
CLEAN = (13, 11, 25, 17, 42, 19, 60, 33)
CORRUPTED = (13, 11, 25, 17, 42, 81, 54, 33)  # differs at 5 and 6
LAST = len(CLEAN) - 1
BASES = (BaseRun("clean", CLEAN), BaseRun("corrupted", CORRUPTED))


@cache
def executor_of(family: str, memory_gb: float = 4.0) -> Any:
    return make_executor(tiny_model(family), memory_gb=memory_gb)


def from_run(run: str, site: str, layer: int | None, positions: Sequence[int], heads: Any = None) -> Patch:
    return Patch(site, layer, tuple(positions), FromRun(run, tuple(positions)), heads)


def reads(*runs: str, at: tuple[int, ...] = (LAST,)) -> tuple[Readout, ...]:
    return tuple(Readout(run, at) for run in runs)


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
    model = tiny_model(family)
    inside = "transformer.h.{}.mlp" if family in ("gpt2", "bloom") else "model.layers.{}.mlp"
    paths = [inside.format(layer) for layer in range(model.anatomy.n_layers)]
    modules = {path: model.hf.get_submodule(path) for path in [*paths, model.anatomy.head]}
    executor = executor_of(family)
    with counted(modules) as counts:
        list(executor.execute(plan, skip_identities=skip_identities))
    return list(counts.values())


# ---------------------------------------------------------------------------------------------------------- ways


def test_every_family_has_a_way() -> None:
    assert {*PACKED, *ROWS} == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_goes_the_fastest_way_that_it_can(family: str) -> None:
    executor = executor_of(family)
    assert executor.kind == "traversal"
    assert executor.way == ("packed" if family in PACKED else "rows"), executor.note


def test_the_reference_executor_can_be_asked_for() -> None:
    model = tiny_model("gpt2")
    executor = make_executor(model, kind="reference")
    assert (executor.kind, executor.way) == ("reference", "reference")
    plan = Plan(BASES, (DerivedRun("d", "corrupted", (from_run("clean", "z", 1, (5,)),)),), reads("d"))
    assert compare(model, plan, executor, tolerance=0.0) == 0.0
    columns = {"d": (4, 2)}
    assert compare(model, plan, executor, columns=columns, tolerance=0.0) == 0.0


# ------------------------------------------------------------------------------------------------- sites and shapes


@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_layer_head_and_module_path(family: str) -> None:
    model = tiny_model(family)
    places = places_of(model)
    derived = []
    for place in (*(place for named in places.named.values() for place in named), *places.paths):
        for heads in (None,) if place.heads is None else (None, *((head,) for head in range(place.heads))):
            given: list[tuple[str, str, Source]] = [
                ("corrupted", "clean", FromRun("clean", (6, 3))),
                ("clean", "zero", Constant(torch.zeros(()))),
            ]
            for base, name, source in given:
                patch = Patch(place.site, place.layer, (6, 3), source, heads)
                derived.append(DerivedRun(f"{name} {place.site} {place.layer} {heads}", base, (patch,)))
    runs = [run.id for run in derived]
    plan = Plan(BASES, tuple(derived), (*reads(*runs), *reads("clean", at=(6, 0)), *reads("corrupted")))
    compare(model, plan, executor_of(family))
    assert len(runs) > 100
    right = reference_logits(model, plan)
    moved = [run.id for run in derived if float((right[run.id] - right[run.base][0]).abs().max()) > 1e-3]
    assert len(moved) > len(runs) / 2, "patches must do something for this to be a test"


def long_plan(model: Model, length: int) -> Plan:
    """Prompts longer than any window, patched where the window ends and where it does not reach."""
    tokens = torch.randint(3, 99, (length,), generator=torch.Generator().manual_seed(4)).tolist()
    changed = list(tokens)
    changed[2], changed[length - 3] = 70, 71
    bases = (
        BaseRun("clean", tuple(tokens)),
        BaseRun("corrupted", tuple(changed)),
        BaseRun("longer", (*tokens[: length - 2], 80, 81, 82, 83, 84)),
        BaseRun("shorter", tuple(tokens[:5])),
    )
    sites = [site for site in ("resid_pre", "attn_out", "q", "k", "v", "z", "pattern") if site in model.sites]
    derived = [
        DerivedRun(f"{site} {layer} {at}", "corrupted", (from_run("clean", site, layer, at),))
        for site in sites
        for layer in range(model.anatomy.n_layers)
        for at in ((1,), (length - 5,), (length - 4, length - 2), (2, 3, 4))
    ]
    second = [
        DerivedRun(f"after {run.id}", "longer", (from_run(run.id, "mlp_out", 2, (2, length - 1)),))
        for run in derived[::5]
    ]
    everything = (length - 1, 0, length - 4, 3)
    asked = [Readout(run.id, everything) for run in (*bases[:3], *derived, *second)]
    return Plan(bases, (*derived, *second), (*asked, Readout("shorter", (4, 0))))


@pytest.mark.parametrize("length", [9, 14])
@pytest.mark.parametrize("family", WINDOWED)
def test_prompts_longer_than_a_sliding_window(family: str, length: int) -> None:
    model = tiny_model(family)
    plan = long_plan(model, length)
    compare(model, plan, executor_of(family))
    compare(model, plan, executor_of(family, 1e-4))


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_of_one_token(family: str) -> None:
    model = tiny_model(family)
    bases = (BaseRun("a", (5,)), BaseRun("b", (9,)), BaseRun("again", (5,)), BaseRun("long", (5, 9, 7)))
    sites = [site for site in ("resid_mid", "z", "k", "pattern", "mlp_out") if site in model.sites]
    derived = tuple(
        DerivedRun(f"{site} {source}", "a", (from_run(source, site, 1, (0,)),))
        for site in sites
        for source in (("b",) if site == "pattern" else ("b", "long"))
    )
    asked = reads("a", "b", "again", *(run.id for run in derived), at=(0,))
    plan = Plan(bases, derived, (*asked, *reads("long", at=(2, 0))))
    compare(model, plan, executor_of(family))
    compare(model, Plan(bases[:1], (), reads("a", at=(0,))), executor_of(family))


@pytest.mark.parametrize("memory_gb", [4.0, 1e-3])
@pytest.mark.parametrize("family", ["gpt2", "llama_mqa", "gptj", "bloom"])
def test_two_hundred_runs_at_once(family: str, memory_gb: float) -> None:
    model = tiny_model(family)
    noise = [
        BaseRun(
            f"noise {draw}", CLEAN, Noise((2, 3), torch.randn(2, 32, generator=torch.Generator().manual_seed(draw)))
        )
        for draw in range(3)
    ]
    derived = tuple(
        DerivedRun(f"{site} {layer} {position} {base.id}", base.id, (from_run("clean", site, layer, (position,)),))
        for site in ("resid_post", "attn_out", "mlp_out")
        for layer in range(3)
        for position in range(2, len(CLEAN))
        for base in (*noise, BASES[1])
    )
    assert len(derived) >= 200
    plan = Plan((*BASES, *noise), derived, reads(*(run.id for run in derived), *(run.id for run in noise)))
    compare(model, plan, executor_of(family, memory_gb))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gptj", "bloom"])
def test_a_plan_may_be_almost_empty(family: str) -> None:
    model, executor = tiny_model(family), executor_of(family)
    nothing = DerivedRun("nothing", "clean", ())
    nowhere = DerivedRun("nowhere", "corrupted", (Patch("z", 1, (), FromRun("clean", ())),))
    assert list(executor.execute(Plan(BASES))) == []
    assert list(executor.execute(Plan(BASES, (nothing, nowhere)))) == []
    assert list(executor.execute(Plan(()))) == []
    compare(model, Plan(BASES, (nothing, nowhere), reads("nowhere", "nothing", at=(3, 3, 0))), executor)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gptj", "bloom", "falcon_sequential"])
def test_patches_of_one_run_that_meet(family: str) -> None:
    """At one site the later patch wins; a site between others is read and written where it stands."""
    model = tiny_model(family)
    whole = tuple(range(len(CLEAN)))
    zero = Constant(torch.zeros(()))
    runs = {
        "the later wins": [from_run("clean", "z", 1, (5, 6)), Patch("z", 1, (6,), zero, (1,))],
        "all heads after one": [Patch("z", 1, (6,), zero, (1,)), from_run("clean", "z", 1, (6,))],
        "q k v": [from_run("clean", site, 1, (5, 6), (0,)) for site in "kqv"],
        "pattern over q": [from_run("clean", "q", 1, whole), from_run("clean", "pattern", 1, (6,), (2,))],
        "z over pattern": [from_run("clean", "pattern", 1, whole), from_run("clean", "z", 1, (6,), (0,))],
        "resid_mid over attn_out": [from_run("clean", "resid_mid", 1, (6,)), from_run("clean", "attn_out", 1, (5, 6))],
        "resid_mid over resid_pre": [from_run("clean", "resid_mid", 1, (6,)), from_run("clean", "resid_pre", 1, whole)],
        "resid_post over all": [from_run("clean", "resid_post", 1, (6,)), from_run("clean", "mlp_out", 1, whole)],
        "logits over the end": [from_run("clean", "final_norm", None, (7,)), from_run("clean", "logits", None, (6,))],
        "embed over noise": [from_run("clean", "embed", None, (2,))],
    }
    noisy = BaseRun("noisy", CORRUPTED, Noise((2, 5), torch.full((2, 32), 0.5)))
    derived, readers = [], []
    for name, patches in runs.items():
        if all(patch.site in model.sites for patch in patches):
            derived.append(DerivedRun(name, "noisy", tuple(patches)))
            for site in ("attn_out", "resid_mid", "z", "resid_post", "k"):
                if site in model.sites:  # what a reader sees is what the patched run holds there
                    readers.append(DerivedRun(f"{site} of {name}", "clean", (from_run(name, site, 1, (5, 6)),)))
    asked = reads(*(run.id for run in (*derived, *readers)), at=(7, 6, 5))
    compare(model, Plan((*BASES, noisy), (*derived, *readers), asked), executor_of(family))


# ------------------------------------------------------------------------------------------------ what is computed


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
    compare(tiny_model(family), twice, executor_of(family))


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
    compare(tiny_model(family), plan, executor_of(family))


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom"])
def test_a_patch_with_the_same_value_costs_nothing_and_changes_nothing(family: str) -> None:
    shared = DerivedRun("shared", "corrupted", (from_run("clean", "mlp_out", 1, (2, 4)),))
    own = DerivedRun("own", "clean", (from_run("clean", "z", 0, (5,), (1,)), from_run("clean", "k", 1, (6,))))
    plan = Plan(BASES, (shared, own), reads("clean", "corrupted", "shared", "own"))
    bases_only = tokens_through(family, Plan(BASES, (), reads("clean", "corrupted")))
    assert tokens_through(family, plan)[:2] == bases_only[:2]
    assert sum(tokens_through(family, plan, skip_identities=False)) > sum(bases_only)
    model, executor = tiny_model(family), executor_of(family)
    compare(model, plan, executor, tolerance=1e-5)
    compare(model, plan, executor, skip_identities=False)
