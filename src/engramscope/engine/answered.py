"""What an executor answers with: the logits of some runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Answered:
    """Logits of some runs.

    Attributes:
        runs: their ids.
        logits: [len(runs), positions, vocab], the positions of each run's `Readout`; fewer columns where `columns` says
            which.
        columns: token ids that the last axis stands for, int64, ascending; None for the whole vocabulary.
        trouble: run id -> a sentence that names the layer after which a value of the run was not finite.
    """

    runs: tuple[str, ...]
    logits: Tensor
    columns: Tensor | None = None
    trouble: Mapping[str, str] = field(default_factory=dict)
