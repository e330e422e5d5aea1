"""The 2-SD detection rule of Zhang & Nanda. For reproduction only: it is no test.

It marks about 4.6 % of the cells of pure Gaussian noise, however many pairs there are, and one large cell
hides the others by inflating the SD.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from engramscope.stats.clusters import Bools, Floats, as_mask


@dataclass(frozen=True)
class TwoSd:
    """What the rule marks, and with which mean and SD."""

    detected: Bools  # [n_cells]
    mean: float  # over the cells of the family, in units of the metric
    sd: float  # over the cells of the family, in units of the metric
    ddof: int


def two_sd(cell_means: ArrayLike, *, cut: ArrayLike | None = None, factor: float = 2.0, ddof: int = 1) -> TwoSd:
    """Marks the cells whose mean effect lies more than 2 SD from the mean over all swept cells.

    `|e_c - mean(e)| > factor * sd(e)`, mean and SD over the cells that are neither cut nor `NaN`.

    Args:
        cell_means: Mean effect of each cell `[n_cells]`.
        cut: Cells to leave out `[n_cells]`.
        factor: How many SD.
        ddof: 1 divides by `m - 1`; the paper does not say which it used.

    Returns:
        The marks, and the mean and SD used. With fewer than two cells nothing is marked and the SD is `NaN`.

    Source: Zhang & Nanda, arXiv 2309.16042, §3.1. Deviation: `ddof = 1` is our choice, recorded in the result;
        cut cells are left out.
    """
    means: Floats = np.asarray(cell_means, dtype=np.float64)
    if means.ndim != 1:
        raise ValueError(f"cell_means must have the axis [n_cells], got the shape {means.shape}")
    family = ~as_mask(cut, len(means), "cut", default=False) & np.isfinite(means)
    detected = np.zeros(len(means), dtype=np.bool_)
    m = int(np.count_nonzero(family))
    mean = float(np.mean(means[family])) if m else float("nan")
    if m < 2 or m <= ddof:
        return TwoSd(detected, mean, float("nan"), ddof)
    sd = float(np.std(means[family], ddof=ddof))
    detected[family] = np.abs(means[family] - mean) > factor * sd
    return TwoSd(detected, mean, sd, ddof)
