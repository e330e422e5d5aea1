"""Pairs in tokens and facts about a model, made by hand: words are tokens, embeddings are a seeded table."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from engramscope.corruptions._base import Ablation, Corruption, Donor, Draw, Mean, ModelFacts
from engramscope.pairs.pair import Pair
from engramscope.pairs.tokenized import Alignment, TokenizedPair, TokenizedPrompt

D_MODEL = 6
VOCAB = 40
NAMES = ("Ada Byron", "Kurt Friedrich", "Emmy Noether", "Paul Erdos", "Sofia Kova", "Alan Mathison", "Grace Hopper")


def make_pairs(names: Sequence[str] = NAMES) -> list[Pair]:
    """One pair per two-word name; all prompts have six words, the subject is words 1 and 2."""
    return [
        Pair(
            id=f"pair {name}",
            clean=f"Here {name} lives in",
            correct=(" Rome",),
            corrupted=f"Here {name.split()[0]} Someone lives in",
            incorrect=(" Oslo",),
            group=name[0],
            spans={"subject": (4, 5 + len(name))},  # begins with the space, which must not be embedded
            labels={"kind": "made"},
        )
        for name in names
    ]


def tokenized(pair: Pair) -> TokenizedPair:
    """The pair split at spaces; a word's id is a function of the word alone."""
    clean, corrupted = _prompt(pair, pair.clean), _prompt(pair, pair.corrupted or pair.clean)
    n = min(len(clean), len(corrupted))
    return TokenizedPair(
        pair=pair,
        clean=clean,
        corrupted=corrupted,
        correct=tuple(encode(answer) for answer in pair.correct),
        incorrect=tuple(encode(answer) for answer in pair.incorrect),
        alignment=Alignment(tuple(range(n)), tuple(range(n))),
    )


def prepared(how: Corruption, pairs: Sequence[Pair]) -> list[TokenizedPair]:
    """The pairs as they are run under this corruption."""
    return [tokenized(how.rewrite(pair)) for pair in pairs]


def encode(text: str) -> tuple[int, ...]:
    return tuple(zlib.crc32(word.encode()) % VOCAB for word in text.split())


def embedding_table() -> Tensor:
    return torch.randn(VOCAB, D_MODEL, generator=torch.Generator().manual_seed(7)) * 0.3 + 0.1


def embed(ids: Sequence[int]) -> Tensor:
    return embedding_table()[torch.tensor(list(ids), dtype=torch.long)]


FACTS = ModelFacts(encode, embed, VOCAB)


def described(how: Corruption, pairs: Sequence[TokenizedPair], seed: int) -> dict[str, list[object]]:
    """Everything that the corruption makes of each pair, by id and free of indices, so that sets can be compared."""
    ids = [pair.pair.id for pair in pairs]
    draws, ablations = how.draws(pairs, FACTS, seed), how.ablations(pairs, seed)
    assert len(draws) == len(ablations) == len(pairs)
    return {
        id_: [*map(_draw, draws[i]), *(_ablation(ids, ablation) for ablation in ablations[i])]
        for i, id_ in enumerate(ids)
    }


def _draw(draw: Draw) -> object:
    noise = draw.noise
    return (draw.seed, None if noise is None else (noise.positions, noise.values.tolist()))


def _ablation(ids: Sequence[str], ablation: Ablation) -> object:
    if isinstance(ablation, Mean):
        return ("mean", sorted(ids[member] for member in ablation.members), ablation.per_position)
    if isinstance(ablation, Donor):
        return ("donor", ids[ablation.pair], ablation.seed)
    return "zero"


def _prompt(pair: Pair, text: str) -> TokenizedPrompt:
    spans = {} if text == pair.clean else dict(pair.corrupted_spans)
    starts, at = [], 0
    for word in text.split():
        at = text.index(word, at)
        starts.append((at, at + len(word)))
        at += len(word)
    covered = {
        name: tuple(i for i, (a, b) in enumerate(starts) if a < end and start < b)
        for name, (start, end) in {**pair.spans, **spans}.items()
    }
    words = tuple(text.split())
    return TokenizedPrompt(encode(text), words, covered, ("further",) * len(words))
