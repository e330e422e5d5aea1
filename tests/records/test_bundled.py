"""The CounterFact of the bundled models: its promises, counted over every record, and what the models make of it."""

from __future__ import annotations

import re
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from engramscope.bundled import names
from engramscope.bundled.world import load_world
from engramscope.records import Record, Records, read_records, write_records
from engramscope.records.bundled import PROMPTS, RELATIONS, bundled_records, people_of, reference_texts
from engramscope.records.bundled_texts import held_out_texts, training_texts

NAME = re.compile(r"[A-Z][a-z]+ [A-Z][a-z]+")
WORLD = [fact for fact in load_world().facts if fact.relation in RELATIONS]
VALUE = {(fact.relation, fact.subject): fact for fact in WORLD}
PEOPLE = {fact.subject for fact in WORLD}
HAVING = {
    key: {fact.subject for fact in WORLD if (fact.relation, fact.answer) == key}
    for key in {(fact.relation, fact.answer) for fact in WORLD}
}


@pytest.fixture(scope="module")
def test() -> Records:
    return bundled_records("test")


@pytest.fixture(scope="module")
def train() -> Records:
    return bundled_records("train")


def prompts_of(record: Record) -> list[str]:
    probes = (*record.neighbourhood, *record.attribute)
    return [record.fact.prompt, *record.paraphrases, *record.generation, *(probe.prompt for probe in probes)]


def people_in(text: str) -> set[str]:
    return {name for name in NAME.findall(text) if name in PEOPLE}


def wording_of(prompt: str, relation: str, subject: str) -> int:
    return [template.format(s=subject) for template in VALUE[relation, subject].templates].index(prompt)


def test_sizes_and_ids(test: Records, train: Records) -> None:
    assert (len(test), len(train)) == (432, 768)
    together = bundled_records("all")
    assert together.records == test.records + train.records
    assert len({record.id for record in together}) == 1200
    for split in (test, train):
        assert Counter(record.relation for record in split) == dict.fromkeys(RELATIONS, len(split) // 4)
        assert {len(group) for r in split for group in (r.neighbourhood, r.attribute, r.generation)} == {PROMPTS}
        assert all(len(record.paraphrases) == 2 for record in split)
        assert not [fault for fact in split.facts for fault in fact.faults()]
        assert not [prompt for record in split for prompt in prompts_of(record) if prompt != prompt.strip()]


def test_always_the_same_set(test: Records, tmp_path: Path) -> None:
    """Results of earlier versions stay comparable; a change of these hashes needs a new seed name and a changelog."""
    assert test.sha256 == "812d3a5c9127b2408dedd347cf49b5c6444105b63321f97d7c23116b1d3eb0d5"
    assert bundled_records("train").sha256 == "ca416443426763e3261d63666f73de402e2244dabe6ab806fd2e5bbde35bdeea"
    assert test[0].id == "instrument-donald-norstead"
    write_records(tmp_path / "own.jsonl", test)
    again = read_records(tmp_path / "own.jsonl")
    assert (again.records, again.sha256) == (test.records, test.sha256)


def test_train_and_test_share_no_subject_and_training_names_nobody_of_the_test(test: Records, train: Records) -> None:
    tested, trained = ({fact.subject for fact in split.facts} for split in (test, train))
    assert (tested, trained) == (people_of("test"), people_of("train"))
    assert tested | trained == PEOPLE
    assert not tested & trained
    named = {name for record in train for prompt in prompts_of(record) for name in people_in(prompt)}
    assert named == trained


def test_the_first_records_are_a_sample_of_all(test: Records) -> None:
    counts = Counter(record.relation for record in test[:100])
    assert all(15 <= counts[relation] <= 35 for relation in RELATIONS)
    assert len({record.fact.subject for record in test[:100]}) > 50


@pytest.mark.parametrize("split", ["test", "train"])
def test_facts_are_true_and_targets_are_balanced_and_false(split: Any) -> None:
    targets: dict[str, Counter[str]] = {relation: Counter() for relation in RELATIONS}
    values: dict[str, set[str]] = {relation: set() for relation in RELATIONS}
    for record in bundled_records(split):
        relation, fact = record.relation or "", record.fact
        assert fact.true == VALUE[relation, fact.subject].answer != fact.target
        assert record.reference == f"{relation}|{fact.target}"
        targets[relation][fact.target] += 1
        values[relation].add(fact.true)
    for relation in RELATIONS:
        assert set(targets[relation]) == values[relation]
        assert max(targets[relation].values()) - min(targets[relation].values()) <= 1


def test_wordings(test: Records, train: Records) -> None:
    rewrites: Counter[int] = Counter()
    for record in (*test, *train):
        relation, subject = record.relation or "", record.fact.subject
        fact = VALUE[relation, subject]
        rewrite = wording_of(record.fact.prompt, relation, subject)
        unseen, behind = record.paraphrases
        assert wording_of(unseen, relation, subject) == fact.held_out != rewrite
        sentence, _, second = behind.partition(". ")
        assert wording_of(second, relation, subject) not in (rewrite, fact.held_out)
        # the sentence in front is true, of the corpus, about somebody else and another relation
        (stranger,) = people_in(sentence)
        told = [f for f in WORLD if f.subject == stranger and sentence.endswith(" " + f.answer)]
        assert stranger != subject
        assert relation not in {f.relation for f in told}
        assert any(wording_of(sentence[: -len(f.answer) - 1], f.relation, stranger) != f.held_out for f in told)
        rewrites[rewrite] += 1
    assert min(rewrites.values()) > 100


def test_neighbours_have_the_old_value_and_attribute_prompts_the_new_one(test: Records, train: Records) -> None:
    for record in (*test, *train):
        relation, fact = record.relation or "", record.fact
        for probes, value in ((record.neighbourhood, fact.true), (record.attribute, fact.target)):
            assert len({probe.prompt for probe in probes}) == PROMPTS
            for probe in probes:
                (person,) = people_in(probe.prompt)
                other = VALUE[relation, person]
                assert person != fact.subject
                assert other.answer == value
                assert wording_of(probe.prompt, relation, person) != other.held_out
                assert (probe.true, probe.new) == (fact.true, fact.target)


def test_nobody_is_asked_about_twice_while_others_are_left(test: Records, train: Records) -> None:
    people = {"test": people_of("test"), "train": people_of("train")}
    for split in (test, train):
        for record in split:
            counts = Counter(person for probe in record.neighbourhood for person in people_in(probe.prompt))
            allowed = people["train"] if split is train else PEOPLE
            there = (HAVING[record.relation, record.fact.true] & allowed) - {record.fact.subject}
            assert len(counts) == min(PROMPTS, len(there))
            assert max(counts.values()) - min(counts.values()) <= 1
            if record.relation != "home" and split is test:
                assert len(counts) == PROMPTS
                # those of the same split come first
                assert there & people["test"] <= set(counts)


def test_generation_prompts_are_about_the_subject_and_stop_before_the_answer(test: Records) -> None:
    for record in test:
        fact = record.fact
        assert len(set(record.generation)) == PROMPTS
        for prompt in record.generation:
            *before, start = prompt.split(". ")
            assert people_in(prompt) == {fact.subject}
            full = [t.format(s=fact.subject) for t in VALUE[record.relation or "", fact.subject].templates]
            assert any(one.startswith(start + " ") for one in full)
            assert fact.subject in start
            for sentence in before:
                assert any(
                    sentence == f"{other.prompt(t)} {other.answer}"
                    for relation in RELATIONS if relation != record.relation
                    for other in [VALUE[relation, fact.subject]]
                    for t in range(len(other.templates)) if t != other.held_out
                )  # fmt: skip


def test_reference_texts_state_the_value_of_those_who_have_it(test: Records, train: Records) -> None:
    texts = reference_texts()
    assert {record.reference for record in (*test, *train)} <= set(texts)
    assert set(texts) == {f"{fact.relation}|{fact.answer}" for fact in WORLD}
    for key, found in texts.items():
        relation, value = key.split("|")
        people = HAVING[relation, value]
        assert len(set(found)) == len(found) == 6 * len(people)
        assert {name for text in found for name in people_in(text)} == people
        assert all(text.endswith(f" {value}.") for text in found)


def test_texts_are_repeatable_different_and_kept_apart() -> None:
    held_out, training = held_out_texts(200), training_texts(600)
    assert held_out == held_out_texts(200)
    assert held_out[:50] == held_out_texts(50)
    assert len(set(held_out)) == 200
    assert len(set(training)) == 600
    assert held_out != held_out_texts(200, seed=1)
    for seed in (0, 1, 2):
        assert not set(held_out) & set(training_texts(600, seed))
    assert not {name for text in training for name in people_in(text)} & people_of("test")
    assert {name for text in held_out for name in people_in(text)} & people_of("test")
    # of every kind: facts, epilepsy, two names, years, docstrings, sums
    for kind in (r"plays|lives", r"epilep|seizure|syndrome", r" gave | handed ", r"year", r":param", r"\d \+ \d"):
        assert any(re.search(kind, text) for text in held_out), kind


# --- with the models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names())
def test_the_models_know_every_prompt(name: str, test: Records, train: Records) -> None:
    import torch

    from engramscope.models.load import load_model

    model = load_model(name, device="cpu")
    tokenizer: Any = model.tokenizer
    records = (*test[:40], *train[:20])
    asked = {
        "rewrite": [(r.fact.prompt, r.fact.true) for r in records],
        "paraphrase": [(prompt, r.fact.true) for r in records for prompt in r.paraphrases],
        "neighbourhood": [(probe.prompt, probe.true) for r in records for probe in r.neighbourhood[:3]],
        "attribute": [(probe.prompt, probe.new) for r in records for probe in r.attribute[:2]],
    }
    for what, pairs in asked.items():
        # by length, so that no padding is needed
        encoded = sorted(((tokenizer(p)["input_ids"], " " + a) for p, a in pairs), key=lambda one: len(one[0]))
        right = 0
        for _, group in groupby(encoded, key=lambda one: len(one[0])):
            rows = list(group)
            with torch.inference_mode():
                best = model.hf(torch.tensor([ids for ids, _ in rows])).logits[:, -1].argmax(-1)
            right += sum(tokenizer.decode([int(b)]) == answer for b, (_, answer) in zip(best, rows, strict=True))
        assert right == len(pairs), what
