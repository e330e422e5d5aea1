"""Indirect objects on the bundled models: the same heads whichever name comes first, and in pairs not seen before."""

from __future__ import annotations

from functools import cache

import pandas as pd
import pytest

from engramscope.locate.cells import cells_of
from engramscope.locate.experiment import set_up
from engramscope.models import load_model
from engramscope.study_file import SweepSection
from engramscope.tasks import make_pairs

MODELS = pytest.mark.parametrize("name", ["mini", "mini-llama"])


@cache
def effects(name: str, corrupt: str = "s2") -> pd.DataFrame:
    """Logit differences of every pair with each head patched, and the order of the pair's names."""
    model = load_model(name)
    pairs = make_pairs("ioi", 120, 0, model.tokenizer, corrupt=corrupt)
    experiment = set_up(model, pairs, "str", "str", ["logit_diff"])
    tokens = [pair.tokens for pair in experiment.prepared]
    cells = list(cells_of(SweepSection(name="heads", site="z", heads="each"), model.anatomy, tokens))
    table = pd.concat([pd.DataFrame(experiment.run(chunk)) for chunk in experiment.chunks(cells, "heads")])
    assert (table.status == "ok").all()
    return table.assign(order=table.pair.map({pair.id: pair.labels["order"] for pair in pairs}))


def recovery(table: pd.DataFrame) -> pd.Series:
    sums = table.assign(gap=table.clean - table.corrupted).groupby(["layer", "head"])[["effect", "gap"]].sum()
    return sums.effect / sums.gap


@MODELS
def test_the_model_knows_the_answers_and_the_corruption_turns_them_round(name: str) -> None:
    table = effects(name)
    assert (table.clean > 0).mean() > 0.98
    assert (table.corrupted < 0).mean() > 0.98


@MODELS
def test_the_heads_are_the_same_in_both_orders_of_the_names(name: str) -> None:
    table = effects(name)
    one, other = (recovery(table[table.order == order]) for order in ("ABBA", "BABA"))
    assert one.abs().idxmax() == other.abs().idxmax()
    assert one.corr(other) > 0.95
    assert len(set(one.abs().nlargest(5).index) & set(other.abs().nlargest(5).index)) >= 4


@MODELS
def test_heads_found_on_one_half_are_confirmed_on_the_other(name: str) -> None:
    table = effects(name)
    first = table.pair.isin(sorted(table.pair.unique())[::2])
    found = recovery(table[first]).abs().nlargest(5).index
    again = recovery(table[~first])
    assert (again[found].abs() > 5 * again.abs().median()).all()
    assert recovery(table[first]).corr(again) > 0.95


def test_the_corrupted_token_decides_which_heads_are_found() -> None:
    """Two unrelated names leave nothing to move from the repeated name: other heads carry what is restored."""
    swapped, replaced = recovery(effects("mini")), recovery(effects("mini", "s1_io"))
    assert swapped.corr(replaced) < 0.9
