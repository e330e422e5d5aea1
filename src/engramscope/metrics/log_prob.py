"""Natural log of the probability of the correct answer, summed over the acceptable ones."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from engramscope.metrics._base import Metric, Target
from engramscope.metrics._tokens import log_softmax, next_token_logits, pick, single_tokens


class LogProb(Metric):
    """`ln P(correct) = ln Σ_{r in correct} softmax(logits)_r`, at the position after the prompt.

    Computed as a log-sum-exp of log-softmax values, so it stays exact where the probability itself would underflow
    to 0. Unit: nats. Range: (-inf, 0] (a sum that rounds above 0 is set to 0). Higher is better. -inf exactly where
    every correct token has logit -inf.

    Source: the usual definition; `prob` is its exponential.
    """

    unit: ClassVar[str] = "nats"
    range: ClassVar[tuple[float, float]] = (-math.inf, 0.0)
    higher_is_better: ClassVar[bool] = True

    def score(self, logits: Float[Tensor, "rows positions vocab"], targets: list[Target]) -> Float[Tensor, " rows"]:
        """Score every row.

        Raises:
            ValueError: wrong shape, or a target without single-token correct answers.
        """
        table = log_softmax(next_token_logits(logits, targets))
        values, real = pick(table, [single_tokens(target.correct) for target in targets])
        return torch.logsumexp(values.masked_fill(~real, -torch.inf), dim=1).clamp(max=0.0)


COMPONENT = LogProb
