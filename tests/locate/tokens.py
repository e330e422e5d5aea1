"""Pairs in tokens for models without a tokenizer, and tiny models in float64."""

from __future__ import annotations

from functools import cache

import torch

from engramscope.models import Model
from engramscope.pairs import Pair
from engramscope.pairs.tokenized import Alignment, TokenizedPair, TokenizedPrompt
from tests.tiny_models import tiny_hf

#: norms that compute in the model's own type; the others compute in float32 whatever it is
EXACT = ("gpt2", "gpt_neo", "gpt_neox", "opt", "phi", "falcon", "bloom")
ALL = (*EXACT, "llama", "gemma2", "gemma3", "olmo2", "cohere2")


@cache
def double_model(family: str) -> Model:
    """A tiny random model in float64; it must not be changed."""
    return Model.from_parts(tiny_hf(family).double(), name=family, check=False)


def token_pair(
    number: int,
    ids: list[int],
    correct: tuple[int, ...] = (11,),
    incorrect: tuple[int, ...] = (20,),
    corrupted: list[int] | None = None,
) -> TokenizedPair:
    """A pair of which only the tokens count."""
    roles = ("first", *("further",) * (len(ids) - 2), "last")
    prompts = [TokenizedPrompt(tuple(own), tuple(map(str, own)), {}, roles) for own in (ids, corrupted or ids)]
    pair = Pair(
        f"p{number}", "x", ("y",), corrupted=None if corrupted is None else "w", incorrect=("z",),
        group=f"g{number % 3}",
    )  # fmt: skip
    places = tuple(range(len(ids)))
    return TokenizedPair(
        pair, *prompts, tuple((token,) for token in correct), tuple((token,) for token in incorrect),
        Alignment(places, places),
    )  # fmt: skip


def random_pairs(count: int = 5, lengths: tuple[int, ...] = (6, 8), seed: int = 5) -> list[TokenizedPair]:
    """Pairs of random tokens, of different lengths, with answers of their own."""
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for number in range(count):
        ids = torch.randint(3, 90, (lengths[number % len(lengths)],), generator=generator).tolist()
        right, wrong = torch.randperm(80, generator=generator)[:2].tolist()
        pairs.append(token_pair(number, ids, (3 + right,), (3 + wrong,)))
    return pairs
