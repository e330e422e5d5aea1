"""The order of an epoch: random steps, and within a step chunks of like length side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler


class StepOrder(Sampler[int]):
    """Indices of one epoch: a random permutation whose optimiser steps are each sorted by length.

    A step's gradient is that of the sum of its tokens' losses over their number, whichever batches they are computed
    in. So which chunks share a step is left to chance, and which share a batch is chosen to need little padding.

    Args:
        lengths: tokens of every chunk.
        step: chunks of one optimiser step: batch × accumulation × processes.
        seed: of the permutations; that of an epoch depends on the seed and the epoch alone, so that every process
            and every resumed run sees the same.
    """

    def __init__(self, lengths: Sequence[int], step: int, seed: int) -> None:
        self.lengths = np.asarray(lengths)
        self.step, self.seed, self.epoch = step, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).numpy()
        for start in range(0, len(order), self.step):
            chosen = order[start : start + self.step]
            yield from chosen[np.argsort(self.lengths[chosen], kind="stable")].tolist()
