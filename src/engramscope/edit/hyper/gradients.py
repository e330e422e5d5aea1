"""The gradient of an edit's loss at linear maps, as one pair of vectors for each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from engramscope.edit.frozen import frozen
from engramscope.edit.matrices import LinearMap
from engramscope.edit.tokens import Rows, logits_of, target_nll
from engramscope.models.hooks import Hook, attached
from engramscope.models.model import Model


@dataclass(frozen=True, slots=True)
class TokenPairs:
    """Of one linear map y = x W + b: its input and the gradient at its output, token by token.

    The gradient of a row's loss with respect to W is Σ_b x_b g_bᵀ over the tokens b of the row.

    Attributes:
        x: inputs [rows, seq, n_in].
        g: ∂ loss of the row / ∂ y [rows, seq, n_out]; 0 where the token has no part in the loss, as in padding.
    """

    x: Float[Tensor, "rows seq n_in"]
    g: Float[Tensor, "rows seq n_out"]

    @property
    def used(self) -> Tensor:
        """Tokens at which neither vector is all zero [rows, seq]; only they count."""
        return (self.x != 0).any(-1) & (self.g != 0).any(-1)

    def matrix(self) -> Tensor:
        """Σ_b x_b g_bᵀ of each row [rows, n_in, n_out]."""
        return self.x.mT @ self.g


def token_pairs(model: Model, maps: Sequence[LinearMap], rows: Rows) -> tuple[list[TokenPairs], Float[Tensor, " rows"]]:
    """The pairs of every map, for the loss −(1/n) Σ log P(target_i | …) of each row by itself.

    One forward, and one backward that goes no deeper than the first of the maps; no gradient is kept in the model.

    Args:
        model: the model; edits that are in it count.
        maps: linear maps of it.
        rows: prompts with their targets.

    Returns:
        The pairs of each map, in float32 or wider, and the losses in nats.
    """
    shape = rows.ids.shape
    inputs: dict[str, Tensor] = {}
    zeros: dict[str, Tensor] = {}
    hooks = [hook for linear in maps for hook in _probe(linear, inputs, zeros)]
    with frozen(model.hf):
        with attached(hooks):
            losses = target_nll(logits_of(model, rows), rows)
        found = torch.autograd.grad(losses.sum(), [zeros[linear.path] for linear in maps])
    pairs = [
        TokenPairs(_wide(inputs[linear.path]).reshape(*shape, -1), _wide(gradient).reshape(*shape, -1))
        for linear, gradient in zip(maps, found, strict=True)
    ]
    return pairs, losses.detach()


def _probe(linear: LinearMap, inputs: dict[str, Tensor], zeros: dict[str, Tensor]) -> list[Hook]:
    """Keep a module's input, and add zeros to its output, at which the gradient is then that of the output."""

    def keep(value: Tensor) -> None:
        inputs[linear.path] = value.detach()

    def add(value: Tensor) -> Tensor:
        zeros[linear.path] = torch.zeros_like(value, requires_grad=True)
        return value + zeros[linear.path]

    return [Hook(linear.module, "input", keep), Hook(linear.module, "output", add)]


def _wide(value: Tensor) -> Tensor:
    return value if value.dtype in (torch.float32, torch.float64) else value.float()
