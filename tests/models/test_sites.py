"""Every family, every site: shape, value against plain hooks on known module paths, write-back, and what must hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from engramscope.models.hooks import taps
from engramscope.models.model import Model
from engramscope.models.site import GLOBAL_SITES, KV_SITES, SITES, Port
from tests.models.known_paths import KNOWN, Known
from tests.tiny_models import FAMILIES, tiny_model

TOKENS = torch.tensor([[5, 17, 60, 33, 88, 41, 9], [71, 17, 22, 90, 8, 52, 30]])
OTHER = torch.tensor([[50, 7, 61, 3, 12, 77, 19], [4, 93, 26, 9, 80, 25, 31]])
EXPECTED_REFUSALS = {
    "resid_mid": {
        "gptj", "gpt_neox", "phi", "phi_gqa", "falcon", "falcon_mha", "falcon_new", "stablelm_parallel", "cohere2",
    },
    "mlp_act": {"mixtral", "gpt_oss"},
    "pattern": {"falcon", "falcon_mha", "falcon_sequential", "falcon_new"},
}  # fmt: skip

close = torch.testing.assert_close


def layers_of(model: Model, site: str) -> list[int | None]:
    return [None] if site in GLOBAL_SITES else list(range(model.anatomy.n_layers))


def places(model: Model, *sites: str) -> list[tuple[str, int | None]]:
    return [(site, layer) for site in (sites or model.sites) for layer in layers_of(model, site)]


def heads_of(model: Model, place: tuple[str, int | None], value: Tensor) -> Tensor:
    """[..., heads, d_head] for sites with heads, else the value."""
    access = model.site(*place)
    columns = access.head_columns if isinstance(access, Port) else None
    return value if columns is None else value[..., columns]


def read(model: Model, tokens: Tensor, wanted: list[tuple[str, int | None]]) -> dict[tuple[str, int | None], Tensor]:
    values: dict[tuple[str, int | None], Tensor] = {}

    def keep(place: tuple[str, int | None]) -> Any:
        return lambda value: values.update({place: value})

    with taps(model, [(model.site(*place), keep(place)) for place in wanted]):
        model.logits(tokens)
    return values


def put(model: Model, place: tuple[str, int | None], source: Tensor, at: Any = slice(None)) -> Any:
    """A tap that takes the values of `source` at these positions (query positions for a pattern)."""
    access = model.site(*place)

    def write(value: Tensor) -> Tensor:
        new = value.clone()
        if place[0] == "pattern":
            new[:, :, at] = source[:, :, at]
        elif isinstance(access, Port) and access.head_columns is not None:
            columns = access.head_columns.flatten()
            changed = new[:, at]
            changed[..., columns] = source[:, at][..., columns]
            new[:, at] = changed
        else:
            new[:, at] = source[:, at]
        return new

    return access, write


def patched(model: Model, source: dict[tuple[str, int | None], Tensor], wanted: Any, at: Any = slice(None)) -> Tensor:
    with taps(model, [put(model, place, source[place], at) for place in wanted]):
        return model.logits(TOKENS)


def plain_values(model: Model, known: Known) -> dict[tuple[str, int | None], Tensor]:
    """Every site by plain hooks and the model's own outputs, without the library."""
    hf, seen = model.hf, {}

    def after(key: str) -> Any:
        def note(_m: Any, _a: Any, out: Any) -> None:
            value = out[0] if isinstance(out, tuple) else out
            if isinstance(value, Tensor):
                seen[key] = value.clone()

        return note

    def before(key: str) -> Any:
        def note(_m: Any, args: Any, kwargs: Any) -> None:
            value = args[0] if args else kwargs.get("hidden_states")
            if isinstance(value, Tensor):
                seen[key] = value.clone()

        return note

    handles = []
    for path, module in hf.named_modules():
        handles.append(module.register_forward_hook(after(f"out {path}")))
        handles.append(module.register_forward_pre_hook(before(f"in {path}"), with_kwargs=True))
    attentions = "pattern" not in model.anatomy.refusals
    with torch.no_grad():
        out = hf(input_ids=TOKENS, use_cache=False, output_hidden_states=True, output_attentions=attentions)
    for handle in handles:
        handle.remove()
    tokenwise = {
        key: value.view(*TOKENS.shape, -1) if len(value) == TOKENS.numel() else value for key, value in seen.items()
    }
    values: dict[tuple[str, int | None], Tensor] = {
        ("embed", None): tokenwise[f"out {known.embed}"],
        ("final_norm", None): tokenwise[f"out {known.norm}"],
        ("logits", None): out.logits,
    }
    for layer in range(model.anatomy.n_layers):
        block = f"{known.blocks}.{layer}"
        inside = {
            key.removeprefix(f"out {block}."): value
            for key, value in tokenwise.items()
            if key.startswith(f"out {block}.")
        }
        q, k, v = known.split(inside, model.anatomy)
        values |= {("q", layer): q, ("k", layer): k, ("v", layer): v}
        values["resid_pre", layer] = out.hidden_states[layer]
        values["resid_post", layer] = tokenwise[f"out {block}"]
        values["attn_out", layer] = inside[known.attn]
        values["mlp_out", layer] = inside[known.mlp]
        values["z", layer] = tokenwise[f"in {block}.{known.out}"].unflatten(-1, (model.anatomy.n_heads, -1))
        if known.down:
            values["mlp_act", layer] = tokenwise[f"in {block}.{known.down}"]
        if known.middle:
            values["resid_mid", layer] = tokenwise[f"in {block}.{known.middle}"]
        if attentions:
            values["pattern", layer] = out.attentions[layer]
    return values


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Model:
    return tiny_model(request.param)


def test_every_family_has_a_hand_written_table():
    assert set(KNOWN) == set(FAMILIES)


def test_exactly_the_known_sites_are_refused(model: Model):
    expected = {site for site, families in EXPECTED_REFUSALS.items() if model.name in families}
    assert set(model.anatomy.refusals) == expected
    assert all(reason.endswith(".") for reason in model.anatomy.refusals.values())


def test_values_equal_plain_hooks(model: Model):
    plain = plain_values(model, KNOWN[model.name])
    values = read(model, TOKENS, places(model))
    assert set(plain) == set(values)
    for place, value in values.items():
        close(
            heads_of(model, place, value),
            plain[place],
            msg=lambda text, at=place: f"{at}: {text}",
            rtol=1e-5,
            atol=1e-6,
        )


def test_shapes_are_as_declared(model: Model):
    sizes = {"batch": 2, "seq": 7}
    for place, value in read(model, TOKENS, places(model)).items():
        assert tuple(heads_of(model, place, value).shape) == tuple(sizes.get(s, s) for s in model.shape(place[0])), (
            place
        )
    a = model.anatomy
    assert model.shape("z") == ("batch", "seq", a.n_heads, a.d_head)
    assert model.shape("k") == ("batch", "seq", a.n_kv_heads, a.d_head)
    assert model.shape("logits") == ("batch", "seq", 99)


def test_key_value_heads_are_counted():
    expected = {"llama_mqa": 1, "llama": 2, "llama_mha": 4, "falcon": 1, "falcon_new": 2, "falcon_mha": 4, "gpt2": 4}
    assert {name: tiny_model(name).anatomy.n_kv_heads for name in expected} == expected


def test_writing_back_changes_nothing(model: Model):
    base = model.logits(TOKENS)
    for place in places(model):
        with taps(model, [(model.site(*place), lambda value: value.clone())]):
            close(model.logits(TOKENS), base, rtol=0, atol=2e-6 if place[0] == "pattern" else 0)


def test_self_patch_changes_nothing(model: Model):
    base, own = model.logits(TOKENS), read(model, TOKENS, places(model))
    for place in places(model):
        close(patched(model, own, [place]), base, rtol=0, atol=2e-6)


def test_a_foreign_value_changes_the_logits(model: Model):
    base, other = model.logits(TOKENS), read(model, OTHER, places(model))
    for place in places(model):
        if place[0] == "resid_post" and place[1] == model.anatomy.n_layers - 1:
            close(patched(model, other, [place]), model.logits(OTHER), rtol=0, atol=1e-5)
        assert (patched(model, other, [place]) - base).abs().max() > 1e-4, place


def test_a_read_value_survives_the_rest_of_the_forward(model: Model):
    """Falcon adds to the MLP's output in place: what was handed out must not change with it."""
    copies: dict[Any, Tensor] = {}
    kept: dict[Any, Tensor] = {}

    def keep(place: Any) -> Any:
        return lambda value: (kept.update({place: value}), copies.update({place: value.clone()}), None)[2]

    with taps(model, [(model.site(*place), keep(place)) for place in places(model)]):
        model.logits(TOKENS)
    for place, value in kept.items():
        assert torch.equal(value, copies[place]), place


def test_a_written_value_is_not_changed_by_the_model(model: Model):
    for place in places(model):
        source = read(model, OTHER, [place])[place]
        before = source.clone()
        with taps(model, [(model.site(*place), lambda _value, given=source: given)]):
            model.logits(TOKENS)
        assert torch.equal(source, before), place


def test_a1_a2_embedding_or_residual_at_all_positions_gives_the_other_run(model: Model):
    target, other = model.logits(OTHER), read(model, OTHER, places(model))
    close(patched(model, other, [("embed", None)]), target, rtol=0, atol=1e-5)
    for layer in range(model.anatomy.n_layers):
        for site in ("resid_pre", "resid_post"):
            close(patched(model, other, [(site, layer)]), target, rtol=0, atol=1e-5)


def test_a3_all_sources_give_the_other_run_and_all_but_the_embedding_do_not(model: Model):
    target, other = model.logits(OTHER), read(model, OTHER, places(model))
    writes = places(model, "attn_out", "mlp_out")
    close(patched(model, other, [("embed", None), *writes]), target, rtol=0, atol=2e-5)
    assert (patched(model, other, writes) - target).abs().max() > 1e-3


def test_resid_mid_of_both_runs(model: Model):
    if "resid_mid" in model.anatomy.refusals:
        pytest.skip("parallel blocks")
    target, other = model.logits(OTHER), read(model, OTHER, places(model, "resid_mid", "resid_pre", "attn_out"))
    for layer in range(model.anatomy.n_layers):
        close(patched(model, other, [("resid_mid", layer)]), target, rtol=1e-5, atol=2e-5)
        total = other["resid_pre", layer] + other["attn_out", layer]
        close(other["resid_mid", layer], total, rtol=0, atol=0)


def test_a7_a_patch_changes_nothing_before_its_position(model: Model):
    base, other = model.logits(TOKENS), read(model, OTHER, places(model))
    for place in places(model):
        new = patched(model, other, [place], at=[4])
        close(new[:, :4], base[:, :4], rtol=0, atol=2e-6)
        assert (new[:, 4:] - base[:, 4:]).abs().max() > 1e-5, place


def test_n1_q_k_v_together_are_z_and_pattern_with_v_is_z(model: Model):
    other = read(model, OTHER, places(model))
    for layer in range(model.anatomy.n_layers):
        by_z = patched(model, other, [("z", layer)])
        close(patched(model, other, [("q", layer), ("k", layer), ("v", layer)]), by_z, rtol=0, atol=1e-5)
        for left_out in (("q", "k"), ("k", "v"), ("q", "v")):
            assert (patched(model, other, [(site, layer) for site in left_out]) - by_z).abs().max() > 1e-4
        if "pattern" in model.sites:
            close(patched(model, other, [("pattern", layer), ("v", layer)]), by_z, rtol=0, atol=1e-5)


def test_a_head_of_q_k_v_acts_on_its_own_heads_of_z(model: Model):
    """Changing one head of q, k or v changes exactly the heads of z that belong to it (OLMo 2 norms over all heads)."""
    if model.name == "olmo2":
        pytest.skip("a norm over all heads lets every head see every other; the layout probe covers it")
    a, size = model.anatomy, model.anatomy.n_heads // model.anatomy.n_kv_heads
    own = read(model, TOKENS, places(model, "z"))["z", 1]
    for site in ("q", "k", "v"):
        columns = model.site(site, 1).head_columns
        for head in range(len(columns)):

            def change(value: Tensor, at: Tensor = columns[head]) -> Tensor:
                new = value.clone()
                new[..., at] = new[..., at].flip(-1) * 1.5
                return new

            seen: list[Tensor] = []
            with taps(
                model, [(model.site(site, 1), change), (model.site("z", 1), lambda value, to=seen: to.append(value))]
            ):
                model.logits(TOKENS)
            moved = (seen[0] - own).unflatten(-1, (a.n_heads, -1)).abs().amax(dim=(0, 1, 3)) > 1e-5
            expected = range(head * size, (head + 1) * size) if site in KV_SITES else [head]
            assert moved.nonzero().flatten().tolist() == list(expected), (site, head)


def test_module_paths(model: Model):
    known = KNOWN[model.name]
    path = f"{known.blocks}.{{layer}}.{known.mlp}"
    direct = read(model, TOKENS, [(path.replace("{layer}", "1"), None)])
    close(
        direct[path.replace("{layer}", "1"), None], read(model, TOKENS, [("mlp_out", 1)])["mlp_out", 1], rtol=0, atol=0
    )
    by_layer = read(model, TOKENS, [(path, 1)])[path, 1]
    close(by_layer, direct[path.replace("{layer}", "1"), None], rtol=0, atol=0)
    assert model.shape(path) == ("batch", "seq", 32)


def test_sites_in_reading_order_and_none_forgotten(model: Model):
    assert set(model.sites) | set(model.anatomy.refusals) == set(SITES)


def test_self_checks_all_pass(model: Model):
    assert len(model.checks) > 35
    assert [check for check in model.checks if not check.passed] == []
    assert all(check.value > 1e-5 for check in model.checks if check.name.startswith("reaches"))
