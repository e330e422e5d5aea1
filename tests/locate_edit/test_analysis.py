"""What is said about planted tables: tracing that tells where to edit, tracing that does not, and edits that failed."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from engramscope.errors import InputError
from engramscope.locate_edit.analysis import Tables, analyse, predictors
from engramscope.locate_edit.settings import OUTCOMES, Settings, settings_of
from engramscope.locate_edit.words import primary, sentences, verdict

FACTS, LAYERS = 40, 6
SETTINGS = Settings(facts=FACTS, methods=("rome", "ft"), windows=(5,), resamples=400, draws=2)
#: for tests that look at a single number
SMALL = Settings(facts=FACTS, methods=("rome", "ft"), windows=(5,), corruptions=("str",), resamples=100)


def _tracing(effect: np.ndarray, noise: np.ndarray) -> pd.DataFrame:
    """The same effect in every analysis, with two draws of noise around it."""
    rows = []
    for predictor in predictors(SETTINGS, LAYERS):
        draws = [(None, effect)]
        if predictor.corruption == "gaussian":
            draws += [(0, effect + noise), (1, effect - noise)]
        for draw, values in draws:
            for fact, layer in np.ndindex(*effect.shape):
                rows.append({"fact": f"f{fact}", "layer": layer, "draw": draw, **asdict(predictor),
                             "effect": values[fact, layer], "clean": 0.9, "corrupted": 0.1})  # fmt: skip
    return pd.DataFrame(rows).astype({"draw": "Int64"})


def _edits(values: dict[str, np.ndarray]) -> pd.DataFrame:
    return pd.DataFrame([
        {"fact": f"f{fact}", "relation": f"r{fact % 4}", "editor": editor, "layer": layer, "seed": 0,
         "outcome": outcome, "value": table[fact, layer], "before": 0.0, "after": 0.5, "prompts": 1,
         "relative_norm": 0.1, "status": "ok"}
        for editor, table in values.items()
        for outcome in OUTCOMES
        for fact, layer in np.ndindex(*table.shape)
    ])  # fmt: skip


def _planted(seed: int = 0) -> Tables:
    """rome succeeds where tracing points; ft succeeds by layer only, whatever tracing says."""
    rng = np.random.default_rng(seed)
    effect = rng.uniform(0, 0.2, (FACTS, LAYERS))
    effect[np.arange(FACTS), rng.integers(0, LAYERS, FACTS)] += 0.7
    helped = np.clip(0.1 + 0.8 * effect + rng.normal(0, 0.05, effect.shape), 0, 1)
    level = np.array([0.2, 0.3, 0.8, 0.4, 0.2, 0.1])
    alone = np.clip(level + rng.normal(0, 0.05, effect.shape), 0, 1)
    names = tuple(f"f{fact}" for fact in range(FACTS))
    relations = tuple(f"r{fact % 4}" for fact in range(FACTS))
    noise = rng.normal(0, 0.02, effect.shape)
    return Tables(_tracing(effect, noise), _edits({"rome": helped, "ft": alone}), names, relations,
                  tuple(range(LAYERS)), LAYERS)  # fmt: skip


def _found(tables: Tables, settings: Settings = SETTINGS) -> dict[str, Any]:
    return {
        "model": {"name": "toy", "n_layers": LAYERS}, "settings": settings.model_dump(mode="json"),
        "layers": list(tables.layers), "places": [{"site": "mlp_out", "window": 5}],
        "facts": {"chosen": FACTS, "looked_at": FACTS, "left_out": {}, "relations": 4}, **analyse(tables, settings),
    }  # fmt: skip


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return _found(_planted())


def test_tracing_that_tells_where_to_edit_is_found(found: dict[str, Any]) -> None:
    row = primary(found, "rome")
    assert (row["corruption"], row["metric"], row["tokens"]) == ("gaussian", "prob", "any")
    assert row["models"]["gain_adjusted"]["low"] > 0.5
    assert row["models"]["permutation_p_holm"] < 0.05
    assert verdict(row) == "better"
    assert min(row["within"][0]["r"]) > 0.8
    text = " ".join(sentences(found))
    assert "ROME: the layer explains" in text
    assert "Tracing says something beyond the layer" in text
    assert "here locating helps" in text


def test_success_that_depends_on_the_layer_only_is_not_credited_to_tracing(found: dict[str, Any]) -> None:
    row = primary(found, "ft")
    models = row["models"]
    assert models["layer"]["value"] > 0.9
    assert models["gain_adjusted"]["low"] < 0 < models["gain_adjusted"]["high"]
    assert models["gain"] > 0  # which the published difference would have shown
    assert models["permutation_p_holm"] > 0.05
    assert row["choice"]["fixed_layers"] == [2, 2]
    assert verdict(row) == "worse"
    text = " ".join(sentences(found))
    assert "Beyond the layer tracing adds nothing that can be told from chance" in text
    assert "choosing the layer by the fact's tracing is worse" in text


def test_every_editor_outcome_and_predictor_is_analysed_and_counted(found: dict[str, Any]) -> None:
    assert len(found["analyses"]) == 2 * 3 * 8
    keys = {tuple(row[name] for name in ("editor", "outcome", "corruption", "metric", "tokens"))
            for row in found["analyses"]}  # fmt: skip
    assert len(keys) == 48
    assert "tracing adds to the layer in 24; the own peak beats the best fixed layer in 24 and is worse in 24" in (
        " ".join(sentences(found))
    )


def test_noise_draws_are_told_apart(found: dict[str, Any]) -> None:
    noisy = [one for one in found["reliability"] if one["corruption"] == "gaussian"]
    assert len(noisy) == len(found["reliability"]) == 4
    assert all(one["reliability"] > 0.95 for one in noisy)
    row = primary(found, "rome")
    assert [draw["draw"] for draw in row["draws"]] == [0, 1]
    assert all(abs(draw["gain_adjusted"] - row["models"]["gain_adjusted"]["value"]) < 0.1 for draw in row["draws"])


def test_layers_out_of_order_are_called_by_their_own_numbers() -> None:
    tables = replace(_planted(), layers=(4, 2, 0))
    row = primary(_found(tables, SMALL), "ft")
    assert row["choice"]["fixed_layers"] == [2, 2]
    assert row["within"][0]["layers"] == [4, 2, 0]
    np.testing.assert_allclose(tables.outcome("ft", "rewrite"), _planted().outcome("ft", "rewrite")[:, [4, 2, 0]])


def test_a_fact_whose_edit_failed_at_one_layer_is_left_out_and_counted() -> None:
    tables = _planted()
    edits = tables.edits.copy()
    at = (edits["fact"] == "f3") & (edits["editor"] == "rome") & (edits["layer"] == 1)
    edits.loc[at, "status"] = "failed: x"
    found = _found(replace(tables, edits=edits), SMALL)
    row, other = primary(found, "rome"), primary(found, "ft")
    assert (row["facts"], row["without_outcome"]) == (FACTS - 1, 1)
    assert (other["facts"], other["without_outcome"]) == (FACTS, 0)


def test_seeds_are_averaged_before_anything_else() -> None:
    tables = _planted()
    again = tables.edits.assign(seed=1, value=1.0)
    both = replace(tables, edits=pd.concat([tables.edits, again]))
    np.testing.assert_allclose(both.outcome("ft", "rewrite"), (tables.outcome("ft", "rewrite") + 1) / 2)


def test_too_few_facts_are_said_not_analysed() -> None:
    tables = _planted()
    few = replace(tables, facts=tables.facts[:4], relations=tables.relations[:4])
    found = _found(few)
    assert {row["status"] for row in found["analyses"]} == {"not analysed: 4 facts have a value at every layer"}
    assert any("not analysed" in sentence for sentence in sentences(found))


def test_relations_as_clusters_widen_the_intervals() -> None:
    rng = np.random.default_rng(5)
    tables = _planted()
    shift = rng.normal(0, 0.2, 4)[np.arange(FACTS) % 4]
    edits = tables.edits.assign(value=tables.edits["value"] + [shift[int(fact[1:])] for fact in tables.edits["fact"]])
    widths = []
    for cluster in ("fact", "relation"):
        found = _found(replace(tables, edits=edits), SMALL.model_copy(update={"cluster": cluster}))
        random = primary(found, "ft")["choice"]["success"]["random"]
        widths.append(random["high"] - random["low"])
        alike = "takes facts of one relation for independent" in " ".join(sentences(found))
        assert alike == (cluster == "relation")
    assert widths[1] > 1.5 * widths[0]


def test_bad_settings_are_said_in_sentences_all_at_once() -> None:
    with pytest.raises(InputError) as error:
        settings_of(facts=2, methods=(), corruptions=("gauss",), windows=(0,), layers=("x",))
    assert {fault.split(":")[0].split(".")[0] for fault in error.value.faults} == {
        "facts", "methods", "corruptions", "windows", "layers",
    }  # fmt: skip
    with pytest.raises(InputError, match="named twice"):
        settings_of(methods=("ft", "ft"))


def test_interval_and_test_that_disagree_are_not_talked_over(found: dict[str, Any]) -> None:
    row = json.loads(json.dumps(primary(found, "ft")))
    row["models"]["permutation_p"] = 0.02
    assert row["models"]["gain_adjusted"]["low"] < 0
    other = {**found, "analyses": [row if one is primary(found, "ft") else one for one in found["analyses"]]}
    text = " ".join(sentences(other))
    assert "is not clear, interval and test disagree" in text
    assert "nothing that can be told" not in text
