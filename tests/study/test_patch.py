"""`patch()` and what it gives back."""

from __future__ import annotations

import pytest

from engramscope import patch
from engramscope.errors import InputError
from engramscope.models import Model
from engramscope.pairs import Pair, PairSet
from tests.locate.test_null import random_model
from tests.planted import planted_model, planted_tokenizer, value_pairs
from tests.tiny_models import tiny_hf
from tests.tiny_study import tokenizer


@pytest.fixture(scope="module")
def model() -> Model:
    words = tokenizer()
    return Model.from_parts(tiny_hf("gpt2", vocab_size=len(words)), words)


def questions(*correct: str) -> PairSet:
    names = ("Anna", "Bob", "Clara", "Dan")
    pairs = [
        Pair(
            id=str(number),
            clean=f"The child called {name} plays with the",
            corrupted=f"The child called {names[number - 1]} plays with the",
            correct=correct,
            incorrect=(" boat",),
        )
        for number, name in enumerate(names)
    ]
    return PairSet(tuple(pairs), "questions")


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_a_distance_detects_nothing_in_models_that_know_nothing(direction) -> None:
    pairs, words = value_pairs(24), planted_tokenizer()
    for seed in range(4):
        result = patch(
            random_model(words, seed), pairs, "z", heads="each", metrics=("kl",), direction=direction, resamples=499
        )
        assert not result.summary["detected"].any()
        assert result.summary[["p", "p_adjusted", "q"]].isna().all(axis=None)
        assert result.summary["note"].str.contains("not tested").all()
        assert result.summary["effect"].abs().gt(0).all()


def test_the_strongest_cell_comes_first_in_both_directions() -> None:
    """Head 0 of layer 1 copies the answer; the heads of layer 0 do nothing for it."""
    model, pairs = planted_model(), value_pairs(16)
    for direction in ("denoise", "noise"):
        result = patch(model, pairs, "z", heads="each", direction=direction, resamples=300)
        assert list(result.top(2).index) == ["L1H0 z", "L1H1 z"]
        assert "strongest:" in repr(result)
        assert repr(result).index("L1H0") < repr(result).index("L0H1")


def test_top_says_how_many_pairs_the_recovery_has(model) -> None:
    result = patch(model, questions(" ball"), "mlp_out", resamples=200)
    top = result.top()
    assert top["n"].eq(4).all()
    assert top["n_pooled"].eq(4 - len(result.excluded)).all()


def test_an_answer_of_several_tokens_is_an_input_error(model) -> None:
    with pytest.raises(InputError, match="ball"):
        patch(model, questions(" ball kite"), "mlp_out")


def test_a_site_that_the_model_does_not_offer_is_an_input_error(model) -> None:
    with pytest.raises(InputError, match="no_such_module"):
        patch(model, questions(" ball"), "transformer.h.{layer}.no_such_module")


def test_windows_as_arrays(model) -> None:
    result = patch(model, questions(" ball"), "mlp_out", window=2, resamples=200)
    arrays = result.to_xarray()
    assert arrays.attrs["window"] == 2
    wide = result.effects[result.effects["window"] == 2]
    assert arrays["patched"].size == len(wide)
    assert float(arrays["patched"].sum()) == pytest.approx(wide["patched"].sum())
    assert set(result.effects["window"]) == {1, 2}
