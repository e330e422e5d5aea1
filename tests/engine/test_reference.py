"""The reference executor against patching written independently, for every family and every site."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from engramscope.engine.plan import BaseRun, Constant, DerivedRun, FromRun, Noise, Patch, Plan, Readout
from engramscope.engine.reference import _touches_head, execute, record
from engramscope.models import Model
from engramscope.models.site import GLOBAL_SITES, HEAD_SITES
from tests.engine.plain_hooks import PlainHooks
from tests.models.known_paths import KNOWN
from tests.tiny_models import FAMILIES, tiny_hf, tiny_model

CLEAN, CORRUPTED = (3, 11, 25, 7, 42, 9, 60), (3, 11, 31, 7, 5, 9, 60)
LAST = len(CLEAN) - 1


def logits_of(model, plan: Plan, max_tokens: int = 2048) -> dict[str, torch.Tensor]:
    found = {}
    for answered in execute(model, plan, max_tokens):
        found.update(zip(answered.runs, answered.logits, strict=True))
    return found


def one_patch(site: str, layer: int | None, heads, positions, run: str = "clean") -> Patch:
    return Patch(site, layer, positions, FromRun(run, positions), heads)


def plan_of(*patches: Patch, base: str = "corrupted") -> Plan:
    bases = (BaseRun("clean", CLEAN), BaseRun("corrupted", CORRUPTED))
    run = DerivedRun("patched", base, patches)
    everywhere = tuple(range(len(CLEAN)))
    return Plan(bases, (run,), tuple(Readout(name, everywhere) for name in ("clean", "corrupted", "patched")))


CASES = [(family, site) for family in FAMILIES for site in tiny_model(family).sites if site != "pattern"]


@pytest.mark.parametrize(("family", "site"), CASES, ids=lambda value: str(value))
def test_every_site_of_every_family_equals_plain_hooks(family: str, site: str) -> None:
    model = tiny_model(family)
    plain = PlainHooks(family, model.hf, model.anatomy)
    for layer in (None,) if site in GLOBAL_SITES else (0, model.anatomy.n_layers - 1):
        for heads in [None, (0,)] if site in HEAD_SITES else [None]:
            for base, source in (("corrupted", "clean"), ("clean", "corrupted")):
                at = (2, 4, LAST) if site in ("logits", "final_norm", "resid_post") else (2, 4)
                ours = logits_of(model, plan_of(one_patch(site, layer, heads, at, source), base=base))["patched"]
                tokens = {"clean": list(CLEAN), "corrupted": list(CORRUPTED)}
                chosen = None if heads is None else list(heads)
                theirs = plain.patched(tokens[base], tokens[source], site, layer, chosen, list(at))
                assert_close(ours, theirs, rtol=0, atol=1e-4)
                unpatched = plain.run(tokens[base], None, None, None)
                assert (theirs - unpatched).abs().max() > 1e-3, "the patch must do something for this to be a test"


def test_the_known_paths_cover_every_family() -> None:
    assert set(FAMILIES) == set(KNOWN)


@pytest.mark.parametrize("family", [f for f in FAMILIES if "pattern" in tiny_model(f).sites])
def test_pattern_and_values_together_are_z(family: str) -> None:
    model = tiny_model(family)
    everywhere = tuple(range(len(CLEAN)))
    a = model.anatomy
    both = plan_of(one_patch("pattern", 1, None, everywhere), one_patch("v", 1, None, everywhere))
    z = plan_of(one_patch("z", 1, None, everywhere))
    assert_close(logits_of(model, both)["patched"], logits_of(model, z)["patched"], rtol=0, atol=1e-4)
    one_head = plan_of(one_patch("pattern", 1, (a.n_heads - 1,), (LAST,)))
    assert (logits_of(model, one_head)["patched"] - logits_of(model, z)["corrupted"]).abs().max() > 1e-5


@pytest.mark.parametrize("family", ["gpt2", "llama", "gptj", "falcon", "opt"])
def test_runs_packed_into_one_forward_equal_runs_alone(family: str) -> None:
    model = tiny_model(family)
    bases = (BaseRun("clean", CLEAN), BaseRun("corrupted", CORRUPTED), BaseRun("other", CORRUPTED[:5]))
    derived = tuple(
        DerivedRun(f"{site}{layer}{position}", "corrupted", (one_patch(site, layer, None, (position,)),))
        for site in ("resid_post", "mlp_out")
        for layer in range(2)
        for position in (2, 4, 5)
    )
    readouts = tuple(Readout(run.id, (LAST,)) for run in (*bases[:2], *derived))
    plan = Plan(bases, derived, readouts)
    together, alone = logits_of(model, plan), logits_of(model, plan, max_tokens=1)
    assert set(together) == set(alone) == {readout.run for readout in readouts}
    for run, logits in together.items():
        assert_close(logits, alone[run], rtol=0, atol=1e-4)


def test_a_run_can_read_from_a_derived_run() -> None:
    model = tiny_model("gpt2")
    first = DerivedRun("first", "corrupted", (one_patch("attn_out", 0, None, (2, 4)),))
    second = DerivedRun("second", "corrupted", (one_patch("mlp_out", 1, None, (LAST,), run="first"),))
    bases = (BaseRun("clean", CLEAN), BaseRun("corrupted", CORRUPTED))
    ours = logits_of(model, Plan(bases, (first, second), (Readout("second", (LAST,)),)))["second"]
    plain = PlainHooks("gpt2", model.hf, model.anatomy)
    attention = plain.read(list(CLEAN), "attn_out", 0)
    kept: list[torch.Tensor] = []

    def restore(value: torch.Tensor) -> torch.Tensor:
        new = value.clone()
        new[:, [2, 4]] = attention[:, [2, 4]]
        return new

    handle = model.hf.transformer.h[1].mlp.register_forward_hook(lambda _m, _i, out: kept.append(out.clone()))
    plain.run(list(CORRUPTED), "attn_out", 0, restore)
    handle.remove()

    def put(value: torch.Tensor) -> torch.Tensor:
        new = value.clone()
        new[:, LAST] = kept[0][:, LAST]
        return new

    theirs = plain.run(list(CORRUPTED), "mlp_out", 1, put)[LAST]
    assert_close(ours[0], theirs, rtol=0, atol=1e-5)


def test_noise_is_added_to_the_token_embeddings_of_its_positions_only() -> None:
    model = tiny_model("gpt2")
    values = torch.randn(2, model.anatomy.d_model, generator=torch.Generator().manual_seed(0))
    noisy = BaseRun("noisy", CLEAN, Noise((1, 3), values))
    ours = logits_of(model, Plan((noisy,), (), (Readout("noisy", tuple(range(7))),)))["noisy"]
    plain = PlainHooks("gpt2", model.hf, model.anatomy)

    def add(value: torch.Tensor) -> torch.Tensor:
        new = value.clone()
        new[0, 1] += values[0]
        new[0, 3] += values[1]
        return new

    assert_close(ours, plain.run(list(CLEAN), "embed", None, add), rtol=0, atol=1e-5)
    assert_close(ours[0], plain.run(list(CLEAN), None, None, None)[0], rtol=0, atol=1e-6)


def test_noise_on_a_float64_model_is_not_rounded_to_float32() -> None:
    hf = tiny_hf("gpt2").double()
    model = Model.from_parts(hf, check=False)
    seen: list[torch.Tensor] = []
    hook = hf.transformer.drop.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    values = torch.randn(2, model.anatomy.d_model, generator=torch.Generator().manual_seed(0))
    logits_of(model, Plan((BaseRun("noisy", CLEAN, Noise((1, 3), values)),), (), (Readout("noisy", (LAST,)),)))
    hook.remove()
    wanted = hf.transformer.wte.weight[list(CLEAN)] + hf.transformer.wpe.weight[: len(CLEAN)]
    wanted[[1, 3]] += values.double()
    assert_close(seen[0][0], wanted, rtol=0, atol=1e-14)


def test_what_lies_inside_the_head_counts_as_the_head() -> None:
    run = DerivedRun("d", "b", (Patch("lm_head.base_layer", None, (0,), Constant(torch.zeros(()))),))
    assert _touches_head([run], {}, "lm_head")
    assert _touches_head([BaseRun("b", CLEAN)], {"b": {("lm_head.base_layer", None)}}, "lm_head")
    assert not _touches_head([run], {"d": {("lm_header", None)}}, "lm")


@pytest.mark.parametrize(
    ("site", "heads"), [("z", (1,)), ("z", None), ("mlp_act", None), ("k", (0,)), ("resid_post", None)]
)
def test_given_values_are_written_where_they_belong(site: str, heads) -> None:
    model = tiny_model("llama")
    plain = PlainHooks("llama", model.hf, model.anatomy)
    width = plain.read(list(CLEAN), site, 1).flatten(2).shape[-1]
    values = torch.randn(2, width, generator=torch.Generator().manual_seed(1))
    plan = plan_of(Patch(site, 1, (2, 4), Constant(values), heads), base="clean")

    def put(value: torch.Tensor) -> torch.Tensor:
        new = value.clone()
        wanted = values.view(2, *value.shape[2:])
        for row, position in enumerate((2, 4)):
            for head in heads or ([...] if value.ndim == 3 else range(value.shape[2])):
                if value.ndim == 3:
                    new[0, position] = wanted[row]
                else:
                    new[0, position, head] = wanted[row, head]
        return new

    assert_close(logits_of(model, plan)["patched"], plain.run(list(CLEAN), site, 1, put), rtol=0, atol=1e-4)


def test_zero_is_broadcast_and_a_pattern_of_zeros_silences_a_head() -> None:
    model = tiny_model("llama")
    zero = torch.zeros(())
    everywhere = tuple(range(len(CLEAN)))
    z = plan_of(Patch("z", 1, everywhere, Constant(zero), (2,)), base="clean")
    pattern = plan_of(Patch("pattern", 1, everywhere, Constant(zero), (2,)), base="clean")
    assert_close(logits_of(model, z)["patched"], logits_of(model, pattern)["patched"], rtol=0, atol=1e-5)


def test_source_positions_may_differ_from_patched_positions() -> None:
    model = tiny_model("gpt2")
    patch = Patch("resid_post", 0, (4,), FromRun("clean", (2,)))
    plain = PlainHooks("gpt2", model.hf, model.anatomy)
    value = plain.read(list(CLEAN), "resid_post", 0)

    def put(own: torch.Tensor) -> torch.Tensor:
        new = own.clone()
        new[:, 4] = value[:, 2]
        return new

    theirs = plain.run(list(CORRUPTED), "resid_post", 0, put)
    assert_close(logits_of(model, plan_of(patch))["patched"], theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom", "gpt_oss"])
def test_module_paths_are_sites(family: str) -> None:
    model = tiny_model(family)
    known = KNOWN[family]
    path = f"{known.blocks}.1.{known.out}"
    as_path = plan_of(one_patch(path, None, None, (2, 4)))
    plain = PlainHooks(family, model.hf, model.anatomy)
    value: list[torch.Tensor] = []
    handle = model.hf.get_submodule(path).register_forward_hook(lambda _m, _i, out: value.append(out.clone()))
    plain.run(list(CLEAN), None, None, None)
    handle.remove()

    def hook(_module, _inputs, out):
        new = out.clone()
        new[:, [2, 4]] = value[0][:, [2, 4]]
        return new

    handle = model.hf.get_submodule(path).register_forward_hook(hook)
    theirs = plain.run(list(CORRUPTED), None, None, None)
    handle.remove()
    assert_close(logits_of(model, as_path)["patched"], theirs, rtol=0, atol=1e-5)


def test_no_hook_and_no_attention_implementation_is_left_behind() -> None:
    model = tiny_model("llama")
    before = model.hf.config._attn_implementation
    list(execute(model, plan_of(one_patch("pattern", 1, None, (4,)), one_patch("z", 0, (1,), (2,)))))
    broken = Patch("z", 0, (2,), Constant(torch.zeros(3, 5)), None)
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever it is, nothing may be left behind
        list(execute(model, plan_of(broken)))
    assert model.hf.config._attn_implementation == before
    for module in model.hf.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.parametrize("family", FAMILIES)
def test_asking_for_fewer_positions_gives_the_same_logits(family: str) -> None:
    model = tiny_model(family)
    everywhere = plan_of(one_patch("resid_post", 1, None, (2, 4)), one_patch(model.anatomy.head, None, None, (3,)))
    for patches in ((one_patch("resid_post", 1, None, (2, 4)),), everywhere.derived[0].patches):
        plan = plan_of(*patches)
        some = Plan(plan.bases, plan.derived, (Readout("patched", (5, 3)), Readout("clean", (LAST,))))
        whole, part = logits_of(model, plan), logits_of(model, some)
        assert_close(part["patched"], whole["patched"][[5, 3]], rtol=0, atol=1e-5)
        assert_close(part["clean"], whole["clean"][[LAST]], rtol=0, atol=1e-5)


def test_record_gives_every_run_its_own_values() -> None:
    model = tiny_model("gpt2")
    bases = [BaseRun("a", CLEAN), BaseRun("b", CORRUPTED), BaseRun("c", CLEAN[:4])]
    found = {(run, place): value for run, place, value in record(model, bases, [("resid_post", 1), ("z", 0)])}
    plain = PlainHooks("gpt2", model.hf, model.anatomy)
    assert len(found) == 6
    for run in bases:
        for site, layer in (("resid_post", 1), ("z", 0)):
            theirs = plain.read(list(run.tokens), site, layer)[0]
            assert_close(found[run.id, (site, layer)], theirs.reshape(len(run.tokens), -1), rtol=0, atol=1e-5)


def test_a_plan_refuses_what_cannot_be_run() -> None:
    base = BaseRun("a", CLEAN)
    with pytest.raises(ValueError, match="two runs"):
        Plan((base, base))
    with pytest.raises(ValueError, match="no base run"):
        Plan((base,), (DerivedRun("x", "nothing", ()),))
    with pytest.raises(ValueError, match="not in the plan before it"):
        Plan((base,), (DerivedRun("x", "a", (one_patch("z", 0, None, (1,), run="later"),)),))
    with pytest.raises(ValueError, match="take values from"):
        Plan((base,), (DerivedRun("x", "a", (Patch("z", 0, (1, 2), FromRun("a", (1,))),)),))
    with pytest.raises(ValueError, match="unknown run"):
        Plan((base,), (), (Readout("x", (1,)),))
