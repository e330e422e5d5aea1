"""What a metric is: a number per pair from the logits at the answer position (or along a whole answer)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Target:
    """What one pair's logits are scored against.

    Attributes:
        correct: token ids of every acceptable answer, whole answers, at least one.
        incorrect: token ids of every incorrect answer; may be empty where no metric needs one.
        clean_logits: next-token logits of the *clean run* at the same position [vocab]; only for metrics that compare
            distributions (`needs_clean = True`), else None.
    """

    correct: tuple[tuple[int, ...], ...]
    incorrect: tuple[tuple[int, ...], ...] = ()
    clean_logits: Float[Tensor, " vocab"] | None = None


class Metric(ABC):
    """A metric: `score` maps logits to one number per row.

    Class attributes:
        unit: what the number is measured in ("logits", "probability", "nats", "rank").
        range: lowest and highest possible value.
        higher_is_better: whether a higher value means that the model is more inclined to the correct answer.
        scores: "first_token" looks at the next-token logits after the prompt only; "whole_answer" is teacher-forced
            along every correct answer.
        needs_incorrect: incorrect answers must be given.
        needs_clean: `Target.clean_logits` must be given.
        single_token: every answer must be a single token (a multi-token answer is an input error, not a silent cut);
            where False the first token of each answer is scored.
        reads_answers_only: no logits are looked at but those of the answers' tokens, so that no others need be
            computed.
        signed: a change without meaning is as likely to raise the value as to lower it. False for a distance from the
            clean run, which any change moves the same way: its effects are described, but not tested by sign flips.
        shift_invariant: a constant added to all logits changes nothing. False only for published metrics that lack it.
    """

    unit: ClassVar[str]
    range: ClassVar[tuple[float, float]]
    higher_is_better: ClassVar[bool]
    scores: ClassVar[Literal["first_token", "whole_answer"]] = "first_token"
    needs_incorrect: ClassVar[bool] = False
    needs_clean: ClassVar[bool] = False
    single_token: ClassVar[bool] = True
    signed: ClassVar[bool] = True
    shift_invariant: ClassVar[bool] = True
    reads_answers_only: ClassVar[bool] = False

    @abstractmethod
    def score(self, logits: Float[Tensor, "rows positions vocab"], targets: list[Target]) -> Float[Tensor, " rows"]:
        """Score every row.

        Args:
            logits: for `first_token` metrics positions = 1, the logits after the prompt's last token. For
                `whole_answer` metrics row i has been continued by ONE correct answer of `n` tokens (the caller
                makes one row per acceptable answer) and positions = n: the logits that predict each of its tokens; then
                `targets[i].correct` holds exactly that one answer.
            targets: one per row.

        Returns:
            One number per row, in the dtype of at least float32.
        """
