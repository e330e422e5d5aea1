"""Another basis for the residual stream of a GPT-2.

LayerNorm takes the mean off and divides by the norm, so it commutes with the rotations that map the all-ones vector to
itself, and with no others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rotation(width: int, seed: int, *, fixes_ones: bool = True) -> Tensor:
    """A random orthogonal matrix [width, width]; with `fixes_ones` one that maps the all-ones vector to itself."""
    g = torch.Generator().manual_seed(seed)

    def orthogonal(size: int, first: Tensor | None = None) -> Tensor:
        columns = torch.randn(size, size, generator=g, dtype=torch.float64)
        if first is not None:
            columns[:, 0] = first
        return torch.linalg.qr(columns)[0]

    if not fixes_ones:
        return orthogonal(width)
    basis, inner = orthogonal(width, torch.ones(width, dtype=torch.float64)), torch.eye(width, dtype=torch.float64)
    inner[1:, 1:] = orthogonal(width - 1)
    return basis @ inner @ basis.T


def rotated(hf: Any, turn: Tensor) -> Any:
    """The same GPT-2 with another basis of its residual stream, x -> x Q; its LayerNorms must have weight 1, bias 0."""
    with torch.no_grad():
        for table in (hf.transformer.wte, hf.transformer.wpe, hf.lm_head):
            table.weight.copy_(table.weight @ turn)
        for block in hf.transformer.h:
            for reads in (block.attn.c_attn, block.mlp.c_fc):
                reads.weight.copy_(turn.T @ reads.weight)
            for writes in (block.attn.c_proj, block.mlp.c_proj):
                writes.weight.copy_(writes.weight @ turn)
                writes.bias.copy_(writes.bias @ turn)
    return hf
