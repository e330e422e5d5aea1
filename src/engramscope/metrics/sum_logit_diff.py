"""Sum of the correct answers' logits minus sum of the incorrect answers' logits, as published for year spans."""

from __future__ import annotations

import math
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from engramscope.metrics._base import Metric, Target
from engramscope.metrics._tokens import masked_mean, next_token_logits, pick, single_tokens


class SumLogitDiff(Metric):
    """`Σ_{r in correct} logit(r) - Σ_{w in incorrect} logit(w)`, over distinct tokens, after the prompt.

    For comparison with published values only. Where the two sets are not equally large, a constant added to all logits
    moves it: with n correct and m incorrect answers by (n - m) times that constant, although no probability changes.
    `mean_logit_diff` does not have this defect.

    Unit: logits. Range: (-inf, inf). Higher is better. One answer each: the plain `logit_diff`. A logit of -inf gives
    -inf or inf, and NaN (undefined, a failure) where it stands in both sets.

    Source: Zhang & Nanda, arXiv 2309.16042, appendix E (greater-than).
    """

    unit: ClassVar[str] = "logits"
    range: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    higher_is_better: ClassVar[bool] = True
    needs_incorrect: ClassVar[bool] = True
    reads_answers_only: ClassVar[bool] = True
    shift_invariant: ClassVar[bool] = False

    def score(self, logits: Float[Tensor, "rows positions vocab"], targets: list[Target]) -> Float[Tensor, " rows"]:
        """Score every row; only the columns of the answers are read.

        Raises:
            ValueError: wrong shape, or a target without single-token correct and incorrect answers.
        """
        table = next_token_logits(logits, targets)
        correct, right = pick(table, [single_tokens(target.correct) for target in targets])
        incorrect, wrong = pick(table, [single_tokens(target.incorrect) for target in targets])
        return masked_mean(correct, right) * right.sum(1) - masked_mean(incorrect, wrong) * wrong.sum(1)


COMPONENT = SumLogitDiff
