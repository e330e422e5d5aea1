"""Knowledge neurons: attributions against a loop with one scale at a time, and what is written into which rows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from engramscope.edit import make_editor
from engramscope.edit.delta import LowRank
from engramscope.edit.editors.kn import attribution
from engramscope.edit.editors.kn.attribution import Question, attributions, points_of
from engramscope.edit.editors.kn.editor import _ports, knowledge_neurons
from engramscope.edit.frozen import frozen
from engramscope.edit.matrices import down_projection
from engramscope.edit.tokens import Ask, encode
from engramscope.errors import InputError
from engramscope.models.model import Model
from engramscope.records.fact import Fact
from tests.edit.small import EDITABLE, FACT, OTHER, shared_model, tiny_with_tokenizer
from tests.edit.untouched import untouched
from tests.tiny_models import tiny_hf

LONG = Fact("In the park Bob lost the big red", "Bob", "boat coat", "drum coat kite", "long")


def double(family: str) -> Model:
    words = tiny_with_tokenizer(family).tokenizer
    return Model.from_parts(tiny_hf(family, vocab_size=len(words)).double(), words, name=family, check=False)


def probability(
    model: Model, prompt: list[int], target: list[int], module: Any, before: bool, neurons: Tensor | None
) -> tuple[Tensor, Tensor]:
    """P of the whole target with the neurons of one module at the last prompt position replaced; and these neurons."""
    place, seen = len(prompt) - 1, []

    def change(value: Tensor) -> Tensor:
        seen.append(value[0, place].detach().clone())
        if neurons is None:
            return value
        new = value.clone()
        new[0, place] = neurons
        return new

    if before:
        handle = module.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
    else:
        handle = module.register_forward_hook(lambda _, args, out: change(out))
    try:
        log = model.hf(torch.tensor([prompt + target])).logits[0].log_softmax(-1)
    finally:
        handle.remove()
    total = torch.stack([log[place + index, token] for index, token in enumerate(target)]).sum()
    return total.exp(), seen[0]


def naive(
    model: Model, prompt: list[int], target: list[int], module: Any, before: bool, scales: list[float]
) -> Tensor:  # fmt: skip
    """(w/M) Σ dP/dw, one point at a time."""
    with torch.no_grad():
        _, w = probability(model, prompt, target, module, before, None)
    total = torch.zeros_like(w)
    for scale in scales:
        point = (scale * w).requires_grad_()
        value, _ = probability(model, prompt, target, module, before, point)
        (gradient,) = torch.autograd.grad(value, point)
        total += gradient
    return w * total / len(scales)


def question_of(model: Model, fact: Fact) -> Question:
    assert fact.true is not None
    return Question(encode(model, [fact.prompt], [fact.true])[0])


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "gemma2"])
@pytest.mark.parametrize("fact", [FACT, LONG])
def test_attributions_are_those_of_a_loop_with_one_scale_at_a_time(family: str, fact: Fact) -> None:
    model, steps = double(family), 5
    question = question_of(model, fact)
    prompt, target = list(question.ask.prompt), list(question.ask.target)
    assert len(target) == (3 if fact is LONG else 1)
    with frozen(model.hf):
        found = attributions(model, question, _ports(model, "post"), points_of("right", steps))
    assert len(found) == model.anatomy.n_layers
    for layer, one in enumerate(found):
        module = down_projection(model, layer).module
        wanted = naive(model, prompt, target, module, True, [s / steps for s in range(1, steps + 1)])
        size = wanted.abs().max()
        # the others compute softmax and norms in float32 whatever the dtype
        atol = 1e-10 if family == "gpt2" else 2e-6
        torch.testing.assert_close(one.neurons / size, wanted / size, rtol=0, atol=atol)
        with torch.no_grad():
            whole, w = probability(model, prompt, target, module, True, None)
            zero, _ = probability(model, prompt, target, module, True, torch.zeros_like(w))
        assert one.at_activation == pytest.approx(float(whole), rel=1e-5)
        assert one.at_zero == pytest.approx(float(zero), rel=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_attributions_add_up_to_the_change_of_probability_as_steps_grow(family: str) -> None:
    model = double(family)
    question = question_of(model, LONG)
    prompt, target = list(question.ask.prompt), list(question.ask.target)
    gaps: dict[tuple[str, int], list[float]] = {}
    for rule, steps in (("right", 20), ("right", 40), ("right", 400), ("midpoint", 20), ("midpoint", 40)):
        with frozen(model.hf):
            found = attributions(model, question, _ports(model, "post"), points_of(rule, steps))
        for layer, one in enumerate(found):
            module = down_projection(model, layer).module
            with torch.no_grad():
                whole, w = probability(model, prompt, target, module, True, None)
                zero, _ = probability(model, prompt, target, module, True, torch.zeros_like(w))
            missed = abs(float(one.neurons.sum()) - float(whole - zero)) / abs(float(whole - zero))
            assert one.gap == pytest.approx(missed * abs(float(whole - zero)), rel=1e-3, abs=1e-16)
            gaps.setdefault((rule, steps), []).append(missed)
    for layer in range(model.anatomy.n_layers):
        at = {key: values[layer] for key, values in gaps.items()}
        assert at["right", 20] / at["right", 40] == pytest.approx(2, rel=0.2)
        assert at["midpoint", 20] / at["midpoint", 40] == pytest.approx(4, rel=0.2)
        assert at["right", 400] < at["right", 40] / 8
        assert at["midpoint", 40] < at["right", 40]


def test_points_of_the_three_rules() -> None:
    assert points_of("right", 4).tolist() == [0.25, 0.5, 0.75, 1.0]
    assert points_of("midpoint", 4).tolist() == [0.125, 0.375, 0.625, 0.875]
    torch.testing.assert_close(points_of("linspace", 20), torch.linspace(0, 1, 20, dtype=torch.float64))
    assert points_of("linspace", 1).tolist() == [0.0]


@pytest.mark.parametrize("steps", [3, 7])
def test_points_in_several_batches_are_those_in_one(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = double("llama")
    question, ports = question_of(model, FACT), _ports(model, "post")
    with frozen(model.hf):
        whole = attributions(model, question, ports, points_of("right", steps))
        monkeypatch.setattr(attribution, "TOKENS", 2 * len(question.ask.prompt))
        parts = attributions(model, question, ports, points_of("right", steps))
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one.neurons, other.neurons, rtol=1e-10, atol=1e-16)
        assert one.at_zero == pytest.approx(other.at_zero, rel=1e-12)


def head_rows(model: Model) -> Tensor:
    return model.hf.get_output_embeddings().weight.detach().float()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("fact", [FACT, LONG])
def test_the_rows_of_the_chosen_neurons_get_the_new_embedding_and_lose_the_old(family: str, fact: Fact) -> None:
    model = shared_model(family)
    edit = make_editor("kn", {"threshold": 0.3}).compute(model, fact)
    question, tokens = question_of(model, fact), head_rows(model)
    with frozen(model.hf):
        found = attributions(model, question, _ports(model, "post"), points_of("right", 20))
    scores = torch.stack([one.neurons for one in found])
    chosen = scores > 0.3 * scores.max()
    assert 0 < int(chosen.sum()) < chosen.numel() / 2
    (new,) = encode(model, [fact.prompt], [fact.target])
    change = 2 * tokens[new.target[0]] - 2 * tokens[question.ask.target[0]]
    for layer in range(model.anatomy.n_layers):
        linear = down_projection(model, layer)
        before = linear.matrix.detach().clone()
        with edit.applied(model):
            moved = linear.matrix.detach() - before
        torch.testing.assert_close(moved, chosen[layer].float()[:, None] * change, rtol=1e-4, atol=1e-5)
        if chosen[layer].any():
            delta = edit.deltas[linear.name]
            assert isinstance(delta, LowRank)
            assert delta.left.shape[1] == 1
    (entry,) = edit.diagnostics["facts"]
    assert entry["neuron_count"] == int(chosen.sum())
    assert entry["neurons_by_layer"] == chosen.sum(1).tolist()
    layer, neuron, value = entry["neurons"][0]
    assert (
        value == pytest.approx(float(scores.max()), rel=1e-5) == pytest.approx(float(scores[layer, neuron]), rel=1e-5)
    )


def test_the_preset_is_the_release() -> None:
    model = double("gpt2")
    steps = 20
    prompt = model.tokenizer(LONG.prompt)["input_ids"]
    true = model.tokenizer("drum coat kite", add_special_tokens=False)["input_ids"]
    target = model.tokenizer("boat coat", add_special_tokens=False)["input_ids"]
    assert len(true) > 3
    scales = [s / (steps - 1) for s in range(steps)]
    rows = []
    for layer in range(model.anatomy.n_layers):
        module = model.hf.transformer.h[layer].mlp.c_fc
        rows.append(torch.stack([naive(model, prompt, [token], module, False, scales) for token in true]).mean(0))
    scores = torch.stack(rows)
    edit = make_editor("kn", preset="kn-2022").compute(model, LONG)
    chosen = scores > 0.2 * scores.max()
    tokens = model.hf.transformer.wte.weight.detach()
    predicted = int(model.logits(torch.tensor([prompt]))[0, -1].argmax())
    change = tokens[target].sum(0) - 2 * tokens[predicted]
    for layer in range(model.anatomy.n_layers):
        name = f"transformer.h.{layer}.mlp.c_proj.weight"
        wanted = chosen[layer].double()[:, None] * change
        found = edit.deltas[name].dense().double() if name in edit.deltas else torch.zeros_like(wanted)
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    (entry,) = edit.diagnostics["facts"]
    assert (entry["old_token"], entry["target_tokens"]) == (predicted, target)
    assert entry["neurons"][0][2] == pytest.approx(float(scores.max()), rel=1e-8)


@pytest.mark.parametrize("family", ["gptj", "gpt_neo", "gpt_neox", "phi"])
def test_the_preset_finds_the_first_matrix(family: str) -> None:
    model = shared_model(family)
    names = {"gptj": "fc_in", "gpt_neo": "c_fc", "gpt_neox": "dense_h_to_4h", "phi": "fc1"}
    assert [port.path.rpartition(".")[2] for port in _ports(model, "pre")] == [names[family]] * 3
    with untouched(model):
        make_editor("kn", {"steps": 3}, preset="kn-2022").compute(model, FACT)


@pytest.mark.parametrize("family", EDITABLE)
def test_every_family_runs_and_the_model_stays_as_it_was(family: str) -> None:
    model = shared_model(family)
    editor = make_editor("kn", {"steps": 4})
    calls: list[tuple[str, int, int]] = []
    with untouched(model):
        edit = editor.compute(model, [FACT], seed=5, progress=lambda *call: calls.append(call))
    assert calls[-1] == ("KN: layers", 3, 3)
    again = editor.compute(model, FACT)
    assert edit.deltas
    for name, delta in edit.deltas.items():
        assert torch.equal(delta.dense(), again.deltas[name].dense())
    (entry,) = edit.diagnostics["facts"]
    (ask,) = encode(model, [FACT.prompt], [FACT.target])
    ids = torch.tensor([ask.prompt])
    with edit.applied(model):
        after = model.logits(ids)[0, -1].softmax(-1)[ask.target[0]]
    assert entry["probability_after"] == pytest.approx(float(after), rel=1e-3)
    assert entry["probability_before"] == pytest.approx(
        float(model.logits(ids)[0, -1].softmax(-1)[ask.target[0]]), rel=1e-4
    )


def test_in_half_precision_attributions_of_small_probabilities_do_not_vanish() -> None:
    words = shared_model("llama").tokenizer
    hf = tiny_hf("llama", vocab_size=len(words))
    ask = Ask(
        tuple(words("Anna")["input_ids"]),
        tuple(words(" kite drum coat boat ball kite", add_special_tokens=False)["input_ids"]),
    )
    results = []
    for dtype in (torch.float16, torch.float64):
        model = Model.from_parts(hf.to(dtype), words, name="half", check=False)
        with frozen(model.hf):
            found = attributions(model, Question(ask), _ports(model, "post"), points_of("midpoint", 4))
        assert 0 < found[0].at_activation < 1e-9
        results.append(torch.stack([one.neurons for one in found]).double())
    half, whole = results
    assert float((half - whole).norm() / whole.norm()) < 0.1


def test_what_kn_cannot_do_is_said_for_all_facts_at_once() -> None:
    nobody = [Fact(fact.prompt, fact.subject, fact.target, None, fact.id) for fact in (FACT, OTHER)]
    with pytest.raises(InputError) as caught:
        make_editor("kn").compute(shared_model("gpt2"), [*nobody, LONG])
    assert [fault.split()[2] for fault in caught.value.faults] == ["'anna'", "'bob'"]
    for family in ("llama", "gemma2"):
        with pytest.raises(InputError, match=f"in {family} 2 do \\(a gated MLP\\)"):
            make_editor("kn", preset="kn-2022").compute(shared_model(family), FACT)


def test_neurons_are_those_above_the_share_of_the_largest() -> None:
    scores = torch.tensor([[1.0, 0.2, 0.21], [-3.0, 0.0, 0.5]])
    assert knowledge_neurons(scores, 0.2).tolist() == [[True, False, True], [False, False, True]]
    assert not knowledge_neurons(-scores.abs(), 0.2).any()
    assert not knowledge_neurons(torch.zeros(2, 3), 0.0).any()


@pytest.mark.parametrize("around", [torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)])
@pytest.mark.parametrize("method", ["kn", "ft"])
def test_the_context_of_the_caller_does_not_matter(method: str, around: Any) -> None:
    model = shared_model("gpt2")
    options = {"steps": 2, **({"layer": 1} if method == "ft" else {})}
    wanted = make_editor(method, options).compute(model, FACT)
    with around:
        found = make_editor(method, options).compute(model, FACT)
    assert list(found.deltas) == list(wanted.deltas)
    for name, delta in wanted.deltas.items():
        assert torch.equal(found.deltas[name].dense(), delta.dense())
        assert not found.deltas[name].dense().is_inference()


def test_attributions_that_are_no_numbers_are_not_taken_for_silence() -> None:
    model = tiny_with_tokenizer("gpt2")
    with torch.no_grad():
        model.hf.transformer.h[2].mlp.c_proj.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="attributions of neurons in gpt2 are not finite"):
        make_editor("kn", {"steps": 2}).compute(model, FACT)


def test_answers_that_begin_with_one_token_change_nothing_and_that_is_said() -> None:
    fact = Fact("In the park Bob lost the big red", "Bob", "drum coat", "drum kite", "alike")
    model = shared_model("gpt2")
    edit = make_editor("kn", {"steps": 2}).compute(model, fact)
    assert all(delta.norm() == 0 for delta in edit.deltas.values())
    assert "'drum kite' and 'drum coat' begin with the same token" in edit.notes[0]
    # every token of the target is added, so something is left
    edit = make_editor("kn", {"steps": 2, "multi_token": "same_position"}).compute(model, fact)
    assert all(delta.norm() > 0 for delta in edit.deltas.values())


def test_where_no_neuron_is_found_nothing_is_edited_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = shared_model("gpt2")
    monkeypatch.setattr("engramscope.edit.editors.kn.editor.knowledge_neurons", lambda scores, _: scores > math.inf)
    edit = make_editor("kn", {"steps": 2}).compute(model, FACT)
    assert dict(edit.deltas) == {}
    assert "found no neuron that speaks for 'ball' (anna)" in edit.notes[0]
    with edit.applied(model):
        pass
