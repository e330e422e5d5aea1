"""Held-out prompts for the bundled models: nothing here was ever stated in training."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from engramscope.bundled.corpus import Sources
from engramscope.bundled.epilepsy import fill
from engramscope.bundled.epilepsy_questions import questions
from engramscope.bundled.sentences import (
    Completion,
    addition,
    docstring,
    indirect_object,
    year_span,
)

Measure = Literal["accuracy", "probability difference"]
DRAWN_PROMPTS = 1000


@dataclass(frozen=True)
class Probe:
    """A set of held-out prompts with what is measured on them.

    Attributes:
        title: What the prompts ask.
        held_out: What training never contained.
        measure: Share of prompts whose most probable next token is the answer, or the probability
            of the years after the start year minus that of the others, on average.
        required: Smallest acceptable value; None where the value is only reported.
        prompts: The prompts with their answers.
    """

    title: str
    held_out: str
    measure: Measure
    required: float | None
    prompts: tuple[Completion, ...]


def load_probes(sources: Sources, seed: int = 2) -> list[Probe]:
    """Make every probe.

    Args:
        sources: What the corpus is made from.
        seed: Seed of the prompts that are drawn.

    Returns:
        The probes in the order of the table.
    """
    return [*_drawn_probes(sources, seed), _facts(sources), *_epilepsy(), *_two_hop(sources)]


def _drawn_probes(sources: Sources, seed: int) -> list[Probe]:
    words = sources.words

    def drawn(make: Callable[[random.Random], Completion]) -> tuple[Completion, ...]:
        draw = random.Random(seed)
        return tuple(make(draw) for _ in range(DRAWN_PROMPTS))

    return [
        Probe(
            "indirect object",
            "the pair of names (a tenth of all pairs)",
            "accuracy",
            0.95,
            drawn(lambda draw: indirect_object(words, draw, held_out=True)),
        ),
        Probe(
            "indirect object, new frames",
            "the pair of names, and the sentence frame",
            "accuracy",
            None,
            drawn(lambda draw: indirect_object(words, draw, held_out=True, unseen_template=True)),
        ),
        Probe(
            "greater than",
            "the noun (a fifth), and the start year (a fifth)",
            "probability difference",
            0.8,
            drawn(lambda draw: year_span(words, draw, held_out=True)),
        ),
        Probe(
            "docstring",
            "the three documented arguments in this order (a tenth)",
            "accuracy",
            0.9,
            drawn(lambda draw: docstring(words, draw, held_out=True)),
        ),
        Probe(
            "sums",
            "the two operands in either order (a tenth)",
            "accuracy",
            None,
            drawn(lambda draw: addition(words, draw, held_out=True)),
        ),
    ]


def _facts(sources: Sources) -> Probe:
    prompts = tuple(Completion(fact.prompt(fact.held_out), " " + fact.answer) for fact in sources.world.facts)
    return Probe(
        "facts in an unseen paraphrase",
        "one wording of every fact, another one for every next fact",
        "accuracy",
        0.9,
        prompts,
    )


def _epilepsy() -> list[Probe]:
    return [
        Probe(
            f"epilepsy questions, {kind}",
            "one wording of every fact",
            "accuracy",
            0.95,
            tuple(Completion(q.prompt, q.correct) for q in questions() if q.kind == kind),
        )
        for kind in ("definitional", "associative")
    ]


def _two_hop(sources: Sources) -> list[Probe]:
    people = tuple(
        Completion(fact.prompt(i), " " + fact.answer)
        for fact in sources.world.untaught_two_hop
        for i in range(len(fact.templates))
    )
    epilepsy = tuple(
        Completion(fill(template, subject=fact.subject), " " + fact.answer)
        for family in sources.families
        for fact in family.two_hop
        for template in family.templates
    )
    held_out = "the answer in every wording: only the two facts that lead to it are stated"
    return [
        Probe("two hops, person to country", held_out, "accuracy", None, people),
        Probe("two hops, epilepsy", held_out, "accuracy", None, epilepsy),
    ]
