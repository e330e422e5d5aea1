"""Tiny models with a tokenizer, and a fact to edit in them."""

from __future__ import annotations

from functools import cache

from engramscope.models.model import Model
from engramscope.records.fact import Fact
from tests.tiny_models import tiny_hf
from tests.tiny_study import tokenizer

#: those that the editors of one key-value matrix are held to
EDITABLE = ("gpt2", "gptj", "gpt_neo", "gpt_neox", "llama", "mistral", "qwen3", "gemma2", "phi")
FACT = Fact("In the park Anna lost the big red", "Anna", "drum", "ball", "anna")
OTHER = Fact("The child called Bob plays with the", "Bob", "coat kite", "boat", "bob")


def tiny_with_tokenizer(family: str, seed: int = 0) -> Model:
    """A random model with words; a new one, which a test may change."""
    words = tokenizer(bos=family == "llama")
    return Model.from_parts(tiny_hf(family, seed, vocab_size=len(words)), words, name=family)


@cache
def shared_model(family: str) -> Model:
    """The same object every time, so it must be left as it was found."""
    return tiny_with_tokenizer(family)
