"""Records on a model before and after an edit, and what is kept of them."""

from __future__ import annotations

import json
from dataclasses import replace
from math import inf

import pytest
import torch

from engramscope.edit.delta import Dense
from engramscope.edit.edit import Edit, fingerprint, identity
from engramscope.errors import InputError
from engramscope.evaluate import (
    MEASURES,
    TABLE4,
    CaseResult,
    EvaluateOptions,
    References,
    evaluate_edit,
    evaluate_record,
    evaluate_records,
    knowledge,
    perplexity_of,
    protocol_of,
    records_hash,
    tidy,
)
from engramscope.evaluate.entropy import ngram_entropy
from engramscope.models.load import load_model
from engramscope.models.model import Model
from tests.edit.small import shared_model, tiny_with_tokenizer
from tests.evaluate.small import LONG, RECORD, logits_of_a_model

SHORT = EvaluateOptions(length=24)
REFERENCES = References.from_texts(
    {"P1|Q2": ("Anna likes the drum.", "The drum is big.")}, {"Anna": ("Anna says the",)}
)


def towards(model: Model, answer: str) -> Edit:
    """An edit that makes an answer likely after everything: its row of the output head is moved."""
    name = "transformer.ln_f.bias"
    value = dict(model.hf.named_parameters())[name].detach()
    token = model.tokenizer(answer).input_ids[0]
    row = model.hf.get_output_embeddings().weight[token].detach()
    delta = 40 * row / row.norm()
    return Edit(
        "towards", {name: Dense(delta.clone())}, (RECORD.fact,), {}, 0, identity(model), {name: fingerprint(value)}
    )


def test_every_measure_of_the_table_is_there() -> None:
    result = evaluate_record(shared_model("gpt2"), RECORD, options=SHORT, references=REFERENCES)
    assert set(TABLE4) <= set(result.values)
    assert set(result.values) == {name for name in MEASURES if "KL" not in name and not name.startswith("zsRE")}
    counts = {name: sum(row.measure == name for row in result.rows) for name in result.values}
    assert counts["ES"] == counts["ES_gen"] == counts["RS"] == counts["essence"] == 1
    assert counts["PS"] == counts["PM"] == counts["PS_gen"] == 2
    assert counts["NS"] == counts["NS_gen"] == counts["NS+"] == counts["GE"] == 3
    assert result.values["GE"] == pytest.approx(sum(ngram_entropy(text) for text in result.texts) / 3)
    assert result.values["RS"] == REFERENCES.score("P1|Q2", result.texts)
    assert result.values["essence"] == pytest.approx(perplexity_of(shared_model("gpt2"), ["Anna says the"]).value)


def test_parts_can_be_left_out() -> None:
    options = EvaluateOptions(generation=False, generated=False, plus=False, divergence=False)
    result = evaluate_record(shared_model("gpt2"), RECORD, options=options, references=REFERENCES)
    assert set(result.values) == {f"{kind}{what}" for kind in "EPN" for what in ("S", "M", "S_acc")}
    assert (result.texts, dict(result.distributions)) == ((), {})


def test_an_edit_is_measured_before_and_after_and_the_model_is_left_alone() -> None:
    model = tiny_with_tokenizer("gpt2")
    before = {name: value.clone() for name, value in model.hf.state_dict().items()}
    state = torch.get_rng_state()
    found = evaluate_edit(
        model, towards(model, " drum"), RECORD, options=SHORT, references=REFERENCES, texts=["Anna says"]
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.hf.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf.modules())
    assert found.before.rows == evaluate_record(model, RECORD, options=SHORT, references=REFERENCES).rows
    after = found.after.values
    assert (after["ES"], after["PS"], after["ES_acc"], after["NS"]) == (1.0, 1.0, 1.0, 0.0)
    assert after["EM"] > 0.5 > found.before.values["EM"]
    # " drum drum drum": the answer is whole, and another word follows
    assert (after["ES_gen"], after["PS_gen"], after["NS_gen"]) == (1.0, 1.0, 0.0)
    assert after["NKL"] > 0.1
    assert after["GE"] < found.before.values["GE"]
    assert found.health.after is not None
    assert found.health.norms.keys() == {"transformer.ln_f.bias"}


def test_what_is_known_before_can_be_handed_in() -> None:
    model = tiny_with_tokenizer("gpt2")
    edit = towards(model, " drum")
    before = evaluate_record(model, RECORD, options=SHORT)
    found = evaluate_edit(model, edit, RECORD, options=SHORT, before=before)
    assert found.before is before
    assert found.after == evaluate_edit(model, edit, RECORD, options=SHORT).after


def test_facts_that_the_model_knows_are_counted() -> None:
    model = tiny_with_tokenizer("gpt2")
    unasked = replace(RECORD, id="unasked", fact=replace(RECORD.fact, true=None))
    records = [RECORD, LONG, unasked]
    options = EvaluateOptions(generation=False, generated=False, plus=False)
    with towards(model, " ball").applied(model):
        found = knowledge(evaluate_records(model, records, options=options))
    assert (found.known, found.unknown, found.unasked) == (("anna",), ("bob",), ("unasked",))
    assert found.sentence == (
        "Before the edit the model gives the true answer to 1 of 2 facts. 1 more do not say what was true."
    )
    assert "not known" in knowledge([]).sentence


def test_results_survive_json() -> None:
    model = tiny_with_tokenizer("gpt2")
    before = evaluate_record(model, RECORD, options=SHORT)
    with logits_of_a_model(model, lambda logits: logits * float("nan")):
        result = evaluate_record(model, RECORD, options=SHORT, before=before)
    assert result.values["NKL"] == inf
    text = json.dumps(result.as_dict(), allow_nan=False)
    again = CaseResult.from_dict(json.loads(text))
    assert again == result
    assert again.values == result.values
    assert again.collapsed == result.collapsed


def test_tidy_rows() -> None:
    result = evaluate_record(shared_model("gpt2"), RECORD, options=SHORT)
    rows = tidy([result], editor="none", seed=0)
    assert len(rows) == len(result.rows)
    assert rows[0] == {"editor": "none", "seed": 0, "record": "anna", "measure": "ES", "prompt": 0,
                       "value": result.rows[0].value, "status": "ok"}  # fmt: skip


def test_records_must_be_told_apart_and_be_the_same_before_and_after() -> None:
    model = shared_model("gpt2")
    with pytest.raises(InputError, match="Two records are called 'anna'"):
        evaluate_records(model, [RECORD, RECORD])
    with pytest.raises(InputError, match="other records"):
        evaluate_records(model, [RECORD], before=[CaseResult("bob", ())])


def test_several_records_equal_one_by_one_with_everything() -> None:
    model = shared_model("llama")
    together = evaluate_records(model, [LONG, RECORD], options=SHORT, references=REFERENCES)
    for result, record in zip(together, (LONG, RECORD), strict=True):
        alone = evaluate_record(model, record, options=SHORT, references=REFERENCES)
        assert result.texts == alone.texts
        assert {row.measure for row in result.rows} == {row.measure for row in alone.rows}
        for name, value in result.values.items():
            assert value == pytest.approx(alone.values[name], abs=1e-5)


def test_the_protocol_says_how_and_on_what() -> None:
    found = protocol_of([RECORD, LONG], SHORT, REFERENCES, data="records.json", data_sha256="ab")
    assert json.loads(json.dumps(found)) == found
    assert found["measures"]["ES"]["reading"] == "teacher-forced"
    assert found["measures"]["ES_gen"]["reading"] == "generated"
    assert found["measures"]["RS"]["case"] == "all prompts together"
    assert found["records"] == {
        "n": 2,
        "sha256": records_hash([RECORD, LONG]),
        "file": "records.json",
        "file_sha256": "ab",
    }
    assert found["references"]["comparable"] is False
    assert found["options"]["length"] == 24


def test_the_hash_of_records_depends_on_their_words_and_order_only() -> None:
    assert records_hash([RECORD, LONG]) != records_hash([LONG, RECORD])
    assert records_hash([RECORD]) == records_hash([replace(RECORD, source="elsewhere")])
    assert records_hash([RECORD]) != records_hash([replace(RECORD, paraphrases=("Anna",))])


def test_the_bundled_model_knows_its_people() -> None:
    """A real tokenizer, and facts that the model states without doubt."""
    from engramscope.records.bundled import bundled_records

    model = load_model("mini", device="cpu", check=False)
    records = bundled_records("test")[:12]
    found = evaluate_records(model, records, options=EvaluateOptions(generation=False, divergence=False))
    assert len(knowledge(found).known) >= 11
    values = [result.values for result in found]
    assert sum(case["ES"] for case in values) <= 1
    assert sum(case["NS"] for case in values) >= 11
    assert sum(case["NS_gen"] for case in values) >= 11


def test_an_edit_beside_half_precision_is_seen_with_and_without_a_cache() -> None:
    """In half precision an edit is a hook on a module; scoring and generation must both pass through it."""
    model = tiny_with_tokenizer("gpt2")
    model.hf.to(torch.bfloat16)
    name = "transformer.h.2.mlp.c_proj.weight"
    value = dict(model.hf.named_parameters())[name].detach()
    row = model.hf.get_output_embeddings().weight[model.tokenizer(" drum").input_ids[0]].detach().float()
    delta = torch.ones(value.shape[0], 1) * (300 * row / row.norm())
    edit = Edit("towards", {name: Dense(delta)}, (RECORD.fact,), {}, 0, identity(model), {name: fingerprint(value)})
    found = evaluate_edit(model, edit, RECORD, options=SHORT)
    assert found.before.values["EM"] != found.after.values["EM"]
    assert found.before.texts != found.after.texts
    assert not found.after.collapsed
    assert found.before == evaluate_record(model, RECORD, options=SHORT)


def test_two_records_draw_numbers_of_their_own() -> None:
    model = shared_model("gpt2")
    twin = replace(RECORD, id="twin")
    one, other = evaluate_records(model, [RECORD, twin], options=SHORT)
    assert all(first != second for first, second in zip(one.texts, other.texts, strict=True))
    assert len({text[len("Anna says") :] for text in (*one.texts, *other.texts)}) == 6


def test_essence_reads_the_first_hundred_tokens_of_all_texts_in_a_row() -> None:
    model = shared_model("gpt2")
    texts = ("Anna likes the ball",) * 40
    references = References.from_texts({}, {"Anna": texts})
    found = evaluate_record(model, RECORD, options=SHORT, references=references).values["essence"]
    whole = perplexity_of(model, [" ".join(texts)])
    assert whole.tokens > 120
    assert found == perplexity_of(model, [" ".join(texts)], first=100).value != whole.value
