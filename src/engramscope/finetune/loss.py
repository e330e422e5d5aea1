"""The loss of a batch of chunks, exact per token, at one copy of the logits.

With a vocabulary of 50,000 the logits are the largest thing of a training: 0.8 GB in float32 for 8 chunks of 512
tokens. Written with torch's `cross_entropy`, a step holds them, their shifted copy, its log-probabilities, the gradient
of those and the gradient of the logits. Here it holds the logits and their gradient; the rest is made in pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from engramscope.finetune.chunks import IGNORED

#: logits that are worked on at a time
_PIECE = 1 << 22


class _SummedNLL(torch.autograd.Function):
    """Rows of logits `[rows, vocabulary]` and wanted ids `[rows]` (-100: left out) to the sum of their NLL."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        normaliser = torch.empty(len(logits), dtype=_wide(logits), device=logits.device)
        nll = torch.zeros((), dtype=_wide(logits), device=logits.device)
        for rows in _pieces(logits):
            piece, ids = logits[rows].to(nll.dtype), wanted[rows]
            normaliser[rows] = piece.logsumexp(1)
            right = piece.gather(1, ids.clamp(min=0)[:, None])[:, 0]
            nll += torch.where(ids == IGNORED, 0, normaliser[rows] - right).sum()
        ctx.save_for_backward(logits, wanted, normaliser)
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(softmax - one-hot) × upstream, and 0 in the rows that are left out."""
        logits, wanted, normaliser = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for rows in _pieces(logits):
            ids = wanted[rows]
            piece = (logits[rows].to(normaliser.dtype) - normaliser[rows, None]).exp_()
            piece.scatter_add_(1, ids.clamp(min=0)[:, None], piece.new_full((len(ids), 1), -1.0))
            # filled and not multiplied: what is left out may be infinite
            gradient[rows] = piece.mul_(upstream[0]).masked_fill_((ids == IGNORED)[:, None], 0)
        return gradient, None


def summed_nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of the labels, summed, in nats.

    The logits at a place predict the label of the next place, so labels are shifted here, and the logits of a chunk's
    last place are not used. Computed in float32, or in float64 where the logits are; differentiable once.

    Args:
        logits: `[chunks, tokens, vocabulary]`.
        labels: `[chunks, tokens]`; -100 where nothing is predicted.
    """
    wanted = torch.full_like(labels, IGNORED)
    wanted[:, :-1] = labels[:, 1:]
    made = _SummedNLL.apply(logits.reshape(-1, logits.shape[-1]), wanted.reshape(-1))
    assert isinstance(made, torch.Tensor)
    return made


def token_loss(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """What the Trainer minimises: the summed NLL of a batch over the tokens of the whole optimiser step."""
    count = num_items_in_batch if num_items_in_batch is not None else (labels[:, 1:] != IGNORED).sum()
    return summed_nll(outputs["logits"], labels) / count


def _wide(logits: torch.Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _pieces(logits: torch.Tensor) -> Iterator[slice]:
    rows = max(1, _PIECE // logits.shape[1])
    for start in range(0, len(logits), rows):
        yield slice(start, start + rows)
