"""Probability of the correct answer, summed over the acceptable ones."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from engramscope.metrics._base import Metric, Target
from engramscope.metrics._tokens import log_softmax, next_token_logits, pick, single_tokens


class Prob(Metric):
    """`P(correct) = Σ_{r in correct} softmax(logits)_r`, over the distinct tokens, at the position after the prompt.

    Unit: probability. Range: [0, 1] (a sum that rounds above 1 is set to 1). Higher is better. It saturates: an effect
    on a probability that is already near 0 cannot be negative by more than that probability, so components that work
    against the answer are invisible; set `logit_diff` beside it. A token with logit -inf has probability 0.

    Source: Zhang & Nanda, arXiv 2309.16042, §2.
    Deviation: several acceptable answers are summed (their events are disjoint).
    """

    unit: ClassVar[str] = "probability"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    higher_is_better: ClassVar[bool] = True

    def score(self, logits: Float[Tensor, "rows positions vocab"], targets: list[Target]) -> Float[Tensor, " rows"]:
        """Score every row.

        Raises:
            ValueError: wrong shape, or a target without single-token correct answers.
        """
        table = log_softmax(next_token_logits(logits, targets))
        values, real = pick(table, [single_tokens(target.correct) for target in targets])
        return values.exp().masked_fill(~real, 0.0).sum(dim=1).clamp(max=1.0)


COMPONENT = Prob
