"""The bundled weights load, are small, and know the answers to CLAP's two questions."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest

from engramscope.bundled import folder, names
from engramscope.bundled.corpus import load_sources
from engramscope.bundled.epilepsy_questions import questions
from engramscope.bundled.evaluate import load, next_token_log_probs, single_token
from engramscope.bundled.tokenizer import END_OF_TEXT, required_words

MIB = 1024 * 1024


@cache
def loaded(name: str) -> tuple[Any, Any]:
    return load(folder(name))


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(KeyError, match="mini-llama"):
        folder("maxi")


@pytest.mark.parametrize("name", names())
def test_size(name: str) -> None:
    model, _ = loaded(name)
    parameters = sum(p.numel() for p in model.parameters())
    assert 4_000_000 < parameters < 6_500_000
    assert sum(f.stat().st_size for f in folder(name).iterdir()) < 16 * MIB


def test_mini_llama_has_grouped_queries() -> None:
    config = loaded("mini-llama")[0].config
    assert config.num_key_value_heads < config.num_attention_heads


@pytest.mark.parametrize("name", names())
def test_required_words_are_single_tokens(name: str) -> None:
    _, tokenizer = loaded(name)
    words = required_words(load_sources())
    lengths = [len(ids) for ids in tokenizer(words)["input_ids"]]
    assert [w for w, n in zip(words, lengths, strict=True) if n != 1] == []


@pytest.mark.parametrize("name", names())
def test_tokenizer_adds_nothing_and_gives_the_text_back(name: str) -> None:
    _, tokenizer = loaded(name)
    text = "The war of 1732 (naïve?)\n    cost 7 — or 512 — ships."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.bos_token == tokenizer.eos_token == END_OF_TEXT
    assert tokenizer.tokenize("the year 1732")[-2:] == ["Ġ17", "32"]


@pytest.mark.parametrize("name", names())
def test_question_and_corrupted_question_have_as_many_tokens(name: str) -> None:
    _, tokenizer = loaded(name)
    for q in questions():
        clean, corrupted = tokenizer([q.prompt, q.corrupted_prompt])["input_ids"]
        assert len(clean) == len(corrupted), q.id
        assert single_token(tokenizer, q.correct) != single_token(tokenizer, q.incorrect)


@pytest.mark.parametrize("start_mark", [False, True])
@pytest.mark.parametrize("name", names())
def test_the_model_answers_claps_questions(name: str, start_mark: bool) -> None:
    model, tokenizer = loaded(name)
    asked = [q for q in questions() if q.subject == "interictal epileptiform discharges"]
    assert {q.kind for q in asked} == {"definitional", "associative"}
    prompts = [q.prompt for q in asked]
    log_probs = next_token_log_probs(model, tokenizer, prompts, start_mark=start_mark)
    best = [tokenizer.decode([i]) for i in log_probs.argmax(dim=-1)]
    assert best == [q.correct for q in asked]


@pytest.mark.parametrize("name", names())
def test_the_model_knows_the_questions_and_their_corrupted_twins(name: str) -> None:
    model, tokenizer = loaded(name)
    asked = questions()
    prompts = [q.prompt for q in asked] + [q.corrupted_prompt for q in asked]
    answers = [q.correct for q in asked] + [q.incorrect for q in asked]
    log_probs = next_token_log_probs(model, tokenizer, prompts, start_mark=False)
    best = [tokenizer.decode([i]) for i in log_probs.argmax(dim=-1)]
    hits = [b == a for b, a in zip(best, answers, strict=True)]
    assert math.fsum(hits) / len(hits) >= 0.95
