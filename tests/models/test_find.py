"""What is refused and why; weights of zero; other number types; layouts that must not pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from engramscope.errors import CheckError, ModelError, SiteError
from engramscope.models.find import without_sites
from engramscope.models.heads import classify, observe
from engramscope.models.hooks import taps
from engramscope.models.model import Model, hash_of
from engramscope.models.selfcheck import SelfCheck, ensure_sound, self_checks, unsound_sites
from engramscope.models.site import Port
from engramscope.models.writes import adds_up
from tests.tiny_models import _random, tiny_hf, tiny_model

TOKENS = torch.tensor([[5, 17, 60, 33, 88, 41]])
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "vocab_size": 99, "pad_token_id": None,
    "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip

close = torch.testing.assert_close


def random_model(config: str, **arguments: Any) -> Any:
    hf = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**arguments))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            parameter.copy_(_random(name, parameter, generator))
    return hf.eval()


def test_a_scaled_residual_is_refused_but_the_rest_stays():
    model = Model.from_parts(random_model("GraniteConfig", **SMALL, residual_multiplier=0.5), name="granite")
    assert set(model.anatomy.refusals) == {"attn_out", "mlp_out", "resid_mid"}
    with pytest.raises(SiteError, match=r"granite does not offer attn_out: .*scaled residual"):
        model.site("attn_out", 0)
    assert model.anatomy.d_mlp == 48


def test_granite_without_scaling_is_an_ordinary_model():
    model = Model.from_parts(random_model("GraniteConfig", **SMALL, residual_multiplier=1.0), name="granite")
    assert model.anatomy.refusals == {}


def test_a_norm_after_the_addition_is_refused():
    hf = tiny_hf("opt", do_layer_norm_before=False)
    model = Model.from_parts(hf, name="post-norm opt")
    assert set(model.anatomy.refusals) == {"attn_out", "mlp_out", "resid_mid", "final_norm"}
    hf = tiny_hf("opt", do_layer_norm_before=False, word_embed_proj_dim=16)
    assert "another width" in Model.from_parts(hf, name="opt-350m").anatomy.refusals["embed"]


def test_latent_attention_refuses_what_it_cannot_verify():
    small = {**SMALL, "num_key_value_heads": 4}
    hf = random_model(
        "DeepseekV3Config", **small, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8,
        v_head_dim=8, n_routed_experts=4, n_group=2, topk_group=1, num_experts_per_tok=2, moe_intermediate_size=16,
        first_k_dense_replace=1,
    )  # fmt: skip
    model = Model.from_parts(hf, name="deepseek")
    assert {"q", "k", "v", "mlp_act"} == set(model.anatomy.refusals)
    assert "could not be verified" in model.anatomy.refusals["q"]
    assert "(layers 1)" in model.anatomy.refusals["mlp_act"]


def test_a_shared_expert_is_not_taken_for_the_whole_mlp():
    hf = random_model(
        "Qwen2MoeConfig", **SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    )  # fmt: skip
    model = Model.from_parts(hf, name="shared expert")
    assert set(model.anatomy.refusals) == {"mlp_act"}


def test_a_model_without_attention_heads_is_refused():
    hf = transformers.AutoModelForCausalLM.from_config(
        transformers.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=99)
    )
    with pytest.raises(ModelError, match="no attention heads"):
        Model.from_parts(hf, name="mamba")


def test_an_encoder_is_refused():
    config = transformers.BertConfig(**{k: v for k, v in SMALL.items() if k != "num_key_value_heads"})
    with pytest.raises(ModelError, match="not causal"):
        Model.from_parts(transformers.AutoModelForCausalLM.from_config(config), name="bert")


def test_an_encoder_decoder_is_refused():
    config = transformers.T5Config(d_model=16, d_kv=4, num_layers=1, num_heads=2, d_ff=16, vocab_size=30)
    with pytest.raises(ModelError, match="encoder-decoder"):
        Model.from_parts(transformers.T5ForConditionalGeneration(config), name="t5")


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "bloom", "falcon", "gpt_neox", "olmo2"])
def test_layers_with_zero_weights_are_recognised_like_the_others(family: str):
    """A hand-built circuit has heads and MLPs that are switched off; its sites are those of a trained model."""
    plain, hf = tiny_model(family), tiny_hf(family)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if (
                "q_norm" not in name
                and "k_norm" not in name
                and any(
                    part in name for part in (".1.attn", ".1.self_att", ".1.attention.", ".2.mlp", "post_feedforward")
                )
            ):
                parameter.zero_()
    model = Model.from_parts(hf, name="partly zero")
    assert model.anatomy == plain.anatomy
    for place, access in plain._accesses.items():
        if isinstance(access, Port):
            found = model._accesses[place]
            assert isinstance(found, Port)
            assert (found.path, found.side) == (access.path, access.side)
            assert (found.head_columns is None) == (access.head_columns is None)
            if access.head_columns is not None:
                assert torch.equal(found.head_columns, access.head_columns)


def test_a_wholly_dead_mlp_is_offered_and_the_check_says_so():
    hf = tiny_hf("gpt2")
    with torch.no_grad():
        for block in hf.transformer.h:
            block.mlp.c_proj.weight.zero_()
    model = Model.from_parts(hf, name="no mlp")
    check = next(check for check in model.checks if check.name == "reaches logits mlp_act")
    assert check.passed
    assert "zero" in check.detail


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "family", ["gpt2", "llama", "gemma2", "phi3", "bloom", "falcon_new", "opt", "gpt_oss", "olmo2"]
)
def test_other_number_types_give_the_same_anatomy(family: str, dtype: torch.dtype):
    if family == "gpt_oss" and dtype == torch.float64:
        with pytest.raises(ModelError, match="cannot be run in float64"):
            Model.from_parts(tiny_hf(family).to(dtype), name=family)
        return
    plain, model = tiny_model(family), Model.from_parts(tiny_hf(family).to(dtype), name=family)
    assert model.dtype == dtype
    assert model.anatomy == plain.anatomy
    assert all(check.passed for check in model.checks)
    seen: list[Tensor] = []
    with taps(model, [(model.site("resid_mid" if "resid_mid" in model.sites else "z", 1), seen.append)]):
        model.logits(TOKENS)
    assert seen[0].dtype == dtype


class Rearranged(nn.Module):
    """A fused projection whose output columns are in another order."""

    def __init__(self, inner: nn.Module, order: Tensor) -> None:
        super().__init__()
        self.inner, self.order = inner, order
        self.in_features, self.out_features = 32, len(order)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[..., self.order]


def test_a_projection_with_its_heads_in_another_order_is_followed():
    """The layout is measured: what q, k and v of a head are does not depend on a family's table."""
    hf = tiny_hf("llama_mha")
    model = Model.from_parts(hf, name="plain")
    reversed_heads = torch.arange(32).view(4, 8).flip(0).flatten()
    for layer in hf.model.layers:
        layer.self_attn.q_proj = Rearranged(layer.self_attn.q_proj, reversed_heads)
    turned = Model.from_parts(hf, name="turned")
    assert torch.equal(turned.site("q", 0).head_columns, model.site("q", 0).head_columns)


def test_an_interleaved_layout_is_refused():
    """A projection in which the columns of all heads alternate: no chunk of columns is a head."""

    class Interleaved(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).unflatten(-1, (8, 4)).transpose(-1, -2).flatten(-2)

    hf = tiny_hf("llama_mha")
    for layer in hf.model.layers:
        layer.self_attn.q_proj = Interleaved(layer.self_attn.q_proj)
    model = Model.from_parts(hf, name="interleaved")
    assert set(model.anatomy.refusals) == {"q", "k", "v"}
    # the attention weights still act head by head, so z is known
    assert model.shape("z") == ("batch", "seq", 4, 8)


def test_an_adapter_around_a_projection_counts_as_one_module():
    class Adapter(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base_layer = base
            self.in_features, self.out_features = base.in_features, base.out_features
            self.lora_A = nn.Linear(base.in_features, 4, bias=False)
            self.lora_B = nn.Linear(4, base.out_features, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.base_layer(x) + self.lora_B(self.lora_A(x))

    hf = tiny_hf("llama")
    for layer in hf.model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(layer.self_attn, name, Adapter(getattr(layer.self_attn, name)))
        layer.mlp.down_proj = Adapter(layer.mlp.down_proj)
    model = Model.from_parts(hf, name="adapted")
    assert model.anatomy.refusals == {}
    assert model.site("z", 1).path == "model.layers.1.self_attn.o_proj"
    assert model.site("q", 1).path == "model.layers.1.self_attn.q_proj"
    assert model.site("mlp_act", 1).path == "model.layers.1.mlp.down_proj"


def test_classify_tells_query_key_and_value_apart():
    generator = torch.Generator().manual_seed(0)
    cause, noise = torch.randn(8, generator=generator), torch.randn(3, 2, 8, generator=generator)
    nothing = torch.zeros(3, 2, 8)
    query, key, value = nothing.clone(), nothing.clone(), nothing.clone()
    query[1, 1] = noise[1, 1]
    key[1:] = noise[1:]
    value[1:] = 0.3 * cause
    seen = {name: observe(change, cause, 1.0) for name, change in {"q": query, "k": key, "v": value}.items()}
    assert classify(seen["q"]) == ("q", (1,))
    assert classify(seen["k"]) == ("k", (0, 1))
    assert classify(seen["v"]) == ("v", (0, 1))
    assert classify(seen["v"].with_more(seen["k"])) == ("k", (0, 1))
    assert classify(observe(-value, cause, 1.0))[0] == "k"
    nudged = value.clone()
    nudged[2, 0, 3] += 1e-3
    assert classify(observe(nudged, cause, 1.0))[0] == "k"
    assert classify(observe(nothing, cause, 1.0)) == (None, ())
    earlier = query.clone()
    earlier[0, 1] = 1.0
    assert classify(observe(earlier, cause, 1.0)) == (None, ())
    two = nothing.clone()
    two[1] = noise[1]
    assert classify(observe(two, cause, 1.0)) == (None, ())


def test_adds_up_rejects_a_small_error():
    generator = torch.Generator().manual_seed(0)
    pre, attn, mlp = (torch.randn(2, 3, 8, generator=generator) for _ in range(3))
    post = pre + attn + mlp
    assert adds_up(pre, attn, mlp, post)
    wrong = post.clone()
    wrong[1, 2, 3] += 1e-5
    assert not adds_up(pre, attn, mlp, wrong)
    assert not adds_up(pre, 0.9999 * attn, mlp, post)


@pytest.mark.parametrize(
    ("site", "layer", "message"),
    [
        ("resid_pots", 0, "did you mean 'resid_post'"),
        ("attn", 0, "Unknown site 'attn'"),
        ("z", 3, "no layer 3: gpt2 has 3 layers, 0 to 2"),
        ("z", -1, "no layer -1"),
        ("z", None, "exists in every layer"),
        ("embed", 0, "exists once"),
        ("transformer.h.0.mlp.c_fcc", None, "did you mean 'transformer.h.0.mlp.c_fc'"),
        ("transformer.h.9.mlp.c_fc", None, "has no module transformer.h.9.mlp.c_fc"),
        ("transformer.h.{layer}.mlp.c_fc", None, "exists in every layer"),
        ("transformer.h.{layer}.mlp.c_fc", 7, "no layer 7"),
        ("transformer.h.0.mlp.c_fc", 0, "exists once"),
        ("transformer.h.0.attn.attn_dropout", None, "not called"),
        ("transformer.wpe", None, "cannot be patched: its output is not"),
    ],
)
def test_a_wrong_site_is_one_sentence(site: str, layer: int | None, message: str):
    with pytest.raises(SiteError) as caught:
        tiny_model("gpt2").site(site, layer)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_refused_site_says_why():
    with pytest.raises(SiteError, match=r"gptj does not offer resid_mid: The blocks of GPTJForCausalLM are parallel"):
        tiny_model("gptj").site("resid_mid", 0)
    with pytest.raises(SiteError, match="experts"):
        tiny_model("mixtral").shape("mlp_act")


def test_a_module_that_is_called_twice_is_refused():
    with pytest.raises(SiteError, match="called 2 times"):
        tiny_model("phi").site("model.layers.0.resid_dropout", None)


def test_shape_and_repr():
    model = tiny_model("llama")
    assert model.shape("z") == ("batch", "seq", 4, 8)
    assert model.shape("v") == ("batch", "seq", 2, 8)
    assert model.shape("pattern") == ("batch", 4, "seq", "seq")
    assert model.shape("model.layers.1.mlp.up_proj") == ("batch", "seq", 48)
    assert "3 layers, 4 heads (2 key/value heads)" in repr(model)
    with pytest.raises(AttributeError, match="not changed"):
        model.name = "other"


def test_the_hash_is_of_names_types_shapes_and_bytes():
    base = {"a": torch.arange(6.0), "b": torch.ones(2)}
    same = {"b": torch.ones(2), "a": torch.arange(6.0)}
    assert hash_of(base) == hash_of(same)
    nudged = torch.arange(6.0)
    nudged[3] += 1e-6
    others = [
        {**base, "a": nudged},
        {**base, "a": torch.arange(6.0).view(2, 3)},
        {**base, "a": torch.arange(6.0).double()},
        {"a": base["a"], "c": base["b"]},
        {**base, "a": base["a"].to(torch.bfloat16)},
    ]
    assert len({hash_of(base), *map(hash_of, others)}) == 6
    assert hash_of({"t": torch.arange(6).view(2, 3).t()}) == hash_of({"t": torch.arange(6).view(2, 3).t().contiguous()})
    model = tiny_model("gpt2")
    assert model.weight_hash() == model.weight_hash() == hash_of(model.hf.state_dict())
    assert model.weight_hash() != tiny_model("gpt2", seed=1).weight_hash()


def test_the_hash_of_a_model_in_memory_follows_its_weights():
    model = Model.from_parts(tiny_hf("gpt2"), check=False)
    before = model.weight_hash()
    with torch.no_grad():
        model.hf.transformer.h[0].mlp.c_fc.bias[0] += 1.0
    assert model.weight_hash() == hash_of(model.hf.state_dict()) != before


def test_a_failing_check_of_a_site_refuses_the_site():
    failed = SelfCheck("write-back z", 0.5, 1e-4, False, "", ("z",))
    assert list(unsound_sites([failed, SelfCheck("x", 0.0, 1.0, True, "", ("q",))])) == ["z"]
    ensure_sound("m", [failed])
    with pytest.raises(CheckError, match=r"causal: 0\.5, at most 0\.0001"):
        ensure_sound("m", [SelfCheck("causal", 0.5, 1e-4, False, "why")])


def test_self_checks_notice_a_wrong_port():
    """Each check is shown to fail on a model whose ports have been put in the wrong place."""
    model = tiny_model("llama")
    swapped = dict(model._accesses)
    for layer in range(3):
        swapped["q", layer] = Port(
            model.site("q", layer).path,
            model.site("q", layer).module,
            "output",
            model.site("q", layer).head_columns.flip(0),
        )
        swapped["v", layer], swapped["k", layer] = swapped["k", layer], swapped["v", layer]
        swapped["attn_out", layer] = model.site(f"model.layers.{layer}.input_layernorm")
    del swapped["z", 0]
    wrong = object.__new__(Model)
    for name in Model.__slots__:
        object.__setattr__(wrong, name, getattr(model, name))
    swapped["z", 0] = model.site("mlp_act", 0)
    object.__setattr__(wrong, "_accesses", swapped)
    failed = {check.name for check in self_checks(wrong) if not check.passed}
    assert {"residual adds up", "shape z"} <= failed


def test_without_sites_keeps_everything_else():
    from engramscope.models.find import find

    found = find(tiny_hf("llama"))
    less = without_sites(found, {"z": "Because."})
    assert less.anatomy.refusals == {"z": "Because."}
    assert set(found.accesses) - set(less.accesses) == {("z", layer) for layer in range(3)}
