"""Facts in couples: the same sentence about another subject, each of the two once the clean prompt.

Couples are drawn within a template: prompts of equally many tokens, with the subject at the same ones, and different
answers of one token. Without files the facts are those of the bundled models' encyclopaedia, in a wording in which
the corpus never states them; option `files` names files of known_1000, CounterFact or of our own format instead. Span
`subject`. Group: the template. Labels `relation`, `couple`.

Source: PairedFacts of Zhang & Nanda 2309.16042, section 2 (both orders of 145 couples).
Deviation: every fact is in one couple at most, and couples are drawn evenly over templates; the published list cannot
    be had.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, zip_longest
from typing import ClassVar

import numpy as np

from engramscope.bundled.world import load_world
from engramscope.errors import PairsError
from engramscope.pairs.pair import Pair, PairSet
from engramscope.pairs.readers import read_pairs
from engramscope.pairs.vocabulary import Vocabulary
from engramscope.tasks._base import Setting, Task, TaskOptions

DEFAULT = 150


class FactualOptions(TaskOptions):
    """Options of `factual`."""

    files: tuple[str, ...] = ()


class Factual(Task):
    """Paired facts."""

    Options: ClassVar[type[TaskOptions]] = FactualOptions
    version: ClassVar[str] = "1"
    source: ClassVar[str] = "facts of the bundled encyclopaedia, or of the user's files"
    model: ClassVar[str] = "mini"
    needs_tokenizer: ClassVar[bool] = True

    def pairs(self, limit: int | None, rng: np.random.Generator, setting: Setting) -> PairSet:
        """Couples of all templates in turn, both orders of a couple one after the other.

        Raises:
            PairsError: no two facts can be paired.
        """
        assert isinstance(self.options, FactualOptions)
        files = [setting.folder / name for name in self.options.files]
        facts = list(chain.from_iterable(map(read_pairs, files))) if files else list(_bundled())
        facts = [replace(fact, id=f"{number}") for number, fact in enumerate(_distinct(facts))]
        templates: dict[str, list[tuple[Pair, Pair]]] = {}
        for bucket in _buckets(facts, setting.vocabulary).values():
            templates.setdefault(_template(bucket[0]), []).extend(_couples(bucket, rng))
        if not any(templates.values()):
            raise PairsError(
                f"Among {len(facts)} facts there are no two with one template, equally many tokens and different "
                "answers of one token, so none can be the other's corruption."
            )
        in_turn = chain.from_iterable(zip_longest(*templates.values()))
        made = [pair for number, couple in enumerate(filter(None, in_turn)) for pair in _both(number, *couple)]
        return PairSet.of(made[: DEFAULT if limit is None else limit], "factual")


def _bundled() -> Iterator[Pair]:
    for number, fact in enumerate(load_world().facts):
        template = fact.templates[fact.held_out]
        start = template.index("{s}")
        yield Pair(
            id=f"{number}", clean=fact.prompt(fact.held_out), correct=(f" {fact.answer}",),
            spans={"subject": (start, start + len(fact.subject))}, labels={"relation": fact.relation},
        )  # fmt: skip


def _distinct(facts: Iterable[Pair]) -> list[Pair]:
    return list({fact.clean: fact for fact in facts if "subject" in fact.spans}.values())


def _template(fact: Pair) -> str:
    start, end = fact.spans["subject"]
    return f"{fact.clean[:start]}{{}}{fact.clean[end:]}"


def _buckets(facts: list[Pair], vocabulary: Vocabulary) -> dict[tuple[str, int, int], list[Pair]]:
    """Facts that could be each other's corruption: (template, tokens before the subject's end, tokens) -> facts."""
    found: dict[tuple[str, int, int], list[Pair]] = {}
    for fact in facts:
        if all(vocabulary.is_single_answer(fact.clean, answer) for answer in fact.correct):
            upto = fact.clean[: fact.spans["subject"][1]]
            key = (_template(fact), vocabulary.length(upto), vocabulary.length(fact.clean))
            found.setdefault(key, []).append(fact)
    return found


def _couples(facts: list[Pair], rng: np.random.Generator) -> list[tuple[Pair, Pair]]:
    """Facts two by two, drawn without replacement; a fact without a partner of another answer is left over."""
    left = [facts[place] for place in rng.permutation(len(facts))]
    found: list[tuple[Pair, Pair]] = []
    while left:
        one = left.pop()
        at = next((at for at, other in enumerate(left) if not set(other.correct) & set(one.correct)), None)
        if at is not None:
            found.append((one, left.pop(at)))
    return found


def _both(number: int, one: Pair, other: Pair) -> Iterator[Pair]:
    for order, (clean, corrupted) in enumerate(((one, other), (other, one))):
        yield replace(
            clean, id=f"factual-{number}-{order}", corrupted=corrupted.clean, incorrect=corrupted.correct,
            group=_template(clean), corrupted_spans=dict(corrupted.spans),
            labels={**clean.labels, "couple": str(number)},
        )  # fmt: skip


COMPONENT = Factual
