"""The columns of the tables that a study leaves behind, and the keys of its manifest. A contract (design §4, §6)."""

from __future__ import annotations

from typing import Any, TypeAlias

import pyarrow as pa

SCHEMA_VERSION = 1

#: a pandas table inside the statistics; pandas' stubs cannot tell a column from a table, so it is left open there
Frame: TypeAlias = Any

#: effects.parquet: one row per (pair, sweep cell, metric) and noise draw
EFFECTS = pa.schema(
    [
        ("study", pa.string()),
        ("pair", pa.string()),
        ("group", pa.string()),
        ("corruption", pa.string()),
        ("seed", pa.int64()),
        ("direction", pa.string()),
        ("site", pa.string()),
        ("layer", pa.int64()),
        ("head", pa.int64()),
        ("position", pa.int64()),
        ("position_role", pa.string()),
        ("window", pa.int64()),
        ("metric", pa.string()),
        ("clean", pa.float64()),
        ("corrupted", pa.float64()),
        ("patched", pa.float64()),
        ("effect", pa.float64()),
        ("recovery", pa.float64()),
        ("status", pa.string()),
        ("sweep", pa.string()),
        ("cut", pa.bool_()),
    ]
)

#: what identifies a cell of a sweep in the tables (null where a part does not apply)
CELL = ("sweep", "corruption", "direction", "site", "layer", "head", "position", "position_role", "window")

#: ends the name of the sweep of single layers that is run beside a sweep of windows
SINGLES = " (single layers)"

#: in the note of a cell that is the mean over several positions, not one patch of all of them
ROLE_MEAN = "positions of the role, patched one at a time"

#: summary.csv: one row per cell and metric
SUMMARY_COLUMNS = (
    "study", *CELL, "metric", "n", "n_clusters", "estimate_kind", "estimate", "low", "high",
    "effect", "effect_low", "effect_high", "recovery", "recovery_low", "recovery_high",
    "p", "p_adjusted", "q", "two_sd", "d_z", "same_sign_share", "singles_sum", "noise_floor", "cut", "detected", "note",
    "n_pooled",
)  # fmt: skip
