"""Taps leave no trace, compose in order, and cope with every way in which a module is called."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from engramscope.models.hooks import input_tensor, output_tensor, taps, with_input, with_output
from engramscope.models.interface import attention_configs
from engramscope.models.model import Model
from tests.tiny_models import FAMILIES, tiny_hf, tiny_model

TOKENS = torch.tensor([[5, 17, 60, 33, 88]])
close = torch.testing.assert_close


def state_of(model: Model) -> list[Any]:
    """Everything that a tap could leave behind: hooks, attention settings, attributes of modules."""
    hooks = [
        (path, list(module._forward_hooks), list(module._forward_pre_hooks), sorted(map(str, module.__dict__)))
        for path, module in model.hf.named_modules()
    ]
    return [hooks, [config._attn_implementation for config in attention_configs(model.hf)]]


def every_access(model: Model, fn: Any) -> list[Any]:
    return [(access, fn) for access in model._accesses.values()]


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom", "opt", "falcon"])
def test_nothing_is_left_after_success(family: str):
    model = tiny_model(family)
    before = state_of(model)
    with taps(model, every_access(model, lambda value: value.clone())):
        assert state_of(model) != before
        model.logits(TOKENS)
    assert state_of(model) == before


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom"])
def test_nothing_is_left_after_an_exception_in_a_tap(family: str):
    model = tiny_model(family)
    before, base = state_of(model), model.logits(TOKENS)

    def fail(_value: Tensor) -> Tensor:
        raise KeyError("of the caller")

    with pytest.raises(KeyError, match="of the caller"), taps(model, [(model.site("pattern", 2), fail)]):
        model.logits(TOKENS)
    assert state_of(model) == before
    close(model.logits(TOKENS), base, rtol=0, atol=0)


def test_nothing_is_left_after_an_exception_in_the_model():
    model = tiny_model("llama")
    before = state_of(model)
    with pytest.raises(IndexError), taps(model, every_access(model, lambda value: None)):
        model.logits(torch.tensor([[10_000]]))
    assert state_of(model) == before


def test_nothing_is_left_when_attaching_fails():
    model = tiny_model("gpt2")
    before = state_of(model)
    port = model.site("resid_pre", 0)
    broken = type(port)("nowhere", "no module", "output")  # type: ignore[arg-type]
    with pytest.raises(AttributeError), taps(model, [(port, lambda value: None), (broken, lambda value: None)]):
        pass
    assert state_of(model) == before


def test_hooks_of_the_user_stay_and_still_act():
    hf = tiny_hf("gpt2")
    seen: list[Tensor] = []
    handle = hf.transformer.h[1].register_forward_hook(lambda _m, _a, out: seen.append(out.clone()))
    model = Model.from_parts(hf, name="with a hook")
    seen.clear()
    got: list[Tensor] = []
    with taps(model, [(model.site("resid_post", 1), got.append)]):
        model.logits(TOKENS)
    close(seen[0], got[0], rtol=0, atol=0)
    assert handle.id in hf.transformer.h[1]._forward_hooks
    model.logits(TOKENS)
    assert len(seen) == 2


def test_loading_leaves_the_attention_setting_and_no_hooks():
    hf = tiny_hf("llama")
    Model.from_parts(hf, name="x")
    assert hf.config._attn_implementation == "eager"
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in hf.modules())
    other = tiny_hf("qwen2")
    assert other.config._attn_implementation == "eager"


def test_taps_at_one_port_compose_in_order():
    model = tiny_model("llama")
    for site in ("resid_post", "pattern", "mlp_act"):
        access, seen = model.site(site, 1), []
        with taps(model, [(access, lambda v: v * 2), (access, lambda v: v + 1), (access, seen.append)]):
            model.logits(TOKENS)
        first: list[Tensor] = []
        with taps(model, [(access, first.append)]):
            model.logits(TOKENS)
        close(seen[0], first[0] * 2 + 1, rtol=1e-6, atol=1e-6)


def test_resid_mid_comes_after_attn_out_whatever_the_order():
    model = tiny_model("gpt2")
    read: dict[str, Tensor] = {}
    for order in (1, -1):
        wanted = [
            (model.site("resid_mid", 1), lambda value: read.update(mid=value)),
            (model.site("attn_out", 1), torch.zeros_like),
            (model.site("resid_pre", 1), lambda value: read.update(pre=value)),
        ]
        with taps(model, wanted[::order]):
            model.logits(TOKENS)
        close(read["mid"], read["pre"], rtol=0, atol=0)


def test_resid_mid_sees_a_replaced_resid_pre():
    model = tiny_model("gpt2")
    read: dict[str, Tensor] = {}
    wanted = [
        (model.site("resid_mid", 1), lambda value: read.update(mid=value)),
        (model.site("resid_pre", 1), lambda value: value + 3),
        (model.site("attn_out", 1), torch.zeros_like),
    ]
    plain: list[Tensor] = []
    with taps(model, [(model.site("resid_pre", 1), plain.append)]):
        model.logits(TOKENS)
    with taps(model, wanted):
        model.logits(TOKENS)
    close(read["mid"], plain[0] + 3, rtol=0, atol=0)


def test_writing_resid_mid_sets_what_the_mlp_reads():
    model = tiny_model("gpt2")
    target, seen = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0)), []
    handle = model.hf.transformer.h[1].ln_2.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with taps(model, [(model.site("resid_mid", 1), lambda _value: target)]):
        model.logits(TOKENS)
    handle.remove()
    close(seen[0], target, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("site", ["resid_post", "resid_mid", "logits", "pattern", "embed"])
def test_a_replacement_of_another_shape_is_refused(site: str):
    model = tiny_model("llama")
    layer = None if site in {"logits", "embed"} else 0
    wanted = [(model.site(site, layer), lambda value: value[..., :1])]
    with pytest.raises(ValueError, match="has shape"), taps(model, wanted):
        model.logits(TOKENS)


def test_gradients_reach_a_replacement():
    """Attribution will need this: the effect of a small change at `resid_mid` and `pattern` has a derivative."""
    model = tiny_model("gpt2")
    for site in ("resid_mid", "attn_out", "pattern", "z"):
        step = torch.zeros((), requires_grad=True)
        with torch.enable_grad(), taps(model, [(model.site(site, 1), lambda value, by=step: value + by)]):
            model.hf(input_ids=TOKENS, use_cache=False).logits[0, -1, 7].backward()
        analytic = float(step.grad)

        def logit(by: float, at: str = site) -> float:
            with taps(model, [(model.site(at, 1), lambda value: value + by)]):
                return float(model.logits(TOKENS)[0, -1, 7])

        numeric = (logit(1e-2) - logit(-1e-2)) / 2e-2
        assert analytic == pytest.approx(numeric, rel=2e-2, abs=1e-3), site


def test_pattern_with_the_interface_equals_plain_eager_attention():
    model = tiny_model("gpt_oss")
    base = model.logits(TOKENS)
    with taps(model, [(model.site("pattern", 0), lambda value: None)]):
        close(model.logits(TOKENS), base, rtol=0, atol=0)


def test_only_the_tapped_layer_is_changed_by_a_pattern():
    model = tiny_model("llama")
    seen: dict[int, Tensor] = {}
    wanted = [(model.site("pattern", layer), lambda value, at=layer: seen.update({at: value})) for layer in range(3)]
    with taps(model, wanted):
        model.logits(TOKENS)
    plain = dict(seen)
    with taps(model, [(model.site("pattern", 1), lambda value: value.flip(1)), *wanted]):
        model.logits(TOKENS)
    close(seen[0], plain[0], rtol=0, atol=0)
    close(seen[1], plain[1].flip(1), rtol=0, atol=0)
    assert (seen[2] - plain[2]).abs().max() > 1e-4


def test_two_models_do_not_disturb_one_another():
    one, two = tiny_model("llama"), tiny_model("llama", seed=1)
    base = two.logits(TOKENS)
    with taps(one, [(one.site("pattern", 0), torch.zeros_like)]):
        close(two.logits(TOKENS), base, rtol=0, atol=0)
        assert two.hf.config._attn_implementation == "eager"


def test_nested_taps_on_patterns():
    model = tiny_model("llama")
    access, outer, inner = model.site("pattern", 1), [], []
    with taps(model, [(access, outer.append)]):
        with taps(model, [(access, inner.append)]):
            model.logits(TOKENS)
        model.logits(TOKENS)
    assert (len(inner), len(outer)) == (1, 2)
    assert model.hf.config._attn_implementation == "eager"


@pytest.mark.parametrize("rows", [1, 3])
def test_flattened_values_are_given_back_in_rows(rows: int):
    model = tiny_model("opt")
    tokens, seen = TOKENS.expand(rows, -1) + torch.arange(rows)[:, None], []
    with taps(model, [(model.site("mlp_out", 1), seen.append)]):
        model.logits(tokens)
    assert seen[0].shape == (rows, 5, 32)
    single: list[Tensor] = []
    with taps(model, [(model.site("mlp_out", 1), single.append)]):
        model.logits(tokens[-1:])
    close(seen[0][-1:], single[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_importing_and_tapping_leaves_other_models_alone(family: str):
    tiny_model(family)
    untouched = tiny_hf(family)
    assert untouched.config._attn_implementation == "eager"
    assert "engramscope" not in str(untouched.config.to_dict())


def test_parts_of_arguments_and_outputs():
    x, y = torch.ones(2), torch.zeros(2)
    pair = OrderedDict(a=1)
    assert output_tensor(x) is x
    assert output_tensor((x, pair)) is x
    assert output_tensor(None) is None
    assert output_tensor((None, x)) is None
    assert with_output((x, pair), y) == (y, pair)
    assert with_output([x, 3], y) == [y, 3]
    assert with_output(x, y) is y
    whole = BaseModelOutputWithPast(last_hidden_state=x, hidden_states=(x,))
    replaced = with_output(whole, y)
    assert replaced.last_hidden_state is y
    assert whole.last_hidden_state is x
    assert replaced.hidden_states == (x,)
    causal = CausalLMOutputWithPast(loss=torch.tensor(1.0), logits=x)
    assert output_tensor(causal) is x
    assert with_output(causal, y).logits is y
    assert with_output(causal, y).loss is causal.loss
    assert input_tensor((x,), {}) is x
    assert input_tensor((), {"mask": y, "hidden_states": x}) is x
    assert input_tensor((), {"flag": True, "x": x}) is x
    assert with_input((x, 1), {"k": 2}, y) == ((y, 1), {"k": 2})
    assert with_input((), {"hidden_states": x, "k": 2}, y) == ((), {"hidden_states": y, "k": 2})


def test_a_named_tuple_keeps_its_type():
    class Both(NamedTuple):
        value: Tensor
        rest: int

    replaced = with_output(Both(torch.ones(2), 3), torch.zeros(2))
    assert isinstance(replaced, Both)
    assert replaced.rest == 3
    assert torch.equal(replaced.value, torch.zeros(2))


def test_an_sdpa_model_gets_eager_attention():
    hf = transformers.AutoModelForCausalLM.from_config(tiny_hf("llama").config, attn_implementation="sdpa")
    before = hf(input_ids=TOKENS).logits.detach()
    model = Model.from_parts(hf, name="sdpa")
    assert hf.config._attn_implementation == "eager"
    close(model.logits(TOKENS), before, rtol=1e-4, atol=1e-5)
    assert isinstance(model.first_block, nn.Module)
