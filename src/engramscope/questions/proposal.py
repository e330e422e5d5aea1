"""From a corpus to proposed questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from engramscope.errors import InputError
from engramscope.pairs.pair import PairSet
from engramscope.questions.abbreviations import could_stand_for
from engramscope.questions.associations import Associations
from engramscope.questions.couples import FORMS, Form, SizedFact, draw_couples, pairs_of, size_facts
from engramscope.questions.facts import Fact, associative_facts, definitional_facts
from engramscope.questions.glossary import EXAMPLES, Concept, read_glossary
from engramscope.questions.terms import Mentions, WantedTerm, collect_terms, find_mentions, read_wanted
from engramscope.questions.text import Document, Progress, read_documents
from engramscope.registry import nearest
from engramscope.results.numbers import counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFINITIONAL, ASSOCIATIVE, MIN_DOCUMENTS, AGREEMENT = 40, 40, 3, 0.9
#: the agreement that is suggested where nothing is found
_LOOSE = 0.7


@dataclass(frozen=True)
class Proposal:
    """Questions for a person to edit.

    Attributes:
        pairs: the questions: both orders of every couple, definitional ones first.
        evidence: one row per question, in the same order: what it asks, what supports it, where to look.
        dropped: reason -> how many candidates were left out for it.
        form: "prompts" (a statement to complete) or "answers" (a question and whole answers, for the answer swap).
    """

    pairs: PairSet
    evidence: pd.DataFrame
    dropped: dict[str, int]
    form: Form = "prompts"


def propose(
    corpus: pd.DataFrame,
    tokenizer: PreTrainedTokenizerBase,
    *,
    terms: Sequence[str] = (),
    definitional: int = DEFINITIONAL,
    associative: int = ASSOCIATIVE,
    min_documents: int = MIN_DOCUMENTS,
    agreement: float = AGREEMENT,
    form: str = "prompts",
    seed: int = 0,
    progress: Progress | None = None,
) -> Proposal:
    """Propose definitional and associative questions from what a corpus says.

    Definitional: abbreviation → long form, by the rule of Schwartz and Hearst (2003). Associative: two terms of
    different kinds that stand together in sentences more often than by chance, by Dunning's log-likelihood ratio
    (1993). The corrupted prompt is the same sentence about another subject, of as many tokens with the subject at the
    same ones; its answer is the wrong answer: as many tokens as the correct one (and as many words, where there is a
    choice), a capital or none like it, another first token. In associative couples each answer stands with the other's
    subject no more often than by chance, in sentences and in documents, and shares a sentence with it in fewer than
    `min_documents` documents.

    Args:
        corpus: a corpus table, see `corpus.table`; PMID, Title and Abstract are read.
        tokenizer: a fast tokenizer: that of the model that will be asked.
        terms: key terms, each optionally after its kind ("drug:valproic acid"). They come first, and are candidates
            beside the long forms and the words that the corpus offers by itself.
        definitional: definitional questions at most, an even number.
        associative: associative questions at most, an even number.
        min_documents: documents that must support a question.
        agreement: share in (0.5, 1] of the documents that define an abbreviation that must mean the same by it.
        form: "prompts" or "answers".
        seed: of the choice of partners.
        progress: told (what, done, total).

    Returns:
        The proposal, of at least one couple; the same for the same arguments.

    Raises:
        InputError: arguments at fault (all at once), a corpus without abstracts, or nothing to propose, with what to
            relax.
    """
    chosen, wanted = _checked(definitional, associative, min_documents, agreement, form, terms)
    documents = read_documents(corpus, progress)
    if not any(len(document.sentences) for document in documents):
        raise InputError("The corpus holds no text, so there is nothing to ask about.")
    rng, dropped = np.random.default_rng(seed), Counter[str]()
    concepts = _clear(read_glossary(documents, progress), min_documents, agreement, dropped)
    couples: list[tuple[SizedFact, SizedFact]] = []
    if definitional:
        facts = definitional_facts(concepts, frozenset(term.name for term in wanted))
        sized = size_facts(facts, chosen, tokenizer, dropped)
        couples += draw_couples(sized, definitional // 2, _not_another_meaning, rng, dropped)
    mentions = find_mentions(documents, collect_terms(documents, concepts, wanted, min_documents), progress)
    counts = Associations(mentions)
    _count_unseen(mentions, counts, dropped)
    if associative:
        facts = associative_facts(counts, documents, min_documents, dropped)
        sized = size_facts(facts, chosen, tokenizer, dropped)
        couples += draw_couples(sized, associative // 2, _not_associated(counts, min_documents), rng, dropped)
    if not couples:
        raise InputError(_nothing(documents, dropped, min_documents, agreement))
    pairs = PairSet.of(list(pairs_of(couples, chosen)), "questions")
    return Proposal(pairs, _evidence(pairs, couples, counts), dict(sorted(dropped.items())), chosen)


def _checked(
    definitional: int, associative: int, least: int, agreement: float, form: str, terms: Sequence[str]
) -> tuple[Form, tuple[WantedTerm, ...]]:
    faults = [
        f"{name} = {number}, but questions come in couples, one in each order: give an even number."
        for name, number in (("definitional", definitional), ("associative", associative))
        if number % 2 or number < 0
    ]
    if not definitional and not associative:
        faults.append("Neither definitional nor associative questions were asked for.")
    if least < 1:
        faults.append(f"min_documents = {least}, but a question needs one document or more.")
    if not 0.5 < agreement <= 1:
        faults.append(f"agreement = {agreement:g}, but the share that must agree lies above 0.5, up to 1.")
    if form not in FORMS:
        faults.append(f"unknown form {form!r}{nearest(form, FORMS)}")
    wanted: tuple[WantedTerm, ...] = ()
    try:
        wanted = read_wanted(terms)
    except InputError as error:
        faults += error.faults
    if faults:
        raise InputError(faults)
    return next(known for known in FORMS if known == form), wanted


def _clear(concepts: Sequence[Concept], least: int, agreement: float, dropped: Counter[str]) -> list[Concept]:
    kept = []
    for one in concepts:
        if one.documents < least:
            dropped[f"definitional: defined in fewer than {least} documents"] += 1
        elif one.agreement < agreement:
            dropped[f"definitional: fewer than {agreement:.0%} of its documents agree on one long form"] += 1
        else:
            kept.append(one)
    return kept


def _not_another_meaning(one: Fact, other: Fact) -> bool:
    """Whether neither abbreviation could stand for the other's long form, by the rule that found them."""
    return not could_stand_for(one.subject, other.answer) and not could_stand_for(other.subject, one.answer)


def _not_associated(counts: Associations, least: int) -> Callable[[Fact, Fact], bool]:
    def fit(one: Fact, other: Fact) -> bool:
        return all(counts.apart(a.terms[0], b.terms[1], least) for a, b in ((one, other), (other, one)))

    return fit


def _count_unseen(mentions: Mentions, counts: Associations, dropped: Counter[str]) -> None:
    for number, term in enumerate(mentions.terms):
        if term.wanted and not counts.sentences.alone[number]:
            dropped[f"key term {term.name!r}: not in the corpus"] += 1


def _nothing(documents: Sequence[Document], dropped: Counter[str], least: int, agreement: float) -> list[str]:
    reasons = "; ".join(f"{reason} ({times})" for reason, times in dropped.most_common(6))
    few, torn = (any(words in reason for reason in dropped) for words in ("in fewer than", "agree on one"))
    looser = [f"--min-documents 1 (now {least})"] if few and least > 1 else []
    looser += [f"--agreement {_LOOSE:g} (now {agreement:g})"] if torn and agreement > _LOOSE else []
    first = f"Try {' or '.join(looser)}, more" if looser else "Give more"
    abstracts = counted(len(documents), "abstract")
    return [
        f"No question could be proposed from {abstracts}: {reasons or 'no abbreviation is defined'}.",
        f"{first} key terms (--terms epilepsy,EEG), or a larger corpus.",
    ]


def _evidence(pairs: PairSet, couples: Sequence[tuple[SizedFact, SizedFact]], counts: Associations) -> pd.DataFrame:
    ordered = [both for first, second in couples for both in ((first, second), (second, first))]
    rows = []
    for pair, (one, other) in zip(pairs, ordered, strict=True):
        fact = one.fact
        against = {}
        if fact.kind == "associative":
            subject, wrong = fact.terms[0], other.fact.terms[1]
            against = {
                "wrong_sentences": counts.sentences.both(subject, wrong),
                "wrong_expected_sentences": counts.sentences.expected(subject, wrong),
                "wrong_documents": counts.documents.both(subject, wrong),
            }
        support = {f"sentence_{n}": example.sentence for n, example in enumerate(fact.examples, start=1)}
        rows.append(
            {
                "id": pair.id, "kind": fact.kind, "relation": fact.relation, "subject": fact.subject,
                "answer": fact.answer, "wrong_answer": other.fact.answer, "clean": pair.clean,
                "corrupted": pair.corrupted or "", "scored": one.scored, "wrong_scored": other.scored,
                "answer_tokens": one.tokens, **fact.evidence, **against,
                "pmids": "; ".join(example.pmid for example in fact.examples), **support,
            }
        )  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))


#: columns of the review table
COLUMNS = (
    "id", "kind", "relation", "subject", "answer", "wrong_answer", "clean", "corrupted", "scored", "wrong_scored",
    "answer_tokens", "documents", "agreement", "sentences", "expected_sentences", "log_likelihood_ratio", "pmi_bits",
    "wrong_sentences", "wrong_expected_sentences", "wrong_documents", "pmids",
    *(f"sentence_{number}" for number in range(1, EXAMPLES + 1)),
)  # fmt: skip
