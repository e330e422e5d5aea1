"""KE: the formula of its change, its gate, and how it reads the words of an edit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engramscope.edit.delta import LowRank
from engramscope.edit.editors.ke.network import KeNetwork, MatrixHead, Reader
from engramscope.edit.hyper.gradients import token_pairs
from engramscope.edit.hyper.network import Condition, condition_of
from engramscope.edit.tokens import Ask, rows_of
from tests.edit.small import EDITABLE, FACT, shared_model, tiny_with_tokenizer
from tests.edit.test_hyper import CPU
from tests.edit.trained import ASKS, bits_of, editor_of, network_for, padded, quick_training, same_bits, shake


@pytest.mark.parametrize("family", EDITABLE)
def test_the_change_is_the_gated_gradient_and_a_matrix_of_its_own(family: str) -> None:
    model = shared_model(family)
    network, maps = network_for("ke", model, scale=1.7)
    assert isinstance(network, KeNetwork)
    shake(network)
    pairs, _ = token_pairs(model, maps, rows_of(ASKS, CPU))
    condition = condition_of(model, ASKS)
    with torch.no_grad():
        changes = network(pairs, condition)
        z = network.reader(condition)
    for head, linear, pair, change in zip(network.heads, maps, pairs, changes, strict=True):
        assert isinstance(head, MatrixHead)
        n_in, n_out = linear.n_in, linear.n_out
        with torch.no_grad():
            parts = head.second(torch.tanh(head.first(z)))
        for row in range(2):
            row_a, column_a, row_b, column_b, gate = parts[row].split((n_in, n_out, n_in, n_out, 1))
            gradient = torch.zeros(n_in, n_out)
            for token in range(pair.x.shape[1]):
                gradient += torch.outer(pair.x[row, token], pair.g[row, token])
            a = torch.outer(row_a.exp() / row_a.exp().sum(), column_a)
            b = torch.outer(row_b.exp() / row_b.exp().sum(), column_b)
            wanted = 1.7 / (1 + (-gate).exp()) * (gradient * a + b)
            torch.testing.assert_close(change.matrix()[row], wanted, rtol=1e-3, atol=1e-6)
            # both terms are there
            assert (gradient * a).abs().max() > 1e-5
            assert b.abs().max() > 1e-3


def test_a_closed_gate_changes_nothing() -> None:
    model = shared_model("gpt2")
    network, maps = network_for("ke", model)
    assert isinstance(network, KeNetwork)
    shake(network)
    pairs, _ = token_pairs(model, maps, rows_of(ASKS, CPU))
    with torch.no_grad():
        for head in network.heads:
            assert isinstance(head, MatrixHead)
            head.second.bias[-1] = -torch.inf
        assert all(not change.matrix().any() for change in network(pairs, condition_of(model, ASKS)))
        # no other entry is the gate
        for head in network.heads:
            assert isinstance(head, MatrixHead)
            head.second.bias[-1] = 0.0
            head.second.bias[0] = -1e3
        assert all(change.matrix().any() for change in network(pairs, condition_of(model, ASKS)))


def test_no_change_is_larger_than_its_gate_lets_through() -> None:
    model = shared_model("gpt2")
    network, maps = network_for("ke", model)
    pairs, _ = token_pairs(model, maps, rows_of(ASKS, CPU))
    assert isinstance(network, KeNetwork)
    sizes = []
    with torch.no_grad():
        for bias in (-3.0, 0.0, 1e9):
            for head in network.heads:
                assert isinstance(head, MatrixHead)
                head.second.bias[-1] = bias
                head.second.parametrizations.weight.original1[-1] = 0.0  # type: ignore[union-attr]
                head.second.parametrizations.weight.original0[-1] = 0.0  # type: ignore[union-attr]
                head.second.parametrizations.weight.original1[-1, 0] = 1.0  # type: ignore[union-attr]
            sizes.append(network(pairs, condition_of(model, ASKS))[0].matrix())
    torch.testing.assert_close(sizes[0], sizes[2] / (1 + torch.e**3), rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(sizes[1], sizes[2] / 2, rtol=1e-4, atol=1e-8)


def test_the_words_are_read_both_ways_and_padding_is_not() -> None:
    reader = Reader(4, 3, 5)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in reader.parameters():
            parameter.normal_(generator=generator)
    vectors = torch.randn(2, 6, 4, generator=generator)
    lengths = torch.tensor([4, 6])
    with torch.no_grad():
        found = reader(Condition(vectors, lengths))
        for row, length in enumerate(lengths.tolist()):
            words = vectors[row, :length]
            states = []
            for side, order in (("", words), ("_reverse", words.flip(0))):
                h = c = torch.zeros(3)
                w, u, b, d = (
                    getattr(reader.lstm, f"{n}_l0{side}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                )
                for word in order:
                    i, f, g, o = (w @ word + u @ h + b + d).split(3)
                    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                    h = o.sigmoid() * c.tanh()
                states.append(h)
            wanted = torch.tanh(reader.out.weight @ torch.cat(states) + reader.out.bias)
            torch.testing.assert_close(found[row], wanted, rtol=1e-4, atol=1e-5)


def test_the_words_are_prompt_and_whole_target_in_the_models_own_embedding() -> None:
    model = shared_model("llama")
    condition = condition_of(model, padded(ASKS))
    assert condition.lengths.tolist() == [6, 3, 14]
    embedding = model.hf.get_input_embeddings().weight.detach()
    assert torch.equal(condition.vectors[0, :6], embedding[[5, 9, 20, 7, 33, 41]])
    assert not condition.vectors.requires_grad
    network, maps = network_for("ke", model)
    assert not any(value.shape == embedding.shape for value in network.state_dict().values())
    # another target, another change, though the gradient is the same
    pairs, _ = token_pairs(model, maps, rows_of([ASKS[0]], CPU))
    other = Ask(ASKS[0].prompt, (33, 42))
    with torch.no_grad():
        first, second = (network(pairs, condition_of(model, [ask]))[0].matrix() for ask in (ASKS[0], other))
    assert not torch.allclose(first, second, rtol=1e-3)


def test_first_weights_are_those_that_torch_draws() -> None:
    network, _ = network_for("ke", shared_model("gpt2"), hidden=40, z=50, inner=60)
    assert isinstance(network, KeNetwork)
    for head in network.heads:
        assert isinstance(head, MatrixHead)
        for layer, size in ((head.first, 50), (head.second, 60)):
            # the matrix that is used, whatever its length and direction are stored as
            assert layer.weight.abs().max() <= size**-0.5 * 1.0001
            assert float(layer.weight.detach().std()) == pytest.approx((size * 3) ** -0.5, rel=0.1)
    assert network.reader.lstm.weight_hh_l0.abs().max() <= 40**-0.5


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_edit_is_of_low_rank_and_leaves_the_model_as_it_was(family: str, tmp_path: Path) -> None:
    model = tiny_with_tokenizer(family)
    quick_training("ke", model, tmp_path / "k")
    bits = bits_of(model)
    edit = editor_of("ke", tmp_path / "k").compute(model, FACT)
    assert same_bits(model, bits)
    assert len(edit.deltas) == (6 if family == "llama" else 4)
    length = len(model.tokenizer(FACT.prompt)["input_ids"])
    for delta in edit.deltas.values():
        assert isinstance(delta, LowRank)
        assert 1 < delta.left.shape[1] <= length + 1
        assert delta.norm() > 0
    assert edit.diagnostics["facts"][0]["nll_before"] > 0
