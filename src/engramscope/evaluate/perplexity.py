"""Perplexity of held-out texts, each token weighted alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, inf, isfinite, log

import torch

from engramscope.edit.tokens import Ask, batches, encoder_of
from engramscope.errors import InputError
from engramscope.evaluate.readings import Before, logits_at
from engramscope.models.model import Model
from engramscope.pairs.encode import Encoded

#: padded tokens of one forward; all of its logits are held at once
TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Perplexity:
    """exp of the mean negative log-likelihood per token of some texts.

    Attributes:
        nll: summed over the tokens, in nats; inf where the model's logits are not numbers.
        tokens: how many were predicted.
        texts: how many texts they come from.
    """

    nll: float
    tokens: int
    texts: int

    @property
    def value(self) -> float:
        """exp(nll / tokens), ≥ 1; inf where the model collapsed, or where it is too large for a number."""
        mean = self.nll / self.tokens
        return exp(mean) if mean < log(1e308) else inf

    @property
    def collapsed(self) -> bool:
        """The model's logits were not numbers."""
        return not isfinite(self.nll)


@torch.no_grad()
def perplexity_of(model: Model, texts: Sequence[str], *, first: int | None = None, tokens: int = TOKENS) -> Perplexity:
    """Perplexity of texts: exp(Σ −log P(token | tokens before it) / number of such tokens), over all texts together.

    A token without any other before it is not predicted: the first of a text where the tokenizer puts no special token
    in front. A text that is longer than the model's positions is read in pieces that follow one another.

    Args:
        model: the model as it is now.
        texts: held-out texts.
        first: read only so many tokens of each text.
        tokens: padded tokens of one forward.

    Raises:
        InputError: there is no token to predict.
    """
    asks = [Ask(piece, ()) for text in encoder_of(model).encode(list(texts)) for piece in _pieces(model, text, first)]
    total, count = 0.0, sum(len(ask.prompt) - 1 for ask in asks)
    if not count:
        raise InputError("The texts for the perplexity have no two tokens one after the other; give longer texts.")
    for batch in batches(asks, tokens):
        rows = [asks[index].prompt for index in batch]
        logits = logits_at(model, rows, range(len(rows[0]) - 1))  # the longest stands first
        for row, found in zip(rows, logits, strict=True):
            labels = torch.tensor(row[1:], device=logits.device)
            wide = found[: len(row) - 1]
            wide = wide if wide.dtype == torch.float64 else wide.float()
            total += float(torch.nn.functional.cross_entropy(wide, labels, reduction="sum"))
    return Perplexity(total if total == total else inf, count, len(texts))


def _pieces(model: Model, text: Encoded, first: int | None) -> Iterator[Before]:
    """Rows of token ids of a text: at most as long as the model's positions, each with the special tokens in front."""
    ids, leading = text.ids, text.leading
    limit = getattr(model.hf.config, "max_position_embeddings", None) or len(ids)
    body = ids[leading : first if first is None else max(first, leading)]
    size = max(1, limit - leading)
    for start in range(0, len(body), size):
        piece = ids[:leading] + body[start : start + size]
        if len(piece) > 1:
            yield piece
