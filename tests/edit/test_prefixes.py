"""Texts before a prompt: drawn from the model, from a seed, and harmless whatever stands in them."""

from __future__ import annotations

import unicodedata

import pytest
import torch

from engramscope.edit.keys import with_prefixes
from engramscope.edit.prefixes import WORDS, sample_prefixes
from engramscope.models.model import Model
from tests.edit.small import EDITABLE, FACT, shared_model, tiny_with_tokenizer
from tests.tiny_models import tiny_hf
from tests.tiny_study import tokenizer


def without_start(family: str = "gpt2") -> Model:
    words = tokenizer()
    words.bos_token = None
    return Model.from_parts(tiny_hf(family, vocab_size=len(words)), words, name="wordy", check=False)


def plain_draws(model: Model, starts: list[list[int]], lengths: list[int], seed: int, top_k: int) -> list[list[int]]:
    """One row at a time: the same draws, because all rows of a step are drawn in order."""
    generator = torch.Generator().manual_seed(seed)
    rows = [list(start) for start in starts]
    while growing := [k for k, row in enumerate(rows) if len(row) < lengths[k]]:
        values, tokens = [], []
        for k in growing:
            best = model.logits(torch.tensor([rows[k]]))[0, -1].topk(top_k)
            values.append(best.values)
            tokens.append(best.indices)
        drawn = torch.multinomial(torch.stack(values).softmax(-1), 1, generator=generator)
        for k, row, place in zip(growing, tokens, drawn[:, 0], strict=True):
            rows[k].append(int(row[place]))
    return rows


@pytest.mark.parametrize("family", EDITABLE)
def test_texts_are_drawn_token_by_token_from_the_most_probable(family: str) -> None:
    model = shared_model(family)
    state = torch.get_rng_state()
    found = sample_prefixes(model, ((3, 4), (2, 7)), 5)
    assert torch.equal(torch.get_rng_state(), state)
    rows = plain_draws(model, [[0]] * 5, [4, 4, 4, 7, 7], 5, 5)
    for text, row in zip(found, rows, strict=True):
        decoded = unicodedata.normalize("NFKD", model.tokenizer.decode(row, skip_special_tokens=True)).strip()
        assert text == (decoded.replace("\n\n", " ") + ". " if decoded else "")
    assert sample_prefixes(model, ((3, 4), (2, 7)), 5) == found


def test_seeds_differ_and_one_candidate_leaves_no_choice() -> None:
    model = shared_model("llama")
    assert len({sample_prefixes(model, ((4, 8),), seed) for seed in range(4)}) == 4
    (one, two) = sample_prefixes(model, ((2, 8),), 0, top_k=1)
    assert one == two
    assert sample_prefixes(model, ((0, 5),), 0) == ()
    assert sample_prefixes(model, (), 0) == ()


def test_models_without_a_start_of_text_begin_with_five_words() -> None:
    model = without_start()
    found = sample_prefixes(model, ((7, 9),), 0)
    starts = [model.tokenizer(word)["input_ids"] for word in WORDS]
    assert len({len(start) for start in starts}) > 1
    rows = plain_draws(model, [starts[k % 5] for k in range(7)], [9] * 7, 0, 5)
    for k, (text, row) in enumerate(zip(found, rows, strict=True)):
        assert text.startswith(WORDS[k % 5])
        decoded = unicodedata.normalize("NFKD", model.tokenizer.decode(row, skip_special_tokens=True))
        assert text == decoded.strip().replace("\n\n", " ") + ". "
    assert sample_prefixes(shared_model("gpt2"), ((5, 9),), 0, words=True) != sample_prefixes(
        shared_model("gpt2"), ((5, 9),), 0
    )


def test_a_token_for_the_start_does_not_count_beside_a_word() -> None:
    model = shared_model("llama")
    starts = [model.tokenizer(word)["input_ids"] for word in WORDS]
    assert all(start[0] == 0 for start in starts)
    found = sample_prefixes(model, ((5, 9),), 0, words=True)
    rows = plain_draws(model, starts, [10] * 5, 0, 5)
    for text, row in zip(found, rows, strict=True):
        decoded = unicodedata.normalize("NFKD", model.tokenizer.decode(row, skip_special_tokens=True))
        assert text == decoded.strip().replace("\n\n", " ") + ". "


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_braces_and_the_subject_in_a_text_are_harmless(family: str) -> None:
    model = shared_model(family)
    prefixes = ("{} {0} {subject}. ", "Anna and Anna. ", "}{. ", "")
    bare, *others = with_prefixes(model, [FACT], prefixes)[0]
    assert bare.subject is not None
    for prefix, ask in zip(prefixes, others, strict=True):
        assert ask.prompt == tuple(model.tokenizer(prefix + FACT.prompt)["input_ids"])
        assert ask.subject is not None
        # " Anna" is what is found, however the text before it is cut into tokens
        assert len(ask.prompt) - ask.subject == len(bare.prompt) - bare.subject
        assert ask.prompt[ask.subject] == bare.prompt[bare.subject]


def test_sampling_leaves_the_model_as_it_was() -> None:
    model = tiny_with_tokenizer("gpt2")
    model.hf.train()
    sample_prefixes(model, ((2, 4),), 0)
    assert not any(module._forward_pre_hooks for module in model.hf.modules())
    assert all(parameter.grad is None for parameter in model.hf.parameters())
