"""What training moved: the distance of every part's weights beside what its weights and its activations restore."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from engramscope.report.load import Study, records, section
from engramscope.report.words import (
    WEIGHTS,
    capital,
    cell_words,
    joined,
    metric_words,
    missing,
    number,
    percent,
    role_order,
    role_words,
)

#: parts of a layer, and what a column of them is called
_PARTS: Mapping[str, str] = {"attn": "attention", "mlp": "MLP", "norms": "norms"}
#: what a part adds to the residual stream
_ACTIVATIONS: Mapping[str, str] = {"attn_out": "attn", "mlp_out": "mlp"}
_ONCE: Mapping[str, str] = {"embed": "Embeddings", "final_norm": "Final norm", "head": "Head", "other": "Other"}
#: layers below which a rank correlation says nothing
_ENOUGH = 5

Place = tuple[str, int | None]
Row = tuple[str, tuple[tuple[str, int], ...]]


@dataclass(frozen=True)
class Moved:
    """Three tables: a row per layer, for each part that exists once, and for what was transplanted together or by path.

    Attributes:
        heads: headings of the columns.
        rows: (name, cells) of every layer; a cell is its text, and how long its bar is, in percent.
        others: the same of parts that exist once: moved, and restored.
        sets: the same of blocks, windows of layers, and single modules.
    """

    heads: tuple[str, ...]
    rows: tuple[Row, ...]
    others: tuple[Row, ...]
    sets: tuple[Row, ...]


def moved_weights(study: Study) -> Moved | None:
    """The table; None for a study of one model."""
    distances = _distances(study)
    if not distances:
        return None
    restored, largest = _restored(study), max(distances.values())
    parts = [part for part in _PARTS if any(key[0] == part for key in distances)]
    shown = [part for part in parts if any(key[0] == part for key in restored)]
    patched = _patched(study)
    roles = {part: sorted({role for name, role, _ in patched if name == part}, key=role_order) for part in parts}

    def cells(names: list[str], layer: int | None) -> tuple[tuple[str, int], ...]:
        found: list[tuple[str, int]] = []
        for part in names:
            found.append(_moved(distances.get((part, layer)), largest))
            if part in shown or layer is None:
                found.append(_share(restored.get((part, layer))))
            found += [_share(patched.get((part, role, layer))) for role in roles.get(part, ())]
        return tuple(found)

    heads: list[str] = []
    for part in parts:
        name = capital(_PARTS[part])
        heads += [f"{name} {verb}" for verb in ("moved", "restores")[: 2 if part in shown else 1]]
        heads += [f"{name} activation, {role_words(role)}" for role in roles[part]]
    layers = sorted({layer for _, layer in distances if layer is not None})
    rows = [(f"Layer {layer}", cells(parts, layer)) for layer in layers]
    others = [(capital(name), cells([part], None)) for part, name in _ONCE.items() if (part, None) in distances]
    return Moved(tuple(heads), tuple(rows), tuple(others), tuple(_sets(study, largest)))


def _sets(study: Study, largest: float) -> list[Row]:
    """Transplants that are no part of the first two tables: moved, and restored."""
    restored, found = _weight_recoveries(study), list[Row]()
    for row in records(study.manifest, "transplants"):
        site, layer, window = str(row.get("site")), _number(row.get("layer")), _number(row.get("window")) or 1
        if site.removeprefix(WEIGHTS) in (*_PARTS, *_ONCE) and window == 1:
            continue
        share = restored.get((site, None if layer is None else int(layer), int(window)))
        found.append((capital(cell_words(row)), (_moved(_number(row.get("relative")), largest), _share(share))))
    return found


def moved_words(study: Study) -> str:
    """What the distances are, and whether parts that moved further restore more; empty for a study of one model."""
    distances, restored = _distances(study), _restored(study)
    if not distances:
        return ""
    metric = metric_words(study.metrics[0]) if study.metrics else ""
    text = (
        "Moved: Frobenius norm of the change over that of the weights before training. Restores: what putting the "
        f"trained weights of this part alone into the base model restores of the {metric}; an activation restores what "
        "the trained model's value at this place does, in the base model's run."
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
        layer, relative = _number(row.get("layer")), _number(row.get("relative"))
        if relative is not None:
            found[str(row.get("part")), None if layer is None else int(layer)] = relative
    return found


def _restored(study: Study) -> dict[Place, float]:
    """(part, layer) -> recovery of its transplant alone into the base model, in the first metric."""
    found = _weight_recoveries(study)
    return {(site.removeprefix(WEIGHTS), layer): value for (site, layer, window), value in found.items() if window == 1}


def _weight_recoveries(study: Study) -> dict[tuple[str, int | None, int], float]:
    """(site, layer, window) -> recovery of a transplant into the base model, in the first metric."""
    rows = _recoveries(study)
    return {
        (str(row["site"]), None if missing(row["layer"]) else int(row["layer"]), int(row["window"])): row["recovery"]
        for row in rows
        if str(row["site"]).startswith(WEIGHTS)
    }


def _patched(study: Study) -> dict[tuple[str, str, int | None], float]:
    """(part, role, layer) -> recovery of what a part adds at a position, taken over into the base model's run."""
    return {
        (_ACTIVATIONS[row["site"]], str(row["position_role"]), int(row["layer"])): row["recovery"]
        for row in _recoveries(study)
        if row["site"] in _ACTIVATIONS and row["window"] == 1 and not missing(row["position_role"])
    }


def _recoveries(study: Study) -> list[dict[str, Any]]:
    """The rows of the summary that are recoveries of the trained model's answer by the base model."""
    if not section(study.manifest, "base_model") or not study.metrics:
        return []
    table: Any = study.summary
    rows = table[
        (table["metric"] == study.metrics[0]) & (table["direction"] == "denoise")
        & (table["estimate_kind"] == "recovery") & table["recovery"].notna()
    ]  # fmt: skip
    return rows[["site", "layer", "window", "position_role", "recovery"]].to_dict("records")


def _number(value: Any) -> float | None:
    return None if missing(value) else float(value)


def _moved(value: float | None, largest: float) -> tuple[str, int]:
    return _cell(value, 0.0 if value is None or not largest else value / largest)


def _share(value: float | None) -> tuple[str, int]:
    return _cell(value, 0.0 if value is None else value)


def _cell(value: float | None, share: float) -> tuple[str, int]:
    return ("" if value is None else percent(value), round(100 * min(max(share, 0.0), 1.0)))
