"""What a model says after a fact's prompt, against forwards written out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from engramscope.edit.tokens import encoder_of
from engramscope.editing.look import look
from tests.edit.small import FACT, OTHER, shared_model, tiny_with_tokenizer


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_numbers_are_those_of_single_forwards(family: str) -> None:
    model = shared_model(family)
    tokenizer = model.tokenizer
    found = look(model, [OTHER, FACT], most=4, length=6)
    for fact, seen in zip((OTHER, FACT), found, strict=True):
        prompt = tokenizer(fact.prompt)["input_ids"]
        logits = model.logits(torch.tensor([prompt]))[0, -1].softmax(-1)
        best = logits.topk(4)
        shown = encoder_of(model).show(best.indices.tolist())
        assert tuple(text for text, _ in seen.top) == shown
        assert [value for _, value in seen.top] == pytest.approx(best.values.tolist(), rel=1e-4)
        for answer, value in ((fact.target, seen.target), (fact.true, seen.true)):
            ids = tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
            total = 0.0
            for index, token in enumerate(ids):
                row = torch.tensor([prompt + ids[:index]])
                total += math.log(float(model.logits(row)[0, -1].softmax(-1)[token]))
            assert value == pytest.approx(math.exp(total / len(ids)), rel=1e-4)
        row = list(prompt)
        for _ in range(6):
            token = int(model.logits(torch.tensor([row]))[0, -1].argmax())
            if token in tokenizer.all_special_ids:
                break
            row.append(token)
        assert seen.text == tokenizer.decode(row[len(prompt) :])
        assert seen.stated == seen.text.startswith(f" {fact.target}")


def test_a_model_whose_answers_are_no_numbers_is_shown_as_that() -> None:
    model = tiny_with_tokenizer("gpt2")
    model.hf.get_output_embeddings().weight.data.fill_(math.nan)
    (seen,) = look(model, [FACT])
    assert (seen.target, seen.true, seen.top, seen.text, seen.stated) == (0.0, 0.0, (), "", False)
