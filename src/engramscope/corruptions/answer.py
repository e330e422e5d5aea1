"""The answer swap of CLAP: question ⊕ correct answer against question ⊕ wrong answer."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from engramscope.corruptions._base import Corruption, Level
from engramscope.errors import PairsError
from engramscope.pairs.pair import Pair

ANSWER_SPAN = "answer"


class AnswerSwap(Corruption):
    """`clean = question ⊕ first correct answer`, `corrupted = question ⊕ first incorrect answer`.

    The set-up of CLAP: the question is the pair's `clean` text, both prompts continue it by an answer, as text and
    without anything in between (answers bring the leading space that they need), and the tokens of the answers are
    scored with the logits at the *last* position, after the answer, by `mean_logit_diff`. A prompt that the pair
    brings as `corrupted` is not used. Named spans of the question hold for both prompts; the answer itself becomes the
    span "answer" of both, unless the pair names such a span of its own.

    Answers need not have equally many tokens: the prompts are aligned at both ends, and the positions without a
    partner are reported and never patched.

    Weakness: the answer stands in the prompt. The metric then measures how the model continues *after* having read an
    answer (does it repeat it, does it reject it), not which answer it would give, and everything that carries the
    answer token upwards at its own position looks like knowledge. The audit says so; `str` with the answers left out
    of the prompts is the stronger design.

    Source: CLAP, arXiv 2504.02976. Deviation: of several answers the first of each kind is appended, all are scored.
    """

    level: ClassVar[Level] = "tokens"
    alignment: ClassVar[Literal["equal", "both_ends"]] = "both_ends"

    def rewrite(self, pair: Pair) -> Pair:
        """The pair with the answers appended to its question.

        Raises:
            PairsError: an answer is missing or empty, or the two are the same.
        """
        if not pair.incorrect or not pair.correct:
            missing = "incorrect" if pair.correct else "correct"
            raise PairsError(
                f"Pair {pair.id!r} has no {missing} answer; the corruption 'answer' appends one of each kind."
            )
        right, wrong = pair.correct[0], pair.incorrect[0]
        if not right.strip() or not wrong.strip():
            raise PairsError(
                f"Pair {pair.id!r}: an answer is empty; the corruption 'answer' appends {right!r} and {wrong!r}."
            )
        if right == wrong:
            raise PairsError(
                f"Pair {pair.id!r}: the first correct and the first incorrect answer are both {right!r}, so the two "
                "prompts would be the same."
            )
        start = len(pair.clean)
        return replace(
            pair,
            clean=pair.clean + right,
            corrupted=pair.clean + wrong,
            spans={ANSWER_SPAN: (start, start + len(right)), **pair.spans},
            # spans of the pair's own corrupted prompt, which is dropped, would point at the wrong characters
            corrupted_spans={} if ANSWER_SPAN in pair.spans else {ANSWER_SPAN: (start, start + len(wrong))},
        )


COMPONENT = AnswerSwap
