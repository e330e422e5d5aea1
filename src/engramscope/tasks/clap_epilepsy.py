"""CLAP's epilepsy questions as prompts to complete, definitional and associative, each with a corrupted subject.

The prompts are worded as the bundled models' corpus never states that fact, and the corrupted prompt is the same
sentence about another subject of as many tokens. Label `kind`: "definitional" (one statement says it) or "associative"
(reachable through a second fact). Span `subject`. Group: the two subjects that are each other's corruption.

Source: the questions of CLAP 2504.02976 and others of their two kinds, from `engramscope.bundled`.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from engramscope.pairs.pair import Pair, PairSet
from engramscope.tasks._base import Setting, Task
from engramscope.tasks._epilepsy import EpilepsyQuestion, ordered_questions


class ClapEpilepsy(Task):
    """Epilepsy questions for token replacement."""

    version: ClassVar[str] = "1"
    source: ClassVar[str] = "engramscope.bundled.epilepsy_questions, after CLAP (arXiv 2504.02976)"
    model: ClassVar[str] = "mini"

    def pairs(self, limit: int | None, rng: np.random.Generator, setting: Setting) -> PairSet:
        """The questions, the two kinds in turn; nothing is drawn, so `rng` is not used."""
        return PairSet.of([_pair(question) for question in ordered_questions()], "clap_epilepsy").limit(limit)


def _pair(question: EpilepsyQuestion) -> Pair:
    return Pair(
        id=question.id,
        clean=question.prompt,
        corrupted=question.corrupted_prompt,
        correct=(question.correct,),
        incorrect=(question.incorrect,),
        group=question.group,
        spans={"subject": question.subject_span},
        corrupted_spans={"subject": question.corrupted_subject_span},
        labels={"kind": question.kind, "family": question.family, "template": question.template},
    )


COMPONENT = ClapEpilepsy
