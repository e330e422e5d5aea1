"""Mean logit over the correct answers' tokens minus mean over the incorrect answers' tokens (CLAP)."""

from __future__ import annotations

import math
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from engramscope.metrics._base import Metric, Target
from engramscope.metrics._tokens import all_tokens, masked_mean, next_token_logits, pick


class MeanLogitDiff(Metric):
    """`(1/|C|) Σ_{t in C} logit(t) - (1/|I|) Σ_{t in I} logit(t)`, at the position after the prompt.

    `C` is the set of distinct tokens of *all* correct answers, whole answers and not only their first tokens; `I`
    likewise for the incorrect ones. All of them are scored at one and the same position, so the later tokens of an
    answer are scored without those before them: a bag of tokens, not a sequence (`answer_log_prob` scores sequences).

    A token in both sets is kept, as the definition has it. It cancels only where the sets are equally large; otherwise
    it adds a share that has nothing to do with the question. `target_remarks` names such tokens; answers of which one
    is made of the other's tokens only are refused by `check_targets`.

    Unit: logits. Range: (-inf, inf). Higher is better. A constant added to all logits changes nothing, whatever the
    sizes of the sets (the *sum* difference in the literature is not so). One token each: the plain `logit_diff`. A
    logit of -inf gives -inf or inf, and NaN (undefined, a failure) where it stands in both sets.

    Source: CLAP, arXiv 2504.02976 (mean logits of the answer tokens at the last position).
    """

    unit: ClassVar[str] = "logits"
    range: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    higher_is_better: ClassVar[bool] = True
    needs_incorrect: ClassVar[bool] = True
    reads_answers_only: ClassVar[bool] = True
    single_token: ClassVar[bool] = False

    def score(self, logits: Float[Tensor, "rows positions vocab"], targets: list[Target]) -> Float[Tensor, " rows"]:
        """Score every row; only the columns of the answers are read.

        Raises:
            ValueError: wrong shape, or a target without correct or incorrect tokens.
        """
        table = next_token_logits(logits, targets)
        correct = masked_mean(*pick(table, [all_tokens(target.correct) for target in targets]))
        incorrect = masked_mean(*pick(table, [all_tokens(target.incorrect) for target in targets]))
        return correct - incorrect


COMPONENT = MeanLogitDiff
