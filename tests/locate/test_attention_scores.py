"""Attention statistics and copy scores: against the planted model, and against loops over what transformers returns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from engramscope import load_model
from engramscope.bundled.sentences import load_words
from engramscope.bundled.world import load_world
from engramscope.errors import InputError, ModelError, PairsError, SiteError
from engramscope.locate import attention_scores as module
from engramscope.locate.attention_scores import SCORES, attention_scores, bos_of, read_words
from engramscope.locate.copying import copy_scores
from engramscope.models import Model
from tests.locate.tokens import double_model
from tests.planted import planted_model
from tests.tiny_models import tiny_hf
from tests.tiny_study import NAMES, tokenizer


@pytest.fixture(scope="module")
def planted() -> Model:
    return planted_model()


def _row(scores, layer: int, head: int) -> dict[str, float]:
    table = scores.table
    return table[(table["layer"] == layer) & (table["head"] == head)].iloc[0].to_dict()


def test_the_planted_heads_are_what_they_were_planted_as(planted: Model) -> None:
    # a token in front: at the very first position the previous-token head has only itself to look at
    scores = attention_scores(planted, leading=(0,))
    assert (scores.length, scores.leading, scores.copied) == (7, 1, 11)
    assert _row(scores, 0, 0)["previous_token"] == pytest.approx(1, abs=1e-6)
    for head in (0, 1):
        assert _row(scores, 1, head)["induction"] == pytest.approx(1, abs=1e-3)
        assert _row(scores, 1, head)["duplicate"] < 1e-3
    # one copies, the other has a negative gain
    assert (_row(scores, 1, 0)["copy"], _row(scores, 1, 0)["negated_copy"]) == (1, 0)
    assert (_row(scores, 1, 1)["copy"], _row(scores, 1, 1)["negated_copy"]) == (0, 1)
    # a head that writes nothing copies nothing, though all tokens tie with the highest logit
    assert (_row(scores, 0, 1)["copy"], _row(scores, 0, 1)["negated_copy"]) == (0, 0)


def test_a_head_that_looks_at_all_tokens_alike_has_the_uniform_scores(planted: Model) -> None:
    scores = attention_scores(planted, leading=(0,), copied=0)
    found = _row(scores, 0, 1)
    for name, value in scores.uniform.items():
        assert found[name] == pytest.approx(value, rel=1e-5)
    assert found["entropy"] == pytest.approx(np.mean([math.log(i + 1) for i in range(1, 15)]), rel=1e-5)
    assert np.isnan(found["copy"])


def _seen_tokens(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    seen: list[Tensor] = []
    forward = module.forward_last

    def spy(model: Model, tokens: Tensor, wanted: list) -> Tensor:
        seen.append(tokens)
        return forward(model, tokens, wanted)

    monkeypatch.setattr(module, "forward_last", spy)
    return seen


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "bloom"])
@pytest.mark.parametrize("front", [(), (7,)])
def test_scores_are_means_over_the_named_diagonals(
    family: str, front: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = double_model(family), _seen_tokens(monkeypatch)
    scores = attention_scores(model, sequences=3, length=6, leading=front, copied=0)
    (tokens,) = seen
    b, n = len(front), 6
    assert tokens.shape == (3, b + 2 * n)
    assert torch.equal(tokens[:, b : b + n], tokens[:, b + n :])
    with torch.no_grad():
        weights = torch.stack(model.hf(tokens, output_attentions=True).attentions)  # [layer, row, head, query, key]
    for layer in range(3):
        for head in range(4):
            found: dict[str, list[float]] = {name: [] for name in SCORES}
            for row in weights[layer, :, head]:
                for i in range(1, b + 2 * n):
                    found["first_position"].append(float(row[i, 0]))
                    found["entropy"].append(-sum(float(w) * math.log(float(w)) for w in row[i] if w > 0))
                    if i - 1 >= b:
                        found["previous_token"].append(float(row[i, i - 1]))
                    if i >= b + n:
                        found["duplicate"].append(float(row[i, i - n]))
                        found["induction"].append(float(row[i, i - n + 1]))
            for name in SCORES[:5]:
                assert _row(scores, layer, head)[name] == pytest.approx(np.mean(found[name]), abs=1e-6), name


def test_tokens_are_drawn_without_repetition_and_special_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    words, seen = tokenizer(bos=True), _seen_tokens(monkeypatch)
    words.add_special_tokens({"additional_special_tokens": [f"<{number}>" for number in range(50)]})
    model = Model.from_parts(tiny_hf("llama", vocab_size=len(words)), words, name="tiny", check=False)
    scores = attention_scores(model, sequences=20, copied=0)
    tokens = torch.cat(seen)
    assert scores.leading == 1
    # 64 positions: one for BOS, and 31 tokens twice
    assert scores.length == 31
    assert "31 tokens" in scores.notes[0]
    assert (tokens[:, 0] == words.bos_token_id).all()
    assert not np.isin(tokens[:, 1:].numpy(), words.all_special_ids).any()
    assert all(len(set(row)) == 31 for row in tokens[:, 1:32].tolist())
    again = attention_scores(model, sequences=20, copied=0)
    assert again.table.equals(scores.table)
    assert not attention_scores(model, sequences=20, copied=0, seed=1).table.equals(scores.table)


def _copies_by_hand(model: Model, family: str, token: int, front: tuple[int, ...], sign: int) -> list[list[bool]]:
    """Whether each head copies `token`, with the formulas of the family: [layer][head]."""
    hf, a = model.hf, model.anatomy
    inner = hf.model if family != "gpt2" else hf.transformer
    blocks, norm = (inner.layers, inner.norm) if family != "gpt2" else (inner.h, inner.ln_f)
    x = hf(torch.tensor([[*front, token]]), output_hidden_states=True).hidden_states[1][0, -1]
    found = []
    for block in blocks:
        if family == "gpt2":
            v = block.attn.c_attn(block.ln_1(x))[2 * a.d_model :].view(a.n_heads, a.d_head)
            matrix = block.attn.c_proj.weight
        else:
            v = block.self_attn.v_proj(block.input_layernorm(x)).view(a.n_kv_heads, a.d_head)
            v = torch.stack([v[head // (a.n_heads // a.n_kv_heads)] for head in range(a.n_heads)])
            matrix = block.self_attn.o_proj.weight.T
        own = []
        for head in range(a.n_heads):
            written = v[head] @ matrix[head * a.d_head : (head + 1) * a.d_head]
            if family == "gemma2":
                written = block.post_attention_layernorm(written)
            logits = hf.lm_head(norm(sign * written))
            own.append(token in logits.topk(5).indices.tolist())
        found.append(own)
    return found


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("front", [(), (7,)])
def test_copy_scores_are_those_of_the_ov_circuit_by_hand(family: str, front: tuple[int, ...]) -> None:
    model, tokens = double_model(family), list(range(10, 70))
    found = copy_scores(model, tokens, leading=front)
    with torch.no_grad():
        for scores, sign in zip(found, (1, -1), strict=True):
            expected = np.mean([_copies_by_hand(model, family, token, front, sign) for token in tokens], axis=0)
            np.testing.assert_allclose(scores, expected)
    assert 0 < found[0].max() < 1


def test_given_words_are_looked_at_with_a_space_in_front() -> None:
    words = tokenizer()
    model = Model.from_parts(tiny_hf("gpt2", vocab_size=len(words)), words, name="tiny", check=False)
    scores = attention_scores(model, words=[*NAMES, "Anna", "Nebuchadnezzar"], sequences=1, length=5)
    assert scores.copied == len(NAMES)
    assert "1 of 12 words are not one token and were left out: Nebuchadnezzar." in scores.notes
    ids = [words(f" {name}")["input_ids"][0] for name in NAMES]
    np.testing.assert_array_equal(scores.table["copy"], copy_scores(model, ids)[0].reshape(-1))
    with pytest.raises(PairsError, match="None of the words is one token"):
        attention_scores(model, words=["Nebuchadnezzar"], sequences=1, length=5)


def test_in_a_trained_model_some_heads_copy_names_and_others_suppress_them() -> None:
    model = load_model("mini", check=False)
    names = load_words(load_world().first_names).names
    scores = attention_scores(model, words=names, sequences=1)
    assert scores.copied == len(names)
    table = scores.table.set_index(["layer", "head"])
    assert (table["copy"].loc[5] > 0.95).all()
    assert {at for at, value in table["negated_copy"].items() if value > 0.9} == {(3, 6), (4, 1), (4, 2), (4, 3)}


def test_a_bfloat16_model_has_nearly_the_same_scores() -> None:
    one, other = (attention_scores(load_model("mini", dtype=name, check=False)) for name in ("float32", "bfloat16"))
    np.testing.assert_allclose(one.table[list(SCORES)], other.table[list(SCORES)], atol=0.05)
    assert one.notes == ()
    best = one.top("previous_token", 3)
    assert list(best.columns) == ["layer", "head", "previous_token"]
    assert best["previous_token"].is_monotonic_decreasing


def test_what_cannot_be_scored_is_said() -> None:
    with pytest.raises(SiteError, match="does not offer pattern"):
        attention_scores(double_model("falcon"))
    with pytest.raises(ModelError, match="no tokenizer"):
        attention_scores(double_model("gpt2"), words=["Mary"], sequences=1, length=4)
    with pytest.raises(ModelError, match="at least 2 different tokens"):
        attention_scores(double_model("gpt2"), length=1)
    with pytest.raises(ModelError, match="no BOS token"):
        bos_of(double_model("gpt2"))
    # no values of single heads: attention is scored all the same
    hf = tiny_hf("opt", word_embed_proj_dim=16, do_layer_norm_before=False)
    scores = attention_scores(Model.from_parts(hf, name="opt", check=False), sequences=1, length=4)
    assert scores.table["copy"].isna().all()
    assert scores.table["induction"].notna().all()
    assert scores.copied == 0
    assert "There are no copy scores: " in scores.notes[-1]


def test_words_are_read_from_a_file(tmp_path) -> None:
    file = tmp_path / "words.txt"
    file.write_bytes("\ufeffMary\r\n\r\n John \nZoë".encode())
    assert read_words(file) == ["Mary", "John", "Zoë"]
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="no UTF-8 text"):
        read_words(file)
    file.write_text("\n \n")
    with pytest.raises(InputError, match="holds no words"):
        read_words(file)
    with pytest.raises(InputError, match="No such file"):
        read_words(tmp_path / "missing.txt")
