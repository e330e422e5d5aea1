"""Patching a model whose circuit we built by hand finds that circuit, and nothing else."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest

from engramscope import patch
from engramscope.engine.plan import FromRun
from engramscope.errors import InputError, ModelError
from engramscope.locate import runs
from engramscope.locate.cells import Cell
from engramscope.locate.experiment import noise_floor, set_up
from engramscope.models import Model
from engramscope.pairs import Pair, PairSet
from tests.planted import GAIN, key_pairs, planted_model, value_pairs
from tests.tiny_models import tiny_hf
from tests.tiny_study import pair_rows, tokenizer


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


@pytest.mark.parametrize("corruption", ["zero", "mean", "resample"])
def test_an_ablation_that_leaves_nothing_of_the_prompt_is_no_finding(model, corruption: str) -> None:
    options = {"positions": "last", "direction": "noise", "corruption": corruption, "resamples": 500}
    summary = patch(model, value_pairs(16), "resid_post", **options).summary.set_index("layer")
    assert summary["cut"].astype(bool).tolist() == [False, True]
    assert not summary.loc[1, "detected"]


def test_a_model_that_was_put_back_into_training_is_refused() -> None:
    words = tokenizer()
    hf = tiny_hf("gpt2", vocab_size=len(words), resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    model = Model.from_parts(hf, words)
    pairs = PairSet(tuple(
        Pair(row["id"], row["clean"], tuple(row["correct"]), row["corrupted"], tuple(row["incorrect"]))
        for row in pair_rows(4)
    ))  # fmt: skip
    assert patch(model, pairs, "mlp_out", resamples=100).noise_floor["logit_diff"] < 1e-5
    hf.transformer.h[1].attn.attn_dropout.train()
    for executor in ("traversal", "reference"):
        with pytest.raises(ModelError, match=r"attn_dropout is in training mode.*eval\(\)"):
            patch(model, pairs, "mlp_out", resamples=100, executor=executor)


@pytest.mark.parametrize("corruption", ["zero", "mean", "resample"])
def test_the_floor_of_an_ablation_is_measured(model, corruption: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"direction": "noise", "corruption": corruption, "resamples": 100}
    floor = patch(model, value_pairs(6), "z", heads="each", **options).noise_floor
    assert floor["logit_diff"] < 1e-5
    seen: list[bool] = []
    really = runs.ablation_run

    def spy(cell, pair, *arguments):
        made = really(cell, pair, *arguments)
        (one,) = made.run.patches
        seen.append(isinstance(one.source, FromRun) and one.source.run == made.run.base)
        return made

    monkeypatch.setattr("engramscope.locate.sweep.ablation_run", spy)
    patch(model, value_pairs(6), "z", heads="each", **options)
    # 6 pairs and 4 heads in each draw; then what the floor is measured by
    assert not any(seen[:24])
    assert all(seen[-8:])


def test_a_floor_that_was_not_measured_is_not_zero(model) -> None:
    experiment = set_up(model, value_pairs(4), "str", "str", ["logit_diff"])
    cell = Cell("s", "z", (0,), None, None, "last", "denoise", 1, 0)
    assert noise_floor(experiment, [cell], 0) == {}
    assert noise_floor(experiment, [], 8) == {}
    assert noise_floor(experiment, [replace(cell, position_role="nowhere")], 8) == {}
    assert noise_floor(experiment, [cell], 8)["logit_diff"] < 1e-5


def test_a_mean_pattern_and_an_answer_of_several_tokens() -> None:
    """The mean over one prompt is its own pattern, also while an answer follows; over others it is another one."""
    words = tokenizer()
    model = Model.from_parts(tiny_hf("gpt2", vocab_size=len(words)), words)
    options = {"heads": "each", "direction": "noise", "corruption": "mean", "resamples": 100}
    options |= {"metrics": ("answer_log_prob",)}
    alike = PairSet(tuple(Pair(f"p{n}", "The child called Anna plays", (" ball kite",)) for n in range(3)))
    assert patch(model, alike, "pattern", **options).effects["effect"].abs().max() < 1e-4
    texts = [f"The child called {name} plays" for name in ("Anna", "Bob", "Clara")]
    differ = PairSet(tuple(Pair(text, text, (" ball kite",)) for text in texts))
    effects = patch(model, differ, "pattern", **options).effects
    assert effects["status"].eq("ok").all()
    assert effects["effect"].abs().max() > 1e-3


def test_positions_can_be_named_by_index(model) -> None:
    pairs = value_pairs(8)
    some = patch(model, pairs, "resid_post", layers=[0], positions=[2, 3], resamples=200).effects
    every = patch(model, pairs, "resid_post", layers=[0], positions="each", resamples=200).effects
    same = every[every["position"].isin([2, 3])]
    pd.testing.assert_series_equal(some["patched"], same["patched"].reset_index(drop=True), atol=1e-5)
    # the copied token stands at position 2: its residual carries everything, the next one nothing
    effects = some.groupby("position")["recovery"].mean()
    assert effects[2] == pytest.approx(1.0, abs=1e-4)
    assert effects[3] == pytest.approx(0.0, abs=1e-4)


def test_an_index_beyond_every_prompt_is_an_input_error(model) -> None:
    with pytest.raises(InputError, match="position 99"):
        patch(model, value_pairs(3), "resid_post", positions=[99])


def test_path_patching_finds_the_edge_from_the_previous_token_head_to_the_induction_keys(model) -> None:
    """P2: by construction L0H0 is read by the keys of layer 1 and by nothing else."""

    def carried(pairs: PairSet, *receivers: str, **options) -> tuple[float, float]:
        result = patch(
            model, pairs, "z", layers=[0], heads=[0], receivers=receivers, corruption="str", resamples=100, **options
        )
        return _estimate(result, 0, 0), float(result.effects["effect"].abs().max())

    for mlps in ("live", "frozen"):
        assert carried(key_pairs(8), "1.0.k", "1.1.k", mlps=mlps)[0] == pytest.approx(1.0, abs=1e-6)
        assert carried(key_pairs(8), "1.0.q", "1.1.q", "1.0.v", "1.1.v", "logits", mlps=mlps)[1] < 1e-4
    # the token after the first a is where the keys are: they receive there, and nowhere else
    one = PairSet(tuple(replace(p, spans={"value": _word(p.clean, 2)}) for p in key_pairs(8)), "spans")
    assert carried(one, "1.0.k", "1.1.k", receiver_positions=["value"])[0] == pytest.approx(1.0, abs=1e-6)
    assert carried(one, "1.0.k", "1.1.k", receiver_positions="last")[1] < 1e-4


def test_without_the_negative_head_the_induction_key_alone_carries_everything(monkeypatch) -> None:
    monkeypatch.setattr("tests.planted.GAIN", 0.0)
    result = patch(planted_model(), key_pairs(8), "z", layers=[0], heads=[0], receivers=["1.0.k"], resamples=100)
    assert _estimate(result, 0, 0) == pytest.approx(1.0, abs=1e-6)


def _word(text: str, number: int) -> tuple[int, int]:
    """Where a word stands, with the blank before it."""
    words = text.split(" ")
    start = len(" ".join(words[:number])) + 1
    return start, start + len(words[number])
