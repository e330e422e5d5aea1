"""What training did, step by step: read from the state that the Trainer saves in every checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from engramscope.finetune.history import history_table

#: columns of steps.csv
COLUMNS = ("step", "epoch", "train_loss", "gradient_norm", "learning_rate")
FILE = "steps.csv"
_STATE = "trainer_state.json"


def read_steps(checkpoint: Path) -> list[dict[str, Any]]:
    """The optimiser steps up to a checkpoint.

    Returns:
        One row per step. `epoch` is the place on the axis of epochs after the step (a training's last step has the
        number of its epochs), `train_loss` is in nats per token that the step learned from, `gradient_norm` is before
        clipping (None where fp16 overflowed and the step was skipped).
    """
    state = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    logs: Sequence[Mapping[str, Any]] = [entry for entry in state["log_history"] if "grad_norm" in entry]
    return [
        {
            "step": int(entry["step"]),
            "epoch": float(entry["epoch"]),
            "train_loss": float(entry["loss"]),
            "gradient_norm": _finite(entry["grad_norm"]),
            "learning_rate": float(entry["learning_rate"]),
        }
        for entry in logs
    ]


def steps_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows as a table with the columns of `COLUMNS`."""
    return history_table(rows, COLUMNS)


def steps_of(folder: Path) -> pd.DataFrame:
    """The table of a finished fine-tuning; empty where an earlier version, which wrote none, made the folder."""
    path = folder / FILE
    return pd.read_csv(path) if path.is_file() else steps_table([])


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if -float("inf") < number < float("inf") else None
