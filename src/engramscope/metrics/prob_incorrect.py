"""Probability of the incorrect answer."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from engramscope.metrics._base import Metric, Target
from engramscope.metrics._tokens import log_softmax, next_token_logits, pick, single_tokens


class ProbIncorrect(Metric):
    """`P(incorrect) = Σ_{w in incorrect} softmax(logits)_w`, over the distinct tokens, after the prompt.

    Unit: probability. Range: [0, 1] (a sum that rounds above 1 is set to 1). *Lower* is better, so the effect of a
    helpful patch is negative. It saturates as `prob` does. Beside `prob` it shows which of two answers a patch takes
    probability from, and the two make up the ratio of Stolfo et al. 2023; alone it says little.

    Source: Stolfo et al., arXiv 2305.15054 (the result of the other operands).
    """

    unit: ClassVar[str] = "probability"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    higher_is_better: ClassVar[bool] = False
    needs_incorrect: ClassVar[bool] = True

    def score(self, logits: Float[Tensor, "rows positions vocab"], targets: list[Target]) -> Float[Tensor, " rows"]:
        """Score every row.

        Raises:
            ValueError: wrong shape, or a target without single-token incorrect answers.
        """
        table = log_softmax(next_token_logits(logits, targets))
        values, real = pick(table, [single_tokens(target.incorrect) for target in targets])
        return values.exp().masked_fill(~real, 0.0).sum(dim=1).clamp(max=1.0)


COMPONENT = ProbIncorrect
