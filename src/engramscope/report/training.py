"""What training moved: the distance of every part's weights beside what its transplant restores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from engramscope.report.load import Study, records, section
from engramscope.report.words import WEIGHTS, capital, joined, metric_words, missing, number, percent

#: parts of a layer, and what a column of them is called
_PARTS: Mapping[str, str] = {"attn": "attention", "mlp": "MLP", "norms": "norms"}
_ONCE: Mapping[str, str] = {"embed": "Embeddings", "final_norm": "Final norm", "head": "Head", "other": "Other"}
#: layers below which a rank correlation says nothing
_ENOUGH = 5

Place = tuple[str, int | None]
Row = tuple[str, tuple[tuple[str, int], ...]]


@dataclass(frozen=True)
class Moved:
    """Two tables: a row per layer, and a row for each part that exists once.

    Attributes:
        heads: headings of the columns.
        rows: (name, cells) of every layer; a cell is its text, and how long its bar is, in percent.
        others: the same of parts that exist once: moved, and restored.
    """

    heads: tuple[str, ...]
    rows: tuple[Row, ...]
    others: tuple[Row, ...]


def moved_weights(study: Study) -> Moved | None:
    """The table; None for a study of one model."""
    distances = _distances(study)
    if not distances:
        return None
    restored, largest = _restored(study), max(distances.values())
    parts = [part for part in _PARTS if any(key[0] == part for key in distances)]
    shown = [part for part in parts if any(key[0] == part for key in restored)]

    def cells(names: list[str], layer: int | None) -> tuple[tuple[str, int], ...]:
        found: list[tuple[str, int]] = []
        for part in names:
            value = distances.get((part, layer))
            found.append(_cell(value, 0.0 if value is None or not largest else value / largest))
            if part in shown or layer is None:
                share = restored.get((part, layer))
                found.append(_cell(share, 0.0 if share is None else min(max(share, 0.0), 1.0)))
        return tuple(found)

    heads: list[str] = []
    for part in parts:
        heads += [f"{capital(_PARTS[part])} {verb}" for verb in ("moved", "restores")[: 2 if part in shown else 1]]
    layers = sorted({layer for _, layer in distances if layer is not None})
    rows = [(f"Layer {layer}", cells(parts, layer)) for layer in layers]
    others = [(capital(name), cells([part], None)) for part, name in _ONCE.items() if (part, None) in distances]
    return Moved(tuple(heads), tuple(rows), tuple(others))


def moved_words(study: Study) -> str:
    """What the distances are, and whether parts that moved further restore more; empty for a study of one model."""
    distances, restored = _distances(study), _restored(study)
    if not distances:
        return ""
    metric = metric_words(study.metrics[0]) if study.metrics else ""
    text = (
        "Moved: Frobenius norm of the change over that of the weights before training. Restores: what putting the "
        f"trained weights of this part alone into the base model restores of the {metric}."
    )
    said: list[str] = []
    for part, name in _PARTS.items():
        both = [(distances[key], restored[key]) for key in distances if key[0] == part and key in restored]
        if len(both) >= _ENOUGH and all(len({pair[side] for pair in both}) > 1 for side in (0, 1)):
            rho = float(pd.Series([one for one, _ in both]).corr(pd.Series([two for _, two in both]), "spearman"))
            if np.isfinite(rho):
                said.append(f"{number(rho)} for {name}")
    if said:
        text += f" Rank correlation of the two over layers: {joined(said)}."
    return text


def _distances(study: Study) -> dict[Place, float]:
    """(part, layer) -> relative distance."""
    found = {}
    for row in records(study.manifest, "weights"):
        layer, relative = row.get("layer"), row.get("relative")
        if not missing(relative):
            found[str(row.get("part")), None if missing(layer) else int(layer)] = float(relative)  # type: ignore[arg-type]
    return found


def _restored(study: Study) -> dict[Place, float]:
    """(part, layer) -> recovery of its transplant alone into the base model, in the first metric."""
    if not section(study.manifest, "base_model") or not study.metrics:
        return {}
    table: Any = study.summary
    rows = table[
        (table["metric"] == study.metrics[0]) & (table["direction"] == "denoise") & (table["window"] == 1)
        & (table["estimate_kind"] == "recovery") & table["site"].astype(str).str.startswith(WEIGHTS)
    ]  # fmt: skip
    found: dict[Place, float] = {}
    for site, layer, recovery in zip(rows["site"], rows["layer"], rows["recovery"], strict=True):
        if not missing(recovery):
            found[str(site).removeprefix(WEIGHTS), None if missing(layer) else int(layer)] = float(recovery)
    return found


def _cell(value: float | None, share: float) -> tuple[str, int]:
    return ("" if value is None else percent(value), round(100 * share))
