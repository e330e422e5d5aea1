"""Proposed questions: what they must keep to, counted again by plain means on made and real abstracts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from engramscope.corruptions.answer import COMPONENT as ANSWER_SWAP
from engramscope.errors import InputError
from engramscope.pairs.readers import read_pairs
from engramscope.pairs.tokenize import tokenize_pairs
from engramscope.questions import Proposal, propose, write
from engramscope.questions.abbreviations import best_long_form
from engramscope.questions.couples import SizedFact, draw_couples
from engramscope.questions.facts import Fact
from engramscope.questions.glossary import read_glossary, singular
from engramscope.questions.kinds import kind_of, looks_like_gene
from engramscope.questions.terms import collect_terms, read_wanted
from engramscope.questions.text import read_documents, sentences, stems
from tests.questions.corpora import PLANTED, gpt2_tokenizer, mini, planted, real_corpus, table


def is_sound(proposal: Proposal, tokenizer: Any) -> None:
    """Everything that must hold of any proposal, looked at in tokens."""
    prompts = proposal.form == "prompts"
    read = tokenize_pairs(proposal.pairs, tokenizer, "equal" if prompts else "both_ends")
    assert len(read) == len(proposal.pairs) == len(proposal.evidence) > 0
    for one in read:
        pair = one.pair
        correct, incorrect = one.correct[0], one.incorrect[0]
        assert correct[0] != incorrect[0]
        assert one.notes == ()
        if prompts:
            assert len(correct) == len(incorrect) == 1
            assert len(one.clean.ids) == len(one.corrupted.ids)
            assert one.clean.spans["subject"] == one.corrupted.spans["subject"]
            assert one.clean.ids != one.corrupted.ids
        # the whole answers too, each after either prompt
        for prompt in filter(None, (pair.clean, pair.corrupted)):
            before = tokenizer(prompt)["input_ids"]
            whole = [tokenizer(f"{prompt} {pair.labels[name]}")["input_ids"] for name in ("answer", "wrong_answer")]
            assert all(ids[: len(before)] == before for ids in whole)
            assert len(whole[0]) == len(whole[1])
            assert (whole[0][len(before)], whole[1][len(before)]) == (correct[0], incorrect[0])
        assert pair.labels["answer"][0].isupper() == pair.labels["wrong_answer"][0].isupper()
        small = set(stems("a an and as at by for from in of on or the to with without"))
        start, end = pair.spans["subject"]
        assert not set(stems(pair.clean[start:end])) & set(stems(pair.labels["answer"])) - small
        for text in filter(None, (pair.clean, pair.corrupted)):
            assert not re.search(rf"(?<!\w){re.escape(pair.correct[0].strip())}(?!\w)", text)
            assert not re.search(rf"(?<!\w){re.escape(pair.labels['answer'])}(?!\w)", text)
    for first, second in zip(proposal.pairs.pairs[::2], proposal.pairs.pairs[1::2], strict=True):
        assert first.group == second.group
        assert (first.correct, first.incorrect) == (second.incorrect, second.correct)
        assert first.corrupted == (second.clean if prompts else None)
    groups = [pair.group for pair in proposal.pairs.pairs[::2]]
    assert len(set(groups)) == len(groups)


def test_planted_facts_are_found_in_both_kinds_and_both_orders() -> None:
    found = propose(planted(), mini())
    is_sound(found, mini())
    asked = {(row.subject, row.answer) for row in found.evidence.itertuples()}
    assert asked == {(short, long) for long, short, _ in PLANTED} | {(long, drug) for long, _, drug in PLANTED}
    assert [pair.labels["kind"] for pair in found.pairs] == ["definitional"] * 4 + ["associative"] * 4
    prompts = {pair.clean for pair in found.pairs}
    assert "The abbreviation DRS stands for" in prompts
    assert "Reports on Dravet syndrome often mention the drug" in prompts


def test_the_evidence_is_what_a_plain_count_finds() -> None:
    corpus = planted()
    found = propose(corpus, mini()).evidence
    texts = corpus["Abstract"].tolist()
    every = [s for text in texts for s in re.split(r"(?<=\.) ", text)]
    names = {long: (long, short) for long, short, _ in PLANTED}

    def mentioning(*terms: str) -> list[str]:
        return [s for s in every if all(any(name in s for name in names.get(term, (term,))) for term in terms)]

    rows = found[found["kind"] == "associative"]
    assert len(rows) == 4
    for row in rows.itertuples():
        assert row.sentences == len(mentioning(row.subject, row.answer))
        expected = len(mentioning(row.subject)) * len(mentioning(row.answer)) / len(every)
        assert row.expected_sentences == pytest.approx(expected)
        assert row.wrong_sentences == len(mentioning(row.subject, row.wrong_answer)) == 0
        together = [t for t in texts if any(s in t for s in mentioning(row.subject, row.answer))]
        assert row.documents == len(together) == 4
        pmids = row.pmids.split("; ")
        assert len(pmids) == 3
        for pmid, sentence in zip(pmids, (row.sentence_1, row.sentence_2, row.sentence_3), strict=True):
            assert sentence in texts[int(pmid) - 1]
            assert sentence in mentioning(row.subject, row.answer)
    defined = found[found["kind"] == "definitional"]
    for row in defined.itertuples():
        assert (row.documents, row.agreement) == (4, 1.0)
        assert f"{row.answer} ({row.subject})" in row.sentence_1


def test_answers_are_questions_that_the_answer_swap_can_use(tmp_path: Path) -> None:
    found = propose(planted(), mini(), form="answers")
    is_sound(found, mini())
    swap = ANSWER_SWAP(ANSWER_SWAP.Options())
    swapped = [swap.rewrite(pair) for pair in found.pairs]
    assert swapped[0].clean.startswith("What does the abbreviation ")
    lengths = [(len(one.clean.ids), len(one.corrupted.ids)) for one in tokenize_pairs(swapped, mini(), "both_ends")]
    assert all(clean == corrupted for clean, corrupted in lengths)
    assert {pair.clean for pair in found.pairs} >= {"Which drug do reports on Rett syndrome often mention?"}


@pytest.mark.parametrize("form", ["prompts", "answers"])
def test_the_file_reads_back_as_it_was(form: str, tmp_path: Path) -> None:
    found = propose(planted(), mini(), form=form)
    write(found, tmp_path / "questions.jsonl")
    assert tuple(read_pairs(tmp_path / "questions.jsonl")) == found.pairs.pairs


def test_the_same_seed_gives_the_same_and_limits_hold() -> None:
    one, two = (propose(planted(), mini(), seed=3) for _ in range(2))
    assert one.pairs == two.pairs
    pd.testing.assert_frame_equal(one.evidence, two.evidence)
    assert one.dropped == two.dropped
    others = {tuple(pair.group for pair in propose(planted(), mini(), seed=seed).pairs) for seed in range(6)}
    assert len(others) > 1, "the seed draws the partners"
    few = propose(planted(), mini(), definitional=2, associative=0)
    assert len(few.pairs) == 2
    assert few.dropped["definitional: more than were asked for"] == 2


def test_an_abbreviation_of_two_meanings_is_left_out_and_counted() -> None:
    corpus = planted()
    other = table([f"On day {n} the dorsal rostral septum (DRS) was seen." for n in range(2)])
    found = propose(pd.concat([corpus, other], ignore_index=True), mini(), associative=0)
    assert not any("DRS" in pair.clean for pair in found.pairs)
    assert found.dropped["definitional: fewer than 90% of its documents agree on one long form"] == 1
    # four of six agree
    lenient = propose(pd.concat([corpus, other], ignore_index=True), mini(), associative=0, agreement=0.66)
    row = lenient.evidence.set_index("subject").loc["DRS"]
    assert (row["documents"], row["agreement"]) == (4, pytest.approx(4 / 6))


def test_spellings_of_one_meaning_agree() -> None:
    corpus = table(["Anti-epileptic drugs (AEDs) help.", "The antiepileptic drug (AED) helps.",
                    "Old antiepileptic drugs (AEDs) and new.", "See antiepileptic drugs (AEDs)."])  # fmt: skip
    (concept,) = read_glossary(read_documents(corpus))
    assert (concept.short, concept.long) == ("AEDs", "antiepileptic drugs")
    assert (concept.documents, concept.agreement) == (4, 1.0)
    assert [singular(short) for short in ("AEDs", "iPSCs", "LoS", "ms", "Is")] == ["AED", "iPSC", "LoS", "ms", "Is"]


def test_a_document_counts_once_however_often_it_defines() -> None:
    corpus = table(["Status epilepticus (SE) is. Status epilepticus (SE) was.", "The status epilepticus (SE) is."])
    (concept,) = read_glossary(read_documents(corpus))
    assert (concept.documents, len(concept.examples)) == (2, 2)
    assert concept.long == "status epilepticus", "not as at the beginning of a sentence"


def test_a_drug_that_both_syndromes_go_with_is_never_the_wrong_answer() -> None:
    corpus = planted()
    both = table([f"In case {n} a child with Rett syndrome received levetiracetam." for n in range(3)])
    found = propose(pd.concat([corpus, both], ignore_index=True), mini(), definitional=0)
    wrong = {(row.subject, row.wrong_answer) for row in found.evidence.itertuples()}
    assert ("Rett syndrome", "levetiracetam") not in wrong
    assert wrong


def test_terms_kinds_and_genes() -> None:
    assert [kind_of(t) for t in ("Dravet syndrome", "epilepsy of infancy", "clobazam", "dentate gyrus", "wild-type")] \
        == ["disorder", "disorder", "drug", "region", ""]  # fmt: skip
    assert kind_of("episodic ataxia type 2") == "disorder"
    assert kind_of("International League Against Epilepsy") == ""
    assert [looks_like_gene(w) for w in ("SCN1A", "KCNQ2", "PCDH19", "EEG", "T3", "scn1a")] == [True] * 3 + [False] * 3
    corpus = table(["An SCN1A mutation was seen.", "SCN1A variants matter.", "SCN1A gene.", "CA12 area."])
    terms = collect_terms(read_documents(corpus), [], read_wanted(["drug:valproic acid", "EEG"]), 3)
    assert [(term.name, term.kind, term.wanted) for term in terms] == [
        ("valproic acid", "drug", True), ("EEG", "", True), ("SCN1A", "gene", False),
    ]  # fmt: skip


def test_a_partner_with_the_same_initial_and_as_many_words_is_taken_where_there_is_one() -> None:
    def sized(short: str, long: str, first: int) -> SizedFact:
        fact = Fact("definitional", "abbreviation", short, long, "{}", "{}", (0.0, 1.0), {}, ())
        return SizedFact(fact, f"{short} is", (0, 1), f" {long}", f" {long}", first, 3, ("one form",))

    facts = [
        sized("TLE", "temporal lobe epilepsy", 1), sized("BMI", "body mass index", 2),
        sized("TC", "thyroid cancer", 3), sized("TSD", "total sleep duration", 4),
    ]  # fmt: skip
    for seed in range(8):
        couples = draw_couples(facts, 5, lambda one, other: True, np.random.default_rng(seed), Counter())
        assert [(a.fact.subject, b.fact.subject) for a, b in couples] == [("TLE", "TSD"), ("BMI", "TC")]
    refused: Counter[str] = Counter()
    assert draw_couples(facts, 5, lambda one, other: False, np.random.default_rng(0), refused) == []
    assert sum(refused.values()) == 4


def test_key_terms_that_are_not_there_are_said() -> None:
    found = propose(planted(), mini(), terms=["nowhere"])
    assert found.dropped["key term 'nowhere': not in the corpus"] == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"definitional": 3}, "even number"),
        ({"associative": -2}, "even number"),
        ({"definitional": 0, "associative": 0}, "Neither"),
        ({"agreement": 0.5}, "above 0.5"),
        ({"min_documents": 0}, "one document"),
        ({"form": "answer"}, "did you mean 'answers'"),
        ({"terms": ["durg:x"]}, "did you mean 'drug'"),
        ({"terms": ["--"]}, "holds no word"),
        ({"min_documents": 99}, "Try --min-documents 1 (now 99), more key terms"),
    ],
)
def test_faults_are_said(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        propose(planted(), mini(), **change)


def test_all_faults_at_once_and_a_corpus_without_text() -> None:
    with pytest.raises(InputError) as caught:
        propose(planted(), mini(), definitional=1, agreement=2, form="x", terms=["a:b"])
    assert len(caught.value.faults) == 4
    for empty in (table([]), table(["", ""])):
        with pytest.raises(InputError, match="no text"):
            propose(empty, mini())


def test_progress_is_told_to_the_end() -> None:
    seen: list[tuple[str, int, int]] = []
    propose(planted(), mini(), progress=lambda what, done, total: seen.append((what, done, total)))
    assert {what for what, done, total in seen if done == total} == {"sentences", "abbreviations", "mentions"}


# --- the real abstracts


@pytest.fixture(scope="module", params=[mini, gpt2_tokenizer], ids=["mini", "gpt2"])
def real(request: pytest.FixtureRequest) -> tuple[Proposal, Any]:
    make: Callable[[], Any] = request.param
    return propose(real_corpus(), make(), terms=["epilepsy", "EEG", "seizure"]), make()


def test_real_proposals_are_sound(real: tuple[Proposal, Any]) -> None:
    found, tokenizer = real
    is_sound(found, tokenizer)
    assert len(found.pairs) >= 30


def test_real_wrong_answers_hold_against_a_plain_recount(real: tuple[Proposal, Any]) -> None:
    found, _ = real
    texts = [f"{row.Title} {row.Abstract}" for row in real_corpus().itertuples()]
    rows = found.evidence[found.evidence["kind"] == "associative"]
    assert len(rows) >= 4

    lower = [[sentence.lower() for sentence in sentences(text)] for text in texts]

    def sharing(one: str, other: str) -> int:
        patterns = [re.compile(rf"(?<![\w-]){re.escape(name.lower())}(?!\w)") for name in (one, other)]
        near = [[s for s in every if one.lower() in s and other.lower() in s] for every in lower]
        return sum(any(all(pattern.search(s) for pattern in patterns) for s in few) for few in near)

    for row in rows.itertuples():
        assert sharing(row.subject, row.wrong_answer) < 3
        assert row.documents >= 3
        assert row.wrong_sentences <= row.wrong_expected_sentences
        assert row.sentences > row.expected_sentences
    # not all: some stand together under an abbreviation only
    assert sum(sharing(row.subject, row.answer) > 0 for row in rows.itertuples()) >= 0.8 * len(rows)


def test_real_wrong_long_forms_do_not_fit_the_abbreviation(real: tuple[Proposal, Any]) -> None:
    rows = real[0].evidence[real[0].evidence["kind"] == "definitional"]
    for row in rows.itertuples():
        assert best_long_form(row.subject, row.answer) == row.answer
        assert best_long_form(row.subject, row.wrong_answer) != row.wrong_answer
        assert row.agreement >= 0.9
