"""CLAP's epilepsy questions as in its tables: a question, its correct answer, and a wrong answer of the same form.

For the corruption `answer`, which runs question ⊕ correct answer against question ⊕ wrong answer: `clean` is the
question alone, and the answers are phrases of several tokens. Label `kind` and groups as in `clap_epilepsy`. Span
`subject`.

Source: Tables 3 to 5 of CLAP 2504.02976, from `engramscope.bundled`.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from engramscope.pairs.pair import Pair, PairSet
from engramscope.tasks._base import Setting, Task
from engramscope.tasks._epilepsy import EpilepsyQuestion, ordered_questions


class ClapTables(Task):
    """Epilepsy questions with whole answers, for the answer swap."""

    version: ClassVar[str] = "1"
    source: ClassVar[str] = "engramscope.bundled.epilepsy_questions, after CLAP (arXiv 2504.02976)"
    corruption: ClassVar[str] = "answer"
    model: ClassVar[str] = "mini"

    def pairs(self, limit: int | None, rng: np.random.Generator, setting: Setting) -> PairSet:
        """The questions, the two kinds in turn; nothing is drawn, so `rng` is not used."""
        return PairSet.of([_pair(question) for question in ordered_questions()], "clap_tables").limit(limit)


def _pair(question: EpilepsyQuestion) -> Pair:
    start = question.question.index(question.subject)
    return Pair(
        id=question.id,
        clean=question.question,
        correct=(question.correct_answer,),
        incorrect=(question.wrong_answer,),
        group=question.group,
        spans={"subject": (start, start + len(question.subject))},
        labels={"kind": question.kind, "family": question.family},
    )


COMPONENT = ClapTables
