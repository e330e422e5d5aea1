"""Scores of an edit: by hand, at their ends, and probabilities against a loop over tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from engramscope.errors import InputError
from engramscope.locate_edit.outcomes import judged, probabilities, probes_of, share_gained, share_kept
from engramscope.models import Model
from engramscope.records import Fact, Probe, Record
from tests.edit.small import tiny_with_tokenizer

RECORD = Record(
    "r",
    Fact("In the park Anna lost the big red", "Anna", "drum kite", "ball", "r"),
    "toy",
    paraphrases=("Anna says that she likes the", "Yesterday and today Anna lost the"),
    neighbourhood=(Probe("The child called Bob plays with the", "ball", "drum kite"),),
)


def test_scores_by_hand() -> None:
    # of the 0.8 that were missing the edit brings 0.6
    assert share_gained(0.2, 0.8) == pytest.approx(0.75)
    assert share_gained(0.2, 1.0) == 1.0
    assert share_gained(0.2, 0.1) == 0.0
    assert np.isnan(share_gained(1.0, 1.0))
    # from 0.1 the largest change possible is 0.9, from 0.7 it is 0.7
    assert share_kept(0.1, 0.4) == pytest.approx(1 - 0.3 / 0.9)
    assert share_kept(0.7, 0.35) == pytest.approx(0.5)
    assert share_kept(0.1, 1.0) == pytest.approx(0.0)
    assert share_kept(0.3, 0.3) == 1.0


def test_scores_stay_between_0_and_1() -> None:
    before, after = np.random.default_rng(0).uniform(size=(2, 10_000))
    for score in (share_gained, share_kept):
        values = score(before, after)
        assert values.min() >= 0.0
        assert values.max() <= 1.0


def _by_loop(model: Model, prompt: str, target: str) -> float:
    """P(target | prompt), a forward for each token, without padding and without the package's encoding."""
    ids = model.tokenizer(prompt, return_tensors="pt").input_ids
    probability = 1.0
    for token in model.tokenizer(f" {target}", add_special_tokens=False).input_ids:
        with torch.no_grad():
            logits = model.hf(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1].double()
        probability *= float(logits.softmax(-1)[token])
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    return probability


@pytest.mark.parametrize("family", ["gpt2", "llama", "gptj"])
def test_probabilities_are_those_of_the_whole_target(family: str) -> None:
    model = tiny_with_tokenizer(family)
    probes = probes_of(model, RECORD)
    assert probes.sizes == {"rewrite": 1, "paraphrase": 2, "neighbourhood": 1}
    prompts = [RECORD.fact.prompt, *RECORD.paraphrases, RECORD.neighbourhood[0].prompt]
    expected = [_by_loop(model, prompt, "drum kite") for prompt in prompts]
    assert len(probes.asks[0].target) == 2
    np.testing.assert_allclose(probabilities(model, probes.asks), expected, rtol=2e-5)


def test_what_is_judged_is_the_mean_score_not_the_score_of_means() -> None:
    probes = probes_of(tiny_with_tokenizer("gpt2"), RECORD)
    before, after = np.array([0.0, 0.5, 0.0, 0.2]), np.array([0.9, 0.4, 0.6, 0.6])
    found = judged(probes, before, after)
    assert found["rewrite"] == pytest.approx((0.9, 0.0, 0.9, 1))
    # the first paraphrase lost probability: 0, not -0.2
    assert found["paraphrase"] == pytest.approx(((0.0 + 0.6) / 2, 0.25, 0.5, 2))
    assert found["neighbourhood"] == pytest.approx((1 - 0.4 / 0.8, 0.2, 0.6, 1))


def test_outcomes_without_a_prompt_are_left_out() -> None:
    probes = probes_of(tiny_with_tokenizer("gpt2"), replace(RECORD, neighbourhood=()))
    assert set(judged(probes, np.zeros(3), np.ones(3))) == {"rewrite", "paraphrase"}


def test_a_prompt_that_cannot_be_encoded_names_its_record() -> None:
    record: Any = replace(RECORD, paraphrases=("Anna  ",))
    with pytest.raises(InputError, match=r"Record 'r'.*white space"):
        probes_of(tiny_with_tokenizer("gpt2"), record)
