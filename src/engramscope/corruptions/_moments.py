"""The standard deviation of very many numbers, without holding them all."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def pooled_std(blocks: Iterable[Tensor]) -> float:
    """Standard deviation over *all scalars* of all blocks together, `sqrt(Σ (x - mean)² / (n - 1))`, in float64.

    The blocks' means and sums of squares are merged pairwise (Chan, Golub and LeVeque 1979), which does not cancel as
    `Σ x² - n mean²` does. NaN for fewer than two scalars.

    Args:
        blocks: tensors of any shape.
    """
    count, mean, squares = 0, 0.0, 0.0
    for block in blocks:
        values = block.detach().to(device="cpu", dtype=torch.float64)
        n = values.numel()
        if n == 0:
            continue
        block_mean = values.mean().item()
        block_squares = (values - block_mean).square().sum().item()
        shift, total = block_mean - mean, count + n
        squares += block_squares + shift * shift * count * n / total
        mean += shift * n / total
        count = total
    return math.sqrt(squares / (count - 1)) if count > 1 else math.nan
