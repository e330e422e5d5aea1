"""Restoring several heads of several layers in one run: what it must agree with."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from engramscope import make_pairs, patch
from engramscope.corruptions import make_corruption
from engramscope.errors import SiteError
from engramscope.models import Model, load_model
from engramscope.replications._joint import heads_by_layer, restore_jointly
from engramscope.study_file import parse_study
from engramscope.study_inputs import Inputs, inputs_of

METRICS = ["logit_diff", "prob", "kl"]


def inputs(model: Model, corruption: str = "str", **options: object) -> Inputs:
    study = parse_study({
        "schema": 1, "name": "joint", "model": {"name": model.name}, "pairs": {"task": "ioi", "limit": 4},
        "corruption": {"method": corruption, **options}, "sweep": [{"name": "heads", "site": "z", "heads": "each"}],
        "metrics": {"names": METRICS},
    })  # fmt: skip
    from pathlib import Path

    return inputs_of(study, "", Path(), make_pairs("ioi", 4, tokenizer=model.tokenizer))


def by_pair(table: pd.DataFrame, metric: str) -> np.ndarray:
    rows = table[table["metric"] == metric].sort_values(["pair", "seed"])
    return rows["patched"].to_numpy(dtype=float)


def test_one_head_is_the_cell_of_a_sweep_and_all_heads_of_a_layer_are_too(mini: Model) -> None:
    pairs = make_pairs("ioi", 4, tokenizer=mini.tokenizer)
    each = patch(mini, pairs, "v", heads="each", layers=[4], metrics=METRICS, check=0, resamples=100).effects
    whole = patch(mini, pairs, "v", layers=[4], metrics=METRICS, check=0, resamples=100).effects
    alone = restore_jointly(mini, inputs(mini), "v", ["4.3"])
    every = restore_jointly(mini, inputs(mini), "v", [f"4.{head}" for head in range(8)])
    for metric in METRICS:
        np.testing.assert_allclose(by_pair(alone, metric), by_pair(each[each["head"] == 3], metric), atol=1e-5)
        np.testing.assert_allclose(by_pair(every, metric), by_pair(whole, metric), atol=1e-5)


def test_all_values_of_all_layers_and_patterns_left_alone_is_no_sum_of_parts(mini: Model) -> None:
    two = restore_jointly(mini, inputs(mini), "z", ["3.1", "4.3"])
    one, other = (restore_jointly(mini, inputs(mini), "z", [head]) for head in ("3.1", "4.3"))
    assert set(two["status"]) == {"ok"}
    joint = by_pair(two, "logit_diff")
    assert not np.allclose(joint, by_pair(one, "logit_diff"))
    assert not np.allclose(joint, by_pair(other, "logit_diff"))


def test_noise_draws_have_a_row_each(mini: Model) -> None:
    table = restore_jointly(mini, inputs(mini, "gaussian", span="s2", draws=2), "v", ["4.3"])
    assert sorted(set(table["seed"])) == [0, 1]
    assert len(table) == 4 * 2 * len(METRICS)
    assert (table["effect"] == table["patched"] - table["corrupted"]).all()


def test_key_value_groups_are_restored_whole() -> None:
    llama = load_model("mini-llama", device="cpu")
    width = llama.anatomy.n_heads // llama.anatomy.n_kv_heads
    if width > 1:
        assert heads_by_layer(["1.0", f"1.{width - 1}", f"1.{width}"], llama.anatomy, "v") == {1: (0, 1)}
    assert heads_by_layer(["1.0", "1.1"], llama.anatomy, "z") == {1: (0, 1)}


def test_a_head_that_is_not_there_is_refused(mini: Model) -> None:
    with pytest.raises(SiteError, match=r"9\.9"):
        restore_jointly(mini, inputs(mini), "v", ["9.9"])
    assert make_corruption("str", {}).level == "tokens"
