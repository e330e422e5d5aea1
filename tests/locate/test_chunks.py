"""A sweep is cut into pieces by memory, and the pieces do not change what is found."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from engramscope.locate.cells import Cell, cells_of
from engramscope.locate.chunks import values_per_run
from engramscope.locate.experiment import set_up
from engramscope.locate.scoring import Scorer
from engramscope.locate.sweep import _Scores, _Work
from engramscope.models.site import SITES
from engramscope.study_file import SweepSection
from tests.planted import planted_model, value_pairs
from tests.tiny_models import tiny_model


@pytest.fixture(scope="module")
def experiment():
    return set_up(planted_model(), value_pairs(10), "str", "str", ["logit_diff"], executor="reference")


def _cells(experiment):
    tokens = [pair.tokens for pair in experiment.prepared]
    sweep = SweepSection(name="r", site="resid_post", positions="each", direction="both")
    return list(cells_of(sweep, experiment.model.anatomy, tokens))


def _effects(experiment, chunks) -> pd.DataFrame:
    table = pd.concat([pd.DataFrame(experiment.run(chunk)) for chunk in chunks], ignore_index=True)
    keys = ["pair", "layer", "position", "direction", "metric"]
    return table.sort_values(keys, ignore_index=True)


def test_little_memory_makes_small_pieces_and_the_same_table(experiment) -> None:
    cells = _cells(experiment)
    whole, pieces = experiment.chunks(cells, "a"), experiment.chunks(cells, "a", memory_gb=1e-9)
    assert len(whole) == 1
    assert [len(chunk.pairs) for chunk in pieces] == [1] * 10
    assert len({chunk.id for chunk in (*whole, *pieces)}) == 11
    pd.testing.assert_frame_equal(_effects(experiment, whole), _effects(experiment, pieces), atol=1e-5)


def test_every_pair_and_cell_is_in_exactly_one_piece(experiment) -> None:
    cells = _cells(experiment)
    chunks = experiment.chunks(cells, "a", memory_gb=6e-5)
    assert 1 < len(chunks) < 10
    seen = [(cell, pair) for chunk in chunks for cell in chunk.cells for pair in chunk.pairs]
    assert len(seen) == len(set(seen)) == len(cells) * 10


def test_a_piece_for_the_traversal_is_bounded_by_work_and_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = set_up(planted_model(), value_pairs(10), "str", "str", ["logit_diff"])
    cells = _cells(experiment)
    whole = experiment.chunks(cells, "a")
    assert len(whole) == 1
    monkeypatch.setattr("engramscope.locate.chunks._RUNS", 3 * len(cells))
    pieces = experiment.chunks(cells, "a")
    assert [len(chunk.pairs) for chunk in pieces] == [3, 3, 3, 1]
    pd.testing.assert_frame_equal(_effects(experiment, whole), _effects(experiment, pieces), atol=1e-5)
    monkeypatch.setattr("engramscope.locate.chunks._WORK", {"cpu": 1.0})
    assert [len(chunk.pairs) for chunk in experiment.chunks(cells, "a")] == [1] * 10 * -(-len(cells) // 64)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mixtral"])
def test_the_memory_of_every_site_is_not_underrated(family: str) -> None:
    model = tiny_model(family)
    for site in (*(name for name in SITES if name in model.sites), model.anatomy.head):
        shape = model.shape(site) if site in SITES else (1, 7, model.anatomy.vocab)
        sizes = [7 if isinstance(part, str) and part == "seq" else part for part in shape]
        count = 1
        for part in sizes:
            count *= part if isinstance(part, int) else 1
        assert values_per_run(model.anatomy, site, 7) >= count


def test_an_infinite_value_is_a_failed_row() -> None:
    cell = Cell("r", "mlp_out", (0,), None, None, "all", "denoise", 1, 0)
    anatomy, scorer = tiny_model("gpt2").anatomy, Scorer(("logit_diff", "prob"))
    work = _Work(anatomy, scorer, (), {}, self_patch=False, keys=[(0, cell, 0)], same=[0])
    for value in (math.inf, -math.inf, math.nan):
        outcome = work.outcome(0, _Scores(whole={0: {"logit_diff": value, "prob": 0.5}}))
        assert outcome.status == "failed: logit_diff is not a finite number"
    found = _Scores(whole={0: {"logit_diff": 1.0, "prob": 0.5}})
    assert work.outcome(0, found).status == "ok"
    found.trouble[0] = "run '3' has a value that is not finite after layer 2"
    assert work.outcome(0, found).status == "failed: run '3' has a value that is not finite after layer 2"
