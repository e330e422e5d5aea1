"""Packing keeps documents apart, and a stopped training run goes on exactly where it was."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from engramscope.bundled.corpus import LATE_MIXTURE, MIXTURE, Piece, documents, load_sources
from engramscope.bundled.evaluate import TABLE_END, TABLE_START, write_table
from engramscope.bundled.packing import ANSWER_WEIGHT, OTHER_WEIGHT, batch_of, joined, pack
from engramscope.bundled.train import learning_rate, recipe_for
from engramscope.bundled.training_state import load_state, save_state

END = 0
LENGTH = 24


def encode(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def stream() -> itertools.cycle[tuple[Piece, ...]]:
    return itertools.cycle([(Piece("ab", False), Piece("c", True)), (Piece("xyz", False),)])


def test_tokens_see_only_their_own_document() -> None:
    packed = pack(stream(), encode, END, rows=40, length=LENGTH, seed=0)
    batch = batch_of(packed, np.arange(40))
    may_look = batch.attention_mask[:, 0] == 0
    document = torch.from_numpy(packed.document.astype(np.int64))
    same = document[:, :, None] == document[:, None, :]
    torch.testing.assert_close(may_look, same & torch.ones(LENGTH, LENGTH).tril().bool())
    assert batch.position_ids.max() < LENGTH
    first_of_row = batch.position_ids[:, 0]
    torch.testing.assert_close(first_of_row, torch.zeros_like(first_of_row))


def test_only_answers_weigh_fully() -> None:
    batch = batch_of(pack(stream(), encode, END, rows=20, length=LENGTH, seed=0), np.arange(20))
    full = batch.weights == ANSWER_WEIGHT
    torch.testing.assert_close(full, (batch.targets == ord("c")) & (batch.weights > 0))
    assert set(batch.weights.unique().tolist()) == {0.0, np.float32(OTHER_WEIGHT), ANSWER_WEIGHT}


def test_a_longer_corpus_starts_with_the_shorter_one() -> None:
    short = pack(documents(load_sources(), 0), encode, END, rows=5, length=400, seed=0)
    long = pack(documents(load_sources(), 0), encode, END, rows=9, length=400, seed=0)
    np.testing.assert_array_equal(long.tokens[:5], short.tokens)
    assert len(joined(short, long).tokens) == 14


@pytest.mark.parametrize("mixture", [MIXTURE, LATE_MIXTURE])
def test_shares_add_up(mixture: dict[str, float]) -> None:
    assert sum(mixture.values()) == pytest.approx(1.0)
    kinds = [len(d) for d in itertools.islice(documents(load_sources(), 0, mixture), 300)]
    assert min(kinds) >= 1


def test_the_learning_rate_rises_and_falls() -> None:
    recipe = recipe_for("mini", steps=420)
    rates = [learning_rate(recipe, step) for step in range(recipe.steps)]
    assert max(rates) == pytest.approx(recipe.peak_rate)
    assert 0 < rates[0] < rates[10] < rates[100] == pytest.approx(rates[200])
    assert 0 < rates[-1] < rates[-50] < rates[200]


def test_a_saved_state_comes_back_exactly(tmp_path: Path) -> None:
    def fresh() -> tuple[GPT2LMHeadModel, torch.optim.AdamW]:
        config = GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
        model = GPT2LMHeadModel(config).eval()
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    def step(model: GPT2LMHeadModel, optimiser: torch.optim.AdamW) -> None:
        optimiser.zero_grad()
        model(input_ids=torch.arange(6)[None]).logits.square().sum().backward()
        optimiser.step()

    model, optimiser = fresh()
    assert load_state(tmp_path, model, optimiser) == 0
    step(model, optimiser)
    save_state(tmp_path, model, optimiser, 1)
    other, other_optimiser = fresh()
    assert load_state(tmp_path, other, other_optimiser) == 1
    step(model, optimiser)
    step(other, other_optimiser)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_the_table_replaces_what_stands_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{TABLE_START}\nold\n{TABLE_END}\nafter\n", encoding="utf-8")
    write_table(page, "| new |")
    assert page.read_text(encoding="utf-8") == f"before\n{TABLE_START}\n| new |\n{TABLE_END}\nafter\n"
