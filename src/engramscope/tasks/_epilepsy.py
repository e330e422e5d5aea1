"""The bundled epilepsy questions in the order in which both CLAP tasks give them."""

from __future__ import annotations

from itertools import zip_longest

from engramscope.bundled.epilepsy_questions import EpilepsyQuestion, questions


def ordered_questions() -> list[EpilepsyQuestion]:
    """Definitional and associative questions in turn, group by group, so that the first n hold both kinds.

    The two questions of a group (each the other's corruption) stay together. The first group of each kind holds the
    question of CLAP's tables.
    """
    groups: dict[str, dict[str, list[EpilepsyQuestion]]] = {}
    for question in questions():
        groups.setdefault(question.kind, {}).setdefault(question.group, []).append(question)
    turns = zip_longest(*(kind.values() for kind in groups.values()), fillvalue=[])
    return [question for turn in turns for group in turn for question in group]
