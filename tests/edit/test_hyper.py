"""What KE and MEND share: token pairs, matrices, edited forwards, the loss and its gradient, examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from engramscope.edit.applied import apply_deltas, revert_deltas
from engramscope.edit.delta import Dense
from engramscope.edit.hyper.examples import from_records, from_texts, split
from engramscope.edit.hyper.factors import Factors, edited
from engramscope.edit.hyper.gradients import token_pairs
from engramscope.edit.hyper.loss import Trial, outcome
from engramscope.edit.hyper.maps import edited_maps
from engramscope.edit.hyper.network import condition_of
from engramscope.edit.tokens import Ask, logits_of, rows_of, target_nll
from engramscope.errors import InputError, SiteError
from engramscope.models.model import Model
from tests.edit.small import EDITABLE, shared_model
from tests.edit.trained import ASKS, bits_of, network_for, padded, records, same_bits, shake
from tests.tiny_models import tiny_hf, tiny_model

CPU = torch.device("cpu")
TRIALS = [Trial(ASKS[0], (ASKS[1],), (Ask((6, 7, 8), (9,)),)), Trial(ASKS[1], (ASKS[0],), (Ask((3, 4), (9,)),))]
#: the two, or three, matrices of an MLP as each family calls them
MATRICES = {
    "gpt2": ("c_fc", "c_proj"), "gptj": ("fc_in", "fc_out"), "gpt_neo": ("c_fc", "c_proj"),
    "gpt_neox": ("dense_h_to_4h", "dense_4h_to_h"), "phi": ("fc1", "fc2"), "opt": ("fc1", "fc2"),
    **dict.fromkeys(("llama", "mistral", "qwen3", "gemma2"), ("gate_proj", "up_proj", "down_proj")),
}  # fmt: skip


@pytest.mark.parametrize("family", [*EDITABLE, "opt"])
def test_both_or_all_three_matrices_of_the_last_mlps_are_edited(family: str) -> None:
    paths = [linear.path for linear in edited_maps(tiny_model(family), 2)]
    assert [path.rpartition(".")[2] for path in paths] == [*MATRICES[family]] * 2
    count = len(MATRICES[family])
    assert all(".1." in path for path in paths[:count])
    assert all(".2." in path for path in paths[count:])


def test_models_whose_mlps_cannot_be_edited_are_refused() -> None:
    with pytest.raises(SiteError, match="has 3 blocks"):
        edited_maps(tiny_model("gpt2"), 4)
    with pytest.raises(SiteError, match="cannot be edited in its MLPs"):
        edited_maps(tiny_model("mixtral"), 1)


@pytest.mark.parametrize("family", [*EDITABLE, "opt"])
def test_the_sum_of_token_pairs_is_the_gradient_of_the_weight(family: str) -> None:
    hf = tiny_hf(family)
    model = Model.from_parts(hf, name=family, check=False)
    maps = edited_maps(model, 3)
    held = {name: torch.full_like(value, 3.0) for name, value in hf.named_parameters()}
    for name, value in hf.named_parameters():
        value.grad = held[name].clone()
    hf.train()
    bits = bits_of(model)
    pairs, losses = token_pairs(model, maps, rows_of(padded(ASKS), CPU))
    assert same_bits(model, bits)
    assert hf.training
    assert all(module.training for module in hf.modules())
    assert all(value.requires_grad and torch.equal(value.grad, held[name]) for name, value in hf.named_parameters())
    assert not any(linear.module._forward_hooks or linear.module._forward_pre_hooks for linear in maps)
    hf.eval()
    for row, ask in enumerate(padded(ASKS)):
        hf.zero_grad()
        alone = rows_of([ask], CPU)
        loss = target_nll(logits_of(model, alone), alone)[0]
        loss.backward()
        assert float(losses[row]) == pytest.approx(float(loss.detach()), rel=1e-5)
        for linear, pair in zip(maps, pairs, strict=True):
            gradient = linear.weight.grad
            assert gradient is not None
            torch.testing.assert_close(
                linear.stored(pair.matrix()[row]), gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max())
            )
            length = len(ask.prompt) + len(ask.target) - 1
            assert not pair.used[row, length:].any()


@pytest.mark.parametrize("family", [*EDITABLE, "opt"])
def test_a_forward_with_factors_is_that_of_changed_weights_for_each_edit(family: str) -> None:
    model = shared_model(family) if family in EDITABLE else tiny_model(family)
    maps = edited_maps(model, 2)
    generator = torch.Generator().manual_seed(0)
    factors = [
        Factors(
            0.1 * torch.randn(2, 3, linear.n_in, generator=generator),
            torch.randn(2, 3, linear.n_out, generator=generator),
        )
        for linear in maps
    ]
    rows = rows_of([ASKS[0], ASKS[1], ASKS[1], padded(ASKS)[2]], CPU)
    bits = bits_of(model)
    with torch.no_grad():
        with edited(maps, factors):
            found = logits_of(model, rows)
        plain = logits_of(model, rows)
        assert same_bits(model, bits)
        for edit, mine in enumerate((slice(0, 2), slice(2, 4))):
            deltas = {
                linear.name: Dense(linear.stored(one.matrix()[edit]).clone())
                for linear, one in zip(maps, factors, strict=True)
            }
            apply_deltas(model.hf, deltas, deltas)
            wanted = logits_of(model, rows)[mine]
            revert_deltas(model.hf, deltas)
            mask = rows.mask[mine].bool()
            torch.testing.assert_close(found[mine][mask], wanted[mask], rtol=1e-4, atol=1e-4)
            assert (wanted - plain[mine])[mask].abs().max() > 0.1


def test_the_loss_is_what_a_plain_loop_gives() -> None:
    model = shared_model("gpt2")
    network, maps = network_for("ke", model)
    shake(network, size=1.0)
    trials = [
        Trial(ASKS[0], (ASKS[0], ASKS[1]), (padded(ASKS)[2],)),
        Trial(ASKS[1], (padded(ASKS)[2], ASKS[0]), (Ask((6, 7, 8), (9,)),)),
    ]
    network.eval()
    found = outcome(model, maps, network, trials, learning=False)
    for place, trial in enumerate(trials):
        pairs, _ = token_pairs(model, maps, rows_of([trial.edit], CPU))
        with torch.no_grad():
            changes = network(pairs, condition_of(model, [trial.edit]))
        deltas = {m.name: Dense(m.stored(c.matrix()[0]).clone()) for m, c in zip(maps, changes, strict=True)}
        text = torch.tensor([(*trial.local[0].prompt, *trial.local[0].target[:-1])])
        before = model.logits(text)[0].softmax(-1)
        apply_deltas(model.hf, deltas, deltas)
        after = model.logits(text)[0].softmax(-1)
        losses, right = [], []
        for ask in trial.scored:
            ids = torch.tensor([(*ask.prompt, *ask.target)])
            probabilities = model.logits(ids)[0].softmax(-1)
            steps = range(len(ask.prompt) - 1, ids.shape[1] - 1)
            losses.append(-np.mean([math.log(probabilities[at, ids[0, at + 1]]) for at in steps]))
            right.append(all(int(probabilities[at].argmax()) == ids[0, at + 1] for at in steps))
        revert_deltas(model.hf, deltas)
        kl = (before * (before.log() - after.log())).sum(-1).mean()
        assert float(found.nll[place]) == pytest.approx(np.mean(losses), rel=1e-4)
        assert float(found.kl[place]) == pytest.approx(float(kl), rel=1e-3)
        assert float(found.kl[place]) > 0.01
        assert float(found.kept[place]) == pytest.approx(float((before.argmax(-1) == after.argmax(-1)).float().mean()))
        assert found.right[place].tolist() == right
    total = found.loss(0.1, 2.0)
    assert float(total) == pytest.approx(0.1 * float(found.nll.mean()) + 2 * float(found.kl.mean()))


@pytest.mark.parametrize("name", ["ke", "mend"])
def test_the_gradient_through_the_edited_model_is_that_of_finite_differences(name: str) -> None:
    # GPT-2, because other families compute norms or attention in float32 whatever their weights are
    model = Model.from_parts(tiny_hf("gpt2").double(), name="gpt2", check=False)
    network, maps = network_for(name, model)
    network = network.double()
    network.observe(token_pairs(model, maps, rows_of(ASKS, CPU))[0])
    shake(network, size=0.02)
    network.eval()

    def loss() -> torch.Tensor:
        return outcome(model, maps, _Fixed(network), TRIALS, learning=True).loss(0.7, 1.3)

    loss().backward()
    draw, step = np.random.default_rng(0), 1e-5
    seen = 0
    for parameter in network.parameters():
        assert parameter.grad is not None
        place = int(draw.integers(parameter.numel()))
        flat = parameter.data.view(-1)
        kept = float(flat[place])
        ends = []
        for sign in (1, -1):
            flat[place] = kept + sign * step
            ends.append(float(loss().detach()))
        flat[place] = kept
        slope, found = (ends[0] - ends[1]) / (2 * step), float(parameter.grad.view(-1)[place])
        assert found == pytest.approx(slope, rel=1e-4, abs=2e-8)
        seen += abs(slope) > 1e-6
    assert seen >= 5


@pytest.mark.parametrize("name", ["ke", "mend"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "phi"])
def test_the_gradient_is_that_of_a_functional_call_with_whole_matrices(name: str, family: str) -> None:
    model = shared_model(family)
    network, maps = network_for(name, model)
    network.observe(token_pairs(model, maps, rows_of(ASKS, CPU))[0])
    shake(network, size=0.05)
    network.eval()
    outcome(model, maps, _Fixed(network), TRIALS, learning=True).loss(0.7, 1.3).backward()
    found = {key: value.grad.clone() for key, value in network.named_parameters() if value.grad is not None}
    network.zero_grad()
    total = torch.zeros(())
    for trial in TRIALS:
        pairs, _ = token_pairs(model, maps, rows_of([trial.edit], CPU))
        changes = network(pairs, condition_of(model, [trial.edit]))
        weights = {m.name: m.weight.detach() + m.stored(c.matrix()[0]) for m, c in zip(maps, changes, strict=True)}
        (scored,), (local,) = trial.scored, trial.local
        ids = torch.tensor([(*scored.prompt, *scored.target)])
        logits = torch.func.functional_call(model.hf, weights, (ids,)).logits[0]
        start = len(scored.prompt)
        nll = torch.nn.functional.cross_entropy(logits[start - 1 : -1], ids[0, start:])
        text = torch.tensor([local.prompt])
        after = torch.func.functional_call(model.hf, weights, (text,)).logits[0].log_softmax(-1)
        before = model.logits(text)[0].log_softmax(-1)
        total = total + 0.7 * nll + 1.3 * (before.exp() * (before - after)).sum(-1).mean()
    (total / len(TRIALS)).backward()
    assert found
    for key, value in network.named_parameters():
        assert value.grad is not None
        torch.testing.assert_close(found[key], value.grad, rtol=1e-2, atol=1e-4 * float(value.grad.abs().max()) + 1e-9)


class _Fixed(torch.nn.Module):
    """A network that takes no note of gradients, which would move what it normalises by."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *given: object) -> object:
        return self.network(*given)

    def observe(self, pairs: object) -> None:
        del pairs


@pytest.mark.parametrize("name", ["ke", "mend"])
def test_an_edit_does_not_depend_on_those_beside_it(name: str) -> None:
    model = shared_model("llama")
    network, maps = network_for(name, model)
    asks = padded(ASKS)
    pairs, _ = token_pairs(model, maps, rows_of(asks, CPU))
    network.observe(pairs)
    shake(network, size=0.05)
    network.eval()
    with torch.no_grad():
        together = network(pairs, condition_of(model, asks))
        for row, ask in enumerate(asks):
            mine, _ = token_pairs(model, maps, rows_of([ask], CPU))
            for one, all_of_them in zip(network(mine, condition_of(model, [ask])), together, strict=True):
                wanted = one.matrix()[0]
                torch.testing.assert_close(
                    all_of_them.matrix()[row], wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max())
                )


@pytest.mark.parametrize("name", ["ke", "mend"])
def test_first_weights_follow_from_the_seed_and_the_global_generator_is_left_alone(name: str) -> None:
    model = shared_model("gpt2")
    state = torch.get_rng_state()
    first, again, other = (network_for(name, model, seed)[0].state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_examples_of_records_and_what_trials_are_drawn_from_them() -> None:
    model = shared_model("llama")
    made = from_records(model, records(), "neighbourhood", 0)
    assert [len(one.others) for one in made] == [1] * 10
    assert [len(one.local) for one in made] == [2] * 10
    words = model.tokenizer
    assert words.decode(made[0].edit.prompt) == "<s>The child called Anna plays with the"
    assert words.decode(made[1].others[0].target) == " coat kite"
    assert words.decode(made[0].others[0].prompt) == "<s>In the park Anna lost the big red"
    assert words.decode(made[0].local[0].prompt) == "<s>The child called Bob plays with the"
    assert words.decode(made[0].local[0].target) == " ball"
    draw = np.random.default_rng(0)
    trials = [made[0].drawn(3, 0.0, draw) for _ in range(40)]
    assert {trial.scored[0] for trial in trials} == {made[0].edit, *made[0].others}
    assert {len(trial.local) for trial in trials} == {3}
    mixed = [made[0].drawn(1, 0.5, draw) for _ in range(60)]
    assert {trial.edit.target for trial in mixed} == {made[0].edit.target, made[1].edit.target}
    assert all(trial.scored[0].target == trial.edit.target for trial in mixed)
    assert {trial.edit.prompt for trial in mixed} == {made[0].edit.prompt}
    assert {trial.scored[0].prompt for trial in mixed} == {made[0].edit.prompt, made[0].others[0].prompt}
    fixed = made[0].fixed(3)
    assert fixed.scored == (made[0].edit, made[0].others[0])
    assert fixed.local == (*made[0].local, made[0].local[0])


def test_unrelated_texts_are_about_others() -> None:
    model = shared_model("gpt2")
    given = records()
    for one, record in zip(from_records(model, given, "unrelated", 0), given, strict=True):
        shown = [model.tokenizer.decode(local.prompt) for local in one.local]
        assert shown
        assert all(record.fact.subject not in text for text in shown)


@pytest.mark.parametrize("continuation", ["model", "other"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_examples_of_passages(continuation: str, family: str) -> None:
    model = shared_model(family)
    texts = [f"In the park {name} lost the big red ball. The child called {name} plays." for name in ("Anna", "Bob")]
    texts += ["Eva says that she likes the kite. Yesterday and today Eva plays with the boat.", "Bob"]
    made = from_texts(model, texts, 2, continuation, 12, 0)  # type: ignore[arg-type]
    assert len(made) == 3  # the last one is too short
    leading = 1 if family == "llama" else 0
    whole = [tuple(model.tokenizer(text)["input_ids"][:12]) for text in texts[:3]]
    for place, one in enumerate(made):
        cut = len(one.edit.prompt)
        assert one.edit.prompt == whole[place][:cut]
        assert len(one.edit.target) == 2
        if continuation == "other":
            before = len(made[place - 1].edit.prompt)
            assert one.edit.target == whole[place - 1][before : before + 2]
            assert set(one.targets) == {other.edit.target for other in made}
        else:
            assert one.targets == ()
        for other in one.others:
            assert other.target == one.edit.target
            assert other.prompt[:leading] == whole[place][:leading]
            assert 1 <= len(other.prompt) - leading < cut - leading
            assert one.edit.prompt[-(len(other.prompt) - leading) :] == other.prompt[leading:]
        assert {(*local.prompt, *local.target) for local in one.local} == {w for w in whole if w != whole[place]}
    assert from_texts(model, texts, 2, continuation, 12, 0) == made  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Only 0 of 1 passages of text have 5 tokens"):
        from_texts(model, ["Bob"], 2, "model", 12, 0)


def test_a_continuation_is_drawn_from_the_model() -> None:
    model = shared_model("gpt2")
    text = "In the park Anna lost the big red ball"
    made = from_texts(model, [text] * 400, 1, "model", 5, 0)
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for one in made:
        by_prompt.setdefault(one.edit.prompt, []).append(one.edit.target[0])
    for prompt, drawn in by_prompt.items():
        wanted = model.logits(torch.tensor([prompt]))[0, -1].softmax(-1)
        top = int(wanted.argmax())
        share, n = drawn.count(top) / len(drawn), len(drawn)
        assert abs(share - float(wanted[top])) < 4 * math.sqrt(float(wanted[top]) / n) + 1e-3
        assert len(set(drawn)) > 3


def test_no_subject_is_on_both_sides_of_the_split() -> None:
    model = shared_model("gpt2")
    made = from_records(model, [*records(), *records()], "neighbourhood", 0)
    train, held = split(made, 0.2, 0)
    assert len(train) == 16
    assert len(held) == 4
    assert not {one.group for one in train} & {one.group for one in held}
    assert {one.group for one in split(made, 0.2, 1)[1]} != {one.group for one in held}
    with pytest.raises(InputError, match="about 1 subject"):
        split(from_records(model, [*records(1), *records(1)], "neighbourhood", 0), 0.2, 0)
