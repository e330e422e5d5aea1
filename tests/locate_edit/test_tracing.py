"""Fractions restored: a table worked out by hand, and the sweep against hooks placed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from engramscope.locate_edit import LocateEdit
from engramscope.locate_edit.settings import Settings
from engramscope.locate_edit.tracing import draws_of, places_of, restored, table_of
from engramscope.models import Model
from engramscope.pairs import read_pairs


def _row(patched: float, **over: Any) -> dict[str, Any]:
    return {
        "pair": "a", "corruption": "gaussian", "seed": 0, "site": "mlp_out", "window": 5, "metric": "prob",
        "layer": 0, "position": 1, "position_role": "subject_last", "clean": 0.9, "corrupted": 0.1,
        "patched": patched, "status": "ok", "sweep": "mlp_out, 5 layers", "cut": False, **over,
    }  # fmt: skip


def test_fractions_by_hand() -> None:
    rows = [
        _row(0.5), _row(0.9, seed=1, corrupted=0.3),  # means 0.7, corrupted 0.2: 0.5 / 0.7
        _row(0.3, position=2, position_role="last"), _row(0.5, position=2, position_role="last", seed=1, corrupted=0.3),
        _row(0.0, layer=1), _row(0.1, layer=1, seed=1, corrupted=0.3),  # worse than corrupted: 0
        _row(9.0, layer=1, position=2, position_role="last", cut=True),
        _row(9.0, layer=1, position=3, position_role="last", status="failed: x"),
        _row(9.0, sweep="mlp_out, 5 layers (single layers)", window=1),
        _row(0.5, pair="b", corrupted=0.895), _row(0.5, pair="b", corrupted=0.897, seed=1),  # hardly corrupted
        _row(5.0, pair="c", metric="logit_diff", clean=4.0, corrupted=-1.0), # more than restored
    ]  # fmt: skip
    table = restored(pd.DataFrame(rows), [("mlp_out", 5)])
    which = {"corruption": "gaussian", "site": "mlp_out", "window": 5}
    found = table_of(table, ["a", "b"], [0, 1], metric="prob", tokens="any", **which)
    np.testing.assert_allclose(found, [[0.5 / 0.7, 0.0], [np.nan, np.nan]])
    last = table_of(table, ["a"], [0, 1], metric="prob", tokens="subject_last", **which)
    np.testing.assert_allclose(last, [[0.5 / 0.7, 0.0]])
    first, second = (table_of(table, ["a"], [0], draw, metric="prob", tokens="any", **which) for draw in (0, 1))
    np.testing.assert_allclose([first[0, 0], second[0, 0]], [0.4 / 0.8, 0.6 / 0.6])
    assert table_of(table, ["c"], [0], metric="logit_diff", tokens="any", **which)[0, 0] == pytest.approx(1.2)
    assert draws_of(table, "gaussian") == [0, 1]


def test_the_largest_token_counts_and_the_last_of_the_subject_apart() -> None:
    rows = [
        _row(0.3),
        _row(0.7, position=4, position_role="last"),
        _row(0.2, position=0, position_role="subject_first"),
    ]
    table = restored(pd.DataFrame(rows), [("mlp_out", 5)])
    values = {row["tokens"]: row["effect"] for row in table.to_dict("records")}
    assert values == pytest.approx({"any": 0.75, "subject_last": 0.25})


def test_windows_are_no_wider_than_the_model() -> None:
    settings = Settings(sites=("mlp_out", "resid_post"), windows=(5, 3, 1))
    assert places_of(settings, 3) == [("mlp_out", 3), ("mlp_out", 1), ("resid_post", 1)]


def _by_hooks(model: Model, clean: str, corrupted: str, layer: int, answer: str) -> tuple[float, float, float]:
    """P(answer) clean, corrupted, and the largest with one MLP's output at one token put back: hooks by hand."""
    hf = model.hf
    token = model.tokenizer(answer).input_ids[0]
    ids, other = (model.tokenizer(text, return_tensors="pt").input_ids for text in (clean, corrupted))
    kept: list[torch.Tensor] = []

    def probability(tokens: torch.Tensor) -> float:
        with torch.no_grad():
            logits = hf(tokens, attention_mask=torch.ones_like(tokens)).logits[0, -1]
        return float(logits.softmax(-1)[token])

    mlp = hf.transformer.h[layer].mlp
    handle = mlp.register_forward_hook(lambda _m, _i, out: kept.append(out.clone()))
    before = probability(ids)
    handle.remove()
    best = -1.0
    for position in range(ids.shape[1]):

        def put(_m: Any, _i: Any, out: torch.Tensor, at: int = position) -> torch.Tensor:
            new = out.clone()
            new[0, at] = kept[0][0, at]
            return new

        handle = mlp.register_forward_hook(put)
        best = max(best, probability(other))
        handle.remove()
    return before, probability(other), best


def test_token_replacement_is_that_of_hooks_placed_by_hand(finished: LocateEdit, mini: Model) -> None:
    table = finished.tracing()
    rows = table[(table["corruption"] == "str") & (table["metric"] == "prob") & (table["tokens"] == "any")]
    assert rows["draw"].isna().all()
    pairs = {pair.id: pair for pair in read_pairs(Path(finished.folder) / "pairs.jsonl")}
    compared = 0
    for row in rows[rows["layer"].isin([0, 2, 4])].to_dict("records"):
        pair = pairs[row["fact"]]
        clean, corrupted, best = _by_hooks(mini, pair.clean, str(pair.corrupted), row["layer"], pair.correct[0])
        assert (row["clean"], row["corrupted"]) == pytest.approx((clean, corrupted), abs=1e-5)
        assert row["effect"] == pytest.approx(max(0.0, (best - corrupted) / abs(clean - corrupted)), abs=1e-4)
        compared += 1
    assert compared == 15


def test_the_tracing_is_complete(finished: LocateEdit) -> None:
    table = finished.tracing()
    assert set(table["corruption"]) == {"gaussian", "str"}
    assert set(table["metric"]) == {"prob", "logit_diff"}
    assert set(table["layer"]) == set(range(6))
    # noise: the mean and two draws; replacement: one run
    assert table[table["corruption"] == "gaussian"]["draw"].nunique(dropna=False) == 3
    assert table[table["corruption"] == "str"]["draw"].isna().all()
    assert (table["effect"].dropna() >= 0).all()
    assert not table.duplicated(["fact", "corruption", "metric", "layer", "tokens", "draw"]).any()
