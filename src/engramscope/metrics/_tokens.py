"""What the metrics share: picking the columns of token sets out of the logits, row by row, without padding errors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from engramscope.metrics._base import Target


def next_token_logits(
    logits: Float[Tensor, "rows positions vocab"], targets: Sequence[Target]
) -> Float[Tensor, "rows vocab"]:
    """The logits after the prompt's last token, [rows, vocab], in the dtype they came in.

    Raises:
        ValueError: not exactly one position, or not one target per row (errors of the caller).
    """
    if logits.ndim != 3 or logits.shape[1] != 1 or logits.shape[0] != len(targets):
        raise ValueError(
            f"expected logits [rows = {len(targets)}, positions = 1, vocab], got shape {list(logits.shape)}"
        )
    return logits[:, 0]


def widened(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The same values in at least float32 (float64 stays float64)."""
    return values if values.dtype == torch.float64 else values.float()


def single_tokens(answers: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """The distinct tokens of single-token answers, in order.

    Raises:
        ValueError: an answer is empty or has several tokens; it is never cut silently (`check_targets` says so to the
            user before anything is run).
    """
    answers = list(answers)
    wrong = [tuple(answer) for answer in answers if len(answer) != 1]
    if wrong or not answers:
        raise ValueError(f"expected at least one answer of exactly one token, got {wrong or 'none'}")
    return tuple(dict.fromkeys(answer[0] for answer in answers))


def all_tokens(answers: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """The distinct tokens of all answers together, in order.

    Raises:
        ValueError: there is no token at all.
    """
    tokens = tuple(dict.fromkeys(token for answer in answers for token in answer))
    if not tokens:
        raise ValueError("expected at least one answer with at least one token, got none")
    return tokens


def pick(
    table: Float[Tensor, "rows vocab"], sets: Sequence[Sequence[int]]
) -> tuple[Float[Tensor, "rows most"], Bool[Tensor, "rows most"]]:
    """The columns `sets[i]` of row i, in at least float32, and which of them are real.

    Rows with fewer tokens than the longest are filled up; the second tensor is False there.

    Raises:
        ValueError: a token id is outside the vocabulary (a negative id would otherwise count from the end).
    """
    vocab = table.shape[1]
    outside = sorted({token for tokens in sets for token in tokens if not 0 <= token < vocab})
    if outside:
        raise ValueError(f"token ids {outside} are outside the vocabulary of {vocab} logits")
    most = max((len(tokens) for tokens in sets), default=1)
    ids: Int[Tensor, "rows most"] = torch.tensor(
        [[*tokens, *[tokens[0]] * (most - len(tokens))] for tokens in sets], dtype=torch.long
    ).reshape(len(sets), most)
    real = torch.tensor([[i < len(tokens) for i in range(most)] for tokens in sets], dtype=torch.bool)
    picked = table.gather(1, ids.to(table.device))
    return widened(picked), real.reshape(len(sets), most).to(table.device)


def masked_max(values: Float[Tensor, "rows most"], real: Bool[Tensor, "rows most"]) -> Float[Tensor, " rows"]:
    """The highest real value of every row; NaN where one of them is NaN."""
    return values.masked_fill(~real, -torch.inf).amax(dim=1)


def masked_mean(values: Float[Tensor, "rows most"], real: Bool[Tensor, "rows most"]) -> Float[Tensor, " rows"]:
    """The mean of the real values of every row."""
    return values.masked_fill(~real, 0.0).sum(dim=1) / real.sum(dim=1)


def log_softmax(table: Float[Tensor, "*shape vocab"]) -> Float[Tensor, "*shape vocab"]:
    """Natural log of the softmax over the vocabulary, in at least float32.

    The maximum is subtracted before anything is summed, so a constant added to all logits, however large, changes the
    result by no more than the logits' own rounding.
    """
    return torch.log_softmax(widened(table), dim=-1)
