"""MEND: at first it is the normalised gradient; what it normalises by; what an edit of it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engramscope.edit.delta import LowRank
from engramscope.edit.editors.mend.config import MendSettings
from engramscope.edit.editors.mend.network import MendNetwork, ResidualLayer, RunningNorm
from engramscope.edit.hyper.files import load_said
from engramscope.edit.hyper.gradients import TokenPairs, token_pairs
from engramscope.edit.hyper.loss import outcome
from engramscope.edit.hyper.network import EditorNetwork, condition_of
from engramscope.edit.matrices import linear_map
from engramscope.edit.tokens import encode_facts, rows_of
from tests.edit.small import EDITABLE, FACT, OTHER, shared_model, tiny_with_tokenizer
from tests.edit.test_hyper import CPU, TRIALS
from tests.edit.trained import (
    ASKS,
    bits_of,
    editor_of,
    network_for,
    padded,
    quick_training,
    same_bits,
    shake,
)


def test_running_moments_are_those_of_all_vectors_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = 5 + 3 * torch.randn(41, 6, generator=generator)
    vectors[:, 2] = 4.0  # never differs
    norm = RunningNorm(6)
    for part in (vectors[:1], vectors[1:1], vectors[1:9], vectors[9:]):
        norm.observe(part)
    assert float(norm.count) == 41
    wanted = (vectors - vectors.mean(0)) / (vectors.std(0) + 1e-7)
    wanted[:, 2] = 0
    torch.testing.assert_close(norm(vectors), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", EDITABLE)
def test_at_first_the_change_is_the_scaled_gradient_of_normalised_vectors(family: str) -> None:
    model = shared_model(family)
    network, maps = network_for("mend", model, alpha=-0.003)
    seen, _ = token_pairs(model, maps, rows_of(padded(ASKS), CPU))
    network.observe(seen)
    pairs, _ = token_pairs(model, maps, rows_of([ASKS[0]], CPU))
    with torch.no_grad():
        changes = network(pairs, condition_of(model, [ASKS[0]]))
    for place, (linear, change) in enumerate(zip(maps, changes, strict=True)):
        # matrices of one shape share the moments
        same = [at for at, other in enumerate(maps) if (other.n_in, other.n_out) == (linear.n_in, linear.n_out)]
        xs = torch.cat([seen[at].x[seen[at].used] for at in same])
        gs = torch.cat([seen[at].g[seen[at].used] for at in same])
        wanted = torch.zeros(linear.n_in, linear.n_out)
        for token in range(pairs[place].x.shape[1]):
            x, g = pairs[place].x[0, token], pairs[place].g[0, token]
            if x.any() and g.any():
                wanted += torch.outer((x - xs.mean(0)) / (xs.std(0) + 1e-7), (g - gs.mean(0)) / (gs.std(0) + 1e-7))
        found = change.matrix()[0]
        torch.testing.assert_close(found, -0.003 * wanted, rtol=1e-3, atol=1e-4 * float(found.abs().max()))
        assert found.abs().max() > 0


def test_at_first_it_goes_down_the_loss() -> None:
    model = shared_model("gpt2")
    losses = []
    for step in (-1e-9, -3e-4):
        network, maps = network_for("mend", model, alpha=step)
        network.observe(token_pairs(model, maps, rows_of(padded(ASKS), CPU))[0])
        trials = [type(trial)(trial.edit, (trial.edit,), trial.local) for trial in TRIALS]
        losses.append(outcome(model, maps, network, trials, learning=False).nll)
    assert (losses[1] < losses[0]).all()


def test_a_residual_layer_is_its_formula() -> None:
    layer = ResidualLayer(3, 2, 2, rectified=True)
    with torch.no_grad():
        layer.u.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 1.0]]))
        layer.v.copy_(torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]]))
        layer.b.copy_(torch.tensor([0.5, 0.0, 0.0]))
        layer.scale[1] = torch.tensor([2.0, 1.0, 1.0])
        layer.shift[1] = torch.tensor([0.0, -1.0, 0.0])
    y = torch.tensor([1.0, 1.0, 3.0])
    # V y = (3, -2), U V y = (3, -2, -5); + b, * scale, + shift = (7, -3, -5)
    assert layer(y, 1).tolist() == [8.0, 1.0, 3.0]
    assert layer(y, 0).tolist() == [4.5, 1.0, 3.0]
    plain = ResidualLayer(3, 2, 1, rectified=False)
    plain.load_state_dict({**layer.state_dict(), "scale": layer.scale[1:], "shift": layer.shift[1:]})
    assert plain(y, 0).tolist() == [8.0, -2.0, -2.0]


def test_every_parameter_learns_from_the_first_step_or_the_second() -> None:
    model = shared_model("gpt2")
    network, maps = network_for("mend", model)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    for _ in range(2):
        optimiser.zero_grad()
        outcome(model, maps, network, TRIALS, learning=True).loss(1, 1).backward()
        optimiser.step()
    assert all(not torch.equal(value, before[name]) for name, value in network.named_parameters())


def test_tokens_without_a_gradient_add_nothing_and_matrices_of_one_shape_share_a_network() -> None:
    network = MendNetwork([(4, 6), (6, 4), (4, 6)], {(4, 6): 2, (6, 4): 2}, 2, -1.0, last_relu=True)
    assert set(network.editors) == {"4x6", "6x4"}
    generator = torch.Generator().manual_seed(0)

    def pairs_of(n_in: int, n_out: int) -> TokenPairs:
        g = torch.randn(1, 5, n_out, generator=generator)
        g[0, 3:] = 0
        return TokenPairs(torch.randn(1, 5, n_in, generator=generator), g)

    pairs = [pairs_of(4, 6), pairs_of(6, 4), pairs_of(4, 6)]
    network.observe(pairs)
    assert float(network.editors["4x6"].x.count) == 6  # type: ignore[union-attr]
    shake(network)
    condition = condition_of(shared_model("gpt2"), ASKS[:1])
    changes = network(pairs, condition)
    with torch.no_grad():
        # of the two matrices of 4 by 6, the second one's
        network.editors["4x6"].layers[0].shift[1] += 1  # type: ignore[index, union-attr]
    moved = network(pairs, condition)
    assert [torch.equal(one.left, other.left) for one, other in zip(changes, moved, strict=True)] == [True, True, False]
    for change in changes:
        assert not change.left[0, 3:].any()
        assert not change.right[0, 3:].any()
        assert change.left[0, :3].any(-1).all()


def test_ranks_follow_the_matrices() -> None:
    assert MendSettings().rank_for(256, 1024) == 128
    assert MendSettings().rank_for(6400, 25600) == 1920
    assert MendSettings(rank=7).rank_for(256, 1024) == 7


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_edit_is_what_the_network_says_and_leaves_the_model_as_it_was(family: str, tmp_path: Path) -> None:
    model = tiny_with_tokenizer(family)
    quick_training("mend", model, tmp_path / "m")
    editor = editor_of("mend", tmp_path / "m")
    bits = bits_of(model)
    model.hf.train()
    state = torch.get_rng_state()
    edit = editor.compute(model, FACT)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.hf.training
    model.hf.eval()
    assert same_bits(model, bits)
    said, tensors = load_said(tmp_path / "m" / "editor.safetensors")
    network, maps = network_for("mend", model)
    assert isinstance(network, EditorNetwork)
    network.load_state_dict(tensors)
    assert [one["name"] for one in said.matrices] == [linear.name for linear in maps] == list(edit.deltas)
    ((ask,),) = encode_facts(model, [FACT])
    pairs, losses = token_pairs(model, maps, rows_of([ask], CPU))
    with torch.no_grad():
        changes = network(pairs, condition_of(model, [ask]))
    for linear, change, pair in zip(maps, changes, pairs, strict=True):
        delta = edit.deltas[linear.name]
        assert isinstance(delta, LowRank)
        assert delta.left.dtype == torch.float32
        assert delta.left.shape[1] <= int(pair.used.sum())
        torch.testing.assert_close(delta.dense(), linear_map(model, linear.path).stored(change.matrix()[0]))
    (found,) = edit.diagnostics["facts"]
    assert found["nll_before"] == pytest.approx(float(losses), rel=1e-5)
    with edit.applied(model):
        again, after = token_pairs(model, maps, rows_of([ask], CPU))
        assert found["nll_after"] == pytest.approx(float(after), rel=1e-4)
        # a second fact is edited with the first in place
        second = editor.compute(model, OTHER)
        assert not torch.allclose(again[0].x, pairs[0].x) or not torch.allclose(again[-1].x, pairs[-1].x)
    both = editor.compute(model, [FACT, OTHER])
    name = maps[-1].name
    torch.testing.assert_close(
        both.deltas[name].dense(), edit.deltas[name].dense() + second.deltas[name].dense(), rtol=1e-4, atol=1e-6
    )
    half = editor_of("mend", tmp_path / "m", strength=0.5).compute(model, FACT)
    torch.testing.assert_close(half.deltas[name].dense(), 0.5 * edit.deltas[name].dense())
