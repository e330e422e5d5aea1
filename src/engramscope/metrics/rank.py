"""Rank of the best correct answer among all tokens; 0 means that it is the model's answer."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from engramscope.metrics._base import Metric, Target
from engramscope.metrics._tokens import masked_max, next_token_logits, pick, single_tokens, widened


class Rank(Metric):
    """`rank = #{v not in correct : logit(v) >= max_{r in correct} logit(r)}`, at the position after the prompt.

    Unit: rank, a whole number. Range: [0, vocab). *Lower* is better; 0 means that a correct token is the one and only
    argmax. A tie counts against the correct answer, so the rank depends neither on token ids nor on the order
    of a sort, and a model whose logits are all equal gets the worst rank, not the best. The acceptable answers
    never count against one another. In bfloat16 many logits are tied, and ranks are accordingly worse: measure ranks in
    float32. NaN anywhere in the row gives NaN, because no comparison with it means anything.

    Source: the usual definition. Deviation: ties as above.
    """

    unit: ClassVar[str] = "rank"
    range: ClassVar[tuple[float, float]] = (0.0, math.inf)
    higher_is_better: ClassVar[bool] = False

    def score(self, logits: Float[Tensor, "rows positions vocab"], targets: list[Target]) -> Float[Tensor, " rows"]:
        """Score every row.

        Raises:
            ValueError: wrong shape, or a target without single-token correct answers.
        """
        table = widened(next_token_logits(logits, targets))
        values, real = pick(table, [single_tokens(target.correct) for target in targets])
        best = masked_max(values, real).unsqueeze(1)
        at_least = (table >= best).sum(dim=1)
        own = ((values >= best) & real).sum(dim=1)  # correct tokens that reach the best one, itself included
        rank = (at_least - own).to(table.dtype)
        return rank.masked_fill(table.isnan().any(dim=1), torch.nan)


COMPONENT = Rank
