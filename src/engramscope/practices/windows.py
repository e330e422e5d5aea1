"""Windows of layers patched together against the sum of the same layers patched one at a time."""

from __future__ import annotations

import numpy as np
import pandas as pd

from engramscope.results.schema import Frame

#: where the middle of a model begins and ends, as shares of its layers: 10 to 30 of 48
MIDDLE = (10 / 48, 30 / 48)
_COLUMNS = [
    "metric", "position", "window", "peak", "layer", "sum_peak", "ratio", "middle_peak", "middle_layer",
    "middle_sum_peak", "middle_ratio",
]  # fmt: skip


def window_peaks(summary: pd.DataFrame) -> pd.DataFrame:
    """The largest effect of the windows of each width, over that of the sums of single layers.

    `ratio = max_l window(l) / max_l Σ_(layers of the window) single`, once over all layers and once over the middle
    ones, where the effect of the first layers does not leak in. Effects are means in units of the metric.

    Returns:
        One row per metric, position and width. A ratio is missing where the sum is not positive, or a cut leaves a
        window without a sum.

    Source: Zhang & Nanda 2023 (arXiv 2309.16042), §5 and Figure 5, who do not define the middle; 10 to 30 of 48 layers.
    """
    layers = summary["layer"].dropna().to_numpy(dtype=int)
    if not len(layers):
        return pd.DataFrame(columns=_COLUMNS)
    count = int(layers.max()) + 1
    middle = range(round(MIDDLE[0] * count), min(count, round(MIDDLE[1] * count) + 1))
    effects = _effects(summary)
    found = []
    for (metric, position, width), rows in effects.groupby(["metric", "position_role", "window"], sort=False):
        singles = effects[
            (effects["metric"] == metric) & (effects["position_role"] == position) & (effects["window"] == 1)
        ]
        alone = singles.drop_duplicates("layer").set_index("layer")["effect"]
        sums = {layer: _sum(alone, int(layer), int(width), count) for layer in rows["layer"]}
        joint = rows.set_index("layer")["effect"]
        whole, inside = _peaks(joint, sums, range(count)), _peaks(joint, sums, middle)
        found.append((metric, position, int(width), *whole, *inside))
    return pd.DataFrame(found, columns=_COLUMNS)


def _effects(summary: pd.DataFrame) -> Frame:
    rows: Frame = summary[summary["layer"].notna() & ~summary["cut"].astype(bool)]
    return rows.assign(layer=rows["layer"].astype(int)).drop_duplicates(["metric", "position_role", "window", "layer"])


def _sum(singles: Frame, layer: int, width: int, count: int) -> float:
    wanted = list(range(max(0, layer - width // 2), min(count, layer + (width + 1) // 2)))
    if not set(wanted) <= set(singles.index):
        return float("nan")
    return float(singles.loc[wanted].sum())


def _peaks(joint: Frame, sums: dict[int, float], layers: range) -> tuple[float, float, float, float]:
    """Largest window, its layer, largest sum, and their ratio."""
    inside = joint[joint.index.isin(layers)]
    alone = np.array([sums[layer] for layer in inside.index])
    if not len(inside) or np.isnan(alone).all():
        return float("nan"), float("nan"), float("nan"), float("nan")
    peak, largest = float(inside.max()), float(np.nanmax(alone))
    return peak, float(inside.idxmax()), largest, peak / largest if largest > 0 else float("nan")
