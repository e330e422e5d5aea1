"""Which facts are chosen: against plain forwards, and with partners that stand token for token in their place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from engramscope.errors import InputError
from engramscope.locate_edit import facts
from engramscope.locate_edit.facts import NO_PARTNER, NO_TRUE, UNKNOWN, UNSOUND, choose_facts, first_token_text
from engramscope.models import Model
from engramscope.records import Fact, Record
from tests.edit.small import tiny_with_tokenizer


def _continues(model: Model, prompt: str, answer: str) -> bool:
    """Whether greedy decoding writes the answer, a token at a time, without anything from the package."""
    ids = model.tokenizer(prompt, return_tensors="pt").input_ids
    for token in model.tokenizer(" " + answer, add_special_tokens=False).input_ids:
        with torch.no_grad():
            best = int(model.hf(ids, attention_mask=torch.ones_like(ids)).logits[0, -1].argmax())
        if best != token:
            return False
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    return True


def test_facts_are_stated_right_and_have_a_partner_token_for_token(mini: Model, records: Any) -> None:
    wrong = [replace(one, id=f"wrong-{at}", fact=replace(one.fact, true="Lima", target="Oslo"))
             for at, one in enumerate(records[:30])]  # fmt: skip
    chosen = choose_facts(mini, [*records[:60], *wrong], 12, seed=1)
    assert len(chosen.records) == len(chosen.pairs) == 12
    assert chosen.looked_at == 12 + sum(chosen.left_out.values())
    assert chosen.left_out[UNKNOWN] > 0
    by_id = {record.id: record for record in records}
    for record, pair in zip(chosen.records, chosen.pairs, strict=True):
        assert _continues(mini, record.fact.prompt, str(record.fact.true))
        assert pair.corrupted is not None
        assert pair.correct == (f" {record.fact.true}",)
        (start, end), (other_start, other_end) = pair.spans["subject"], pair.corrupted_spans["subject"]
        other = pair.corrupted[other_start:other_end]
        assert pair.clean[start:end] == record.fact.subject != other
        assert pair.corrupted == pair.clean[:start] + other + pair.clean[end:]
        clean, corrupted = (mini.tokenizer(text).input_ids for text in (pair.clean, pair.corrupted))
        assert len(clean) == len(corrupted)
        assert pair.incorrect != pair.correct
        same = [one for one in [*records[:60], *wrong] if one.fact.subject == other and one.relation == record.relation]
        assert pair.incorrect[0].strip() in {one.fact.true for one in same}
        assert by_id[record.id] is record


def test_the_seed_decides_which_and_the_file_in_which_order(mini: Model, records: Any) -> None:
    one, same, other = (choose_facts(mini, records[:80], 8, seed=seed) for seed in (0, 0, 1))
    assert one.pairs == same.pairs
    assert one.pairs != other.pairs
    places = [records.index(record) for record in one.records]
    assert places == sorted(places)


def test_what_cannot_be_used_is_counted_by_its_reason(mini: Model, records: Any) -> None:
    good = list(records[:40])
    bad = [
        replace(good[0], id="no-true", fact=replace(good[0].fact, true=None)),
        replace(
            good[1], id="twice", fact=replace(good[1].fact, prompt=f"{good[1].fact.subject} {good[1].fact.prompt}")
        ),
        replace(good[2], id="alone", relation="a relation of its own"),
    ]
    chosen = choose_facts(mini, [*good, *bad], 1000, seed=0)
    assert chosen.left_out[NO_TRUE] == chosen.left_out[UNSOUND] == chosen.left_out[NO_PARTNER] == 1
    assert chosen.looked_at == 43


def test_too_few_facts_are_refused_with_the_reasons(mini: Model, records: Any) -> None:
    nobody = [replace(one, fact=replace(one.fact, true="Oslo", target="Lima")) for one in records[:6]]
    with pytest.raises(InputError, match=r"Of 6 records 0 can be traced and edited.*6: the model does not state it"):
        choose_facts(mini, nobody, 10)
    with pytest.raises(InputError, match="share the id"):
        choose_facts(mini, [*records[:2], records[0]], 10)


def test_a_text_that_is_too_long_leaves_out_its_record_only(mini: Model, records: Any) -> None:
    good = list(records[:30])
    start = good[0].fact.subject
    long = replace(good[0], id="long", fact=replace(good[0].fact, prompt="word " * 3000 + f"of {start} is"))
    assert choose_facts(mini, [*good, long], 1000).left_out[UNSOUND] == 1


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_first_token_of_a_long_answer_as_text(family: str) -> None:
    model = tiny_with_tokenizer(family)
    prompt = "In the park Anna lost the big red"
    for answer in ("drum", "coat kite", "zebra"):
        text = first_token_text(model, prompt, answer)
        assert text is not None
        assert f" {answer}".startswith(text)
        before = model.tokenizer(prompt).input_ids
        assert (
            model.tokenizer(prompt + text).input_ids
            == model.tokenizer(f"{prompt} {answer}").input_ids[: len(before) + 1]
        )


def test_answers_that_begin_alike_are_no_partners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "states_right", lambda _model, asks: [True] * len(asks))
    model = tiny_with_tokenizer("gpt2")
    records = [
        Record(f"r{at}", Fact(f"The child called {name} plays with the", name, "kite", true, f"r{at}"), "toy")
        for at, (name, true) in enumerate([("Anna", "ball drum"), ("Clara", "ball boat"), ("Greta", "ball coat")])
    ]
    with pytest.raises(InputError, match=f"3: {NO_PARTNER}"):
        choose_facts(model, records, 3)
    other = [replace(one, fact=replace(one.fact, true=f"{word} ball"))
             for one, word in zip(records, ("drum", "boat", "coat"), strict=True)]  # fmt: skip
    chosen = choose_facts(model, other, 3)
    assert len(chosen.records) == 3
    assert {pair.correct for pair in chosen.pairs} == {(" drum",), (" boat",), (" coat",)}
    assert all(pair.incorrect[0] in {" drum", " boat", " coat"} - {pair.correct[0]} for pair in chosen.pairs)


def test_partners_have_as_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "states_right", lambda _model, asks: [True] * len(asks))
    model = tiny_with_tokenizer("gpt2")
    names = {"Anna": "ball", "Zoroaster": "drum", "Bob": "kite", "Clara": "boat"}
    assert len(model.tokenizer("Zoroaster").input_ids) > 1
    records = [
        Record(f"r{at}", Fact(f"The child called {name} plays with the", name, "coat", true, f"r{at}"), "toy")
        for at, (name, true) in enumerate(names.items())
    ]
    chosen = choose_facts(model, records, 10)
    assert chosen.left_out == {NO_PARTNER: 1}
    assert not any("Zoroaster" in f"{pair.clean} {pair.corrupted}" for pair in chosen.pairs)
