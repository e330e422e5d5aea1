"""One kernel for a linear module and the activation function behind it: the same values, or it is not used."""

from __future__ import annotations

import platform

import pytest
import torch
from torch import nn

from engramscope.models import Model
from engramscope.models.fused import FusedLinears, fused_activations
from tests.tiny_models import tiny_hf, tiny_model

TOKENS = torch.tensor([[13, 11, 25, 17, 42]])
#: families -> the modules of a block that are fused, and what their activation is
FUSED = {
    "gpt2": ("mlp.c_fc", "mlp.act"),
    "gptj": ("mlp.fc_in", "mlp.act"),
    "gpt_neox": ("mlp.dense_h_to_4h", "mlp.act"),
    "phi": ("mlp.fc1", "mlp.activation_fn"),
    "opt": ("fc1", "activation_fn"),
    "llama": ("mlp.gate_proj", "mlp.act_fn"),
    "gemma2": ("mlp.gate_proj", "mlp.act_fn"),
}

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available(),
    reason="the kernels are those of oneDNN on x86 processors",
)


def fused_of(model: Model, least: int = 0) -> FusedLinears:
    return FusedLinears(model, TOKENS, least=least)


def parts(model: Model, family: str, layer: int = 0) -> tuple[nn.Module, nn.Module]:
    linear, activation = (model.blocks[layer].get_submodule(name) for name in FUSED[family])
    return linear, activation


def is_taken(model: Model, family: str, tokens: int = 5, least: int = 0, **given: object) -> bool:
    linear, _ = parts(model, family)
    with fused_of(model, least).taken(0, tokens, **{"accesses": (), **given}):  # type: ignore[arg-type]
        return "forward" in linear.__dict__


@pytest.mark.parametrize("family", FUSED)
def test_the_kernel_gives_what_the_two_modules_give(family: str) -> None:
    model = tiny_model(family)
    fused = fused_of(model)
    assert len(fused) == model.anatomy.n_layers
    for layer in range(model.anatomy.n_layers):
        linear, activation = parts(model, family, layer)
        hidden = 3 * torch.randn((1, 70, linear.weight.shape[0 if family == "gpt2" else 1]))  # type: ignore[index]
        with torch.no_grad():
            wanted = activation(linear(hidden))
            with fused.taken(layer, 70, ()):
                found = activation(linear(hidden))
        assert found.shape == wanted.shape
        torch.testing.assert_close(found, wanted, atol=3e-6, rtol=1e-5)
        assert not torch.equal(wanted, linear(hidden)), "an activation that does nothing would not show"


@pytest.mark.parametrize("family", FUSED)
def test_the_model_is_afterwards_what_it_was(family: str) -> None:
    model = tiny_model(family)
    before, modules = model.logits(TOKENS), list(model.hf.modules())
    state = [dict(module.__dict__) for module in modules]
    with pytest.raises(RuntimeError, match="in the middle"), fused_of(model).taken(1, 5, ()):
        raise RuntimeError("in the middle")
    assert [dict(module.__dict__) for module in modules] == state
    assert torch.equal(model.logits(TOKENS), before)


@pytest.mark.parametrize("family", FUSED)
def test_what_lies_between_the_two_modules_is_there_when_it_is_looked_at(family: str) -> None:
    model = tiny_model(family)
    linear, activation = FUSED[family]
    block = model.anatomy.blocks[0]
    assert is_taken(model, family)
    assert not is_taken(model, family, accesses=[model.site(f"{block}.{linear}")])
    # behind the activation all is as ever
    assert is_taken(model, family, accesses=[model.site(f"{block}.{activation}"), model.site("mlp_act", 0)])
    assert is_taken(model, family, accesses=[model.site(f"{model.anatomy.blocks[1]}.{linear}")])


def test_few_tokens_are_not_worth_it() -> None:
    model = tiny_model("gpt2")
    assert not is_taken(model, "gpt2", tokens=99, least=100)
    assert is_taken(model, "gpt2", tokens=100, least=100)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("kind", ["after", "before", "forward"])
def test_modules_that_somebody_has_changed_are_left_alone(place: int, kind: str) -> None:
    model = Model.from_parts(tiny_hf("gpt2"))
    module = parts(model, "gpt2")[place]
    fused = fused_of(model)
    if kind == "after":
        module.register_forward_hook(lambda *_: None)
    elif kind == "before":
        module.register_forward_pre_hook(lambda *_: None)
    else:
        own = module.forward
        module.forward = lambda given: own(given) + 1
    linear, _ = parts(model, "gpt2")
    mine = linear.__dict__.get("forward")
    with fused.taken(0, 5, ()):
        assert linear.__dict__.get("forward") is mine


def test_the_fused_form_of_gelu_does_not_count_as_a_change() -> None:
    model = tiny_model("gpt2")
    with fused_activations(model.hf):
        assert is_taken(model, "gpt2")


def test_weights_are_those_of_the_moment() -> None:
    model = Model.from_parts(tiny_hf("gpt2"))
    fused, (linear, activation) = fused_of(model), parts(model, "gpt2")
    with torch.no_grad():
        linear.weight.mul_(-2)  # type: ignore[operator]
        hidden = torch.randn((1, 5, 32))
        wanted = activation(linear(hidden))
        with fused.taken(0, 5, ()):
            torch.testing.assert_close(activation(linear(hidden)), wanted, atol=3e-6, rtol=1e-5)


def test_values_that_are_not_finite_stay_so() -> None:
    model = tiny_model("gpt2")
    linear, activation = parts(model, "gpt2")
    hidden = torch.randn((1, 4, 32))
    hidden[0, 1, 3], hidden[0, 2, 3] = float("nan"), float("inf")
    with torch.no_grad(), fused_of(model).taken(0, 5, ()):
        found = activation(linear(hidden))
    assert torch.isfinite(found[0, [0, 3]]).all()
    assert not torch.isfinite(found[0, 1]).any()
    assert not torch.isfinite(found[0, 2]).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_number_types_are_computed_as_ever(dtype: torch.dtype) -> None:
    assert len(fused_of(Model.from_parts(tiny_hf("gpt2").to(dtype), check=False))) == 0


def test_a_lower_precision_of_products_is_not_made_lower_still() -> None:
    model = tiny_model("gpt2")
    torch.set_float32_matmul_precision("medium")
    try:
        assert not is_taken(model, "gpt2")
    finally:
        torch.set_float32_matmul_precision("highest")


def test_an_activation_that_is_written_out_in_the_model_is_not_known() -> None:
    model = Model.from_parts(tiny_hf("gpt2", activation_function="gelu_python_tanh"))
    assert len(fused_of(model)) == 0
    assert len(fused_of(Model.from_parts(tiny_hf("gpt2", activation_function="gelu_pytorch_tanh")))) == 3
