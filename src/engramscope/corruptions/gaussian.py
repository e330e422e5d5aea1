"""Gaussian noise on the token embeddings of the key tokens, several draws, the same for every cell."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from engramscope.corruptions._base import Corruption, CorruptionOptions, Draw, Level, ModelFacts
from engramscope.corruptions._moments import pooled_std
from engramscope.corruptions._random import generator
from engramscope.engine.plan import Noise
from engramscope.errors import CheckError, PairsError
from engramscope.pairs.pair import Pair
from engramscope.pairs.tokenized import TokenizedPair

_CHUNK = 8192  # rows of the vocabulary that are embedded at a time


class GaussianOptions(CorruptionOptions):
    """Options of `gaussian`; the defaults are those of the ROME code (3 standard deviations, 10 draws, the subject).

    Attributes:
        sigma: the factor k; the noise has k times the standard deviation of the embeddings of the key texts.
        draws: number of noise draws per pair.
        span: the named span whose tokens are noised, or several of them.
        key_texts: whose embeddings give the standard deviation: the texts of these spans in all pairs, or the
            vocabulary.
    """

    model_config = ConfigDict(strict=True)

    @property
    def spans(self) -> tuple[str, ...]:
        """The spans, without repetition."""
        return (self.span,) if isinstance(self.span, str) else tuple(dict.fromkeys(self.span))

    sigma: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 3.0
    draws: Annotated[int, Field(ge=1)] = 10
    span: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1)] = "subject"
    key_texts: Literal["spans", "vocabulary"] = "spans"


class Gaussian(Corruption):
    """`embed(t) <- embed(t) + ε`, `ε ~ N(0, σ² I)` for the tokens t of the span or spans; `σ = k · std`.

    `std` is one number: the standard deviation (n - 1) over all scalars of the token-embedding outputs of all tokens of
    all key texts. Each key text is the span's text of one pair, tokenised alone, without leading space and without
    special tokens; a text that occurs in several pairs counts as often as it occurs. Position embeddings are neither
    measured nor noised. With `key_texts = "vocabulary"` it is taken over the whole embedding table and does not depend
    on the pairs.

    The standard-normal part of draw d of a pair is a function of (seed, pair id, d) alone, so it is the same for
    every cell, in any order, and when the set is limited or extended. Only its scale σ depends on the set, as in ROME.

    A prompt that the pair brings as `corrupted` is not used: the corrupted run is the clean prompt under noise. The
    incorrect answers stay what they are (noise itself has no answer; Zhang & Nanda use those of the replacement).

    Weakness: it takes the model off its distribution; report the spread between draws and σ (`noise_level`), and
    prefer `str`.

    Source: Meng et al., arXiv 2202.05262, and the ROME code; Zhang & Nanda, arXiv 2309.16042, §2.
    Deviation: ROME restarts one generator for every prompt, so prompts of equal length share their noise; here they do
    not.
    """

    Options: ClassVar[type[CorruptionOptions]] = GaussianOptions
    level: ClassVar[Level] = "embedding"
    random: ClassVar[bool] = True

    def __init__(self, options: CorruptionOptions) -> None:
        super().__init__(options)
        self._own = GaussianOptions.model_validate(options.model_dump())

    def rewrite(self, pair: Pair) -> Pair:
        """The pair without a corrupted prompt of its own.

        Raises:
            PairsError: the pair does not name the span that is to be noised, or it is empty.
        """
        empty = [span for span in self._own.spans if not _key_text(pair, span)]
        if empty:
            named = ", ".join(sorted(pair.spans)) or "none"
            raise PairsError([
                f"Pair {pair.id!r} has no text in a span {span!r}, which the corruption 'gaussian' is to "
                f"noise (its spans: {named}); add it to `spans`, or name another with `span`."
                for span in empty
            ])  # fmt: skip
        return replace(pair, corrupted=None, corrupted_spans={})

    def noise_std(self, pairs: Sequence[TokenizedPair], facts: ModelFacts) -> float:
        """The standard deviation of the key texts' embeddings, in units of the embedding (before the factor k).

        Raises:
            CheckError: it is not a finite number.
        """
        std = pooled_std(self._key_embeddings(pairs, facts))
        if not math.isfinite(std):
            raise CheckError(f"The standard deviation of the embeddings of the key texts is {std}, not a number.")
        return std

    def noise_level(self, pairs: Sequence[TokenizedPair], facts: ModelFacts) -> float:
        """σ = k · std: the standard deviation of the noise that `draws` adds for the same arguments."""
        return self._own.sigma * self.noise_std(pairs, facts)

    def draws(self, pairs: Sequence[TokenizedPair], facts: ModelFacts, seed: int) -> list[list[Draw]]:
        """`draws` noise tensors per pair, float32 [span tokens, d_model], on the positions of the span only.

        Args:
            pairs: *all* pairs of the study, because σ is measured on all of them.
            facts: what the model says.
            seed: the study's seed.

        Raises:
            PairsError: a pair without tokens in the span; every such pair is named.
        """
        faults = [
            f"Pair {pair.pair.id!r}: the span {span!r}, which is to be noised, covers no token of the prompt."
            for pair in pairs
            for span in self._own.spans
            if not pair.corrupted.spans.get(span)
        ]
        if faults:
            raise PairsError(faults)
        if not pairs:
            return []
        sigma = self.noise_level(pairs, facts)
        width = facts.embed([pairs[0].corrupted.ids[0]]).shape[-1]
        return [[Draw(d, self._noise(pair, d, seed, sigma, width)) for d in range(self._own.draws)] for pair in pairs]

    def _noise(self, pair: TokenizedPair, draw: int, seed: int, sigma: float, width: int) -> Noise:
        positions = tuple(sorted({at for span in self._own.spans for at in pair.corrupted.spans[span]}))
        # one generator per draw: more draws or more pairs leave this one as it is
        normal = generator("gaussian", seed, pair.pair.id, draw).standard_normal((len(positions), width))
        return Noise(positions, torch.from_numpy(sigma * normal).to(torch.float32))

    def _key_embeddings(self, pairs: Sequence[TokenizedPair], facts: ModelFacts) -> Iterator[Tensor]:
        if self._own.key_texts == "vocabulary":
            if facts.vocab < 1:
                raise ValueError("key_texts = 'vocabulary' needs ModelFacts.vocab")
            for start in range(0, facts.vocab, _CHUNK):
                yield facts.embed(list(range(start, min(start + _CHUNK, facts.vocab))))
            return
        # sorted, so that the rounding of the sums does not depend on the order of the pairs either
        for text in sorted(_key_text(pair.pair, span) for pair in pairs for span in self._own.spans):
            yield facts.embed(facts.encode(text))


def _key_text(pair: Pair, span: str) -> str:
    start, end = pair.spans.get(span, (0, 0))
    return pair.clean[start:end].strip()


COMPONENT = Gaussian
