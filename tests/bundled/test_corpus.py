"""The corpus is the same for the same seed and never contains what is held out."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from engramscope.bundled.corpus import LATE_MIXTURE, MIXTURE, Sources, documents, load_sources, text_of
from engramscope.bundled.epilepsy_questions import questions
from engramscope.bundled.probes import load_probes
from engramscope.bundled.sentences import addition, indirect_object, is_held_out, year_span

DOCUMENTS = 20_000


@pytest.fixture(scope="module")
def sources() -> Sources:
    return load_sources()


@pytest.fixture(scope="module")
def texts(sources: Sources) -> list[str]:
    streams = (documents(sources, 0, mixture) for mixture in (MIXTURE, LATE_MIXTURE))
    return [text_of(d) for stream in streams for d in itertools.islice(stream, DOCUMENTS)]


def test_same_seed_same_documents(sources: Sources) -> None:
    first, again, other = (list(itertools.islice(documents(sources, seed), 500)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_no_held_out_prompt_is_in_the_corpus(sources: Sources, texts: list[str]) -> None:
    corpus = "\n".join(texts)
    stated = [
        prompt.prompt + prompt.answer
        for probe in load_probes(sources)
        for prompt in probe.prompts
        if probe.title != "sums" and prompt.prompt + prompt.answer in corpus
    ]
    assert stated == []


def test_a_stated_wording_is_found_by_the_same_search(sources: Sources, texts: list[str]) -> None:
    corpus = "\n".join(texts)
    facts = [f for f in sources.world.facts if f.relation == "capital"]
    stated = [f.prompt((f.held_out + 1) % len(f.templates)) + " " + f.answer for f in facts]
    assert sum(text in corpus for text in stated) > len(facts) / 2


def test_held_out_operands_are_never_added(texts: list[str]) -> None:
    operands = [
        tuple(sorted(map(int, found.groups())))
        for text in texts
        if (found := re.match(r"(?:The sum of |Adding )?(\d+) (?:\+|and|to) (\d+)", text))
    ]
    assert len(operands) > 1000
    assert not any(is_held_out("sum", *pair) for pair in operands)


def test_held_out_names_never_meet(sources: Sources, texts: list[str]) -> None:
    known = set(sources.world.first_names)
    pairs = [
        tuple(sorted(found.groups()))
        for text in texts
        if (found := re.search(r"([A-Z][a-z]+) and ([A-Z][a-z]+)", text)) and known.issuperset(found.groups())
    ]
    assert len(pairs) > 1000
    assert not any(is_held_out("names", *pair) for pair in pairs)


def test_held_out_spans_are_never_stated(texts: list[str]) -> None:
    spans = [found for text in texts if (found := re.search(r"year (\d\d)(\d\d) to", text))]
    assert len(spans) > 300
    assert not any(is_held_out("year", int(s[1]), int(s[2]), every=5) for s in spans)


def test_untaught_two_hop_answers_are_never_stated(sources: Sources, texts: list[str]) -> None:
    corpus = "\n".join(texts)
    untaught = [fact.prompt(i) for fact in sources.world.untaught_two_hop for i in range(len(fact.templates))]
    assert [prompt for prompt in untaught if prompt in corpus] == []
    taught = [fact.prompt(0) for fact in sources.world.taught_two_hop]
    assert sum(prompt in corpus for prompt in taught) > len(taught) / 2


@pytest.mark.parametrize("held_out", [True, False])
def test_makers_keep_to_their_side(sources: Sources, held_out: bool) -> None:
    draw = random.Random(0)
    for _ in range(50):
        span = year_span(sources.words, draw, held_out=held_out)
        assert int(span.answer) > int(span.labels["start"])
        total = addition(sources.words, draw, held_out=held_out)
        first, second = map(int, re.findall(r"\d+", total.prompt))
        assert int(total.answer) == first + second
        assert is_held_out("sum", *sorted((first, second))) == held_out
        sentence = indirect_object(sources.words, draw, held_out=held_out)
        assert sentence.prompt.count(sentence.labels["subject"]) == 2
        assert sentence.prompt.count(sentence.answer.strip()) >= 1


def test_questions_are_sound() -> None:
    asked = questions()
    kinds = [q.kind for q in asked]
    assert min(kinds.count("definitional"), kinds.count("associative")) >= 18
    assert len({q.id for q in asked}) == len(asked)
    for q in asked:
        assert q.correct != q.incorrect
        words = re.findall(r"\w+", q.prompt + " " + q.corrupted_prompt)
        assert q.correct.strip() not in words
        assert q.incorrect.strip() not in words
        start, end = q.subject_span
        assert q.prompt[start:end].lower() == q.subject.lower()
        start, end = q.corrupted_subject_span
        assert q.corrupted_prompt[start:end].lower() == q.corrupted_subject.lower()
        assert q.correct.strip() in q.correct_answer
        assert q.correct_answer != q.wrong_answer


def test_claps_two_questions_are_there() -> None:
    prompts = {q.prompt: q.correct for q in questions()}
    definition = "Interictal epileptiform discharges are defined as abnormal electrical activity"
    assert prompts[definition] == " between"
    assert prompts["Interictal epileptiform discharges are associated with"] == " epilepsy"
