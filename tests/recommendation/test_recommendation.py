"""Which layers: from effects whose peak is known, and on a model, with bad input refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from engramscope import make_pairs
from engramscope.cli import _run_app
from engramscope.errors import InputError
from engramscope.recommendation import recommend_layers
from engramscope.recommendation.layers import agreement, profiles
from engramscope.recommendation.words import NOT_EDITABILITY, layer_words, sentences
from engramscope.results.summary import summarise_effects
from tests.tiny_study import write_pairs

LAYERS = 8


def _effects(peak: int, strength: float, corruption: str = "str", seed: int = 0) -> pd.DataFrame:
    """40 pairs of their own, effects around 0 but for one layer."""
    rng = np.random.default_rng(seed)
    rows = []
    for pair in range(40):
        for layer in range(LAYERS):
            effect = float(rng.normal(0, 0.2)) + strength * (layer == peak)
            rows.append({
                "study": "s", "pair": f"p{pair}", "group": f"g{pair}", "corruption": corruption, "seed": 0,
                "direction": "denoise", "site": "mlp_out", "layer": layer, "head": None, "position": None,
                "position_role": "subject_last", "window": 1, "metric": "logit_diff", "clean": 5.0, "corrupted": 0.0,
                "patched": effect, "effect": effect, "recovery": effect / 5, "status": "ok", "sweep": "MLP layers",
                "cut": False,
            })  # fmt: skip
    return pd.DataFrame(rows).astype({"layer": "Int64", "head": "Int64", "position": "Int64"})


def _profile(peak: int, strength: float, corruption: str = "str", seed: int = 0) -> Any:
    effects = _effects(peak, strength, corruption, seed)
    clusters = dict(zip(effects["pair"], effects["group"], strict=True))
    summary = summarise_effects(effects, clusters, resamples=500)
    (found,) = profiles(effects, summary, clusters, resamples=500, seed=0)
    return found


def _found(main: Any, noise: Any) -> dict[str, Any]:
    return {
        "model": "toy", "known": {"kept": 40, "of": 50}, "main": main.plain(), "noise": noise.plain(),
        "agreement": agreement(main, noise), "arms": [{"folder": "str", "warnings": []}],
    }  # fmt: skip


def test_a_clear_layer_is_recommended_with_its_numbers() -> None:
    main, noise = _profile(5, 2.0), _profile(4, 2.0, "gaussian", seed=1)
    assert main.supported
    assert (main.peak, main.recommended, main.near) == (5, (5,), 1.0)
    effects = _effects(5, 2.0)
    mean = effects[effects.layer == 5]["effect"].mean()
    assert main.effect[5] == pytest.approx(mean, abs=1e-9)
    assert main.recovery[5] == pytest.approx(mean / 5, abs=1e-9)
    assert main.low[5] < mean < main.high[5]
    both = agreement(main, noise)
    assert both["distance"] == 1
    assert both["both"] == []
    text = " ".join(sentences(_found(main, noise)))
    assert "Look at layer 5" in text
    assert "knows 40 of 50 facts" in text
    assert "Under Gaussian noise the peak is layer 4" in text
    assert text.endswith(NOT_EDITABILITY)


def test_rank_correlation_of_profiles() -> None:
    one = _profile(5, 2.0)
    assert agreement(one, one)["correlation"] == pytest.approx(1.0)
    other = _profile(2, 2.0, seed=3)
    ranks = [pd.Series(profile.effect).rank() for profile in (one, other)]
    assert agreement(one, other)["correlation"] == pytest.approx(float(np.corrcoef(ranks)[0, 1]), abs=1e-12)


def test_nothing_is_recommended_where_nothing_is_detected() -> None:
    main = _profile(5, 0.0)
    assert not main.supported
    text = " ".join(sentences(_found(main, main)))
    assert "No layer can be recommended" in text
    assert "Look at" not in text
    assert text.endswith(NOT_EDITABILITY)


def test_a_layer_that_hurts_is_not_recommended() -> None:
    effects = _effects(3, -2.0)
    effects["effect"] -= 1.0
    effects["patched"] -= 1.0
    clusters = dict(zip(effects["pair"], effects["group"], strict=True))
    summary = summarise_effects(effects, clusters, resamples=500)
    (found,) = profiles(effects, summary, clusters, resamples=200, seed=0)
    assert summary["detected"].any()
    assert not found.supported


def test_layers_in_words() -> None:
    assert layer_words([4]) == "layer 4"
    assert layer_words([3, 4, 5]) == "layers 3 to 5"
    assert layer_words([1, 4, 5]) == "layers 1, 4 and 5"


def _facts(path: Path, count: int, **changes: Any) -> Path:
    rows = [
        {
            "id": pair.id, "clean": pair.clean, "corrupted": pair.corrupted, "correct": list(pair.correct),
            "incorrect": list(pair.incorrect), "group": pair.group,
            "spans": {name: list(span) for name, span in pair.spans.items()},
            "corrupted_spans": {name: list(span) for name, span in pair.corrupted_spans.items()},
        }
        for pair in make_pairs("clap_epilepsy", count)
    ]  # fmt: skip
    for row in rows:
        for key, value in changes.items():
            row[key] = value
            if value is None:
                del row[key]
    return write_pairs(path, rows)


def test_the_whole_way_on_a_model(tmp_path: Path) -> None:
    found = recommend_layers(
        _facts(tmp_path / "facts.jsonl", 24), "mini", tmp_path / "out", draws=2, resamples=200, limit=20
    )
    data = found.found
    assert data["known"] == {"kept": 20, "of": 20}
    assert data["main"]["layers"] == list(range(6))
    assert sum(data["main"]["shares"]) == pytest.approx(1.0)
    assert found.sentences()[-1] == NOT_EDITABILITY
    effects = pd.read_parquet(tmp_path / "out" / "str" / "effects.parquet")
    mine = effects[(effects.sweep == "MLP layers") & (effects.metric == "logit_diff")]
    np.testing.assert_allclose(data["main"]["effect"], mine.groupby("layer")["effect"].mean(), atol=1e-9)
    assert "Hase" in found.page.read_text(encoding="utf-8")
    again = recommend_layers(
        tmp_path / "facts.jsonl", "mini", tmp_path / "out", draws=2, resamples=200, limit=20, resume=True
    )
    assert again.found == data


def test_facts_without_a_corrupted_prompt_are_paired(tmp_path: Path) -> None:
    from engramscope import load_model
    from engramscope.recommendation.facts import pairs_of_facts

    world = make_pairs("factual", 12, 0, load_model("mini").tokenizer)
    rows = [
        {"id": pair.id, "clean": pair.clean, "correct": list(pair.correct), "group": pair.group,
         "spans": {"subject": list(pair.spans["subject"])}}
        for pair in world
    ]  # fmt: skip
    pairs = pairs_of_facts(write_pairs(tmp_path / "f.jsonl", rows), load_model("mini").tokenizer)
    assert len(pairs) > 4
    assert all(pair.corrupted and pair.corrupted != pair.clean for pair in pairs)
    assert {pair.clean for pair in pairs} <= {row["clean"] for row in rows}


@pytest.mark.parametrize(
    ("changes", "arguments", "words"),
    [
        ({"spans": None, "corrupted_spans": None}, [], "None of the 6 facts in facts.jsonl names its subject"),
        ({}, ["--at-least", "7"], "6 of the 6 pairs"),
        ({"correct": [" the"]}, ["--at-least", "2"], "0 of the 6 pairs"),
    ],
)
def test_bad_facts_are_one_message(
    changes: dict[str, Any], arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = _facts(tmp_path / "facts.jsonl", 6, **changes)
    code = _run_app(["locate", str(facts), "--model", "mini", "--out", str(tmp_path / "out"), "-q", *arguments])
    said = capsys.readouterr().err
    assert code == 2
    assert words in said
    assert "Traceback" not in said


def test_an_occupied_folder_is_refused_before_anything(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match="not empty"):
        recommend_layers(tmp_path / "none.jsonl", "mini", tmp_path / "out")
    with pytest.raises(InputError, match=r"none\.jsonl"):
        recommend_layers(tmp_path / "none.jsonl", "mini", tmp_path / "other")
    assert json.dumps(sorted(path.name for path in tmp_path.iterdir())) == '["out"]'
