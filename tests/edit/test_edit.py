"""An edit goes in, does what its deltas say, and leaves no bit behind."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engramscope.edit.applied import applied_to
from engramscope.edit.delta import Dense, LowRank, outer, total
from engramscope.edit.edit import Edit, combined, fingerprint, identity
from engramscope.edit.matrices import down_projection, linear_map
from engramscope.edit.storage import export, load_edit
from engramscope.errors import InputError, ResultsError, SiteError
from engramscope.models.model import Model
from engramscope.models.weights import weight_tensors
from tests.edit.small import EDITABLE, FACT, OTHER, shared_model, tiny_with_tokenizer
from tests.tiny_models import tiny_hf, tiny_model


def random_edit(model: Model, layer: int = 1, seed: int = 0, *, dense: bool = False, scale: float = 0.1) -> Edit:
    generator = torch.Generator().manual_seed(seed)
    linear = down_projection(model, layer)
    delta: Any
    if dense:
        delta = Dense(scale * torch.randn(linear.weight.shape, generator=generator))
    else:
        delta = outer(linear, scale * torch.randn(2, linear.n_in, generator=generator),
                      torch.randn(2, linear.n_out, generator=generator))  # fmt: skip
    before = {linear.name: fingerprint(linear.weight)}
    return Edit("test", {linear.name: delta}, (FACT,), {"a": 1}, 3, identity(model), before, ("Well. ",),
                {"facts": [{"loss": 0.5}]}, ("A note.",))  # fmt: skip


def all_bits(model: Model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in weight_tensors(model.hf).items()}


def same_bits(model: Model, bits: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, bits[name]) for name, value in weight_tensors(model.hf).items())


TOKENS = torch.tensor([[5, 9, 20, 7, 33]])


@pytest.mark.parametrize("family", EDITABLE)
@pytest.mark.parametrize("dense", [False, True])
def test_an_edit_changes_the_output_of_its_module_as_its_matrix_says_and_nothing_stays(
    family: str, dense: bool
) -> None:
    model = shared_model(family)
    bits, plain = all_bits(model), model.logits(TOKENS)
    edit = random_edit(model, dense=dense)
    linear = down_projection(model, 1)
    change = edit.deltas[linear.name].dense()
    change = change if linear.stored_as_written else change.T
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    with edit.applied(model):
        handle = linear.module.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
        edited = model.logits(TOKENS)
        handle.remove()
    x, found = seen[0]
    bias = linear.module.bias if linear.module.bias is not None else 0.0
    wanted = x.double() @ (bits[linear.name].double() if linear.stored_as_written else bits[linear.name].double().T)
    torch.testing.assert_close(found.double(), wanted + x.double() @ change.double() + bias, rtol=1e-5, atol=1e-5)
    assert (edited - plain).abs().max() > 1e-3
    assert same_bits(model, bits)
    assert torch.equal(model.logits(TOKENS), plain)


@pytest.mark.parametrize("first_out", [0, 1, 2])
def test_edits_are_taken_out_in_any_order(first_out: int) -> None:
    model = tiny_with_tokenizer("gpt2")
    clean = all_bits(model)
    edits = [random_edit(model, seed=seed) for seed in range(3)]
    for edit in edits:
        edit.apply(model, anyway=True)
    assert applied_to(model.hf) == tuple(edits)
    edits[first_out].revert(model)
    left = [edit for index, edit in enumerate(edits) if index != first_out]
    found = all_bits(model)
    for edit in reversed(left):
        edit.revert(model)
    assert same_bits(model, clean)
    for edit in left:
        edit.apply(model, anyway=True)
    assert same_bits(model, found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("dense", [False, True])
def test_in_half_precision_an_edit_too_small_for_the_weights_still_counts(
    family: str, dtype: torch.dtype, dense: bool
) -> None:
    hf = tiny_hf(family).to(dtype)
    model = Model.from_parts(hf, name="half", check=False)
    linear = down_projection(model, 1)
    edit = random_edit(model, dense=dense, scale=2e-3 if dense else 1e-3)
    bits = all_bits(model)
    seen: list[torch.Tensor] = []
    with edit.applied(model):
        assert same_bits(model, bits)
        handle = linear.module.register_forward_hook(lambda _, args, out: seen.extend((args[0], out)))
        model.logits(TOKENS)
        handle.remove()
    x, found = seen
    change = edit.deltas[linear.name].dense()
    exact = x.float() @ (linear.matrix.float() + (change if linear.stored_as_written else change.T))
    exact = exact if linear.module.bias is None else exact + linear.module.bias.float()
    assert (found.float() - exact).abs().max() <= 3 * torch.finfo(dtype).eps * exact.abs().max()
    assert not torch.equal(found, linear.module(x))
    assert not linear.module._forward_hooks


def test_an_edit_does_not_fit_another_model_or_another_state() -> None:
    model = tiny_with_tokenizer("gpt2")
    edit = random_edit(model)
    with pytest.raises(InputError, match="has another value in gpt2 now"):
        edit.apply(tiny_with_tokenizer("gpt2", seed=1))
    with pytest.raises(InputError, match=r"has no parameter transformer\.h\.1\.mlp\.c_proj\.weight"):
        edit.apply(tiny_with_tokenizer("llama"))
    with pytest.raises(InputError, match="is not in the model"):
        edit.revert(model)
    other = random_edit(model, seed=1)
    with edit.applied(model):
        with pytest.raises(InputError, match="in the model already"):
            edit.apply(model, anyway=True)
        with pytest.raises(InputError, match="another value"):
            other.apply(model)
        again = random_edit(model, seed=2)
        with again.applied(model):
            pass
    with pytest.raises(SiteError, match="cannot be edited in its MLPs"):
        down_projection(tiny_model("mixtral"), 0)
    with pytest.raises(SiteError, match="not a linear map"):
        linear_map(model, "transformer.h.0")
    with pytest.raises(SiteError, match="no layer 9"):
        down_projection(model, 9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_edit_does_not_fit_a_model_that_differs_elsewhere(dtype: torch.dtype) -> None:
    model = tiny_with_tokenizer("gpt2")
    model.hf.to(dtype)
    first = random_edit(model, layer=0)
    with first.applied(model):
        second = random_edit(model, layer=1)
        with second.applied(model):
            pass
    with pytest.raises(InputError, match="with other edits in it, and there are none in gpt2 now"):
        second.apply(model)
    second.apply(model, anyway=True)
    second.revert(model)
    with torch.no_grad():
        model.hf.transformer.h[0].attn.c_attn.weight.mul_(1.5)
    with pytest.raises(InputError, match="weights that it does not change have other values"):
        first.apply(model)
    first.apply(model, anyway=True)
    first.revert(model)


def test_an_edit_that_cannot_go_in_whole_does_not_go_in_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_with_tokenizer("gpt2")
    bits = all_bits(model)
    one, two = random_edit(model, layer=0), random_edit(model, layer=1)
    both = replace(one, deltas={**one.deltas, **two.deltas})
    narrow = replace(both, deltas={**one.deltas, **{name: Dense(torch.ones(1, 5)) for name in two.deltas}})
    with pytest.raises(InputError, match=r"no parameter transformer\.h\.1\.mlp\.c_proj\.weight of shape \(1, 5\)"):
        narrow.apply(model, anyway=True)
    with pytest.raises(InputError, match=r"no parameter transformer\.h\.0"):
        both.apply(tiny_with_tokenizer("llama"), anyway=True)
    last, dense = [*both.deltas.values()][-1], LowRank.dense

    def refused(delta: LowRank) -> torch.Tensor:
        if delta is last:
            raise MemoryError
        return dense(delta)

    with monkeypatch.context() as patched:
        patched.setattr(LowRank, "dense", refused)
        with pytest.raises(MemoryError):
            both.apply(model)
    assert same_bits(model, bits)
    assert applied_to(model.hf) == ()
    with both.applied(model):
        assert not same_bits(model, bits)
    assert same_bits(model, bits)


def test_the_hash_of_a_loaded_model_follows_its_edits(tmp_path: Path) -> None:
    from engramscope.models.load import load_model

    shared_model("gpt2").hf.save_pretrained(tmp_path / "m")
    shared_model("gpt2").tokenizer.save_pretrained(tmp_path / "m")
    model = load_model(str(tmp_path / "m"), device="cpu")
    known = model.weight_hash()
    edit = random_edit(model)
    with edit.applied(model):
        assert model.weight_hash() != known
        assert identity(model)["hash"] == known
        assert identity(model)["edited"]
    assert model.weight_hash() == known
    assert not identity(model)["edited"]


@pytest.mark.parametrize("dense", [False, True])
def test_saved_and_loaded(tmp_path: Path, dense: bool) -> None:
    model = shared_model("llama")
    edit = random_edit(model, dense=dense)
    edit.save(tmp_path / "a.safetensors")
    again = load_edit(tmp_path / "a.safetensors")
    for name in ("method", "facts", "settings", "seed", "model", "before", "prefixes", "diagnostics", "notes"):
        assert getattr(again, name) == getattr(edit, name), name
    for name, delta in edit.deltas.items():
        assert torch.equal(again.deltas[name].dense(), delta.dense())
        assert type(again.deltas[name]) is type(delta)
    with again.applied(model):
        pass
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-3])
    with pytest.raises(InputError, match="damaged"):
        load_edit(tmp_path / "b.safetensors")
    with pytest.raises(InputError, match="There is no edit"):
        load_edit(tmp_path / "c.safetensors")


def test_what_several_matrices_are_given_alike_is_saved(tmp_path: Path) -> None:
    model = shared_model("gpt2")
    first, second = down_projection(model, 0), down_projection(model, 1)
    value = torch.randn(1, first.n_out)
    deltas = {linear.name: outer(linear, torch.ones(1, linear.n_in), value) for linear in (first, second)}
    replace(random_edit(model), deltas=deltas).save(tmp_path / "a.safetensors")
    again = load_edit(tmp_path / "a.safetensors")
    for name, delta in deltas.items():
        assert torch.equal(again.deltas[name].dense(), delta.dense())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_exported_checkpoint_is_the_edited_model(
    tmp_path: Path, family: str, capfd: pytest.CaptureFixture[str]
) -> None:
    model = shared_model(family)
    edit = random_edit(model)
    with edit.applied(model):
        wanted = model.logits(TOKENS)
    assert edit.export(model, tmp_path / "out") == pytest.approx(1.0, abs=1e-6)
    # no bar of the library that writes it
    assert capfd.readouterr() == ("", "")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(again(TOKENS).logits.detach(), wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model.logits(TOKENS), wanted)
    half = Model.from_parts(tiny_hf(family, vocab_size=model.anatomy.vocab).bfloat16(), name="half", check=False)
    assert export(random_edit(half, scale=1e-4), half, tmp_path / "half") < 0.9


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_exported_checkpoint_holds_the_edits_that_were_in_the_model_before(
    tmp_path: Path, family: str, dtype: torch.dtype
) -> None:
    model = Model.from_parts(tiny_hf(family).to(dtype), name="two", check=False)
    first, second = random_edit(model, layer=0), random_edit(model, layer=1, seed=1)
    with first.applied(model):
        third = random_edit(model, layer=0, seed=2)
        with second.applied(model), third.applied(model):
            wanted = model.logits(TOKENS).float()
        with second.applied(model):
            share = third.export(model, tmp_path / "out")
            with third.applied(model), pytest.raises(InputError, match=r"in the model already|another value"):
                third.export(model, tmp_path / "twice")
    assert share == pytest.approx(1.0, abs=0.02)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=dtype).eval()
    error = (again(TOKENS).logits.detach().float() - wanted).abs().max()
    # the weights of the checkpoint are rounded
    assert error <= 16 * torch.finfo(dtype).eps * wanted.abs().max()
    assert error < 0.2 * (model.logits(TOKENS).float() - wanted).abs().max()


def test_a_full_disk_leaves_no_half_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_with_tokenizer("gpt2")

    def full(folder: str, **more: Any) -> None:
        (Path(folder) / "config.json").write_text("{}")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(model.hf, "save_pretrained", full)
    with pytest.raises(ResultsError, match="the disk is full"):
        random_edit(model).export(model, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_sums_and_norms_of_deltas_are_those_of_the_matrices() -> None:
    model = shared_model("llama")
    one, two = random_edit(model, seed=1), random_edit(model, seed=2)
    (name,) = one.deltas
    both = one.deltas[name].dense() + two.deltas[name].dense()
    summed = total([one.deltas[name], two.deltas[name]])
    assert isinstance(summed, LowRank)
    torch.testing.assert_close(summed.dense(), both)
    assert summed.norm() == pytest.approx(float(both.norm()), rel=1e-5)
    assert isinstance(total([summed] * 9), Dense)
    torch.testing.assert_close(total([summed] * 9).dense(), 9 * both, rtol=1e-4, atol=1e-4)
    assert one.norms(model)[name] == pytest.approx(
        float(one.deltas[name].dense().norm() / model.hf.get_parameter(name).detach().norm()), rel=1e-5
    )


def test_one_edit_of_two_is_both_in_order() -> None:
    model = tiny_with_tokenizer("gpt2")
    first = random_edit(model, seed=1)
    with first.applied(model):
        second = random_edit(model, seed=2)
        with second.applied(model):
            wanted = model.logits(TOKENS)
    both = combined([first, second])
    with both.applied(model):
        torch.testing.assert_close(model.logits(TOKENS), wanted, rtol=1e-5, atol=1e-5)
    assert len(both.diagnostics["facts"]) == 2


def test_facts_at_fault_are_named() -> None:
    from engramscope.records.fact import Fact, ensure_facts

    with pytest.raises(InputError) as caught:
        ensure_facts([
            Fact("Anna met Anna at", "Anna", "home"), Fact("Bob is at", "Anna", "home"),
            Fact("Bob is at", "Bob", "home", " home"), Fact("Bob is at ", "Bob", "home"),
            Fact("", "Bob", "home"), OTHER,
        ])  # fmt: skip
    for part, fault in zip(("2 times", "does not stand", "is the old one", "white space", "no prompt"),
                           caught.value.faults, strict=True):  # fmt: skip
        assert part in fault
    with pytest.raises(InputError, match="no fact"):
        ensure_facts([])
