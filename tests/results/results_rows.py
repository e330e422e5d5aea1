"""Rows of an effects table, made up."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa

from engramscope.results.schema import EFFECTS, SUMMARY_COLUMNS


def chunk(layer: int, n_pairs: int = 3, n_heads: int = 4, sweep: str = "heads") -> pa.Table:
    """All rows of one layer of a layer x head sweep; the values depend on the layer only through the generator."""
    rng = np.random.default_rng([7, layer])
    rows = [
        {
            "study": "made up", "pair": f"p{pair}", "group": f"g{pair % 2}", "corruption": "str", "seed": 0,
            "direction": "denoise", "site": "z", "layer": layer, "head": head, "position": None,
            "position_role": "all", "window": 1, "metric": "logit_diff", "clean": 2.0, "corrupted": -1.0,
            "patched": float(rng.normal()), "effect": float(rng.normal()), "recovery": float(rng.normal()),
            "status": "ok", "sweep": sweep, "cut": False,
        }
        for head in range(n_heads)
        for pair in range(n_pairs)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=EFFECTS)


def summary(**changes: object) -> pd.DataFrame:
    """One row of summary.csv."""
    row: dict[str, object] = dict.fromkeys(SUMMARY_COLUMNS)
    row |= {
        "study": "made up", "sweep": "heads", "corruption": "str", "direction": "denoise", "site": "z", "layer": 3,
        "head": 5, "position_role": "all", "window": 1, "metric": "logit_diff", "n": 24, "n_clusters": 6,
        "estimate_kind": "recovery", "estimate": 0.1 + 0.2, "low": 1e-17, "high": 1 / 3, "cut": False,
        "detected": True, "note": "",
    }  # fmt: skip
    return pd.DataFrame([row | changes])
