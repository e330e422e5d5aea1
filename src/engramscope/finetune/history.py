"""What training did, epoch by epoch: the rows of the history, and what can be read off them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd

#: columns of history.csv
COLUMNS = (
    "epoch", "step", "train_loss", "validation_loss", "validation_perplexity", "gradient_norm_mean",
    "gradient_norm_max", "learning_rate", "tokens", "skipped_steps", "seconds", "tokens_per_second",
    "validation_seconds",
)  # fmt: skip


@dataclass
class History:
    """The epochs that are done, and the sums of the one that is not.

    Attributes:
        rows: one per epoch, keys as in `COLUMNS`; epoch 0 is the model before training.
        nll: negative log-likelihood (nats) of the tokens learned from in this epoch, and `tokens`, how many they are.
        norm_sum, norm_max, norm_count: of the gradient norms of this epoch's steps, before clipping.
        skipped: steps whose gradient was not finite, so that they changed nothing (fp16 only).
        learning_rate: of the last step.
        seconds: spent on this epoch's steps.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    nll: float = 0.0
    tokens: float = 0.0
    norm_sum: float = 0.0
    norm_max: float = 0.0
    norm_count: int = 0
    skipped: int = 0
    learning_rate: float = 0.0
    seconds: float = 0.0

    def add_step(self, norm: float, learning_rate: float) -> None:
        """One optimiser step."""
        self.learning_rate = learning_rate
        if not math.isfinite(norm):
            self.skipped += 1
            return
        self.norm_sum, self.norm_count = self.norm_sum + norm, self.norm_count + 1
        self.norm_max = max(self.norm_max, norm)

    def close(
        self,
        epoch: int,
        step: int,
        validation_loss: float,
        validation_seconds: float,
        checked_loss: float | None = None,
    ) -> dict[str, Any]:
        """End an epoch with its validation loss (nats per token), begin the next, and return the row.

        `checked_loss` is that of the chunks on which the weights of the best epoch are checked again when they are on
        the disk; it stands in the row and in no table.
        """
        trained = epoch > 0
        row = {
            "epoch": epoch,
            "step": step,
            "train_loss": self.nll / self.tokens if trained and self.tokens else None,
            "validation_loss": validation_loss,
            "validation_perplexity": perplexity(validation_loss),
            "gradient_norm_mean": self.norm_sum / self.norm_count if self.norm_count else None,
            "gradient_norm_max": self.norm_max if self.norm_count else None,
            "learning_rate": self.learning_rate if trained else None,
            "tokens": int(self.tokens),
            "skipped_steps": self.skipped,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens / self.seconds if self.seconds else None,
            "validation_seconds": validation_seconds,
            "checked_loss": checked_loss,
        }
        self.rows.append(row)
        self.nll = self.tokens = self.norm_sum = self.norm_max = self.seconds = 0.0
        self.norm_count = self.skipped = 0
        return row

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def perplexity(loss: float) -> float:
    """exp of a mean negative log-likelihood in nats."""
    return math.exp(loss) if loss < 700 else math.inf


def trained_rows(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows after the first, which is the model before training."""
    return [row for row in rows if row["epoch"] > 0]


def best_row(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The epoch of least validation loss, the first of several; None where no epoch is done."""
    return min(trained_rows(rows), key=lambda row: row["validation_loss"], default=None)


def epochs_since_best(rows: Sequence[Mapping[str, Any]]) -> int:
    """How many epochs have gone by since validation loss was least."""
    best = best_row(rows)
    return 0 if best is None else sum(row["epoch"] > best["epoch"] for row in trained_rows(rows))


def overfitting_epoch(rows: Sequence[Mapping[str, Any]]) -> int | None:
    """Where validation loss turns: the epoch of its minimum, where a later epoch is higher; else None."""
    best = best_row(rows)
    if best is None:
        return None
    later = [row for row in rows if row["epoch"] > best["epoch"]]
    return int(best["epoch"]) if any(row["validation_loss"] > best["validation_loss"] for row in later) else None


def history_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = COLUMNS) -> pd.DataFrame:
    """The rows as a table with these columns."""
    return pd.DataFrame([{name: row[name] for name in columns} for row in rows], columns=list(columns))
