"""Log probability of a whole answer, teacher-forced; answers may have any number of tokens."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from engramscope.metrics._base import Metric, Target
from engramscope.metrics._combine import combine as combine
from engramscope.metrics._tokens import log_softmax


class AnswerLogProb(Metric):
    """`ln P(a_1 … a_n | prompt) = Σ_i ln softmax(logits_i)_{a_i}`, logits_i read after the prompt and a_1 … a_{i-1}.

    The sum, not the mean: longer answers are less probable, and that is the model's opinion, not an artefact. One
    row scores one answer; several acceptable answers of a pair are put together by `combine`, a log-sum-exp.

    Unit: nats. Range: (-inf, 0]. Higher is better. One token: the same as `log_prob`. A constant added to all logits
    of a position changes nothing. -inf where a token of the answer has logit -inf.

    Source: the usual teacher-forced sequence probability.
    """

    unit: ClassVar[str] = "nats"
    range: ClassVar[tuple[float, float]] = (-math.inf, 0.0)
    higher_is_better: ClassVar[bool] = True
    scores: ClassVar[Literal["first_token", "whole_answer"]] = "whole_answer"
    single_token: ClassVar[bool] = False

    def score(self, logits: Float[Tensor, "rows positions vocab"], targets: list[Target]) -> Float[Tensor, " rows"]:
        """Score every row.

        Args:
            logits: position i predicts token i of the row's answer; all rows of one call have answers of the same
                length, which is the number of positions (a longer or shorter answer would be scored against the wrong
                positions, so it is refused).
            targets: one per row, with exactly one correct answer each.

        Raises:
            ValueError: wrong shape, not exactly one answer in a target, or an answer of another length (errors of the
                caller).
        """
        ids = _answer_ids(logits, targets)
        table = log_softmax(logits)
        return table.gather(2, ids.unsqueeze(2)).squeeze(2).sum(dim=1)


def _answer_ids(logits: Tensor, targets: list[Target]) -> Tensor:
    if logits.ndim != 3 or logits.shape[0] != len(targets) or logits.shape[1] < 1:
        raise ValueError(f"expected logits [rows = {len(targets)}, positions, vocab], got shape {list(logits.shape)}")
    rows, positions, vocab = logits.shape
    for row, target in enumerate(targets):
        lengths = [len(answer) for answer in target.correct]
        if lengths != [positions]:
            raise ValueError(f"row {row}: expected one answer of {positions} tokens, got answers of {lengths} tokens")
        if not all(0 <= token < vocab for token in target.correct[0]):
            raise ValueError(f"row {row}: token ids {target.correct[0]} go beyond the vocabulary of {vocab} logits")
    ids = torch.tensor([target.correct[0] for target in targets], dtype=torch.long)
    return ids.reshape(rows, positions).to(logits.device)


COMPONENT = AnswerLogProb
