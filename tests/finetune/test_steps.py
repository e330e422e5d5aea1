"""The table of single steps: what it says of a training, and that a stop leaves no trace in it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from engramscope.finetune import resolve_settings, run, run_finetune
from engramscope.finetune.keeper import Keeper
from engramscope.finetune.layout import Layout
from engramscope.finetune.page import gradient_figure, loss_figure
from engramscope.finetune.run import FinetuneResult
from engramscope.finetune.steps import COLUMNS, read_steps, steps_of, steps_table
from tests.finetune.small import corpus_table, in_this_process
from tests.tiny_study import save_model

FAST = ["epochs=3", "warmup_steps=4", "train_batch=4", "accumulation=2", "learning_rate=1e-3", "save_minutes=0"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return str(save_model(tmp_path_factory.mktemp("models") / "plain", "gpt2", **none))


def trained(model: str, folder: Path, *sets: str, resume: bool = False) -> FinetuneResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "run_worker", in_this_process)
        return run_finetune(resolve_settings("", [*FAST, *sets]), corpus_table(60), model, folder, resume=resume)


@pytest.fixture(scope="module")
def result(model: str, tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    return trained(model, tmp_path_factory.mktemp("runs") / "whole")


def test_every_step_is_there_once_with_its_place_and_rate(result: FinetuneResult) -> None:
    steps, per_epoch = result.steps(), result.manifest()["steps"]["per_epoch"]
    assert tuple(steps.columns) == COLUMNS
    assert steps["step"].tolist() == list(range(1, 3 * per_epoch + 1))
    assert steps["epoch"].tolist() == pytest.approx([step / per_epoch for step in steps["step"]], rel=1e-9)
    assert steps["epoch"].iloc[-1] == 3
    # the rate of a step is the one that it was taken with: 0 in the first, then up to the whole one
    wanted = [1e-3 * min(1.0, (step - 1) / 4) for step in steps["step"]]
    assert steps["learning_rate"].tolist() == pytest.approx(wanted, rel=1e-9)


def test_the_steps_of_an_epoch_are_its_row(result: FinetuneResult) -> None:
    steps, history = result.steps(), result.history()
    for epoch in (1, 2, 3):
        mine = steps[(steps["epoch"] > epoch - 1 + 1e-9) & (steps["epoch"] <= epoch + 1e-9)]
        row = history[history["epoch"] == epoch].iloc[0]
        assert mine["gradient_norm"].mean() == pytest.approx(row["gradient_norm_mean"], rel=1e-6)
        assert mine["gradient_norm"].max() == pytest.approx(row["gradient_norm_max"], rel=1e-6)
        # steps differ in their number of tokens, so the mean of the epoch lies between them
        assert mine["train_loss"].min() < row["train_loss"] < mine["train_loss"].max()


def test_a_step_that_is_an_epoch_has_its_loss(model: str, tmp_path: Path) -> None:
    found = trained(model, tmp_path / "one", "accumulation=64", "warmup_steps=0")
    history = found.history()
    assert found.steps()["train_loss"].tolist() == pytest.approx(history["train_loss"][1:].tolist(), rel=1e-6)
    assert found.steps()["gradient_norm"].tolist() == pytest.approx(history["gradient_norm_max"][1:].tolist(), rel=1e-6)


def test_a_stop_leaves_no_trace(model: str, result: FinetuneResult, tmp_path: Path, monkeypatch: Any) -> None:
    plain, layout = Keeper.on_step_end, Layout(tmp_path / "stopped")

    def stop_there(self: Keeper, args: Any, state: Any, control: Any, **other: Any) -> None:
        if state.global_step == 4:
            layout.stop.touch()
        plain(self, args, state, control, **other)

    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "on_step_end", stop_there)
        with pytest.raises(KeyboardInterrupt):
            trained(model, layout.root)
    again = trained(model, layout.root, resume=True)
    pd.testing.assert_frame_equal(again.steps(), result.steps(), rtol=1e-5)


def test_a_skipped_step_has_no_norm(tmp_path: Path) -> None:
    logs = [
        {"step": 1, "epoch": 0.5, "loss": 3.0, "grad_norm": math.nan, "learning_rate": 0.1},
        {"step": 2, "epoch": 1.0, "loss": 2.0, "grad_norm": math.inf, "learning_rate": 0.1},
        {"step": 2, "epoch": 1.0, "eval_loss": 2.5},
    ]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": logs}))
    rows = read_steps(tmp_path)
    assert [(row["step"], row["gradient_norm"], row["train_loss"]) for row in rows] == [(1, None, 3.0), (2, None, 2.0)]
    json.dumps(rows, allow_nan=False)


def test_figures_draw_the_steps_and_nothing_where_there_are_none(result: FinetuneResult, tmp_path: Path) -> None:
    manifest, steps = result.manifest(), result.steps()
    for draw, key in ((loss_figure, "train_loss"), (gradient_figure, "gradient_norm")):
        axes = draw(manifest, steps).axes[0]
        (line,) = [one for one in axes.lines if one.get_gid() == f"steps_{key}"]
        assert np.allclose(np.asarray(line.get_xdata()), steps["epoch"])
        assert np.allclose(np.asarray(line.get_ydata()), steps[key])
        assert line.get_label() == "single steps"
        assert axes.get_xlim()[0] <= steps["epoch"].min()
        assert len(draw(manifest, steps_of(tmp_path)).axes[0].lines) == len(axes.lines) - 1


def test_very_many_steps_are_drawn_as_means(result: FinetuneResult) -> None:
    count = 15_000
    rows = [{"step": at + 1, "epoch": 3 * (at + 1) / count, "train_loss": float(at), "gradient_norm": None,
             "learning_rate": 0.1} for at in range(count)]  # fmt: skip
    axes = loss_figure(result.manifest(), steps_table(rows)).axes[0]
    (line,) = [one for one in axes.lines if one.get_gid() == "steps_train_loss"]
    assert np.asarray(line.get_ydata()).tolist() == [4.5 + 10 * at for at in range(1500)]
    assert line.get_label() == "means of 10 steps"
