"""Texts that a model writes by itself: top-k sampling, the same for the same seed whatever is generated beside it."""

from __future__ import annotations

import inspect
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from engramscope.edit.tokens import encoder_of
from engramscope.errors import InputError
from engramscope.models.model import Model

#: texts that are generated side by side
ROWS = 64


@dataclass(frozen=True, slots=True)
class Generated:
    """A text that a model wrote.

    Attributes:
        text: the prompt and what follows it, NFKD, without special tokens, blank lines as spaces.
        ids: its tokens, the special tokens in front included.
        collapsed: the model's logits were not numbers at some token; the text ends before it.
    """

    text: str
    ids: tuple[int, ...]
    collapsed: bool = False


@torch.no_grad()
def sample_texts(
    model: Model, prompts: Sequence[str], names: Sequence[str], *, length: int = 100, top_k: int = 5, seed: int = 0,
    rows: int = ROWS, progress: Callable[[str, int, int], None] | None = None,
) -> list[Generated]:  # fmt: skip
    """Go on from each prompt by top-k sampling until the text is so many tokens long, the prompt included.

    Each text has random numbers of its own, drawn from the seed and its name, so that it does not depend on what is
    generated beside it, and the same text of two models is drawn with the same numbers. No global generator is
    touched. Rows of unequal prompts start together at the shortest; the longer ones are fed their own tokens first, so
    nothing is padded. An end-of-text token does not end a text, as in the publication.

    Args:
        model: the model.
        prompts: beginnings of texts.
        names: name each text for its random numbers.
        length: tokens of a whole text; at most the model's positions. A prompt that is as long stays as it is.
        top_k: how many of the most probable tokens are drawn from.
        seed: of the random numbers.
        rows: texts that are generated side by side.
        progress: called with (what, done, total).

    Raises:
        InputError: a prompt has no tokens.

    Source: Meng et al. 2022 (2202.05262), `generate_fast`: length 100, k = 5.
    """
    encoded = encoder_of(model).encode(list(prompts))
    if empty := [name for name, one in zip(names, encoded, strict=True) if not one.ids]:
        raise InputError(f"The generation prompt {empty[0]!r} is empty, so there is nothing to go on from.")
    limit = getattr(model.hf.config, "max_position_embeddings", None)
    stop = length if limit is None else min(length, limit)
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index].ids))
    batches = [order[start : start + rows] for start in range(0, len(order), rows)]
    found: dict[int, tuple[tuple[int, ...], bool]] = {}
    for done, batch in enumerate(batches):
        if progress:
            progress("generated texts", done * rows, len(order))
        drawn = np.stack([uniforms(seed, names[index], stop) for index in batch])
        texts = _continued(model, [encoded[index].ids for index in batch], drawn, stop, top_k)
        found |= dict(zip(batch, texts, strict=True))
    decode = encoder_of(model).tokenizer.decode
    return [
        Generated(
            _cleaned(str(decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))), ids, bad
        )
        for ids, bad in (found[index] for index in range(len(encoded)))
    ]


def uniforms(seed: int, name: str, count: int) -> NDArray[np.float64]:
    """Random numbers in [0, 1) that belong to a seed and a name."""
    words = np.frombuffer(sha256(name.encode("utf-8", "backslashreplace")).digest(), dtype="<u4")
    return np.random.default_rng([seed, *words.tolist()]).random(count)


def choose_top_k(
    logits: Float[Tensor, "rows vocab"], drawn: Float[Tensor, " rows"], top_k: int
) -> tuple[Int[Tensor, " rows"], Bool[Tensor, " rows"]]:
    """Draw a token of each row from the k most probable ones, in proportion to their probabilities.

    Args:
        logits: of the next token.
        drawn: a number in [0, 1) for each row; the token is where the cumulated probabilities, the largest first, pass
            it.
        top_k: how many tokens.

    Returns:
        The tokens, and whether the row's logits are numbers; where they are not, the token means nothing.
    """
    largest, found = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
    values, tokens = largest.cpu().double(), found.cpu()
    # a NaN counts as the largest of all in topk, so the first value shows it
    sound = values[:, 0].isfinite()
    cumulated = torch.softmax(values, dim=-1).cumsum(-1)
    place = (drawn[:, None] >= cumulated).sum(-1).clamp(max=values.shape[-1] - 1)
    return tokens.gather(1, place[:, None])[:, 0], sound


def _continued(
    model: Model, prompts: Sequence[tuple[int, ...]], drawn: NDArray[np.float64], stop: int, top_k: int
) -> list[tuple[tuple[int, ...], bool]]:
    """Tokens of each text, and whether the model collapsed in it."""
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    start = int(lengths.min())
    ids = torch.zeros((len(prompts), max(stop, int(lengths.max()))), dtype=torch.long)
    for index, prompt in enumerate(prompts):
        ids[index, : len(prompt)] = torch.tensor(prompt)
    numbers = torch.from_numpy(drawn)
    ends = lengths.clamp(min=stop)
    sound = torch.ones(len(prompts), dtype=torch.bool)
    head = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.hf.forward).parameters else {}
    cache: Any = None
    for place in range(start, stop):
        fresh = ids[:, :place] if cache is None else ids[:, place - 1 : place]
        mask = torch.ones((len(prompts), place), dtype=torch.long, device=model.device)
        output = model.hf(
            input_ids=fresh.to(model.device), attention_mask=mask, past_key_values=cache, use_cache=True, **head
        )  # fmt: skip
        cache = output.past_key_values
        free = (lengths <= place) & sound
        own = (place - lengths).clamp(min=0)  # the how many-th new token of its row this is
        tokens, numeric = choose_top_k(output.logits[:, -1], numbers.gather(1, own[:, None])[:, 0], top_k)
        lost = free & ~numeric
        ends[lost] = place
        sound &= ~lost
        ids[:, place] = torch.where(free & numeric, tokens, ids[:, place])
        if not bool((sound & (lengths < stop)).any()):
            break
    return [
        (tuple(row[:end].tolist()), not fine) for row, end, fine in zip(ids, ends.tolist(), sound.tolist(), strict=True)
    ]


def _cleaned(text: str) -> str:
    return unicodedata.normalize("NFKD", text).replace("\n\n", " ")
