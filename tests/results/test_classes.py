"""Averages by class of position: within a prompt first, then over prompts; and as published, every token a sample."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from engramscope.results.classes import class_effects

ROLES = {
    "long": ["before", "subject_first", "subject_middle", "subject_middle", "subject_last", "after_subject", "last"],
    "short": ["subject_last", "after_subject", "further", "further", "last"],
    "middle": ["subject_first", "subject_last", "after_subject", "last"],
}
LAYERS, DRAWS = 3, 2


@pytest.fixture(scope="module")
def effects() -> pd.DataFrame:
    rng = np.random.default_rng(4)
    rows = []
    for pair, roles in ROLES.items():
        for layer in range(LAYERS):
            for position, role in enumerate(roles):
                for seed in range(DRAWS):
                    corrupted = 0.1 + 0.05 * seed
                    effect = float(rng.normal())
                    rows.append({
                        "study": "s", "pair": pair, "group": pair, "corruption": "gaussian", "seed": seed,
                        "direction": "denoise", "site": "resid_post", "layer": layer, "head": None,
                        "position": position, "position_role": role, "window": 1, "metric": "prob", "clean": 0.9,
                        "corrupted": corrupted, "patched": corrupted + effect, "effect": effect, "recovery": None,
                        "status": "ok", "sweep": "states", "cut": False,
                    })  # fmt: skip
    table = pd.DataFrame(rows)
    return table.astype({"layer": "Int64", "head": "Int64", "position": "Int64"})


def _naive(effects: pd.DataFrame, layer: int, role: str) -> list[float]:
    """Per prompt: mean over its tokens of the class and over draws."""
    found = []
    for _, part in effects[effects.layer == layer].groupby("pair"):
        values = [float(row.effect) for row in part.itertuples() if row.position_role == role]
        if values:
            found.append(sum(values) / len(values))
    return found


def test_the_mean_is_over_prompts_after_the_mean_within_each(effects: pd.DataFrame) -> None:
    table = class_effects(effects, resamples=200)
    assert len(table) == LAYERS * len({role for roles in ROLES.values() for role in roles})
    for row in table.itertuples():
        wanted = _naive(effects, row.layer, row.role)
        assert row.n == len(wanted)
        assert row.mean == pytest.approx(float(np.mean(wanted)), abs=1e-12)
        if row.n > 1:
            assert row.low <= row.mean <= row.high


def test_as_published_every_token_counts_and_a_subject_of_one_token_twice(effects: pd.DataFrame) -> None:
    table = class_effects(effects, resamples=100).set_index(["layer", "role"])
    mean = effects.groupby(["pair", "layer", "position", "position_role"])["effect"].mean().reset_index()
    for layer in range(LAYERS):
        here = mean[mean.layer == layer]
        first = here[(here.position_role == "subject_first") | ((here.pair == "short") & (here.position == 0))]
        row = table.loc[layer, "subject_first"]
        assert row.n == 2
        assert row.n_tokens == 3 == len(first)
        assert row.mean_as_published == pytest.approx(first.effect.mean(), abs=1e-12)
        assert row.half_as_published == pytest.approx(1.96 * first.effect.std(ddof=0) / np.sqrt(3), abs=1e-12)
        assert table.loc[layer, "subject_middle"].n_tokens == 2
        assert table.loc[layer, "subject_last"].n_tokens == 3


def test_what_is_a_cut_or_failed_does_not_enter(effects: pd.DataFrame) -> None:
    spoiled = effects.copy()
    here = (spoiled.pair == "long") & (spoiled.position == 2) & (spoiled.layer == 0)
    spoiled.loc[here, "cut"] = True
    spoiled.loc[(spoiled.pair == "short") & (spoiled.position == 2), ["status", "patched", "effect"]] = [
        "failed: x", None, None,
    ]  # fmt: skip
    table = class_effects(spoiled, resamples=100).set_index(["layer", "role"])
    kept = effects[(effects.pair == "long") & (effects.position == 3) & (effects.layer == 0)]
    assert table.loc[0, "subject_middle"]["mean"] == pytest.approx(kept.effect.mean(), abs=1e-12)
    kept = effects[(effects.pair == "short") & (effects.position == 3) & (effects.layer == 1)]
    assert table.loc[1, "further"]["mean"] == pytest.approx(kept.effect.mean(), abs=1e-12)


def test_what_is_a_cut_in_every_prompt_has_no_mean(effects: pd.DataFrame) -> None:
    spoiled = effects.copy()
    spoiled.loc[(spoiled.position_role == "last") & (spoiled.layer == 2), "cut"] = True
    table = class_effects(spoiled, resamples=100).set_index(["layer", "role"])
    assert np.isnan(table.loc[2, "last"]["mean"])
    assert not np.isnan(table.loc[1, "last"]["mean"])


def test_clusters_widen_the_interval_and_the_seed_fixes_it(effects: pd.DataFrame) -> None:
    one = class_effects(effects, resamples=300, seed=1)
    pd.testing.assert_frame_equal(one, class_effects(effects, resamples=300, seed=1))
    together = class_effects(effects, clusters=dict.fromkeys(ROLES, "all"), resamples=100)
    assert together.low.isna().all()  # one cluster says nothing about how prompts differ
