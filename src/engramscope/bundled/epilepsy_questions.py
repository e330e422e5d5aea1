"""The epilepsy questions that the bundled models can answer, with a corrupted twin for each.

A question asks for a fact in a wording in which the training corpus never stated it. Its corrupted
prompt is the same sentence about another subject of as many tokens, whose answer is the incorrect one.
"""

from __future__ import annotations

from dataclasses import dataclass

from engramscope.bundled.epilepsy import (
    EpilepsyFact,
    Family,
    Kind,
    capitalised,
    fill,
    load_families,
)

Span = tuple[int, int]


@dataclass(frozen=True)
class EpilepsyQuestion:
    """One question in two forms: a prompt to complete, and CLAP's question with two answers.

    Attributes:
        id: Unique name, `family-number`.
        kind: `definitional` (one statement) or `associative` (through a second fact).
        subject: What the question is about, as written inside a sentence.
        prompt: The clean prompt; the answer comes right after it.
        corrupted_prompt: The same sentence about `corrupted_subject`, with as many tokens.
        corrupted_subject: The other subject.
        correct: The answer with its leading space, a single token.
        incorrect: The answer of the corrupted subject, of the same form.
        group: Two questions with the subjects exchanged share it: they are not independent.
        template: Name of the wording, `family/number`.
        family: Name of the family of facts.
        subject_span: Character offsets of the subject in `prompt`.
        corrupted_subject_span: Character offsets of the other subject in `corrupted_prompt`.
        question: The question in CLAP's form.
        correct_answer: Its answer as a phrase with leading space: `question + correct_answer`.
        wrong_answer: The wrong answer of the same form.
        bridge: The fact in the middle of an associative question, else empty.
    """

    id: str
    kind: Kind
    subject: str
    prompt: str
    corrupted_prompt: str
    corrupted_subject: str
    correct: str
    incorrect: str
    group: str
    template: str
    family: str
    subject_span: Span
    corrupted_subject_span: Span
    question: str
    correct_answer: str
    wrong_answer: str
    bridge: str


def questions() -> list[EpilepsyQuestion]:
    """Return every question, definitional ones first.

    Returns:
        The questions in a fixed order; the first of each kind is CLAP's own.
    """
    return [_question(family, index) for family in load_families() for index in range(len(family.facts))]


def _question(family: Family, index: int) -> EpilepsyQuestion:
    fact = family.facts[index]
    other = family.facts[index ^ 1]
    template = family.templates[fact.held_out]
    prompt, span = _prompt(template, fact.subject)
    corrupted_prompt, corrupted_span = _prompt(template, other.subject)
    return EpilepsyQuestion(
        id=f"{family.name}-{index:02d}",
        kind=family.kind,
        subject=fact.subject,
        prompt=prompt,
        corrupted_prompt=corrupted_prompt,
        corrupted_subject=other.subject,
        correct=" " + fact.answer,
        incorrect=" " + other.answer,
        group=f"{family.name}/{index // 2}",
        template=f"{family.name}/{fact.held_out}",
        family=family.name,
        subject_span=span,
        corrupted_subject_span=corrupted_span,
        question=fill(family.question, subject=fact.subject),
        correct_answer=_long_answer(family, fact),
        wrong_answer=_long_answer(family, other),
        bridge=fact.bridge,
    )


def _prompt(template: str, subject: str) -> tuple[str, Span]:
    prompt = fill(template, subject=subject)
    written = capitalised(subject) if "{Subject}" in template else subject
    start = prompt.index(written)
    return prompt, (start, start + len(written))


def _long_answer(family: Family, fact: EpilepsyFact) -> str:
    return fill(family.long_answer, subject=fact.subject, answer=fact.answer)
