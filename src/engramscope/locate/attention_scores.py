"""What kind of head is it? Attention of every head on repeated random sequences, and what its OV circuit copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from engramscope.engine.reference import MAX_TOKENS
from engramscope.errors import InputError, ModelError, PairsError, shortened
from engramscope.locate.copying import copy_scores, why_no_copy_scores
from engramscope.locate.questions import forward_last, positions_of
from engramscope.models.model import Model
from engramscope.pairs.encode import Encoder

Progress = Callable[[str, int, int], None]

SCORES = ("previous_token", "duplicate", "induction", "first_position", "entropy", "copy", "negated_copy")


@dataclass(frozen=True)
class AttentionScores:
    """Scores of every head.

    Attributes:
        table: one row per head: `layer, head`, and the columns of `SCORES`.
        sequences: number of random sequences.
        length: tokens of a sequence before it is repeated.
        leading: number of tokens (BOS) in front of a sequence.
        copied: how many tokens the copy scores are made of; 0 where there are none.
        notes: sentences that a reader of the table should know.
    """

    table: pd.DataFrame
    sequences: int
    length: int
    leading: int
    copied: int
    notes: tuple[str, ...] = ()

    @property
    def uniform(self) -> dict[str, float]:
        """What a head that looks at all tokens alike would score in the first four columns."""
        total, n = self.leading + 2 * self.length, self.length
        weights = 1 / (np.arange(total) + 1)
        second = float(weights[self.leading + n :].mean())
        previous = float(weights[self.leading + 1 :].mean())
        return {
            "previous_token": previous, "duplicate": second, "induction": second,
            "first_position": float(weights[1:].mean()),
        }  # fmt: skip

    def top(self, score: str, count: int = 5) -> pd.DataFrame:
        """The heads with the highest values of one score, highest first (heads without a value are left out)."""
        if score not in SCORES:
            raise ValueError(f"{score!r} is no score; there are: {', '.join(SCORES)}")
        table = self.table.dropna(subset=[score]).sort_values(score, ascending=False, kind="stable")
        return table.loc[table.index[:count], ["layer", "head", score]]


def attention_scores(
    model: Model,
    *,
    words: Sequence[str] | None = None,
    leading: Sequence[int] | None = None,
    sequences: int = 10,
    length: int = 50,
    copied: int = 100,
    top: int = 5,
    seed: int = 0,
    progress: Progress | None = None,
) -> AttentionScores:
    """Attention statistics and copy scores of every head.

    A sequence is `[BOS] r_1 … r_n r_1 … r_n`: n random tokens, no two alike, no special ones, twice; BOS where the
    tokenizer puts one before a text, or what `leading` says. With A the attention weights, i the query and j the key
    position, means are over sequences and queries:

    * `previous_token`: A[i, i-1], over all i whose previous token is no BOS (the mean of the sub-diagonal);
    * `duplicate`: A[i, i-n], over the second half: the earlier occurrence of the same token;
    * `induction`: A[i, i-n+1], over the second half: the token after the earlier occurrence;
    * `first_position`: A[i, 0], over all i > 0: the BOS, or without one the first token, where heads with nothing to do
      often look;
    * `entropy`: -Σ_j a_j ln a_j in nats, a = A[i] / Σ_j A[i, j] (a sink outside the prompt is not counted), over i > 0;
    * `copy`, `negated_copy`: see `copying.copy_scores`.

    All but the entropy lie in [0, 1]. A head that looks at all tokens alike does not score 0 but
    `AttentionScores.uniform`; its entropy is the mean of ln(i + 1). A head with a sliding window shorter than n scores
    0 in `duplicate` and `induction`, whatever it would do nearer by.

    Args:
        model: the model.
        words: for the copy scores; a space is put in front of each, and those that are not one token then are left
            out. None: random tokens.
        leading: tokens in front of every sequence, for example the end-of-text token of GPT-2. None: those that the
            tokenizer puts before a text.
        sequences: number of random sequences.
        length: n; shorter where the model has fewer positions, or the vocabulary fewer tokens.
        copied: how many random tokens the copy scores are made of; 0 for no copy scores (without `words`).
        top: a token counts as copied when it is among the so many highest logits.
        seed: of the random tokens.
        progress: called with (what, done, total).

    Raises:
        SiteError: the model does not offer the attention weights.
        ModelError: words for a model without a tokenizer, or too few tokens or positions for a sequence.
        PairsError: none of the words is one token.

    Source: Olsson et al. 2022, arXiv 2209.11895 (induction); Wang et al. 2022, arXiv 2211.00593 (duplicate token and
        previous token heads, copy scores); the head detector of TransformerLens uses the same diagonals.
    Deviation: no token occurs twice within a sequence, so that "the earlier occurrence" is one.
    """
    model.site("pattern", 0)
    front, allowed = _vocabulary(model, leading)
    n = _length(model, length, len(front), len(allowed))
    rng = np.random.default_rng(seed)
    rows = [rng.choice(allowed, n, replace=False) for _ in range(max(1, sequences))]
    tokens = torch.tensor(np.array([[*front, *row, *row] for row in rows]))
    sums = _Sums(model, len(front), n)
    size = max(1, MAX_TOKENS // tokens.shape[1])
    for first in range(0, len(tokens), size):
        forward_last(model, tokens[first : first + size], sums.taps())
        if progress:
            progress("attention", min(first + size, len(tokens)), len(tokens))
    table, notes = sums.table(len(tokens)), []
    if n < length:
        notes.append(f"Sequences have {n} tokens before they are repeated, not {length}: the model allows no more.")
    chosen, left_out = _to_copy(model, words, copied, allowed, rng)
    if left_out:
        notes.append(f"{len(left_out)} of {len(words or ())} words are not one token and were left out: "
                     f"{', '.join(left_out[:10])}{' …' if len(left_out) > 10 else ''}.")  # fmt: skip
    copy = negated = np.full((model.anatomy.n_layers, model.anatomy.n_heads), np.nan)
    reason = why_no_copy_scores(model)
    if chosen and reason:
        notes.append(f"There are no copy scores: {reason}")
        chosen = ()
    if chosen:
        copy, negated = copy_scores(model, chosen, leading=front, top=top, progress=progress)
    table = table.assign(copy=copy.reshape(-1), negated_copy=negated.reshape(-1))
    return AttentionScores(table, len(tokens), n, len(front), len(chosen), tuple(notes))


def bos_of(model: Model) -> tuple[int, ...]:
    """The BOS token of a model's tokenizer, to be put in front where the tokenizer does not.

    Raises:
        ModelError: it has none.
    """
    token = getattr(model.tokenizer, "bos_token_id", None)
    if token is None:
        raise ModelError(f"The tokenizer of {model.name} names no BOS token, so none can be put in front.")
    return (int(token),)


def read_words(path: Path) -> list[str]:
    """The words of a text file, one a line; empty lines do not count.

    Raises:
        InputError: the file cannot be read, is no UTF-8 text, or holds no word.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is no UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise InputError(f"The words cannot be read from {path}: {reason}.") from None
    words = [line.strip() for line in lines if line.strip()]
    if not words:
        raise InputError(f"{path} holds no words; give one a line.")
    return words


class _Sums:
    """Sums of the statistics over queries, taken while the weights pass: no weights are kept."""

    def __init__(self, model: Model, leading: int, length: int) -> None:
        self.model, self.leading, self.length = model, leading, length
        # previous, duplicate, induction, first position, entropy
        self.sums = np.zeros((5, model.anatomy.n_layers, model.anatomy.n_heads))

    def taps(self) -> list[Any]:
        """Functions on the attention weights of every layer."""
        return [
            (self.model.site("pattern", layer), lambda weights, layer=layer: self._add(layer, weights))
            for layer in range(self.model.anatomy.n_layers)
        ]

    def table(self, sequences: int) -> pd.DataFrame:
        """Means; one row per head."""
        total = self.leading + 2 * self.length
        queries = np.array([2 * self.length - 1, self.length, self.length, total - 1, total - 1])
        means = self.sums / (sequences * queries)[:, None, None]
        layers, heads = np.indices(means.shape[1:])
        return pd.DataFrame({
            "layer": layers.reshape(-1), "head": heads.reshape(-1),
            **{name: values.reshape(-1) for name, values in zip(SCORES, means, strict=False)},
        })  # fmt: skip

    def _add(self, layer: int, weights: Tensor) -> None:
        weights = weights.detach().to("cpu").double()  # [batch, n_heads, query, key]
        start, n = self.leading, self.length
        # diagonals below the main one, from the first query that counts
        previous = weights.diagonal(-1, 2, 3)[..., start:]
        duplicate = weights.diagonal(-n, 2, 3)[..., start:]
        induction = weights.diagonal(1 - n, 2, 3)[..., start + 1 :]
        rows = weights[:, :, 1:]
        share = rows / rows.sum(dim=-1, keepdim=True).clamp(min=1e-30)
        entropy = -torch.special.xlogy(share, share).sum(dim=-1)
        for number, values in enumerate((previous, duplicate, induction, rows[..., 0], entropy)):
            self.sums[number, layer] += values.sum(dim=(0, 2)).numpy()


def _vocabulary(model: Model, leading: Sequence[int] | None) -> tuple[tuple[int, ...], np.ndarray]:
    """Tokens that stand before a text, and all tokens that are neither those nor special."""
    width = min(model.hf.get_input_embeddings().weight.shape[0], model.anatomy.vocab)
    config = model.hf.config.get_text_config()
    named = [getattr(config, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "unk")]
    special = {
        token for ids in named for token in (ids if isinstance(ids, list | tuple) else [ids]) if token is not None
    }
    front = tuple(leading or ())
    if model.tokenizer is not None:
        width = min(width, len(model.tokenizer))
        special |= set(model.tokenizer.all_special_ids)
        encoded = Encoder(model.tokenizer).encode(["a"])[0]
        front = encoded.ids[: encoded.leading] if leading is None else front
    return front, np.array([token for token in range(width) if token not in special and token not in front])


def _length(model: Model, wanted: int, leading: int, tokens: int) -> int:
    positions = positions_of(model)
    room = wanted if positions is None else min(wanted, (positions - leading) // 2)
    length = min(room, tokens)
    if length < 2:
        raise ModelError(
            f"A repeated sequence needs at least 2 different tokens, twice, but {model.name} has {positions} positions "
            f"and {tokens} tokens that are not special, and {wanted} were asked for; attention scores cannot be "
            "measured."
        )
    return length


def _to_copy(
    model: Model, words: Sequence[str] | None, count: int, allowed: np.ndarray, rng: np.random.Generator
) -> tuple[tuple[int, ...], list[str]]:
    """Tokens for the copy scores, and words that are not one token."""
    if words is None:
        drawn = rng.choice(allowed, min(count, len(allowed)), replace=False)
        return tuple(int(token) for token in drawn), []
    if model.tokenizer is None:
        raise ModelError(f"Model {model.name!r} has no tokenizer, so words cannot be turned into tokens.")
    encoder = Encoder(model.tokenizer)
    names = list(dict.fromkeys(word.strip() for word in words if word.strip()))
    found = {name: encoder.alone(f" {name}") for name in names}
    single = {name: ids[0] for name, ids in found.items() if len(ids) == 1 and not encoder.is_unknown(ids[0], name)}
    if not single:
        some = [f"{name!r} is {len(ids)} tokens: {list(encoder.show(ids))}." for name, ids in found.items()]
        raise PairsError(
            ["None of the words is one token with a space before it, so no head can be seen to copy it.",
             *shortened(some, 5)]
        )  # fmt: skip
    return tuple(dict.fromkeys(single.values())), [name for name in names if name not in single]
