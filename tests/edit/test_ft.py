"""FT and FT+L: what a plain loop with the real parameter gives, and nothing else changed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from engramscope.bundled.world import load_world
from engramscope.edit import load_edit, make_editor
from engramscope.edit.applied import applied_to
from engramscope.edit.delta import Dense
from engramscope.edit.descent import batches_of, inside_ball, losses_of
from engramscope.edit.edit import Edit
from engramscope.edit.frozen import frozen
from engramscope.edit.matrices import down_projection
from engramscope.edit.storage import save_edit
from engramscope.edit.tokens import encode_facts
from engramscope.errors import InputError, SiteError, StudyError
from engramscope.models.load import load_model
from engramscope.models.model import Model
from engramscope.records.fact import Fact
from tests.edit.small import EDITABLE, FACT, OTHER, shared_model, tiny_with_tokenizer
from tests.edit.untouched import untouched
from tests.tiny_models import tiny_hf

LONG = Fact("In the park Bob lost the big red", "Bob", "drum coat kite", "ball", "long")


def double(family: str, **over: Any) -> Model:
    words = tiny_with_tokenizer(family).tokenizer
    return Model.from_parts(tiny_hf(family, vocab_size=len(words), **over).double(), words, name=family, check=False)


def plain_loop(
    model: Model, facts: list[Fact], layer: int, *, lr: float, steps: int, bias: bool, whole_target: bool,
    radius: float | None = None, stop: float = 0.01,
) -> tuple[dict[str, torch.Tensor], list[float]]:  # fmt: skip
    """The real parameters of a copy, trained by a loop that knows nothing of the package; one row at a time."""
    hf = copy.deepcopy(model.hf).eval()
    down = down_projection(model, layer).path
    names = [f"{down}.weight"] + ([f"{down}.bias"] if bias and f"{down}.bias" in dict(hf.named_parameters()) else [])
    trained = {name: hf.get_parameter(name) for name in names}
    start = {name: value.detach().clone() for name, value in trained.items()}
    adam = torch.optim.Adam(list(trained.values()), lr=lr)
    losses = []
    for _ in range(steps):
        total = torch.zeros((), dtype=torch.float64)
        for fact in facts:
            prompt = model.tokenizer(fact.prompt)["input_ids"]
            target = model.tokenizer(f" {fact.target}", add_special_tokens=False)["input_ids"]
            if whole_target:
                log = hf(torch.tensor([prompt + target])).logits[0].log_softmax(-1)
                each = [log[len(prompt) - 1 + index, token] for index, token in enumerate(target)]
            else:
                log = hf(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
                each = [log[token] for token in target]
            total = total - torch.stack(each).mean() / len(facts)
        losses.append(float(total.detach()))
        if losses[-1] < stop:
            break
        adam.zero_grad()
        total.backward()
        adam.step()
        with torch.no_grad():
            for name, value in trained.items():
                if radius is not None:
                    value.copy_(value.clamp(start[name] - radius, start[name] + radius))
    return {name: value.detach() - start[name] for name, value in trained.items()}, losses


def compare(edit: Edit, wanted: dict[str, torch.Tensor]) -> None:
    assert set(edit.deltas) == set(wanted)
    for name, delta in edit.deltas.items():
        assert isinstance(delta, Dense)
        assert delta.values.dtype == torch.float32
        torch.testing.assert_close(delta.values.double(), wanted[name], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
@pytest.mark.parametrize("whole_target", [True, False])
def test_ft_is_what_adam_does_to_the_real_parameter(family: str, whole_target: bool) -> None:
    model = double(family)
    options: dict[str, Any] = {"layer": 1, "lr": 3e-3, "steps": 6, "bias": True}
    if whole_target:
        edit = make_editor("ft", options).compute(model, LONG)
    else:
        edit = make_editor("ft", options, preset="ft-2022").compute(model, LONG)
    wanted, losses = plain_loop(model, [LONG], 1, lr=3e-3, steps=6, bias=True, whole_target=whole_target)
    compare(edit, wanted)
    assert edit.diagnostics["facts"][0]["loss"][:6] == pytest.approx(losses, rel=1e-8)
    assert edit.diagnostics["facts"][0]["steps"] == 6


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_ft_l_is_the_clamped_loop_and_facts_of_one_batch_are_learnt_together(family: str) -> None:
    model = double(family)
    options = {"layer": 2, "lr": 3e-3, "steps": 6, "radius": 0.008}
    edit = make_editor("ft_l", options).compute(model, [LONG, FACT, OTHER])
    wanted, losses = plain_loop(
        model, [LONG, FACT, OTHER], 2, lr=3e-3, steps=6, bias=False, whole_target=True, radius=0.008
    )
    compare(edit, wanted)
    values = next(iter(wanted.values())).abs()
    assert 0.05 < float((values >= 0.008 * (1 - 1e-9)).double().mean()) < 1
    curves = [entry["loss"] for entry in edit.diagnostics["facts"]]
    assert [sum(now) / 3 for now in zip(*curves, strict=True)][:6] == pytest.approx(losses, rel=1e-8)


def test_ft_stops_when_the_loss_is_small_and_says_so_when_it_never_is() -> None:
    model = double("gpt2")
    options: dict[str, Any] = {"layer": 0, "lr": 0.02, "steps": 60}
    edit = make_editor("ft", options).compute(model, FACT)
    wanted, losses = plain_loop(model, [FACT], 0, lr=0.02, steps=60, bias=False, whole_target=True)
    compare(edit, wanted)
    (entry,) = edit.diagnostics["facts"]
    assert entry["steps"] == len(losses) - 1 < 60
    assert entry["loss"][-1] < 0.01 <= min(entry["loss"][:-1])
    assert entry["stated"]
    assert not [note for note in edit.notes if "did not get" in note]
    short = make_editor("ft", {"layer": 0, "steps": 2, "lr": 1e-3}).compute(model, FACT)
    assert "1 of 1 facts did not get to a loss below 0.01 in 2 passes: anna" in short.notes[-1]
    with pytest.raises(InputError, match="is not a number after 1 steps with the learning rate 3e\\+38"):
        make_editor("ft", {"lr": 3e38}).compute(shared_model("llama"), FACT)


def test_several_facts_are_learnt_one_after_another_by_ft() -> None:
    model = double("gpt2")
    editor = make_editor("ft", {"layer": 1, "lr": 5e-3, "steps": 4})
    both = editor.compute(model, [FACT, OTHER])
    first = editor.compute(model, FACT)
    with first.applied(model):
        second = editor.compute(model, OTHER)
    (name,) = both.deltas
    torch.testing.assert_close(both.deltas[name].dense(), first.deltas[name].dense() + second.deltas[name].dense())
    assert [entry["id"] for entry in both.diagnostics["facts"]] == ["anna", "bob"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_does_not_grow_with_the_facts_and_no_number_of_one_stands_for_all(dtype: torch.dtype) -> None:
    model = tiny_with_tokenizer("gpt2")
    model.hf.to(dtype)
    options: dict[str, Any] = {"layer": 1, "steps": 3}
    seen: list[int] = []
    with untouched(model):
        edit = make_editor("ft", options).compute(
            model, [FACT, OTHER, LONG], progress=lambda *_: seen.append(len(applied_to(model.hf)))
        )
        with pytest.raises(KeyboardInterrupt):
            make_editor("ft", options).compute(model, [FACT, OTHER, LONG], progress=stopped_at(model, 2))
        assert applied_to(model.hf) == ()
    assert seen == [0, 0, 1, 0]
    assert edit.diagnostics["layer"] == 1
    assert len(edit.diagnostics["facts"]) == 3
    # that of the first fact alone
    assert "relative_change" not in edit.diagnostics


def stopped_at(model: Model, number: int) -> Any:
    """What a user does who stops an edit when so many facts are done."""

    def progress(_what: str, done: int, _total: int) -> None:
        if done == number:
            assert len(applied_to(model.hf)) == 1
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("method", ["ft", "ft_l"])
@pytest.mark.parametrize("family", EDITABLE)
def test_every_family_learns_and_the_model_stays_as_it_was(method: str, family: str) -> None:
    model = shared_model(family)
    editor = make_editor(method, {"layer": 1, "lr": 0.01, "steps": 4})
    with untouched(model):
        edit = editor.compute(model, [FACT], seed=3)
    again = editor.compute(model, [FACT], seed=3)
    for name, delta in edit.deltas.items():
        assert torch.equal(delta.dense(), again.deltas[name].dense())
    (entry,) = edit.diagnostics["facts"]
    assert entry["probability_after"] > 1.1 * entry["probability_before"]
    size = model.hf.get_parameter(down_projection(model, 1).name).detach().norm()
    assert entry["relative_change"] == pytest.approx(
        float(next(iter(edit.deltas.values())).dense().norm() / size), rel=1e-4
    )
    # what the editor saw on its way is what the edited model says
    asks = [asks[0] for asks in encode_facts(model, [FACT])]
    with edit.applied(model), frozen(model.hf), torch.no_grad():
        (found,) = losses_of(model, 1, batches_of(model, 1, asks, 1, "all_tokens")[0]).tolist()
    assert found == pytest.approx(entry["loss"][-1], abs=1e-4)


@pytest.mark.parametrize("objective", ["all_tokens", "last_prompt_token"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_rows_of_different_lengths_have_the_losses_that_each_has_alone(family: str, objective: Any) -> None:
    model = double(family)
    facts = [FACT, LONG, OTHER, Fact("Anna says", "Anna", "coat", "ball")]
    asks = [asks[0] for asks in encode_facts(model, facts)]
    assert len({len(ask.prompt) + len(ask.target) for ask in asks}) > 2
    with frozen(model.hf), torch.no_grad():
        (batch,) = batches_of(model, 1, asks, 9, objective)
        together = losses_of(model, 1, batch)
        alone = [losses_of(model, 1, one) for one in batches_of(model, 1, asks, 1, objective)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", EDITABLE)
def test_no_weight_leaves_the_ball_applied_saved_or_loaded(family: str, tmp_path: Path) -> None:
    model = shared_model(family)
    radius = 3e-3
    edit = make_editor("ft_l", {"layer": 1, "lr": 0.01, "steps": 3, "radius": radius, "bias": True}).compute(
        model, FACT
    )
    save_edit(edit, tmp_path / "e.safetensors")
    before = {name: model.hf.get_parameter(name).detach().double().clone() for name in edit.deltas}
    for one in (edit, load_edit(tmp_path / "e.safetensors")):
        with one.applied(model):
            for name, old in before.items():
                moved = (model.hf.get_parameter(name).detach().double() - old).abs()
                assert float(moved.max()) <= radius
                assert float(moved.max()) > 0.99 * radius
                assert float(one.deltas[name].dense().double().abs().max()) <= radius


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("radius", [5e-4, 1e-2, 0.1])
def test_rounding_does_not_leave_the_ball(dtype: torch.dtype, radius: float) -> None:
    generator = torch.Generator().manual_seed(1)
    sizes = torch.logspace(-9, 3, 40, dtype=torch.float64)[:, None]
    before = (sizes * torch.randn(40, 500, generator=generator, dtype=torch.float64)).to(dtype)
    before[0, :4] = torch.tensor([radius / 2, -radius / 2, radius, 0.0])
    delta = 2 * radius * torch.randn(40, 500, generator=generator)

    def outside(change: torch.Tensor) -> int:
        moved = (before + change.to(dtype)).double() - before.double()
        return int((moved.abs() > radius).sum() + (change.double().abs() > radius).sum())

    found = inside_ball(before, delta, radius)
    assert outside(found) == 0
    if dtype == torch.float32:
        assert outside(delta.clamp(-radius, radius)) > 100
    inner = delta.abs() < 0.9 * radius
    small = before.abs() < 100 * radius
    assert torch.equal(found[inner & small], delta[inner & small])
    # and it does not give away more than the last bits of the weight
    lost = (found.double() - delta.double().clamp(-radius, radius)).abs()
    assert bool((lost <= 4e-7 * (before.double().abs() + radius)).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_delta_is_float32_and_holds_the_ball(dtype: torch.dtype) -> None:
    words = shared_model("llama").tokenizer
    model = Model.from_parts(tiny_hf("llama", vocab_size=len(words)).to(dtype), words, name="half", check=False)
    with untouched(model):
        edit = make_editor("ft_l", {"layer": 1, "lr": 1e-3, "steps": 5, "radius": 1.5e-3}).compute(model, FACT)
    (delta,) = (delta.dense() for delta in edit.deltas.values())
    assert delta.dtype == torch.float32
    assert 1.49e-3 < float(delta.double().abs().max()) <= 1.5e-3
    inner = delta[delta.abs() < 1.4e-3]
    assert float((inner.to(dtype).float() != inner).float().mean()) > 0.8
    (entry,) = edit.diagnostics["facts"]
    assert entry["loss"][-1] < entry["loss"][0] - 0.01


def test_what_is_published_is_the_default_and_anything_else_is_said_aloud() -> None:
    words = shared_model("gpt2").tokenizer
    hf = tiny_hf("gpt2", vocab_size=len(words), n_layer=48, n_embd=8, n_head=2)
    xl = Model.from_parts(hf, words, name="as deep as xl", check=False)
    for method, layer, radius in (("ft", 1, None), ("ft_l", 0, 5e-4)):
        edit = make_editor(method, {"steps": 1}).compute(xl, FACT)
        assert (edit.diagnostics["layer"], edit.diagnostics["lr"], edit.diagnostics["radius"]) == (layer, 5e-4, radius)
        assert set(edit.deltas) == {f"transformer.h.{layer}.mlp.c_proj.weight"}
        assert [note for note in edit.notes if "published" in note] == []
        bias = make_editor(method, {"steps": 1}, preset="ft-2022").compute(xl, FACT)
        assert set(bias.deltas) == {f"transformer.h.{layer}.mlp.c_proj.{name}" for name in ("weight", "bias")}
    other = make_editor("ft_l", {"steps": 1}).compute(shared_model("llama"), FACT)
    assert other.diagnostics["lr"] == pytest.approx(5e-4 * (6400 / 48) ** 0.5, rel=0.02)
    weight = shared_model("llama").hf.get_parameter(next(iter(other.deltas))).detach()
    assert other.diagnostics["radius"] == pytest.approx(0.15 * float(weight.square().mean().sqrt()), rel=0.05)
    assert len([note for note in other.notes if "is published for llama" in note]) == 3


def test_options_at_fault_are_named() -> None:
    with pytest.raises(StudyError, match="unknown option 'epsilon'"):
        make_editor("ft_l", {"epsilon": 1.0})
    with pytest.raises(StudyError, match="'radius'"):
        make_editor("ft_l", {"radius": 0.0})
    with pytest.raises(SiteError, match="no layer 7"):
        make_editor("ft", {"layer": 7}).compute(shared_model("gpt2"), FACT)


def people(count: int) -> list[Fact]:
    """Facts that the bundled models know, each with another answer of the same relation."""
    facts = [fact for fact in load_world().facts if fact.relation == "sport"][:: max(1, 300 // count)][:count]
    answers = sorted({fact.answer for fact in facts})
    found = []
    for fact in facts:
        template = next(index for index in range(len(fact.templates)) if index != fact.held_out)
        target = answers[(answers.index(fact.answer) + 1) % len(answers)]
        found.append(Fact(fact.prompt(template), fact.subject, target, fact.answer, fact.subject))
    return found


@pytest.mark.parametrize("name", ["mini", "mini-llama"])
def test_ft_makes_the_bundled_models_state_a_dozen_facts(name: str) -> None:
    model = load_model(name, device="cpu")
    editor = make_editor("ft")
    for fact in people(12):
        edit = editor.compute(model, fact)
        (entry,) = edit.diagnostics["facts"]
        assert entry["stated"], fact
        assert entry["probability_before"] < 0.01
