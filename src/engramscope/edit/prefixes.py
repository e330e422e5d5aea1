"""Texts that are put before a prompt, so that an edit does not hang on the prompt standing alone."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import torch
from torch import Tensor

from engramscope.edit.passes import logits_where, wide
from engramscope.edit.tokens import encoder_of
from engramscope.errors import InputError
from engramscope.models.model import Model

#: where a text begins in a model that has no token for the start of a text
WORDS: tuple[str, ...] = ("The", "Therefore", "Because", "I", "You")
#: what stands between a text and the prompt
JOINT = ". "


@torch.no_grad()
def sample_prefixes(
    model: Model, counts: Sequence[tuple[int, int]], seed: int, *, top_k: int = 5, words: bool = False
) -> tuple[str, ...]:
    """Draw texts from the model itself.

    A text begins with the token for the start of a text, or, in a model that has none, with one of five words in turn.
    Each further token is drawn from the `top_k` most probable ones. What comes out is normalised (NFKD), blank lines
    become spaces, special tokens and white space at its ends are removed, and ". " follows.

    Args:
        model: the model; its own generator of random numbers is not touched.
        counts: (how many, how long); the length counts the token or word that the text begins with.
        seed: the same seed gives the same texts.
        top_k: how many tokens are drawn from.
        words: begin with the words, whatever the model has.

    Returns:
        The texts, in the order of `counts`, ready to be put before a prompt. Braces in them mean nothing.

    Raises:
        InputError: the model gives no probabilities to draw from.

    Source: Meng et al. 2022, ROME, section 3.1; the released code draws them without a seed, and those of MEMIT begin
    with the five words.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = [length for count, length in counts for _ in range(count)]
    begun = _starts(model, words=words)
    leading = [begun[index % len(begun)][0] for index in range(len(lengths))]
    rows = [list(begun[index % len(begun)][1]) for index in range(len(lengths))]
    while growing := [index for index, row in enumerate(rows) if len(row) - leading[index] < lengths[index]]:
        logits = _next_logits(model, [rows[index] for index in growing])
        best = logits.topk(min(top_k, logits.shape[-1]))
        if not bool(torch.isfinite(best.values).all()):
            raise InputError(
                "The model gives values that are not finite, so no texts can be drawn from it; it is damaged, or it "
                "overflows: load it in float32."
            )
        drawn = torch.multinomial(best.values.softmax(-1), 1, generator=generator)
        for index, token in zip(growing, best.indices.gather(1, drawn)[:, 0].tolist(), strict=True):
            rows[index].append(token)
    return tuple(_text(model, row) for row in rows)


def _starts(model: Model, *, words: bool) -> list[tuple[int, tuple[int, ...]]]:
    """Token ids to begin with, and how many of them do not count."""
    encoder = encoder_of(model)
    start = model.tokenizer.bos_token_id
    if start is not None and not words:
        return [(0, (start,))]
    return [(encoded.leading, encoded.ids) for encoded in encoder.encode(WORDS)]


def _next_logits(model: Model, rows: Sequence[Sequence[int]]) -> Tensor:
    """Logits after each row [rows, vocab], on the CPU, where the draws are made."""
    ids = torch.zeros(len(rows), max(len(row) for row in rows), dtype=torch.long)
    mask, last = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
        last[index, len(row) - 1] = True
    device = model.device
    return wide(logits_where(model, ids.to(device), mask.to(device), last.to(device))).cpu()


def _text(model: Model, ids: Sequence[int]) -> str:
    text = model.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    text = unicodedata.normalize("NFKD", text).replace("\n\n", " ").strip()
    return text + JOINT if text else ""
