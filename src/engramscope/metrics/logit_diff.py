"""Logit of the correct answer minus logit of the incorrect one: the default metric."""

from __future__ import annotations

import math
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from engramscope.metrics._base import Metric, Target
from engramscope.metrics._tokens import masked_max, next_token_logits, pick, single_tokens


class LogitDiff(Metric):
    """`LD = max_{r in correct} logit(r) - max_{w in incorrect} logit(w)`, at the position after the prompt.

    With one correct and one incorrect answer it is the plain difference `logit(r) - logit(r')`. Among several answers
    the *best* of each set counts, because then the sign says exactly which of the two sets the model would answer from,
    a listed answer that the model never considers changes nothing (a mean would be dragged down by it), listing an
    answer twice changes nothing, and the published docstring metric, `logit(r) - max_w logit(w)`, is the special case
    of one correct answer. Means over sets are `mean_logit_diff`.

    Unit: logits. Range: (-inf, inf). Higher means more inclined to a correct answer; 0 is indifference. A constant
    added to all logits changes nothing. A logit of -inf is taken at its word: -inf where every correct answer is
    impossible, inf where every incorrect one is, NaN (undefined, a failure) where both are.

    Source: Zhang & Nanda, arXiv 2309.16042, §2; for several wrong answers Heimersheim & Janiak's docstring circuit.
    Deviation: several correct answers are allowed, the best of them counts.
    """

    unit: ClassVar[str] = "logits"
    range: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    higher_is_better: ClassVar[bool] = True
    needs_incorrect: ClassVar[bool] = True
    reads_answers_only: ClassVar[bool] = True

    def score(self, logits: Float[Tensor, "rows positions vocab"], targets: list[Target]) -> Float[Tensor, " rows"]:
        """Score every row; only the columns of the answers are read.

        Raises:
            ValueError: wrong shape, or a target without single-token correct and incorrect answers.
        """
        table = next_token_logits(logits, targets)
        correct = masked_max(*pick(table, [single_tokens(target.correct) for target in targets]))
        incorrect = masked_max(*pick(table, [single_tokens(target.incorrect) for target in targets]))
        return correct - incorrect


COMPONENT = LogitDiff
