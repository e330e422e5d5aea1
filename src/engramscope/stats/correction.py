"""False discovery rate over many cells: Benjamini-Hochberg and Benjamini-Yekutieli."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from engramscope.stats.clusters import Floats


def benjamini_hochberg(p: ArrayLike) -> Floats:
    """Adjusted p per cell (q): the smallest false discovery rate at which the cell is on the list.

    `q_(i) = min_{j >= i} min(1, m p_(j) / j)` over the `m` cells whose p is not `NaN`.

    Args:
        p: p values `[n_cells]`; `NaN` = not in the family.

    Returns:
        `[n_cells]` in [0, 1], `NaN` where p is.

    Source: Benjamini & Hochberg 1995; `scipy.stats.false_discovery_control`. Holds for independent and for
        positively dependent cells.
    """
    return _adjusted(p, "bh")


def benjamini_yekutieli(p: ArrayLike) -> Floats:
    """As `benjamini_hochberg`, times `sum_{j <= m} 1/j`: holds under any dependence between cells.

    Source: Benjamini & Yekutieli 2001; `scipy.stats.false_discovery_control`.
    """
    return _adjusted(p, "by")


def holm(p: ArrayLike) -> Floats:
    """Step-down Bonferroni: `max_{j <= i} min(1, (m - j + 1) p_(j))` for the i-th smallest of m.

    Args:
        p: p-values `[n]`; NaN = outside the family.

    Returns:
        Adjusted p `[n]`: family-wise, under any dependence.

    Source: Holm 1979.
    """
    values = np.asarray(p, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"p must have the axis [n_cells], got the shape {values.shape}")
    out = np.full(values.shape, np.nan)
    family = np.flatnonzero(~np.isnan(values))
    order = family[np.argsort(values[family], kind="stable")]
    steps = (len(order) - np.arange(len(order))) * values[order]
    out[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return out


def _adjusted(p: ArrayLike, method: Literal["bh", "by"]) -> Floats:
    values = np.asarray(p, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"p must have the axis [n_cells], got the shape {values.shape}")
    out = np.full(values.shape, np.nan)
    family = ~np.isnan(values)
    if family.any():
        out[family] = stats.false_discovery_control(values[family], method=method)
    return out
