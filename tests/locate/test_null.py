"""On models that know nothing, real questions find nothing: the corrected list of detections stays empty."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from engramscope import make_pairs, patch
from engramscope.models import Model, load_tokenizer
from engramscope.pairs import PairSet


def random_model(tokenizer, seed: int) -> Model:
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=32, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    hf = GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if ".ln_" not in name:
                parameter.normal_(0.0, 0.25, generator=generator)
    return Model.from_parts(hf, tokenizer, name=f"random {seed}")


@pytest.fixture(scope="module")
def questions() -> tuple[PairSet, object]:
    # one question per cluster, and few lengths, so that a hundred models take a minute
    pairs = make_pairs("clap_epilepsy")
    seen: set[str] = set()
    kept = [pair for pair in pairs if pair.group not in seen and not seen.add(pair.group)]
    return PairSet(tuple(kept[:40]), "questions"), load_tokenizer("mini")


@pytest.mark.parametrize("seeds", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_random_weights_give_an_empty_list_in_at_least_95_of_100_seeds(questions, seeds: int) -> None:
    pairs, tokenizer = questions
    with_detections = []
    excluded = 0
    for seed in range(seeds):
        result = patch(random_model(tokenizer, seed), pairs, "z", heads="each", resamples=999, seed=seed)
        excluded += len(result.excluded)
        if result.summary["detected"].any():
            with_detections.append(seed)
    assert len(with_detections) <= 0.05 * seeds, with_detections
    # a model that knows nothing has the wrong gap in half of the pairs: they must not have been dropped from the tests
    assert 0.3 < excluded / (seeds * len(pairs)) < 0.7


def test_the_uncorrected_tests_would_have_found_something(questions) -> None:
    """Otherwise the test above could not fail."""
    pairs, tokenizer = questions
    smallest = [
        patch(random_model(tokenizer, seed), pairs, "z", heads="each", resamples=999, seed=seed).summary["p"].min()
        for seed in range(10)
    ]
    assert sum(p < 0.05 for p in smallest) >= 1
