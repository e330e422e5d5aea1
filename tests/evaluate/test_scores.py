"""Teacher-forced scores: against a loop over single texts, and by hand."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log, nan

import numpy as np
import pytest
import torch

from engramscope.edit.tokens import encode
from engramscope.errors import InputError
from engramscope.evaluate.answers import AnswerScore, score_answers
from engramscope.evaluate.evaluate import EvaluateOptions, evaluate_record, evaluate_records
from engramscope.evaluate.readings import NO_TOKEN, Readings
from engramscope.evaluate.scores import Asked, divergence, divergence_rows, prompts_of, score_rows
from engramscope.evaluate.zsre import zsre_rows
from engramscope.models.model import Model
from engramscope.records.record import Probe
from tests.edit.small import EDITABLE, shared_model, tiny_with_tokenizer
from tests.evaluate.small import LONG, RECORD, logits_of_a_model

SCORES_ONLY = EvaluateOptions(generation=False, generated=False, plus=False, divergence=False)


def naive(model: Model, prompt: str, answer: str) -> tuple[float, int]:
    """Mean NLL and number of right tokens of one answer, each token in a forward of its own, without padding."""
    ask = encode(model, [prompt], [answer])[0]
    total, right = 0.0, 0
    for place, token in enumerate(ask.target):
        ids = torch.tensor([ask.prompt + ask.target[:place]])
        logits = model.logits(ids)[0, -1].double()
        total -= float(torch.log_softmax(logits, -1)[token])
        right += int(logits.argmax()) == token
    return total / len(ask.target), right


@pytest.mark.parametrize("family", EDITABLE)
def test_scores_equal_a_loop_over_single_texts(family: str) -> None:
    model = shared_model(family)
    asked = [*prompts_of(RECORD, plus=True), *prompts_of(LONG, plus=True)]
    questions = [(one.prompt, text) for one in asked for text in (one.true, one.new) if text]
    scores = score_answers(model, questions, Readings(model))
    expected = [naive(model, *question) for question in questions]
    assert [score.nll for score in scores] == pytest.approx([nll for nll, _ in expected], abs=2e-5)
    assert [score.right for score in scores] == [right for _, right in expected]
    assert {score.tokens for score in scores} == {1, 2, 3}


def test_the_size_of_a_batch_changes_nothing() -> None:
    model = shared_model("gpt_neo")
    questions = [(one.prompt, text) for one in prompts_of(LONG, plus=True) for text in ("kite", "coat boat drum")]
    whole = score_answers(model, questions, Readings(model))
    for tokens in (1, 20, 40):
        small = score_answers(model, questions, Readings(model, tokens))
        assert [one.nll for one in small] == pytest.approx([one.nll for one in whole], abs=1e-5)


def test_the_beginning_of_a_text_is_read_from_the_text() -> None:
    model = shared_model("gpt2")
    rows: list[int] = []
    handle = model.hf.register_forward_pre_hook(
        lambda _m, _a, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        readings = Readings(model)
        readings.read({(2,): (3,), (2, 3): (4,), (2, 3, 4): (5,), (2, 4): (), (7, 3): (1,)})
        readings.read({(2, 3): (4,), (7, 3): ()})
        assert rows == [3]
        readings.read({(2, 3): (9,)})
        assert rows == [3, 1]
    finally:
        handle.remove()
    alone = torch.log_softmax(model.logits(torch.tensor([[2, 3]]))[0, -1], -1)
    assert readings.log_prob((2, 3), 4) == pytest.approx(float(alone[4]), abs=1e-6)
    assert readings.best((2, 3)) == int(alone.argmax())


def test_the_nine_measures_of_a_record_follow_from_the_scores() -> None:
    model = shared_model("llama")
    values = evaluate_record(model, RECORD, options=SCORES_ONLY).values
    true, new = RECORD.fact.true or "", RECORD.fact.target
    for prefix, prompts, sign in (
        ("E", [RECORD.fact.prompt], 1),
        ("P", RECORD.paraphrases, 1),
        ("N", [probe.prompt for probe in RECORD.neighbourhood], -1),
    ):
        gaps = [naive(model, prompt, true)[0] - naive(model, prompt, new)[0] for prompt in prompts]
        masses = [exp(-naive(model, prompt, new)[0]) - exp(-naive(model, prompt, true)[0]) for prompt in prompts]
        assert values[f"{prefix}S"] == np.mean([sign * gap > 0 for gap in gaps])
        assert values[f"{prefix}M"] == pytest.approx(np.mean([sign * mass for mass in masses]), abs=1e-6)
        better = new if sign == 1 else true
        assert values[f"{prefix}S_acc"] == np.mean([naive(model, prompt, better)[1] == 1 for prompt in prompts])


@pytest.mark.parametrize(
    ("new", "true", "expected"),
    [
        # the nll of new and true; ES, EM, NS, NM
        (log(2), log(4), (1.0, 0.25, 0.0, -0.25)),
        (log(4), log(2), (0.0, -0.25, 1.0, 0.25)),
        (log(2), log(2), (0.0, 0.0, 0.0, 0.0)),
    ],
)
def test_by_hand_and_a_tie_is_a_failure_both_ways(new: float, true: float, expected: tuple[float, ...]) -> None:
    asked = [Asked("rewrite", 0, "p", "true", "new"), Asked("neighbourhood", 0, "p", "true", "new")]
    scores = {("p", "true"): AnswerScore(true, 1, 0), ("p", "new"): AnswerScore(new, 2, 1)}
    rows = {row.measure: row.value for row in score_rows("r", asked, scores)}
    assert tuple(rows[name] for name in ("ES", "EM", "NS", "NM")) == pytest.approx(expected)
    assert rows["ES_acc"] == rows["NS_acc"] == 0.0


def test_equal_answers_tie_in_a_real_model() -> None:
    record = replace(RECORD, neighbourhood=(Probe("Clara", "ball", "ball"),), fact=replace(RECORD.fact, true="drum"))
    values = evaluate_record(shared_model("gpt2"), record, options=SCORES_ONLY).values
    assert (values["ES"], values["EM"], values["NS"], values["NM"]) == (0.0, 0.0, 0.0, 0.0)


def test_a_case_is_the_mean_of_its_prompts() -> None:
    result = evaluate_record(shared_model("gptj"), RECORD, options=SCORES_ONLY)
    rows = [row.value for row in result.rows if row.measure == "NM"]
    assert len(rows) == 3
    assert result.values["NM"] == pytest.approx(sum(rows) / 3)


def test_a_record_without_true_answers_has_no_comparison_but_an_accuracy() -> None:
    record = replace(RECORD, fact=replace(RECORD.fact, true=None), neighbourhood=(Probe("Clara", "ball", ""),))
    result = evaluate_record(shared_model("gpt2"), record, options=SCORES_ONLY)
    assert set(result.values) == {"ES_acc", "PS_acc", "NS_acc"}
    assert result.known is None


def test_one_batch_of_records_equals_records_one_by_one() -> None:
    model = shared_model("mistral")
    together = evaluate_records(model, [RECORD, LONG], options=SCORES_ONLY)
    for result, record in zip(together, (RECORD, LONG), strict=True):
        alone = evaluate_record(model, record, options=SCORES_ONLY)
        assert [(row.measure, row.prompt) for row in result.rows] == [(row.measure, row.prompt) for row in alone.rows]
        assert [row.value for row in result.rows] == pytest.approx([row.value for row in alone.rows], abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_scored_in_float32(dtype: torch.dtype) -> None:
    model = tiny_with_tokenizer("gpt2")
    model.hf.to(dtype)
    # probabilities that add up to 1 to six digits cannot come from a softmax in half precision
    readings = Readings(model)
    readings.read({}, whole=[(2, 3, 4)])
    whole = readings.distribution((2, 3, 4))
    assert whole.dtype == np.float32
    assert np.exp(whole.astype(np.float64)).sum() == pytest.approx(1.0, abs=1e-6)
    logits = model.logits(torch.tensor([[2, 3, 4]]))[0, -1].float()
    np.testing.assert_allclose(whole, torch.log_softmax(logits, -1).numpy(), atol=1e-5)


def test_a_bos_token_stands_in_front_once() -> None:
    model = shared_model("llama")
    rows: list[list[int]] = []
    handle = model.hf.register_forward_pre_hook(
        lambda _m, _a, kwargs: rows.extend(kwargs["input_ids"].tolist()), with_kwargs=True
    )
    try:
        evaluate_record(model, RECORD, options=SCORES_ONLY.model_copy(update={"plus": True}))
    finally:
        handle.remove()
    bos = model.tokenizer.bos_token_id
    length = len(max(rows, key=len))
    assert rows
    assert all(row[0] == bos and row[1] != bos for row in rows if len(row) == length)


def test_plus_puts_the_statement_in_front() -> None:
    asked = [one for one in prompts_of(RECORD, plus=True) if one.kind == "plus"]
    assert asked[1].prompt == "In the park Anna lost the big red drum. Clara"
    assert (asked[1].true, asked[1].new, asked[1].better) == ("ball", "drum", "ball")
    model = shared_model("phi")
    values = evaluate_record(model, RECORD, options=SCORES_ONLY.model_copy(update={"plus": True})).values
    losses = [(naive(model, one.prompt, "drum")[0], naive(model, one.prompt, "ball")[0]) for one in asked]
    assert values["NS+"] == np.mean([drum > ball for drum, ball in losses])
    assert values["NM+"] == pytest.approx(np.mean([exp(-ball) - exp(-drum) for drum, ball in losses]), abs=1e-6)
    assert abs(values["NM+"] - values["NM"]) > 1e-5


def test_zsre_counts_tokens() -> None:
    asked = [Asked("rewrite", 0, "q", None, "new"), Asked("neighbourhood", 0, "n", "kept", None),
             Asked("plus", 0, "x", "kept", None)]  # fmt: skip
    scores = {
        ("q", "new"): AnswerScore(1.0, 4, 3),
        ("n", "kept"): AnswerScore(1.0, 2, 1),
        ("x", "kept"): AnswerScore(1, 1, 1),
    }
    rows = {row.measure: row.value for row in zsre_rows("r", asked, scores)}
    assert rows == {"zsRE efficacy": 0.75, "zsRE specificity": 0.5}


def test_zsre_on_a_model_equals_a_loop() -> None:
    model = shared_model("gpt_neox")
    values = evaluate_record(model, LONG, options=SCORES_ONLY.model_copy(update={"zsre": True})).values
    assert values["zsRE efficacy"] == naive(model, LONG.fact.prompt, "coat kite")[1] / 2
    assert values["zsRE specificity"] == naive(model, LONG.neighbourhood[0].prompt, "kite")[1]


def test_divergence_by_hand() -> None:
    one, other = (np.log(np.array(p, dtype=np.float32)) for p in ([0.5, 0.25, 0.25], [0.25, 0.5, 0.25]))
    assert divergence(one, other) == pytest.approx(0.5 * log(2) - 0.25 * log(2), abs=1e-7)
    # the direction matters: before comes first
    skewed = np.log(np.array([0.9, 0.05, 0.05], dtype=np.float32))
    assert divergence(skewed, one) == pytest.approx(0.9 * log(1.8) + 0.1 * log(0.2), abs=1e-6)
    assert divergence(one, one) == 0.0
    with np.errstate(divide="ignore"):
        impossible = np.log(np.array([0.5, 0.5, 0.0], dtype=np.float32))
    assert divergence(impossible, one) == pytest.approx(0.5 * log(2))
    assert divergence(one, impossible) == np.inf
    assert np.isnan(divergence(one, np.array([nan, nan, nan], dtype=np.float32)))


def test_divergence_of_a_record_is_before_against_after() -> None:
    model = tiny_with_tokenizer("gpt2")
    options = EvaluateOptions(generation=False, generated=False)
    before = evaluate_record(model, RECORD, options=options)
    assert "NKL" not in before.values
    same = evaluate_record(model, RECORD, options=options, before=before)
    assert same.values["NKL"] == pytest.approx(0.0, abs=1e-6)
    with logits_of_a_model(model, lambda logits: 3 * logits):
        after = evaluate_record(model, RECORD, options=options, before=before)
    prompt = RECORD.neighbourhood[0].prompt
    ids = torch.tensor([encode(model, [prompt], ["ball"])[0].prompt])
    one = torch.log_softmax(model.logits(ids)[0, -1].double(), -1)
    other = torch.log_softmax(3 * model.logits(ids)[0, -1].double(), -1)
    expected = float((one.exp() * (one - other)).sum())
    rows = divergence_rows("r", before.distributions, after.distributions)
    assert next(row.value for row in rows if row.measure == "NKL") == pytest.approx(expected, abs=1e-4)
    assert after.values["NKL"] > 0.01
    assert after.values["NKL+"] > 0.01


def test_a_collapsed_model_fails_and_says_so() -> None:
    model = tiny_with_tokenizer("gpt2")
    before = evaluate_record(model, RECORD)
    with logits_of_a_model(model, lambda logits: logits * nan):
        result = evaluate_record(model, RECORD, before=before, options=EvaluateOptions(zsre=True, length=20))
    assert all(row.status == "collapsed" for row in result.rows)
    expected = {name: float("inf") if name.startswith("NKL") else 0.0 for name in result.values}
    assert result.values == expected
    assert {"ES", "EM", "PS", "NS", "NM", "GE", "ES_acc", "ES_gen", "NS+", "NKL", "NKL+", "zsRE efficacy"} <= set(
        expected
    )
    assert "count as failures" in result.notes[0]
    assert result.known is False
    assert result.texts == RECORD.generation


def test_one_logit_that_is_not_a_number_is_enough() -> None:
    def spoil(logits: torch.Tensor) -> torch.Tensor:
        changed = logits.clone()
        changed[..., 7] = nan
        return changed

    model = tiny_with_tokenizer("gpt2")
    with logits_of_a_model(model, spoil):
        result = evaluate_record(model, RECORD, options=SCORES_ONLY)
        readings = Readings(model)
        readings.read({(2, 3): ()})
    assert {row.status for row in result.rows} == {"collapsed"}
    assert readings.best((2, 3)) == NO_TOKEN


def test_only_the_prompts_that_collapse_are_marked() -> None:
    model = tiny_with_tokenizer("gpt2")
    clara = encode(model, ["Clara"], ["ball"])[0].prompt

    def spoil(logits: torch.Tensor) -> torch.Tensor:
        # rows as they are read: the shortest prompt is alone at its position
        changed = logits.clone()
        changed[:, 0] = nan
        return changed

    assert len(clara) == 1
    with logits_of_a_model(model, spoil):
        result = evaluate_record(model, RECORD, options=SCORES_ONLY)
    marked = {(row.measure, row.prompt) for row in result.rows if row.status != "ok"}
    assert marked == {("NS", 1), ("NM", 1), ("NS_acc", 1)}
    assert result.collapsed == ("NS", "NM", "NS_acc")


def test_a_text_that_is_too_long_is_refused_with_a_sentence() -> None:
    record = replace(RECORD, paraphrases=("Anna " * 80 + "likes the",))
    with pytest.raises(InputError, match="positions"):
        evaluate_record(shared_model("gpt2"), record, options=SCORES_ONLY)
