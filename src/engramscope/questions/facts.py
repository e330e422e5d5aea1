"""What a corpus says, as facts that a question can be made of, and the evidence for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from engramscope.questions.abbreviations import could_stand_for
from engramscope.questions.association import log_likelihood_ratio, pointwise_mutual_information, threshold
from engramscope.questions.associations import Associations
from engramscope.questions.glossary import EXAMPLES, Concept, Example
from engramscope.questions.kinds import KINDS
from engramscope.questions.terms import Term
from engramscope.questions.text import Document

KindOfQuestion = Literal["definitional", "associative"]

_STATEMENT = "The abbreviation {} stands for"
_QUESTION = "What does the abbreviation {} stand for?"


@dataclass(frozen=True)
class Fact:
    """A subject and its answer.

    Attributes:
        kind: "definitional" (abbreviation, long form) or "associative" (two terms that go together).
        relation: what couples have in common: "abbreviation", or the kinds of subject and answer ("disorder-drug").
        subject, answer: as questions write them.
        statement: the prompt to complete, with {} for the subject; depends on the relation only.
        question: the same as a question.
        strength: what decides which facts come first; larger first.
        evidence: columns of the review table.
        examples: sentences that support it.
        terms: columns of the two terms in the mentions (associative facts).
    """

    kind: KindOfQuestion
    relation: str
    subject: str
    answer: str
    statement: str
    question: str
    strength: tuple[float, ...]
    evidence: dict[str, float | int] = field(hash=False)
    examples: tuple[Example, ...]
    terms: tuple[int, int] = (-1, -1)


def definitional_facts(concepts: Sequence[Concept], wanted: frozenset[str]) -> list[Fact]:
    """One fact per abbreviation; those that the user named come first, then those of most documents.

    Args:
        concepts: abbreviations whose meaning is clear.
        wanted: key terms, as abbreviations or as long forms.
    """
    return [
        Fact(
            kind="definitional",
            relation="abbreviation",
            subject=one.short,
            answer=one.long,
            statement=_STATEMENT,
            question=_QUESTION,
            strength=(float(bool(wanted & {one.short, one.long})), float(one.documents)),
            evidence={"documents": one.documents, "agreement": one.agreement},
            examples=one.examples,
        )
        for one in concepts
    ]


def associative_facts(
    associations: Associations, documents: Sequence[Document], least: int, dropped: Counter[str]
) -> list[Fact]:
    """Terms of two kinds that stand together in sentences more often than by chance.

    A couple of terms of different kinds is a fact, in both directions, if `least` documents or more have a sentence
    with both, and G² passes the threshold for as many tests as couples stand together at all. An answer must be of a
    known kind; so must a subject, unless the user named it. A term and its abbreviation are no couple.

    Args:
        associations: the counts.
        documents: the corpus, for the evidence.
        least: documents in which a sentence must have both.
        dropped: counts of what was left out, by reason; added to.
    """
    terms, counts = associations.mentions.terms, associations.sentences
    couples = [couple for couple in sorted(counts.together) if _may_be_asked(*(terms[number] for number in couple))]
    first, second = (np.array([couple[side] for couple in couples], dtype=np.int64) for side in (0, 1))
    both = np.array([counts.together[couple] for couple in couples], dtype=np.int64)
    ratios = log_likelihood_ratio(both, counts.alone[first], counts.alone[second], counts.total)
    least_ratio = threshold(len(couples))
    starts = np.concatenate([[0], np.cumsum([len(document.sentences) for document in documents])])
    found: list[Fact] = []
    for (one, other), ratio in zip(couples, ratios.tolist(), strict=True):
        if ratio < least_ratio or not counts.above_chance(one, other):
            dropped["associative: together no more often than chance explains"] += 1
            continue
        together = associations.sharing(one, other)
        if together < least:
            dropped[f"associative: together in sentences of fewer than {least} documents"] += 1
            continue
        examples = _examples(associations.rows(one, other), documents, associations.mentions.document, starts)
        for subject, answer in ((one, other), (other, one)):
            if terms[answer].kind:
                found.append(_associative(associations, (subject, answer), ratio, together, examples))
    return sorted(found, key=lambda fact: (*(-part for part in fact.strength), fact.subject, fact.answer))


def _may_be_asked(one: Term, other: Term) -> bool:
    """Whether rules of form, or the user, say what both are: different kinds, and no abbreviation of one another."""
    known = one.kind != other.kind and all(term.kind or term.wanted for term in (one, other))
    return known and not could_stand_for(one.name, other.name) and not could_stand_for(other.name, one.name)


def _associative(
    associations: Associations, couple: tuple[int, int], ratio: float, together: int, examples: tuple[Example, ...]
) -> Fact:
    subject, answer = couple
    terms, counts = associations.mentions.terms, associations.sentences
    noun = KINDS[terms[answer].kind].noun
    both, one, other = counts.both(subject, answer), int(counts.alone[subject]), int(counts.alone[answer])
    wanted = terms[subject].wanted + terms[answer].wanted
    return Fact(
        kind="associative",
        relation=f"{terms[subject].kind or 'term'}-{terms[answer].kind}",
        subject=terms[subject].name,
        answer=terms[answer].name,
        statement=f"Reports on {{}} often mention the {noun}",
        question=f"Which {noun} do reports on {{}} often mention?",
        strength=(float(wanted), ratio),
        evidence={
            "documents": together,
            "sentences": both,
            "expected_sentences": counts.expected(subject, answer),
            "log_likelihood_ratio": ratio,
            "pmi_bits": pointwise_mutual_information(both, one, other, counts.total),
        },
        examples=examples,
        terms=(subject, answer),
    )


def _examples(
    rows: np.ndarray, documents: Sequence[Document], document: np.ndarray, starts: np.ndarray
) -> tuple[Example, ...]:
    found: dict[int, Example] = {}
    for row in rows.tolist():
        number = int(document[row])
        if number not in found:
            found[number] = Example(documents[number].pmid, documents[number].sentences[row - int(starts[number])])
        if len(found) == EXAMPLES:
            break
    return tuple(found.values())
