"""The page of a tracing study: total effect, curves by class of position, severed curves, and the way in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.tiny_study import pair_rows, save_model, write_study

from engramscope import run_study
from engramscope.report.load import Study, load
from engramscope.report.sentences import answer, question
from engramscope.report.tracing import is_tracing, known_words, totals, tracing_panels
from engramscope.report.ways import way_words

SWEEPS = (
    {"name": "states", "site": "resid_post", "positions": "each"},
    {"name": "MLPs cut", "site": "resid_post", "positions": ["subject_last"], "severed": "mlp_out"},
    {"name": "attention cut", "site": "resid_post", "positions": ["subject_last"], "severed": "attn_out",
     "as_published": True},
    {"name": "senders", "site": "z", "heads": "each", "receivers": ["2.1.q", "logits"], "receiver_positions": "last",
     "mlps": "frozen"},
)  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("tracing")
    path = write_study(
        folder, save_model(folder / "model"), SWEEPS, pair_rows(12),
        corruption={"method": "gaussian", "draws": 3}, metrics={"names": ["prob", "logit_diff"]},
        stats={"resamples": 200}, run={"check": 4},
    )  # fmt: skip
    run_study(path, folder / "out")
    return load(folder / "out")


def test_total_effects_are_means_of_the_unpatched_runs(study: Study) -> None:
    assert is_tracing(study)
    found = {row["metric"]: row for row in study.findings["gaps"]}
    assert list(found) == ["prob", "logit_diff"]
    for metric, row in found.items():
        clean, corrupted = (study.pairs[f"{run}_{metric}"].mean() for run in ("clean", "corrupted"))
        assert row["clean"] == pytest.approx(clean, abs=1e-9)
        assert row["gap"] == pytest.approx(clean - corrupted, abs=1e-9)
        assert row["low"] <= row["gap"] <= row["high"]
        assert row["n"] == 12
    assert [row["metric"] for row in totals(study)] == ["probability", "logit difference"]


def test_curves_show_the_mean_effect_by_class_in_units_of_the_metric(study: Study) -> None:
    by_key = {panel.key: panel for panel in tracing_panels(study)}
    assert set(by_key) == {"aie-states", "severed-resid-post-subject-last"}
    curve = by_key["aie-states"]
    assert "last subject token*" in curve.rows
    assert curve.rows.index("last subject token*") < curve.rows.index("first token after the subject")
    assert curve.rows[-1] == "last token"
    summary: pd.DataFrame = study.summary
    mine = summary[(summary.sweep == "states") & (summary.metric == "prob") & (summary.position_role == "subject_last")]
    values = curve.metrics["prob"]
    row = curve.rows.index("last subject token*")
    np.testing.assert_allclose(values.shown[row], mine.sort_values("layer")["effect"].to_numpy(), atol=1e-12)
    assert values.quantity == "effect"


def test_severed_curves_stand_beside_the_unsevered_one(study: Study) -> None:
    panel = {panel.key: panel for panel in tracing_panels(study)}["severed-resid-post-subject-last"]
    assert panel.rows == ("nothing severed", "MLPs severed", "attention severed")
    values = panel.metrics["logit_diff"].shown
    assert np.isfinite(values).all()
    summary: pd.DataFrame = study.summary
    for row, sweep in enumerate(("states", "MLPs cut", "attention cut")):
        mine = summary[
            (summary.sweep == sweep) & (summary.metric == "logit_diff") & (summary.position_role == "subject_last")
        ]
        np.testing.assert_allclose(values[row], mine.sort_values("layer")["effect"].to_numpy(), atol=1e-12)
    assert np.abs(values[0] - values[1])[:2].max() > 1e-4


def test_the_way_is_said_in_words(study: Study) -> None:
    assert way_words(study, "states") == ""
    assert way_words(study, "MLPs cut") == ", MLPs severed"
    assert way_words(study, "attention cut") == ", attention severed, with another draw of the noise"
    assert way_words(study, "senders") == ", seen by 2.1.q and the logits at last token only, MLPs frozen"
    assert "MLPs severed" in question(study)
    assert "seen by 2.1.q" in question(study)
    assert answer(study).lead
    page = (study.path / "report.html").read_text(encoding="utf-8")
    assert "Total effect" in page
    assert known_words(study) == ""


def test_figures_of_tracing_are_files_too(study: Study) -> None:
    names = {path.name for path in Path(study.path / "figures").iterdir()}
    assert {"aie-states-prob.svg", "severed-resid-post-subject-last-logit-diff.png"} <= names
