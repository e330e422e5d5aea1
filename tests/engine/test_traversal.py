"""The traversal executor on plans made by hand: every site, every shape of prompt, patches that meet."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch

from engramscope.engine.executor import make_executor
from engramscope.engine.plan import BaseRun, Constant, DerivedRun, FromRun, Noise, Patch, Plan, Readout, Source
from engramscope.models import Model
from tests.engine.comparing import compare, quickest_executor, reference_logits
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
    return quickest_executor(tiny_model(family), memory_gb)


def from_run(run: str, site: str, layer: int | None, positions: Sequence[int], heads: Any = None) -> Patch:
    return Patch(site, layer, tuple(positions), FromRun(run, tuple(positions)), heads)


def reads(*runs: str, at: tuple[int, ...] = (LAST,)) -> tuple[Readout, ...]:
    return tuple(Readout(run, at) for run in runs)


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


@pytest.mark.parametrize("family", ["gpt2", "llama", "gptj", "bloom"])
def test_runs_without_an_effect_are_read_where_each_of_them_asks(family: str) -> None:
    model, executor = tiny_model(family), executor_of(family)
    runs = [DerivedRun(f"{number}", "clean", ()) for number in range(4)]
    at = [(2, 4), (1,), (4, 2), (5, 6, 3)]
    plan = Plan(BASES, tuple(runs), tuple(Readout(run.id, places) for run, places in zip(runs, at, strict=True)))
    compare(model, plan, executor)
    compare(model, plan, executor, columns={"0": (3, 4), "1": (9,), "2": (4, 3), "3": (9, 1)})


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gptj", "bloom", "falcon_alibi"])
@pytest.mark.parametrize("zero", [True, False])
def test_weights_are_given_for_prompts_of_different_lengths(family: str, zero: bool) -> None:
    model = tiny_model(family)
    n_heads, derived, asked = model.anatomy.n_heads, [], []
    prompts = {"long": (*CLEAN, 50, 51, 52), "middle": CLEAN[2:], "short": CLEAN[:3]}
    for name, tokens in prompts.items():
        for first in (0, len(tokens) - 2):
            at = tuple(range(first, len(tokens)))
            rows = torch.rand(len(at), n_heads, len(tokens), generator=torch.Generator().manual_seed(first))
            rows = rows * (torch.arange(len(tokens)) <= torch.tensor(at)[:, None])[:, None, :]
            given = torch.zeros(()) if zero else rows / rows.sum(-1, keepdim=True)
            for layers in ((0,), (1,), (2,), (0, 1), (1, 2)):  # runs that are born here pass beside older ones
                patches = tuple(Patch("pattern", layer, at, Constant(given), (2,)) for layer in layers)
                derived.append(DerivedRun(f"{name} {first} {layers}", name, patches))
                asked.append(Readout(derived[-1].id, (len(tokens) - 1, len(tokens) - 2)))
    plan = Plan(tuple(BaseRun(name, tokens) for name, tokens in prompts.items()), tuple(derived), tuple(asked))
    compare(model, plan, executor_of(family))
    compare(model, plan, executor_of(family, 1e-4))


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom"])
def test_a_patch_is_seen_under_every_name_of_its_place(family: str) -> None:
    model = tiny_model(family)
    names = {
        "gpt2": [("v", "transformer.h.1.attn.c_attn"), ("mlp_out", "transformer.h.1.mlp")],
        "llama": [("q", "model.layers.1.self_attn.q_proj"), ("resid_post", "model.layers.1")],
        "bloom": [("k", "transformer.h.1.self_attention.query_key_value"), ("resid_post", "transformer.h.1")],
    }
    derived: list[DerivedRun] = []
    for number, (site, path) in enumerate(names[family]):
        by_site, by_path = from_run("clean", site, 1, (5,)), from_run("clean", path, None, (5,))
        derived += [
            DerivedRun(f"site {number}", "corrupted", (by_site,)),
            DerivedRun(f"path {number}", "corrupted", (by_path,)),
            DerivedRun(f"reads site {number}", "corrupted", (from_run(f"path {number}", site, 1, (5, 6)),)),
            DerivedRun(f"reads path {number}", "corrupted", (from_run(f"site {number}", path, None, (5, 6)),)),
        ]
    for one in (derived, derived[::-1]):  # in either order of the names
        plan = Plan(BASES, tuple(sorted(one, key=lambda run: "reads" in run.id)), reads(*(run.id for run in derived)))
        compare(model, plan, executor_of(family))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gptj", "gpt_neox"])
def test_what_lies_before_a_replaced_output_can_still_be_read(family: str) -> None:
    """A module whose whole output is replaced may be left out, but not where somebody looks inside it."""
    model = tiny_model(family)
    whole = tuple(range(len(CLEAN)))
    inside = {"attn_out": ("q", "k", "v", "z", "pattern"), "mlp_out": ("mlp_act", "attn_out", "z")}
    together: list[DerivedRun] = []
    for site, others in inside.items():
        for layer in range(3):
            replaced = DerivedRun(
                f"{site} {layer}", "corrupted", (Patch(site, layer, whole, Constant(torch.zeros(()))),)
            )
            readers = tuple(
                DerivedRun(f"{other} of {replaced.id}", "clean", (from_run(replaced.id, other, layer, (6,)),))
                for other in others
            )
            together += [replaced, *readers]
            for reader in readers:
                compare(model, Plan(BASES, (replaced, reader), reads(reader.id)), executor_of(family))
    compare(model, Plan(BASES, tuple(together), reads(*(run.id for run in together))), executor_of(family))


@pytest.mark.parametrize("family", ["llama", "llama_mqa", "mistral", "gpt2"])
def test_prompts_that_share_nothing_are_patched_from_their_first_token(family: str) -> None:
    model = tiny_model(family)
    bases = tuple(BaseRun(f"b{number}", tuple(3 + (7 * number + k) % 90 for k in range(6))) for number in range(4))
    derived = tuple(
        DerivedRun(f"{site} {layer} {base.id} {number}", base.id, (Patch(site, layer, (0,), FromRun("b0", (0,))),))
        for site in ("pattern", "v", "resid_pre", "z")
        for layer in range(3)
        for base in bases[1:]
        for number in range(3)
    )
    compare(model, Plan(bases, derived, reads(*(run.id for run in derived), at=(5, 0))), executor_of(family))


def test_a_plan_that_one_traversal_cannot_follow_is_finished_by_whole_forwards_and_said() -> None:
    model = tiny_model("gpt2")
    clean, other = BaseRun("clean", CLEAN), BaseRun("other", CLEAN[::-1])
    ahead = DerivedRun("ahead", "clean", (Patch("pattern", 1, (2,), FromRun("other", (5,))),))
    plain = DerivedRun("plain", "clean", (Patch("resid_post", 0, (3,), FromRun("other", (3,))),))
    plan = Plan((clean, other), (plain, ahead), tuple(Readout(run, (4,)) for run in ("plain", "ahead", "other")))
    for memory in (4.0, 1e-6):
        executor = make_executor(model, memory_gb=memory)
        compare(model, plan, executor)
        assert any("later token" in why for why in executor.fallbacks)
