"""What a corpus says, as facts that a question can be made of, and the evidence for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy.sparse import csr_array

from engramscope.questions.abbreviations import could_stand_for
from engramscope.questions.association import log_likelihood_ratio, pointwise_mutual_information, threshold
from engramscope.questions.glossary import EXAMPLES, Concept, Example
from engramscope.questions.kinds import KINDS
from engramscope.questions.terms import Mentions, Term
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


class Associations:
    """Counts of every two terms: sentences and documents that mention them together.

    Args:
        mentions: who mentions what.
    """

    def __init__(self, mentions: Mentions) -> None:
        self.mentions = mentions
        table = mentions.sentences
        columns = table.tocsc()
        self._rows = [columns.indices[columns.indptr[t] : columns.indptr[t + 1]] for t in range(len(mentions.terms))]
        self.sentences: np.ndarray = np.asarray((table.T @ table).todense())
        by_document = _by_document(mentions)
        self.documents: np.ndarray = np.asarray((by_document.T @ by_document).todense())
        self.n_sentences, self.n_documents = len(mentions.document), mentions.documents

    def apart(self, one: int, other: int, least: int) -> bool:
        """Whether two terms are not associated.

        They are not if they stand together no more often than by chance, in sentences and in documents, and share a
        sentence in fewer than `least` documents: common terms stand with everything often enough for a reader.
        """
        return (
            self._at_most_chance(self.sentences, one, other, self.n_sentences)
            and self._at_most_chance(self.documents, one, other, self.n_documents)
            and len(self.documents_with_both_in_a_sentence(one, other)) < least
        )

    def ratios(self) -> np.ndarray:
        """G² of every two terms over sentences [n_terms, n_terms]; 0 where they are together no more than by chance."""
        alone = np.diag(self.sentences)
        first, second = alone[:, None], alone[None, :]
        ratio = log_likelihood_ratio(self.sentences, first, second, self.n_sentences)
        return np.where(self.sentences * self.n_sentences > first * second, ratio, 0.0)

    def documents_with_both_in_a_sentence(self, one: int, other: int) -> list[int]:
        """Numbers of the documents of which some sentence mentions both terms, ascending."""
        return sorted(set(self.mentions.document[self.rows(one, other)].tolist()))

    def rows(self, one: int, other: int) -> np.ndarray:
        """Numbers of the sentences that mention both terms, ascending."""
        return np.intersect1d(self._rows[one], self._rows[other])

    def _at_most_chance(self, counts: np.ndarray, one: int, other: int, total: int) -> bool:
        # in whole numbers: nothing is rounded
        return int(counts[one, other]) * total <= int(counts[one, one]) * int(counts[other, other])


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
    terms = associations.mentions.terms
    kinds = np.array([term.kind for term in terms])
    ratios = associations.ratios()
    upper = np.triu(associations.sentences > 0, 1) & (kinds[:, None] != kinds[None, :])
    couples = [(one, other) for one, other in np.argwhere(upper).tolist() if _may_be_asked(terms[one], terms[other])]
    least_ratio = threshold(len(couples))
    starts = np.concatenate([[0], np.cumsum([len(document.sentences) for document in documents])])
    found: list[Fact] = []
    for one, other in couples:
        if ratios[one, other] < least_ratio:
            dropped["associative: together no more often than chance explains"] += 1
            continue
        together = associations.documents_with_both_in_a_sentence(one, other)
        if len(together) < least:
            dropped[f"associative: together in sentences of fewer than {least} documents"] += 1
            continue
        examples = _examples(associations.rows(one, other), documents, associations.mentions.document, starts)
        for subject, answer in ((one, other), (other, one)):
            if terms[answer].kind:
                ratio = float(ratios[one, other])
                found.append(_associative(associations, (subject, answer), ratio, len(together), examples))
    return sorted(found, key=lambda fact: (*(-part for part in fact.strength), fact.subject, fact.answer))


def _may_be_asked(one: Term, other: Term) -> bool:
    """Whether rules of form, or the user, say what both are, and neither is the other's abbreviation."""
    known = all(term.kind or term.wanted for term in (one, other)) and bool(one.kind or other.kind)
    return known and not could_stand_for(one.name, other.name) and not could_stand_for(other.name, one.name)


def _associative(
    associations: Associations, couple: tuple[int, int], ratio: float, together: int, examples: tuple[Example, ...]
) -> Fact:
    subject, answer = couple
    terms, counts = associations.mentions.terms, associations.sentences
    noun = KINDS[terms[answer].kind].noun
    both, one, other = (int(counts[a, b]) for a, b in ((subject, answer), (subject, subject), (answer, answer)))
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
            "expected_sentences": one * other / associations.n_sentences,
            "log_likelihood_ratio": ratio,
            "pmi_bits": pointwise_mutual_information(both, one, other, associations.n_sentences),
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


def _by_document(mentions: Mentions) -> csr_array:
    n = len(mentions.document)
    lift = csr_array((np.ones(n, dtype=np.int64), (mentions.document, np.arange(n))), shape=(mentions.documents, n))
    return csr_array((lift @ mentions.sentences > 0).astype(np.int64))
