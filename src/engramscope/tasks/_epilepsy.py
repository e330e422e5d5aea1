"""The bundled epilepsy questions in the order in which both CLAP tasks give them."""

from __future__ import annotations

from itertools import zip_longest

from engramscope.bundled.epilepsy_questions import EpilepsyQuestion, questions


def ordered_questions() -> list[EpilepsyQuestion]:
    """Definitional and associative questions in turn, one of every group first, so that the first n say most.

    The two questions of a group are each the other's corruption, and so dependent: the second ones come after all
    first ones. The first group of each kind holds the question of CLAP's tables.
    """
    groups: dict[str, dict[str, list[EpilepsyQuestion]]] = {}
    for question in questions():
        groups.setdefault(question.kind, {}).setdefault(question.group, []).append(question)
    turns = zip_longest(*(kind.values() for kind in groups.values()), fillvalue=[])
    in_turn = [group for turn in turns for group in turn]
    rounds = zip_longest(*in_turn)
    return [question for one_of_each in rounds for question in one_of_each if question is not None]
