"""The optimised value: its gradient, what shares a batch with it, and the shorter way to the same logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from engramscope.edit import value as value_module
from engramscope.edit.keys import essences, output_of, with_prefixes
from engramscope.edit.matrices import down_projection
from engramscope.edit.outcome import stated
from engramscope.edit.passes import at_subjects, from_block, logits_where
from engramscope.edit.tokens import rows_of
from engramscope.edit.value import Found, ValueSettings, Wanted, optimise_values
from engramscope.models.model import Model
from engramscope.models.site import Port
from engramscope.records.fact import Fact
from tests.edit import plain_rome
from tests.edit.small import EDITABLE, FACT, OTHER, shared_model
from tests.edit.test_rome import in_float64

PREFIXES = ("Yesterday and today. ", "The red ball. ")
THIRD = Fact("Clara says that she likes the", "Clara", "kite", id="clara")
FAMILIES = (*EDITABLE, "opt", "falcon", "bloom", "qwen2", "phi3")


def wanted_for(model: Model, *facts: Fact) -> list[Wanted]:
    asks = with_prefixes(model, facts, PREFIXES)
    return [Wanted(tuple(own), essence) for own, essence in zip(asks, essences(model, facts), strict=True)]


def mlp(model: Model, layer: int = 1) -> Port:
    return output_of(down_projection(model, layer))


@pytest.mark.parametrize("layer", [0, 1])
def test_the_loss_and_its_gradient_are_right(layer: int) -> None:
    model = in_float64("gpt2")  # the others attend in float32, whatever they are loaded in
    wanted = wanted_for(model, FACT, OTHER)
    settings = ValueSettings(kl=0.5, decay=0.7)
    with value_module.frozen(model.hf):
        batch, found = value_module._prepared(model, mlp(model, layer), layer, wanted)
        sizes = [float(one.start.norm()) for one in found]
        generator = torch.Generator().manual_seed(0)
        deltas = [
            (0.3 * torch.randn(one.start.shape, generator=generator, dtype=torch.float64)).requires_grad_()
            for one in found
        ]

        def losses(own: list[Tensor]) -> Tensor:
            return value_module._losses(model, mlp(model, layer), layer, batch, own, sizes, settings)[0]

        total = losses(deltas)
        gradients = torch.autograd.grad(total.sum(), deltas)
        module = down_projection(model, layer).module
        for k, fact in enumerate((FACT, OTHER)):
            rows = plain_rome.rows_of_fact(model, fact, list(PREFIXES))
            text = f"{fact.subject} is a"
            essence = plain_rome.token_ids(model, text), plain_rome.last_token_of(model, text, 0, len(fact.subject))
            plain = plain_rome.value_loss(model, module, rows, essence, deltas[k], sizes[k], 0.5, 0.7)
            assert float(total[k].detach()) == pytest.approx(float(plain.detach()), rel=1e-9)
            for place in (0, 7, 31):
                step = torch.zeros_like(deltas[k])
                step[place] = 1e-5
                up, down = (losses([d.detach() + (sign * step if j == k else 0) for j, d in enumerate(deltas)]).detach()
                            for sign in (1, -1))  # fmt: skip
                slope = (up - down) / 2e-5
                assert float(slope[k]) == pytest.approx(float(gradients[k][place]), rel=1e-5, abs=1e-8)
                assert float(slope[1 - k].abs()) < 1e-8


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_alone_are_rows_together_and_taken_up_later_they_are_the_same(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shared_model(family)
    facts = (FACT, OTHER, THIRD)
    settings = ValueSettings(steps=5, clamp=2.0)
    cuts: list[bool] = []
    plain_tails = value_module.tails_of

    def watched(*args: Any) -> Any:
        found = plain_tails(*args)
        cuts.append(found.past is not None)
        return found

    monkeypatch.setattr(value_module, "tails_of", watched)
    together = optimise_values(model, mlp(model), 1, wanted_for(model, *facts), settings)
    # what takes position ids and a cache is taken up at the subject; the others are computed whole
    assert cuts == [family not in ("bloom",)]
    for fact, one in zip(facts, together, strict=True):
        (alone,) = optimise_values(model, mlp(model), 1, wanted_for(model, fact), settings)
        same(one, alone)
    monkeypatch.setattr(
        value_module, "tails_of", lambda _m, _l, rows, hidden, _w, _g: value_module.Tails(rows, hidden, rows.mask)
    )
    for one, whole in zip(
        together, optimise_values(model, mlp(model), 1, wanted_for(model, *facts), settings, tokens=1), strict=True
    ):
        same(one, whole)


def same(one: Found, other: Found) -> None:
    assert one.losses == pytest.approx(other.losses, rel=1e-4)
    torch.testing.assert_close(one.delta, other.delta, rtol=1e-2, atol=1e-3 * float(other.delta.norm()))
    torch.testing.assert_close(one.start, other.start, rtol=1e-4, atol=1e-5)
    assert one.clamped == other.clamped


def test_a_fact_that_is_done_stays_as_it_is_while_others_go_on() -> None:
    model = shared_model("gpt2")
    wanted = wanted_for(model, FACT, OTHER, THIRD)
    free = ValueSettings(steps=12, clamp=30.0, decay=0.0, kl=0.0, stop=0.0)
    losses = [one.losses for one in optimise_values(model, mlp(model), 1, wanted, free)]
    # a bound that they reach at different steps
    bound = sorted(own[6] for own in losses)[1]
    stopped = optimise_values(model, mlp(model), 1, wanted, replace(free, stop=bound))
    lengths = {len(one.losses) for one in stopped}
    assert len(lengths) > 1
    for k, one in enumerate(stopped):
        (alone,) = optimise_values(model, mlp(model), 1, [wanted[k]], replace(free, stop=bound))
        same(one, alone)
        steps = len(one.losses)
        assert all(loss >= bound for loss in one.losses[:-1])
        assert one.losses[-1] < bound or steps == 12
        assert one.losses == pytest.approx(losses[k][:steps], rel=1e-4)


@pytest.mark.parametrize("clamp", [0.05, 1000.0])
def test_the_vector_never_leaves_its_ball(clamp: float) -> None:
    model = shared_model("llama")
    (one,) = optimise_values(model, mlp(model), 1, wanted_for(model, OTHER), ValueSettings(steps=6, clamp=clamp))
    ratio = float(one.delta.norm() / one.start.norm())
    assert ratio <= clamp * (1 + 1e-5)
    assert one.clamped == (clamp == 0.05)
    assert (ratio == pytest.approx(0.05, rel=1e-4)) == (clamp == 0.05)


def test_one_step_only_evaluates() -> None:
    model = shared_model("llama")
    (one,) = optimise_values(model, mlp(model), 1, wanted_for(model, OTHER), ValueSettings(steps=1))
    assert len(one.losses) == 1
    assert float(one.delta.abs().max()) == 0.0
    assert one.losses[0] == pytest.approx(one.nll, rel=1e-6)
    assert (one.kl, one.decay) == pytest.approx((0.0, 0.0), abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_values_at_subjects_are_those_of_a_whole_forward(family: str) -> None:
    model = shared_model(family)
    linear = down_projection(model, 1)
    port = model.site("resid_post", 2)
    assert isinstance(port, Port)
    asks = [ask for own in with_prefixes(model, [FACT, OTHER, THIRD], PREFIXES) for ask in own]
    found = at_subjects(model, asks, [port, output_of(linear)], tokens=40)
    for k, ask in enumerate(asks):
        assert ask.subject is not None
        for values, module in ((found[0], port.module), (found[1], linear.module)):
            wanted = plain_rome.run(model, module, list(ask.prompt), ask.subject, None)["value"].detach()
            torch.testing.assert_close(values[k], wanted, rtol=1e-4, atol=1e-4)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_logits_that_are_asked_for_and_only_from_a_block_on(family: str) -> None:
    model = shared_model(family)
    rows = rows_of([ask for own in with_prefixes(model, [FACT, OTHER], PREFIXES) for ask in own], model.device)
    where = rows.labels != -100
    with torch.no_grad():
        whole = model.hf(input_ids=rows.ids, attention_mask=rows.mask, use_cache=False).logits[where]
        torch.testing.assert_close(logits_where(model, rows.ids, rows.mask, where), whole, rtol=1e-4, atol=1e-4)
        port = model.site("resid_pre", 2)
        assert isinstance(port, Port)
        entered: list[Tensor] = []
        with value_module.taps(model, [(port, lambda value: entered.append(value.clone()))]):
            model.hf(input_ids=rows.ids, attention_mask=rows.mask, use_cache=False)
        ran: list[int] = []
        hooks = [
            model.blocks[layer].register_forward_hook(lambda *_, layer=layer: ran.append(layer)) for layer in range(3)
        ]
        inner = next(iter(model.blocks[0].children())).register_forward_hook(lambda *_: ran.append(-1))
        with from_block(model, 2, entered[0]):
            again = logits_where(model, rows.ids * 0 + 7, rows.mask, where)
        for hook in (*hooks, inner):
            hook.remove()
    torch.testing.assert_close(again, whole, rtol=1e-4, atol=1e-4)
    assert -1 not in ran


def test_what_a_model_says_is_told() -> None:
    model = shared_model("gpt2")
    asks = [own[0] for own in with_prefixes(model, [FACT, OTHER], ())]
    for ask, one in zip(asks, stated(model, asks), strict=True):
        ids = [*ask.prompt, *ask.target]
        logs = model.logits(torch.tensor([ids]))[0].log_softmax(-1)
        places = range(len(ask.prompt) - 1, len(ids) - 1)
        mean = torch.stack([logs[place, token] for place, token in zip(places, ask.target, strict=True)]).mean()
        assert one.probability == pytest.approx(float(mean.exp()), rel=1e-4)
        best = [int(logs[place].argmax()) for place in places]
        assert one.most_probable == model.tokenizer.decode(best)
        assert one.stated == (tuple(best) == ask.target)
    first = int(model.logits(torch.tensor([asks[0].prompt]))[0, -1].argmax())
    second = int(model.logits(torch.tensor([[*asks[0].prompt, first]]))[0, -1].argmax())
    right, half, wrong = (replace(asks[0], target=target) for target in ((first, second), (first, second ^ 1), (3, 4)))
    assert [one.stated for one in stated(model, [right, half, wrong])] == [True, False, False]


def test_progress_is_told_step_by_step() -> None:
    model = shared_model("gpt2")
    told: list[tuple[int, int]] = []
    optimise_values(
        model, mlp(model), 1, wanted_for(model, FACT, OTHER), ValueSettings(steps=3), tokens=1,
        progress=lambda _what, done, total: told.append((done, total)),
    )  # fmt: skip
    assert told == [(0, 6), (1, 6), (2, 6), (3, 6), (3, 6), (4, 6), (5, 6), (6, 6)]
