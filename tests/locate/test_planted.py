"""Patching a model whose circuit we built by hand finds that circuit, and nothing else."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from tests.planted import GAIN, key_pairs, planted_model, value_pairs

from engramscope import patch


@pytest.fixture(scope="module")
def model():
    return planted_model()


def _detected(result) -> set[tuple[int, int]]:
    found = result.summary[result.summary["detected"].astype(bool)]
    return set(zip(found["layer"].astype(int), found["head"].astype(int), strict=True))


def _estimate(result, layer: int, head: int, column: str = "recovery") -> float:
    table = result.summary
    return float(table[(table["layer"] == layer) & (table["head"] == head)][column].iloc[0])


def test_the_planted_model_does_the_task(model) -> None:
    result = patch(model, value_pairs(12), "z", heads="each", metrics=("rank",), resamples=200)
    assert result.effects["clean"].eq(0).all()


def test_exactly_the_copying_heads_are_detected_when_the_copied_token_is_corrupted(model) -> None:
    result = patch(model, value_pairs(16), "z", heads="each", resamples=2000)
    assert _detected(result) == {(1, 0), (1, 1)}
    # by hand: at the end the residual holds six entries of size 1 and, mirrored, what the heads wrote into the output;
    # the final LayerNorm divides by its norm. Unpatched the two heads write 1 + GAIN of one token; with one head
    # patched they write 1 of one token and GAIN of the other.
    unpatched = (1 + GAIN) / math.sqrt(6 + 2 * (1 + GAIN) ** 2)
    one_patched = (1 - GAIN) / math.sqrt(6 + 2 * (1 + GAIN**2))
    expected = (one_patched + unpatched) / (2 * unpatched)
    assert _estimate(result, 1, 0) == pytest.approx(expected, abs=1e-5)
    assert _estimate(result, 1, 1) == pytest.approx(1 - expected, abs=1e-5)
    for head in (0, 1):
        assert _estimate(result, 0, head, "effect") == pytest.approx(0.0, abs=1e-4)


def test_the_previous_token_head_carries_everything_when_the_key_is_corrupted(model) -> None:
    result = patch(model, key_pairs(16), "z", heads="each", resamples=2000)
    assert _detected(result) == {(0, 0), (1, 0), (1, 1)}
    assert _estimate(result, 0, 0) == pytest.approx(1.0, abs=1e-4)
    assert _estimate(result, 0, 1, "effect") == pytest.approx(0.0, abs=1e-4)


def test_a_probability_hides_the_negative_head_and_a_logit_difference_shows_it(model) -> None:
    result = patch(model, value_pairs(16), "z", heads="each", metrics=("logit_diff", "prob"), resamples=500)
    by_metric = {name: rows.set_index(["layer", "head"])["effect"] for name, rows in result.summary.groupby("metric")}
    assert by_metric["logit_diff"][1, 1] < -1.0
    assert by_metric["prob"][1, 1] > -1e-3


def test_noising_mirrors_denoising_with_the_prompts_exchanged(model) -> None:
    pairs = value_pairs(6)
    swapped = type(pairs)(tuple(pair.swapped() for pair in pairs), "swapped")
    one = patch(model, pairs, "z", heads="each", direction="noise", resamples=200).effects
    other = patch(model, swapped, "z", heads="each", direction="denoise", resamples=200).effects
    # exchanging the prompts exchanges the answers as well, which turns the sign of the logit difference
    pd.testing.assert_series_equal(one["effect"], -other["effect"], check_names=False, atol=1e-5)
