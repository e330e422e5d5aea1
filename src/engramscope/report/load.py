"""A results folder as the report sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from engramscope.report.words import missing, quantity
from engramscope.results.effect_scale import is_loss
from engramscope.results.read import read_manifest, read_pairs, read_study_text, read_summary


@dataclass(frozen=True)
class Study:
    """What the report reads; nothing else enters it.

    Attributes:
        path: the results folder.
        manifest: `manifest.json`.
        summary: `summary.csv` with `shown shown_low shown_high quantity` beside (see `with_shown`).
        pairs: `pairs.parquet`.
        toml: `study.toml`, word for word.
    """

    path: Path
    manifest: Mapping[str, Any]
    summary: pd.DataFrame
    pairs: pd.DataFrame
    toml: str

    @property
    def metrics(self) -> list[str]:
        """The metrics, in the order of the study; the first is the one that the text speaks of."""
        return [str(name) for name in dict.fromkeys(self.summary["metric"])]

    @property
    def family_error(self) -> float:
        """The chance allowed of any false detection in the study."""
        value = section(section(self.manifest, "study"), "stats").get("family_error", 1.0 - self.confidence)
        return float(value) if isinstance(value, int | float) else 1.0 - self.confidence

    @property
    def confidence(self) -> float:
        """The confidence of the intervals."""
        value = section(section(self.manifest, "study"), "stats").get("confidence", 0.95)
        return float(value) if isinstance(value, int | float) else 0.95

    @property
    def findings(self) -> Mapping[str, Any]:
        """The findings of the manifest, empty where there are none."""
        return section(self.manifest, "findings")

    @property
    def used(self) -> pd.DataFrame:
        """The pairs that enter recovery; those with a tiny or wrong-signed gap are in the tests only."""
        if "status" not in self.pairs.columns:
            return self.pairs
        return self.pairs.loc[(self.pairs["status"] == "used").to_numpy()]


def load(folder: Path) -> Study:
    """Read a results folder.

    Raises:
        ResultsError: it is not ours, not finished, or damaged.
    """
    manifest = read_manifest(folder)
    summary = with_shown(read_summary(folder))
    return Study(Path(folder), manifest, summary, read_pairs(folder), read_study_text(folder))


def with_shown(summary: pd.DataFrame) -> pd.DataFrame:
    """The summary with what is shown: `shown = estimate`, and for noising `1 - recovery`, with interval and name."""
    estimate, low, high = (summary[name].to_numpy(dtype=float) for name in ("estimate", "low", "high"))
    kinds = [(str(kind), str(way)) for kind, way in zip(summary["estimate_kind"], summary["direction"], strict=True)]
    lost = np.array([is_loss(*kind) for kind in kinds], dtype=bool)
    return summary.assign(
        shown=np.where(lost, 1.0 - estimate, estimate),
        shown_low=np.where(lost, 1.0 - high, low),
        shown_high=np.where(lost, 1.0 - low, high),
        quantity=[quantity(*kind) for kind in kinds],
        cut=summary["cut"].fillna(False).astype(bool),
        detected=summary["detected"].fillna(False).astype(bool),
    )


def section(value: object, key: str) -> Mapping[str, Any]:
    """`value[key]` where both are mappings, else an empty one: optional parts of a manifest may be missing or null."""
    part = value.get(key) if isinstance(value, Mapping) else None
    return part if isinstance(part, Mapping) else {}


def records(value: object, key: str) -> list[Mapping[str, Any]]:
    """The mappings of the list `value[key]`, else an empty list."""
    part = value.get(key) if isinstance(value, Mapping) else None
    return [item for item in part if isinstance(item, Mapping)] if isinstance(part, list | tuple) else []


def strings(value: object) -> list[str]:
    """A list column of `pairs.parquet` as a list of text; empty for a missing one."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list | tuple | np.ndarray):
        return [str(item) for item in value]
    return [] if missing(value) else [str(value)]
