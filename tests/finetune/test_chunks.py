"""Chunks and batches: nothing is lost at a cut, and nobody learns from padding."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from engramscope.errors import InputError
from engramscope.finetune.chunks import IGNORED, Padding, cut, ensure_in_vocabulary, pad_token, tokenise
from engramscope.finetune.loss import summed_nll
from engramscope.finetune.order import StepOrder
from tests.tiny_models import tiny_hf
from tests.tiny_study import tokenizer


@pytest.mark.parametrize("length", [2, 3, 5, 16])
@pytest.mark.parametrize("count", range(14))
def test_every_token_but_the_first_is_predicted_exactly_once(count: int, length: int) -> None:
    ids = list(range(100, 100 + count))
    chunks = cut(ids, length)
    assert all(2 <= len(chunk) <= length for chunk in chunks)
    predicted = [token for chunk in chunks for token in chunk[1:]]
    assert predicted == ids[1:]
    for before, after in pairwise(chunks):
        assert before[-1] == after[0]


def test_a_batch_made_by_hand() -> None:
    """Two chunks, the pad id is also the end-of-text token 9: the genuine one keeps its label, padding has none."""
    made = Padding(pad=9, chunk=6)([[5, 6, 7, 9], [3, 9]])
    assert made["input_ids"].tolist() == [[5, 6, 7, 9], [3, 9, 9, 9]]
    assert made["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert made["labels"].tolist() == [[IGNORED, 6, 7, 9], [IGNORED, 9, IGNORED, IGNORED]]
    full = Padding(pad=9, chunk=6, to="chunk")([[5, 6, 7, 9], [3, 9]])
    assert full["input_ids"].shape == (2, 6)
    assert full["labels"].tolist()[0] == [IGNORED, 6, 7, 9, IGNORED, IGNORED]


def test_loss_and_gradients_are_the_same_whatever_a_batch_is_padded_to_and_with() -> None:
    hf = tiny_hf("gpt2", vocab_size=50).eval()
    random = np.random.default_rng(0)
    chunks = [random.integers(0, 50, length) for length in (3, 9, 6)]
    found = []
    for padding in (Padding(0, 12), Padding(0, 12, "chunk"), Padding(49, 12, "chunk")):
        made = padding(chunks)
        labels = made.pop("labels")
        hf.zero_grad()
        loss = summed_nll(hf(**made).logits, labels)
        loss.backward()
        found.append((loss.detach(), torch.cat([p.grad.flatten() for p in hf.parameters() if p.grad is not None])))
    for loss, gradient in found[1:]:
        torch.testing.assert_close(loss, found[0][0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-5, atol=1e-5)


def test_an_epoch_is_a_permutation_in_random_steps_and_each_step_is_sorted_by_length() -> None:
    lengths = np.random.default_rng(0).integers(2, 60, 103)
    order = StepOrder(lengths.tolist(), step=8, seed=3)
    epochs = []
    for epoch in (0, 1):
        order.set_epoch(epoch)
        epochs.append(list(order))
        assert sorted(epochs[-1]) == list(range(103))
        assert len(order) == 103
        steps = [epochs[-1][start : start + 8] for start in range(0, 103, 8)]
        assert all((np.diff(lengths[step]) >= 0).all() for step in steps)
        # which chunks share a step has nothing to do with their length
        assert np.std([np.mean(lengths[step]) for step in steps]) > 0.5 * lengths.std() / 8**0.5
    assert epochs[0] != epochs[1]
    again = StepOrder(lengths.tolist(), step=8, seed=3)
    again.set_epoch(1)
    assert list(again) == epochs[1]
    assert list(StepOrder(lengths.tolist(), 8, 4)) != epochs[0]


def test_the_loss_of_a_batch_by_hand() -> None:
    """Logits 0 everywhere: each of the 4 predicted tokens costs ln 3."""
    made = Padding(pad=0, chunk=4)([[1, 2, 1, 2], [0, 1]])
    assert summed_nll(torch.zeros(2, 4, 3), made["labels"]).item() == pytest.approx(4 * np.log(3), rel=1e-6)
    # the second chunk's token becomes certain; what stands on padding does not matter
    logits = torch.zeros(2, 4, 3)
    logits[1, 0, 1] = 100.0
    logits[1, 1:, 0] = -50.0
    assert summed_nll(logits, made["labels"]).item() == pytest.approx(3 * np.log(3), rel=1e-6)


def test_an_end_of_text_token_stands_behind_each_text_once() -> None:
    words = tokenizer()
    texts = ["The child called Anna", "In the park"]
    plain = tokenise(words, texts, end_of_text=False, processes=1)
    assert [words.decode(ids) for ids in plain] == texts
    ended = tokenise(words, texts, end_of_text=True, processes=1)
    assert ended == [[*ids, words.eos_token_id] for ids in plain]
    again = tokenise(words, ["In the park</s>"], end_of_text=True, processes=1)
    assert again == [[*plain[1], words.eos_token_id]]


def test_four_processes_tokenise_as_one_and_leave_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    words = tokenizer()
    texts = [f"In the park {number} lost" for number in range(1003)]
    several = tokenise(words, texts, end_of_text=True, processes=4)
    assert several == tokenise(words, texts, end_of_text=True, processes=1)
    assert "TOKENIZERS_PARALLELISM" not in os.environ


class _Words:
    def __init__(self, pad: int | None, eos: int | None) -> None:
        self.pad_token_id, self.eos_token_id = pad, eos


@pytest.mark.parametrize(
    ("pad", "eos", "found"),
    [(7, 2, (7, "pad")), (0, 2, (0, "pad")), (None, 2, (2, "end of text")), (None, None, (0, "id 0"))],
)
def test_what_fills_a_batch_up(pad: int | None, eos: int | None, found: tuple[int, str]) -> None:
    words: Any = _Words(pad, eos)
    assert pad_token(words) == found


def test_a_token_id_without_an_embedding_is_named() -> None:
    ensure_in_vocabulary([[1, 4], []], 5, "m")
    with pytest.raises(InputError, match=r"ids up to 5, but its model has only 5 embeddings \(ids 0 to 4\)"):
        ensure_in_vocabulary([[1, 5]], 5, "m")
