"""The demonstration: what it promises, and that it takes nothing away that is not its own."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from engramscope.cli import _run_app
from engramscope.results.read import read_manifest, read_summary


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "results"
    assert _run_app(["demo", "--out", str(out)]) == 0
    return out


def _metric(folder: Path, name: str) -> pd.DataFrame:
    summary = read_summary(folder)
    return summary[summary["metric"] == name]


def test_both_studies_are_complete_and_checked(demo: Path) -> None:
    for folder in (demo, demo / "clap_tables"):
        manifest = read_manifest(folder)
        assert manifest["status"] == "complete"
        assert manifest["parity"]["max_abs_diff"] <= manifest["parity"]["tolerance"]
        assert (folder / "report.html").stat().st_size > 10_000


def test_the_model_knows_the_answers(demo: Path) -> None:
    pairs = pd.read_parquet(demo / "pairs.parquet")
    assert (pairs["clean_logit_diff"] > 0).mean() >= 0.95
    assert (pairs["corrupted_logit_diff"] < 0).mean() >= 0.95


def test_claps_question_is_answered_with_an_interval(demo: Path) -> None:
    contrast = read_manifest(demo)["findings"]["contrast"]
    assert contrast["groups"] == ["associative", "definitional"]
    rows = [row for row in contrast["rows"] if row["metric"] == "logit_diff"]
    assert {row["sweep"] for row in rows} == {"mlp", "attention"}
    for row in rows:
        assert row["low"] <= row["difference"] <= row["high"]


def test_the_final_output_layer_is_a_cut_and_no_finding(demo: Path) -> None:
    last = _metric(demo, "logit_diff").set_index("sweep").loc["final output layer"]
    assert bool(last["cut"])
    assert not bool(last["detected"])
    assert last["recovery"] == pytest.approx(1.0, abs=1e-5)
    assert pd.isna(last["p"])
    findings = read_manifest(demo)["findings"]
    assert all(peak["sweep"] != "final output layer" for peak in findings["peaks"])
    assert "by construction" in (demo / "report.html").read_text(encoding="utf-8")


def test_the_first_feed_forward_layer_is_measured_as_in_claps_tables(demo: Path) -> None:
    (cell,) = _metric(demo / "clap_tables", "mean_logit_diff").query("sweep == 'first feed-forward layer'").itertuples()
    assert cell.site == "transformer.h.0.mlp.c_fc"
    assert 0 < cell.low < cell.estimate < cell.high


def test_a_second_demonstration_replaces_the_first_but_nothing_else(demo: Path, capsys: pytest.CaptureFixture) -> None:
    (demo / "my notes.txt").write_text("keep me", encoding="utf-8")
    assert _run_app(["demo", "--out", str(demo)]) == 2
    assert "my notes.txt" in capsys.readouterr().err
    assert (demo / "my notes.txt").read_text(encoding="utf-8") == "keep me"
    assert (demo / "report.html").exists()


def test_the_demonstration_refuses_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x", encoding="utf-8")
    assert _run_app(["demo", "--out", str(tmp_path)]) == 2
    assert (tmp_path / "thesis.tex").exists()
