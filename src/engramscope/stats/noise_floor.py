"""The size of effects that mean nothing: what a patch of a run into itself moves.

In exact arithmetic a self-patch changes nothing. What it does change is rounding, and no effect of that size
is a finding, however small its p.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from engramscope.stats.clusters import Bools


def noise_floor(self_patch_effects: ArrayLike) -> float:
    """Largest absolute effect of the self-patches, in units of the metric, never negative.

    `floor = max |effect|` over all pairs and cells; `NaN` = no such cell.

    Raises:
        ValueError: If there is no value at all, or one is infinite.
    """
    values = np.abs(np.asarray(self_patch_effects, dtype=np.float64))
    values = values[~np.isnan(values)]
    if values.size == 0:
        raise ValueError("no self-patch effect was given: the noise floor is unknown, not 0")
    if np.isinf(values).any():
        raise ValueError("a self-patch effect is infinite: the metric failed there")
    return float(values.max())


def above_floor(effect: ArrayLike, floor: float) -> Bools:
    """True where `|effect| > floor`; `NaN` is not above it.

    Raises:
        ValueError: If the floor is negative or not finite.
    """
    if not np.isfinite(floor) or floor < 0.0:
        raise ValueError(f"the noise floor must be finite and not negative, got {floor}")
    values = np.asarray(effect, dtype=np.float64)
    return np.abs(np.where(np.isnan(values), 0.0, values)) > floor
